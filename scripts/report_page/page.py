"""The report page: HTML, complete in itself, in parts so that volumes are read one at a time."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cohorts.cohort import Cohort, describe, evenly
from shared.files import read_json

from report_page.agreement_table import AGREEMENT_HEADER, agreement_rows, tool_accuracy
from report_page.embedded_volumes import viewer_entry
from report_page.gallery import columns, controls, gallery
from report_page.html import escape, img, json_block, paragraphs, table
from report_page.label_names import LabelNames
from report_page.plots import scatter_image

PARTS = Path(__file__).with_name("viewer")
NOTE = '<p class="note"><b>Synthetic images, made by a generative model. For research only, not for clinical use.</b></p>'
NOTE_LABELS = (
    '<p class="note"><b>Synthetic images, made by a generative model from label maps; each has the anatomy of its map. '
    "For research only, not for clinical use.</b></p>"
)
NOTE_SIMULATED = (
    '<p class="note"><b>The scans of this cohort are simulated heads, nobody\'s: where this page says real, scan or '
    "participant, it means these.</b></p>"
)
SIMULATOR = "make_demo_data.py"  # in GeneratedBy of its data sets' dataset_description.json
FIGURE_3 = "conditioning.section.json"  # of scripts/conditioning.py: requested against measured, with more beside it
TOOL = ("ventricles_ml", "brain_ml", "icv_ml", "brain_normalised_ml")  # what scripts/measure_volumes.py measures
PLANES = (
    "Axial, coronal and sagittal plane at x 4, y -20, z 12 mm of MNI space. Radiological convention: the subject's left is at "
    "the picture's right; in the sagittal plane the front is at the left. Each volume from 0 (black) to its 99.8th percentile "
    "(white)."
)
PLANES_LABELS = " Below each volume its label map; of one that is not in MNI space, planes through the middle of its labels."


@dataclass
class Content:
    """What the page shows.

    Args:
        cohorts: "generated", and "cohort" for the scans to compare with.
        picture: PNG of `overview`.
        names: of the label maps' values.
        shown: volumes in the gallery.
        in_viewer: generated volumes inside the page for the viewer, among those of the gallery.
        scans_in_viewer: the same for scans; scans of persons are whole heads, so none unless told.
        viewer_spacing_mm: volumes in the viewer are resampled to it; None: as they are.
        facts_file: volume_net.json, the measuring tool's accuracy.
        sections: of evaluations, as `report_sections.find_sections` gives them.
        provenance: rows of name and value.
        curves: PNG of the training's losses.
    """

    cohorts: dict[str, Cohort]
    picture: bytes
    names: LabelNames
    shown: int
    in_viewer: int
    facts_file: Path
    scans_in_viewer: int = 0
    viewer_spacing_mm: float | None = None
    sections: Sequence[dict] = ()
    provenance: Sequence[Sequence[str]] = ()
    curves: bytes | None = None
    drawn: dict[str, list[str]] = field(init=False)  # kind of cohort -> volumes of its gallery
    viewed: list[tuple[str, str]] = field(init=False)  # kind and volume, in the viewer

    def __post_init__(self) -> None:
        self.drawn = {"generated": self._chosen("generated", self.shown)}
        if "cohort" in self.cohorts:
            self.drawn["cohort"] = self._chosen("cohort", max(self.shown // 4, 4))
        counts = {"generated": self.in_viewer, "cohort": self.scans_in_viewer}
        self.viewed = [(kind, name) for kind, drawn in self.drawn.items() for name in evenly(drawn, counts[kind])]

    def _chosen(self, kind: str, count: int) -> list[str]:
        quantity = self.cohorts["generated"].main_quantity()
        cohort = self.cohorts[kind]
        return evenly(cohort.sorted_by(quantity if quantity in cohort.numbers() else None), count)

    def numbers(self, kind: str) -> dict[str, int]:
        """Volume -> its number in the viewer."""
        return {name: number for number, (of, name) in enumerate(self.viewed) if of == kind}


def page(content: Content) -> Iterator[str]:
    """The page's HTML, in parts."""
    generated = content.cohorts["generated"]
    labelled = any(generated.label_map(name) for name in content.drawn["generated"][:1])
    sections = list(_sections(content, labelled))
    links = "".join(f'<li><a href="#{element_id}">{escape(title)}</a></li>' for element_id, title, _ in sections)
    size = 0
    alt = "Generated volumes in rows" + (", scans beside them" if "cohort" in content.cohorts else "")
    alt += ", measured values against requested ones" if generated.quantities() else ""
    for part in (
        _head(with_viewer=bool(content.viewed)),
        "<header>",
        "<h1>Synthetic brain MRI: a generated cohort</h1>",
        NOTE_LABELS if labelled else NOTE,
        _summary(content),
        NOTE_SIMULATED if "cohort" in content.cohorts and _is_simulated(content.cohorts["cohort"]) else "",
        f'</header><nav aria-label="On this page"><ul>{links}</ul></nav>\n<main>\n',
        img(content.picture, alt, "picture"),
    ):
        size += len(part)
        yield part
    for element_id, title, parts in sections:
        yield f'<section id="{element_id}"><h2>{escape(title)}</h2>\n'
        for part in parts:
            size += len(part)
            yield part
        yield "</section>\n"
    for part in _scripts(content):
        size += len(part)
        yield part
    text = f"This page holds all that it shows, {size / 1e6:.1f} MB, and asks no network."
    yield f'</main>\n<footer class="soft">{text}</footer>\n</body></html>\n'


def _head(with_viewer: bool) -> str:
    """Up to <body>. The policy lets the page's own scripts run and nothing else: no other script, no request to anywhere."""
    scripts = [_part("gallery.js")] + ([_part("niivue.umd.js"), _part("viewer.js")] if with_viewer else [])
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data: blob:",
            f"style-src {_hash(_part('page.css'))}",
            f"script-src {' '.join(map(_hash, scripts))}",
            "base-uri 'none'; form-action 'none'",
        ]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>Synthetic brain MRI</title><style>{_part('page.css')}</style></head>\n<body>\n"
    )


def _part(name: str) -> str:
    text = (PARTS / name).read_text(encoding="utf-8")
    end = "</style" if name.endswith(".css") else "</script"
    assert end not in text.lower() and "<!--" not in text, name  # it would end its own element
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _is_simulated(cohort: Cohort) -> bool:
    description = cohort.folder / "dataset_description.json"
    return description.is_file() and SIMULATOR in str(read_json(description).get("GeneratedBy"))


def _summary(content: Content) -> str:
    generated, scans = content.cohorts["generated"], content.cohorts.get("cohort")
    text = f"{len(generated.expected)} generated volumes in <code>{escape(generated.folder.resolve().name)}</code>"
    if generated.quantities():
        refused = int(generated.measured[generated.main_quantity()].isna().sum())
        text += f"; <b>{refused} could not be measured and count in no number below</b>" if refused else ""
    text += f". Beside them scans of: {escape(describe(scans))}." if scans else "."
    return f"<p>{text}</p>"


def _sections(content: Content, labelled: bool) -> Iterator[tuple[str, str, Iterable[str]]]:
    """Id, title and HTML of each part of the page."""
    generated, scans = content.cohorts["generated"], content.cohorts.get("cohort")
    if generated.quantities() and not any(section["name"] == FIGURE_3 for section in content.sections):
        yield "agreement", "Do they have what they were asked for?", _agreement(content)
    for number, section in enumerate(content.sections):
        yield f"evaluation-{number}", section["title"], _evaluation(section)
    if any(name in TOOL for name in generated.quantities()):
        accuracy, limits = tool_accuracy(content.facts_file)
        yield "tool", "How well does the measuring tool measure?", [
            "<p>Volumes, by scripts/measure_volumes.py, on images that it was not trained on, against their label maps.</p>",
            f"<p>{escape(limits)}</p>",
            table(AGREEMENT_HEADER, accuracy) if accuracy else "",
        ]  # fmt: skip
    if content.provenance:
        yield "provenance", "What made them", [table(["", ""], content.provenance, "facts")]
    if content.curves:
        curves = img(content.curves, "losses and validation of both stages over their steps", "plain")
        yield "training", "How training went", [curves]
    if content.viewed:
        yield "viewer", "Two volumes side by side", [_viewer(content)]
    quantity = generated.main_quantity()
    order = f", by {'requested ' if generated.quantities() else ''}{generated.title(quantity)}" if quantity else ""
    drawn = content.drawn["generated"]
    yield "gallery", f"Gallery: {len(drawn)} of {len(generated.expected)} generated volumes{order}", _gallery(content, labelled)
    if scans:
        by = f", by true {scans.title(quantity)}" if quantity in scans.numbers() else ""
        figures = gallery(scans, content.drawn["cohort"], "true", content.names, content.numbers("cohort"))
        yield "scans", f"Scans of the cohort{by}", figures


def _agreement(content: Content) -> Iterator[str]:
    generated, scans = content.cohorts["generated"], content.cohorts.get("cohort")
    left_out = len(scans.expected) - len(scans.unseen().expected) if scans else 0
    note = " {} measured scans of the training split are left out: a network that measures may know them."
    note = note.format(left_out) if left_out else ""
    yield (
        "<p>Generated volumes: requested against measured values. Scans of the cohort: true against measured ones. The "
        "measuring tool knows nothing of what was requested; on the scans it shows how much of the scatter is its own. A model "
        "that ignored the request would do as the lines <i>always answering the mean</i>. "
        f"Measured values: by {escape(' and '.join(generated.tables))}.{escape(note)}</p>"
    )
    rows = agreement_rows(generated, "Generated")
    if scans:
        rows += agreement_rows(scans.unseen(), "Scans")
    yield table(AGREEMENT_HEADER, rows)
    yield '<div class="plots">'
    for name, tool, by_tool in generated.readings():
        cohorts = {"generated": by_tool}
        if scans and (tool in scans.tables or not generated.by(name, tool)):
            cohorts["cohort"] = scans.tools().get(tool, scans)
        yield img(scatter_image(cohorts, name), f"measured over requested {generated.title(name)}{generated.by(name, tool)}")
    yield "</div>"


def _evaluation(section: dict) -> Iterator[str]:
    yield paragraphs(section["text"])
    for each in section["tables"]:
        yield table(each["header"], each["rows"])
    for figure in section["figures"]:
        caption = figure.get("caption", "")
        picture = img(figure["path"].read_bytes(), caption or figure["file"], "picture")
        yield f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _gallery(content: Content, labelled: bool) -> Iterator[str]:
    generated = content.cohorts["generated"]
    drawn = content.drawn["generated"]
    found = columns(generated)
    yield f'<p class="soft">{PLANES}{PLANES_LABELS if labelled else ""}'
    if content.viewed:
        yield '<span class="show"> Click a picture to see it at the left of the viewer, with the shift key at the right.</span>'
    yield "</p>"
    yield controls(generated, found, len(drawn))
    yield from gallery(generated, drawn, "requested", content.names, content.numbers("generated"), found, "figures")


def _viewer(content: Content) -> str:
    template = _part("viewer.html")
    counts = [f"{len(content.numbers('generated'))} of {len(content.cohorts['generated'].expected)} generated volumes"]
    if scans := content.numbers("cohort"):
        counts.append(f"{len(scans)} of {len(content.cohorts['cohort'].expected)} scans")
    spacing = content.viewer_spacing_mm
    text = f"{' and '.join(counts)} {'are' if len(content.viewed) > 1 else 'is'} inside this page for it, " + (
        f"resampled to {spacing:g} mm" if spacing else "with all their voxels"
    )
    options = "".join(
        f'<option value="{number}">{escape(name)}{" (scan)" if kind == "cohort" else ""}</option>'
        for number, (kind, name) in enumerate(content.viewed)
    )
    parts = {"COUNTS": escape(text), "OPTIONS": options, "LICENCES": escape(_part("niivue.LICENSE.txt"))}
    for name, part in parts.items():
        template = template.replace(f"{{{name}}}", part)
    return template


def _scripts(content: Content) -> Iterator[str]:
    yield f"<script>{_part('gallery.js')}</script>\n"
    if not content.viewed:
        return
    entries = []
    for number, (kind, name) in enumerate(content.viewed):
        entry, data = viewer_entry(
            content.cohorts[kind], name, content.names, content.viewer_spacing_mm, synthetic=kind == "generated"
        )
        entries.append(entry | {"name": name})
        for part, text in data.items():
            yield f'<script type="application/gzip" id="volume-{number}-{part}">{text}</script>\n'
    yield json_block("volumes", entries) + "\n"
    yield f"<script>{_part('niivue.umd.js')}</script>\n<script>{_part('viewer.js')}</script>\n"
