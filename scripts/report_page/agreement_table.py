"""Tables of the report page, as rows of text: agreement, accuracy of the measuring tool, provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from cohorts.agreement import agreement, agreement_cells, decimals_of, mean_answer_error
from cohorts.cohort import QUANTITIES, Cohort
from shared.files import read_json

AGREEMENT_HEADER = ["", "n", "Pearson r [95 %]", "slope [95 %]", "bias", "mean absolute error"]


def agreement_rows(cohort: Cohort, title: str) -> list[list[str]]:
    """For each quantity a row of the agreement table, and one of the trivial answer: always the mean."""
    rows = []
    for quantity, tool, by_tool in cohort.readings():
        pairs = by_tool.pairs(quantity)
        name = f"{title}: {cohort.title(quantity)}{cohort.by(quantity, tool)}"
        try:
            a = agreement(pairs["expected"], pairs["measured"])
        except ValueError as error:
            rows.append([name, str(len(pairs)), str(error), *[""] * 3])
            continue
        decimals, unit = decimals_of(pairs["expected"]), cohort.unit(quantity)
        rows.append([name, str(a["n"]), *agreement_cells(a, decimals, unit)])
        error = f"{mean_answer_error(pairs['expected']):.{decimals}f} {unit}".strip()
        rows.append(["— always answering the mean", str(a["n"]), "undefined", "0", "0", error])
    return rows


def tool_accuracy(facts_file: Path) -> tuple[list[list[str]], str]:
    """How well measure_volumes.py measures, as stored beside its weights, and the limits of that; no rows if unknown."""
    weights = facts_file.with_suffix(".pt")
    if not facts_file.is_file() or not weights.is_file():
        return [], f"Unknown: {facts_file.name} is missing."
    facts = read_json(facts_file)
    if facts["sha256"] != hashlib.sha256(weights.read_bytes()).hexdigest():
        return [], f"Unknown: {facts_file.name} describes other weights than {weights.name}."
    rows = []
    for row in facts["accuracy"]:
        title, unit = QUANTITIES[row["volume"]]
        rows.append([f"{row['images']}, {row['spacing_mm']:g} mm: {title}", str(row["n"]), *agreement_cells(row, 1, unit)])
    return rows, facts["limits"]


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
        time = f"{steps} steps in {_covered(spans) / 60:.1f} min of wall time"
        rows.append([f"Training, {stage.name}", f"{time}, without those of other weights, if it went on from any"])
    return rows


def _covered(spans: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, end = 0.0, float("-inf")
    for start, stop in sorted(spans):
        total += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return total


SAMPLING = ("Sampler", "Steps", "GuidanceScale", "PredictionType", "Precision", "WeightsSHA256", "SoftwareVersions")
SYNTHESIS = ("LabelTable", "DeformationMm", "WeightsSHA256", "SoftwareVersions")  # from label maps


def provenance_rows(generated: Cohort, volumes: Sequence[str]) -> list[list[str]]:
    """How the drawn volumes were made, from their sidecars."""
    contents = []
    for volume in volumes:
        image = generated.images[volume]
        sidecar = image.with_name(image.name.split(".")[0] + ".json")
        contents.append(read_json(sidecar) if sidecar.is_file() else {})
    title, names = ("Synthesis", SYNTHESIS) if any("LabelMap" in content for content in contents) else ("Sampling", SAMPLING)
    rows = []
    for name in names:
        texts = list(dict.fromkeys(_text(content.get(name, "unknown")) for content in contents))
        rows.append([f"{title}, {name}", " / ".join(texts)])
    return rows


def _text(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
