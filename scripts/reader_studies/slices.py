"""Make the pictures of a reader study from T1w volumes. The pictures differ only in their content."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from cohorts.scans_or_synthetic import refuse_scans, refuse_synthetic, warn_of_missing_sidecars
from PIL import Image
from shared.files import is_there, sha256
from shared.head_mask import head_mask
from shared.image_files import find_t1w
from shared.nifti import grey_values, named, open_image, read_volume, three_sides
from shared.participants import read_participants
from shared.problems import of_each, refuse

DIRECTIONS = {"sagittal": 0, "coronal": 1, "axial": 2}  # axis of a volume in RAS order
KINDS = ("real", "synthetic")
# Percentiles of a head's voxels that are drawn black and white (chosen). SPADE writes 0 where a label map has no label. In
# the demo, this is 1.3 to 1.6 % of the head. Scans have noise there. If 2 % are drawn black, both look alike.
WINDOW_PERCENTILES = (2.0, 99.8)
LEAST_COMMON_VIEW = 0.6  # smallest common field of view, as a fraction of each side of each volume


@dataclass(frozen=True)
class Volume:
    """A T1w volume whose voxels have not been read yet. Its axes are in RAS order."""

    path: Path
    kind: str  # one of KINDS
    digest: str  # SHA-256 of the file
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]


def find_volumes(sources: Iterable[Path], kind: str, split: str | None = None) -> list[Volume]:
    """Find the T1w volumes among files and folders.

    Args:
        sources: NIfTI files, BIDS data sets, folders of one subject, or folders with `*.nii[.gz]` directly inside.
        kind: "real" or "synthetic".
        split: name of the split to take, such as "test". All sources must then be BIDS data sets. None takes all participants.
    """
    paths = []
    for source in sources:
        if source.is_dir():
            inside = find_t1w(source)
            if kind == "synthetic":
                warn_of_missing_sidecars(inside)
            paths += inside if split is None else _of_split(inside, source, split)
        elif not source.is_file():
            raise FileNotFoundError(f"{source}: no such file or folder of {kind} volumes")
        elif split is not None:
            raise ValueError(f"{source}: --split {split} takes folders with participants.tsv, this is a file")
        else:
            paths.append(source)
    for path in paths:
        (refuse_scans if kind == "synthetic" else refuse_synthetic)(path, f"--{kind}")
    return of_each(lambda path: _survey(path, kind), paths, f"of {len(paths)} {kind} volumes cannot be used:")


def read_splits(folder: Path) -> dict[str, str]:
    """Return the split of each participant_id. The dict is empty if participants.tsv or its column split is missing."""
    table = folder / "participants.tsv"
    if not is_there(table):
        return {}
    header, rows, problems = read_participants(table, ["split"])
    refuse(problems)
    return {name: next(iter(sessions.values())).cells["split"] for name, sessions in rows.items() if "split" in header}


def _of_split(paths: Sequence[Path], folder: Path, split: str) -> list[Path]:
    splits, table = read_splits(folder), folder / "participants.tsv"
    if not splits:
        raise ValueError(f"{table}: no such table with columns participant_id and split, which --split {split} needs")
    if split not in splits.values():
        raise ValueError(f"{table}: no split {split!r}, only {', '.join(sorted(set(splits.values())))}")
    taken = [path for path in paths if splits.get(path.relative_to(folder).parts[0]) == split]
    if not taken:
        raise FileNotFoundError(f"{folder}: no T1w of the split {split!r}, although participants.tsv lists it")
    return taken


def _survey(path: Path, kind: str) -> Volume:
    """Describe a volume by its header. Its voxels are not read, because a study shows few volumes of a large folder."""
    with named(path):
        image = open_image(path)
        shape = three_sides(image.shape)
    in_ras = np.argsort(nib.io_orientation(image.affine)[:, 0])  # axis of the file for each axis of RAS order
    spacing_mm = nib.affines.voxel_sizes(image.affine)
    return Volume(path, kind, sha256(path), *(tuple(np.asarray(sides)[in_ras].tolist()) for sides in (shape, spacing_mm)))


def check_voxels(volumes: Iterable[Volume]) -> None:
    """Read volumes, and refuse all that are damaged or no scans in one message."""

    def check(volume: Volume) -> None:
        image = read_volume(volume.path)
        with named(volume.path):
            grey_values(image)

    volumes = sorted(set(volumes), key=lambda volume: volume.path)
    of_each(check, volumes, f"of {len(volumes)} chosen volumes cannot be used:")


def common_view(volumes: Sequence[Volume]) -> tuple[int, ...]:
    """Return the smallest number of voxels along each axis. All volumes are cut to it, so the field of view is no clue."""
    first_of, reference = {}, volumes[0]
    for volume in volumes:
        other = first_of.setdefault(volume.digest, volume)
        if other is not volume:
            raise ValueError(f"{volume.path} ({volume.kind}) is the same as {other.path} ({other.kind}). Give each volume once")
        if not np.allclose(volume.spacing_mm, reference.spacing_mm, rtol=0.01):
            raise ValueError(
                f"{volume.path} ({volume.kind}) has voxels of {_listed(volume.spacing_mm)} mm, {reference.path} "
                f"({reference.kind}) of {_listed(reference.spacing_mm)} mm: their sharpness would reveal which is which. Bring "
                "all onto one grid in the same way, for example with scripts/prepare_data.py"
            )
    view = tuple(min(sides) for sides in zip(*(volume.shape for volume in volumes)))
    for volume in volumes:
        if (np.array(view) < LEAST_COMMON_VIEW * np.array(volume.shape)).any():
            smallest = next(other for other in volumes if (np.array(other.shape) == view).any())
            raise ValueError(
                f"{volume.path} has {_listed(volume.shape)} voxels, but {smallest.path} only {_listed(smallest.shape)}: the "
                "common field of view would cut heads. Bring all onto one grid"
            )
    return view


def _listed(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


def read_windowed(volume: Volume, view: Sequence[int]) -> np.ndarray:
    """Read a volume in RAS order, cut it to `view` voxels and window it to [0, 1] by percentiles of the head. Air is 0.

    Voxels are never interpolated. The view is centred on the head and stays inside the volume. Air is set to 0 because it is
    noisy in scans and exactly 0 in volumes of SPADE. This difference would reveal the kind.
    """
    values = np.asarray(nib.as_closest_canonical(read_volume(volume.path)).dataobj, dtype=np.float32)
    head = head_mask(values)
    black, white = np.percentile(values[head], WINDOW_PERCENTILES)
    if black == white:
        raise ValueError(f"{volume.path}: the {head.sum()} voxels of its head are {black:g}; there is nothing to show")
    window = []
    for axis, size in enumerate(view):
        inside = np.flatnonzero(head.any(tuple(other for other in range(3) if other != axis)))
        centre = (inside[0] + inside[-1] + 1) / 2
        low = int(np.clip(round(centre - size / 2), 0, values.shape[axis] - size))
        window.append(slice(low, low + size))
    return np.where(head, (values - black) / (white - black), 0).clip(0, 1)[tuple(window)]


def picture(values: np.ndarray, axis: int, index: int, rng: np.random.Generator) -> bytes:
    """Return one slice of `read_windowed` as an 8-bit PNG without compression or metadata. Its size depends only on `axis`.

    The picture follows the radiological convention: the subject's right is at the picture's left. The front of a sagittal slice
    is at the left. Grey levels are rounded with a dither of one level. Without the dither, the histogram of a volume that is
    stored in 8 bits would have gaps.
    """
    plane = values.take(index, axis)[::-1, ::-1].T
    dither = rng.random(plane.shape) - rng.random(plane.shape)
    grey = np.rint(plane * 255 + dither).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()
