"""Write the result of one evaluation as a section of the report page, with heading, text, tables and figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from .files import refuse_unwritable, sha256, write_json
from .simulated import note_on


def write_section(
    path: str | Path,
    title: str,
    text: str,
    tables: Sequence[Mapping] = (),
    figures: Sequence[Mapping] = (),
    scans: Iterable[str | Path] = (),
    verdict: str = "",
    volumes: Iterable[str | Path] = (),
) -> None:
    """Write `NAME.section.json` into the folder of an evaluation. `scripts/report.py` of the project shows all sections.

    Args:
        path: file whose name ends in ".section.json".
        title: heading of the section.
        text: plain text that describes the data, the scores and the trivial answer. A blank line starts a paragraph.
        tables: tables as {"header": cells, "rows": lists of cells}; cells are text, and the header states the units.
        figures: figures as {"file": name of a PNG in the same folder, "caption": text}.
        scans: files or folders of the scans that the text calls so. If they are simulated, the text ends with this fact.
        verdict: the result in one to three short sentences, for the top of the report page.
        volumes: folders of the generated volumes that the section describes. The page warns if it shows other volumes.
    """
    path = Path(path)
    assert path.name.endswith(".section.json"), path
    for table in tables:
        assert {len(row) for row in table["rows"]} <= {len(table["header"])}, table
    for figure in figures:
        assert (path.parent / figure["file"]).is_file(), figure
    text = "\n\n".join(filter(None, [text, note_on(scans)]))
    content = {"title": title, "verdict": verdict, "text": text, "tables": list(tables), "figures": list(figures)}
    write_json(path, content | {"volumes": list(filter(None, map(table_sha256, volumes)))})


def table_sha256(folder: str | Path) -> str | None:
    """Return the SHA-256 of participants.tsv, which matches a section with a folder of volumes; None without a table."""
    table = Path(folder) / "participants.tsv"
    return sha256(table) if table.is_file() else None


def drop_sections(folder: str | Path, *names: str) -> None:
    """Remove `NAME.section.json` of an earlier evaluation, so that a page does not mix sections of two models.

    Call it after the input is checked and before work starts, so that an interrupted run leaves no section. A folder that
    cannot be written is refused.
    """
    for name in names:
        path = Path(folder) / f"{name}.section.json"
        refuse_unwritable(path)
        path.unlink(missing_ok=True)
