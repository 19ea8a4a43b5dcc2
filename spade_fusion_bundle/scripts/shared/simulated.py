"""Find out whether scans are simulated, so that no picture of them passes for a picture of people."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from .files import read_json

NOTE = "The scans are simulated heads, not scans of persons, also where they are called real."


def is_simulated(place: str | Path) -> bool:
    """Return whether a scan, or a folder of scans, is simulated.

    The sidecar of a scan says so ("Simulated": true), or else the nearest dataset_description.json of the folders above it.
    """
    place = Path(place)
    sidecar = place.with_name(place.name.split(".")[0] + ".json")
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
