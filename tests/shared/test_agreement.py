import math

import numpy as np
import pytest
from scipy import stats

from brain_ldm_bundle.scripts.shared.agreement import agreement


def test_numbers_of_four_pairs_by_hand():
    # deviations -1.5 -.5 .5 1.5 and -1.75 -.75 .25 2.25: Sxx = 5, Syy = 8.75, Sxy = 6.5
    numbers = agreement([1, 2, 3, 4], [1, 2, 3, 5])
    assert numbers["n"] == 4
    assert numbers["r"] == pytest.approx(6.5 / math.sqrt(5 * 8.75))
    assert numbers["slope"] == pytest.approx(1.3)
    assert numbers["bias"] == pytest.approx(0.25)
    assert numbers["mae"] == pytest.approx(0.25)


def test_interval_of_r_is_fishers():
    rng = np.random.default_rng(0)
    x = rng.normal(size=28)
    numbers = agreement(x, x + rng.normal(size=28))
    z, margin = math.atanh(numbers["r"]), 1.959964 / math.sqrt(25)
    assert numbers["r_low"] == pytest.approx(math.tanh(z - margin), abs=1e-6)
    assert numbers["r_high"] == pytest.approx(math.tanh(z + margin), abs=1e-6)


def test_interval_of_slope_holds_the_true_slope_95_times_in_100():
    rng = np.random.default_rng(1)
    x = np.linspace(10, 90, 12)
    fits = [agreement(x, 0.8 * x + rng.normal(0, 5, 12)) for _ in range(400)]
    held = np.mean([fit["slope_low"] < 0.8 < fit["slope_high"] for fit in fits])
    assert stats.binomtest(round(held * 400), 400, 0.95).pvalue > 0.001


def test_bias_is_measured_minus_requested():
    assert agreement([10, 20, 30, 40], [13, 23, 33, 43.0])["bias"] == pytest.approx(3)


@pytest.mark.parametrize(
    ("requested", "measured", "message"),
    [
        ([1, 2, 3], [1, 2, 3], "at least 4 pairs.*got 3"),
        ([1, 2, 3, 4], [1, 2, 3], "equal length"),
        ([5, 5, 5, 5], [1, 2, 3, 4], "expected values are all 5"),
        ([1, 2, 3, 4], [7, 7, 7, 7], "measured values are all 7"),
        ([1, 2, 3, 4], [1, 2, math.nan, 4], "measured values must be finite, row 3"),
    ],
)
def test_impossible_input_is_refused(requested, measured, message):
    with pytest.raises(ValueError, match=message):
        agreement(requested, measured)
