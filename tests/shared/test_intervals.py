"""Numbers have the digits that their intervals or spreads allow."""

import re

import pytest

from brain_ldm_bundle.scripts.shared.intervals import with_interval, with_spread


@pytest.mark.parametrize(
    ("value", "low", "high", "scale", "text"),
    [
        (0.974, 0.9554, 0.9912, 1, "0.974 [0.955, 0.991]"),
        (0.4712, 0.1234, 0.7123, 1, "0.5 [0.1, 0.7]"),
        (0.64, 0.614, 0.672, 100, "64 [61, 67]"),
        (1234.5, 1100.2, 1400.7, 1, "1234 [1100, 1401]"),
        (-0.02, -0.31, 0.3, 1, "0.0 [-0.3, 0.3]"),  # no -0.0
        (0.9999999, 0.9999998, 1.0, 1, "1.000 [1.000, 1.000]"),  # the interval of 6 pairs on a line had 16 digits
        (1.0, 1.0, 1.0, 100, "100 [100, 100]"),
        (0.0, 0.0, 0.0, 1, "0 [0, 0]"),
    ],
)
def test_the_width_of_the_interval_gives_the_digits(value, low, high, scale, text):
    assert with_interval(value, low, high, scale) == text


@pytest.mark.parametrize("width", [1e-4, 0.003, 0.07, 0.9, 4.0, 37.0])
def test_rounding_moves_no_end_by_more_than_a_tenth_of_the_width(width):
    written = [float(number) for number in re.findall(r"-?[\d.]+", with_interval(0.1, 0.1 - width / 3, 0.1 + 2 * width / 3))]
    assert written == pytest.approx([0.1, 0.1 - width / 3, 0.1 + 2 * width / 3], abs=max(width / 10, 1e-4))


@pytest.mark.parametrize(
    ("mean", "deviation", "most", "text"),
    [
        (0.92156, 0.00664, 6, "0.922 ± 0.007"),
        (0.92156, 0.01664, 6, "0.922 ± 0.017"),
        (0.92156, 0.00664, 2, "0.92 ± 0.01"),
        (982.44, 65.51, 1, "982 ± 66"),
        (0.9, 0.0, 3, "0.900 ± 0.000"),
    ],
)
def test_the_spread_gives_the_digits_of_a_mean(mean, deviation, most, text):
    assert with_spread(mean, deviation, most) == text
