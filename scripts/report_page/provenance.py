"""Read from the sidecars how generated volumes were made."""

from __future__ import annotations

from collections.abc import Sequence

from cohorts.cohort import Cohort
from shared.files import read_json

SAMPLING = (
    "Sampler",
    "Steps",
    "GuidanceScale",
    "PredictionType",
    "Precision",
    "Acquisition",
    "WeightsSHA256",
    "SoftwareVersions",
)
SYNTHESIS = ("LabelTable", "DeformationMm", "Acquisition", "WeightsSHA256", "SoftwareVersions")  # from label maps


def provenance_rows(generated: Cohort, volumes: Sequence[str]) -> list[list[str]]:
    """Return the name and the value of each setting, or its values if the volumes differ."""
    contents = []
    for volume in volumes:
        image = generated.images[volume]
        sidecar = image.with_name(image.name.split(".")[0] + ".json")
        content = read_json(sidecar) if sidecar.is_file() else {}
        contents.append(content and content | {"Acquisition": "added" if content.get("Acquisition") else "none"})
    title, names = ("Synthesis", SYNTHESIS) if any("LabelMap" in content for content in contents) else ("Sampling", SAMPLING)
    return [
        [f"{title}, {name}", " / ".join(dict.fromkeys(_text(content.get(name, "unknown")) for content in contents))]
        for name in names
    ]


def _text(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
