"""Draw the curves of a training: loss and validation of each stage over its steps, from TensorBoard's files.

    python scripts/report_page/training_log.py TRAINING_DIR curves.png

TRAINING_DIR is training's output_dir (eval by default).
"""

from __future__ import annotations

import argparse
import io
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

INK = "#808080"  # readable on white and on black


def read_scalars(folder: Path) -> dict[str, np.ndarray]:
    """Name to (n, 2) steps and values of one stage, later runs after earlier ones."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    scalars: dict[str, dict[int, float]] = {}
    for file in sorted(folder.rglob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            scalars.setdefault(name, {}).update((event.step, event.value) for event in events.Scalars(name))
    return {name: np.array(sorted(points.items())) for name, points in scalars.items()}


def draw(training_dir: Path) -> bytes | None:
    """PNG with one row per stage: the training loss (a running mean of 50 steps) and the validation by epoch.

    None where there are no curves.
    """
    stages = {path.name: read_scalars(path) for path in sorted((training_dir / "tensorboard").glob("*")) if path.is_dir()}
    stages = {name: scalars for name, scalars in stages.items() if "loss" in scalars}
    if not stages:
        return None
    figure = Figure(figsize=(9, 2.8 * len(stages)), layout="constrained")
    for row, (name, scalars) in zip(figure.subplots(len(stages), 2, squeeze=False), stages.items(), strict=True):
        steps, loss = scalars["loss"].T
        width = min(50, len(loss))
        row[0].plot(steps, loss, color=INK, alpha=0.3, linewidth=0.5)
        row[0].plot(steps[width - 1 :], np.convolve(loss, np.ones(width) / width, "valid"), color="#e07b39")
        row[0].set(title=f"{name}: training loss", xlabel="step", yscale="log")
        validation = "val_ssim" if "val_ssim" in scalars else "val_mse"
        if validation in scalars:
            row[1].plot(*scalars[validation].T, "o-", color="#4a90d9")
        row[1].set(title=f"{name}: {validation.replace('val_', '').upper()} on validation scans", xlabel="epoch")
    for axes in figure.axes:
        axes.tick_params(colors=INK, which="both")
        for part in (axes.title, axes.xaxis.label, *axes.spines.values()):
            part.set_color(INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, transparent=True)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("training_dir", type=Path)
    parser.add_argument("output", type=Path, help="a PNG")
    options = parser.parse_args()
    picture = draw(options.training_dir)
    if picture is None:
        raise SystemExit(f"error: {options.training_dir} has no curves in a folder tensorboard. Give a training's output_dir")
    partial = options.output.with_name(f".partial-{options.output.name}")
    partial.write_bytes(picture)
    os.replace(partial, options.output)
    print(options.output)


if __name__ == "__main__":
    main()
