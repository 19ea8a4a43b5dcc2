"""Read, check and write NIfTI images."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from tqdm import tqdm

from .files import atomic, read_json, write_text

GZIP = b"\x1f\x8b"  # first bytes of .nii.gz and .mgz
UNREADABLE = (OSError, EOFError, ValueError, KeyError, AttributeError, zlib.error, ImageFileError, HeaderDataError)


def open_image(path: str | Path, remedy: str = "Convert it again from DICOM") -> nib.Nifti1Image:
    """Open an image without reading its voxels, and check that its orientation is known.

    Raises:
        ValueError: the file is not NIfTI, does not define left and right, or has an affine that cannot be inverted. The message
            gives `remedy` as advice.
    """
    try:
        image = nib.load(path)
        codes = max(int(image.header["sform_code"]), int(image.header["qform_code"]))
        affine = image.affine
    except UNREADABLE as error:
        raise ValueError(f"is not a NIfTI image that can be read ({error})") from error
    if codes == 0:
        raise ValueError(f"has neither a qform nor an sform, so left and right are unknown. {remedy}")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-6:
        raise ValueError(f"has an affine that cannot be inverted, {affine[:3].tolist()}. {remedy}")
    return image


def refuse_not_3d(shape: Sequence[int]) -> None:
    """Refuse a scan that is not one volume: `shape` must have three axes."""
    if len(shape) != 3:
        raise ValueError(f"has {len(shape)} dimensions {shape}; three are needed. Extract one volume, e.g. by fslroi")


def read_whole(path: str | Path) -> nib.Nifti1Image:
    """Read a complete image into memory, or raise ValueError. nibabel alone does not verify the checksum of gzip."""
    try:
        image_class = type(nib.load(path))
        content = Path(path).read_bytes()
        image = image_class.from_bytes(gzip.decompress(content) if content[:2] == GZIP else content)
        np.asanyarray(image.dataobj)
    except UNREADABLE as error:
        raise ValueError(f"cannot be read to its end ({error})") from error
    return image


def read_grey_values(path: str | Path) -> np.ndarray:
    """Read the voxels (X, Y, Z) of a scan in RAS order.

    Raises:
        ValueError: the file is damaged, or its voxels are not numbers, not finite, or all the same.
    """
    values = np.asanyarray(nib.as_closest_canonical(read_whole(path)).dataobj)
    if values.dtype.kind not in "iuf":
        raise ValueError(f"has voxels of type {values.dtype}; grey values are needed")
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise ValueError(f"has {bad} voxels that are NaN or infinite. Replace them, e.g. by 0")
    if values.min() == values.max():
        raise ValueError(f"is {values.min():g} everywhere. Convert it again, or remove it")
    return values


def write_nifti(path: str | Path, image: nib.Nifti1Image) -> None:
    """Write an image with gzip compression, completely or not at all. Equal images give identical files."""
    with atomic(path) as file, gzip.GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as zipped:
        zipped.write(image.to_bytes())


def check_files(
    items: Sequence[Sequence[str]],
    check: Callable[..., list],
    settings: Sequence = (),
    workers: int | None = None,
    cache_file: str | Path | None = None,
) -> tuple[list[str], list[list | None]]:
    """Check files in parallel threads. The results of files that pass are cached.

    Args:
        items: paths of the files that are checked together, such as [scan] or [scan, label map].
        check: function of the paths of an item. It returns values that JSON can hold, or raises ValueError with one line for
            each problem.
        settings: further values that the result of `check` depends on, as JSON can hold them.
        workers: number of threads; None starts one per core.
        cache_file: JSON file that holds the results by path, size, date and `settings`; None caches nothing.

    Returns:
        the problems in the order of `items`, and for each item the result of `check`, or None if it has a problem.
    """
    try:
        known = read_json(cache_file) if cache_file is not None else {}
    except (FileNotFoundError, ValueError):  # missing or damaged: check every file again
        known = {}

    def answer(paths: Sequence[str]) -> tuple[list[str], list | None]:
        state = list(settings)
        for path in paths:
            try:
                stat = os.stat(path)
            except OSError as error:
                return [f"{path}: {error.strerror}"], None
            state += [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
        key = state[len(settings)]
        if known.get(key, [None])[0] != state:
            try:
                known[key] = [state, check(*paths)]
            except ValueError as error:
                return str(error).split("\n"), None
        return [], known[key][1]

    try:
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            answers = list(tqdm(pool.map(answer, items), "Checking images", len(items), leave=False, disable=None))
    finally:
        if cache_file is not None:
            write_text(cache_file, json.dumps(known))
    return [problem for problems, _ in answers for problem in problems], [found for _, found in answers]
