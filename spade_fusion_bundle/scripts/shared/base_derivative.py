"""Write synthetic volumes, marked as synthetic, to a BIDS derivative data set. Existing volumes are not made again."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import ArrayLike

from .files import read_json, write_json, write_text
from .image_files import find_files, refuse_twice
from .nifti import open_image, read_whole, write_nifti
from .tables import write_table

BIDS_VERSION = "1.9.0"
VOLUMES = "sub-*/**/anat/sub-*_T1w.nii.gz"
SIZES = "FileSizes"  # key of a sidecar: the size in bytes of each file that belongs to it
BUNDLE = Path(__file__).parents[2]

# With a slope of 1/255 in float32, 255 reads back as 1.00000006. With the next smaller slope it reads as 0.99999995.
UINT8_SLOPE = np.nextafter(np.float32(1 / 255), np.float32(0))
INTENSITIES = {
    "uint8": "The model's output, clipped to 0 to 1 and rounded to 0 to 255; scl_slope 1/255 reads it back as 0 to 1. "
    "All volumes have this scale",
    "float32": "The model's output, clipped to 0 to 1. All volumes have this scale",
}
WORDS = {"Description", "IntensityScaling", "SoftwareVersions", "SpatialReference"}  # text that may change between versions


def made_by(folder: Path, generator: str) -> bool:
    """Check whether `generator` alone wrote the data set in a folder."""
    try:
        description = read_json(folder / "dataset_description.json")
        return [entry["Name"] for entry in description.get("GeneratedBy", [])] == [generator]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


class BaseDerivative:
    """Write synthetic volumes and their sidecars to a folder. `data/derivative.py` of each bundle has a subclass of it.

        output_dir/dataset_description.json, README, participants.tsv, participants.json
        output_dir/sub-X/[ses-Y/]anat/sub-X[_ses-Y]_T1w.nii.gz, .._T1w.json

    Several processes may write different volumes at once. Each calls `finish` at its end. The sidecar is written last, so an
    image without a sidecar is incomplete.

    A subclass sets `generator` (its name in dataset_description.json), `notice` (the sentence that marks a volume as
    synthetic), `required` (the keys that the provenance must have) and `mark` (a key that only its own sidecars have). It
    defines `image_file(row)`, which returns the path of a row's volume, `_readme()`, which returns the text of the README, and
    `_participants(made)`, which turns the sidecars by path into the lines of participants.tsv and the content of
    participants.json.
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

    def refuse_clashes(self, rows: Iterable[Mapping]) -> None:
        """Refuse volumes whose names differ only in case from each other or from volumes in the folder."""
        made = find_files(self.output_dir, VOLUMES) if self.output_dir.exists() else []
        refuse_twice({*made, *map(self.image_file, rows)}, self.output_dir)

    def finish(self, rows: Iterable[Mapping]) -> list[str]:
        """Write participants.tsv and participants.json for all volumes in the folder, of this run and earlier ones.

        Return the names, such as "sub-X", of those `rows` whose volumes the folder lacks.
        """
        self._write_description()
        folder = os.open(self.output_dir, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # so that the last of several ranks lists the volumes of all
            found = find_files(self.output_dir, VOLUMES)
            made = {file: sidecar for file in found if (sidecar := self._read_sidecar(file)) is not None}
            lines, columns = self._participants(made)
            write_table(self.output_dir / "participants.tsv", lines)
            write_json(self.output_dir / "participants.json", columns)
        finally:
            os.close(folder)
        files = [self.image_file(row) for row in rows]
        return [file.name.removesuffix("_T1w.nii.gz") for file in files if file not in made]

    def _is_made(self, files: Sequence[Path], sidecar: Mapping, shape: Sequence[int], affine: np.ndarray) -> bool:
        """Check for complete files on this grid, the first of them an image of this dtype whose sidecar has the same content.

        The voxels of a file are not read if its size is recorded and it is not newer than its sidecar. This saves hours when a
        large cohort is continued.
        """
        made, wanted = self._read_sidecar(files[0]), json.loads(json.dumps(sidecar))  # tuples become lists
        if made is None or any(made.get(key) != wanted[key] for key in wanted.keys() - WORDS):
            return False
        written_ns, images = _sidecar_file(files[0]).stat().st_mtime_ns, []
        for path in files:
            known = path.name in made.get(SIZES, {}) and path.stat().st_mtime_ns <= written_ns
            images.append(_read_on_grid(path, shape, affine, known))
        return all(image is not None for image in images) and images[0].get_data_dtype() == self.dtype

    def _write(self, image_file: Path, sidecar: Mapping, images: Mapping[Path, nib.Nifti1Image], skull_stripped: bool) -> None:
        if not (self.output_dir / "dataset_description.json").exists():  # not earlier: a refused run leaves no files
            self._write_description()
        sidecar_file = _sidecar_file(image_file)
        sidecar_file.unlink(missing_ok=True)  # an interrupted write must not leave the old sidecar with a new image
        for path, image in images.items():
            write_nifti(path, image)
        own = {"SkullStripped": bool(skull_stripped), SIZES: {path.name: path.stat().st_size for path in images}}
        write_json(sidecar_file, {**sidecar, **own})

    def stored(self, row: Mapping, volume: ArrayLike) -> np.ndarray:
        """Clip the intensities of a row's volume and convert them to 8 bits or float32, as they are stored.

        A tensor is converted on its device, so that one byte for each voxel is copied from a GPU. Voxels of 8 bits stay as they
        are, so that `write` accepts the result of this function.

        Raises:
            ValueError: voxels are not finite.
        """
        volume = torch.as_tensor(volume).detach().as_subclass(torch.Tensor)
        if volume.dtype != torch.uint8:
            volume = volume.float()
            sound = bool(volume.sum().isfinite())  # a sum costs a third of looking at each voxel
            if not sound and (bad := volume.numel() - int(volume.isfinite().sum())):
                raise ValueError(
                    f"{self.image_file(row).name}: {bad} of {volume.numel()} voxels are NaN or infinite, nothing was written. "
                    f"Generate it in float32 (--amp False), and check that the weights are finite"
                )
            volume = volume.clamp(0, 1)
            if self.dtype == "uint8":
                volume = (volume * 255).round().to(torch.uint8)
        return volume.cpu().numpy()

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
            "SoftwareVersions": ", ".join(
                [
                    f"{self.generator} {_bundle_version()}",
                    f"python {platform.python_version()}",
                    *(f"{package} {_version(package)}" for package in ("torch", "monai", "numpy", "nibabel")),
                ]
            ),
        }

    def _read_sidecar(self, image_file: Path) -> dict | None:
        """Read the sidecar of an image, or return None if either is missing or cut short, or the sidecar is not ours."""
        try:
            sidecar = read_json(_sidecar_file(image_file))
        except (FileNotFoundError, ValueError):
            return None
        sizes = {image_file.with_name(name): size for name, size in sidecar.get(SIZES, {}).items()}
        whole = image_file.is_file() and all(path.is_file() and path.stat().st_size == size for path, size in sizes.items())
        return sidecar if self.mark in sidecar and whole else None

    def _refuse_other_dataset(self) -> None:
        # Look for images first: a process that starts at the same time writes the description before any image.
        occupied = any(any(self.output_dir.glob(name)) for name in ("participants.tsv", "sub-*", "ses-*", "anat"))
        described = (self.output_dir / "dataset_description.json").exists()
        if (occupied or described) and not made_by(self.output_dir, self.generator):
            raise ValueError(
                f"output_dir {self.output_dir} holds a data set that {self.generator} did not make. Choose a new folder, so "
                f"that synthetic images are not mixed with it"
            )

    def _write_description(self) -> None:
        maker = {"Name": self.generator, "Version": _bundle_version(), "Description": self.notice}
        description = {"Name": self.name, "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative", "GeneratedBy": [maker]}
        write_json(self.output_dir / "dataset_description.json", description)
        intensities = f"Intensities: {INTENSITIES[self.dtype]}."
        write_text(self.output_dir / "README", f"{self.name}\n\n{self.notice}\n\n{self._readme()}\n{intensities}\n")


def _read_on_grid(path: Path, shape: Sequence[int], affine: np.ndarray, only_header: bool) -> nib.Nifti1Image | None:
    """Read an image or only its header, or return None if it is damaged or on another grid."""
    try:
        image = open_image(path) if only_header else read_whole(path)
    except ValueError:
        return None
    return image if image.shape == tuple(shape) and np.allclose(image.affine, affine, atol=1e-3) else None


def _sidecar_file(image_file: Path) -> Path:
    return image_file.with_name(image_file.name.replace(".nii.gz", ".json"))


_version = cache(metadata.version)  # it reads files


@cache
def _bundle_version() -> str:
    metadata_file = BUNDLE / "configs" / "metadata.json"
    return read_json(metadata_file)["version"] if metadata_file.is_file() else "unknown"
