"""Figures of one held-out scan: the volumes side by side, their intensity along three lines, and segmentations of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from ignite.engine import Engine, Events

from ..data.planes import AXES, PLANES
from ..shared.files import save_figure
from .synthesis_scores import METHODS

__all__ = ["Figures", "brain_centre", "draw_planes", "draw_profiles", "draw_segmentations", "radiological"]

NOTICE = "Synthetic, not for clinical use"
# Okabe and Ito's colours, told apart with any colour vision; the dashes tell them apart in grey, too.
LINES = {
    "scan": {"color": "black", "linewidth": 1.8},
    "axial": {"color": "#56b4e9", "linewidth": 0.9, "linestyle": (0, (4, 1))},
    "coronal": {"color": "#009e73", "linewidth": 0.9, "linestyle": (0, (1, 1))},
    "sagittal": {"color": "#cc79a7", "linewidth": 0.9, "linestyle": (0, (4, 1, 1, 1))},
    "mean": {"color": "#0072b2", "linewidth": 1.1, "linestyle": (0, (7, 2))},
    "median": {"color": "#e69f00", "linewidth": 1.1, "linestyle": (0, (2, 1))},
    "fusion": {"color": "#d55e00", "linewidth": 1.6},
}
# Along x, y and z of a RAS volume: the ends and the axis's name.
DIRECTIONS = (("left", "right"), ("back", "front"), ("bottom", "top"))
COLUMNS = ("scan", "axial", "coronal", "sagittal", "mean", "median", "fusion", "label_mean")
WIDTH_INCHES = 10.0
LEGEND_COLUMNS = 5
MARGIN_MM = 10.0  # of a profile beyond the brain


def brain_centre(mask: np.ndarray) -> tuple[int, int, int]:
    """Voxel at the centre of mass of a mask (D, H, W).

    Raises:
        ValueError: it is empty.
    """
    if not mask.any():
        raise ValueError("the brain mask is empty: no label of the map is a brain class of the label table")
    return tuple(round(float(positions.mean())) for positions in np.nonzero(mask))


def draw_profiles(
    path: str | Path, volumes: Mapping[str, np.ndarray], mask: np.ndarray, spacing_mm: Sequence[float], title: str = ""
) -> None:
    """PNG of intensity over millimetres along left-right, back-front and bottom-top, through the brain's centre of mass.

    Args:
        path: of the picture.
        volumes: those of LINES that are to be drawn, (D, H, W), RAS, 0 to 1.
        mask: the brain, (D, H, W); its part of each line is shaded.
        spacing_mm: of the voxels, per axis.
        title: such as the participant.

    Raises:
        ValueError: empty mask.
    """
    from matplotlib.figure import Figure  # training and inference run without matplotlib

    centre = brain_centre(mask)
    figure = Figure(figsize=(WIDTH_INCHES, 9), layout="constrained")
    for axis, (axes, ends) in enumerate(zip(figure.subplots(3, 1), DIRECTIONS)):
        line = tuple(slice(None) if other == axis else centre[other] for other in range(3))
        position_mm = (np.arange(mask.shape[axis]) - centre[axis]) * spacing_mm[axis]
        axes.fill_between(position_mm, 0, 1, where=mask[line], step="mid", color="0.92", linewidth=0, label="brain")
        for name, style in LINES.items():
            if name in volumes:
                axes.plot(position_mm, volumes[name][line], label=name, **style)
        brain_mm = position_mm[mask.any(tuple(other for other in range(3) if other != axis))]
        axes.set(xlim=(brain_mm[0] - MARGIN_MM, brain_mm[-1] + MARGIN_MM), ylim=(0, 1), ylabel="intensity (0 to 1)")
        axes.set_xlabel(f"{ends[0]} to {ends[1]}, mm from the brain's centre of mass")
        axes.grid(color="0.85", linewidth=0.5)
        for place, end, side in ((0.0, ends[0], "left"), (1.0, ends[1], "right")):
            axes.annotate(end, (place, 1), xycoords="axes fraction", xytext=(0, 3), textcoords="offset points", ha=side)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    figure.supxlabel(f"{title and f'{title}. '}All but the scan: {NOTICE.lower()}", fontsize=9)
    _save(figure, path)


def radiological(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """A slice of a RAS volume (D, H, W) as a picture, first row on top.

    Axial and coronal: the subject's right at the picture's left, front or head on top. Sagittal: front at the left.
    """
    slice_ = np.take(volume, index, axis=AXES[plane])  # the axes that remain, in their order
    return slice_[::-1, ::-1].T  # columns: from right (axial, coronal) or front (sagittal); rows: from front or top


def draw_planes(
    path: str | Path,
    classes: np.ndarray,
    volumes: Mapping[str, np.ndarray],
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    title: str = "",
) -> None:
    """PNG of the three planes through the brain's centre of mass (rows), of the labels and each volume (columns).

    Args:
        path: of the picture.
        classes: (D, H, W), 0 is background; the picture ends where the classes do.
        volumes: those of COLUMNS that are to be drawn, (D, H, W), RAS; 0 is black, 1 white.
        mask: the brain, (D, H, W).
        spacing_mm: of the voxels, per axis.
        title: such as the participant.

    Raises:
        ValueError: empty mask.
    """
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    centre = brain_centre(mask)
    box = tuple(slice(positions.min(), positions.max() + 1) for positions in np.nonzero(classes))
    centre = [voxel - side.start for voxel, side in zip(centre, box)]
    columns = ["labels", *(name for name in COLUMNS if name in volumes)]
    pictures = {"labels": classes} | dict(volumes)
    extent_mm = [volume_side * side_mm for volume_side, side_mm in zip(classes[box].shape, spacing_mm)]
    rows = {plane: [side for axis, side in enumerate(extent_mm) if axis != AXES[plane]] for plane in PLANES}
    # One scale for all pictures: a column is as wide as the widest plane, a row as high as its own.
    width_mm = max(sides[0] for sides in rows.values())
    heights_mm = [sides[1] for sides in rows.values()]
    inches_per_mm = (WIDTH_INCHES - 0.4) / (len(columns) * width_mm)
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights_mm) * inches_per_mm + 0.75), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    grid = figure.subplots(len(PLANES), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights_mm})
    for plane, row in zip(PLANES, grid):
        for name, axes in zip(columns, row):
            style = {"cmap": ListedColormap(_class_colours(int(classes.max()) + 1)), "vmax": int(classes.max()) + 0.5}
            style = style | {"vmin": -0.5} if name == "labels" else {"cmap": "gray", "vmin": 0, "vmax": 1}
            picture = radiological(pictures[name][box], plane, centre[AXES[plane]])
            axes.imshow(picture, extent=(0, rows[plane][0], 0, rows[plane][1]), interpolation="nearest", **style)
            beside_mm = (width_mm - rows[plane][0]) / 2
            axes.set(xticks=[], yticks=[], facecolor="black", xlim=(-beside_mm, width_mm - beside_mm))
            axes.spines[:].set_visible(False)
            if plane == PLANES[0]:
                axes.set_title(name.replace("_", " "), fontsize=11)
        row[0].set_ylabel(plane, fontsize=11)
        for place, letter in zip(((0.03, 0.5), (0.97, 0.5)), "AP" if plane == "sagittal" else "RL"):
            side = "left" if letter in "AR" else "right"
            text = row[0].text(*place, letter, color="white", fontsize=9, ha=side, va="center", transform=row[0].transAxes)
            text.set_path_effects([withStroke(linewidth=2, foreground="black")])
    if title:
        figure.suptitle(title, fontsize=12)
    figure.supxlabel(
        f"{NOTICE} (all but labels and scan). Radiological convention: the subject's right (R) is at the left; "
        f"sagittal: front (A) at the left",
        fontsize=9,
    )
    _save(figure, path)


def draw_segmentations(
    path: str | Path,
    scan: np.ndarray,
    segmentations: Mapping[str, np.ndarray],
    mask: np.ndarray,
    names: Sequence[str],
    spacing_mm: Sequence[float],
    title: str = "",
) -> None:
    """PNG of the axial and the coronal plane (rows) through the brain's centre, of a scan and segmentations of it (columns).

    A legend names the classes that are to be seen.

    Args:
        path: of the picture.
        scan: (D, H, W), RAS, 0 is black and 1 white.
        segmentations: classes (D, H, W) by heading.
        mask: the brain, (D, H, W).
        names: of the classes, background included.
        spacing_mm: of the voxels, per axis.
        title: such as the participant.

    Raises:
        ValueError: empty mask.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    centre = brain_centre(mask)
    columns = {"scan": scan} | dict(segmentations)
    extent_mm = [voxels * side_mm for voxels, side_mm in zip(scan.shape, spacing_mm)]
    rows = {plane: [side for axis, side in enumerate(extent_mm) if axis != AXES[plane]] for plane in ("axial", "coronal")}
    pictures = {plane: {name: radiological(v, plane, centre[AXES[plane]]) for name, v in columns.items()} for plane in rows}
    seen = sorted({int(c) for row in pictures.values() for name in segmentations for c in np.unique(row[name])} - {0})
    heights_mm = [height for _, height in rows.values()]
    inches_per_mm = (WIDTH_INCHES - 0.4) / (len(columns) * extent_mm[0])
    height_inches = sum(heights_mm) * inches_per_mm + 0.85 + 0.16 * -(-len(seen) // LEGEND_COLUMNS)
    figure = Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    grid = figure.subplots(len(rows), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights_mm})
    colours = _class_colours(len(names), "turbo")
    if len(names) <= 21:  # as many as that map has that can be told apart
        colours[1:, :3] = colormaps["tab20"].colors[: len(names) - 1]
    classes_style = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": len(names) - 0.5}
    for (plane, sides), row in zip(rows.items(), grid):
        for (name, picture), axes in zip(pictures[plane].items(), row):
            style = {"cmap": "gray", "vmin": 0, "vmax": 1} if name == "scan" else classes_style
            axes.imshow(picture, extent=(0, sides[0], 0, sides[1]), interpolation="nearest", **style)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
            if plane == "axial":
                axes.set_title(name.replace(": ", ":\n"), fontsize=9)
        row[0].set_ylabel(plane, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    note = "A scan of the data set and segmentations of it; research, not for clinical use. The subject's right is at the left"
    patches = [Patch(color=colours[number], label=names[number]) for number in seen]
    style = {"ncols": LEGEND_COLUMNS, "frameon": False, "fontsize": 7.5, "title": note, "title_fontsize": 9}
    figure.legend(handles=patches, loc="outside lower center", **style)
    _save(figure, path)


def _class_colours(num_classes: int, colours: str = "viridis") -> np.ndarray:
    """Black for background, then a map of colours in an order that sets neighbouring classes far apart, (num_classes, 4)."""
    from matplotlib import colormaps

    golden = np.arange(1, num_classes) * 0.618034 % 1
    return np.vstack([[0, 0, 0, 1], colormaps[colours](0.1 + 0.9 * golden)])


def _save(figure, path: str | Path) -> None:
    save_figure(path, figure, dpi=160, facecolor="white", metadata={"Comment": NOTICE})


class Figures:
    """Draw `planes.png` and `profiles.png` of the first scan that an evaluator with `EveryMethod` runs.

    Args:
        output_dir: of the pictures.
        items: in the evaluator's order; the first one's participant is in the titles.
        brain: the classes that are brain.
        spacing_mm: of the model's grid, one number or one per axis.
    """

    def __init__(
        self, output_dir: str | Path, items: Sequence[dict], brain: Sequence[int], spacing_mm: float | Sequence[float]
    ) -> None:
        self.output_dir = Path(output_dir)
        self.items = items
        self.brain = list(brain)
        self.spacing_mm = np.broadcast_to(spacing_mm, 3)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Engine) -> None:
        classes, real, predictions = (engine.state.output[key][0].float().cpu().numpy() for key in ("image", "label", "pred"))
        classes = classes[0].astype(int)
        volumes = {"scan": real[0]} | dict(zip(METHODS, predictions))
        mask = np.isin(classes, self.brain)
        title = str(self.items[0]["participant_id"])
        draw_planes(self.output_dir / "planes.png", classes, volumes, mask, self.spacing_mm, title)
        draw_profiles(self.output_dir / "profiles.png", volumes, mask, self.spacing_mm, title)
