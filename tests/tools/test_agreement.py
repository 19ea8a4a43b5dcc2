import math

import numpy as np
import pytest
from cohorts.agreement import agreement_in_words, partial_correlation
from shared.agreement import agreement


def test_partial_correlation_equals_the_textbook_formula():
    rng = np.random.default_rng(0)
    z = rng.normal(size=30)
    x, y = z + rng.normal(size=30), 2 * z + rng.normal(size=30)
    rxy, rxz, ryz = np.corrcoef([x, y, z])[[0, 0, 1], [1, 2, 2]]
    found = partial_correlation(x, y, np.column_stack([1e6 * z + 5, np.full(30, 3.0), -z]))  # one column in three ways
    assert found["held"] == 1
    assert found["partial_r"] == pytest.approx((rxy - rxz * ryz) / math.sqrt((1 - rxz**2) * (1 - ryz**2)))
    z_r, margin = math.atanh(found["partial_r"]), 1.959964 / math.sqrt(30 - 1 - 3)
    assert [found["partial_r_low"], found["partial_r_high"]] == pytest.approx(
        [math.tanh(z_r - margin), math.tanh(z_r + margin)]
    )


def test_without_other_covariates_it_is_pearsons_r():
    found = partial_correlation([1, 2, 3, 4], [1, 2, 3, 5], np.empty((4, 0)))
    assert found["held"] == 0 and found["partial_r"] == pytest.approx(agreement([1, 2, 3, 4], [1, 2, 3, 5])["r"])


@pytest.mark.parametrize(
    ("x", "others", "message"),
    [
        ([1, 2, 3, 4], [[1], [5], [2], [2]], "4 pairs are too few to hold 1 covariates constant, 5 are needed"),
        ([1, 2, 3, 4, 6], [[2], [4], [6], [8], [12]], "the other covariates determine the requested or measured values"),
    ],
)
def test_where_nothing_is_left_there_is_no_partial_correlation(x, others, message):
    with pytest.raises(ValueError, match=message):
        partial_correlation(x, [1, 5, 2, 6, 3][: len(x)], np.array(others))


def test_the_words_use_the_partial_correlation():
    """Age seemed to be followed because requests of old people have large ventricles."""
    numbers = {"n": 40, "r": 0.9, "r_low": 0.85, "r_high": 0.95, "slope": 0.5, "slope_low": 0.4, "slope_high": 0.6, "held": 1}
    numbers |= {"partial_r": 0.2, "partial_r_low": -0.2, "partial_r_high": 0.5}
    words = "do not follow the requests in a way that shows (partial r 0.2 [-0.2, 0.5], "
    assert words in agreement_in_words({"age": numbers})
    closely = "follow the requests closely (r 0.90 [0.85, 0.95], n = 40)"
    assert closely in agreement_in_words({"age": numbers | {"held": 0}})
    text = agreement_in_words({"age": numbers, "ventricles": numbers | {"held": 0}, "brain": numbers})
    assert text.startswith("Age; brain: measured values do not follow") and text.endswith(
        f"Ventricles: measured values {closely}."
    )


def test_the_words_name_another_scale():
    """Volumes in another unit have the same correlation."""
    numbers = {"n": 40, "r": 0.98, "r_low": 0.9, "r_high": 0.99, "slope": 9.7, "slope_low": 8, "slope_high": 11}
    assert "follow the requests closely, but change 9.7 times as much (r " in agreement_in_words({"ventricles": numbers})
    assert "but change 0.00097 times" in agreement_in_words({"ventricles": numbers | {"slope": 0.00097}})
    assert "but change" not in agreement_in_words({"ventricles": numbers | {"slope": 0.6}})
