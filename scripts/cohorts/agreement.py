"""Compute the agreement of measured with requested or true values, and format it for tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats
from shared.intervals import with_interval

CLOSELY = 0.8  # chosen: the lower end of the interval of r from which on values "follow closely"
SCALE = 2  # chosen: a slope above it, or below its inverse, is named, because r alone would hide another unit


def partial_correlation(requested: Sequence[float], measured: Sequence[float], others: np.ndarray) -> dict[str, float]:
    """Correlate what remains of requested and measured values after a linear regression on other covariates.

    Covariates are correlated in the requests. For example, subjects with large ventricles are older. A tool that measures the
    ventricles then seems to measure age as well.

    Args:
        requested: requested values, shape (n,).
        measured: measured values, shape (n,).
        others: values of the covariates that are held constant, shape (n, k).

    Returns:
        A dict with these entries. partial_r is the partial correlation, with n - 2 - k degrees of freedom. partial_r_low and
        partial_r_high are its 95 % interval by Fisher's z for n - k values (Fisher 1924, Metron 3). held is the number k of
        linearly independent columns.

    Raises:
        ValueError: there are fewer than k + 4 pairs, or the other covariates determine the values completely.
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
        raise ValueError("the other covariates determine the requested or measured values, so nothing is left to correlate")
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
    """Return the mean absolute error of a tool or model that always answers the mean of these values."""
    return float((expected - expected.mean()).abs().mean())


def agreement_cells(numbers: Mapping[str, float], decimals: int, unit: str) -> list[str]:
    """Return table cells for r, slope, bias and mean absolute error. The last two have `decimals` and the unit."""
    return [
        interval_of(numbers, "r"),
        interval_of(numbers, "slope"),
        f"{numbers['bias']:+.{decimals}f} {unit}".strip(),
        f"{numbers['mae']:.{decimals}f} {unit}".strip(),
    ]


def interval_of(numbers: Mapping[str, float], name: str) -> str:
    """Return "0.97 [0.95, 0.98]" from the entries name, name_low and name_high."""
    return with_interval(numbers[name], numbers[f"{name}_low"], numbers[f"{name}_high"])


def agreement_in_words(found: Mapping[str, Mapping[str, float]]) -> str:
    """Say how closely measured values follow requests, by the partial r if other covariates were held.

    `found` has the agreement of each quantity, by its title. Quantities that follow in the same way share a sentence.
    """
    sentences: dict[str, list[tuple[str, str]]] = {}
    for title, numbers in found.items():
        name = "partial_r" if numbers.get("held") else "r"
        low, high = numbers[f"{name}_low"], numbers[f"{name}_high"]
        how = "follow the requests closely" if low >= CLOSELY else "follow the requests loosely" if low > 0 else ""
        if low > 0 and not 1 / SCALE <= numbers["slope"] <= SCALE:
            how += f", but change {numbers['slope']:.2g} times as much"
        how = how or ("change against the requests" if high < 0 else "do not follow the requests in a way that shows")
        r = f"{name.replace('_', ' ')} {interval_of(numbers, name)}, n = {numbers['n']}"
        sentences.setdefault(how, []).append((title, r))
    texts = []
    for how, group in sentences.items():
        titles, numbers = ("; ".join(parts) for parts in zip(*group))
        texts.append(f"{titles[:1].upper()}{titles[1:]}: measured values {how} ({numbers}).")
    return " ".join(texts)


def decimals_of(values: pd.Series) -> int:
    """Return how many decimals show differences between values: one, or more if the values span less than 1."""
    spread = float(values.std())
    return max(1, 1 - math.floor(math.log10(spread))) if spread > 0 else 1
