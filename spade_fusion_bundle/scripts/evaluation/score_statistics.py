"""Compute statistics of scores: mean and spread over scans, and the comparison of two methods on the same scans."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from ..shared.holm import holm
from ..shared.intervals import with_spread
from ..shared.sections import write_section
from ..shared.tables import print_table

DEFINITION = """\
Differences are paired by scan. The tables give their mean with a 95 % interval (Student's t, which assumes normal differences)
and the two-sided p of Wilcoxon's signed-rank test (exact up to 50 scans without ties; scans without a difference are left
out). p (Holm) is corrected for all comparisons by the same score (Holm 1979)."""

COMPARISON = ("mean difference [95 %]", "better on", "p", "p (Holm)")  # headings of `comparison_cells`


def mean_and_std(values: np.ndarray) -> dict[str, float | None]:
    """Return {"mean", "std"} of scores (scans,), std with n - 1. Both are None if not finite; std is None for one scan."""
    if not len(values) or not np.isfinite(values).all():
        return {"mean": None, "std": None}
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1)) if len(values) > 1 else None}


def spread_text(value: Mapping[str, float | None], digits: int) -> str:
    """Format {"mean", "std"} as "0.921 ± 0.007", with at most `digits`. Without "std", give the mean; without both, "n/a"."""
    if value["mean"] is None:
        return "n/a"
    return f"{value['mean']:.{digits}f}" if value["std"] is None else with_spread(value["mean"], value["std"], digits)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> dict:
    """Compare two methods by their scores of the same scans (one or more), in the same order.

    Returns:
        {"n": number of scans, "mean", "low", "high": `first` minus `second` with its 95 % interval, "p": Wilcoxon's p,
        "note": why a number is None, else empty}.
    """
    first, second = (np.asarray(scores, dtype=np.float64) for scores in (first, second))
    result = dict.fromkeys(("mean", "low", "high", "p")) | {"n": len(first), "note": ""}
    finite = np.isfinite(first) & np.isfinite(second)
    if not finite.all():
        return result | {"note": f"{np.count_nonzero(~finite)} of {len(first)} scans have a score that is not finite"}
    differences = first - second
    result["mean"] = float(differences.mean())
    if len(differences) < 2:
        return result | {"note": "one scan has no spread"}
    half = stats.t.ppf(0.975, len(differences) - 1) * stats.sem(differences)
    result |= {"low": float(differences.mean() - half), "high": float(differences.mean() + half)}
    differences = differences.round(12)  # differences that only rounding separates are ties
    if not differences.any():
        return result | {"note": "equal on all scans"}
    return result | {"p": float(stats.wilcoxon(differences[differences != 0]).pvalue)}


def compare(pairs: Sequence[tuple[np.ndarray, np.ndarray]], larger_is_better: bool = True) -> list[dict]:
    """Return `paired_difference` of each pair, with "wins" (scans on which the first is better) and the corrected "p_holm"."""
    differences = [paired_difference(first, second) for first, second in pairs]
    wins = [int(((first > second) if larger_is_better else (first < second)).sum()) for first, second in pairs]
    corrected = holm([difference["p"] for difference in differences])
    return [one | {"p_holm": p, "wins": number} for one, p, number in zip(differences, corrected, wins)]


def smallest_p(n: int) -> float:
    """Return the lowest p of the exact two-sided signed-rank test for n scans, when all differences have the same sign."""
    return min(1.0, 2.0 ** (1 - n))


def note_on_few_scans(n: int, comparisons: int) -> str:
    """Warn if this many scans cannot give a significant p, and state the lowest p that they can give."""
    if n < 2:
        return "One scan allows neither a spread nor a test."
    corrected = min(1.0, comparisons * smallest_p(n))
    if corrected <= 0.05:
        return ""
    return (
        f"With {n} scans p cannot be below {p_text(smallest_p(n))}, and not below {p_text(corrected)} after the correction for "
        f"{comparisons} comparisons. These are too few scans to prove a difference by this test."
    )


def p_text(p: float | None) -> str:
    """Format p as text such as "0.031", "< 0.001" or "n/a"."""
    return "n/a" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def interval_text(difference: Mapping, digits: int) -> str:
    """Format a difference as "+0.021 [+0.013, +0.029]", with at most `digits`, or say why there is no interval."""
    mean, low, high, note = (difference[key] for key in ("mean", "low", "high", "note"))
    if mean is None:
        return f"n/a ({note})"
    if low is None:
        return f"{mean:+.{digits}f} ({note})"
    if high > low:
        digits = max(0, min(digits, -math.floor(math.log10((high - low) / 5))))
    return f"{mean:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"


def comparison_cells(difference: Mapping, digits: int) -> list[str]:
    """Return the cells of one result of `compare` for the columns COMPARISON."""
    wins = f"{difference['wins']} of {difference['n']}"
    return [interval_text(difference, digits), wins, p_text(difference["p"]), p_text(difference["p_holm"])]


def report(
    path: Path,
    title: str,
    text: str,
    tables: Sequence[Mapping],
    captions: Mapping[str, str],
    dataset_dir: str | Path,
    verdict: str = "",
) -> None:
    """Print text and tables, and write them as a section of the report page, with the figures that exist."""
    figures = [{"file": name, "caption": caption} for name, caption in captions.items() if (path.parent / name).is_file()]
    write_section(path, title, text, tables, figures, [dataset_dir], verdict)
    print(f"{text}\n")
    for table in tables:
        print_table(table)
