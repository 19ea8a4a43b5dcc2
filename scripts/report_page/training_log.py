"""Read TensorBoard's files of a training: steps and time of each stage, and curves of loss and validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from report_page.plots import COLOURS, INK, ON_THE_PAGE, png


def _stages(training_dir: Path) -> dict[str, list[Path]]:
    """Return the event files of each stage below the output_dir of training, from old to new."""
    folders = sorted(path for path in (training_dir / "tensorboard").glob("*") if path.is_dir())
    return {
        folder.name: sorted(folder.rglob("events.out.tfevents.*"), key=lambda file: file.stat().st_mtime) for folder in folders
    }


def training_rows(training_dir: Path) -> list[list[str]]:
    """Return steps and wall time of each stage. Time between two runs of a resumed training does not count."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # slow to import

    rows = []
    for stage, files in _stages(training_dir).items():
        steps, spans = 0, []
        for file in files:
            events = [(event.wall_time, event.step) for event in EventFileLoader(str(file)).Load()]
            if events:
                steps = max(steps, max(step for _, step in events))
                spans.append((events[0][0], max(time for time, _ in events)))
        seconds, end = 0.0, float("-inf")
        for start, stop in sorted(spans):  # runs may overlap
            seconds += max(0.0, stop - max(start, end))
            end = max(end, stop)
        text = f"{steps} steps in {seconds / 60:.1f} min of wall time, without the steps of weights that it started from"
        rows.append([f"Training, {stage}", text])
    return rows


def read_scalars(files: list[Path]) -> dict[str, np.ndarray]:
    """Return the steps and values of each scalar of one stage, shape (n, 2). Where runs overlap, the later run counts."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # slow to import

    scalars: dict[str, dict[int, float]] = {}
    for file in files:
        events = EventAccumulator(str(file), size_guidance={"scalars": 0}).Reload()
        for name in events.Tags()["scalars"]:
            scalars.setdefault(name, {}).update((event.step, event.value) for event in events.Scalars(name))
    return {name: np.array(sorted(points.items())) for name, points in scalars.items()}


@rc_context(ON_THE_PAGE)
def draw_curves(training_dir: Path) -> bytes | None:
    """Draw one row per stage: training loss with its running mean over 50 steps, and validation by epoch.

    Returns:
        The PNG, or None without curves.
    """
    stages = {name: read_scalars(files) for name, files in _stages(training_dir).items()}
    stages = {name: scalars for name, scalars in stages.items() if "loss" in scalars}
    if not stages:
        return None
    figure = Figure(figsize=(9, 2.8 * len(stages)), layout="constrained")
    for row, (name, scalars) in zip(figure.subplots(len(stages), 2, squeeze=False), stages.items(), strict=True):
        steps, loss = scalars["loss"].T
        width = min(50, len(loss))
        row[0].plot(steps, loss, color=INK, alpha=0.3, linewidth=0.5)
        row[0].plot(steps[width - 1 :], np.convolve(loss, np.ones(width) / width, "valid"), color=COLOURS["generated"])
        row[0].set(title=f"{name}: training loss", xlabel="step", yscale="log")
        validation = "val_ssim" if "val_ssim" in scalars else "val_mse"
        if validation in scalars:
            row[1].plot(*scalars[validation].T, "o-", color=COLOURS["cohort"])
        row[1].set(title=f"{name}: {validation.replace('val_', '').upper()} on validation scans", xlabel="epoch")
    return png(figure, transparent=True)
