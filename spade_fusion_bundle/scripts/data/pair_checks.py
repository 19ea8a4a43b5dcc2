"""Whether scans and label maps can be trained on: each is read and checked once, and sound pairs are remembered."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from tqdm import tqdm

from ..shared.files import atomic, read_whole
from .labels import LabelTable

__all__ = ["pair_problems"]

MOST_READERS = 4  # each holds a pair, some 0.5 GB at 256 x 256 x 256 while its values are looked up

# Entries of scan's and map's affine may differ by so much: rounding of a quaternion, not another position.
AFFINE_TOLERANCE = 1e-3


def pair_problems(
    items: Sequence[Mapping], table: LabelTable, workers: int | None = None, cache_file: str | Path | None = None
) -> list[str]:
    """What is wrong with the files, in their order, one line each; sound pairs are remembered and not read again.

    Args:
        items: {"image", "label"}, paths of T1w and map.
        table: whose values the maps may hold.
        workers: threads that read; None: one per core, at most 4.
        cache_file: JSON that remembers the sound pairs by path, size, date and table.
    """
    sound = _read_cache(cache_file)
    of_table = hashlib.sha256(json.dumps(table.to_dict()).encode()).hexdigest()

    def check(item: Mapping[str, str]) -> list[str]:
        paths = [item["image"], item["label"]]
        state = [os.path.abspath(item["label"]), of_table]
        for path in paths:
            try:
                stat = os.stat(path)
            except OSError as error:
                return [f"{path}: {error.strerror}"]
            state += [stat.st_size, stat.st_mtime_ns]
        key = os.path.abspath(item["image"])
        if sound.get(key) == state:
            return []
        problems = _problems_of_pair(*paths, table)
        if not problems:
            sound[key] = state
        return problems

    try:
        with ThreadPoolExecutor(workers or min(MOST_READERS, os.cpu_count())) as pool:
            found = list(tqdm(pool.map(check, items), "Checking scans", len(items), leave=False, disable=None))
    finally:
        if cache_file is not None:
            Path(cache_file).parent.mkdir(parents=True, exist_ok=True)
            with atomic(cache_file) as file:
                file.write(json.dumps(sound).encode())
    return [problem for problems in found for problem in problems]


def _read_cache(cache_file: str | Path | None) -> dict[str, list]:
    try:
        cache = json.loads(Path(cache_file).read_text()) if cache_file is not None else {}
    except (OSError, ValueError):  # none yet, or damaged: everything is read once more
        cache = {}
    return cache if isinstance(cache, dict) else {}


def _problems_of_pair(image: str, label: str, table: LabelTable) -> list[str]:
    problems, grids = [], []
    try:
        grids.append(_check_image(image))
    except ValueError as error:
        problems.append(f"{image}: {error}")
    try:
        grids.append(_check_label(label, table))
    except ValueError as error:
        problems.append(f"{label}: {str(error).removeprefix(f'{label}: ')}")
    if not problems:
        (shape, affine), (of_label, label_affine) = grids
        remedy = f"the scan {image}. Resample the map to the scan with nearest neighbour"
        if of_label != shape:
            problems.append(f"{label}: has the shape {of_label}, not {shape} as {remedy}")
        elif np.abs(affine - label_affine).max() > AFFINE_TOLERANCE:
            rows, label_rows = (np.round(matrix[:3], 3).tolist() for matrix in (affine, label_affine))
            problems.append(f"{label}: has the affine {label_rows}, not {rows} as {remedy}")
    return problems


def _check_image(path: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a sound T1w."""
    shape, affine = _check_header(path)
    if len(shape) != 3:
        raise ValueError(f"has {len(shape)} dimensions {shape}; three are needed. Extract one volume, e.g. by fslroi")
    values = np.asanyarray(read_whole(path).dataobj)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"has voxels of type {values.dtype}; grey values are needed")
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise ValueError(f"has {bad} voxels that are NaN or infinite. Replace them, e.g. by 0")
    if values.min() == values.max():
        raise ValueError(f"is {values.min():g} everywhere. Convert it again, or remove it")
    return shape, affine


def _check_label(path: str, table: LabelTable) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a sound label map; one trailing axis of length 1, as some tools write, is ignored."""
    shape, affine = _check_header(path)
    if shape[3:] == (1,):
        shape = shape[:3]
    if len(shape) != 3:
        raise ValueError(f"is a {len(shape)}-D map {shape}; three dimensions are needed, with one label per voxel")
    table.classes(np.asanyarray(read_whole(path).dataobj), path)
    return shape, affine


def _check_header(path: str) -> tuple[tuple[int, ...], np.ndarray]:
    try:
        image = nib.load(path)
        header, shape, affine = image.header, image.shape, image.affine
        codes = max(int(header["sform_code"]), int(header["qform_code"]))
    except (OSError, EOFError, ValueError, KeyError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise ValueError(f"is not a NIfTI image that can be read ({error})") from error
    if codes == 0:
        raise ValueError("has neither a qform nor an sform, so left and right are unknown. Convert it again from DICOM")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-12:
        raise ValueError(f"has an affine that cannot be inverted, {affine[:3].tolist()}. Convert it again")
    return shape, affine
