import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from brain_ldm_bundle.scripts.evaluation.grey_values import histogram_distance, intensity_checks

SHAPE = (20, 28, 24)
MM = 8.0


def head(background=0.0, brightness=0.5, seed=0):
    """An ellipsoid with a dark hole and texture, off the centre."""
    x, y, z = np.indices(SHAPE)
    distance = ((x - 10) / 6) ** 2 + ((y - 12) / 9) ** 2 + ((z - 13) / 7) ** 2
    texture = np.random.default_rng(seed).uniform(-0.1, 0.1, SHAPE)
    return np.where(distance < 1, np.where(distance < 0.1, 0.02, brightness + texture), background), distance


def test_background_corners_and_clipping_are_counted():
    volume, distance = head(background=0.04)
    volume[:2, :3, :2] = 0  # one corner of eight
    volume[distance < 0.5] = 1
    checks, shares = intensity_checks(volume, MM)
    assert checks["background"] == pytest.approx(10 / 255, abs=1e-3)
    assert checks["corners"] == pytest.approx(7 / 8)
    assert checks["clipped"] == pytest.approx((distance < 0.5).sum() / (distance < 1).sum())
    assert shares.sum() == pytest.approx(1) and shares[255] == checks["clipped"]


def test_the_rim_of_the_head_is_no_background():
    volume, distance = head()
    volume[(distance >= 1) & (distance < 1.15)] = 0.1
    assert intensity_checks(volume, MM)[0]["background"] == 0


def test_fine_voxels_have_the_background_of_coarse_ones():
    volume, _ = head(background=0.04)
    volume[:, :, 16:] += 0.1  # not the same everywhere
    fine = volume.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    assert intensity_checks(fine, 1.0)[0]["background"] == pytest.approx(intensity_checks(volume, 2.0)[0]["background"])


def test_the_distance_of_histograms_is_wassersteins():
    a, b = (intensity_checks(head(brightness=value, seed=seed)[0], MM)[1] for value, seed in ((0.4, 0), (0.6, 1)))
    levels = np.arange(256) / 255
    assert histogram_distance(a, b) == pytest.approx(wasserstein_distance(levels, levels, a, b))
    assert histogram_distance(a, b) == pytest.approx(0.2, abs=0.02)
    assert histogram_distance(a, a) == 0
