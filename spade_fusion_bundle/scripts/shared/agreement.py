"""Agreement of measured values with expected ones: correlation, slope, bias and error."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats


def agreement(expected: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Compare pairs of expected (requested or true) and measured values of one unit.

    Returns:
        n; Pearson's r with its 95 % interval by Fisher's z (r_low, r_high); the least-squares slope of measured on expected
        values with its 95 % t interval (slope_low, slope_high); and in the values' unit the bias (mean of measured -
        expected) and the mean absolute error (mae).

    Raises:
        ValueError: fewer than 4 pairs, unequal lengths, values that are not finite or all the same.
    """
    expected, measured = np.asarray(expected, float), np.asarray(measured, float)
    if expected.shape != measured.shape or expected.ndim != 1:
        raise ValueError(f"two lists of one length are needed, got shapes {expected.shape} and {measured.shape}")
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
