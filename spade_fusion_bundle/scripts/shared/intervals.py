"""Write a number with its interval, in the digits that the interval allows."""

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
