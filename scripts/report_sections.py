"""Sections that the evaluations wrote for people: NAME.section.json files, read and checked.

A section is {"title", "text" (a blank line starts a paragraph), "tables": [{"header": cells, "rows": lists of cells}],
"figures": [{"file": a PNG beside it, "caption"}]}.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"


def find_sections(folders: Sequence[Path]) -> list[dict]:
    """All sections below the folders, in order of path, none twice; "folder" is added: where it lies.

    Raises:
        FileNotFoundError: no such folder; a figure that is not there.
        ValueError: a folder without sections; a section or figure that is none.
    """
    files: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder. Name one that an evaluation wrote")
        found = sorted(folder.rglob("*.section.json"))
        if not found:
            raise ValueError(f"{folder}: no *.section.json below it. Name a folder that an evaluation wrote")
        files |= dict.fromkeys(path.resolve() for path in found)
    return [_read(path) for path in files]


def _read(path: Path) -> dict:
    try:
        section = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from None
    if not isinstance(section, dict) or not isinstance(section.get("title"), str) or not isinstance(section.get("text"), str):
        raise ValueError(f"{path}: a section needs a title and a text")
    section = {"tables": [], "figures": []} | section | {"folder": path.parent}
    for table in section["tables"]:
        if bad := [row for row in table["rows"] if len(row) != len(table["header"])]:
            raise ValueError(f"{path}: the row {bad[0]} has {len(bad[0])} cells, its header {len(table['header'])}")
    for figure in section["figures"]:
        figure["path"] = path.parent / figure["file"]
        if figure["path"].parent != path.parent:
            raise ValueError(f"{path}: a figure must lie beside the section, got {figure['file']!r}")
        if not figure["path"].is_file():
            raise FileNotFoundError(f"{path}: its figure {figure['file']} is not beside it")
        with open(figure["path"], "rb") as file:
            if file.read(len(PNG)) != PNG:
                raise ValueError(f"{path}: its figure {figure['file']} is no PNG")
    return section
