"""Tab-separated tables of scores, whole or not there."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..shared.files import atomic

__all__ = ["print_table", "read_table", "spread_text", "write_table"]


def write_table(path: str | Path, lines: Sequence[Sequence[str]]) -> None:
    """Write the lines, the header first; the folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic(path) as file:
        file.write("".join("\t".join(line) + "\n" for line in lines).encode())


def read_table(path: str | Path) -> list[dict[str, str]]:
    """A dict per row, by column."""
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def spread_text(value: Mapping[str, float | None], digits: int) -> str:
    """Of {"mean", "std"}: "0.921 ± 0.007"; without a spread, as of one scan, the mean alone; "n/a"."""
    if value["mean"] is None:
        return "n/a"
    return f"{value['mean']:.{digits}f}" + ("" if value["std"] is None else f" ± {value['std']:.{digits}f}")


def print_table(table: Mapping[str, Sequence]) -> None:
    """In columns, of {"header": cells, "rows": lists of cells}."""
    lines = [table["header"], *table["rows"]]
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print()
