"""Pictures of the report page, as PNG: the overview, scatter plots, three planes of a volume."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from report_cohort import QUANTITIES, Cohort, evenly, nearest
from three_planes import three_planes

ROWS_IN_PICTURE = 6
INK = "#808080"  # readable on white and on black
COLOURS = {"generated": "#e07b39", "cohort": "#4a90d9"}


def draw_scatter(axes, cohorts: dict[str, Cohort], quantity: str, ink: str) -> None:
    """Measured over expected volume, the line of equality between."""
    values = []
    for kind, cohort in cohorts.items():
        if quantity not in cohort.quantities():
            continue
        x, y = cohort.expected[quantity], cohort.measured[quantity].astype(float)
        label = f"{kind} ({'requested' if kind == 'generated' else 'true'}), n = {y.count()}"
        axes.scatter(x, y, s=16, color=COLOURS[kind], alpha=0.8, linewidths=0, label=label)
        values += [*x, *y.dropna()]
    ends = [min(values), max(values)]
    axes.plot(ends, ends, color=ink, linewidth=0.8, label="equal")
    axes.set_xlabel(f"requested or true {QUANTITIES[quantity]} (mL)", color=ink)
    axes.set_ylabel("measured (mL)", color=ink)
    axes.tick_params(colors=ink)
    for spine in axes.spines.values():
        spine.set_color(ink)
    axes.legend(frameon=False, fontsize=8, labelcolor=ink)


def overview(cohorts: dict[str, Cohort], quantity: str) -> bytes:
    """The one picture: generated volumes by requested volume, scans of the same true volume beside them, the scatter."""
    generated = cohorts["generated"]
    shown = {"generated": evenly(generated.sorted_by(quantity), ROWS_IN_PICTURE)}
    if "cohort" in cohorts:
        wanted = generated.expected.loc[shown["generated"], quantity].tolist()
        shown["cohort"] = nearest(cohorts["cohort"], quantity, wanted)
    rows, blocks = len(shown["generated"]), len(shown)

    figure = Figure(figsize=(4.1 * blocks + 5, max(1.3 * rows, 4.5) + 0.6), layout="constrained", facecolor="white")
    pictures, plot = figure.subfigures(1, 2, width_ratios=(4.1 * blocks, 5))
    grid = pictures.subplots(rows, blocks, squeeze=False)
    for column, (kind, participants) in enumerate(shown.items()):
        asked, title = ("requested", "generated") if kind == "generated" else ("true", cohorts[kind].name)
        grid[0, column].set_title(title if len(title) < 48 else f"{title[:46]}…", fontsize=10)
        for row in range(rows):
            axes = grid[row, column]
            axes.set_axis_off()
            if participants[row] is None:
                continue
            planes = three_planes(cohorts[kind].image(participants[row]))
            axes.imshow(planes, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
            expected = cohorts[kind].expected.loc[participants[row], quantity]
            measured = cohorts[kind].measured.loc[participants[row], quantity]
            text = f"{asked}\n{expected:.0f} mL\n\nmeasured\n" + ("—" if pd.isna(measured) else f"{measured:.0f} mL")
            axes.text(-0.02, 0.5, text, transform=axes.transAxes, ha="right", va="center", fontsize=8)
    pictures.supxlabel(
        f"Rows by {QUANTITIES[quantity]}. The subject's left is at the picture's right. Synthetic, not for clinical use.",
        fontsize=8,
    )
    axes = plot.subplots()
    axes.set_box_aspect(1)
    draw_scatter(axes, cohorts, quantity, "#333333")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def scatter_image(cohorts: dict[str, Cohort], quantity: str) -> bytes:
    """One scatter plot without background, for light and dark pages."""
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    draw_scatter(figure.subplots(), cohorts, quantity, INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, transparent=True)
    return buffer.getvalue()


def planes_image(path: Path) -> bytes:
    """The three planes of a volume as a grey PNG."""
    from PIL import Image  # comes with matplotlib

    buffer = io.BytesIO()
    Image.fromarray((three_planes(path) * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()
