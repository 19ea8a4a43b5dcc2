"""Report all problems of a user's input in one error message."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")
MOST_LISTED = 20


def refuse(problems: Sequence[str], heading: str = "") -> None:
    """Raise one ValueError that lists the first 20 problems under the heading and counts the others. Do nothing without any."""
    if problems:
        hidden = len(problems) - MOST_LISTED
        more = [f"... and {hidden} more of these problems"] if hidden > 0 else []
        raise ValueError("\n".join([*([heading] if heading else []), *problems[:MOST_LISTED], *more]))


def count(things: Sized, noun: str = "problem") -> str:
    """Return the number of things with their noun, such as "1 problem" or "2 volumes"."""
    return f"{len(things)} {noun}{'s' if len(things) != 1 else ''}"


def of_each(function: Callable[[Item], Result], items: Iterable[Item], heading: str) -> list[Result]:
    """Return `function(item)` for each item. All of its ValueErrors are refused together, under the heading "N `heading`"."""
    results, problems = [], []
    for item in items:
        try:
            results.append(function(item))
        except ValueError as error:
            problems += str(error).split("\n")
    refuse(problems, f"{len(problems)} {heading}")
    return results
