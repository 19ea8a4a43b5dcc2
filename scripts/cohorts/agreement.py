"""Agreement of measured with requested or true values: its numbers, and how tables show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats


def partial_correlation(requested: Sequence[float], measured: Sequence[float], others: np.ndarray) -> dict[str, float]:
    """Correlate what remains of requested and measured values after a linear regression on other covariates.

    Requests are drawn together: large ventricles come with high ages. A tool that measures the one then seems to measure the
    other as well.

    Args:
        requested: requested values, shape (n,).
        measured: measured values, shape (n,).
        others: values of the covariates that are held constant, shape (n, k).

    Returns:
        partial_r with its 95 % interval by Fisher's z for n - k values (partial_r_low, partial_r_high; Fisher 1924, Metron 3),
        and held, the number k of linearly independent columns. r has n - 2 - k degrees of freedom.

    Raises:
        ValueError: fewer than k + 4 pairs, or values that the other covariates determine completely.
    """
    values = np.column_stack([requested, measured]).astype(float)
    others = np.asarray(others, float).reshape(len(values), -1)
    others = stats.zscore(others[:, np.ptp(others, axis=0) > 0], axis=0)
    held = int(np.linalg.matrix_rank(others)) if others.size else 0
    n = len(values)
    if n < held + 4:
        raise ValueError(f"{n} pairs are too few to hold {held} covariates constant, {held + 4} are needed")
    values -= values.mean(axis=0)
    left = values - others @ np.linalg.lstsq(others, values, rcond=None)[0]
    if (left.std(axis=0) <= 1e-9 * values.std(axis=0)).any():
        raise ValueError("requested or measured values follow from the other covariates: nothing is left to correlate")
    r = float(np.corrcoef(left.T)[0, 1])
    margin = stats.norm.ppf(0.975) / np.sqrt(n - held - 3)
    z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    return {
        "partial_r": r,
        "partial_r_low": float(np.tanh(z - margin)),
        "partial_r_high": float(np.tanh(z + margin)),
        "held": held,
    }


def mean_answer_error(expected: pd.Series) -> float:
    """Mean absolute error of a tool or model that always answers the mean of these values."""
    return float((expected - expected.mean()).abs().mean())


def agreement_cells(numbers: Mapping[str, float], decimals: int, unit: str) -> list[str]:
    """Cells of a table for r, slope, bias and mean absolute error; the last two have `decimals` and the unit."""
    return [
        f"{numbers['r']:.3f} [{numbers['r_low']:.3f}, {numbers['r_high']:.3f}]",
        f"{numbers['slope']:.2f} [{numbers['slope_low']:.2f}, {numbers['slope_high']:.2f}]",
        f"{numbers['bias']:+.{decimals}f} {unit}".strip(),
        f"{numbers['mae']:.{decimals}f} {unit}".strip(),
    ]


def decimals_of(values: pd.Series) -> int:
    """Decimals that show differences between values: one, and more where they spread over less than 1."""
    spread = float(values.std())
    return max(1, 1 - math.floor(math.log10(spread))) if spread > 0 else 1
