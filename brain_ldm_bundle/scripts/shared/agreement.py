"""Agreement of measured values with expected ones: correlation, slope, bias and error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def agreement(expected: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Compare pairs of expected (requested or true) and measured values in the same unit.

    Returns:
        `n` is the number of pairs, and `r` Pearson's correlation with the 95 % interval `r_low` to `r_high` (Fisher's z).
        `slope` is the least-squares slope of measured on expected values with the 95 % interval `slope_low` to `slope_high`
        (Student's t). `bias` is the mean of measured - expected and `mae` the mean absolute error, in the values' unit.

    Raises:
        ValueError: there are fewer than 4 pairs, the lengths differ, or values are not finite or all the same.
    """
    expected, measured = np.asarray(expected, float), np.asarray(measured, float)
    if expected.shape != measured.shape or expected.ndim != 1:
        raise ValueError(f"two lists of equal length are needed, got shapes {expected.shape} and {measured.shape}")
    n = len(expected)
    if n < 4:
        raise ValueError(f"agreement needs at least 4 pairs for an interval of r, got {n}")
    for name, values in (("expected", expected), ("measured", measured)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} values must be finite, row {int(np.argmin(np.isfinite(values))) + 1} is not")
        if np.ptp(values) == 0:
            raise ValueError(f"{name} values are all {values[0]:g}: a correlation needs values that differ")

    correlation = stats.pearsonr(expected, measured)
    interval = correlation.confidence_interval(0.95)
    line = stats.linregress(expected, measured)
    margin = stats.t.ppf(0.975, n - 2) * line.stderr
    difference = measured - expected
    numbers = {
        "r": correlation.statistic,
        "r_low": interval.low,
        "r_high": interval.high,
        "slope": line.slope,
        "slope_low": line.slope - margin,
        "slope_high": line.slope + margin,
        "bias": difference.mean(),
        "mae": np.abs(difference).mean(),
    }
    return {"n": n} | {name: float(value) for name, value in numbers.items()}
