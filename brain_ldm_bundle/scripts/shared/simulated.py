"""Find out whether scans are simulated or synthetic, so that they do not pass for scans of people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .files import read_json

BUNDLES = ("brain_ldm_bundle", "spade_fusion_bundle")
NOTE = "The scans are simulated heads, not scans of persons, also where they are called real."


def is_simulated(place: str | Path) -> bool:
    """Return whether a scan, or a folder of scans, is simulated.

    The sidecar of a scan says so ("Simulated": true), or else the nearest dataset_description.json of the folders above it.
    """
    place = Path(place)
    sidecar = sidecar_of(place)
    folders = [place, *place.resolve().parents] if place.is_dir() else place.resolve().parents
    for path in (sidecar, *(folder / "dataset_description.json" for folder in folders)):
        try:
            content = read_json(path)
            if path != sidecar or "Simulated" in content:
                return content.get("Simulated", "DemoSettings" in content) is True  # the latter in cohorts made before
        except (OSError, ValueError, AttributeError):  # missing, or no description
            continue
    return False


def note_on(places: Iterable[str | Path]) -> str:
    """Return NOTE if any of these scans or folders is simulated, else an empty text."""
    return NOTE if any(map(is_simulated, places)) else ""


def sidecar_of(image: str | Path) -> Path:
    return Path(image).with_name(Path(image).name.split(".")[0] + ".json")


def made_by(folder: Path, generator: str) -> bool:
    """Check whether `generator` alone wrote the data set in a folder."""
    try:
        description = read_json(folder / "dataset_description.json")
        return [entry["Name"] for entry in description.get("GeneratedBy", [])] == [generator]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def refuse_synthetic(folder: str | Path, images: Iterable[str | Path]) -> None:
    """Refuse images for training that a bundle made, if their data set or their sidecar says so. Simulated scans stay."""
    for maker in BUNDLES:
        if made_by(Path(folder), maker):
            raise ValueError(f"{folder}: holds synthetic volumes, which {maker} made. Give a data set of scans")
    if found := [str(image) for image in images if _is_synthetic(sidecar_of(image))]:
        raise ValueError(
            f"{found[0]}: is synthetic, as {sidecar_of(found[0]).name} says, one of {len(found)} such. A model must not "
            f"train on what models made. Leave them out"
        )


def _is_synthetic(sidecar: Path) -> bool:
    try:
        content = read_json(sidecar)
        return content.get("Synthetic") is True and content.get("Simulated") is not True  # demo cohorts say both
    except (OSError, ValueError, AttributeError):  # missing, or no description
        return False
