"""Read, write and print tables of tab-separated text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .files import write_text
from .problems import refuse

OTHER_SEPARATORS = {",": "commas", ";": "semicolons"}


def read_table(path: str | Path) -> list[dict[str, str]]:
    """Read the rows of a table, a UTF-8 text file with a header, as dictionaries from column name to cell.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a table, has no rows, names a column twice, or has rows of another length.
    """
    _, rows, problems = read_numbered(path)
    refuse(problems)
    return list(rows.values())


def read_numbered(path: str | Path) -> tuple[list[str], dict[int, dict[str, str]], list[str]]:
    """Read a table as `read_table` does, but return row numbers, and return problems of rows instead of raising them.

    Returns:
        the header, the cells of each row by row number (the header is row 1) and column, and one line for each row whose
        length differs from the header's.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table. Give a file of text, cells separated by tabs")
    content = path.read_bytes()
    try:
        if b"\0" in content:  # UTF-16 and UTF-32, which spreadsheets call "Unicode text"
            raise ValueError("null bytes")
        text = content.decode("utf-8-sig")
    except ValueError as error:
        raise ValueError(f"{path}: not encoded in UTF-8 ({error}). Save it as text in UTF-8") from None
    lines = enumerate(csv.reader(io.StringIO(text, newline=""), delimiter="\t"), start=1)
    lines = [(number, cells) for number, cells in lines if cells]
    if len(lines) < 2:
        raise ValueError(f"{path}: {'only a header' if lines else 'empty'}. It needs a header and one row or more")
    header = lines[0][1]
    for other, name in OTHER_SEPARATORS.items():
        if len(header) == 1 and other in header[0]:
            raise ValueError(f"{path}: columns are separated by {name}. Save it again with tabs")
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: a column name appears twice: {', '.join(header)}. Rename or remove one")
    rows, problems = {}, []
    for number, cells in lines[1:]:
        if len(cells) == len(header):
            rows[number] = dict(zip(header, cells))
        else:
            problems.append(
                f"{path} row {number}: {len(cells)} cells for {len(header)} columns. Put one separator between two cells"
            )
    return header, rows, problems


def write_table(path: str | Path, lines: Iterable[Sequence[str]]) -> None:
    """Write a tab-separated table with `atomic`; `lines` are the cells of the header, then of each row."""
    write_text(path, "".join("\t".join(line) + "\n" for line in lines))


def print_table(table: Mapping[str, Sequence]) -> None:
    """Print {"header": cells, "rows": lists of cells} in aligned columns."""
    lines = [table["header"], *table["rows"]]
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print()
