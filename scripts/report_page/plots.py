"""Draw the scatter plots of the report page, and write plots as PNG."""

from __future__ import annotations

import io
import textwrap

from cohorts.cohort import Cohort
from matplotlib import rc_context
from matplotlib.figure import Figure

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
