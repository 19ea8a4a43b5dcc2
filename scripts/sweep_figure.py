"""Figures 2 and 4 of Pinaya et al. 2022 for a generated folder: one covariate changes, the noise stays.

    python scripts/make_requests.py participants.tsv sweep.tsv --rows 8 --sweep ventricles_ml 10 150 --sweep age 45 80
        --noises 3 --extrapolate
    (generate GENERATED_DIR for sweep.tsv and measure it)
    python scripts/sweep_figure.py GENERATED_DIR --sweep ventricles_ml --sweep age --measured volumes.tsv ages.tsv --output DIR
        [--real COHORT_DIR --real_measured real_volumes.tsv ...]

writes into DIR

    figure2.png  figure2.section.json  a row of volumes for each covariate and noise, within the range of the model
    figure4.png  figure4.section.json  the same beyond that range, and what was measured there

The range is the one that the model's covariates.json scales to 0 to 1: that of its training data, or what was declared for
them. The sections are for scripts/report.py --evaluation DIR. For research, not for clinical use.
"""

from __future__ import annotations

import argparse
import io
import textwrap
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from cohorts.cohort import Cohort, evenly, read_cohort, refuse_other_tools
from cohorts.section import write_section, write_whole
from cohorts.sweeps import Sweep, by_tool, find_sweeps, model_range, scan_pairs
from matplotlib.figure import Figure
from report_page.agreement_table import mean_answer_error
from report_page.three_planes import POINT_MM, cut, read_canonical, white_level
from scipy import stats

COLUMNS = 8  # pictures in a row
PANELS = 4  # plots in a row
FEWEST_NOISES = 3  # for an interval
INSIDE, OUTSIDE = "#2b6cb0", "#c05621"
NOTICE = "All volumes are synthetic. For research, not for clinical use."
ORIENTATION = "Axial and coronal plane; the subject's left is at the picture's right."


# --- Pictures ------------------------------------------------------------------------------------------------------


def two_planes(path: Path, white: float) -> np.ndarray:
    """Axial and coronal plane side by side, (rows, columns) in 0 to 1, as of `three_planes`; `white` is drawn white."""
    volume, affine = read_canonical(path)
    spacing_mm = nib.affines.voxel_sizes(affine)
    width = round(volume.shape[0] * spacing_mm[0] / spacing_mm.min()) + 2
    return (cut(volume, affine, POINT_MM)[:, : 2 * width] / white).clip(0, 1)


def draw_row(axes: Sequence, cohort: Cohort, sweep: Sweep, volumes: Sequence[str]) -> None:
    """The volumes of a sweep in one brightness, below each what was asked for and measured; beyond the range in colour."""
    white = float(np.median([white_level(read_canonical(cohort.images[volume])[0]) for volume in volumes]))
    for place in axes:
        place.set_axis_off()
    for place, volume in zip(axes, volumes):
        row = sweep.rows.loc[volume]
        place.imshow(two_planes(cohort.images[volume], white), cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
        text = cohort.value(sweep.name, row["requested"], 0)
        if sweep.tools and row[list(sweep.tools)].notna().any():
            text += f"\nmeasured {', '.join('?' if np.isnan(row[tool]) else f'{row[tool]:.0f}' for tool in sweep.tools)}"
        colour = INSIDE if volume in sweep.inside.index else OUTSIDE
        place.text(0.5, -0.04, text, transform=place.transAxes, ha="center", va="top", fontsize=8, color=colour)


def name_row(axes, title: str) -> None:
    """The covariate at the left of its row, in lines that are no longer than a picture is high."""
    text = textwrap.fill(title, 16)
    axes.text(
        -0.05, 0.5, text, transform=axes.transAxes, rotation=90, ha="right", va="center", multialignment="center", fontsize=9
    )


def figure2(cohort: Cohort, sweeps: Sequence[Sweep]) -> bytes:
    """One row for each covariate and noise, values within the range from left to right."""
    shown = [evenly(list(sweep.inside.index), COLUMNS) for sweep in sweeps]
    columns = max(map(len, shown))
    figure = Figure(figsize=(2.0 * columns + 0.6, 1.65 * len(sweeps) + 0.4), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(h_pad=0.03, w_pad=0.02)
    for row, sweep, volumes in zip(figure.subplots(len(sweeps), columns, squeeze=False), sweeps, shown):
        draw_row(row, cohort, sweep, volumes)
        name_row(row[0], cohort.title(sweep.name))
    measured = f" by {', '.join(cohort.tables)}" if cohort.tables else ""
    figure.supxlabel(f"{ORIENTATION} One noise a row; below: requested, measured{measured}. {NOTICE}", fontsize=8)
    return png(figure)


def figure4(cohort: Cohort, sweeps: Sequence[Sweep], scans: Cohort | None) -> bytes:
    """Values beyond the range beside those at its ends and middle; below, measured against requested, by each tool."""
    shown = [sorted({*sweep.outside.index, *evenly(list(sweep.inside.index), 3)}, key=list(sweep.rows.index).index)
             for sweep in sweeps]  # fmt: skip
    columns = max(map(len, shown))
    readings = list(by_tool(sweeps))
    rows = -(-len(readings) // PANELS)
    heights = (1.65 * len(sweeps), 3.9 * rows)
    figure = Figure(figsize=(max(1.8 * columns + 0.6, 14), sum(heights) + 0.4), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(h_pad=0.03, w_pad=0.02)
    pictures, plots = figure.subfigures(2, 1, height_ratios=heights)
    for row, sweep, volumes in zip(pictures.subplots(len(sweeps), columns, squeeze=False), sweeps, shown):
        draw_row(row, cohort, sweep, volumes)
        name_row(row[0], cohort.title(sweep.name))
    places = plots.subplots(rows, PANELS, squeeze=False).ravel()
    for axes in places[len(readings) :]:
        axes.set_axis_off()
    for axes, (_, tool, own) in zip(places, readings):
        draw_response(axes, cohort, own, tool, scans)
    figure.supxlabel(f"{ORIENTATION} {NOTICE}", fontsize=8)
    return png(figure)


def draw_response(axes, cohort: Cohort, sweeps: Sequence[Sweep], tool: str | None, scans: Cohort | None) -> None:
    """Measured against requested for one covariate and tool, with the range, the line of equality, and the tool on scans."""
    name = sweeps[0].name
    axes.axvspan(*model_range(sweeps), color="#e8eef6", label="range of the model")
    requested = pd.concat([sweep.rows["requested"] for sweep in sweeps])
    ends = [requested.min(), requested.max()]
    axes.plot(ends, ends, color="#333333", linewidth=0.8, label="equal")
    if (pairs := scan_pairs(scans, name, tool)) is not None:
        axes.plot(
            pairs["expected"], pairs["measured"], "x", color="#4a90d9", markersize=4, alpha=0.7, label="the tool on scans"
        )
    for sweep in sweeps if tool else ():
        axes.plot(sweep.rows["requested"], sweep.rows[tool], color="#999999", linewidth=0.8)
        for part, colour in ((sweep.inside, INSIDE), (sweep.outside, OUTSIDE)):
            axes.plot(part["requested"], part[tool], "o", color=colour, markersize=4)
    unit = f" ({cohort.unit(name)})" if cohort.unit(name) else ""
    axes.set_xlabel(f"requested {cohort.title(name)}{unit}", fontsize=9)
    axes.set_ylabel(f"measured{unit}")
    axes.set_title(f"by {tool}" if tool else "not measured", fontsize=9)
    axes.legend(frameon=False, fontsize=8)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


# --- Tables --------------------------------------------------------------------------------------------------------


def slope_cell(parts: Sequence[pd.DataFrame], tool: str | None) -> str:
    """Mean of the noises' least-squares slopes of measured on requested values, their range, and for 3 or more noises the
    95 % t interval of the mean. Values of one noise are points of one curve, no independent samples."""
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


SLOPE = "mean of the noises [95 %] (range)"
SWEEP_HEADER = ["covariate", "noises", "values", f"slope, {SLOPE}", "mean absolute error", "… of the mean"]


def sweep_rows(cohort: Cohort, sweeps: Sequence[Sweep]) -> list[list[str]]:
    """For each covariate and tool what was measured within the range; last, the error of always answering the mean."""
    rows = []
    for name, tool, own in by_tool(sweeps):
        pairs = pd.concat([sweep.inside for sweep in own])
        pairs = pairs[["requested", tool]].dropna() if tool else pairs[:0]
        start = [_title(cohort, name, tool), str(len(own)), str(len(pairs))]
        if pairs.empty:
            rows.append([*start, "not measured", "", ""])
            continue
        errors = (pairs[tool] - pairs["requested"]).abs().mean(), mean_answer_error(pairs["requested"])
        cell = slope_cell([sweep.inside for sweep in own], tool)
        rows.append([*start, cell, *(f"{error:.1f} {cohort.unit(name)}".strip() for error in errors)])
    return rows


def _title(cohort: Cohort, name: str, tool: str | None) -> str:
    return f"{cohort.title(name)} by {tool}" if tool else cohort.title(name)


VALUE_HEADER = ["covariate", "requested", "scaled (range: 0 to 1)", "n", "measured, mean (range)", "nearest end of the range"]


def value_rows(cohort: Cohort, sweeps: Sequence[Sweep]) -> list[list[str]]:
    """Each value beyond the range with what was measured, over all noises, and the end at which a model might stay."""
    rows = []
    for name, tool, own in by_tool(sweeps):
        low, high = model_range(own)
        for requested, group in pd.concat([sweep.outside for sweep in own]).groupby("requested"):
            measured, scaled = group[tool].dropna() if tool else (), group["scaled"].iloc[0]
            spread = f"{measured.mean():.1f}" if len(measured) else "not measured"
            if len(measured) > 1:
                spread += f" ({measured.min():.1f} to {measured.max():.1f})"
            end = cohort.value(name, low if scaled < 0 else high, 1)
            value = cohort.value(name, requested, 1)
            rows.append([_title(cohort, name, tool), value, f"{scaled:.2f}", str(len(measured)), spread, end])
    return rows


SLOPE_HEADER = ["covariate", f"slope below the range, {SLOPE}", "within", "above"]


def slope_rows(cohort: Cohort, sweeps: Sequence[Sweep]) -> list[list[str]]:
    """Slopes of the noises. Beyond the range the value nearest to its end, inside, is the first point of the line."""
    rows = []
    for name, tool, own in by_tool(sweeps):
        inside = [sweep.inside for sweep in own]
        below = [sweep.rows[sweep.rows["scaled"] <= part["scaled"].min()] for sweep, part in zip(own, inside)]
        above = [sweep.rows[sweep.rows["scaled"] >= part["scaled"].max()] for sweep, part in zip(own, inside)]
        rows.append([_title(cohort, name, tool), *(slope_cell(parts, tool) for parts in (below, inside, above))])
    return rows


TOOL_HEADER = ["the tool on scans", "n", "smallest: true, read as", "largest: true, read as"]


def tool_rows(cohort: Cohort, sweeps: Sequence[Sweep], scans: Cohort | None) -> list[list[str]]:
    """What each tool makes of the smallest and the largest scan of known value: beyond these nobody has tested it."""
    rows = []
    for name, tool, _ in by_tool(sweeps):
        if (pairs := scan_pairs(scans, name, tool)) is not None:
            ends = pairs.loc[[pairs["expected"].idxmin(), pairs["expected"].idxmax()]]
            cells = [", ".join(cohort.value(name, number, 1) for number in end) for end in ends.to_numpy()]
            rows.append([_title(cohort, name, tool), str(len(pairs)), *cells])
    return rows


# --- Command -------------------------------------------------------------------------------------------------------


def write_figures(cohort: Cohort, sweeps: Sequence[Sweep], output: Path, scans: Cohort | None = None) -> list[str]:
    """Draw both figures as far as there are volumes for them, and write their sections; the names of the files."""
    tools = " and ".join(cohort.tables) or "nothing"
    within = [sweep for sweep in sweeps if len(sweep.inside) >= 2]
    beyond = [sweep for sweep in sweeps if len(sweep.outside) and len(sweep.inside)]
    pictures = {}
    if within:
        pictures["figure2"] = figure2(cohort, within)
    if beyond:
        pictures["figure4"] = figure4(cohort, beyond, scans)
    if not pictures:
        raise ValueError(f"{cohort.folder}: no sweep has two values within the range of the model")
    output.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write_whole(output / f"{name}.png", picture)
    if within:
        write_section(
            output / "figure2.section.json",
            "One covariate changes, the noise stays (Figure 2)",
            f"Volumes of {cohort.name}. Within a row the noise and all other covariates stay; whatever differs is what the "
            f"model makes of the one covariate. Each row is drawn in one brightness. Measured by {tools}.\n\n"
            "The table compares requested and measured values within the range of the model. Values of one noise are points of "
            f"one curve, no independent samples: a slope is that of each noise, its interval needs {FEWEST_NOISES} noises; a "
            "correlation says nothing. A model that ignored the covariate would have slope 0 and the error of the last column.",
            [{"header": SWEEP_HEADER, "rows": sweep_rows(cohort, within)}],
            [{"file": "figure2.png", "caption": f"{ORIENTATION} {NOTICE}"}],
        )
    if beyond:
        known = tool_rows(cohort, beyond, scans)
        write_section(
            output / "figure4.section.json",
            "Beyond the range (Figure 4)",
            f"Volumes of {cohort.name}, of one noise a row. The range is what the model's covariates scale to 0 to 1, declared "
            f"for its training data, which need not fill it; Pinaya et al. 2022 asked for -0.5 to 1.9. Values below zero are "
            "none that a head can have: they show where the model leads.\n\n"
            "A slope of 1 beyond the range: the model goes on as within; 0: it stays. The lines beyond start at the value "
            f"within that is nearest to the end. A slope is that of each noise; its interval needs {FEWEST_NOISES} noises.\n\n"
            f"Measured by {tools}. A tool that reads its largest scan too small stays behind whatever the model does"
            + (": see the last table, beyond which no tool was tested." if known else "; measure scans, too (--real)."),
            [
                {"header": SLOPE_HEADER, "rows": slope_rows(cohort, beyond)},
                {"header": VALUE_HEADER, "rows": value_rows(cohort, beyond)},
                *([{"header": TOOL_HEADER, "rows": known}] if known else []),
            ],
            [{"file": "figure4.png", "caption": f"Blue: within the range; orange: beyond. {ORIENTATION} {NOTICE}"}],
        )
    return [f"{name}{ending}" for name in pictures for ending in (".png", ".section.json")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", type=Path, metavar="GENERATED_DIR", help="what inference wrote for a table of sweeps")
    parser.add_argument("--sweep", action="append", required=True, metavar="NAME", help="covariate; may be given several times")
    parser.add_argument("--measured", type=Path, nargs="+", default=[], metavar="TABLE_TSV", help="what was measured in them")
    parser.add_argument("--real", type=Path, metavar="COHORT_DIR", help="BIDS cohort with true values: what the tools can read")
    parser.add_argument("--real_measured", type=Path, nargs="+", default=[], metavar="TABLE_TSV", help="by the same tools")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for figures and sections")
    options = parser.parse_args(arguments)
    try:
        cohort = read_cohort(options.generated, options.measured)
        sweeps = [sweep for name in dict.fromkeys(options.sweep) for sweep in find_sweeps(cohort, name)]
        if (options.real is None) != (not options.real_measured):
            raise ValueError("give both --real, the folder of scans, and --real_measured, what was measured in them")
        scans = read_cohort(options.real, options.real_measured, everyone=False).unseen() if options.real else None
        if scans:
            refuse_other_tools(cohort, scans)
        written = write_figures(cohort, sweeps, options.output, scans)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{options.output}: {', '.join(written)}")


if __name__ == "__main__":
    main()
