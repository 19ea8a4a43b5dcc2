"""Tables of the report page, as rows of text: agreement, accuracy of the measuring tool, reconstruction, provenance."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from agreement import agreement
from report_cohort import QUANTITIES, Cohort

METRICS = {"ssim": "SSIM", "psnr_db": "PSNR (dB)", "l1": "mean absolute error"}
AGREEMENT_HEADER = ["", "n", "Pearson r [95 %]", "slope [95 %]", "bias (mL)", "mean absolute error (mL)"]


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
