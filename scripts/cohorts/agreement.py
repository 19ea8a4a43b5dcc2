"""Agreement between requested and measured values: correlation, slope, bias; correlation with other requests held."""

from __future__ import annotations

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


def partial_correlation(requested: Sequence[float], measured: Sequence[float], others: np.ndarray) -> dict[str, float]:
    """Pearson's r of what a linear regression on other covariates leaves of requested and measured values.

    Requests are drawn together: large ventricles come with high ages. What a tool reads may follow the one by way of the other.

    Args:
        requested: (n,).
        measured: (n,).
        others: (n, k) values of the covariates that are held.

    Returns:
        partial_r with its 95 % interval by Fisher's z of n - k (partial_r_low, partial_r_high; Fisher 1924, Metron 3) and held,
        the number k of independent columns; r has n - 2 - k degrees of freedom.

    Raises:
        ValueError: fewer than k + 4 pairs, or nothing left to correlate.
    """
    values = np.column_stack([requested, measured]).astype(float)
    others = np.asarray(others, float).reshape(len(values), -1)
    spread = others.std(axis=0)
    others = ((others - others.mean(axis=0)) / np.where(spread > 0, spread, 1))[:, spread > 0]
    held = int(np.linalg.matrix_rank(others)) if others.size else 0
    n = len(values)
    if n < held + 4:
        raise ValueError(f"{n} pairs are too few to hold {held} covariates, {held + 4} are needed")
    values -= values.mean(axis=0)
    left = values - others @ np.linalg.lstsq(others, values, rcond=None)[0]
    if (left.std(axis=0) <= 1e-9 * values.std(axis=0)).any():
        raise ValueError("requested or measured values follow from the other covariates: nothing is left to correlate")
    r = float(np.corrcoef(left.T)[0, 1])
    low, high = np.tanh(
        np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12)) + np.array([-1, 1]) * stats.norm.ppf(0.975) / np.sqrt(n - held - 3)
    )
    return {"partial_r": r, "partial_r_low": float(low), "partial_r_high": float(high), "held": held}
