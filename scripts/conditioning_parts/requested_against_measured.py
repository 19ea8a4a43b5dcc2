"""Make Figure 3 of Pinaya et al. 2022: values requested of a model against values measured in its volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from cohorts.agreement import (
    agreement_cells,
    agreement_in_words,
    decimals_of,
    interval_of,
    mean_answer_error,
    partial_correlation,
)
from cohorts.cohort import BOOKKEEPING, Cohort
from matplotlib.figure import Figure
from shared.agreement import agreement

from conditioning_parts.report_section import NOTICE, ReportSection

GENERATED, SCANS, THROUGH = "generated", "scans", "scans through the autoencoder"
MARKS = {SCANS: ("#4a90d9", "x"), THROUGH: ("#3b8686", "+"), GENERATED: ("#e07b39", "o")}  # drawn in this order
COLUMNS = 3  # panels per row
HEADER = ["", "n", "Pearson r [95 %]", "partial r [95 %]", "slope [95 %]", "bias", "mean absolute error"]


@dataclass
class Reading:
    """One quantity, measured by one tool. The keys of the dicts are `GENERATED` and, where given, `SCANS` and `THROUGH`."""

    name: str  # quantity, such as `ventricles_ml`
    tool: str
    cohorts: dict[str, Cohort]  # cohorts with only the measurements of this tool
    numbers: dict[str, dict]  # results of `numbers_of`


def compare(cohorts: Mapping[str, Cohort]) -> tuple[list[Reading], dict[str, str]]:
    """Compute the agreement of all quantities that were both requested and measured, separately for each tool.

    Returns:
        The readings, and a dict with the reason for each quantity without numbers. The reason is too few pairs, or equal
        values.
    """
    generated = cohorts[GENERATED]
    requested = [name for name in generated.expected if name not in (*BOOKKEEPING, "split")]
    readings, without = [], {}
    for name, tool, _ in generated.readings():
        by_tool = {kind: cohort.tools()[tool] for kind, cohort in cohorts.items() if tool in cohort.tables}
        numbers = {}
        for kind, cohort in by_tool.items():
            if name not in cohort.quantities():
                continue
            try:
                numbers[kind] = numbers_of(cohort, name, [other for other in requested if other != name])
            except ValueError as error:
                without[generated.title(name, tool) + ("" if kind == GENERATED else f", {kind}")] = str(error)
        if GENERATED in numbers:
            readings.append(Reading(name, tool, {kind: by_tool[kind] for kind in numbers}, numbers))
    if not readings:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in without.items())
        raise ValueError(f"{generated.folder}, {reasons or 'none of its covariates was measured. Give tables with --measured'}")
    return readings, without


def numbers_of(cohort: Cohort, name: str, others: Sequence[str]) -> dict:
    """Compute the agreement of one quantity. The partial correlation holds the covariates `others` constant."""
    pairs = cohort.pairs(name)
    found = agreement(pairs["expected"], pairs["measured"])
    known = cohort.expected.loc[pairs.index, [other for other in others if other in cohort.expected]].dropna()
    held = pd.get_dummies(known, drop_first=True).astype(float)
    try:
        found |= partial_correlation(*pairs.loc[held.index].to_numpy().T, held.to_numpy())
    except ValueError as error:
        found["without_partial_r"] = str(error)
    return found | {"mae_of_the_mean": mean_answer_error(pairs["expected"]), "unmeasured": len(cohort.expected) - len(pairs)}


def table_rows(readings: Sequence[Reading]) -> list[list[str]]:
    """Return for each reading the rows of the generated volumes, of always answering the mean, and of the scans."""
    rows = []
    for reading in readings:
        cohort = reading.cohorts[GENERATED]
        decimals, unit = decimals_of(cohort.pairs(reading.name)["expected"]), cohort.unit(reading.name)
        for kind, numbers in reading.numbers.items():
            title = cohort.title(reading.name, reading.tool) if kind == GENERATED else f"— the tool on {kind}"
            n, (r, *rest) = str(numbers["n"]), agreement_cells(numbers, decimals, unit)
            rows.append([title, n, r, _partial_text(numbers) or "—", *rest])
            if kind == GENERATED:
                error = f"{numbers['mae_of_the_mean']:.{decimals}f} {unit}".strip()
                rows.append(["— always answering the mean", n, "undefined", "undefined", "0", "0", error])
    return rows


def _partial_text(numbers: Mapping) -> str:
    if not numbers.get("held"):
        return ""
    return interval_of(numbers, "partial_r")


def figure3(readings: Sequence[Reading]) -> Figure:
    """Draw one panel per quantity and tool. It shows measured against requested values, the fit, and the same tool on scans."""
    columns = min(len(readings), COLUMNS)
    rows = -(-len(readings) // columns)
    figure = Figure(figsize=(4.6 * columns, 6.4 * rows), layout="constrained")
    for number, reading in enumerate(readings, start=1):
        draw_panel(figure.add_subplot(rows, columns, number), reading)
    figure.supxlabel(NOTICE, fontsize=8, wrap=True)
    return figure


def draw_panel(axes, reading: Reading) -> None:
    name, a, cohort = reading.name, reading.numbers[GENERATED], reading.cohorts[GENERATED]
    unit = f" ({cohort.unit(name)})" if cohort.unit(name) else ""
    pairs = {kind: of_kind.pairs(name) for kind, of_kind in reading.cohorts.items()}
    everything = pd.concat(pairs.values())
    ends = np.array([everything.min().min(), everything.max().max()])
    axes.plot(ends, ends, color="#333333", linewidth=0.8, label="equal")
    for kind, (colour, marker) in MARKS.items():
        if kind in pairs:
            label = f"{'' if kind == GENERATED else 'tool on '}{kind}, slope {reading.numbers[kind]['slope']:.2f}"
            look = {"s": 16, "marker": marker, "color": colour, "alpha": 0.8, "linewidths": marker != "o"}
            axes.scatter(*pairs[kind].to_numpy().T, **look, label=label)
    requested = pairs[GENERATED]["expected"]
    requested_ends = np.array([requested.min(), requested.max()])
    fitted = pairs[GENERATED]["measured"].mean() + a["slope"] * (requested_ends - requested.mean())
    axes.plot(requested_ends, fitted, color=MARKS[GENERATED][0], linewidth=1.2, label="least squares of generated")
    axes.set(xlabel=f"requested or true {cohort.title(name)}{unit}", ylabel=f"measured{unit}")
    axes.set_box_aspect(1)
    partial = f", partial {text}" if (text := _partial_text(a)) else ""
    axes.set_title(
        f"by {reading.tool}, n = {a['n']}\n"
        f"r {interval_of(a, 'r')}{partial}\n"
        f"slope {interval_of(a, 'slope')}, bias {a['bias']:+.1f}\n"
        f"mean absolute error {a['mae']:.1f}; always answering the mean {a['mae_of_the_mean']:.1f}",
        fontsize=9,
    )
    axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def explain(cohorts: Mapping[str, Cohort], readings: Sequence[Reading], without: Mapping[str, str]) -> str:
    generated = cohorts[GENERATED]
    text = f"{len(generated.expected)} generated volumes. "
    unmeasured = {generated.title(r.name, r.tool): r.numbers[GENERATED]["unmeasured"] for r in readings}
    if counts := ", ".join(f"{count} of {name}" for name, count in unmeasured.items() if count):
        text += f"Some volumes could not be measured and do not count below: {counts}. "
    if several := [kind for kind, cohort in cohorts.items() if cohort.has_several_per_participant()]:
        text += f"Some participants have several volumes ({', '.join(several)}). This makes the intervals too narrow. "
    text += "".join(f"There are no numbers for {name}: {reason}. " for name, reason in without.items())
    text += (
        "r is Pearson's correlation, with the 95 % interval of Fisher's z. The slope is the least-squares slope of measured on "
        "requested values, with its 95 % t interval. The bias is the mean of measured - requested. The partial r is the "
        "correlation that remains after a linear regression of both on the k other requested covariates. Its interval is "
        "Fisher's for n - k values, and it has n - 2 - k degrees of freedom. The partial r matters because the covariates are "
        "correlated in the requests, so that a tool may infer one covariate from another.\n\n"
        "The lines 'always answering the mean' give the error of a model that ignored the request, and whose volumes were all "
        "measured as the mean request. "
    )
    if yardsticks := [f"{len(cohort.expected)} {kind}" for kind, cohort in cohorts.items() if kind != GENERATED]:
        return text + (
            f"The same tools also measured {' and '.join(yardsticks)}. A model that followed every request would reach the "
            "slopes and errors of the tool on scans or, because its volumes are decoded, on scans through the autoencoder. "
            "If these slopes are below 1, the tool or the autoencoder is the cause, not the diffusion model."
        )
    return text + "Every number includes the error of the tool. To see it, measure scans as well (--real, --reconstructed)."


def requested_against_measured(cohorts: Mapping[str, Cohort]) -> ReportSection:
    """Return Figure 3 with its table. `cohorts` has the key `GENERATED` and, for comparison, `SCANS` and `THROUGH`."""
    readings, without = compare(cohorts)
    generated = cohorts[GENERATED]
    content = [{"quantity": r.name, "unit": generated.unit(r.name), "tool": r.tool, **r.numbers} for r in readings]
    caption = "Orange: generated volumes. x: the same tool on scans. +: the same tool on scans through the autoencoder."
    return ReportSection(
        "conditioning",
        "Requested against measured (Figure 3)",
        explain(cohorts, readings, without),
        [{"header": HEADER, "rows": table_rows(readings)}],
        {"figure3.png": (figure3(readings), f"{caption} {NOTICE}")},
        {"conditioning.json": {"folder": generated.name, "readings": content, "without": without}},
        [cohorts[SCANS].folder] if SCANS in cohorts else [],
        verdict(readings),
    )


def verdict(readings: Sequence[Reading]) -> str:
    """Say how each quantity follows its request. If several tools measured it, the first one counts."""
    first = {reading.name: reading for reading in reversed(readings)}
    in_order = [reading for reading in readings if first[reading.name] is reading]
    return agreement_in_words({r.cohorts[GENERATED].title(r.name): r.numbers[GENERATED] for r in in_order})
