"""Check whole numbers on the command line of the tools."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def at_least(least: int, most: int | None = None) -> Callable[[str], int]:
    """Return a `type` of argparse for whole numbers from `least`, up to `most` if it is given."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if number < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        if most is not None and number > most:
            raise argparse.ArgumentTypeError(f"must be at most {most}, got {text!r}")
        return number

    return read
