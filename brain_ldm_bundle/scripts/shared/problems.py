"""Report all problems of a user's input in one error message."""

from __future__ import annotations

from collections.abc import Sequence

MOST_LISTED = 20


def refuse(problems: Sequence[str], heading: str = "") -> None:
    """Raise one ValueError that lists the first 20 problems under the heading and counts the others. Do nothing without any."""
    if problems:
        hidden = len(problems) - MOST_LISTED
        more = [f"... and {hidden} more of these problems"] if hidden > 0 else []
        raise ValueError("\n".join([*([heading] if heading else []), *problems[:MOST_LISTED], *more]))
