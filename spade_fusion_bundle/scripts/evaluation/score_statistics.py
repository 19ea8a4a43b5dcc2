"""Two ways of doing the same, compared scan by scan: mean difference, its interval, and how likely chance gives as much."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

__all__ = ["DEFINITION", "holm", "interval_text", "p_text", "paired_difference", "smallest_p"]

DEFINITION = """\
Differences are taken scan by scan: their mean with a 95 % interval (Student's t, as if they were normal), and the two-sided p
of Wilcoxon's signed-rank test (exact up to 50 scans without ties; scans without a difference do not count). p (Holm) is
corrected for all comparisons that are made by the same score (Holm 1979)."""


def smallest_p(n: int) -> float:
    """The lowest two-sided p that the exact signed-rank test can give of n scans: all differences of one sign."""
    return min(1.0, 2.0 ** (1 - n))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> dict:
    """`first` minus `second`, of scores of the same scans in the same order.

    Returns:
        {"n": scans, "mean", "low", "high": difference and its 95 % interval, "p": of Wilcoxon's test, "note": what is missing
        and why, or empty}. What cannot be said is None.

    Raises:
        ValueError: scores of different numbers of scans, or of none.
    """
    first, second = (np.asarray(scores, dtype=np.float64) for scores in (first, second))
    if first.ndim != 1 or first.shape != second.shape or not len(first):
        raise ValueError(
            f"scores of shapes {first.shape} and {second.shape}: pairs need one number per scan, of the same scans"
        )
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
    differing = differences[differences.round(12) != 0].round(12)  # ties that only rounding tells apart are ties
    if not len(differing):
        return result | {"note": "equal on all scans"}
    return result | {"p": float(stats.wilcoxon(differing).pvalue)}


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p corrected for the number of comparisons, in their order (Holm 1979, Scand. J. Stat. 6); None stays, and counts not."""
    order = sorted((number for number, p in enumerate(p_values) if p is not None), key=lambda number: p_values[number])
    corrected, largest = [None] * len(p_values), 0.0
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[number]))
        corrected[number] = largest
    return corrected


def p_text(p: float | None) -> str:
    """For tables: "0.031", "< 0.001", "n/a"."""
    return "n/a" if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def interval_text(difference: dict, digits: int) -> str:
    """For tables: "+0.021 [+0.013, +0.029]"; without an interval the reason instead."""
    mean, low, high, note = (difference[key] for key in ("mean", "low", "high", "note"))
    if mean is None:
        return f"n/a ({note})"
    return f"{mean:+.{digits}f} " + (f"({note})" if low is None else f"[{low:+.{digits}f}, {high:+.{digits}f}]")
