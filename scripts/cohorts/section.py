"""One part of the page as a reader sees it, written as the bundles' evaluations do: report.py shows every NAME.section.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_section(path: Path, title: str, text: str, tables: Sequence[Mapping] = (), figures: Sequence[Mapping] = ()) -> None:
    """Write a section beside its figures.

    Args:
        path: ends in ".section.json".
        title: of the section.
        text: what was computed on what, by which definition. A blank line starts a paragraph.
        tables: {"header": cells, "rows": lists of cells}, cells as text, with units in the header.
        figures: {"file": PNG beside the section's file, "caption": text}.
    """
    for table in tables:
        assert all(len(row) == len(table["header"]) for row in table["rows"]), table
    assert path.name.endswith(".section.json") and all((path.parent / figure["file"]).is_file() for figure in figures), path
    write_json(path, {"title": title, "text": text, "tables": list(tables), "figures": list(figures)})


def write_json(path: Path, content: Mapping) -> None:
    """Indented UTF-8; an interrupted write leaves nothing behind. NaN has no place in JSON and is refused."""
    write_whole(path, f"{json.dumps(content, indent=4, ensure_ascii=False, allow_nan=False)}\n".encode())


def write_whole(path: Path, content: bytes) -> None:
    """A file that is whole or not there."""
    beside = path.with_name(path.name + ".part")
    beside.write_bytes(content)
    os.replace(beside, path)
