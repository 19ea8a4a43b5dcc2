"""Read from the sidecar of a volume how it was made: from a label map, or from a scan that may identify a person."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from shared.files import read_json
from shared.problems import count
from shared.simulated import sidecar_of

OF_THE_LDM = "Covariates"  # key that only brain_ldm_bundle writes


def read_sidecar(image: Path) -> dict:
    """Return the content of a volume's sidecar, which is empty if there is none or if it cannot be read."""
    try:
        content = read_json(sidecar_of(image))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def is_from_map(image: Path, label_map: Path | None) -> bool:
    """Return whether a volume was made from a label map. Beside a volume of the brain LDM, a map is a segmentation of it."""
    sidecar = read_sidecar(image)
    return "LabelMap" in sidecar or (label_map is not None and OF_THE_LDM not in sidecar)


def edited_image(image: Path) -> str | None:
    """Return the name of the scan that a volume, or its label map, is an edit of, or None.

    Strength 1 makes a new head, unless the image was inverted.
    """
    sidecar = read_sidecar(image)
    sidecar = sidecar.get("LabelMapSource") or sidecar
    return sidecar.get("EditedImage") if sidecar.get("Strength") != 1 or "Method" in sidecar else None


def note_on_edits(images: Iterable[Path]) -> str:
    """Return how many volumes are edits of scans and may identify persons, or "" if none is."""
    images = list(images)
    edits = [image for image in images if edited_image(image)]
    if not edits:
        return ""
    what = "is an edit of a scan" if len(edits) == 1 else "are edits of scans"
    return f"{len(edits)} of {count(images, 'generated volume')} {what}, and may identify persons."
