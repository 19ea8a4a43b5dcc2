"""Refuse scans in place of synthetic volumes, and synthetic volumes in place of scans, if files say what they are."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable
from pathlib import Path

from shared.files import read_json
from shared.problems import count
from shared.simulated import BUNDLES, sidecar_of

TOOLS = ("prepare_data.py", "make_demo_data.py")  # which write scans
SCANNER = ("MagneticFieldStrength", "Manufacturer", "RepetitionTime", "EchoTime", "FlipAngle")  # entries of scans' sidecars


def refuse_scans(image: Path, where: str) -> None:
    """Refuse a scan, or a simulated scan, where synthetic volumes are expected. `where` names the argument."""
    if (found := _kind(image))[0] == "scans":
        raise ValueError(f"{image}: is a scan, as {found[1]} says, but {where} takes synthetic volumes. Give their folder")


def refuse_synthetic(image: Path, where: str) -> None:
    """Refuse a volume that one of the bundles made where scans are expected. `where` names the argument."""
    if (found := _kind(image))[0] == "synthetic":
        raise ValueError(f"{image}: is synthetic, as {found[1]} says, but {where} takes scans. Give their folder")


def warn_of_missing_sidecars(images: Iterable[Path]) -> None:
    """Warn of images without a sidecar in a data set of our bundles, which write one for each volume."""
    images = list(images)
    without = [image for image in images if not sidecar_of(image).exists()]
    if without and len(without) < len(images) and _kind(without[0])[0] == "synthetic":
        warnings.warn(
            f"A JSON sidecar is missing beside {count(without, 'image')}, such as {without[0]}, but other volumes of the data "
            f"set have one. All of them count as synthetic. Remove those that are scans",
            stacklevel=2,
        )


def _kind(image: Path) -> tuple[str, Path]:
    """Return "scans", "synthetic" or "", and the file that says so: the sidecar, or the description of the data set."""
    sidecar = sidecar_of(image)
    folders = itertools.takewhile(lambda folder: folder.name != "derivatives", image.absolute().parents[:4])
    for path in (sidecar, *(folder / "dataset_description.json" for folder in folders)):
        try:
            content = read_json(path)
            makers = [maker["Name"] for maker in content.get("GeneratedBy", [])]
        except (OSError, ValueError, KeyError, TypeError):  # missing, or no description
            continue
        if content.get("Simulated") is True or content.get("DatasetType") == "raw" or {*makers} & {*TOOLS}:
            return "scans", path
        if {*makers} & {*BUNDLES} or content.get("Synthetic") is True:
            return "synthetic", path
        if path == sidecar and any(name in content for name in SCANNER):
            return "scans", path
    return "", sidecar
