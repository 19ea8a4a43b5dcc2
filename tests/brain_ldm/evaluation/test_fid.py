import math
import tracemalloc

import numpy as np
import pytest
import torch
from monai.metrics import FIDMetric
from scipy.linalg import sqrtm
from scipy.spatial.distance import pdist

from brain_ldm_bundle.scripts.evaluation import fid as distances
from brain_ldm_bundle.scripts.evaluation.fid import (
    FeatureSpace,
    check_features,
    density_coverage,
    frechet_distance,
    jackknife,
    median_distance,
    principal_components,
    squared_mmd,
)


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


def test_mmd_agrees_with_its_double_sum():
    a, b, width = normal(7), normal(5, shift=1, seed=1), 1.7

    def kernel(x, y):
        return math.exp(-np.square(x - y).sum() / (2 * width**2))

    aa = np.mean([kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
    bb = np.mean([kernel(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j])
    ab = np.mean([kernel(x, y) for x in a for y in b])
    assert squared_mmd(a, b, width)[0] == pytest.approx(aa + bb - 2 * ab)


@pytest.mark.parametrize("shared", [0, 9])
def test_the_error_of_mmd_is_that_of_leaving_out_people_and_measuring_again(shared):
    """From sums of one kernel: with sessions, in more people than groups, and where people are in both sets."""
    a, b, width = normal(90), normal(70, shift=1, seed=1), 1.7
    names = np.arange(90) % 31, np.arange(70) % 45 + 31 - shared
    expected = jackknife(lambda x, y: squared_mmd(x, y, width)[0], a, b, participants=names)[1]
    assert squared_mmd(a, b, width, names)[1] == pytest.approx(expected, rel=1e-9)


def test_mmd_sees_a_spread_that_the_means_do_not_show():
    a, same, wider = normal(60), normal(50, seed=1), normal(50, scale=3, seed=1)
    width = median_distance(a)
    assert abs(squared_mmd(a, same, width)[0]) < 0.03 < squared_mmd(a, wider, width)[0]


def test_density_and_coverage_are_counted_by_hand():
    # Real 0, 1, 3, 7. The second nearest lie at 3, 2, 3, 6: balls (-3, 3), (-1, 3), (0, 6), (1, 13).
    real, generated = np.array([[0.0], [1], [3], [7]]), np.array([[0.5], [-2], [20]])
    # 0.5 lies in three balls, -2 in one, 20 in none. The last ball is empty.
    assert density_coverage(real, generated, neighbours=2) == pytest.approx((4 / (2 * 3), 3 / 4))


@pytest.mark.parametrize("at_a_time", [1, 7, 1000])
def test_how_many_rows_are_taken_at_a_time_changes_no_number(monkeypatch, at_a_time):
    real, generated = normal(40), normal(30, shift=0.5, seed=1)
    names = np.arange(40) % 17, np.arange(100, 130)
    found = density_coverage(real, generated, participants=names), squared_mmd(real, generated, 1.7, names)
    monkeypatch.setattr(distances, "ROWS_AT_A_TIME", at_a_time)
    again = density_coverage(real, generated, participants=names), squared_mmd(real, generated, 1.7, names)
    assert np.array(again) == pytest.approx(np.array(found), rel=1e-9)


def test_no_matrix_of_all_volumes_by_all_is_made():
    """8000 volumes took 1 GB, 31 740 would have taken 16."""
    real, generated = normal(3000, features=2), normal(3000, features=2, seed=1)
    tracemalloc.start()
    density_coverage(real, generated)
    squared_mmd(real, generated, median_distance(real))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3000 * 3000 * 8 / 2


def test_the_median_distance_of_many_is_that_of_some_and_always_the_same():
    features = normal(5000)
    assert median_distance(features) == median_distance(features) == pytest.approx(np.median(pdist(features)), rel=0.02)


def test_equal_distributions_have_density_1_and_coverage_near_1_and_a_collapsed_one_has_not():
    real, same = normal(300), normal(300, seed=1)
    density, coverage = density_coverage(real, same)
    assert density == pytest.approx(1, abs=0.1) and coverage > 0.9
    assert density_coverage(real, np.repeat(real[:1] * 0.1, 300, axis=0))[1] < 0.3
    assert density_coverage(real, normal(300, shift=30)) == (0, 0)


def test_sessions_of_one_person_count_once_in_density_and_coverage():
    """Their own sessions were their nearest neighbours: balls without room for anybody else."""
    real, generated = normal(84), normal(64, seed=1)
    once = density_coverage(real, generated)
    names = np.tile(np.arange(84), 6), np.tile(np.arange(64), 2)
    sessions = np.tile(real, (6, 1)) + 1e-6 * normal(6 * 84, seed=2)
    assert density_coverage(sessions, np.tile(generated, (2, 1)))[1] < 0.1
    assert density_coverage(sessions, np.tile(generated, (2, 1)), participants=names) == pytest.approx(once, rel=0.01)
    # Only some with several: who was scanned often weighs no more than others.
    often = np.concatenate([np.arange(84), np.repeat(np.arange(20), 3)])
    some = density_coverage(real[often], generated, participants=(often, None))
    assert some == pytest.approx(once, rel=0.01)


def test_density_of_too_few_people_is_refused_however_often_they_were_scanned():
    with pytest.raises(ValueError, match="5 real participants, at least 6 needed"):
        density_coverage(normal(20), normal(8), participants=(np.arange(20) % 5, None))


def test_components_are_those_of_the_largest_variance():
    features = normal(50, features=6) * [0.1, 5, 1, 0.1, 10, 0.1]
    axes, share = principal_components(features, 2)
    assert np.abs(axes) == pytest.approx(np.eye(6)[[4, 1]], abs=0.1)
    assert 0.9 < share < 1
    with pytest.raises(ValueError, match="7 components of 50 volumes with 6 features: use 1 to 6"):
        principal_components(features, 7)


def test_along_components_a_shift_across_them_still_counts_and_a_spread_does_not():
    a, b = normal(50, features=3), normal(40, features=3, seed=1)
    first = np.eye(3)[:1]
    alone = frechet_distance(a[:, :1], b[:, :1])
    means = np.square(a.mean(0) - b.mean(0))[1:].sum()
    assert frechet_distance(a, b, first) == pytest.approx(alone + means)
    centred = (b - b.mean(0)) * [1, 5, 5] + b.mean(0)
    assert frechet_distance(a, centred, first) == pytest.approx(alone + means)
    assert frechet_distance(a, b, np.linalg.qr(b[:3].T)[0].T) == pytest.approx(frechet_distance(a, b))


def test_distances_are_taken_of_standardised_features():
    reference = np.column_stack([normal(60, features=3) * [1e-3, 1, 1e3], np.full(60, 7.0)])
    space = FeatureSpace(reference, 2, standardise=True)
    assert (space.length, space.dimensions) == (3, 2)  # a feature that never varies has no scale
    shifted = reference + [1e-3, 0, 0, 0]
    for dimensions in (1, 3, 50):
        space = FeatureSpace(reference, dimensions, standardise=True)
        assert space.compare(shifted, reference)["fid"] == pytest.approx(1 / normal(60, features=3)[:, 0].var())
    assert "all 3" in space.text("E")
    assert "along the 2 first principal components" in FeatureSpace(reference, 2, standardise=True).text("E")
    with pytest.raises(ValueError, match="none of 2 features varies between 60 volumes"):
        FeatureSpace(np.ones((60, 2)), 1, standardise=True)


def test_with_more_features_than_volumes_equal_distributions_are_about_0_apart_and_a_shift_has_its_size():
    def features(seed, shift=0.0):
        return normal(30, features=60, seed=seed) * 0.85 ** np.arange(60) + shift * np.eye(60)[-1]

    compared = [FeatureSpace(features(seed), 5).compare(features(seed + 50, 4.0), features(seed)) for seed in range(10)]
    assert np.mean([numbers["fid_corrected"] for numbers in compared]) == pytest.approx(16, abs=0.5)


def test_all_distances_order_sets_by_how_wrong_they_are():
    reference, space = normal(80), FeatureSpace(normal(80), 4)
    compared = [space.compare(normal(60, shift=shift, seed=1), reference) for shift in (0, 1.5, 4)]
    assert [numbers["fid_corrected"] for numbers in compared] == pytest.approx([0, 1.5**2, 16], abs=1.5)
    for key, order in (("fid", 1), ("squared_mmd", 1), ("density", -1), ("coverage", -1)):
        values = [order * numbers[key] for numbers in compared]
        assert values == sorted(values) and values[0] != values[2], key


def test_what_has_no_distance_is_refused_by_name():
    broken = normal(5)
    broken[3, 1] = np.nan
    with pytest.raises(ValueError, match="'LDM': those of 1 volumes are NaN or infinite, first: row 3"):
        check_features(broken, "LDM")
    with pytest.raises(ValueError, match="'LDM': 1 volumes, at least 2 needed"):
        check_features(normal(1), "LDM")
    with pytest.raises(ValueError, match=r"'LDM': expected an array \(n, 4\), got \(5, 3\)"):
        check_features(normal(5, features=3), "LDM", length=4)
    with pytest.raises(ValueError, match="second set.*1 volumes"):
        frechet_distance(normal(5), normal(1))
    with pytest.raises(ValueError, match="5 volumes, at least 6 needed"):
        density_coverage(normal(5), normal(5))
    with pytest.raises(ValueError, match="one volume many times"):
        median_distance(np.ones((5, 3)))


def test_a_feature_space_names_its_numbers_rightly():
    real, generated = normal(40), normal(30, shift=1.5, scale=0.5, seed=1)
    found = FeatureSpace(real, dimensions=4).compare(generated, real)
    assert (found["density"], found["coverage"]) == density_coverage(real, generated)
    mmd = squared_mmd(generated, real, median_distance(real))
    assert (found["squared_mmd"], found["squared_mmd_standard_error"]) == pytest.approx(mmd)
    assert found["density"] != found["coverage"] and 0 < found["coverage"] < 1
    corrected, error = jackknife(frechet_distance, generated, real)
    assert found["fid_corrected"] == pytest.approx(corrected) and found["fid_standard_error"] == pytest.approx(error)
    assert found["fid"] == pytest.approx(frechet_distance(generated, real)) and corrected > error
