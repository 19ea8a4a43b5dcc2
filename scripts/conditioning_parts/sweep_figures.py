"""Make Figures 2 and 4 of Pinaya et al. 2022: one covariate changes within or beyond its range, and the noise stays."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from cohorts.agreement import mean_answer_error
from cohorts.cohort import Cohort, evenly
from cohorts.three_planes import POINT_MM, cut, read_canonical, white_level
from matplotlib.figure import Figure
from scipy import stats
from shared.nifti import refuse_damaged

from conditioning_parts.report_section import NOTICE, ReportSection
from conditioning_parts.sweeps import Sweep, by_tool, model_range, scan_pairs

COLUMNS = 8  # pictures per row
PANELS = 4  # plots per row
FEWEST_NOISES = 3  # smallest number of noises for an interval
SLOPE = "mean of the noises [95 %] (range)"
INSIDE, OUTSIDE = "#2b6cb0", "#c05621"
ORIENTATION = "Axial and coronal plane; the subject's left is at the picture's right."


def two_planes(path: Path, white: float) -> np.ndarray:
    """Return an axial and a coronal plane side by side, (rows, columns) in [0, 1]. The intensity `white` becomes 1."""
    volume, affine = read_canonical(path)
    spacing_mm = nib.affines.voxel_sizes(affine)
    width = round(volume.shape[0] * spacing_mm[0] / spacing_mm.min()) + 2
    return (cut(volume, affine, POINT_MM)[:, : 2 * width] / white).clip(0, 1)


def picture_rows(figure, cohort: Cohort, sweeps: Sequence[Sweep], shown: Sequence[Sequence[str]]) -> None:
    """Draw one row of volumes per sweep. A row has one brightness, and requested and measured values below the volumes."""
    for axes, sweep, volumes in zip(figure.subplots(len(sweeps), max(map(len, shown)), squeeze=False), sweeps, shown):
        white = float(np.median([white_level(read_canonical(cohort.images[volume])[0]) for volume in volumes]))
        for panel in axes:
            panel.set_axis_off()
        for panel, volume in zip(axes, volumes):
            row = sweep.rows.loc[volume]
            panel.imshow(two_planes(cohort.images[volume], white), cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
            text = cohort.value(sweep.name, row["requested"], 0)
            if sweep.tools and row[list(sweep.tools)].notna().any():
                text += f"\nmeasured {', '.join('?' if np.isnan(row[tool]) else f'{row[tool]:.0f}' for tool in sweep.tools)}"
            colour = INSIDE if volume in sweep.inside.index else OUTSIDE
            panel.text(0.5, -0.04, text, transform=panel.transAxes, ha="center", va="top", fontsize=8, color=colour)
        title = textwrap.fill(cohort.title(sweep.name), 16)  # no longer than a picture is high
        place = {"transform": axes[0].transAxes, "ha": "right", "va": "center", "multialignment": "center"}
        axes[0].text(-0.05, 0.5, title, rotation=90, fontsize=9, **place)


def figure2(cohort: Cohort, sweeps: Sequence[Sweep]) -> Figure:
    """Draw one row per covariate and noise, with values within the range rising from left to right."""
    shown = [evenly(list(sweep.inside.index), COLUMNS) for sweep in sweeps]
    size = 2.0 * max(map(len, shown)) + 0.6, 1.65 * len(sweeps) + 0.4
    figure = Figure(figsize=size, layout="constrained")
    picture_rows(figure, cohort, sweeps, shown)
    measured = f" by {', '.join(cohort.tables)}" if cohort.tables else ""
    figure.supxlabel(
        f"{ORIENTATION} Each row has one noise. Below: requested, measured{measured}. {NOTICE}", fontsize=8, wrap=True
    )
    return figure


def figure4(cohort: Cohort, sweeps: Sequence[Sweep], scans: Cohort | None) -> Figure:
    """Draw volumes beyond the range and at its ends and middle, and plot each tool's measured against requested values."""
    shown = []
    for sweep in sweeps:
        volumes = {*sweep.outside.index, *evenly(list(sweep.inside.index), 3)}
        shown.append([volume for volume in sweep.rows.index if volume in volumes])
    readings = list(by_tool(sweeps))
    rows = -(-len(readings) // PANELS)
    heights = (1.65 * len(sweeps), 3.9 * rows)
    size = max(1.8 * max(map(len, shown)) + 0.6, 14), sum(heights) + 0.4
    figure = Figure(figsize=size, layout="constrained")
    pictures, plots = figure.subfigures(2, 1, height_ratios=heights)
    picture_rows(pictures, cohort, sweeps, shown)
    for number, (_, tool, own) in enumerate(readings, start=1):
        draw_response(plots.add_subplot(rows, PANELS, number), cohort, own, tool, scans)
    figure.supxlabel(f"{ORIENTATION} {NOTICE}", fontsize=8, wrap=True)
    return figure


def draw_response(axes, cohort: Cohort, sweeps: Sequence[Sweep], tool: str | None, scans: Cohort | None) -> None:
    """Plot measured against requested values of one covariate and tool, with the range, the identity line and scans."""
    name = sweeps[0].name
    axes.axvspan(*model_range(sweeps), color="#e8eef6", label="range of the model")
    requested = pd.concat([sweep.rows["requested"] for sweep in sweeps])
    ends = [requested.min(), requested.max()]
    axes.plot(ends, ends, color="#333333", linewidth=0.8, label="equal")
    if (pairs := scan_pairs(scans, name, tool)) is not None:
        look = {"color": "#4a90d9", "markersize": 4, "alpha": 0.7}
        axes.plot(pairs["expected"], pairs["measured"], "x", label="the tool on scans", **look)
    for sweep in sweeps if tool else ():
        axes.plot(sweep.rows["requested"], sweep.rows[tool], color="#999999", linewidth=0.8)
        for part, colour in ((sweep.inside, INSIDE), (sweep.outside, OUTSIDE)):
            axes.plot(part["requested"], part[tool], "o", color=colour, markersize=4)
    unit = f" ({cohort.unit(name)})" if cohort.unit(name) else ""
    axes.set_xlabel(f"requested {cohort.title(name)}{unit}", fontsize=9)
    axes.set_ylabel(f"measured{unit}")
    axes.set_title(f"by {tool}" if tool else "not measured", fontsize=9)
    axes.legend(frameon=False, fontsize=8)


def slope_cell(parts: Sequence[pd.DataFrame], tool: str | None) -> str:
    """Return the mean slope of measured on requested values, its 95 % t interval and its range, as text.

    The interval needs at least 3 noises. `parts` has the rows of each noise. These are points of one curve, not independent
    samples, so each noise gives one slope.
    """
    slopes = []
    for part in parts if tool else ():
        pairs = part[["requested", tool]].dropna()
        if pairs["requested"].nunique() > 1:
            slopes.append(stats.linregress(pairs["requested"], pairs[tool]).slope)
    if not slopes:
        return "—"
    text = f"{np.mean(slopes):.2f}"
    if len(slopes) >= FEWEST_NOISES:
        low, high = stats.t.interval(0.95, len(slopes) - 1, np.mean(slopes), stats.sem(slopes))
        text += f" [{low:.2f}, {high:.2f}]"
    return f"{text} ({min(slopes):.2f} to {max(slopes):.2f})" if len(slopes) > 1 else text


def inside_table(cohort: Cohort, sweeps: Sequence[Sweep]) -> dict:
    """Return slope and error within the range, and the error of always answering the mean, by covariate and tool."""
    rows = []
    for name, tool, own in by_tool(sweeps):
        inside = [sweep.inside for sweep in own]
        pairs = pd.concat(inside)[["requested", tool]].dropna() if tool else pd.DataFrame()
        cells = ["not measured", "", ""]
        if len(pairs):
            errors = (pairs[tool] - pairs["requested"]).abs().mean(), mean_answer_error(pairs["requested"])
            cells = [slope_cell(inside, tool), *(f"{error:.1f} {cohort.unit(name)}".strip() for error in errors)]
        rows.append([cohort.title(name, tool), str(len(own)), str(len(pairs)), *cells])
    header = ["covariate", "noises", "values", f"slope, {SLOPE}", "mean absolute error", "… of the mean"]
    return {"header": header, "rows": rows}


def slope_table(cohort: Cohort, sweeps: Sequence[Sweep]) -> dict:
    """Return the slopes within and beyond the range. A line beyond it begins at the nearest value within it."""
    rows = []
    for name, tool, own in by_tool(sweeps):
        inside = [sweep.inside for sweep in own]
        below = [sweep.rows[sweep.rows["scaled"] <= sweep.inside["scaled"].min()] for sweep in own]
        above = [sweep.rows[sweep.rows["scaled"] >= sweep.inside["scaled"].max()] for sweep in own]
        rows.append([cohort.title(name, tool), *(slope_cell(noises, tool) for noises in (below, inside, above))])
    return {"header": ["covariate", f"slope below the range, {SLOPE}", "within", "above"], "rows": rows}


def value_table(cohort: Cohort, sweeps: Sequence[Sweep]) -> dict:
    """Return for each value beyond the range its measurements over all noises, and the nearest end of the range."""
    rows = []
    for name, tool, own in by_tool(sweeps):
        low, high = model_range(own)
        for requested, group in pd.concat([sweep.outside for sweep in own]).groupby("requested"):
            measured, scaled = group[tool].dropna() if tool else (), group["scaled"].iloc[0]
            spread = f"{measured.mean():.1f}" if len(measured) else "not measured"
            if len(measured) > 1:
                spread += f" ({measured.min():.1f} to {measured.max():.1f})"
            value, end = (cohort.value(name, number, 1) for number in (requested, low if scaled < 0 else high))
            rows.append([cohort.title(name, tool), value, f"{scaled:.2f}", str(len(measured)), spread, end])
    header = ["covariate", "requested", "scaled (range: 0 to 1)", "n", "measured, mean (range)", "nearest end of the range"]
    return {"header": header, "rows": rows}


def tool_table(cohort: Cohort, sweeps: Sequence[Sweep], scans: Cohort | None) -> dict:
    """Return for each tool the smallest and the largest known value of the scans on which it was tested."""
    rows = []
    for name, tool, _ in by_tool(sweeps):
        if (pairs := scan_pairs(scans, name, tool)) is not None:
            ends = pairs.loc[[pairs["expected"].idxmin(), pairs["expected"].idxmax()]]
            cells = [", ".join(cohort.value(name, number, 1) for number in end) for end in ends.to_numpy()]
            rows.append([cohort.title(name, tool), str(len(pairs)), *cells])
    return {"header": ["the tool on scans", "n", "smallest: true, measured", "largest: true, measured"], "rows": rows}


def sweep_figures(cohort: Cohort, sweeps: Sequence[Sweep], scans: Cohort | None) -> list[ReportSection]:
    """Return Figure 2 and Figure 4, or the one that has volumes. `scans` have known values and the same tools."""
    refuse_damaged(cohort.files(volume for sweep in sweeps for volume in sweep.rows.index))
    tools = f"by {' and '.join(cohort.tables)}" if cohort.tables else "by no tool"
    within = [sweep for sweep in sweeps if len(sweep.inside) >= 2]
    beyond = [sweep for sweep in sweeps if len(sweep.outside) and len(sweep.inside)]
    sections = []
    if within:
        text = (
            f"Within a row, the noise and all other covariates stay the same, so every "
            "difference is due to the one covariate. Each row is drawn in one brightness. The volumes were measured "
            f"{tools}.\n\n"
            "The table compares requested and measured values within the range of the model. The values of one noise are "
            "points of one curve, not independent samples. Therefore each noise has a slope, the interval needs "
            f"{FEWEST_NOISES} noises, and there is no correlation. A model that ignored the covariate would have slope 0 "
            "and the error of the last column."
        )
        tables = [inside_table(cohort, within)]
        figures = {"figure2.png": (figure2(cohort, within), f"{ORIENTATION} {NOTICE}")}
        sections.append(ReportSection("figure2", "One covariate changes, the noise stays (Figure 2)", text, tables, figures))
    if beyond:
        known = tool_table(cohort, beyond, scans)
        text = (
            f"Each row has one noise. The model's covariates.json scales the range to "
            "0 to 1. The range was declared for the training data, which need not fill it; Pinaya et al. 2022 requested "
            "scaled values of -0.5 to 1.9. No head can have a volume below 0 mL. Such requests show where the model "
            "leads.\n\n"
            "A slope of 1 beyond the range means that the model continues as within the range. A slope of 0 means that it "
            "stays at the end. The lines beyond the range begin at the value within it that is nearest to the end. Each "
            f"noise has a slope. The interval needs {FEWEST_NOISES} noises.\n\n"
            f"The volumes were measured {tools}. A tool that measures its largest scan too small does the same in "
            "generated volumes, whatever the model does"
            + (". The last table shows how far each tool was tested." if known["rows"] else ": measure scans as well (--real).")
        )
        tables = [slope_table(cohort, beyond), value_table(cohort, beyond), *([known] if known["rows"] else [])]
        caption = f"Blue: within the range. Orange: beyond it. {ORIENTATION} {NOTICE}"
        figures = {"figure4.png": (figure4(cohort, beyond, scans), caption)}
        shown = [scans.folder] if scans else []
        sections.append(ReportSection("figure4", "Beyond the range (Figure 4)", text, tables, figures, scans=shown))
    if not sections:
        raise ValueError(f"{cohort.folder}: no sweep has two values within the range of the model")
    return sections
