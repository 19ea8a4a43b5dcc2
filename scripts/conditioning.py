"""Figure 3 of Pinaya et al. 2022: what was asked of a model against what is measured in the volumes it made.

    python scripts/conditioning.py GENERATED_DIR --measured volumes.tsv [covariates.tsv] --output DIR
        [--real COHORT_DIR --real_measured real_volumes.tsv ...]
        [--reconstructed RECONSTRUCTIONS_DIR --reconstructed_measured reconstructed_volumes.tsv ...]

writes into DIR

    figure3.png                one panel per quantity and tool, with the line of equality
    conditioning.json          r, partial r, slope, bias and error of each with their intervals; or why there are none
    conditioning.section.json  the same for scripts/report.py --evaluation DIR

Tables of measurement: scripts/measure_volumes.py (mL); a regressor's. Beside the generated volumes stand what the same tools
make of scans, and of scans through the autoencoder, of known values. For research, not for clinical use.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from cohorts.agreement import agreement, partial_correlation
from cohorts.cohort import BOOKKEEPING, Cohort, read_cohort, refuse_other_tools
from cohorts.section import write_json, write_section, write_whole
from matplotlib.figure import Figure
from report_page.agreement_table import agreement_cells, decimals_of, mean_answer_error

GENERATED, SCANS, THROUGH = "generated", "scans", "scans through the autoencoder"
PANELS = 3  # in a row
NOTICE = "Synthetic volumes. For research, not for clinical use."
COLOUR = "#e07b39"


@dataclass
class Reading:
    """What one tool measured of one quantity.

    Attributes:
        name: of the quantity.
        tool: that measured.
        cohorts: by that tool: the generated volumes and, as far as it measured them, `SCANS` and `THROUGH`.
        numbers: of each, see `agreement` and `partial_correlation`, in the quantity's unit.
    """

    name: str
    tool: str
    cohorts: dict[str, Cohort]
    numbers: dict[str, dict]


def compare(cohorts: Mapping[str, Cohort]) -> tuple[list[Reading], dict[str, str]]:
    """Agreement of each quantity that is both requested and measured, by each tool that measured it.

    Args:
        cohorts: `GENERATED` and, to compare with, `SCANS` and `THROUGH`.

    Returns:
        the readings, and why there is none of a quantity: too few pairs, or constant ones.

    Raises:
        ValueError: no numbers of any quantity, or no tool that measured both.
    """
    generated = cohorts[GENERATED]
    for cohort in cohorts.values():
        refuse_other_tools(generated, cohort)
    requested = [name for name in generated.expected if name not in (*BOOKKEEPING, "split")]
    readings, without = [], {}
    for name, tool, _ in generated.readings():
        by_tool = {kind: cohort.tools()[tool] for kind, cohort in cohorts.items() if tool in cohort.tables}
        by_tool = {kind: cohort for kind, cohort in by_tool.items() if name in cohort.quantities()}
        numbers = {}
        for kind, cohort in by_tool.items():
            try:
                numbers[kind] = numbers_of(cohort, name, [other for other in requested if other != name])
            except ValueError as error:
                without[f"{generated.title(name)} by {tool}" + ("" if kind == GENERATED else f", {kind}")] = str(error)
        if GENERATED in numbers:
            readings.append(Reading(name, tool, {kind: by_tool[kind] for kind in numbers}, numbers))
    if not readings:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in without.items())
        raise ValueError(f"{generated.folder}, {reasons or 'none of its covariates was measured. Give tables with --measured'}")
    return readings, without


def numbers_of(cohort: Cohort, name: str, others: Sequence[str]) -> dict:
    """`agreement`, `partial_correlation` with other covariates held (or why there is none), error of the mean, unmeasured.

    Raises:
        ValueError: too few pairs, or constant ones.
    """
    pairs = cohort.pairs(name)
    found = agreement(pairs["expected"], pairs["measured"])
    known = cohort.expected.loc[pairs.index, [other for other in others if other in cohort.expected]].dropna()
    held = pd.get_dummies(known, drop_first=True).astype(float)
    try:
        found |= partial_correlation(*pairs.loc[held.index].to_numpy().T, held.to_numpy())
    except ValueError as error:
        found["without_partial_r"] = str(error)
    return found | {"mae_of_the_mean": mean_answer_error(pairs["expected"]), "unmeasured": len(cohort.expected) - len(pairs)}


HEADER = ["", "n", "Pearson r [95 %]", "partial r [95 %]", "slope [95 %]", "bias", "mean absolute error"]
ROWS = {SCANS: "— the tool on scans", THROUGH: "— the tool on scans through the autoencoder"}


def table_rows(readings: Sequence[Reading]) -> list[list[str]]:
    """For each reading a row of the generated volumes, one of always answering the mean, and those of the tool on scans."""
    rows = []
    for reading in readings:
        cohort, a = reading.cohorts[GENERATED], reading.numbers[GENERATED]
        decimals, unit = decimals_of(cohort.pairs(reading.name)["expected"]), cohort.unit(reading.name)
        first = f"{cohort.title(reading.name)} by {reading.tool}"
        trivial = f"{a['mae_of_the_mean']:.{decimals}f} {unit}".strip()
        rows.append(_row(first, a, decimals, unit))
        rows.append(["— always answering the mean", str(a["n"]), "undefined", "undefined", "0", "0", trivial])
        rows += [_row(title, reading.numbers[kind], decimals, unit) for kind, title in ROWS.items() if kind in reading.numbers]
    return rows


def _row(title: str, a: Mapping, decimals: int, unit: str) -> list[str]:
    r, *rest = agreement_cells(a, decimals, unit)
    partial = f"{a['partial_r']:.2f} [{a['partial_r_low']:.2f}, {a['partial_r_high']:.2f}]" if a.get("held") else "—"
    return [title, str(a["n"]), r, partial, *rest]


def figure3(readings: Sequence[Reading]) -> bytes:
    """A panel for each quantity and tool: measured against requested, the fitted line, and the same tool on scans."""
    columns = min(len(readings), PANELS)
    rows = -(-len(readings) // columns)
    figure = Figure(figsize=(4.6 * columns, 6.4 * rows), layout="constrained", facecolor="white")
    places = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in places[len(readings) :]:
        axes.set_axis_off()
    for axes, reading in zip(places, readings):
        draw_panel(axes, reading)
    figure.supxlabel(NOTICE, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def draw_panel(axes, reading: Reading) -> None:
    name, a, cohort = reading.name, reading.numbers[GENERATED], reading.cohorts[GENERATED]
    unit = f" ({cohort.unit(name)})" if cohort.unit(name) else ""
    pairs = {kind: of_kind.pairs(name) for kind, of_kind in reading.cohorts.items()}
    everything = pd.concat(pairs.values())
    ends = np.array([everything.min().min(), everything.max().max()])
    axes.plot(ends, ends, color="#333333", linewidth=0.8, label="equal")
    for kind, (colour, marker) in {SCANS: ("#4a90d9", "x"), THROUGH: ("#3b8686", "+"), GENERATED: (COLOUR, "o")}.items():
        if kind in pairs:
            label = f"{'tool on ' if kind != GENERATED else ''}{kind}, slope {reading.numbers[kind]['slope']:.2f}"
            axes.scatter(
                *pairs[kind].to_numpy().T, s=16, marker=marker, color=colour, alpha=0.8, linewidths=marker != "o", label=label
            )
    requested = pairs[GENERATED]["expected"]
    requested_ends = np.array([requested.min(), requested.max()])
    fitted = pairs[GENERATED]["measured"].mean() + a["slope"] * (requested_ends - requested.mean())
    axes.plot(requested_ends, fitted, color=COLOUR, linewidth=1.2, label="least squares of generated")
    axes.set(xlabel=f"requested or true {cohort.title(name)}{unit}", ylabel=f"measured{unit}")
    axes.set_box_aspect(1)
    partial = f", partial {a['partial_r']:.2f} [{a['partial_r_low']:.2f}, {a['partial_r_high']:.2f}]" if a.get("held") else ""
    axes.set_title(
        f"by {reading.tool}, n = {a['n']}\n"
        f"r {a['r']:.2f} [{a['r_low']:.2f}, {a['r_high']:.2f}]{partial}\n"
        f"slope {a['slope']:.2f} [{a['slope_low']:.2f}, {a['slope_high']:.2f}], bias {a['bias']:+.1f}\n"
        f"mean absolute error {a['mae']:.1f}; of always the mean {a['mae_of_the_mean']:.1f}",
        fontsize=9,
    )
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def write(cohorts: Mapping[str, Cohort], output: Path) -> None:
    """Write the figure, the numbers and the section."""
    readings, without = compare(cohorts)
    picture = figure3(readings)
    generated = cohorts[GENERATED]
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "figure3.png", picture)
    content = [
        {"quantity": reading.name, "unit": generated.unit(reading.name), "tool": reading.tool, **reading.numbers}
        for reading in readings
    ]
    write_json(output / "conditioning.json", {"folder": generated.name, "readings": content, "without": without})
    unmeasured = ", ".join(
        f"{reading.numbers[GENERATED]['unmeasured']} of {generated.title(reading.name)} by {reading.tool}"
        for reading in readings
        if reading.numbers[GENERATED]["unmeasured"]
    )
    several = [
        kind for kind, cohort in cohorts.items() if len({name.split("_")[0] for name in cohort.images}) < len(cohort.images)
    ]
    yardsticks = [f"{len(cohort.expected)} {kind}" for kind, cohort in cohorts.items() if kind != GENERATED]
    write_section(
        output / "conditioning.section.json",
        "Requested against measured (Figure 3)",
        f"{len(generated.expected)} volumes of {generated.name}. "
        + (f"Not measured, and in no number below: {unmeasured}. " if unmeasured else "")
        + (f"Participants with several volumes ({', '.join(several)}) make the intervals too narrow. " if several else "")
        + "".join(f"No numbers of {name}: {reason}. " for name, reason in without.items())
        + "r: Pearson's, 95 % interval by Fisher's z; slope of measured on requested by least squares, 95 % t interval; bias: "
        "mean of measured - requested. Partial r: of what a linear regression on the k other requested covariates leaves of "
        "both, interval by Fisher's z of n - k, n - 2 - k degrees of freedom; requests are drawn together, and a tool may read "
        "one covariate from another.\n\n"
        "A model that ignored the request, and was measured as the mean of all requests, would have the error of the lines "
        "'always answering the mean'. "
        + (
            f"The same tools on {' and '.join(yardsticks)}: a model that followed every request would have their slopes and "
            "errors, and since its volumes are decoded, rather those on scans through the autoencoder. What these lack of 1 is "
            "not the model's."
            if yardsticks
            else "What the tool gets wrong by itself is part of every number: measure scans, too (--real, --reconstructed)."
        ),
        [{"header": HEADER, "rows": table_rows(readings)}],
        [
            {
                "file": "figure3.png",
                "caption": f"Orange: generated; x: the same tool on scans; +: on scans through the autoencoder. {NOTICE}",
            }
        ],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = {"type": Path, "nargs": "+", "default": [], "metavar": "TABLE_TSV"}
    parser.add_argument("generated", type=Path, metavar="GENERATED_DIR", help="what inference wrote, with participants.tsv")
    parser.add_argument("--measured", required=True, **tables | {"help": "tables of measurement"})
    parser.add_argument("--real", type=Path, metavar="COHORT_DIR", help="BIDS cohort with true values")
    parser.add_argument("--real_measured", **tables, help="tables of the same tools for it; its training split is left out")
    reconstructed = "its scans through the autoencoder: --reconstructions_dir of configs/evaluate.json"
    parser.add_argument("--reconstructed", type=Path, metavar="DIR", help=reconstructed)
    parser.add_argument("--reconstructed_measured", **tables, help="tables of the same tools for them")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for figure, numbers and section")
    options = parser.parse_args(arguments)
    cohorts = {}
    try:
        for kind, folder, measured in (
            (GENERATED, options.generated, options.measured),
            (SCANS, options.real, options.real_measured),
            (THROUGH, options.reconstructed, options.reconstructed_measured),
        ):
            if (folder is None) != (not measured):
                raise ValueError(f"{kind}: give both the folder and the tables of what was measured in it")
            if folder is not None:
                cohort = read_cohort(folder, measured, everyone=kind == GENERATED)
                cohorts[kind] = cohort.unseen() if kind == SCANS else cohort
        write(cohorts, options.output)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{options.output}: figure3.png, conditioning.json, conditioning.section.json")


if __name__ == "__main__":
    main()
