"""Read from the sidecars how generated volumes were made."""

from __future__ import annotations

from collections.abc import Sequence

from cohorts.cohort import Cohort
from shared.files import read_json

# Entries of the sidecars, and what they are
BOTH = {"Acquisition": "noise and bias field", "WeightsSHA256": "SHA-256 of the weights", "SoftwareVersions": "software"}
SAMPLING = {"Sampler": "sampler", "Steps": "steps", "GuidanceScale": "guidance scale", "PredictionType": "the network predicts",
            "Precision": "precision"} | BOTH  # fmt: skip
SYNTHESIS = {"LabelTable": "names of the labels", "DeformationMm": "deformation of the map, mm"} | BOTH  # from label maps


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
        [f"{title}, {words}", " / ".join(dict.fromkeys(_text(content.get(name, "unknown")) for content in contents))]
        for name, words in names.items()
    ]


def _text(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
