"""Figures of one held-out scan: volumes side by side, intensity along three lines, and segmentations.

Volumes, masks of the brain and classes are arrays (D, H, W) in RAS order; volumes have intensities 0 to 1. `spacing_mm` is
the voxel size along each axis. All lines and planes pass through the brain's centre of mass, so an empty mask is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from ignite.engine import Engine, Events

from ..data.planes import AXES, PLANES
from ..shared.files import save_figure
from ..shared.simulated import is_simulated
from .synthesis_scores import METHODS

if TYPE_CHECKING:  # training and inference run without matplotlib, so the functions import it
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NOTICE = "Synthetic, not for clinical use"
# Okabe and Ito's colours are distinct for any colour vision. The dashes distinguish the lines in grey.
LINES = {
    "scan": {"color": "black", "linewidth": 1.8},
    "axial": {"color": "#56b4e9", "linewidth": 0.9, "linestyle": (0, (4, 1))},
    "coronal": {"color": "#009e73", "linewidth": 0.9, "linestyle": (0, (1, 1))},
    "sagittal": {"color": "#cc79a7", "linewidth": 0.9, "linestyle": (0, (4, 1, 1, 1))},
    "mean": {"color": "#0072b2", "linewidth": 1.1, "linestyle": (0, (7, 2))},
    "median": {"color": "#e69f00", "linewidth": 1.1, "linestyle": (0, (2, 1))},
    "fusion": {"color": "#d55e00", "linewidth": 1.6},
}
GREY = {"cmap": "gray", "vmin": 0, "vmax": 1}
DIRECTIONS = (("left", "right"), ("back", "front"), ("bottom", "top"))  # ends of the axes x, y and z of a RAS volume
COLUMNS = ("scan", *METHODS)
WIDTH_INCHES = 10.0
LEGEND_COLUMNS = 5
MARGIN_MM = 10.0  # length of a profile outside of the brain, at each end


def scan_of(place: str | Path) -> str:
    """Return what figures call a scan or the scans of a folder, "scan" or "simulated scan"."""
    return "simulated scan" if is_simulated(place) else "scan"


def brain_centre(mask: np.ndarray) -> tuple[int, int, int]:
    """Return the voxel at the centre of mass of a mask, which must not be empty."""
    if not mask.any():
        raise ValueError("the brain mask is empty: no label of the map is a brain class of the label table")
    return tuple(round(float(positions.mean())) for positions in np.nonzero(mask))


def radiological(volume: np.ndarray, plane: str, index: int) -> np.ndarray:
    """Return a slice as a picture, top row first. The subject's right, or in sagittal slices the front, is on the left."""
    slice_ = np.take(volume, index, axis=AXES[plane])
    return slice_[::-1, ::-1].T  # columns: from right (axial, coronal) or front (sagittal); rows: from front or top


def draw_profiles(
    path: str | Path,
    volumes: Mapping[str, np.ndarray],
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    title: str,
    scan: str = "scan",
) -> None:
    """Draw intensity profiles of the volumes named in LINES from left to right, back to front and bottom to top.

    `scan` is what the figure calls the volume "scan".
    """
    from matplotlib.figure import Figure

    centre = brain_centre(mask)
    figure = Figure(figsize=(WIDTH_INCHES, 9), layout="constrained")
    for axis, (axes, ends) in enumerate(zip(figure.subplots(3, 1), DIRECTIONS)):
        line = tuple(slice(None) if other == axis else centre[other] for other in range(3))
        position_mm = (np.arange(mask.shape[axis]) - centre[axis]) * spacing_mm[axis]
        axes.fill_between(position_mm, 0, 1, where=mask[line], step="mid", color="0.92", linewidth=0, label="brain")
        for name, style in LINES.items():
            if name in volumes:
                axes.plot(position_mm, volumes[name][line], label=scan if name == "scan" else name, **style)
        brain_mm = position_mm[mask.any(tuple(other for other in range(3) if other != axis))]
        axes.set(xlim=(brain_mm[0] - MARGIN_MM, brain_mm[-1] + MARGIN_MM), ylim=(0, 1), ylabel="intensity (0 to 1)")
        axes.set_xlabel(f"{ends[0]} to {ends[1]}, mm from the brain's centre of mass")
        axes.grid(color="0.85", linewidth=0.5)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=len(names), frameon=False)
    figure.supxlabel(f"{title}. {NOTICE}: all but the {scan}", fontsize=9, wrap=True)
    _save(path, figure)


def draw_planes(
    path: str | Path,
    classes: np.ndarray,
    volumes: Mapping[str, np.ndarray],
    mask: np.ndarray,
    spacing_mm: Sequence[float],
    title: str,
    scan: str = "scan",
) -> None:
    """Draw three planes (rows) of the classes and of the volumes named in COLUMNS, cropped to the classes.

    `scan` is what the figure calls the volume "scan".
    """
    from matplotlib.colors import ListedColormap

    box = tuple(slice(positions.min(), positions.max() + 1) for positions in np.nonzero(classes))
    centre = [voxel - side.start for voxel, side in zip(brain_centre(mask), box)]
    columns = {"labels": classes[box]}
    columns |= {scan if name == "scan" else name: volumes[name][box] for name in COLUMNS if name in volumes}
    colours = ListedColormap(_class_colours(int(classes.max()) + 1))
    styles = {"labels": {"cmap": colours, "vmin": -0.5, "vmax": int(classes.max()) + 0.5}}
    figure, grid = _picture_grid(columns, styles, PLANES, centre, spacing_mm, 0.75)
    for plane, (first, *_) in zip(PLANES, grid):
        for place, side, letter in zip((0.03, 0.97), ("left", "right"), "AP" if plane == "sagittal" else "RL"):
            look = {"color": "white", "backgroundcolor": "black", "fontsize": 9, "ha": side, "va": "center"}
            first.text(place, 0.5, letter, transform=first.transAxes, **look)
    figure.suptitle(title, fontsize=12)
    figure.supxlabel(
        f"{NOTICE}: all but labels and {scan}. Radiological convention: the subject's right (R) is on the left; "
        f"in sagittal planes the front (A) is on the left",
        fontsize=9,
        wrap=True,
    )
    _save(path, figure)


def draw_segmentations(
    path: str | Path,
    scan: np.ndarray,
    segmentations: Mapping[str, np.ndarray],
    mask: np.ndarray,
    names: Sequence[str],
    spacing_mm: Sequence[float],
    title: str,
    name: str = "scan",
) -> None:
    """Draw an axial and a coronal plane (rows) of a scan and its segmentations (heading to classes), with a legend.

    `name` is what the figure calls the scan.
    """
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    centre, planes = brain_centre(mask), ("axial", "coronal")
    slices = [np.take(one, centre[AXES[plane]], AXES[plane]) for plane in planes for one in segmentations.values()]
    seen = sorted({int(number) for piece in slices for number in np.unique(piece)} - {0})
    colours = _class_colours(len(names), "turbo")
    if len(names) <= 21:  # tab20 has 20 colours that are easier to distinguish
        colours[1:, :3] = colormaps["tab20"].colors[: len(names) - 1]
    style = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": len(names) - 0.5}
    legend_inches = 0.85 + 0.16 * -(-len(seen) // LEGEND_COLUMNS)
    columns, styles = {name: scan} | dict(segmentations), dict.fromkeys(segmentations, style)
    figure, _ = _picture_grid(columns, styles, planes, centre, spacing_mm, legend_inches)
    figure.suptitle(title, fontsize=11)
    note = f"A {name} and its segmentations; research, not for clinical use. The subject's right is on the left"
    patches = [Patch(color=colours[number], label=names[number]) for number in seen]
    look = {"ncols": LEGEND_COLUMNS, "frameon": False, "fontsize": 7.5, "title": note, "title_fontsize": 9}
    figure.legend(handles=patches, loc="outside lower center", **look)
    _save(path, figure)


def _picture_grid(
    columns: Mapping[str, np.ndarray],
    styles: Mapping[str, Mapping],
    planes: Sequence[str],
    centre: Sequence[int],
    spacing_mm: Sequence[float],
    further_inches: float,
) -> tuple[Figure, Sequence[Sequence[Axes]]]:
    """Draw volumes (columns) in planes (rows), all at the same scale. Each column is as wide as the widest plane."""
    from matplotlib.figure import Figure

    extent_mm = np.multiply(next(iter(columns.values())).shape, spacing_mm)
    sides_mm = [np.delete(extent_mm, AXES[plane]) for plane in planes]  # width and height
    width_mm, heights_mm = max(width for width, _ in sides_mm), [height for _, height in sides_mm]
    inches_per_mm = (WIDTH_INCHES - 0.4) / (len(columns) * width_mm)
    figure = Figure(figsize=(WIDTH_INCHES, sum(heights_mm) * inches_per_mm + further_inches), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0, hspace=0)
    grid = figure.subplots(len(planes), len(columns), squeeze=False, gridspec_kw={"height_ratios": heights_mm})
    for plane, (width, height), row in zip(planes, sides_mm, grid):
        for (name, volume), axes in zip(columns.items(), row):
            picture = radiological(volume, plane, centre[AXES[plane]])
            axes.imshow(picture, extent=(0, width, 0, height), interpolation="nearest", **styles.get(name, GREY))
            margin_mm = (width_mm - width) / 2
            axes.set(xticks=[], yticks=[], facecolor="black", xlim=(-margin_mm, width_mm - margin_mm))
            axes.spines[:].set_visible(False)
        row[0].set_ylabel(plane, fontsize=10)
    for name, axes in zip(columns, grid[0]):
        axes.set_title(name.replace("_", " ").replace(": ", ":\n"), fontsize=10)
    return figure, grid


def _class_colours(num_classes: int, colours: str = "viridis") -> np.ndarray:
    """Return colours (num_classes, 4): black for background, then colours that differ clearly between successive classes."""
    from matplotlib import colormaps

    golden = np.arange(1, num_classes) * 0.618034 % 1
    return np.vstack([[0, 0, 0, 1], colormaps[colours](0.1 + 0.9 * golden)])


def _save(path: str | Path, figure: Figure) -> None:
    save_figure(path, figure, dpi=160, facecolor="white", metadata={"Comment": NOTICE})


@dataclass(eq=False)
class FiguresOfFirst:
    """Draw `planes.png` and `profiles.png` of the first scan of an evaluator with `EveryMethod`."""

    output_dir: str | Path
    brain: Sequence[int]  # classes of the brain
    spacing_mm: float

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED(once=1), self)

    def __call__(self, engine: Engine) -> None:
        classes, real, predictions = (engine.state.output[key][0].float().cpu().numpy() for key in ("image", "label", "pred"))
        classes = classes[0].astype(int)
        volumes = {"scan": real[0]} | dict(zip(METHODS, predictions))
        mask = np.isin(classes, self.brain)
        title, scan = engine.state.batch["participant_id"][0], scan_of(engine.state.batch["scan_file"][0])
        folder, spacing_mm = Path(self.output_dir), (self.spacing_mm,) * 3
        draw_planes(folder / "planes.png", classes, volumes, mask, spacing_mm, title, scan)
        draw_profiles(folder / "profiles.png", volumes, mask, spacing_mm, title, scan)
