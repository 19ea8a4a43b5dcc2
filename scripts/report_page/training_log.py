"""Read TensorBoard's files of a training: steps and time of each stage, and curves of loss and validation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from report_page.plots import COLOURS, INK, ON_THE_PAGE, PLOT_INCHES, plot_png

STAGES = {
    "autoencoder": "Autoencoder",
    "diffusion": "Diffusion model",
    "regressor": "Regressor",
    "spade": "SPADE",
    "fusion": "Fusion",
}
VALIDATION = {"val_ssim": "SSIM", "val_mse": "mean squared error"}  # the first that a stage has is drawn


def _stages(training_dir: Path) -> dict[str, list[Path]]:
    """Return the event files of each stage below the output_dir of training, from old to new."""
    folders = sorted(path for path in (training_dir / "tensorboard").glob("*") if path.is_dir())
    if not any(folder.rglob("events.out.tfevents.*") for folder in folders):
        raise FileNotFoundError(f"{training_dir}: no tensorboard/*/events.out.tfevents.* in it. Give output_dir of a training")
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
def draw_curves(training_dir: Path) -> list[tuple[str, bytes]]:
    """Draw for each stage the training loss with its running mean over 50 steps, and validation by epoch.

    Returns:
        The description and the PNG of each plot.
    """
    plots = []
    for name, scalars in ((name, read_scalars(files)) for name, files in _stages(training_dir).items()):
        if "loss" not in scalars:
            continue
        figure, axes = _plot()
        steps, loss = scalars["loss"].T
        width = min(50, len(loss))
        axes.plot(steps, loss, color=INK, alpha=0.3, linewidth=0.5)
        axes.plot(steps[width - 1 :], np.convolve(loss, np.ones(width) / width, "valid"), color=COLOURS["generated"])
        title = f"{STAGES.get(name, name)}: training"
        axes.set(title=title, xlabel="step", ylabel="loss (no unit)", yscale="log")
        plots.append((f"{title}, loss over steps", plot_png(figure)))
        for scalar, quantity in VALIDATION.items():
            if scalar in scalars:
                figure, axes = _plot()
                axes.plot(*scalars[scalar].T, "o-", color=COLOURS["cohort"])
                axes.xaxis.set_major_locator(MaxNLocator(integer=True))
                title = f"{STAGES.get(name, name)}: validation scans"
                axes.set(title=title, xlabel="epoch", ylabel=f"{quantity} (no unit)")
                plots.append((f"{title}, {quantity} over epochs", plot_png(figure)))
                break
    return plots


def _plot() -> tuple[Figure, Axes]:
    figure = Figure(figsize=PLOT_INCHES, layout="constrained")
    return figure, figure.subplots()
