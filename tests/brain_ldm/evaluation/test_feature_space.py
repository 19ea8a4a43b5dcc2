import numpy as np
import pytest
from brain_ldm.evaluation.test_fid import normal

from brain_ldm_bundle.scripts.evaluation.feature_space import FeatureSpace
from brain_ldm_bundle.scripts.evaluation.fid import frechet_distance
from brain_ldm_bundle.scripts.evaluation.jackknife import jackknife
from brain_ldm_bundle.scripts.evaluation.mmd_coverage import density_coverage, median_distance, squared_mmd


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


def test_components_are_those_of_the_largest_variance():
    features = normal(50, features=6) * [0.1, 5, 1, 0.1, 10, 0.1]
    space = FeatureSpace(features, 2)
    assert np.abs(space.components) == pytest.approx(np.eye(6)[[4, 1]], abs=0.1)
    assert 0.9 < space.share < 1
