"""Write one answer of conditioning.py: a section of the report page with its figures and files of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from shared.files import atomic, save_figure, write_json
from shared.sections import write_section
from shared.simulated import note_on

NOTICE = "All generated volumes are synthetic. For research, not for clinical use."


@dataclass
class ReportSection:
    """The content of the files that one answer writes."""

    name: str  # NAME in NAME.section.json
    title: str
    text: str  # paragraphs, separated by blank lines
    tables: list[dict]  # each has "header" and "rows"; all cells are text
    figures: dict[str, tuple[Figure, str]]  # name of the PNG -> figure, caption
    numbers: dict[str, dict | pd.DataFrame] = field(default_factory=dict)  # name of the JSON or TSV -> content
    scans: Sequence[Path] = ()  # folders of the scans that it shows; text and figures say so if these are simulated
    verdict: str = ""  # the result in a few short sentences
    volumes: Sequence[Path] = ()  # folders of the generated volumes that it describes
    edits: str = ""  # see `note_on_edits`; text and figures say so

    def write(self, output: Path) -> list[str]:
        """Write all files into a folder and return their names."""
        note = " ".join(filter(None, [self.edits, note_on(self.scans)]))
        for file_name, (figure, _) in self.figures.items():
            if note:
                figure.supxlabel(f"{figure.get_supxlabel()} {note}".strip(), fontsize=8, wrap=True)
            save_figure(output / file_name, figure, dpi=110)
        for file_name, content in self.numbers.items():
            if isinstance(content, dict):
                write_json(output / file_name, content)
            else:
                with atomic(output / file_name) as file:
                    content.to_csv(file, sep="\t", index=False, float_format="%.4g", na_rep="n/a")
        section = f"{self.name}.section.json"
        captions = [{"file": file_name, "caption": caption} for file_name, (_, caption) in self.figures.items()]
        text = "\n\n".join(filter(None, [self.text, self.edits]))
        write_section(output / section, self.title, text, self.tables, captions, self.scans, self.verdict, self.volumes)
        return [*self.figures, *self.numbers, section]
