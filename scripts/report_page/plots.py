"""Pictures of the report page, as PNG: the overview, scatter plots, three planes of a volume and of its label map."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
from cohorts.cohort import Cohort, evenly, nearest
from cohorts.three_planes import three_planes, three_planes_of_labels
from matplotlib.figure import Figure
from PIL import Image  # comes with matplotlib

from report_page.label_names import LabelNames

ROWS_IN_PICTURE = 6
INK = "#808080"  # readable on white and on black
COLOURS = {"generated": "#e07b39", "cohort": "#4a90d9"}


def draw_scatter(axes, cohorts: dict[str, Cohort], quantity: str, ink: str) -> None:
    """Measured over expected values, the line of equality between."""
    values = []
    for kind, cohort in cohorts.items():
        if quantity not in cohort.quantities():
            continue
        cohort = cohort if kind == "generated" else cohort.unseen()
        x, y = cohort.expected[quantity], cohort.measured[quantity].astype(float)
        label = f"{kind} ({'requested' if kind == 'generated' else 'true'}), n = {(x.notna() & y.notna()).sum()}"
        axes.scatter(x, y, s=16, color=COLOURS[kind], alpha=0.8, linewidths=0, label=label)
        values += [*x.dropna(), *y.dropna()]
    if values:
        ends = [min(values), max(values)]
        axes.plot(ends, ends, color=ink, linewidth=0.8, label="equal")
    generated = cohorts["generated"]
    unit = f" ({generated.unit(quantity)})" if generated.unit(quantity) else ""
    axes.set_xlabel(_literal(f"requested or true {generated.title(quantity)}{unit}"), color=ink)
    axes.set_ylabel(_literal(f"measured{unit}"), color=ink)
    axes.tick_params(colors=ink)
    for spine in axes.spines.values():
        spine.set_color(ink)
    axes.legend(frameon=False, fontsize=8, labelcolor=ink)


def overview(cohorts: dict[str, Cohort]) -> bytes:
    """The one picture: generated volumes by what was requested, scans of the same true value beside them, the scatter.

    What is not known is not drawn: the scatter without measurements, the scans where their value is not known.
    """
    generated = cohorts["generated"]
    quantity = generated.main_quantity()
    shown = {"generated": evenly(generated.sorted_by(quantity), ROWS_IN_PICTURE)}
    if "cohort" in cohorts and quantity in cohorts["cohort"].numbers():
        wanted = generated.expected.loc[shown["generated"], quantity].fillna(0).tolist()
        shown["cohort"] = nearest(cohorts["cohort"], quantity, wanted)
    rows, blocks = len(shown["generated"]), len(shown)
    measured = quantity in generated.quantities()

    size = (4.1 * blocks + 5 * measured, max(1.3 * rows, 4.5 if measured else 1.3) + 0.6)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    pictures, plot = figure.subfigures(1, 2, width_ratios=(4.1 * blocks, 5)) if measured else (figure, None)
    grid = pictures.subplots(rows, blocks, squeeze=False)
    for column, (kind, volumes) in enumerate(shown.items()):
        cohort = cohorts[kind]
        asked, title = ("requested", "generated") if kind == "generated" else ("true", cohort.name)
        grid[0, column].set_title(_literal(title if len(title) < 48 else f"{title[:46]}…"), fontsize=10)
        for axes, volume in zip(grid[:, column], volumes):
            axes.set_axis_off()
            if volume is None:
                continue
            planes = three_planes(cohort.images[volume], cohort.point_mm(volume))
            axes.imshow(planes, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
            text = _literal(_overview_text(cohort, volume, quantity, asked))
            axes.text(-0.02, 0.5, text, transform=axes.transAxes, ha="right", va="center", fontsize=8)
    order = f"Rows by {generated.title(quantity)}. " if quantity else ""
    pictures.supxlabel(
        _literal(f"{order}The subject's left is at the picture's right. Synthetic, not for clinical use."), fontsize=8
    )
    if measured:
        axes = plot.subplots()
        axes.set_box_aspect(1)
        draw_scatter(axes, cohorts, quantity, "#333333")
    return _png(figure)


def _overview_text(cohort: Cohort, volume: str, quantity: str | None, asked: str) -> str:
    if quantity is None:
        return volume
    text = f"{asked}\n{_rounded(cohort, cohort.expected, volume, quantity)}"
    if quantity in cohort.measured:
        text += f"\n\nmeasured\n{_rounded(cohort, cohort.measured, volume, quantity)}"
    return text


def _rounded(cohort: Cohort, table: pd.DataFrame, volume: str, quantity: str) -> str:
    number = table.loc[volume, quantity]
    return "—" if pd.isna(number) else cohort.value(quantity, float(f"{number:.3g}") if abs(number) < 100 else round(number))


def _literal(text: str) -> str:
    """Text that matplotlib does not read as a formula."""
    return text.replace("$", r"\$")


def scatter_image(cohorts: dict[str, Cohort], quantity: str) -> bytes:
    """One scatter plot without background, for light and dark pages."""
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    draw_scatter(figure.subplots(), cohorts, quantity, INK)
    return _png(figure, transparent=True)


def _png(figure: Figure, **options) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight", **options)  # with the rows' titles, which stand beside their axes
    return buffer.getvalue()


def planes_image(cohort: Cohort, volume: str, names: LabelNames) -> bytes:
    """The three planes of a volume as a grey PNG; below them, where there is a label map, its planes in colours."""
    point_mm, label_map = cohort.point_mm(volume), cohort.label_map(volume)
    picture = Image.fromarray((three_planes(cohort.images[volume], point_mm) * 255).round().astype(np.uint8))
    if label_map is not None:
        planes = three_planes_of_labels(label_map, point_mm)
        values, index = np.unique(planes, return_inverse=True)
        labels = Image.fromarray(names.colours(values)[index.reshape(planes.shape)])
        both = Image.new("RGB", (max(picture.width, labels.width), picture.height + labels.height))
        both.paste(picture, (0, 0))
        both.paste(labels, (0, picture.height))
        picture = both
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
