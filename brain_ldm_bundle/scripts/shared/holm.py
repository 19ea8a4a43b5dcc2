"""Holm's correction of p values for several comparisons."""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p values for multiple comparisons (Holm 1979, Scand. J. Stat. 6). None means no comparison and stays None."""
    order = sorted((number for number, p in enumerate(p_values) if p is not None), key=lambda number: p_values[number])
    corrected, largest = [None] * len(p_values), 0.0
    for rank, number in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[number]))
        corrected[number] = largest
    return corrected
