"""Draw the overview and the scatter plots of the report page as PNG."""

from __future__ import annotations

import io
import textwrap

import pandas as pd
from cohorts.cohort import Cohort, evenly, nearest
from cohorts.three_planes import three_planes
from matplotlib import rc_context
from matplotlib.figure import Figure
from shared.simulated import note_on

ROWS_IN_PICTURE = 6
NOTICE = "Generated volumes are synthetic, not for clinical use."
INK = "#808080"  # readable on white and on black
ON_THE_PAGE = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
LITERAL = {"text.parse_math": False}  # a $ in a name starts no formula
PLOT_SCALE = 0.5  # plots have two pixels for each pixel of CSS, so that text is sharp
PLOT_INCHES = (3.4, 3.2)  # 326 pixels of CSS wide, which fits a phone
COLOURS = {"generated": "#e07b39", "cohort": "#4a90d9"}


def draw_scatter(axes, cohorts: dict[str, Cohort], quantity: str) -> None:
    """Plot measured against expected values, with the line where both are equal."""
    values = []
    for kind, cohort in cohorts.items():
        if quantity not in cohort.quantities():
            continue
        cohort = cohort if kind == "generated" else cohort.unseen()
        x, y = cohort.expected[quantity], cohort.measured[quantity].astype(float)
        label = f"{'generated' if kind == 'generated' else 'scans'}, n = {(x.notna() & y.notna()).sum()}"
        axes.scatter(x, y, s=16, color=COLOURS[kind], alpha=0.8, linewidths=0, label=label)
        values += [*x.dropna(), *y.dropna()]
    if values:
        axes.plot(*[[min(values), max(values)]] * 2, color=INK, linewidth=0.8, label="equal")
    generated = cohorts["generated"]
    unit = f" ({generated.unit(quantity)})" if generated.unit(quantity) else ""
    axes.set_xlabel(textwrap.fill(f"requested or true {generated.title(quantity)}{unit}", 40))
    axes.set_ylabel(f"measured{unit}")
    axes.legend(frameon=False, fontsize=8)


def in_overview(cohorts: dict[str, Cohort]) -> dict[str, list[str | None]]:
    """Choose generated volumes by requested value, and scans with the same true values. A scan is None if too few are left."""
    generated = cohorts["generated"]
    quantity = generated.main_quantity()
    shown = {"generated": evenly(generated.sorted_by(quantity), ROWS_IN_PICTURE)}
    if "cohort" in cohorts and quantity in cohorts["cohort"].numbers():
        wanted = generated.expected.loc[shown["generated"], quantity].fillna(0).tolist()
        shown["cohort"] = nearest(cohorts["cohort"], quantity, wanted)
    return shown


@rc_context(LITERAL)
def overview(cohorts: dict[str, Cohort]) -> bytes:
    """Draw generated volumes by requested value, scans with the same true values next to them, and the scatter plot.

    The scatter plot is left out without measurements, and the scans are left out if their value is not known.
    """
    generated, shown = cohorts["generated"], in_overview(cohorts)
    quantity = generated.main_quantity()
    rows, blocks = len(shown["generated"]), len(shown)
    measured = quantity in generated.quantities()

    size = (4.1 * blocks + 5 * measured, max(1.3 * rows, 4.5 if measured else 1.3) + 0.6)
    figure = Figure(figsize=size, layout="constrained", facecolor="white")
    pictures, plot = figure.subfigures(1, 2, width_ratios=(4.1 * blocks, 5)) if measured else (figure, None)
    grid = pictures.subplots(rows, blocks, squeeze=False)
    for column, (kind, volumes) in enumerate(shown.items()):
        cohort = cohorts[kind]
        asked, title = ("requested", "generated (synthetic)") if kind == "generated" else ("true", cohort.name)
        grid[0, column].set_title(title if len(title) < 48 else f"{title[:46]}…", fontsize=10)
        for axes, volume in zip(grid[:, column], volumes):
            axes.set_axis_off()
            if volume is None:
                continue
            planes = three_planes(cohort.images[volume], cohort.point_mm(volume))
            axes.imshow(planes, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
            text = volume
            if quantity is not None:
                text = f"{asked}\n{_rounded(cohort, cohort.expected, volume, quantity)}"
                if quantity in cohort.measured:
                    text += f"\n\nmeasured\n{_rounded(cohort, cohort.measured, volume, quantity)}"
            axes.text(-0.02, 0.5, text, transform=axes.transAxes, ha="right", va="center", fontsize=8)
    order = f"Rows by {generated.title(quantity)}. " if quantity else ""
    note = note_on([cohorts["cohort"].folder] if "cohort" in shown else [])
    pictures.supxlabel(f"{order}The subject's left is at the picture's right. {NOTICE} {note}".strip(), fontsize=8, wrap=True)
    if measured:
        axes = plot.subplots()
        axes.set_box_aspect(1)
        draw_scatter(axes, cohorts, quantity)
    return png(figure, bbox_inches="tight")  # includes the texts outside of the axes


def _rounded(cohort: Cohort, table: pd.DataFrame, volume: str, quantity: str) -> str:
    number = table.loc[volume, quantity]
    return "—" if pd.isna(number) else cohort.value(quantity, float(f"{number:.3g}") if abs(number) < 100 else round(number))


@rc_context(ON_THE_PAGE | LITERAL)
def scatter_image(cohorts: dict[str, Cohort], quantity: str) -> bytes:
    """Draw one scatter plot without background, for light and dark pages."""
    figure = Figure(figsize=PLOT_INCHES, layout="constrained")
    draw_scatter(figure.subplots(), cohorts, quantity)
    return plot_png(figure)


def plot_png(figure: Figure) -> bytes:
    """Return a plot for the page, to be shown at PLOT_SCALE."""
    return png(figure, 96 / PLOT_SCALE, transparent=True)


def png(figure: Figure, dpi: float = 110, **options) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi, **options)
    return buffer.getvalue()
