import math
import tracemalloc

import numpy as np
import pytest
from brain_ldm.evaluation.test_fid import normal
from scipy.spatial.distance import pdist

from brain_ldm_bundle.scripts.evaluation import mmd_coverage
from brain_ldm_bundle.scripts.evaluation.jackknife import jackknife
from brain_ldm_bundle.scripts.evaluation.mmd_coverage import density_coverage, median_distance, squared_mmd


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
    monkeypatch.setattr(mmd_coverage, "ROWS_AT_A_TIME", at_a_time)
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


def test_a_reference_of_one_volume_has_no_width():
    with pytest.raises(ValueError, match="one volume many times"):
        median_distance(np.ones((5, 3)))
