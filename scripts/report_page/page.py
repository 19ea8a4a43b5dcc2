"""Make the self-contained report page. It is made in parts, so that volumes are read one at a time."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cohorts.cohort import Cohort, describe, evenly
from shared.simulated import note_on

from report_page.agreement_table import AGREEMENT_HEADER, agreement_rows, tool_accuracy
from report_page.embedded_volumes import viewer_entry
from report_page.gallery import columns, controls, gallery
from report_page.html import escape, img, json_block, paragraphs, table
from report_page.label_names import LabelNames
from report_page.plots import scatter_image

PARTS = Path(__file__).with_name("viewer")
NET = Path(__file__).parents[1] / "measurement" / "volume_net.pt"  # the network of scripts/measure_volumes.py
NOTE = "Synthetic images, made by a generative model{}. For research only, not for clinical use."
FROM_LABELS = " from label maps. Each image has the anatomy of its map"
FIGURE_3 = "conditioning.section.json"  # section of scripts/conditioning.py with more details
TOOL = ("ventricles_ml", "brain_ml", "icv_ml", "brain_normalised_ml")  # quantities of scripts/measure_volumes.py
PLANES = (
    "Axial, coronal and sagittal plane at x 4, y -20, z 12 mm in MNI space. Radiological convention: the subject's left is at "
    "the picture's right, and the front of the sagittal plane is at the left. Black is 0, and white is the volume's 99.8th "
    "percentile."
)
PLANES_LABELS = (
    " The label map is below its volume. If a map is not in MNI space, the planes run through the middle of its labels."
)


@dataclass
class Content:
    """The content of the page. Cohorts have the key "generated" and, if there are scans to compare with, "cohort"."""

    cohorts: dict[str, Cohort]
    names: LabelNames
    gallery: int  # number of generated volumes in the gallery
    in_viewer: dict[str, int]  # cohort -> number of its volumes that the viewer can open
    viewer_spacing_mm: float | None = None  # voxel size in the viewer; None keeps all voxels
    picture: bytes = b""  # PNG of `overview`
    sections: Sequence[dict] = ()  # from `find_sections`
    curves: bytes | None = None  # PNG of `draw_curves`
    provenance: list[Sequence[str]] = field(default_factory=list)  # rows of name and value
    drawn: dict[str, list[str]] = field(init=False)  # cohort -> volumes in its gallery
    viewed: list[tuple[str, str]] = field(init=False)  # cohort and volume, in the order of the viewer

    def __post_init__(self) -> None:
        quantity, self.drawn = self.cohorts["generated"].main_quantity(), {}
        for kind, cohort in self.cohorts.items():
            count = self.gallery if kind == "generated" else max(self.gallery // 4, 4)
            self.drawn[kind] = evenly(cohort.sorted_by(quantity if quantity in cohort.numbers() else None), count)
        self.viewed = [(kind, name) for kind, drawn in self.drawn.items() for name in evenly(drawn, self.in_viewer[kind])]

    def numbers(self, kind: str) -> dict[str, int]:
        """Return the number in the viewer of each volume of a cohort."""
        return {name: number for number, (of, name) in enumerate(self.viewed) if of == kind}


def page(content: Content) -> Iterator[str]:
    """Yield the HTML of the page in parts."""
    size = 0
    for part in _parts(content):
        size += len(part)
        yield part
    text = f"This page contains everything that it shows ({size / 1e6:.1f} MB) and uses no network."
    yield f'</main>\n<footer class="soft">{text}</footer>\n</body></html>\n'


def _parts(content: Content) -> Iterator[str]:
    generated, scans = content.cohorts["generated"], content.cohorts.get("cohort")
    labelled = any(generated.label_map(name) for name in content.drawn["generated"][:1])
    sections = list(_sections(content, labelled))
    yield _head(with_viewer=bool(content.viewed))
    yield f"<header><h1>Synthetic brain MRI: a generated cohort</h1>{_note(NOTE.format(FROM_LABELS if labelled else ''))}"
    yield _summary(content)
    if note := note_on([scans.folder] if scans else []):
        yield _note(note)
    links = "".join(f'<li><a href="#{element_id}">{escape(title)}</a></li>' for element_id, title, _ in sections)
    yield f'</header><nav aria-label="On this page"><ul>{links}</ul></nav>\n<main>\n'
    alt = "Generated volumes in rows" + (", with scans next to them" if scans else "")
    yield img(content.picture, alt + (", measured against requested values" if generated.quantities() else ""), "picture")
    for element_id, title, parts in sections:
        yield f'<section id="{element_id}"><h2>{escape(title)}</h2>\n'
        yield from parts
        yield "</section>\n"
    yield from _scripts(content)


def _head(with_viewer: bool) -> str:
    """Return the HTML up to <body>. The policy allows only the page's own scripts, and no requests."""
    scripts = [_part("gallery.js")] + ([_part("niivue.umd.js"), _part("viewer.js")] if with_viewer else [])
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src {_hash(_part('page.css'))}; "
        f"script-src {' '.join(map(_hash, scripts))}; base-uri 'none'; form-action 'none'"
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


def _note(text: str) -> str:
    return f'<p class="note"><b>{text}</b></p>'


def _summary(content: Content) -> str:
    generated, scans = content.cohorts["generated"], content.cohorts.get("cohort")
    text = f"{len(generated.expected)} generated volumes in <code>{escape(generated.folder.resolve().name)}</code>"
    if generated.quantities():
        refused = int(generated.measured[generated.main_quantity()].isna().sum())
        text += f"; <b>{refused} could not be measured and do not count in the numbers below</b>" if refused else ""
    return f"<p>{text}.{f' Scans for comparison: {escape(describe(scans))}.' if scans else ''}</p>"


def _sections(content: Content, labelled: bool) -> Iterator[tuple[str, str, Iterable[str]]]:
    """Yield id, title and HTML of each section of the page."""
    generated, scans = content.cohorts["generated"], content.cohorts.get("cohort")
    if generated.quantities() and not any(section["name"] == FIGURE_3 for section in content.sections):
        yield "agreement", "Do they show what was requested?", _agreement(content)
    for number, section in enumerate(content.sections):
        yield f"evaluation-{number}", section["title"], _evaluation(section)
    if any(name in TOOL for name in generated.quantities()):
        accuracy, limits = tool_accuracy(NET)
        text = "Volumes by scripts/measure_volumes.py are compared with label maps, in images that it was not trained on."
        parts = [paragraphs(f"{text}\n\n{limits}"), table(AGREEMENT_HEADER, accuracy) if accuracy else ""]
        yield "tool", "How well does the measuring tool measure?", parts
    if content.provenance:
        yield "provenance", "How they were made", [table(["", ""], content.provenance, "facts")]
    if content.curves:
        curves = img(content.curves, "loss and validation of each stage over its steps", "plain")
        yield "training", "How training went", [curves]
    if content.viewed:
        yield "viewer", "Two volumes side by side", [_viewer(content)]
    quantity, drawn = generated.main_quantity(), content.drawn["generated"]
    order = f", by {'requested ' if generated.quantities() else ''}{generated.title(quantity)}" if quantity else ""
    yield "gallery", f"Gallery: {len(drawn)} of {len(generated.expected)} generated volumes{order}", _gallery(content, labelled)
    if scans:
        order = f", by true {scans.title(quantity)}" if quantity in scans.numbers() else ""
        figures = gallery(scans, content.drawn["cohort"], "true", content.names, content.numbers("cohort"))
        yield "scans", f"Scans of the cohort{order}", figures


def _agreement(content: Content) -> Iterator[str]:
    generated, scans = content.cohorts["generated"], content.cohorts.get("cohort")
    unseen = scans and scans.unseen()
    left_out = len(scans.expected) - len(unseen.expected) if scans else 0
    note = f" {left_out} measured scans of the training split are left out, because the measuring network may know them."
    yield (
        "<p>For generated volumes, measured values are compared with requested ones. For scans of the cohort, they are "
        "compared with true values. The measuring tool does not know the request. Its scatter on the scans shows how much of "
        "the scatter comes from the tool. A model that ignores the request would do no better than "
        "<i>always answering the mean</i>. "
        f"Values were measured by {escape(' and '.join(generated.tables))}.{note if left_out else ''}</p>"
    )
    rows = agreement_rows(generated, "Generated") + (agreement_rows(unseen, "Scans") if scans else [])
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
    generated, drawn = content.cohorts["generated"], content.drawn["generated"]
    found = columns(generated)
    hint = " Click a picture to open it at the left of the viewer. With the shift key, it opens at the right."
    hint = f'<span class="show">{hint}</span>' if content.viewed else ""
    yield f'<p class="soft">{PLANES}{PLANES_LABELS if labelled else ""}{hint}</p>'
    yield controls(found, len(drawn))
    yield from gallery(generated, drawn, "requested", content.names, content.numbers("generated"), found, "figures")


def _viewer(content: Content) -> str:
    counts = [f"{len(content.numbers('generated'))} of {len(content.cohorts['generated'].expected)} generated volumes"]
    if scans := content.numbers("cohort"):
        counts.append(f"{len(scans)} of {len(content.cohorts['cohort'].expected)} scans")
    spacing = content.viewer_spacing_mm
    text = f"{' and '.join(counts)} {'are' if len(content.viewed) > 1 else 'is'} inside this page, with 8 bits and " + (
        f"resampled to {spacing:g} mm" if spacing else "with all voxels"
    )
    options = "".join(
        f'<option value="{number}">{escape(name)}{" (scan)" if kind == "cohort" else ""}</option>'
        for number, (kind, name) in enumerate(content.viewed)
    )
    template = _part("viewer.html")
    for name, part in {"COUNTS": text, "OPTIONS": options, "LICENCES": escape(_part("niivue.LICENSE.txt"))}.items():
        template = template.replace(f"{{{name}}}", part)
    return template


def _scripts(content: Content) -> Iterator[str]:
    yield f"<script>{_part('gallery.js')}</script>\n"
    if not content.viewed:
        return
    entries = []
    for number, (kind, name) in enumerate(content.viewed):
        settings = (content.names, content.viewer_spacing_mm, kind == "generated")
        entry, data = viewer_entry(content.cohorts[kind], name, *settings)
        entries.append(entry | {"name": name})
        for part, text in data.items():
            yield f'<script type="application/gzip" id="volume-{number}-{part}">{text}</script>\n'
    yield json_block("volumes", entries) + "\n"
    yield f"<script>{_part('niivue.umd.js')}</script>\n<script>{_part('viewer.js')}</script>\n"
