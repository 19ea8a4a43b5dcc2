"""Write a number with its interval or its spread, in the digits that these allow."""

from __future__ import annotations

import math


def with_interval(value: float, low: float, high: float, scale: float = 1) -> str:
    """Write "0.97 [0.95, 0.98]", all times `scale`.

    One unit of the last digit is between a fifth and a fiftieth of the interval's width, but not below a thousandth of the
    largest number. Without a width, the numbers have 3 significant digits.
    """
    value, low, high = scale * value, scale * low, scale * high
    largest = max(map(abs, (value, low, high)))
    step = max((high - low) / 5, largest / 1000) if high > low else largest / 100 or 1
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    value, low, high = (f"{round(number, digits) + 0.0:.{digits}f}" for number in (value, low, high))  # + 0.0: no "-0.0"
    return f"{value} [{low}, {high}]"


def with_spread(mean: float, deviation: float, most: int = 6) -> str:
    """Write "0.921 \u00b1 0.007", with at most `most` decimals.

    The standard deviation has one significant digit, or two if the first is 1 or 2. Without a deviation, `most` decides.
    """
    digits = most
    if deviation > 0:
        power = math.floor(math.log10(deviation))
        digits = max(0, min(most, (deviation < 3 * 10.0**power) - power))
    return f"{round(mean, digits) + 0.0:.{digits}f} \u00b1 {deviation:.{digits}f}"
