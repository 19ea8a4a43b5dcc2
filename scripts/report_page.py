"""The report page: HTML, complete in itself."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from report_cohort import QUANTITIES, Cohort, describe, evenly
from report_pictures import planes_image, scatter_image
from report_tables import AGREEMENT_HEADER, METRICS, agreement_rows, reconstruction_rows, tool_accuracy_rows

STYLE = Path(__file__).with_name("report_viewer") / "page.css"


def img(png: bytes, alt: str, css_class: str = "") -> str:
    data = base64.b64encode(png).decode()
    return f'<img class="{css_class}" alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'


def table(header: Sequence[str], rows: Sequence[Sequence[str]], css_class: str = "") -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f'<div class="wide"><table class="{css_class}"><tr>{head}</tr>\n{body}</table></div>'


def gallery(cohort: Cohort, participants: Sequence[str], quantity: str, asked: str) -> str:
    """Three planes of each participant with its covariates, what was measured and the measuring tool's doubts."""
    figures = []
    for participant in participants:
        expected, measured = cohort.expected.loc[participant], cohort.measured.loc[participant]
        volumes = f"{asked} {expected[quantity]:.1f} mL, "
        volumes += "could not be measured" if pd.isna(measured[quantity]) else f"measured {measured[quantity]:.1f} mL"
        others = [f"{name} {expected[name]:g}" if isinstance(expected[name], float) else f"{name} {expected[name]}"
                  for name in cohort.expected if name not in (quantity, "split")]  # fmt: skip
        flags = measured.get("flags")
        doubts = f" · {flags}" if isinstance(flags, str) and flags not in ("", "n/a") else ""
        caption = f"<b>{html.escape(volumes)}</b><br>{html.escape(f'{participant} · ' + ', '.join(others) + doubts)}"
        picture = img(planes_image(cohort.image(participant)), f"{participant}: axial, coronal and sagittal plane")
        figures.append(f"<figure>{picture}<figcaption>{caption}</figcaption></figure>")
    return f'<div class="gallery">{"".join(figures)}</div>'


def make_page(
    cohorts: dict[str, Cohort],
    picture: bytes,
    quantity: str,
    shown: int,
    facts_file: Path,
    reconstruction: dict | None = None,
    provenance: Sequence[Sequence[str]] = (),
    curves: bytes | None = None,
) -> str:
    """The HTML page, complete in itself.

    Args:
        cohorts: "generated", and "cohort" for the scans to compare with.
        picture: PNG of `overview`.
        quantity: by which volumes are sorted.
        shown: volumes in the gallery.
        facts_file: volume_net.json, the measuring tool's accuracy.
        reconstruction: content of the bundle's reconstruction.json.
        provenance: rows of name and value.
        curves: PNG of the training's losses.
    """
    generated, scans = cohorts["generated"], cohorts.get("cohort")
    refused = int(generated.measured[quantity].isna().sum())
    rows = agreement_rows(generated, "Generated, requested against measured")
    if scans:
        rows += agreement_rows(scans, "Scans of the cohort, true against measured")
    accuracy = tool_accuracy_rows(facts_file)
    parts = [
        "<h1>Synthetic brain MRI: a generated cohort</h1>",
        '<p class="note"><b>Synthetic images, made by a generative model; they show no person. '
        "For research only, not for clinical use.</b></p>",
        f"<p>{len(generated.expected)} generated volumes in <code>{html.escape(generated.folder.name)}</code>"
        + (f"; <b>{refused} could not be measured and count in no number below</b>" if refused else "")
        + (f". Beside them scans of: {html.escape(describe(scans))}." if scans else ".")
        + "</p>",
        img(picture, "Generated volumes sorted by requested volume, scans beside them, requested against measured", "picture"),
        "<h2>Do they have the volumes they were asked for?</h2>",
        "<p>The measuring tool knows nothing of what was requested. The same tool on the cohort's scans shows how much of "
        "the scatter is its own. A model that ignored the request would do as the lines <i>always answering the mean</i>.</p>",
        table(AGREEMENT_HEADER, rows),
        '<div class="plots">' + "".join(
            img(scatter_image(cohorts, name), f"measured over requested {QUANTITIES[name]}")
            for name in generated.quantities()
        ) + "</div>",
        "<h2>How well does the measuring tool measure?</h2>",
        "<p>On images that it was not trained on, against their label maps.</p>",
        f"<p>{html.escape(accuracy)}</p>" if isinstance(accuracy, str) else table(AGREEMENT_HEADER, accuracy),
    ]  # fmt: skip
    if reconstruction:
        header = ["held-out scans", "n", *(f"{title}, mean ± SD" for title in METRICS.values())]
        parts += [
            "<h2>What does the autoencoder keep of a scan?</h2>",
            "<p>Intensities 0 to 1, whole volume with background. Nothing generated can be sharper than this.</p>",
            table(header, reconstruction_rows(reconstruction)),
        ]
    if provenance:
        parts += ["<h2>What made them</h2>", table(["", ""], provenance, "facts")]
    if curves:
        parts += ["<h2>How training went</h2>", img(curves, "losses and validation of both stages over their steps")]
    order = generated.sorted_by(quantity)
    chosen = evenly(order, shown)
    parts += [
        f"<h2>Gallery: {len(chosen)} of {len(order)} generated volumes, by requested {QUANTITIES[quantity]}</h2>",
        '<p class="soft">Axial, coronal and sagittal plane at x 4, y -20, z 12 mm of MNI space. Radiological convention: the '
        "subject's left is at the picture's right; in the sagittal plane the front is at the left. Each volume from 0 (black) "
        "to its 99.8th percentile (white).</p>",
        gallery(generated, chosen, quantity, "requested"),
    ]
    if scans and quantity in scans.quantities():
        parts += [
            f"<h2>Scans of the cohort, by true {QUANTITIES[quantity]}</h2>",
            gallery(scans, evenly(scans.sorted_by(quantity), max(shown // 4, 4)), quantity, "true"),
        ]
    body = "\n".join(parts)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Synthetic brain MRI</title><style>{STYLE.read_text()}</style></head>\n<body>\n{body}\n</body></html>\n"
    )
