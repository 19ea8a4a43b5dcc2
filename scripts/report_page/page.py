"""Make the self-contained report page. It is made in parts, so that volumes are read one at a time."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cohorts.cohort import Cohort, evenly, nearest
from cohorts.origin import note_on_edits
from shared.simulated import note_on

from report_page.agreement_table import AGREEMENT_HEADER, agreement_rows, tool_accuracy
from report_page.embedded_volumes import viewer_entry
from report_page.gallery import columns, controls, described, gallery
from report_page.html import escape, folded, img, json_block, paragraphs, table
from report_page.label_names import LabelNames
from report_page.plots import PLOT_SCALE, scatter_image
from report_page.verdict import ORDER, by_question, limits, name_of, verdict

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
PLANES_LABELS = " If a map is not in MNI space, the planes run through the middle of its labels."
TITLES = {"generated": "Generated", "cohort": "Scans", "synthetic": "From label maps"}  # of the lists of the viewer


@dataclass
class Content:
    """The content of the page.

    Cohorts have the key "generated". If there are scans to compare with, they have the key "cohort". If there is a folder of
    volumes from label maps, it has the key "synthetic".
    """

    cohorts: dict[str, Cohort]
    names: dict[str, LabelNames]  # by cohort
    gallery: int  # number of generated volumes in the gallery
    in_viewer: dict[str, int | None]  # cohort -> number of its volumes that the viewer can open; None: all in the gallery
    viewer_spacing_mm: float | None = None  # voxel size in the viewer; None keeps all voxels
    picture: bytes = b""  # PNG of `overview`, for a file of its own
    sections: Sequence[dict] = ()  # from `find_sections`
    curves: Sequence[tuple[str, bytes]] = ()  # from `draw_curves`
    training_note: str = ""  # sentence above the curves
    provenance: list[Sequence[str]] = field(default_factory=list)  # rows of name and value
    drawn: dict[str, list[str]] = field(init=False)  # cohort -> volumes in its gallery
    viewed: list[tuple[str, str]] = field(init=False)  # cohort and volume, in the order of the viewer

    def __post_init__(self) -> None:
        quantity, self.drawn = self.cohorts["generated"].main_quantity(), {}
        for kind, cohort in self.cohorts.items():
            count = self.gallery if kind == "generated" else max(self.gallery // 3, 4)
            self.drawn[kind] = evenly(cohort.sorted_by(quantity if quantity in cohort.numbers() else None), count)
        self.viewed = [(kind, name) for kind, drawn in self.drawn.items() for name in _some(drawn, self.in_viewer[kind])]
        self.sections = by_question(self.sections)

    def numbers(self, kind: str) -> dict[str, int]:
        """Return the number in the viewer of each volume of a cohort."""
        return {name: number for number, (of, name) in enumerate(self.viewed) if of == kind}

    def first_pair(self) -> tuple[int, int]:
        """Return the volumes that the viewer shows first: a generated one, and the scan with the most similar value."""
        generated, scans = list(self.numbers("generated").items()), self.numbers("cohort")
        name, left = generated[len(generated) // 2] if generated else (None, 0)
        if not scans or name is None:
            return left, next((number for number in range(len(self.viewed)) if number != left), left)
        quantity, cohort = self.cohorts["generated"].main_quantity(), self.cohorts["cohort"]
        if quantity not in cohort.numbers():
            return left, next(iter(scans.values()))
        choice = replace(cohort, expected=cohort.expected.loc[list(scans)])
        name = nearest(choice, quantity, [self.cohorts["generated"].expected.loc[name, quantity]])[0]
        return left, scans.get(name, next(iter(scans.values())))


def _some(names: Sequence[str], count: int | None) -> Sequence[str]:
    return names if count is None else evenly(names, count)


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
    labelled = any(generated.from_map(name) for name in content.drawn["generated"][:1])
    anchors = {str(section["path"]): f"evaluation-{number}" for number, section in enumerate(content.sections)}
    sections = list(_sections(content, labelled, anchors))
    yield head("Synthetic brain MRI", ("gallery.js", *(("niivue.umd.js", "viewer.js") if content.viewed else ())))
    notes = [note_on_edits(generated.images.values()), NOTE.format(FROM_LABELS if labelled else "")]
    note = " ".join(filter(None, [*notes, note_on([scans.folder] if scans else [])]))
    yield f'<header><h1>Synthetic brain MRI</h1><p class="note"><b>{note}</b></p>'
    yield from verdict(content.cohorts, content.sections, anchors)
    links = "".join(f'<li><a href="#{element_id}">{escape(title)}</a></li>' for element_id, title, _ in sections)
    yield f"</header><nav>{folded('All sections', f'<ul>{links}</ul>')}</nav>\n<main>\n"
    for element_id, title, parts in sections:
        yield f'<section id="{element_id}"><h2>{escape(title)}</h2>\n'
        yield from parts
        yield "</section>\n"
    yield from _scripts(content)


def head(title: str, scripts: Sequence[str] = ()) -> str:
    """Return the HTML up to <body>. The policy allows only these scripts, which are files of PARTS, and no requests."""
    hashes = " ".join(_hash(_part(name)) for name in scripts) or "'none'"
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src {_hash(_part('page.css'))}; "
        f"script-src {hashes}; base-uri 'none'; form-action 'none'"
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{_part('page.css')}</style></head>\n<body>\n"
    )


def _part(name: str) -> str:
    text = (PARTS / name).read_text(encoding="utf-8")
    end = "</style" if name.endswith(".css") else "</script"
    assert end not in text.lower() and "<!--" not in text, name  # it would end its own element
    return text


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _sections(content: Content, labelled: bool, anchors: dict[str, str]) -> Iterator[tuple[str, str, Iterable[str]]]:
    """Yield id, title and HTML of each section of the page."""
    generated, scans, synthetic = (content.cohorts.get(kind) for kind in TITLES)
    quantity, drawn = generated.main_quantity(), content.drawn["generated"]
    order = f", by {'requested ' if generated.quantities() else ''}{generated.title(quantity)}" if quantity else ""
    yield "gallery", f"Gallery: {len(drawn)} of {len(generated.expected)} generated volumes{order}", _gallery(content, labelled)
    if content.viewed:
        yield "viewer", "Two volumes side by side", [_viewer(content)]
    if scans:
        order = f", by true {scans.title(quantity)}" if quantity in scans.numbers() else ""
        yield "scans", f"Scans of the cohort{order}", _figures(content, "cohort", "true")
    if synthetic:
        title = f"Made from label maps: {len(content.drawn['synthetic'])} of {len(synthetic.expected)} volumes"
        text = "<p>Each volume has the anatomy of the label map beside it.</p>"
        yield "synthetic", title, (text, *_figures(content, "synthetic", "requested"))
    if generated.quantities() and not any(section["name"] == FIGURE_3 for section in content.sections):
        yield "agreement", "Do they show what was requested?", _agreement(content)
    for section in content.sections:
        yield anchors[str(section["path"])], section["title"], _evaluation(section)
    if any(name in TOOL for name in generated.quantities()):
        accuracy, facts = tool_accuracy(NET)
        text = "Volumes by scripts/measure_volumes.py are compared with label maps, in images that it was not trained on."
        accuracy = folded("The accuracy on each set of images", table(AGREEMENT_HEADER, accuracy)) if accuracy else ""
        yield "tool", "How well does the measuring tool measure?", [paragraphs(f"{text}\n\n{facts}"), accuracy]
    if content.provenance:
        yield "provenance", "How they were made", [table(["", ""], content.provenance, "facts")]
    if content.curves:
        plots = "".join(img(png, alt, scale=PLOT_SCALE) for alt, png in content.curves)
        yield "training", "How training went", [paragraphs(content.training_note), f'<div class="plots">{plots}</div>']
    items = "".join(f"<li>{escape(text)}</li>" for text in limits(content.cohorts, content.sections))
    yield "limits", "What this page does not show", [f"<ul>{items}</ul>"]


def _agreement(content: Content) -> Iterator[str]:
    generated, scans = content.cohorts["generated"], content.cohorts.get("cohort")
    unseen = scans and scans.unseen()
    left_out = len(scans.expected) - len(unseen.expected) if scans else 0
    note = f" {left_out} measured scans of the training split are left out, because the measuring network may know them."
    explained = (
        "For generated volumes, measured values are compared with requested ones. For scans of the cohort, they are compared "
        "with true values. The measuring tool does not know the request. Its scatter on the scans shows how much of the "
        "scatter comes from the tool. A model that ignores the request does no better than 'always answering the mean'. "
        f"Values were measured by {' and '.join(generated.tables)}.{note if left_out else ''}"
    )
    rows = agreement_rows(generated, "Generated") + (agreement_rows(unseen, "Scans") if scans else [])
    yield table(AGREEMENT_HEADER, rows) + folded("How to read these numbers", paragraphs(explained))
    yield '<div class="plots">'
    for name, tool, by_tool in generated.readings():
        cohorts = {"generated": by_tool}
        if scans and (tool in scans.tables or not generated.by(name, tool)):
            cohorts["cohort"] = scans.tools().get(tool, scans)
        alt = f"measured over requested {generated.title(name)}{generated.by(name, tool)}"
        yield img(scatter_image(cohorts, name), alt, scale=PLOT_SCALE)
    yield "</div>"


def _evaluation(section: dict) -> Iterator[str]:
    """Yield the verdict, the first table and the first figure. The explanation and everything else are folded.

    If the section answers no question at the top of the page, the table and the figure are folded, too.
    """
    lead, _, rest = section["text"].partition("\n\n")
    if section["verdict"]:
        lead, rest = section["verdict"], section["text"]
    tables = [table(each["header"], each["rows"]) for each in section["tables"]]
    figures = []
    for figure in section["figures"]:
        caption = figure.get("caption", "")
        picture = img(figure["path"].read_bytes(), caption or figure["file"], "picture")
        figures.append(f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>")
    open_ones = 1 if name_of(section) in ORDER else 0
    yield paragraphs(lead) + "".join(tables[:open_ones] + figures[:open_ones])
    if folds := "".join(tables[open_ones:] + figures[open_ones:]) + paragraphs(rest):
        more = "More tables and figures, and how" if tables[open_ones:] + figures[open_ones:] else "How"
        yield folded(f"{more} to read these numbers", folds)


def _gallery(content: Content, labelled: bool) -> Iterator[str]:
    generated, drawn = content.cohorts["generated"], content.drawn["generated"]
    found = columns(generated)
    hint = "Click a picture to open it at the left of the viewer. With the shift key, it opens at the right."
    hint = f'<p class="soft show">{hint}</p>' if content.viewed else ""
    yield hint + folded("What the pictures show", f"<p>{PLANES}{PLANES_LABELS if labelled else ''}</p>")
    yield controls(found, len(drawn))
    yield from _figures(content, "generated", "requested", found, "figures")


def _figures(content: Content, kind: str, asked: str, found: Sequence = (), element_id: str = "") -> Iterator[str]:
    cohort, drawn = content.cohorts[kind], content.drawn[kind]
    return gallery(cohort, drawn, asked, content.names[kind], content.numbers(kind), found, element_id)


def _viewer(content: Content) -> str:
    words = {"generated": "generated volumes", "cohort": "scans", "synthetic": "volumes from label maps"}
    counts, lists, first = [], [], content.first_pair()
    for kind, numbers in {kind: content.numbers(kind) for kind in content.cohorts}.items():
        if not numbers:
            continue
        cohort = content.cohorts[kind]
        counts.append(f"{len(numbers)} of {len(cohort.expected)} {words[kind]}")
        options = "".join(
            f'<option value="{number}">{escape(described(cohort, name))}</option>' for name, number in numbers.items()
        )
        lists.append(f'<optgroup label="{TITLES[kind]}">{options}</optgroup>')
    spacing = content.viewer_spacing_mm
    text = f"{', '.join(counts)} {'are' if len(content.viewed) > 1 else 'is'} inside this page, with 8 bits and " + (
        f"resampled to {spacing:g} mm" if spacing else "with all voxels"
    )
    template = _part("viewer.html")
    parts = {"LEFT": str(first[0]), "RIGHT": str(first[1]), "COUNTS": text, "OPTIONS": "".join(lists)}
    for name, part in (parts | {"LICENCES": escape(_part("niivue.LICENSE.txt"))}).items():
        template = template.replace(f"{{{name}}}", part)
    return template


def _scripts(content: Content) -> Iterator[str]:
    closing = '<form method="dialog"><button>Close</button></form>'
    yield f'<dialog id="enlarged" aria-label="A volume in full width"><div></div>{closing}</dialog>\n'
    yield f"<script>{_part('gallery.js')}</script>\n"
    if not content.viewed:
        return
    entries = []
    for number, (kind, name) in enumerate(content.viewed):
        settings = (content.names[kind], content.viewer_spacing_mm, kind != "cohort")
        entry, data = viewer_entry(content.cohorts[kind], name, *settings)
        entries.append(entry | {"name": name})
        for part, text in data.items():
            yield f'<script type="application/gzip" id="volume-{number}-{part}">{text}</script>\n'
    yield json_block("volumes", entries) + "\n"
    yield f"<script>{_part('niivue.umd.js')}</script>\n<script>{_part('viewer.js')}</script>\n"
