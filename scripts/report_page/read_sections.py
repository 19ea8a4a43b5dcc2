"""Read the sections that evaluations wrote: NAME.section.json files, see shared/sections.py."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from shared.files import read_json
from shared.image_files import find_files
from shared.sections import table_sha256

OTHERS = "This describes other volumes than the page shows, or an earlier state of their table."
PNG = b"\x89PNG\r\n\x1a\n"


def find_sections(folders: Sequence[Path]) -> list[dict]:
    """Read all sections below some folders, each once and sorted by path.

    Returns:
        The content of each section, with the "name" and the "path" of its file, and the "path" of each figure.

    Raises:
        FileNotFoundError: a folder or a figure is missing.
        ValueError: a folder has no section, or a section cannot be shown.
    """
    files: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: no such folder. Name the output folder of an evaluation")
        found = find_files(folder, "**/*.section.json", (".json",), skipped=())
        if not found:
            raise ValueError(f"{folder}: no *.section.json below it. Name the output folder of an evaluation")
        files |= dict.fromkeys(path.resolve() for path in found)
    return [_read(path) for path in files]


def name_others(sections: Sequence[dict], folders: Sequence[Path]) -> None:
    """Warn on the page and on screen about sections that describe other volumes than those in the `folders`."""
    shown = set(map(table_sha256, folders))
    for section in sections:
        if section["volumes"] and shown.isdisjoint(section["volumes"]):
            section["text"] = f"{OTHERS}\n\n{section['text']}"
            section["verdict"] = section["verdict"] and f"{OTHERS} {section['verdict']}"
            print(f"{section['path']}: {OTHERS} Evaluate {folders[0]} again", file=sys.stderr)


def _read(path: Path) -> dict:
    section = {"tables": [], "figures": [], "verdict": "", "volumes": []} | read_json(path) | {"name": path.name, "path": path}
    if not all(isinstance(section.get(key), str) for key in ("title", "text", "verdict")):
        raise ValueError(f"{path}: a section needs a title and a text, and its verdict must be a text")
    try:
        section["tables"] = [_table(path, table["header"], table["rows"]) for table in section["tables"]]
        section["figures"] = [
            figure | {"path": _figure(path, figure["file"]), "caption": str(figure.get("caption", ""))}
            for figure in section["figures"]
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: a table needs header and rows, and a figure needs a file ({error!r})") from None
    return section


def _table(path: Path, header: list, rows: list[list]) -> dict[str, list]:
    """Return a table whose cells are text. Numbers become text, and null becomes n/a."""
    for row in (header, *rows):
        if not isinstance(row, list) or any(isinstance(cell, (list, dict)) for cell in row):
            raise ValueError(f"{path}: the row {row} of a table must be a list of texts and numbers")
        if len(row) != len(header):
            raise ValueError(f"{path}: the row {row} has {len(row)} cells, its header {len(header)}")
    header, *rows = [["n/a" if cell is None else str(cell) for cell in row] for row in (header, *rows)]
    return {"header": header, "rows": rows}


def _figure(path: Path, name: str) -> Path:
    figure = path.parent / name
    if figure.parent != path.parent:
        raise ValueError(f"{path}: a figure must be in the folder of its section, got {name!r}")
    if not figure.is_file():
        raise FileNotFoundError(f"{path}: its figure {name} is not in the same folder")
    with open(figure, "rb") as file:
        if file.read(len(PNG)) != PNG:
            raise ValueError(f"{path}: its figure {name} is not a PNG file")
    return figure
