"""Read, check and write NIfTI images."""

from __future__ import annotations

import gzip
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

try:
    from isal.igzip import IGzipFile as GzipFile  # writes in an eighth of zlib's time
except ImportError:
    GzipFile = gzip.GzipFile

from .files import atomic, code_sha256, read_json, version, write_text
from .nifti_header import refuse_ambiguous, refuse_flat
from .problems import refuse

GZIP = b"\x1f\x8b"  # first bytes of .nii.gz and .mgz
GZIP_MOST = 1032  # gzip shrinks no data more than this
LEAST_LEVELS = 256  # different values of float32 that a scan needs between its lowest and its highest intensity (chosen)
# Largest part of a scan's range that its 0.1 % lowest or highest voxels may take up, in units of the range of the others. The
# darkest take up nothing in magnitude images. The brightest took up 0 to 2.4 in whole heads of five scanners.
MOST_BELOW, MOST_ABOVE = 1.0, 9.0
# Largest share of voxels whose next voxel has the same value, as a mean over the values. It was at most 0.40 in scans, even in
# 5 bits, 0.56 in scans enlarged by nearest neighbour, and at least 0.61 in label maps of 1 and 2 mm, which have few values.
MOST_REPEATED, MOST_LABELS, LEAST_VOXELS, LEAST_VALUES = 0.58, 300, 5_000, 3
# It was at least 0.38 in label maps of 4 and 8 mm, and at most 0.35 in scans of 4 and 8 mm, even in 4 bits. In a label map with
# many values, the sizes of successive values have a median ratio of exp(0.5) or more; in scans, it was at most exp(0.36).
MOST_REPEATED_COARSE, COARSE_VOXELS, MOST_UNEVEN = 0.36, 100_000, 0.45
COARSE = 1.5  # longest side of a voxel that a grid resolves, in units of the grid's voxels: 1 mm and 1.2 mm pass; chosen
LEAST_CORRELATION = 0.2  # of bright neighbouring voxels: 0.59 or more in heads of 1 to 4 mm, 0 in noise; chosen
nib.imageglobals.logger.setLevel(logging.CRITICAL)  # its lines name no file; `open_image` refuses such faults by name


def open_image(path: str | Path, remedy: str = "Convert it again from DICOM", oriented: bool = True) -> nib.Nifti1Image:
    """Open a NIfTI or FreeSurfer (.mgz) image without reading its voxels, and check its header.

    The affine of the result is the only place of the voxels that the header allows, see `nifti_header.refuse_ambiguous`.

    Args:
        path: file to open.
        remedy: advice for a file whose place is unknown.
        oriented: whether the directions of the axes must be known.

    Raises:
        ValueError: the file cannot be read, or its header has a fault. The message does not name the file, see `named`.
    """
    return _as_nifti(_open(path, remedy, oriented))


def read_whole(path: str | Path, remedy: str = "Convert it again from DICOM", oriented: bool = True) -> nib.Nifti1Image:
    """Open an image as `open_image` does, read it into memory to its end, and verify the checksum of gzip.

    Raises:
        ValueError: also if the file ends too early, or holds more than its header describes.
    """
    image = _open(path, remedy, oriented)
    size = None
    if not isinstance(image, nib.MGHImage):  # .mgz may hold more after its voxels
        size = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    try:
        content = _content(Path(path), size)
        image = type(image).from_bytes(content)
        if size is None:
            np.asanyarray(image.dataobj)
    except Exception as error:
        raise ValueError(f"cannot be read to its end ({_reason(error)}). Copy or convert it again") from error
    return _as_nifti(image)


def read_volume(path: str | Path, oriented: bool = True) -> nib.Nifti1Image:
    """Read one volume as `read_whole` does. Trailing axes of length 1 are removed. The message of an error names the file."""
    with named(path):
        image = nib.squeeze_image(read_whole(path, oriented=oriented))
        three_sides(image.shape)
    return image


def three_sides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape (X, Y, Z) of one volume, without the axes of length 1 that some tools append. Refuse any other shape."""
    sides = tuple(map(int, shape))
    if len(sides) < 3 or set(sides[3:]) - {1}:
        raise ValueError(f"has {len(sides)} dimensions {sides}; three are needed. Extract one volume, e.g. by fslroi")
    return sides[:3]


def read_grey_values(path: str | Path, is_mask: bool = False) -> np.ndarray:
    """Read the voxels (X, Y, Z) of a scan, or of a mask, in RAS order.

    Raises:
        ValueError: the file is damaged or not one volume, or `grey_values` or `refuse_outliers` refuses its voxels.
    """
    image = nib.squeeze_image(read_whole(path))
    three_sides(image.shape)
    values = grey_values(nib.as_closest_canonical(image), is_mask)
    refuse_outliers(values)
    return values


def refuse_non_finite(values: np.ndarray) -> None:
    if bad := values.size - np.count_nonzero(np.isfinite(values)):
        raise ValueError(f"has {bad} voxels that are NaN or infinite. Replace them, e.g. by 0")


def grey_values(image: nib.Nifti1Image, is_mask: bool = False) -> np.ndarray:
    """Return the voxels of a scan. Refuse a label map, and voxels that are not finite, all the same, or the same in float32."""
    with np.errstate(all="ignore"):
        values = np.asanyarray(image.dataobj)
    refuse_non_finite(values)
    low, high = float(values.min()), float(values.max())
    if low == high:
        raise ValueError(f"is {low:g} everywhere. Convert it again, or remove it")
    largest = max(abs(low), abs(high))
    if largest > float(np.finfo(np.float32).max) / 2 or (high - low) / np.spacing(np.float32(largest)) < LEAST_LEVELS:
        raise ValueError(f"has intensities from {low:g} to {high:g}, which float32 cannot hold. Scale them to 0 to 1000")
    if not is_mask:
        refuse_labels(values)
    return values


def refuse_labels(values: np.ndarray) -> None:
    """Refuse a label map or mask in place of a scan: its few values fill regions. Noise makes neighbours in a scan differ."""
    every = max(1, round(math.sqrt(values.size / 200_000)))  # about 200 000 voxels are enough
    lines = values[::every, ::every]
    found, index, counts = np.unique(lines[..., :-1], return_inverse=True, return_counts=True)
    if len(found) < LEAST_VALUES:
        raise ValueError(f"has few different values, {len(found)}, as in a label map or a mask. Give the scan")
    if values.size < LEAST_VOXELS or len(found) > MOST_LABELS:
        return
    repeated = np.bincount(index.ravel(), (lines[..., 1:] == lines[..., :-1]).ravel()) / counts
    often = counts >= 10
    uneven = np.median(np.abs(np.diff(np.log(counts[often])))) > MOST_UNEVEN if often.sum() > LEAST_VALUES else False
    most = MOST_REPEATED_COARSE if uneven or values.size < COARSE_VOXELS else MOST_REPEATED
    if often.any() and (share := repeated[often].mean()) > most:
        raise ValueError(
            f"has few different values, and {share:.0%} of neighbouring voxels are equal, as in a label map or a mask. "
            f"Give the scan"
        )


def coarse(sizes_mm: Sequence[float], spacing_mm: float) -> str:
    """Return the sides of a voxel, such as "1 x 1 x 5 mm", if one is much longer than a voxel of a grid is, or ""."""
    return f"{' x '.join(f'{size:.3g}' for size in sizes_mm)} mm" if max(sizes_mm) > COARSE * spacing_mm else ""


def refuse_noise(values: np.ndarray) -> None:
    """Refuse a volume (X, Y, Z) that `is_noise`."""
    if is_noise(values):
        found = _correlation_of_neighbours(values)
        raise ValueError(f"neighbouring voxels have a correlation of {found:.2f}, as in noise. Give a T1w of a head")


def is_noise(values: np.ndarray) -> bool:
    """Return whether the bright voxels of a volume (X, Y, Z) say nothing about their neighbours."""
    return _correlation_of_neighbours(values) < LEAST_CORRELATION


def _correlation_of_neighbours(values: np.ndarray) -> float:
    """Return the correlation of bright voxels with their neighbours along the first axis, 1 where none can be computed."""
    bright = values > 0.1 * np.percentile(values[::2, ::2], 99.5)
    pairs = bright[1:] & bright[:-1]
    one, other = values[1:][pairs], values[:-1][pairs]
    return float(np.corrcoef(one, other)[0, 1]) if one.size and one.std() > 0 and other.std() > 0 else 1.0


def refuse_outliers(values: np.ndarray) -> None:
    """Refuse a scan in which a few voxels take up most of the range, because scaling would leave no contrast to the others."""
    lowest, low, high, highest = spread(values)
    if low - lowest > MOST_BELOW * (high - low) or highest - high > MOST_ABOVE * (high - low):
        raise ValueError(
            f"has intensities from {lowest:.6g} to {highest:.6g}, but nearly all of its voxels lie in {low:.6g} to {high:.6g}, "
            f"so the others would take its contrast away. Clip it to {low:.6g} to {high:.6g}"
        )


def spread(values: np.ndarray) -> tuple[float, float, float, float]:
    """Return the lowest value, the percentiles 0.1 and 99.9 without interpolation, and the highest value.

    The percentiles leave out the highest value, and the lowest one if it is negative: either may be padding that fills many
    voxels outside of the field of view.
    """
    lowest, highest = values.min(), values.max()
    inside = values[(values < highest) & ((values > lowest) | (lowest >= 0))]
    if not inside.size or inside.min() == inside.max():
        inside = values
    low, high = (np.percentile(inside, share, method=method) for share, method in ((0.1, "higher"), (99.9, "lower")))
    return float(lowest), float(low), float(high), float(highest)


@contextmanager
def named(path: str | Path) -> Iterator[None]:
    """Start the message of a ValueError with the file's path."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _open(path: str | Path, remedy: str, oriented: bool) -> nib.spatialimages.SpatialImage:
    path, kinds = Path(path), (nib.Nifti1Image, nib.Nifti2Image, nib.MGHImage)
    if fault := _broken_link(path):
        raise ValueError(fault)
    if not os.path.lexists(path):
        raise ValueError("is missing. Make this file, or correct the path or ending that names it")
    with _unreadable():
        if path.stat().st_size == 0:
            raise ValueError("it is empty")
        zipped = _is_zipped(path)
        if zipped != path.name.lower().endswith((".gz", ".mgz")):
            raise ValueError(f"it is {'' if zipped else 'not '}compressed by gzip, unlike what its name says")
        with gzip.open(path) if zipped else open(path, "rb") as file:
            start = file.read(1024)
        # Read the header as it is on disk, because nibabel.load corrects some faults and stops at others.
        nifti = next((kind.header_class for kind in kinds[:2] if kind.header_class.may_contain_header(start)), None)
        header = nifti(start[: nifti.sizeof_hdr], check=False) if nifti else None
    if header is not None:
        with _unreadable(but=ValueError):
            refuse_ambiguous(header, oriented, remedy)
    with _unreadable():
        image = nib.load(path)
        if type(image) not in kinds:
            raise ValueError(f"it is a {type(image).__name__}")
    if header is None:
        if oriented and start[28:30] == bytes(2):
            raise ValueError(f"has no directions of its axes (goodRASFlag), so left and right are unknown. {remedy}")
        refuse_flat(image.affine, remedy)
    return image


def _broken_link(path: str | Path) -> str:
    """Describe a link to a missing file, such as one that git-annex has not fetched. Return "" for any other path."""
    if not os.path.islink(path) or os.path.exists(path):
        return ""
    return f"is a link to {os.readlink(path)}, which does not exist. Fetch that file, or remove the link"


@contextmanager
def _unreadable(but: type[Exception] | tuple = ()) -> Iterator[None]:
    """Turn an error of any kind, even one about memory, into a ValueError. Errors of the type `but` stay as they are."""
    try:
        yield
    except but:
        raise
    except PermissionError as error:
        raise ValueError("cannot be read, because you lack the permission. Ask its owner for it") from error
    except Exception as error:
        raise ValueError(f"is not a NIfTI image that can be read ({_reason(error)}). Give .nii, .nii.gz or .mgz") from error


def _content(path: Path, size: int | None) -> bytes:
    """Read and decompress a file, which must hold `size` bytes. None takes any number. A false size takes no memory."""
    zipped, on_disk = _is_zipped(path), path.stat().st_size
    if size is not None and size > on_disk * (GZIP_MOST if zipped else 1):
        raise ValueError(f"its header describes {size} bytes, it has {on_disk}")
    with gzip.open(path) if zipped else open(path, "rb") as file:
        content = file.read() if size is None else file.read(size + 1)  # beyond the end, where gzip has its checksum
    if size is not None and len(content) != size:
        raise ValueError(f"its header describes {size} bytes, it has {'more' if len(content) > size else len(content)}")
    return content


def _is_zipped(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == GZIP


def _as_nifti(image: nib.spatialimages.SpatialImage) -> nib.Nifti1Image:
    return nib.Nifti1Image.from_image(image) if isinstance(image, nib.MGHImage) else image


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def refuse_damaged(paths: Sequence[str | Path]) -> None:
    """Read every image to its end with `read_volume`, and refuse all that are damaged or hold NaN in one message."""
    files = list(dict.fromkeys(map(str, paths)))

    def check(file: str) -> list[int]:
        values = np.asanyarray(read_volume(file).dataobj)
        refuse_non_finite(values)
        return list(values.shape)

    problems, _ = check_files([[file] for file in files], check)
    refuse(problems, f"{len(problems)} of {len(files)} images cannot be used:")


def write_nifti(path: str | Path, image: nib.Nifti1Image) -> None:
    """Write an image with gzip compression, completely or not at all. Equal images give identical files."""
    with atomic(path) as file, GzipFile(filename="", mode="wb", compresslevel=1, fileobj=file, mtime=0) as zipped:
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
        cache_file: JSON file that holds the results by path, size, dates, `settings` and code; None caches nothing.

    Returns:
        the problems in the order of `items`, and for each item the result of `check`, or None if it has a problem.
    """
    try:
        known = read_json(cache_file) if cache_file is not None else {}
    except (FileNotFoundError, ValueError):  # missing or damaged: check every file again
        known = {}

    def answer(paths: Sequence[str]) -> tuple[list[str], list | None]:
        state = [code_sha256(), *settings]
        for path in paths:
            try:
                state += version(path)
            except OSError as error:
                return [f"{path}: {_broken_link(path) or error.strerror}"], None
        key = os.path.abspath(paths[0])
        if known.get(key, [None])[0] != state:
            try:
                known[key] = [state, check(*paths)]
            except ValueError as error:
                lines = str(error).split("\n")
                return [line if any(path in line for path in paths) else f"{paths[0]}: {line}" for line in lines], None
            except Exception as error:  # such as too little memory: one file must not hide the faults of the others
                return [f"{', '.join(paths)}: could not be checked ({type(error).__name__}: {_reason(error)})"], None
        return [], known[key][1]

    try:
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            answers = list(tqdm(pool.map(answer, items), "Checking images", len(items), leave=False, disable=None))
    finally:
        if cache_file is not None:
            write_text(cache_file, json.dumps(known))
    return [problem for problems, _ in answers for problem in problems], [found for _, found in answers]
