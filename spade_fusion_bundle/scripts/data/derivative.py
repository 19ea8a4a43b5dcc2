"""Synthetic images as a BIDS derivative data set, each with its label map beside it; what is made is not made again."""

from __future__ import annotations

import fcntl
import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike

from ..shared.files import atomic, write_json
from ..shared.nifti import read_whole, write_nifti
from .labels import LabelTable

__all__ = ["Derivative", "made_here", "name_of"]

BIDS_VERSION = "1.9.0"
GENERATOR = "spade_fusion_bundle"
NOTICE = "Synthetic image, made from a label map by a generative model. Not a scan. For research, not for clinical use."
PROVENANCE = ("LabelMap", "LabelMapSHA256", "Variant", "DeformationMm", "Seed", "WeightsSHA256")

# 1/255 in the header's float32 would read 255 back as 1.00000006. One step below, 255 reads as 0.99999995.
UINT8_SLOPE = np.nextafter(np.float32(1 / 255), np.float32(0))
INTENSITIES = {
    "uint8": "The model's 0 to 1, rounded to 0 to 255; scl_slope 1/255 reads them back as 0 to 1. The same for all volumes",
    "float32": "The model's 0 to 1. The same for all volumes",
}

# All that says where a volume lies. Copied bit for bit: from an affine, quaternions come out a little different.
GEOMETRY = ("pixdim", "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
            "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")  # fmt: skip


def name_of(row: Mapping) -> str:
    """How files of a row begin: "sub-X", or "sub-X_ses-Y" for a row with a session."""
    return "_".join([row["participant_id"], *([row["session_id"]] if row.get("session_id") else [])])


def made_here(folder: Path) -> bool:
    """Whether a folder is a data set that this bundle wrote, and nobody else."""
    try:
        description = json.loads((folder / "dataset_description.json").read_text(encoding="utf-8"))
        return [entry["Name"] for entry in description.get("GeneratedBy", [])] == [GENERATOR]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


class Derivative:
    """The folder that synthetic images are written to.

        output_dir/dataset_description.json, README, dseg.tsv, participants.tsv, participants.json
        output_dir/sub-X/[ses-Y/]anat/sub-X[_ses-Y]_T1w.nii.gz, .._T1w.json, .._dseg.nii.gz

    Several processes may write different rows at once; each calls `finish` at its end. The sidecar is written last: an image
    without it counts as not made.

    A row is {"participant_id": "sub-X", "session_id": "ses-Y" or None, "image": path of the label map,
    "source_participant_id": whose map it is, "provenance": LabelMap, LabelMapSHA256, Variant, DeformationMm, Seed,
    WeightsSHA256, and more if wanted}.

    Args:
        output_dir: new, empty, or of an earlier run.
        table: of the label maps' values.
        dtype: "uint8", or "float32" for the values as the model gave them.
        name: of the data set.

    Raises:
        ValueError: the folder holds another data set; no such dtype.
    """

    def __init__(
        self,
        output_dir: str | Path,
        table: LabelTable,
        dtype: str = "uint8",
        name: str = "Synthetic T1-weighted brain MRI from label maps",
    ) -> None:
        if dtype not in INTENSITIES:
            raise ValueError(f"output_dtype must be {' or '.join(INTENSITIES)}, got {dtype!r}")
        self.output_dir = Path(output_dir)
        self.table = table
        self.dtype = dtype
        self.name = name
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise ValueError(f"output_dir {output_dir} is a file. Name a folder, which may be new")
        self._refuse_other_dataset()
        self._refuse_other_table()
        self.output_dir.mkdir(parents=True, exist_ok=True)
        self._write_description()

    def image_file(self, row: Mapping) -> Path:
        """`output_dir/sub-X/[ses-Y/]anat/sub-X[_ses-Y]_T1w.nii.gz`."""
        folder = self.output_dir / row["participant_id"] / (row.get("session_id") or "") / "anat"
        return folder / f"{name_of(row)}_T1w.nii.gz"

    def is_complete(self, row: Mapping) -> bool:
        """Whether this very image is there: same provenance and dtype, image and label map whole, on the map's grid."""
        image_file = self.image_file(row)
        wanted, made = json.loads(json.dumps(self._sidecar(row))), _read_sidecar(image_file)
        if made is None or any(made.get(key) != wanted[key] for key in wanted if key != "SoftwareVersions"):
            return False
        source = nib.load(row["image"])
        try:
            images = [read_whole(path) for path in (image_file, _beside(image_file, "_dseg.nii.gz"))]
        except ValueError:
            return False
        return all(image.shape == source.shape[:3] and np.allclose(image.affine, source.affine) for image in images)

    def write(self, row: Mapping, volume: ArrayLike, labels: ArrayLike) -> Path:
        """Write one image, its label map and its sidecar, over those of the same name.

        Args:
            row: what was made; see above.
            volume: (D, H, W) on the grid of the row's label map, 0 to 1; what lies beyond is clipped.
            labels: (D, H, W), the label values that it was made from.

        Returns:
            The image's path.

        Raises:
            ValueError: NaN or infinite voxels, another shape than the label map's.
            OSError: no room, no permission; nothing incomplete is left.
        """
        image_file = self.image_file(row)
        sidecar = self._sidecar(row)
        source = nib.load(row["image"])
        volume, labels = np.asarray(volume, dtype=np.float32), np.asarray(labels)
        if not volume.shape == labels.shape == source.shape[:3]:
            raise ValueError(
                f"{image_file.name}: image {volume.shape} and labels {labels.shape} are not on the grid of {row['image']}, "
                f"{source.shape[:3]}"
            )
        bad = volume.size - np.count_nonzero(np.isfinite(volume))
        if bad:
            raise ValueError(
                f"{image_file.name}: {bad} of {volume.size} voxels are NaN or infinite, nothing was written. "
                f"Synthesise in float32 (--amp False), and see that the weights are finite"
            )
        image_file.parent.mkdir(parents=True, exist_ok=True)
        sidecar_file = _beside(image_file, "_T1w.json")
        sidecar_file.unlink(missing_ok=True)  # it would vouch for the new image if this stopped half-way
        write_nifti(_beside(image_file, "_dseg.nii.gz"), _label_image(labels, source.header))
        write_nifti(image_file, self._image(volume, source.header))
        write_json(sidecar_file, sidecar)
        return image_file

    def finish(self, rows: Sequence[Mapping]) -> list[str]:
        """Write participants.tsv for all images in the folder, of this run and earlier ones.

        Args:
            rows: of this run.

        Returns:
            The names of `rows` that have no image.
        """
        folder = os.open(self.output_dir, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)  # of several ranks the last one to come here sees the images of all
            self._write_participants()
        finally:
            os.close(folder)
        return [name_of(row) for row in rows if _read_sidecar(self.image_file(row)) is None]

    def _write_participants(self) -> None:
        made = {}
        for pattern in ("sub-*/anat/sub-*_T1w.nii.gz", "sub-*/ses-*/anat/sub-*_T1w.nii.gz"):
            for image_file in sorted(self.output_dir.glob(pattern)):
                sidecar = _read_sidecar(image_file)
                if sidecar is not None:
                    participant = image_file.relative_to(self.output_dir).parts[0]
                    made[participant] = (participant, sidecar.get("SourceParticipant", "n/a"), str(sidecar["Variant"]))
        lines = [("participant_id", "source_participant_id", "variant"), *(made[participant] for participant in sorted(made))]
        with atomic(self.output_dir / "participants.tsv") as file:
            file.write("".join("\t".join(line) + "\n" for line in lines).encode())
        columns = {
            "participant_id": "Synthetic subject: its T1w is not a scan, its anatomy is of the label map",
            "source_participant_id": "Whose label map it was made from. Keep those of one source in one split",
            "variant": "0: the first of a label map; further ones are deformed, each by another field",
        }
        write_json(self.output_dir / "participants.json", {name: {"Description": text} for name, text in columns.items()})

    def _image(self, volume: np.ndarray, source: nib.Nifti1Header) -> nib.Nifti1Image:
        volume = np.clip(volume, 0, 1)
        if self.dtype == "uint8":
            volume = np.round(volume * 255).astype(np.uint8)
        image = _on_grid(volume, source)
        image.header["cal_min"], image.header["cal_max"] = 0, 1
        image.header.set_slope_inter(UINT8_SLOPE if self.dtype == "uint8" else 1, 0)
        return image

    def _sidecar(self, row: Mapping) -> dict:
        provenance = row["provenance"]
        missing = [key for key in PROVENANCE if key not in provenance]
        if missing:
            raise ValueError(f"provenance lacks {', '.join(missing)}")
        return {
            "Description": NOTICE,
            "Synthetic": True,
            "SourceParticipant": row["source_participant_id"],
            **provenance,
            "LabelTable": self.table.name,
            "IntensityScaling": INTENSITIES[self.dtype],
            "SoftwareVersions": {
                GENERATOR: _bundle_version(),
                "python": platform.python_version(),
                **{package: metadata.version(package) for package in ("torch", "monai", "numpy", "nibabel")},
            },
        }

    def _refuse_other_dataset(self) -> None:
        # Images are looked for first: a process that starts at the same time writes the description before any image.
        occupied = any(self.output_dir.glob("sub-*")) or (self.output_dir / "participants.tsv").exists()
        described = (self.output_dir / "dataset_description.json").exists()
        if not made_here(self.output_dir) and (occupied or described):
            raise ValueError(
                f"output_dir {self.output_dir} holds a data set that {GENERATOR} did not make; it would be mixed with "
                f"synthetic images. Choose a new folder"
            )

    def _refuse_other_table(self) -> None:
        path = self.output_dir / "dseg.tsv"
        if path.exists() and path.read_text(encoding="utf-8") != self._dseg_table():
            raise ValueError(
                f"output_dir {self.output_dir} holds label maps of another table than {self.table.name!r} ({path}). Choose a "
                f"new folder"
            )

    def _write_description(self) -> None:
        write_json(
            self.output_dir / "dataset_description.json",
            {
                "Name": self.name,
                "BIDSVersion": BIDS_VERSION,
                "DatasetType": "derivative",
                "GeneratedBy": [{"Name": GENERATOR, "Version": _bundle_version(), "Description": NOTICE}],
            },
        )
        with atomic(self.output_dir / "README") as file:
            file.write(
                f"{self.name}\n\n{NOTICE}\n\n"
                "Beside each T1w lies the label map that it was made from (dseg), deformed where the sidecar says so.\n"
                "Both are on the grid of the original label map. dseg.tsv names the label values.\n"
                "The sidecar of each image says from which map, with which weights and seed it was made.\n\n"
                f"Intensities: {INTENSITIES[self.dtype]}. Background is 0.\n".encode()
            )
        with atomic(self.output_dir / "dseg.tsv") as file:
            file.write(self._dseg_table().encode())

    def _dseg_table(self) -> str:
        rows = [("index", "name"), *((str(value), name) for value, name in sorted(_value_names(self.table).items()))]
        return "".join("\t".join(row) + "\n" for row in rows)


def _on_grid(array: np.ndarray, source: nib.Nifti1Header) -> nib.Nifti1Image:
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    for key in GEOMETRY:
        header[key] = source[key]
    header["descrip"] = "Synthetic, not for clinical use"
    return nib.Nifti1Image(array, None, header)


def _label_image(labels: np.ndarray, source: nib.Nifti1Header) -> nib.Nifti1Image:
    """Integers of the smallest type that BIDS tools read: uint8, int16 or int32."""
    labels = np.rint(labels).astype(np.int32)
    lowest, highest = labels.min(), labels.max()
    dtype = next(t for t in (np.uint8, np.int16, np.int32) if np.iinfo(t).min <= lowest and highest <= np.iinfo(t).max)
    return _on_grid(labels.astype(dtype), source)


def _value_names(table: LabelTable) -> dict[int, str]:
    """Name of every label value, with its side where it has one."""
    names = {}
    for entry in table.to_dict()["classes"]:
        for side in ("left", "right", "midline"):
            name = entry["name"] if side == "midline" else f"{side} {entry['name']}"
            for item in entry.get(side, ()):
                first, last = (item, item) if isinstance(item, int) else map(int, item.split("-"))
                names |= dict.fromkeys(range(first, last + 1), name)
    return names


def _beside(image_file: Path, ending: str) -> Path:
    return image_file.with_name(image_file.name.replace("_T1w.nii.gz", ending))


def _read_sidecar(image_file: Path) -> dict | None:
    """None where the image counts as not made."""
    try:
        sidecar = json.loads(_beside(image_file, "_T1w.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    return sidecar if isinstance(sidecar, dict) and "Variant" in sidecar and image_file.is_file() else None


def _bundle_version() -> str:
    metadata_file = Path(__file__).parents[2] / "configs" / "metadata.json"
    return json.loads(metadata_file.read_text(encoding="utf-8"))["version"] if metadata_file.is_file() else "unknown"
