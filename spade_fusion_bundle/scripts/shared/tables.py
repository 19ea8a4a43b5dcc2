"""Read, write and print tables of text. All tables that a user gives are read here, so all of them follow the same rules."""

from __future__ import annotations

import codecs
import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .files import is_there, write_text
from .problems import count, refuse

MISSING = {"", "n/a", "#n/a", "na", "<na>", "nan", "none", "null"}  # words for a missing value, in lower case
SYNONYMS = {"sex": "gender", "gender": "sex"}  # other names for a column or setting, which no likeness of letters tells
CONTROL = re.compile(r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029]")  # all but tab and the ends of lines
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
UTF_16_AND_32 = {  # UTF-32 comes first, because its mark begins with UTF-16's
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def is_missing(cell: object) -> bool:
    """Return whether a cell holds no value: None, an empty text, or a word such as n/a, NA or NaN."""
    return cell is None or str(cell).strip().lower() in MISSING


def read_number(cell: object) -> float:
    """Read a finite number.

    Raises:
        ValueError: it is none. The message lacks its subject: "must be a number, decimals after a point, got '50,5'".
    """
    text = str(cell).strip()
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise ValueError(f"must be a number, decimals after a point, got {cell!r}")
    return value


def read_table(path: str | Path, names: Iterable[str] = (), quotes: bool = True) -> list[dict[str, str]]:
    """Read the rows of a table as dictionaries from column name to cell. `read_numbered` describes table and arguments.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a table, has no rows, names a column twice, or has rows of another length.
    """
    _, rows, problems = read_numbered(path, names, quotes)
    refuse(problems)
    return list(rows.values())


def read_numbered(
    path: str | Path, names: Iterable[str] = (), quotes: bool = True, empty: bool = False
) -> tuple[list[str], dict[int, dict[str, str]], list[str]]:
    """Read a table, but return problems of rows instead of raising them.

    A table is text in UTF-8, or in UTF-16 with its mark. It has a header. Tabs separate the cells. Without tabs in the header,
    commas or semicolons do, whichever are more. Without these, blanks do. Blanks around a cell do not count, and neither do
    blank rows and empty cells after the last column.

    Args:
        path: file of the table.
        names: columns that the caller reads. A column that differs only in case gets the name that is given here.
        quotes: True if quotation marks around a cell are not part of it, as spreadsheets write them.
        empty: True accepts a table that has only a header.

    Returns:
        the header, the cells of each row by row number (the header is row 1) and column, and one line for each row that
        cannot be read or whose length differs from the header's.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not such a table, has no rows, or names a column twice.
    """
    path = Path(path)
    if path.is_dir() or not is_there(path):  # a pipe is a table, too, as in <(zcat participants.tsv.gz)
        raise FileNotFoundError(f"{path}: no such table. Give a file of text, cells separated by tabs")
    lines, problems = _lines(path, quotes)
    if len(lines) < (1 if empty else 2):
        refuse(problems)
        raise ValueError(f"{path}: {'only a header' if lines else 'empty'}. It needs a header and one row or more")
    (_, header), *lines = lines.items()
    if len(lines) > 1 and all(len(cells) == len(header) + 1 for _, cells in lines):
        raise ValueError(
            f"{path}: each row has one cell more than the header, as R writes them. Leave out the names of rows: "
            f"write.table(..., row.names = FALSE)"
        )
    while not header[-1]:
        header.pop()
    spelling = {name.lower(): name for name in names}
    header = [spelling.get(name.lower(), name) for name in header]
    lower = [name.lower() for name in header]
    if twice := [name for name in header if lower.count(name.lower()) > 1]:
        raise ValueError(f"{path}: the column name {twice[0]!r} appears twice: {', '.join(header)}. Rename or remove one")
    rows = {}
    for number, cells in lines:
        while len(cells) > len(header) and not cells[-1]:
            cells.pop()
        if len(cells) == len(header):
            rows[number] = dict(zip(header, cells))
        else:
            problems.append(
                f"{path} row {number}: {count(cells, 'cell')} for {count(header, 'column')}. Put one separator between two "
                f"cells"
            )
    return header, rows, problems


def _lines(path: Path, quotes: bool) -> tuple[dict[int, list[str]], list[str]]:
    """Return the cells of each row that is not blank, by row number, and one line for each row that cannot be read."""
    text = _text(path)
    first = next((line for line in text.splitlines() if line.strip()), "").strip()
    if re.fullmatch(r"sep=\W?", first, re.IGNORECASE):
        raise ValueError(f"{path}: begins with {first!r}, which only Excel reads. Remove this row")
    separator = "\t" if "\t" in first else max(",;", key=first.count)
    if separator not in first:
        separator = "\t"
        if len(first.split()) > 1:
            text = "\n".join("\t".join(line.split()) for line in text.splitlines())
    style = {"strict": True} if quotes else {"quoting": csv.QUOTE_NONE}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, **style)
    lines, problems, number = {}, [], 0
    while True:
        number += 1
        try:
            cells = next(reader)
            if any(separator in cell and ("\n" in cell or "\r" in cell) for cell in cells):
                raise csv.Error("a cell holds several rows")
        except StopIteration:
            return lines, problems
        except csv.Error as error:
            long = "A cell may have at most 131072 characters. " * ("field limit" in str(error))
            problems.append(f"{path} row {number}: cannot be read ({error}). {long}Is a quotation mark without its partner?")
            continue
        cells = [cell.strip() for cell in cells]
        if any(cells):
            lines[number] = cells


def _text(path: Path) -> str:
    content = path.read_bytes()
    if content.startswith(b"\x1f\x8b"):
        raise ValueError(f"{path}: compressed with gzip. Unpack it: gunzip -k {path.name}")
    encoding = next((name for mark, name in UTF_16_AND_32.items() if content.startswith(mark)), "utf-8-sig")
    try:
        text = content.decode(encoding)
        if "\0" in text:
            raise ValueError("null characters")
    except ValueError as error:
        raise ValueError(f"{path}: not encoded in UTF-8 ({error}). Save it as text in UTF-8") from None
    if re.match(r"\S*annex/objects/\S+\s*$", text):
        raise ValueError(f"{path}: only a pointer of git-annex, without the table. Fetch it: datalad get {path.name}")
    if odd := CONTROL.search(text):
        row = text.count("\n", 0, odd.start()) + 1
        raise ValueError(f"{path} row {row}: holds the control character {odd[0]!r}. Remove it")
    return text


def separator_of(path: str | Path) -> str:
    """Return what separates the cells of a table that is written: a comma if its name ends in .csv, or else a tab."""
    return "," if Path(path).suffix.lower() == ".csv" else "\t"


def refuse_users_columns(path: str | Path, columns: Sequence[str]) -> None:
    """Refuse to replace a table that has these columns, of which session_id is optional, and others: a user added them."""
    try:
        header = read_numbered(path, columns, empty=True)[0] if Path(path).is_file() else []
    except ValueError:  # it is no table
        return
    if {*columns} - {"session_id"} <= {*header} and (own := [name for name in header if name not in columns]):
        raise ValueError(f"{path}: this output has the column {own[0]!r}, which would be lost. Give the output another name")


def write_table(path: str | Path, lines: Iterable[Sequence]) -> None:
    """Write a table with `atomic`; `lines` are the cells of the header, then of each row. See `separator_of`."""
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator_of(path), lineterminator="\n").writerows(lines)
    write_text(path, text.getvalue())


def print_table(table: Mapping[str, Sequence]) -> None:
    """Print {"header": cells, "rows": lists of cells} in aligned columns."""
    lines = [[str(cell) for cell in line] for line in (table["header"], *table["rows"])]
    widths = [max(len(cell) for cell in column) for column in zip(*lines)]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip())
    print()
