"""One HTML page and one picture about a generated cohort: does it look right, does it have the volumes it was asked for?

    python scripts/report.py GENERATED_DIR --measured generated_volumes.tsv --output report.html
        [--real COHORT_DIR --real_measured real_volumes.tsv] [--reconstruction reconstruction.json]
        [--training TRAINING_DIR] [--facts weights.json]

Measure first, with scripts/measure_volumes.py. The page holds its pictures and opens without a network; the picture lies
beside it as .png. Research tool, not for clinical use.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import html
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from agreement import agreement
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from three_planes import three_planes
from training_curves import draw as draw_curves

QUANTITIES = {
    "ventricles_ml": "lateral ventricles",
    "brain_normalised_ml": "brain, normalised for head size",
    "brain_ml": "brain",
    "icv_ml": "intracranial volume",
}
ROWS_IN_PICTURE = 6
INK = "#808080"  # readable on white and on black
COLOURS = {"generated": "#e07b39", "cohort": "#4a90d9"}
STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2127; --soft: #667; --line: #d8dce2; --note: #fff4e5 }
@media (prefers-color-scheme: dark) {
  :root { --paper: #15181c; --ink: #e4e7eb; --soft: #98a1ab; --line: #363c44; --note: #3a2e1c }
}
body { background: var(--paper); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { margin: 2.2rem 0 .4rem; font-size: 1.25rem }
p, figcaption { max-width: 48rem } .soft, figcaption { color: var(--soft); font-size: .9rem }
.note { background: var(--note); padding: .6rem 1rem; border-radius: .4rem }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .95rem }
th, td { text-align: right; padding: .3rem .8rem; border-bottom: 1px solid var(--line) }
th { color: var(--soft); font-weight: 600 } th:first-child, td:first-child { text-align: left; padding-left: 0 }
table.facts td { text-align: left } img { max-width: 100% }
.picture { background: #fff; border-radius: .4rem; width: 100% } .plots { display: flex; flex-wrap: wrap; gap: 1rem }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }
.gallery figure { margin: 0; font-size: .9rem } .gallery img { width: 100%;  background: #000; border-radius: .3rem }
"""


@dataclass
class Cohort:
    """Volumes of a BIDS folder with what they should be (`expected`) and what was measured in them (`measured`).

    Both tables have the same rows, by participant_id; `expected` has the columns of participants.tsv. Volumes that could
    not be measured are NaN.
    """

    folder: Path
    name: str  # of dataset_description.json
    expected: pd.DataFrame
    measured: pd.DataFrame

    def image(self, participant: str) -> Path:
        """The participant's T1w volume; FileNotFoundError where there is none."""
        found = sorted(self.folder.glob(f"{participant}/**/{participant}*_T1w.nii*"))
        if not found:
            raise FileNotFoundError(f"{self.folder}: no {participant}_T1w.nii.gz below it, though participants.tsv lists it")
        return found[0]

    def quantities(self) -> list[str]:
        """Volumes that are both expected and measured."""
        return [name for name in QUANTITIES if name in self.expected and name in self.measured]

    def sorted_by(self, quantity: str) -> list[str]:
        return list(self.expected[quantity].sort_values(kind="stable").index)


def read_cohort(folder: Path, measured_file: Path, everyone: bool = False) -> Cohort:
    """Join a folder's participants.tsv with a table of measure_volumes.py.

    Args:
        folder: with participants.tsv and sub-*/**/sub-*_T1w.nii.gz.
        measured_file: rows of all or some of its participants.
        everyone: keep those that were not measured.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: measured volumes that participants.tsv lacks; no volume both expected and measured.
    """
    expected, measured = _read_table(folder / "participants.tsv"), _read_table(measured_file)
    if unknown := [name for name in measured.index if name not in expected.index]:
        raise ValueError(f"{measured_file}: {unknown[0]} is not in {folder / 'participants.tsv'}. Measure {folder} itself")
    description = folder / "dataset_description.json"
    name = json.loads(description.read_text(encoding="utf-8")).get("Name", "") if description.is_file() else ""
    rows = expected.index if everyone else measured.index
    cohort = Cohort(folder, name or folder.name, expected.loc[rows], measured.reindex(rows))
    if not cohort.quantities():
        wanted = ", ".join(QUANTITIES)
        raise ValueError(f"{folder / 'participants.tsv'}: nothing to compare, it has none of {wanted}")
    for quantity in cohort.quantities():
        values = cohort.expected[quantity]
        if not pd.api.types.is_numeric_dtype(values) or values.isna().any():
            row = pd.to_numeric(values, errors="coerce").isna().idxmax()
            raise ValueError(f"{folder / 'participants.tsv'}, {row}: {quantity} is {values[row]!r}, a number is needed")
    return cohort


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    table = pd.read_csv(path, sep="\t", dtype={"participant_id": str}, encoding="utf-8-sig")
    if "participant_id" not in table:
        raise ValueError(f"{path}: expected a column participant_id")
    if table["participant_id"].duplicated().any():
        raise ValueError(f"{path}: {table['participant_id'][table['participant_id'].duplicated()].iloc[0]} is there twice")
    return table.set_index("participant_id")


# --- Tables --------------------------------------------------------------------------------------------------------


def agreement_rows(cohort: Cohort, title: str) -> list[list[str]]:
    """For each quantity a row of the agreement table, and one of the trivial answer: always the mean."""
    rows = []
    for quantity in cohort.quantities():
        pairs = pd.concat([cohort.expected[quantity], cohort.measured[quantity]], axis=1, keys=["expected", "measured"])
        pairs = pairs.astype(float).dropna()
        expected = pairs["expected"]
        name = f"{title}: {QUANTITIES[quantity]}"
        try:
            a = agreement(expected, pairs["measured"])
        except ValueError as error:
            rows.append([name, str(len(expected)), str(error), *[""] * 3])
            continue
        r = f"{a['r']:.3f} [{a['r_low']:.3f}, {a['r_high']:.3f}]"
        slope = f"{a['slope']:.2f} [{a['slope_low']:.2f}, {a['slope_high']:.2f}]"
        rows.append([name, str(a["n"]), r, slope, f"{a['bias']:+.1f}", f"{a['mae']:.1f}"])
        trivial_ml = (expected - expected.mean()).abs().mean()
        rows.append(["— always answering the mean", str(a["n"]), "undefined", "0", "0", f"{trivial_ml:.1f}"])
    return rows


def tool_accuracy_rows(facts_file: Path) -> list[list[str]] | str:
    """How well measure_volumes.py measures, as stored beside its weights; or why that is unknown."""
    weights = facts_file.with_suffix(".pt")
    if not facts_file.is_file() or not weights.is_file():
        return f"Unknown: {facts_file.name} is missing."
    facts = json.loads(facts_file.read_text(encoding="utf-8"))
    if facts["sha256"] != hashlib.sha256(weights.read_bytes()).hexdigest():
        return f"Unknown: {facts_file.name} describes other weights than {weights.name}."
    return [
        [
            f"{row['images']}, {row['spacing_mm']:g} mm: {QUANTITIES[row['volume']]}",
            str(row["n"]),
            f"{row['r']:.3f} [{row['r_low']:.3f}, {row['r_high']:.3f}]",
            f"{row['slope']:.2f} [{row['slope_low']:.2f}, {row['slope_high']:.2f}]",
            f"{row['bias']:+.1f}",
            f"{row['mae']:.1f}",
        ]
        for row in facts["accuracy"]
    ]


def reconstruction_rows(summary: dict) -> list[list[str]]:
    """Rows of SSIM, PSNR and mean absolute error, of the bundle's reconstruction.json."""
    titles = {"reconstruction": "Autoencoder", "mean_image": "— always answering the mean training scan"}
    return [
        [title, str(summary[key]["n"]), *(f"{summary[key][m]['mean']:.4g} ± {summary[key][m]['std']:.2g}" for m in METRICS)]
        for key, title in titles.items()
    ]


METRICS = {"ssim": "SSIM", "psnr_db": "PSNR (dB)", "l1": "mean absolute error"}
AGREEMENT_HEADER = ["", "n", "Pearson r [95 %]", "slope [95 %]", "bias (mL)", "mean absolute error (mL)"]


def training_rows(training_dir: Path) -> list[list[str]]:
    """Steps and wall time of each stage, from the TensorBoard files of training's output_dir.

    Time between two runs of a resumed training does not count.
    """
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader  # slow to import

    rows = []
    for stage in sorted(path for path in (training_dir / "tensorboard").glob("*") if path.is_dir()):
        steps, spans = 0, []
        for file in stage.rglob("events.out.tfevents.*"):
            events = [(event.wall_time, event.step) for event in EventFileLoader(str(file)).Load()]
            if events:
                steps = max(steps, max(step for _, step in events))
                spans.append((events[0][0], max(time for time, _ in events)))
        rows.append([f"Training, {stage.name}", f"{steps} steps in {_covered(spans) / 60:.1f} min of wall time"])
    return rows


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


def provenance_rows(generated: Cohort, participants: Sequence[str]) -> list[list[str]]:
    """How the drawn volumes were sampled, from their sidecars."""
    names = ("Sampler", "Steps", "GuidanceScale", "PredictionType", "Precision", "WeightsSHA256", "SoftwareVersions")
    values = {name: [] for name in names}
    for participant in participants:
        image = generated.image(participant)
        sidecar = image.with_name(image.name.split(".")[0] + ".json")
        content = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
        for name in names:
            value = content.get(name, "unknown")
            text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
            if text not in values[name]:
                values[name].append(text)
    return [[f"Sampling, {name}", " / ".join(texts)] for name, texts in values.items()]


# --- Pictures ------------------------------------------------------------------------------------------------------


def evenly(items: Sequence[str], count: int) -> list[str]:
    """`count` of the items from the first to the last, or all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def nearest(cohort: Cohort, quantity: str, wanted: Sequence[float]) -> list[str | None]:
    """For each wanted value a participant near it, none twice, None where the cohort is too small: least total distance."""
    distance = np.abs(np.subtract.outer(np.asarray(wanted, float), cohort.expected[quantity].to_numpy(float)))
    chosen: list[str | None] = [None] * len(wanted)
    for row, column in zip(*linear_sum_assignment(distance)):
        chosen[row] = cohort.expected.index[column]
    return chosen


def draw_scatter(axes, cohorts: dict[str, Cohort], quantity: str, ink: str) -> None:
    """Measured over expected volume, the line of equality between."""
    values = []
    for kind, cohort in cohorts.items():
        if quantity not in cohort.quantities():
            continue
        x, y = cohort.expected[quantity], cohort.measured[quantity].astype(float)
        label = f"{kind} ({'requested' if kind == 'generated' else 'true'}), n = {y.count()}"
        axes.scatter(x, y, s=16, color=COLOURS[kind], alpha=0.8, linewidths=0, label=label)
        values += [*x, *y.dropna()]
    ends = [min(values), max(values)]
    axes.plot(ends, ends, color=ink, linewidth=0.8, label="equal")
    axes.set_xlabel(f"requested or true {QUANTITIES[quantity]} (mL)", color=ink)
    axes.set_ylabel("measured (mL)", color=ink)
    axes.tick_params(colors=ink)
    for spine in axes.spines.values():
        spine.set_color(ink)
    axes.legend(frameon=False, fontsize=8, labelcolor=ink)


def overview(cohorts: dict[str, Cohort], quantity: str) -> bytes:
    """The one picture: generated volumes by requested volume, scans of the same true volume beside them, the scatter."""
    generated = cohorts["generated"]
    shown = {"generated": evenly(generated.sorted_by(quantity), ROWS_IN_PICTURE)}
    if "cohort" in cohorts:
        wanted = generated.expected.loc[shown["generated"], quantity].tolist()
        shown["cohort"] = nearest(cohorts["cohort"], quantity, wanted)
    rows, blocks = len(shown["generated"]), len(shown)

    figure = Figure(figsize=(4.1 * blocks + 5, max(1.3 * rows, 4.5) + 0.6), layout="constrained", facecolor="white")
    pictures, plot = figure.subfigures(1, 2, width_ratios=(4.1 * blocks, 5))
    grid = pictures.subplots(rows, blocks, squeeze=False)
    for column, (kind, participants) in enumerate(shown.items()):
        asked, title = ("requested", "generated") if kind == "generated" else ("true", cohorts[kind].name)
        grid[0, column].set_title(title if len(title) < 48 else f"{title[:46]}…", fontsize=10)
        for row in range(rows):
            axes = grid[row, column]
            axes.set_axis_off()
            if participants[row] is None:
                continue
            planes = three_planes(cohorts[kind].image(participants[row]))
            axes.imshow(planes, cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
            expected = cohorts[kind].expected.loc[participants[row], quantity]
            measured = cohorts[kind].measured.loc[participants[row], quantity]
            text = f"{asked}\n{expected:.0f} mL\n\nmeasured\n" + ("—" if pd.isna(measured) else f"{measured:.0f} mL")
            axes.text(-0.02, 0.5, text, transform=axes.transAxes, ha="right", va="center", fontsize=8)
    pictures.supxlabel(
        f"Rows by {QUANTITIES[quantity]}. The subject's left is at the picture's right. Synthetic, not for clinical use.",
        fontsize=8,
    )
    axes = plot.subplots()
    axes.set_box_aspect(1)
    draw_scatter(axes, cohorts, quantity, "#333333")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def scatter_image(cohorts: dict[str, Cohort], quantity: str) -> bytes:
    """One scatter plot without background, for light and dark pages."""
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    draw_scatter(figure.subplots(), cohorts, quantity, INK)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, transparent=True)
    return buffer.getvalue()


def planes_image(path: Path) -> bytes:
    """The three planes of a volume as a grey PNG."""
    from PIL import Image  # comes with matplotlib

    buffer = io.BytesIO()
    Image.fromarray((three_planes(path) * 255).round().astype(np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


# --- The page ------------------------------------------------------------------------------------------------------


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


def describe(cohort: Cohort) -> str:
    """Name and counts of a cohort, and of the part that was measured."""
    everyone = _read_table(cohort.folder / "participants.tsv")
    listed, measured = f"{len(everyone)} subjects", f"{len(cohort.measured)}"
    if "split" in everyone:
        listed += f" ({_counts(everyone['split'])})"
        measured += f" ({_counts(cohort.expected['split'])})"
    return f"{cohort.name}, {listed}, of which {measured} were measured"


def _counts(splits: pd.Series) -> str:
    return ", ".join(f"{count} {split}" for split, count in splits.value_counts().items())


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
        f"<title>Synthetic brain MRI</title><style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def write_whole(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    partial.write_bytes(content)
    os.replace(partial, path)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", type=Path, metavar="GENERATED_DIR", help="what inference wrote, with participants.tsv")
    parser.add_argument("--measured", type=Path, required=True, help="table of measure_volumes.py for it")
    parser.add_argument("--real", type=Path, metavar="COHORT_DIR", help="BIDS cohort whose participants.tsv has true volumes")
    parser.add_argument("--real_measured", type=Path, help="table of measure_volumes.py for (a part of) it")
    parser.add_argument("--reconstruction", type=Path, help="reconstruction.json of the bundle's evaluation")
    parser.add_argument("--training", type=Path, help="training's output_dir: steps and time are read from it")
    parser.add_argument("--facts", type=Path, nargs="*", default=[], help="flat JSON files to list, such as of weights")
    parser.add_argument("--gallery", type=int, default=64, help="generated volumes to show (default 64)")
    parser.add_argument("--output", type=Path, required=True, help="the page, .html; the picture lies beside it as .png")
    options = parser.parse_args(arguments)
    if (options.real is None) != (options.real_measured is None):
        parser.error("--real and --real_measured go together")
    if options.output.suffix != ".html":
        parser.error(f"--output must end in .html, got {options.output}")
    try:
        cohorts = {"generated": read_cohort(options.generated, options.measured, everyone=True)}
        if options.real:
            cohorts["cohort"] = read_cohort(options.real, options.real_measured)
        quantity = cohorts["generated"].quantities()[0]
        curves = draw_curves(options.training) if options.training else None
        provenance = [["Cohort", describe(cohorts["cohort"])]] if options.real else []
        if options.training:
            provenance += training_rows(options.training)
        for file in options.facts:
            provenance += [[f"{file.stem}, {name}", str(value)] for name, value in json.loads(file.read_text()).items()]
        drawn = evenly(cohorts["generated"].sorted_by(quantity), options.gallery)
        provenance += provenance_rows(cohorts["generated"], drawn)
        reconstruction = json.loads(options.reconstruction.read_text()) if options.reconstruction else None
        picture = overview(cohorts, quantity)
        accuracy_file = Path(__file__).with_name("volume_net.json")
        page = make_page(cohorts, picture, quantity, options.gallery, accuracy_file, reconstruction, provenance, curves)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    write_whole(options.output.with_suffix(".png"), picture)
    write_whole(options.output, page.encode())
    print(f"{options.output} and {options.output.with_suffix('.png')}")


if __name__ == "__main__":
    main()
