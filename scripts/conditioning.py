"""Figure 3 of Pinaya et al. 2022: what was asked of a model against what is measured in the volumes it made.

    python scripts/conditioning.py GENERATED_DIR --measured volumes.tsv [ages.tsv] --output DIR

writes into DIR

    figure3.png                one panel per quantity, with the line of equality
    conditioning.json          r, slope, bias and error of each quantity with their intervals; or why there are none
    conditioning.section.json  the same for scripts/report.py --evaluation DIR

Tables of measurement: scripts/measure_volumes.py (mL); a regressor's ages (column `age`, years). For research, not for
clinical use.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from agreement import agreement
from matplotlib.figure import Figure
from report_cohort import Cohort, read_cohort
from report_tables import AGREEMENT_HEADER, agreement_rows
from section import write_json, write_section, write_whole

NOTICE = "Synthetic volumes. For research, not for clinical use."
COLOUR = "#e07b39"


def compare(cohort: Cohort) -> tuple[dict[str, dict], dict[str, str]]:
    """Agreement of each quantity that is both requested and measured, see `agreement`, in its unit.

    Beside it stand `unit`, `unmeasured`, the volumes that were requested but could not be measured, and
    `mae_of_the_mean`, the error of always answering the mean request.

    Returns:
        the numbers; and why there are none of a quantity: too few pairs, or constant ones.

    Raises:
        ValueError: no numbers of any quantity.
    """
    numbers, without = {}, {}
    for name in cohort.quantities():
        pairs = paired(cohort, name)
        try:
            found = agreement(pairs["requested"], pairs["measured"])
        except ValueError as error:
            without[name] = str(error)
            continue
        trivial = float((pairs["requested"] - pairs["requested"].mean()).abs().mean())
        unmeasured = len(cohort.expected) - len(pairs)
        numbers[name] = {"unit": cohort.unit(name), **found, "mae_of_the_mean": trivial, "unmeasured": unmeasured}
    if not numbers:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in without.items())
        raise ValueError(f"{cohort.folder}, {reasons or 'none of its covariates was measured. Give tables with --measured'}")
    return numbers, without


def paired(cohort: Cohort, name: str) -> pd.DataFrame:
    """Requested and measured values of the volumes that have both."""
    return pd.DataFrame({"requested": cohort.expected[name], "measured": cohort.measured[name]}).astype(float).dropna()


def figure3(cohort: Cohort, numbers: dict[str, dict]) -> bytes:
    """A panel for each quantity: measured against requested, the line of equality, the fitted line."""
    figure = Figure(figsize=(4.6 * len(numbers), 5.2), layout="constrained", facecolor="white")
    for axes, (name, a) in zip(figure.subplots(1, len(numbers), squeeze=False)[0], numbers.items()):
        pairs, unit = paired(cohort, name), f" ({a['unit']})" if a["unit"] else ""
        ends = np.array([pairs.min().min(), pairs.max().max()])
        requested_ends = np.array([pairs["requested"].min(), pairs["requested"].max()])
        fitted = pairs["measured"].mean() + a["slope"] * (requested_ends - pairs["requested"].mean())
        axes.plot(ends, ends, color="#333333", linewidth=0.8, label="equal")
        axes.plot(requested_ends, fitted, color=COLOUR, linewidth=1.2, label="least squares")
        axes.scatter(pairs["requested"], pairs["measured"], s=14, color=COLOUR, alpha=0.7, linewidths=0)
        axes.set(xlabel=f"requested {cohort.title(name)}{unit}", ylabel=f"measured{unit}")
        axes.set_box_aspect(1)
        axes.set_title(
            f"r {a['r']:.3f} [{a['r_low']:.3f}, {a['r_high']:.3f}], n = {a['n']}\n"
            f"slope {a['slope']:.2f} [{a['slope_low']:.2f}, {a['slope_high']:.2f}], bias {a['bias']:+.1f}\n"
            f"mean absolute error {a['mae']:.1f}; of always the mean {a['mae_of_the_mean']:.1f}",
            fontsize=9,
        )
        axes.legend(frameon=False, fontsize=8)
    figure.supxlabel(NOTICE, fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def write(cohort: Cohort, output: Path) -> None:
    """Write the figure, the numbers and the section."""
    numbers, without = compare(cohort)
    picture = figure3(cohort, numbers)
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "figure3.png", picture)
    write_json(output / "conditioning.json", {"folder": cohort.name, "quantities": numbers, "without": without})
    tables = "; ".join(f"{cohort.title(name)}: {cohort.sources[name].name}" for name in numbers)
    unmeasured = ", ".join(f"{a['unmeasured']} of {cohort.title(name)}" for name, a in numbers.items() if a["unmeasured"])
    write_section(
        output / "conditioning.section.json",
        "Requested against measured (Figure 3)",
        f"{len(cohort.expected)} volumes of {cohort.name}. Measured values by tables: {tables}. "
        + (f"Not measured, and in no number below: {unmeasured}. " if unmeasured else "")
        + "r: Pearson's, 95 % interval by Fisher's z; slope of measured on requested by least squares, 95 % t interval; bias: "
        "mean of measured - requested.\n\n"
        "A model that ignored the request, and was measured as the mean of all requests, would have the error of the lines "
        "'always answering the mean'. What the measuring tool gets wrong by itself is part of every number: compare with the "
        "same tool on scans.",
        [{"header": AGREEMENT_HEADER, "rows": agreement_rows(cohort, "Requested against measured")}],
        [{"file": "figure3.png", "caption": NOTICE}],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", type=Path, metavar="GENERATED_DIR", help="what inference wrote, with participants.tsv")
    parser.add_argument("--measured", type=Path, nargs="+", required=True, metavar="TABLE_TSV", help="tables of measurement")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for figure, numbers and section")
    options = parser.parse_args(arguments)
    try:
        write(read_cohort(options.generated, options.measured), options.output)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{options.output}: figure3.png, conditioning.json, conditioning.section.json")


if __name__ == "__main__":
    main()
