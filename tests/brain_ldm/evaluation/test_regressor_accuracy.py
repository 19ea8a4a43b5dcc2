import numpy as np
import pytest
from scipy.stats import norm

from brain_ldm_bundle.scripts.evaluation.regressor_accuracy import hits, quantity_accuracy


def test_agreement_is_that_of_a_hand_calculation():
    truth, predicted = [50.0, 60.0, 70.0, 80.0, 90.0], [58.0, 57.0, 66.0, 71.0, 73.0]
    found = quantity_accuracy(truth, predicted, trivial=60.0)
    x, y = np.subtract(truth, 70.0), np.subtract(predicted, 65.0)
    r = (x @ y) / np.sqrt((x @ x) * (y @ y))
    z = np.arctanh(r) + norm.ppf([0.025, 0.975]) / np.sqrt(5 - 3)
    assert found["n"] == 5
    assert found["r"] == pytest.approx(r) and found["r_95"] == pytest.approx(np.tanh(z))
    assert found["slope"] == pytest.approx((x @ y) / (x @ x))
    assert found["bias"] == pytest.approx(-5) and found["mae"] == pytest.approx((8 + 3 + 4 + 9 + 17) / 5)
    assert found["mae_trivial"] == pytest.approx((10 + 0 + 10 + 20 + 30) / 5)


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([1, 2, 3], [1, 2, 3], "at least 4 pairs.*got 3"),
        ([5, 5, 5, 5], [1, 2, 3, 4], "expected values are all 5"),
        ([1, 2, 3, 4], [7, 7, 7, 7], "measured values are all 7"),
        ([1, 2, 3, 4], [1, 2, 3, float("nan")], "measured values must be finite, row 4"),
    ],
)
def test_no_number_comes_of_too_few_constant_or_broken_values(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        quantity_accuracy(truth, predicted, trivial=2.0)


def test_categories_are_counted_beside_the_most_frequent_one():
    found = hits(list("FFMM"), list("FMMM"), trivial="F")
    assert (found["accuracy"], found["accuracy_trivial"]) == (0.75, 0.5)
    low, high = found["accuracy_95"]
    assert (low, high) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson 1927, for 3 of 4
