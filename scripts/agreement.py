"""Agreement between requested and measured values: correlation, slope, bias."""

from collections.abc import Sequence

import numpy as np
from scipy import stats


def agreement(requested: Sequence[float], measured: Sequence[float]) -> dict[str, float]:
    """Compare pairs of values, both in the same unit.

    Returns n, Pearson's r with its Fisher 95 % interval (r_low, r_high), the least-squares slope of measured on
    requested with its 95 % t interval (slope_low, slope_high), and in the values' unit the bias (mean of
    measured - requested) and the mean absolute error (mae).
    Raises ValueError for fewer than 4 pairs, unequal lengths, values that are not finite, or constant input.
    """
    requested, measured = np.asarray(requested, float), np.asarray(measured, float)
    if requested.shape != measured.shape or requested.ndim != 1:
        raise ValueError(f"two lists of one length are needed, got shapes {requested.shape} and {measured.shape}")
    n = len(requested)
    if n < 4:
        raise ValueError(f"agreement needs at least 4 pairs for an interval of r, got {n}")
    for name, values in (("requested", requested), ("measured", measured)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} values must be finite, row {int(np.argmin(np.isfinite(values))) + 1} is not")
        if np.ptp(values) == 0:
            raise ValueError(f"{name} values are all {values[0]:g}: a correlation needs values that differ")

    correlation = stats.pearsonr(requested, measured)
    interval = correlation.confidence_interval(0.95)  # Fisher's z
    line = stats.linregress(requested, measured)
    margin = stats.t.ppf(0.975, n - 2) * line.stderr
    difference = measured - requested
    return {
        "n": n,
        "r": float(correlation.statistic),
        "r_low": float(interval.low),
        "r_high": float(interval.high),
        "slope": float(line.slope),
        "slope_low": float(line.slope - margin),
        "slope_high": float(line.slope + margin),
        "bias": float(difference.mean()),
        "mae": float(np.abs(difference).mean()),
    }
