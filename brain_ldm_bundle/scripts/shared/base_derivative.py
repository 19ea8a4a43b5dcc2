"""Synthetic volumes as a BIDS derivative data set, marked as synthetic. A volume that is there already is not made again."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike

from .files import read_json, write_json, write_text
from .nifti import read_whole, write_nifti
from .tables import write_table

BIDS_VERSION = "1.9.0"
BUNDLE = Path(__file__).parents[2]

# 1/255 in the header's float32 would read 255 back as 1.00000006. One step below, 255 reads as 0.99999995.
UINT8_SLOPE = np.nextafter(np.float32(1 / 255), np.float32(0))
INTENSITIES = {
    "uint8": "The model's 0 to 1, clipped, rounded to 0 to 255; scl_slope 1/255 reads them back as 0 to 1. "
    "The same for all volumes",
    "float32": "The model's 0 to 1, clipped. The same for all volumes",
}
WORDS = {"Description", "IntensityScaling", "SoftwareVersions", "SpatialReference"}  # they may change between versions


def made_by(folder: Path, generator: str) -> bool:
    """Whether `generator`, and nothing else, wrote the data set in a folder."""
    try:
        description = read_json(folder / "dataset_description.json")
        return [entry["Name"] for entry in description.get("GeneratedBy", [])] == [generator]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


class BaseDerivative:
    """The folder that synthetic volumes are written to. `data/derivative.py` of each bundle has a subclass for its volumes.

        output_dir/dataset_description.json, README, participants.tsv, participants.json
        output_dir/sub-X/[ses-Y/]anat/sub-X[_ses-Y]_T1w.nii.gz, .._T1w.json

    Several processes may write different volumes at once. Each calls `finish` at its end. The sidecar is written last: an
    image without it counts as not made.

    A subclass sets `generator`, its name in dataset_description.json; `notice`, the sentence that marks a volume as
    synthetic; `required`, keys of the provenance; `mark`, a key that only its own sidecars have. It defines `image_file(row)`,
    the path of a row's volume; `_readme()`, text of the README; `_participants(made)`, lines of participants.tsv and content of
    participants.json from the sidecars by path.
    """

    generator = notice = mark = ""
    required: Sequence[str] = ()

    def __init__(self, output_dir: str | Path, dtype: str, name: str) -> None:
        if dtype not in INTENSITIES:
            raise ValueError(f"output_dtype must be {' or '.join(INTENSITIES)}, got {dtype!r}")
        self.output_dir, self.dtype, self.name = Path(output_dir), dtype, name
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise ValueError(f"output_dir {output_dir} is a file. Name a folder, which may be new")
        self._refuse_other_dataset()
        self._write_description()

    def finish(self, rows: Iterable[Mapping]) -> list[str]:
        """Write participants.tsv and participants.json for all volumes in the folder, of this run and earlier ones.

        Args:
            rows: what this run was asked for.

        Returns:
            names of the rows that have no volume, such as "sub-X".
        """
        folder = os.open(self.output_dir, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # of several ranks the last one to come here sees the volumes of all
            found = sorted(self.output_dir.glob("sub-*/**/anat/sub-*_T1w.nii.gz"))
            made = {file: sidecar for file in found if (sidecar := self._read_sidecar(file)) is not None}
            lines, columns = self._participants(made)
            write_table(self.output_dir / "participants.tsv", lines)
            write_json(self.output_dir / "participants.json", columns)
            self._write_description()
        finally:
            os.close(folder)
        files = [self.image_file(row) for row in rows]
        return [file.name.removesuffix("_T1w.nii.gz") for file in files if file not in made]

    def _is_made(self, image_file: Path, sidecar: Mapping, shape: Sequence[int], affine: np.ndarray) -> bool:
        """Whether this very volume is there: a sidecar that says the same, a whole image of the dtype on the grid."""
        made, wanted = self._read_sidecar(image_file), json.loads(json.dumps(sidecar))  # tuples become lists
        if made is None or any(made.get(key) != wanted[key] for key in wanted.keys() - WORDS):
            return False
        image = read_on_grid(image_file, shape, affine)
        return image is not None and image.get_data_dtype() == self.dtype

    def _write(self, image_file: Path, sidecar: Mapping, images: Mapping[Path, nib.Nifti1Image]) -> None:
        sidecar_file = _sidecar_file(image_file)
        sidecar_file.unlink(missing_ok=True)  # it would vouch for the new image if this stopped half-way
        for path, image in images.items():
            write_nifti(path, image)
        write_json(sidecar_file, sidecar)

    def _stored(self, image_file: Path, volume: ArrayLike) -> np.ndarray:
        """Values as they are stored: clipped, in 8 bits or as float32."""
        volume = np.asarray(volume, dtype=np.float32)
        bad = volume.size - np.count_nonzero(np.isfinite(volume))
        if bad:
            raise ValueError(
                f"{image_file.name}: {bad} of {volume.size} voxels are NaN or infinite, nothing was written. Make it in "
                f"float32 (--amp False), and see that the weights are finite"
            )
        volume = np.clip(volume, 0, 1)
        return np.round(volume * 255).astype(np.uint8) if self.dtype == "uint8" else volume

    def _describe(self, header: nib.Nifti1Header) -> None:
        header["descrip"] = "Synthetic, not for clinical use"
        header["cal_min"], header["cal_max"] = 0, 1
        header.set_slope_inter(UINT8_SLOPE if self.dtype == "uint8" else 1, 0)

    def _sidecar(self, provenance: Mapping, **own) -> dict:
        missing = [key for key in self.required if key not in provenance]
        if missing:
            raise ValueError(f"provenance lacks {', '.join(missing)}")
        return {
            "Description": self.notice,
            "Synthetic": True,
            **own,
            **provenance,
            "IntensityScaling": INTENSITIES[self.dtype],
            "SoftwareVersions": {
                self.generator: _bundle_version(),
                "python": platform.python_version(),
                **{package: metadata.version(package) for package in ("torch", "monai", "numpy", "nibabel")},
            },
        }

    def _read_sidecar(self, image_file: Path) -> dict | None:
        """None where the image counts as not made."""
        try:
            sidecar = read_json(_sidecar_file(image_file))
        except (FileNotFoundError, ValueError):
            return None
        return sidecar if self.mark in sidecar and image_file.is_file() else None

    def _refuse_other_dataset(self) -> None:
        # Images are looked for first: a process that starts at the same time writes the description before any image.
        occupied = any(self.output_dir.glob("sub-*")) or (self.output_dir / "participants.tsv").exists()
        described = (self.output_dir / "dataset_description.json").exists()
        if (occupied or described) and not made_by(self.output_dir, self.generator):
            raise ValueError(
                f"output_dir {self.output_dir} holds a data set that {self.generator} did not make; it would be mixed with "
                f"synthetic images. Choose a new folder"
            )

    def _write_description(self) -> None:
        maker = {"Name": self.generator, "Version": _bundle_version(), "Description": self.notice}
        description = {"Name": self.name, "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative", "GeneratedBy": [maker]}
        write_json(self.output_dir / "dataset_description.json", description)
        intensities = f"Intensities: {INTENSITIES[self.dtype]}."
        write_text(self.output_dir / "README", f"{self.name}\n\n{self.notice}\n\n{self._readme()}\n{intensities}\n")


def read_on_grid(path: Path, shape: Sequence[int], affine: np.ndarray) -> nib.Nifti1Image | None:
    """A whole image on this grid, or None."""
    try:
        image = read_whole(path)
    except ValueError:
        return None
    return image if image.shape == tuple(shape) and np.allclose(image.affine, affine, atol=1e-3) else None


def _sidecar_file(image_file: Path) -> Path:
    return image_file.with_name(image_file.name.replace(".nii.gz", ".json"))


def _bundle_version() -> str:
    metadata_file = BUNDLE / "configs" / "metadata.json"
    return read_json(metadata_file)["version"] if metadata_file.is_file() else "unknown"
