"""Read from the sidecars how generated volumes were made."""

from __future__ import annotations

from collections.abc import Sequence

from cohorts.cohort import Cohort
from cohorts.origin import read_sidecar

# Entries of the sidecars, and what they are
BOTH = {"Acquisition": "noise and bias field", "WeightsSHA256": "SHA-256 of the weights", "SoftwareVersions": "software"}
SAMPLING = {"Sampler": "sampler", "Steps": "steps", "GuidanceScale": "guidance scale", "PredictionType": "the network predicts",
            "Precision": "precision"} | BOTH  # fmt: skip
EDIT = {"EditedImage": "edited scan", "Strength": "strength of the edit", "Method": "method of the edit"}
SYNTHESIS = {"LabelTable": "names of the labels", "DeformationMm": "deformation of the map, mm"} | BOTH  # from label maps


def provenance_rows(generated: Cohort, volumes: Sequence[str]) -> list[list[str]]:
    """Return the name and the value of each setting, or its values if the volumes differ."""
    contents = []
    for volume in volumes:
        content = read_sidecar(generated.images[volume])
        contents.append(content and content | {"Acquisition": "added" if content.get("Acquisition") else "none"})
    title, names = ("Synthesis", SYNTHESIS) if any("LabelMap" in content for content in contents) else ("Sampling", SAMPLING)
    names = names | EDIT if any("EditedImage" in content for content in contents) else names
    return [
        [f"{title}, {words}", " / ".join(dict.fromkeys(_text(content.get(name, "unknown")) for content in contents))]
        for name, words in names.items()
    ]


def _text(value: object) -> str:
    return ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
