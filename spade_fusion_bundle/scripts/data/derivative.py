"""Write synthetic images to a BIDS derivative data set, each with its label map, on the grid of the original map."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import ArrayLike

from ..shared.base_derivative import BaseDerivative
from ..shared.files import is_there, read_json, sha256, write_json
from ..shared.label_files import read_names, smallest_integers
from ..shared.label_table import LabelTable
from ..shared.map_reader import map_files
from ..shared.nifti import named, open_image
from ..shared.simulated import sidecar_of
from ..shared.tables import write_table

GENERATOR = "spade_fusion_bundle"
MAP_SOURCE = "LabelMapSource"  # key of a sidecar: how a synthetic label map was made, from the sidecar of the map
EDITED = ("EditedImage", "Strength", "Method")  # of a map that is an edit, and so may identify its subject
MADE_WITH = ("Covariates", "Volumes", "Seed", "WeightsSHA256", "AutoencoderSHA256", "SoftwareVersions", *EDITED)  # of that one
MAP_FILES = "LabelMapFiles"  # key of a sidecar: size and date of the label map's files, so that the map is not read again

# Header entries of a volume's position. They are copied exactly, because a quaternion from the affine differs slightly.
GEOMETRY = ("pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x",
            "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z")  # fmt: skip


def name_of(row: Mapping) -> str:
    """Return the start of a row's file names: "sub-X", or "sub-X_ses-Y_run-1" if it has a session and a run."""
    return "_".join(filter(None, (row["participant_id"], row.get("session_id"), row.get("acquisition_and_run"))))


class Derivative(BaseDerivative):
    """Write synthetic images to a folder, see `BaseDerivative`. The folder also holds

        output_dir/dseg.tsv, dseg.json
        output_dir/sub-X/[ses-Y/]anat/sub-X[_ses-Y][_acq-A][_run-1]_dseg.nii.gz

    A row is {"participant_id": "sub-X", "session_id": "ses-Y" or None, "acquisition_and_run": "run-1" or None, "image": path of
    the label map,
    "source_participant_id": participant of the map, "provenance": entries of the sidecar, which include `required`}.

    Args:
        output_dir: folder that is new, empty, or written by an earlier run.
        table: label table of the maps.
        dtype: type of the voxels on disk: "uint8", or "float32" for the model's output without rounding.
        verify: whether to read finished images to their end before they are left out.

    Raises:
        ValueError: the folder holds another data set or maps of another table, or is a file, or the dtype is unknown.
    """

    generator, mark = GENERATOR, "Variant"
    notice = "Synthetic image, made from a label map by a generative model. Not a scan. For research, not for clinical use."
    required = ("LabelMap", "LabelMapSHA256", "Variant", "DeformationMm", "Seed", "WeightsSHA256")

    def __init__(self, output_dir: str | Path, table: LabelTable, dtype: str = "uint8", verify: bool = False) -> None:
        self.table, self.stored_as = table, f"{dtype}, on the grid of the label map"
        super().__init__(output_dir, dtype, "Synthetic T1-weighted brain MRI from label maps", verify)

    def image_file(self, row: Mapping) -> Path:
        """Return the path of a row's image, `output_dir/sub-X/[ses-Y/]anat/sub-X[_ses-Y][_acq-A][_run-1]_T1w.nii.gz`."""
        folder = self.output_dir / row["participant_id"] / (row.get("session_id") or "") / "anat"
        return folder / f"{name_of(row)}_T1w.nii.gz"

    def is_complete(self, row: Mapping) -> bool:
        """Check for a complete image and label map on the map's grid, with the same provenance and dtype."""

        def grid() -> tuple:
            source = _source(row)
            return source.shape[:3], source.affine

        image_file = self.image_file(row)
        return self._is_made([image_file, _label_file(image_file)], self._content(row), grid)

    def recorded_identity(self, row: Mapping) -> dict | None:
        """Return what `map_identity` returned when the row's image was made, or None if the map's files may have changed since.

        They may have if their size or date is another one, if they were replaced or moved later than the sidecar was written,
        or with `verify`.
        """
        made = self._read_sidecar(self.image_file(row)) or {}
        files = made.get(MAP_FILES)
        if self.verify or files is None:
            return None
        try:
            written_ns = os.stat(sidecar_of(self.image_file(row))).st_mtime_ns
            if files != map_versions(row["image"]) or any(os.stat(path).st_ctime_ns > written_ns for path in files):
                return None
        except FileNotFoundError:
            return None
        source = {MAP_SOURCE: made[MAP_SOURCE]} if MAP_SOURCE in made else {}
        return source | {key: made.get(key) for key in ("LabelMapSHA256", "LabelNamesSHA256", MAP_FILES)}

    def write(self, row: Mapping, volume: ArrayLike, labels: ArrayLike) -> Path:
        """Write one image, its label map and its sidecar, and return the path of the image. Existing files are replaced.

        Args:
            row: row of the image, as described above.
            volume: intensities (D, H, W) on the grid of the row's label map, which are clipped to 0 to 1; or what `stored`
                returned for them.
            labels: label values (D, H, W) that the image was made from.

        Raises:
            ValueError: voxels are not finite, or the shapes do not match the label map's grid.
            OSError: the disk is full or read-only. No incomplete file is left.
        """
        image_file, sidecar, source = self.image_file(row), self._content(row), _source(row)
        labels = np.asarray(labels)
        if not np.shape(volume) == labels.shape == source.shape[:3]:
            raise ValueError(
                f"{image_file.name}: image {np.shape(volume)} and labels {labels.shape} are not on the grid of {row['image']}, "
                f"{source.shape[:3]}"
            )
        whole = smallest_integers(np.rint(labels).astype(np.int32))
        image, label_map = (_on_grid(array, source.header) for array in (self.stored(row, volume), whole))
        label_map.header["descrip"] = "Synthetic, not for clinical use"
        self._describe(image.header)
        classes = self.table.classes(labels, str(row["image"]))
        brain = np.isin(classes, self.table.brain)
        stripped = np.count_nonzero((classes > 0) & ~brain) < np.count_nonzero(brain) / 2  # CSF is less, skull and scalp more
        images = {_label_file(image_file): label_map, image_file: image}
        self._write(image_file, {**sidecar, "SkullStripped": bool(stripped)}, images)
        return image_file

    def _content(self, row: Mapping) -> dict:
        own = {"SourceParticipant": row["source_participant_id"], "LabelTable": self.table.name}
        return self._sidecar(row["provenance"], **own)

    def _of_participant(self, sidecar: Mapping) -> tuple[str, str]:
        return sidecar.get("SourceParticipant", "n/a"), str(sidecar["Variant"])

    def _participants(self, made: Mapping[Path, tuple[str, str]]) -> tuple[list[Sequence[str]], dict]:
        rows = {}
        for image_file, source_and_variant in made.items():
            participant = image_file.relative_to(self.output_dir).parts[0]
            rows[participant] = (participant, *source_and_variant)
        columns = {
            "participant_id": "Synthetic subject. Its T1w is not a scan; its anatomy is from the label map",
            "source_participant_id": "Participant of the label map. Keep all subjects of one source in one split",
            "variant": "0 for the first image of a label map. The others are deformed, each by another field",
        }
        lines = [tuple(columns), *(rows[name] for name in sorted(rows))]
        return lines, {name: {"Description": text} for name, text in columns.items()}

    def _readme(self) -> str:
        return (
            "Next to each T1w is the label map that it was made from (dseg), deformed if the sidecar says so.\n"
            "Both are on the grid of the original label map. dseg.tsv names the label values.\n"
            "The sidecar of each image states the label map, the weights and the seed. Background is 0.\n"
        )

    def _refuse_other_dataset(self) -> None:
        super()._refuse_other_dataset()
        path = self.output_dir / "dseg.tsv"
        if path.exists() and read_names(path) != self.table.value_names():
            raise ValueError(
                f"output_dir {self.output_dir} holds label maps of another table than {self.table.name!r} ({path}). Choose a "
                f"new folder"
            )

    def _write_description(self) -> None:
        super()._write_description()
        write_table(self.output_dir / "dseg.tsv", self.table.dseg_rows())
        text = f"Label map that the T1w next to it was made from. dseg.tsv names its values (table {self.table.name})."
        write_json(self.output_dir / "dseg.json", {"Description": text, "SpatialReference": "orig"})


def map_identity(label_map: str) -> dict:
    """Return the hashes of a map and of the table of its names, which may be missing, and the versions of these files.

    If the sidecar of the map says that it is synthetic, how it was made is added.
    """
    file, *names = map_files(label_map)
    versions = map_versions(label_map)
    sidecar = Path(re.sub(r"\.(nii|nii\.gz|mgz|mgh)$", ".json", str(label_map)))
    said = read_json(sidecar) if is_there(sidecar) else {}
    source = {key: said[key] for key in MADE_WITH if key in said} if said.get("Synthetic") is True else {}
    return {
        **({MAP_SOURCE: source} if source else {}),
        "LabelMapSHA256": sha256(file),
        "LabelNamesSHA256": sha256(names[0]) if names else None,
        MAP_FILES: versions,
    }


def map_versions(label_map: str) -> dict[str, list[int]]:
    """Return path, size and date of the files that determine a map."""
    return {path: [os.stat(path).st_size, os.stat(path).st_mtime_ns] for path in map_files(label_map)}


def _source(row: Mapping) -> nib.Nifti1Image:
    with named(row["image"]):
        return open_image(row["image"])


def _label_file(image_file: Path) -> Path:
    return image_file.with_name(image_file.name.replace("_T1w.nii.gz", "_dseg.nii.gz"))


def _on_grid(array: np.ndarray, source: nib.Nifti1Header) -> nib.Nifti1Image:
    header = nib.Nifti1Header()
    header.set_data_dtype(array.dtype)
    for key in GEOMETRY:
        header[key] = source[key]
    header.set_xyzt_units("mm")
    return nib.Nifti1Image(array, None, header)
