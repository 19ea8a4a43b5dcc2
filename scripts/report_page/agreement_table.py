"""Make the rows of the page's tables of agreement, for generated volumes, scans and the measuring tool."""

from __future__ import annotations

from pathlib import Path

from cohorts.agreement import agreement_cells, decimals_of, mean_answer_error
from cohorts.cohort import QUANTITIES, Cohort
from measurement.accuracy import read_accuracy
from shared.agreement import agreement

AGREEMENT_HEADER = ["", "n", "Pearson r [95 %]", "slope [95 %]", "bias", "mean absolute error"]


def agreement_rows(cohort: Cohort, title: str) -> list[list[str]]:
    """Return for each quantity a row of agreement and a row for the trivial answer, which is always the mean."""
    rows = []
    for quantity, tool, by_tool in cohort.readings():
        pairs = by_tool.pairs(quantity)
        name = f"{title}: {cohort.title(quantity)}{cohort.by(quantity, tool)}"
        try:
            numbers = agreement(pairs["expected"], pairs["measured"])
        except ValueError as error:
            rows.append([name, str(len(pairs)), str(error), *[""] * 3])
            continue
        n, decimals, unit = str(numbers["n"]), decimals_of(pairs["expected"]), cohort.unit(quantity)
        rows.append([name, n, *agreement_cells(numbers, decimals, unit)])
        error = f"{mean_answer_error(pairs['expected']):.{decimals}f} {unit}".strip()
        rows.append(["— always answering the mean", n, "undefined", "0", "0", error])
    return rows


def tool_accuracy(weights: Path) -> tuple[list[list[str]], str]:
    """Return the rows of measure_volumes.py's accuracy and a text about its limits. Unknown accuracy gives no rows."""
    try:
        facts = read_accuracy(weights)
    except ValueError as error:
        return [], f"Unknown: {error}."
    rows = []
    for row in facts["accuracy"]:
        title, unit = QUANTITIES[row["volume"]]
        rows.append([f"{row['images']}, {row['spacing_mm']:g} mm: {title}", str(row["n"]), *agreement_cells(row, 1, unit)])
    return rows, facts["limits"]
