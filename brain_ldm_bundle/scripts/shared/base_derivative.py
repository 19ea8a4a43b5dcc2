"""Write synthetic volumes, marked as synthetic, to a BIDS derivative data set. Existing volumes are not made again."""

from __future__ import annotations

import json
import os
import platform
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from numpy.typing import ArrayLike

from .files import read_json, version, write_json, write_text
from .image_files import find_files, refuse_twice
from .nifti import read_whole, write_nifti
from .participants import read_one_each
from .problems import count
from .simulated import made_by
from .tables import write_table

BIDS_VERSION = "1.9.0"
# Keys of a sidecar: type and grid of the image, and the size in bytes of each file that belongs to the sidecar.
STORED, SIZES = "StoredAs", "FileSizes"
BUNDLE = Path(__file__).parents[2]

# With a slope of 1/255 in float32, 255 reads back as 1.00000006. With the next smaller slope it reads as 0.99999995.
UINT8_SLOPE = np.nextafter(np.float32(1 / 255), np.float32(0))
INTENSITIES = {
    "uint8": "The model's output, clipped to 0 to 1 and rounded to 0 to 255; scl_slope 1/255 reads it back as 0 to 1. "
    "All volumes have this scale",
    "float32": "The model's output, clipped to 0 to 1. All volumes have this scale",
}
# Keys of a sidecar that do not say what was made: text that may change between versions, and dates of files.
WORDS = {"Description", "IntensityScaling", "SoftwareVersions", "SpatialReference", "LabelMapFiles"}


def refuse_other_dataset(folder: Path, generator: str) -> None:
    """Refuse a folder with a data set that `generator` did not make."""
    # Look for images first: a process that starts at the same time writes the description before any image.
    occupied = any(any(folder.glob(name)) for name in ("participants.tsv", "sub-*", "ses-*", "anat"))
    if (occupied or (folder / "dataset_description.json").exists()) and not made_by(folder, generator):
        raise ValueError(
            f"output_dir {folder} holds a data set that {generator} did not make. Choose a new folder, so that synthetic "
            f"images are not mixed with it"
        )


class BaseDerivative:
    """Write synthetic volumes and their sidecars to a folder. `data/derivative.py` of each bundle has a subclass of it.

        output_dir/dataset_description.json, README, participants.tsv, participants.json
        output_dir/sub-X/[ses-Y/]anat/sub-X[_ses-Y]_T1w.nii.gz, .._T1w.json

    Several processes may write different volumes at once. The last one calls `finish`, or each does. The sidecar is written
    last, so an image without a sidecar is incomplete. Columns and rows that a user added to participants.tsv are kept.

    A subclass sets `generator` (its name in dataset_description.json), `notice` (the sentence that marks a volume as
    synthetic), `required` (the keys that the provenance must have), `mark` (a key that only its own sidecars have) and
    `stored_as` (type and grid of the images, in words). If its volumes are no T1w, it sets `suffix`, the end of their names,
    and `scaling`, which says for each type of voxels how intensities are scaled, or "".

    It defines `image_file(row)`, which returns the path of a row's volume, `_readme()`, which returns the text of the README,
    `_of_participant(sidecar)`, which returns what the table needs of a sidecar, and `_participants(made)`, which turns these
    by path into the lines of participants.tsv and the content of participants.json.

    Args:
        output_dir: folder that is new, empty, or written by an earlier run.
        dtype: type of the voxels on disk: "uint8", or "float32" for the model's output without rounding.
        name: name of the data set.
        verify: whether to read finished volumes to their end before they are left out.
    """

    generator = notice = mark = stored_as = covariates_are = ""
    suffix, scaling = "T1w", INTENSITIES
    required: Sequence[str] = ()

    def __init__(self, output_dir: str | Path, dtype: str, name: str, verify: bool = False) -> None:
        if dtype not in self.scaling:
            raise ValueError(f"output_dtype must be {' or '.join(self.scaling)}, got {dtype!r}")
        self.output_dir, self.dtype, self.name, self.verify = Path(output_dir), dtype, name, verify
        self.threads = os.cpu_count() if verify else 1  # that look for finished volumes at once
        self._read: dict[str, tuple[tuple[int, int], tuple[Any, str]]] = {}  # finished volume -> `_date_and_size`, `_facts`
        if self.output_dir.exists() and not self.output_dir.is_dir():
            raise ValueError(f"output_dir {output_dir} is a file. Name a folder, which may be new")
        self._refuse_other_dataset()

    @property
    def _volumes(self) -> str:
        return f"sub-*/**/anat/sub-*_{self.suffix}.nii.gz"

    def refuse_clashes(self, rows: Iterable[Mapping], left: Iterable[Mapping] | None = None) -> None:
        """Refuse volumes whose names differ only in case from each other or from volumes in the folder.

        Only the rows that are `left` to make, by default all, are compared with the folder, which can hold 100,000 volumes.
        """
        rows = list(rows)
        planned = {self.image_file(row) for row in rows}
        files = (self.image_file(row) for row in (rows if left is None else left))
        subjects = {file.relative_to(self.output_dir).parts[0].lower() for file in files}
        with suppress(FileNotFoundError), os.scandir(self.output_dir) as folders:
            there = [Path(entry.path) for entry in folders if subjects and entry.name.lower() in subjects]
            planned.update(file for folder in there for file in find_files(folder, self._volumes.partition("/")[2]))
        refuse_twice(planned, self.output_dir)

    def finish(self, rows: Iterable[Mapping]) -> list[str]:
        """Write participants.tsv and participants.json for all volumes in the folder, of this run and earlier ones.

        Return the names, such as "sub-X", of those `rows` whose volumes the folder lacks.
        """
        self._write_description()
        table, before, made = self.output_dir / "participants.tsv", (), {}
        while before != _state(table):  # at first, and if another process wrote the table meanwhile
            before, made = _state(table), self._made()
        lines, columns = self._participants(made)
        files = [self.image_file(row) for row in rows]
        asked = {file.relative_to(self.output_dir).parts[0] for file in files}
        lines, columns = _with_users_cells(table, lines, columns, f"({self.covariates_are})", asked)
        write_table(table, lines)
        write_json(table.with_suffix(".json"), columns)
        return [file.name.removesuffix(f"_{self.suffix}.nii.gz") for file in files if file not in made]

    def _made(self) -> dict[Path, Any]:
        """Return what participants.tsv needs of each complete volume in the folder. Whole sidecars would fill the memory."""
        made, weights = {}, set()
        for file in find_files(self.output_dir, self._volumes):
            if (facts := self._facts(file)) is not None:
                made[file], own_weights = facts
                weights.add(own_weights)
        if len(weights) > 1:
            message = f"{self.output_dir} holds volumes of {len(weights)} different weights. Keep each kind in its own folder"
            warnings.warn(message, stacklevel=3)
        return made

    def _facts(self, file: Path) -> tuple[Any, str] | None:
        """Return what participants.tsv needs of a complete volume, and its weights. A sidecar is read once in a run."""
        path = os.fspath(file)
        state, facts = self._read.get(path, (None, None))
        with suppress(OSError):
            if state and state == _date_and_size(path):
                return facts
        if (sidecar := self._read_sidecar(file)) is None:
            return None
        return self._of_participant(sidecar), str(sidecar.get("WeightsSHA256"))

    def _is_made(self, files: Sequence[Path], content: Mapping, grid: Callable[[], tuple]) -> bool:
        """Check for complete files, the first of them an image whose sidecar has the same content.

        Voxels are not read if the sidecar records type and grid (`stored_as`) and the size of each file, and no file is newer
        than the sidecar. This saves hours when a large cohort is continued. Otherwise, and with `verify`, the files are read,
        and must be on the `grid()`, (shape, affine). What was read is recorded, so that a copy with new dates is read once.
        """
        made = self._read_sidecar(files[0])
        if made is None or not (_has(made, content) or _has(made, json.loads(json.dumps(content)))):  # tuples become lists
            return False
        sidecar_file, sizes = _sidecar_file(files[0]), made.get(SIZES, {})
        known = made.get(STORED) == self.stored_as and all(file.name in sizes for file in files)
        written_ns = os.stat(sidecar_file).st_mtime_ns
        if known and not self.verify and all(os.stat(file).st_mtime_ns <= written_ns for file in files):
            facts = self._of_participant(made), str(made.get("WeightsSHA256"))
            self._read[os.fspath(files[0])] = _date_and_size(os.fspath(files[0])), facts
            return True
        shape, affine = grid()
        images = [_read_on_grid(file, shape, affine) for file in files]
        if any(image is None for image in images) or images[0].get_data_dtype() != self.dtype:
            return False
        with suppress(OSError):  # the folder can be read-only
            write_json(sidecar_file, {**made, **self._record(files)})
        return True

    def _write(self, image_file: Path, sidecar: Mapping, images: Mapping[Path, nib.Nifti1Image]) -> None:
        if not (self.output_dir / "dataset_description.json").exists():  # not earlier: a refused run leaves no files
            self._write_description()
        sidecar_file = _sidecar_file(image_file)
        sidecar_file.unlink(missing_ok=True)  # an interrupted write must not leave the old sidecar with a new image
        for path, image in images.items():
            write_nifti(path, image)
        write_json(sidecar_file, {**sidecar, **self._record(images)})

    def _record(self, files: Iterable[Path]) -> dict:
        return {STORED: self.stored_as, SIZES: {path.name: path.stat().st_size for path in files}}

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
            if volume.min() == volume.max():
                name, value = self.image_file(row), float(volume.min())
                warnings.warn(f"{name} shows nothing: it is {value:g} everywhere. Train the model longer", stacklevel=2)
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
            **({"IntensityScaling": self.scaling[self.dtype]} if self.scaling[self.dtype] else {}),
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
        path = os.fspath(image_file)  # text, because paths of 100,000 rows take seconds so, and minutes as `Path`
        try:
            with open(path.removesuffix(".nii.gz") + ".json", encoding="utf-8") as file:
                sidecar = json.load(file)
            if self.mark not in sidecar:
                return None
            for name, size in (sidecar.get(SIZES) or {image_file.name: None}).items():
                found = os.stat(os.path.join(os.path.dirname(path), name))
                if size not in (None, found.st_size):
                    return None
        except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError):
            return None
        return sidecar

    def _refuse_other_dataset(self) -> None:
        refuse_other_dataset(self.output_dir, self.generator)

    def _write_description(self) -> None:
        maker = {"Name": self.generator, "Version": _bundle_version(), "Description": self.notice}
        description = {"Name": self.name, "BIDSVersion": BIDS_VERSION, "DatasetType": "derivative", "GeneratedBy": [maker]}
        write_json(self.output_dir / "dataset_description.json", description)
        intensities = f"\nIntensities: {self.scaling[self.dtype]}." if self.scaling[self.dtype] else ""
        write_text(self.output_dir / "README", f"{self.name}\n\n{self.notice}\n\n{self._readme()}{intensities}\n")


def _read_on_grid(path: Path, shape: Sequence[int], affine: np.ndarray) -> nib.Nifti1Image | None:
    """Read an image to its end, or return None if it is damaged or on another grid."""
    try:
        image = read_whole(path)
    except ValueError:
        return None
    return image if image.shape == tuple(shape) and np.allclose(image.affine, affine, atol=1e-3) else None


def _date_and_size(image_file: str) -> tuple[int, int]:
    """Return when the sidecar of an image was written, and the size of the image."""
    return os.stat(image_file.removesuffix(".nii.gz") + ".json").st_mtime_ns, os.stat(image_file).st_size


def _has(sidecar: Mapping, content: Mapping) -> bool:
    return all(sidecar.get(key) == value for key, value in content.items() if key not in WORDS)


def _with_users_cells(
    table: Path, lines: Sequence[Sequence], columns: Mapping, mark: str, asked: Collection[str]
) -> tuple[list[Sequence], dict[str, Mapping]]:
    """Add to the lines of a table, and to what its JSON says, the columns and rows of the table as it is that a user added.

    A column that the lines lack is not a user's if its description has the text `mark`: other weights had this covariate. A row
    that the lines lack is not a user's if its volume was `asked` for: the volume is not complete.
    """
    if not table.exists() or not table.stat().st_size:
        return list(lines), dict(columns)
    try:
        header, cells = read_one_each(table)
        said = read_json(table.with_suffix(".json")) if table.with_suffix(".json").exists() else {}
    except ValueError as error:
        raise ValueError(f"{error}. All volumes are made. Correct {table} or remove it, and start the command again") from error
    known = {name.lower() for name in lines[0]}
    own = [name for name in header if name.lower() not in known and mark not in str(said.get(name))]
    (head, *rest), none = lines, dict.fromkeys(own, "n/a")
    lines = [[*head, *own], *([*line, *((none | cells.get(line[0], {}))[name] for name in own)] for line in rest)]
    ours = {*asked, *(line[0] for line in rest)}
    others = {who: row for who, row in cells.items() if who not in ours}
    if without := [who for who in others if not any((table.parent / who).rglob("*.nii*"))]:
        warnings.warn(
            f"{table}: keeps {count(without, 'row')} without a volume, such as {without[0]}. Remove such rows", stacklevel=3
        )
    for who, row in others.items():
        known_cells = {name.lower(): cell for name, cell in row.items()} | {lines[0][0]: who}
        lines.append([known_cells.get(name.lower()) or "n/a" for name in lines[0]])
    return lines, {**columns, **{name: said[name] for name in own if name in said}}


def _state(path: Path) -> tuple | None:
    """Return what changes if a file is written again, or None if it does not exist."""
    return version(path)[1:] if path.exists() else None


def _sidecar_file(image_file: Path) -> Path:
    return image_file.with_name(image_file.name.replace(".nii.gz", ".json"))


_version = cache(metadata.version)  # it reads files


@cache
def _bundle_version() -> str:
    metadata_file = BUNDLE / "configs" / "metadata.json"
    return read_json(metadata_file)["version"] if metadata_file.is_file() else "unknown"
