"""One part of an evaluation as a reader sees it: heading, text, tables, figures. A page is made of any number of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .files import write_json

__all__ = ["drop_sections", "write_section"]


def write_section(
    path: str | Path, title: str, text: str, tables: Sequence[Mapping] = (), figures: Sequence[Mapping] = ()
) -> None:
    """Write `NAME.section.json` into an evaluation's folder; `scripts/report.py` of the project shows all that it finds.

    Args:
        path: ends in ".section.json".
        title: of the section.
        text: what was computed on what, with which definition, and what the trivial answer means. Plain text; a blank line
            starts a paragraph.
        tables: {"header": cells, "rows": lists of cells}, cells as text, with units in the header.
        figures: {"file": PNG beside the section's file, "caption": text}.

    Raises:
        ValueError: another ending; a row that has not the cells of its header; a figure that is not there.
    """
    path = Path(path)
    if not path.name.endswith(".section.json"):
        raise ValueError(f"{path}: the name of a section must end in .section.json")
    for table in tables:
        for row in table["rows"]:
            if len(row) != len(table["header"]):
                raise ValueError(f"{path}: the row {list(row)} has {len(row)} cells, its header {len(table['header'])}")
    for figure in figures:
        if not (path.parent / figure["file"]).is_file():
            raise ValueError(f"{path}: the figure {figure['file']} is not beside it")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"title": title, "text": text, "tables": list(tables), "figures": list(figures)})


def drop_sections(folder: str | Path, *names: str) -> None:
    """Remove `NAME.section.json` of an earlier evaluation, so that none of another model stands beside the new ones.

    To be called when nothing is left to refuse, before work starts: a run that ends early leaves no section.
    """
    for name in names:
        (Path(folder) / f"{name}.section.json").unlink(missing_ok=True)
