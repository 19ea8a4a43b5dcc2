import math

import numpy as np
import pytest
from brain_ldm.evaluation.test_fid import normal

from brain_ldm_bundle.scripts.evaluation.feature_space import FeatureSpace
from brain_ldm_bundle.scripts.evaluation.fid import frechet_distance
from brain_ldm_bundle.scripts.evaluation.jackknife import jackknife


def test_the_jackknife_takes_away_most_of_the_bias_of_few_samples():
    pairs = [(normal(30, seed=seed), normal(40, shift=1, seed=seed + 100)) for seed in range(20)]  # the truth is 1
    plain = np.mean([frechet_distance(*pair) for pair in pairs])
    corrected, errors = np.mean([jackknife(frechet_distance, *pair) for pair in pairs], axis=0)
    spread = np.std([jackknife(frechet_distance, *pair)[0] for pair in pairs])
    assert plain > 1.4
    assert abs(corrected - 1) < 0.2
    assert 0.5 * spread < errors < 2 * spread


def test_the_jackknife_of_a_mean_is_unbiased_with_the_known_error():
    a, b = normal(12, features=1), normal(9, features=1, seed=1)
    corrected, error = jackknife(lambda x, y: x.mean() - y.mean(), a, b)
    assert corrected == pytest.approx(a.mean() - b.mean())
    assert error == pytest.approx(math.sqrt(a.var(ddof=1) / 12 + b.var(ddof=1) / 9))


def test_sessions_of_one_person_count_once():
    """Each person scanned three times over: the same mean, and no smaller error."""
    a, b = normal(12, features=1), normal(9, features=1, seed=1)
    names = np.tile(np.arange(12), 3), np.arange(100, 109)
    corrected, error = jackknife(lambda x, y: x.mean() - y.mean(), np.tile(a, (3, 1)), b, participants=names)
    assert corrected == pytest.approx(a.mean() - b.mean())
    assert error == pytest.approx(math.sqrt(a.var(ddof=1) / 12 + b.var(ddof=1) / 9))
    found = FeatureSpace(normal(40), 4).compare(np.tile(normal(12), (3, 1)), normal(40), (names[0], None))
    plain = FeatureSpace(normal(40), 4).compare(np.tile(normal(12), (3, 1)), normal(40))
    assert found["fid"] == plain["fid"]
    for key in ("fid_standard_error", "squared_mmd_standard_error"):
        assert found[key] > 1.2 * plain[key], key


def test_who_is_in_both_sets_is_left_out_of_both():
    """Blurred scans against the scans themselves: what people differ in is in both, and was counted as error twice."""
    real = normal(60, features=1)
    changed, names = real + 5 + 0.01 * normal(60, features=1, seed=1), np.array([f"sub-{n}" for n in range(60)])

    def difference(x, y):
        return x.mean() - y.mean()

    known = (changed - real).std(ddof=1) / math.sqrt(60)
    assert jackknife(difference, changed, real, groups=60, participants=(names, names)) == (
        pytest.approx((changed - real).mean()),
        pytest.approx(known),
    )
    grouped = jackknife(difference, changed, real, participants=(names, names))[1]
    assert 0.5 * known < grouped < 2 * known < 0.1 * jackknife(difference, changed, real)[1]


def test_who_is_in_both_sets_is_left_out_of_both_even_where_only_some_are():
    """Half of a set shared: the same as the formula with the covariance of the shared half. Sets of 4 are not emptied."""
    rng = np.random.default_rng(0)
    errors, means = [], []
    for _ in range(200):
        a, b = rng.standard_normal((40, 1)), rng.standard_normal((40, 1))
        b[:20] = a[:20]
        names = np.arange(40), np.r_[:20, 100:120]
        errors.append(jackknife(lambda x, y: x.mean() - y.mean(), a, b, participants=names)[1])
        means.append(a.mean() - b.mean())
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.1)
    for first in range(0, 400, 4):
        jackknife(frechet_distance, normal(4), normal(400), participants=(np.arange(first, first + 4), np.arange(400)))


def test_fewer_groups_give_much_the_same_as_leaving_out_one_by_one():
    a, b = normal(60), normal(60, shift=1, seed=1)
    one_by_one, grouped = jackknife(frechet_distance, a, b, groups=60), jackknife(frechet_distance, a, b, groups=15)
    assert grouped == pytest.approx(one_by_one, rel=0.3)
