import numpy as np
import pytest
import torch
from monai.metrics import FIDMetric
from scipy.linalg import sqrtm

from brain_ldm_bundle.scripts.evaluation.fid import frechet_distance


def normal(n, features=4, shift=0.0, scale=1.0, seed=0):
    rows = np.random.default_rng(seed).standard_normal((n, features)) * np.linspace(1, 2, features) * scale
    rows[:, 0] += shift
    return rows


def test_the_frechet_distance_agrees_with_its_formula_and_with_monai():
    a, b = normal(30), normal(40, shift=0.7, scale=1.5, seed=1)
    covariances = np.cov(a.T), np.cov(b.T)
    expected = (
        np.square(a.mean(0) - b.mean(0)).sum() + np.trace(sum(covariances)) - 2 * np.trace(sqrtm(np.dot(*covariances)).real)
    )
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    try:
        with pytest.warns(DeprecationWarning, match="disp"):  # gone in SciPy 1.18, and with it MONAI 1.6's FIDMetric
            monai = FIDMetric()(torch.from_numpy(a), torch.from_numpy(b))
    except TypeError:
        return
    assert frechet_distance(a, b) == pytest.approx(float(monai), rel=1e-9)


def test_the_frechet_distance_of_two_lines_is_known_by_hand():
    # Means 1 and 4, variances 1 and 9: (4 - 1)^2 + (3 - 1)^2.
    assert frechet_distance(np.array([[0], [1], [2]]), np.array([[1], [4], [7]])) == pytest.approx(9 + 4)


def test_the_frechet_distance_holds_where_the_covariance_is_singular():
    a, b = normal(6, features=20), normal(5, features=20, seed=1)
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((20, 20)))[0]
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(a @ rotation, b @ rotation) == pytest.approx(frechet_distance(a, b))
    # One volume repeated has no spread: what is left is the distance of means and the other set's variance.
    repeated = np.repeat(a[:1], 7, axis=0)
    assert frechet_distance(repeated, b) == pytest.approx(np.square(a[0] - b.mean(0)).sum() + b.var(axis=0, ddof=1).sum())


def test_along_components_a_shift_across_them_still_counts_and_a_spread_does_not():
    a, b = normal(50, features=3), normal(40, features=3, seed=1)
    first = np.eye(3)[:1]
    alone = frechet_distance(a[:, :1], b[:, :1])
    means = np.square(a.mean(0) - b.mean(0))[1:].sum()
    assert frechet_distance(a, b, first) == pytest.approx(alone + means)
    centred = (b - b.mean(0)) * [1, 5, 5] + b.mean(0)
    assert frechet_distance(a, centred, first) == pytest.approx(alone + means)
    assert frechet_distance(a, b, np.linalg.qr(b[:3].T)[0].T) == pytest.approx(frechet_distance(a, b))
