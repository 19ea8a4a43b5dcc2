import numpy as np
import pytest
from scipy import stats

from spade_fusion_bundle.scripts.evaluation.score_statistics import (
    compare,
    interval_text,
    p_text,
    paired_difference,
    smallest_p,
    spread_text,
)


def test_differences_of_five_scans_by_hand():
    """Differences 1, 2, 3, 4, -5: rank sums 10 and 5; how often chance gives 5 or less is counted."""
    first, second = [11, 12, 13, 14, 5], [10, 10, 10, 10, 10]
    found = paired_difference(first, second)
    sums = [sum(rank for rank, sign in zip(range(1, 6), np.binary_repr(signs, 5)) if sign == "1") for signs in range(32)]
    assert found["p"] == pytest.approx(sum(min(total, 15 - total) <= 5 for total in sums) / 32)
    assert found["mean"] == 1 and found["n"] == 5 and found["note"] == ""
    half = 2.776445 * np.sqrt(50 / 4 / 5)  # t of 4 degrees; squared deviations 0, 1, 4, 9, 36
    assert (found["low"], found["high"]) == pytest.approx((1 - half, 1 + half))


def test_the_sign_is_that_of_the_first():
    found = paired_difference([0.1, 0.2, 0.3], [0.4, 0.6, 0.9])
    assert found["mean"] == pytest.approx(-0.4333333) and found["high"] < 0.1


@pytest.mark.parametrize("n", [2, 3, 6, 24])
def test_no_p_is_below_the_smallest(n):
    found = paired_difference(1 + np.arange(n) / 7, np.zeros(n))
    assert found["p"] == pytest.approx(smallest_p(n))


def test_three_scans_cannot_reach_less_than_a_quarter():
    assert smallest_p(3) == 0.25


def test_scans_without_a_difference_do_not_count():
    with_zero = paired_difference([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 4.0])
    assert with_zero["p"] == stats.wilcoxon([1, 2, 3]).pvalue and with_zero["mean"] == 1.5 and with_zero["n"] == 4


@pytest.mark.parametrize(
    ("first", "second", "note"),
    [
        ([1.0], [0.5], "one scan has no spread"),
        ([1.0, np.inf], [0.5, 1], "1 of 2 scans have a score that is not finite"),
        ([1.0, 1], [np.nan, np.nan], "2 of 2 scans have a score that is not finite"),
        ([1.0, 2, 3], [1, 2, 3], "equal on all scans"),
    ],
)
def test_what_cannot_be_tested_has_a_reason_and_no_p(first, second, note):
    found = paired_difference(first, second)
    assert found["p"] is None and found["note"] == note
    assert interval_text(found, 2).endswith(f"({note})") or note == "equal on all scans"


def test_comparisons_of_one_score_are_corrected_together_and_count_the_scans_that_are_better():
    scores = np.arange(1, 7) / 7
    worse, same = scores - np.arange(1, 7) / 100, scores + [0.1, -0.2, 0.3, -0.4, 0.5, -0.6]
    first, second = compare([(scores, worse), (scores, same)])
    assert first == paired_difference(scores, worse) | {"p_holm": 2 * first["p"], "wins": 6}
    assert second == paired_difference(scores, same) | {"p_holm": second["p"], "wins": 3}
    assert [one["wins"] for one in compare([(scores, worse)], larger_is_better=False)] == [0]


@pytest.mark.parametrize(
    ("p", "text"), [(None, "n/a"), (0.00001, "< 0.001"), (0.0123, "0.012"), (0.25, "0.25"), (1.0, "1.00"), (0.001953, "0.002")]
)
def test_p_is_written_with_what_matters(p, text):
    assert p_text(p) == text


def test_an_interval_is_written_with_its_sign():
    assert interval_text({"mean": 0.5, "low": -0.25, "high": 1.3, "note": ""}, 2) == "+0.5 [-0.2, +1.3]"  # no digit too many
    assert interval_text({"mean": 0.5, "low": 0.44, "high": 0.56, "note": ""}, 2) == "+0.50 [+0.44, +0.56]"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"mean": 0.9206, "std": 0.007}, "0.921 ± 0.007"),
        ({"mean": 1, "std": None}, "1.000"),
        ({"mean": None, "std": None}, "n/a"),
    ],
)
def test_a_mean_is_shown_with_its_spread(value, text):
    assert spread_text(value, 3) == text
