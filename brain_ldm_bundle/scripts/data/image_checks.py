"""Check that images are complete, three-dimensional, in MNI space, finite and not constant, before work starts."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from ..shared.head_mask import head_mask
from ..shared.label_table import LabelTable
from ..shared.map_reader import map_files, read_map
from ..shared.mni_box import BRAIN_MM, FIELD_OF_VIEW_MM, LOWER_CORNER_MM
from ..shared.nifti import check_files, is_noise, named, open_image, read_grey_values, spread, three_sides
from ..shared.scan_identity import voxels_sha256
from .contrast import fluid_brighter_than_white_matter

# A head may be smaller than the template's, so the image may cut off this much of the template's brain on each side.
BRAIN_MARGIN_MM = 10.0
INNER_MM = 25.0  # planes this far inside the template's brain cross each brain
PREPARE = "Bring it there with: python scripts/prepare_data.py"
RESAMPLE = "Resample it by nearest neighbour to a scan that scripts/prepare_data.py brought there, or segment that scan"

FROM_SCANNER = (
    "have the NIfTI code 1 (scanner), not 4 (MNI). Their axes and field of view fit MNI space, but they may not be registered "
    f"to it. If not: {PREPARE}"
)
STRETCHED = (
    "have a few voxels that are more than twice as bright as the other 99.9 %. Scaling to 0 to 1 leaves less than half of the "
    "grey values to the others. Clip these voxels"
)
INVERTED = "are brighter in the corners than in the middle, unlike heads in air. They may be inverted: look at them"
BRIGHT_FLUID = (
    "are brighter in the ventricles than in white matter, unlike T1w. They may be T2w, or not registered to MNI space: look at "
    "them"
)
STRIPPED = "show no skull, and the others do. A model would learn both: strip all scans, or none"
MOST_STRIPPED_L = 2.3  # of voxels above the lowest value; up to 1.7 in brains without skull, 2.9 or more in heads; chosen
UPSIDE_DOWN = "show more above the head than below it. They may be upside down: look at them"
NECK_AND_AIR_MM = (-55, 95)  # planes below and above the brain in MNI space: the first crosses the neck, the second air
OFF_CENTRE = "show a head whose centre is far from that of heads in MNI space. Are they registered? Look at them"
# Centre of a head in the model's box. In 40 simulated heads, and in 8 real ones with and without skull or face, it was at most
# 8 mm away along each axis.
CENTRE_MM, MOST_OFF_CENTRE_MM = (0, -18, 6), 20
COARSE_MM = 8  # voxels that show where a head is
COARSE_IMAGE = "have much longer voxels than the model's (spacing_mm), so they lack detail. Use weights of a larger spacing_mm"
NOISE = "are noise: neighbouring voxels have nothing in common, unlike in a head. Leave them out"
CUT = "have planes of one value in the middle of the brain. A part of the head may be missing: look at them"


class Content(NamedTuple):
    """Identity, lowest and highest intensity of an image, and what is odd about it: remarks, and what was measured for each."""

    voxels_sha256: str
    lowest: float
    highest: float
    remarks: dict[str, str]


def check_images(
    paths: Sequence[str], spacing_mm: float, cache_file: str | Path | None = None, table: LabelTable | None = None
) -> tuple[list[str], dict[str, Content]]:
    """Check images as `bids.read_dataset` describes: label maps if a `table` is given, or else scans.

    Warn about scans that may not be registered to MNI space, or whose brightest voxels would take contrast from the others,
    that look inverted, upside down or like T2w, that are noise, that lack a part of the brain, or that alone lack the skull.

    Returns:
        one line for each problem, in the order of `paths`, and the content of each image that passes, by its path.
    """

    def check_map(path: str, *_: str) -> list:
        with named(path):
            _check_place(open_image(path, RESAMPLE), spacing_mm, RESAMPLE)
        values = np.asanyarray(nib.as_closest_canonical(read_map(path, table)).dataobj)
        return [voxels_sha256(values), float(values.min()), float(values.max()), {}]

    def check(path: str) -> list:
        with named(path):
            image = open_image(path, PREPARE)
            _check_place(image, spacing_mm)
            values = read_grey_values(path)
        remarks = {}
        if max(int(image.header["sform_code"]), int(image.header["qform_code"])) == 1:
            remarks[FROM_SCANNER] = ""
        lowest, low, high, highest = spread(values)
        if highest - high > high - low:
            remarks[STRETCHED] = ""
        if np.count_nonzero(values > lowest) * spacing_mm**3 / 1e6 < MOST_STRIPPED_L:
            remarks[STRIPPED] = ""
        if is_noise(values):
            remarks[NOISE] = ""
        remarks |= odd_heads(values, _corners_mm(image.shape[:3], image.affine).min(axis=0), spacing_mm)
        return [voxels_sha256(values), lowest, highest, remarks]

    if table is None:
        problems, found = check_files([[path] for path in paths], check, [spacing_mm], cache_file=cache_file)
    else:
        settings = [spacing_mm, table.to_dict()]
        problems, found = check_files([map_files(path) for path in paths], check_map, settings, cache_file=cache_file)
    contents = {path: Content(*content) for path, content in zip(paths, found) if content is not None}
    odd = defaultdict(list)
    for path, content in contents.items():
        for remark, measured in content.remarks.items():
            odd[remark].append(path + measured)
    if len(odd[STRIPPED]) in (0, len(contents)):
        del odd[STRIPPED]
    warn(odd)
    return problems, contents


def warn(odd: Mapping[str, Sequence[str]]) -> None:
    """Warn once for each remark, about the images that it is true for."""
    for remark, those in odd.items():
        warnings.warn(f"{len(those)} images, such as {min(those)}, {remark}", stacklevel=4)


def odd_heads(values: np.ndarray, lower_mm: np.ndarray, spacing_mm: float) -> dict[str, str]:
    """Return what is odd about a head, and what was measured. The volume (X, Y, Z) begins at its lower corner in RAS."""
    _, low, high, _ = spread(values if values.size < 1_000_000 else values[::2, ::2, ::2])  # an eighth is enough
    remarks = {}
    if _corners_minus_middle(values) > (high - low) / 10:
        remarks[INVERTED] = ""
    if found := fluid_brighter_than_white_matter(values, lower_mm, spacing_mm):
        remarks[BRIGHT_FLUID] = f" ({found})"
    if _has_empty_planes(values, lower_mm, spacing_mm):
        remarks[CUT] = ""
    neck, air = (int((z - lower_mm[2]) // spacing_mm) for z in NECK_AND_AIR_MM)
    if 0 <= neck < air < values.shape[2]:
        neck, air = (np.mean(values[..., plane] > low + (high - low) / 10) for plane in (neck, air))
        if air > neck + 0.1:
            remarks[UPSIDE_DOWN] = ""
    if not remarks and np.abs(off_mm := _centre_mm(values, lower_mm, spacing_mm) - CENTRE_MM).max() > MOST_OFF_CENTRE_MM:
        remarks[OFF_CENTRE] = f" (by {_mm(off_mm)} towards right, anterior, superior)"
    return remarks


def _centre_mm(values: np.ndarray, lower_mm: np.ndarray, spacing_mm: float) -> np.ndarray:
    """Return the centre of the head in the model's box. What is outside, such as a long neck, would move it."""
    every = max(round(COARSE_MM / spacing_mm), 1)
    first = np.maximum(np.round(np.subtract(LOWER_CORNER_MM, lower_mm) / spacing_mm).astype(int), 0)
    end = np.round((np.add(LOWER_CORNER_MM, FIELD_OF_VIEW_MM) - lower_mm) / spacing_mm).astype(int)
    coarse = values[tuple(slice(a, b, every) for a, b in zip(first, end))]
    if coarse.min() == coarse.max():
        return np.array(CENTRE_MM)
    return lower_mm + (first + 0.5 + every * np.argwhere(head_mask(coarse)).mean(axis=0)) * spacing_mm


def _corners_minus_middle(values: np.ndarray) -> float:
    """Compare the medians of the eight corners, a tenth of each side, and of the middle, half of each side."""
    ends = [np.r_[: side // 10 + 1, -(side // 10) - 1 : 0] for side in values.shape]
    corners = values[np.ix_(*ends)]
    middle = values[tuple(slice(side // 4, side - side // 4) for side in values.shape)]
    return float(np.median(corners)) - float(np.median(middle))


def _has_empty_planes(values: np.ndarray, lower_mm: np.ndarray, spacing_mm: float) -> bool:
    """Look for planes of one value in each brain, large or small. The volume (X, Y, Z) begins at its lower corner in RAS."""
    every = round(8 / spacing_mm)
    for axis in range(3):
        ends_mm = np.add([lower[axis] for lower in BRAIN_MM], [INNER_MM, -INNER_MM])
        first, last = np.round((ends_mm - lower_mm[axis]) / spacing_mm).astype(int)
        planes = np.moveaxis(values, axis, 0)[first:last, ::every, ::every]
        if (planes.min(axis=(1, 2)) == planes.max(axis=(1, 2))).any():
            return True
    return False


def _check_place(image: nib.Nifti1Image, spacing_mm: float, remedy: str = PREPARE) -> None:
    """Check dimensions, spacing, axes and field of view."""
    shape, affine = three_sides(image.shape), image.affine
    spacings_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if (np.abs(spacings_mm / spacing_mm - 1) > 0.01).any():
        raise ValueError(f"has voxels of {_mm(spacings_mm)}, not {spacing_mm:g} mm (spacing_mm). {remedy}")
    cosines = np.abs(affine[:3, :3] / spacings_mm)
    if np.abs(np.sort(cosines, axis=0) - [[0], [0], [1]]).max() > 1e-3:
        degrees = np.degrees(np.arccos(np.clip(cosines.max(axis=0), 0, 1))).max()
        raise ValueError(f"has axes oblique by {degrees:.1f} degrees: not in MNI space. {remedy}")
    refuse_elsewhere(shape, affine, remedy)


def refuse_elsewhere(shape: Sequence[int], affine: np.ndarray, remedy: str = PREPARE) -> None:
    """Refuse an image whose field of view does not cover a brain in MNI space. Its axes must be parallel to the space's."""
    corners = _corners_mm(shape, affine)
    lower, upper = np.add(BRAIN_MM[0], BRAIN_MARGIN_MM), np.subtract(BRAIN_MM[1], BRAIN_MARGIN_MM)
    if (corners.min(axis=0) > lower).any() or (corners.max(axis=0) < upper).any():
        raise ValueError(
            f"reaches from {_mm(corners.min(axis=0))} to {_mm(corners.max(axis=0))} (right, anterior, superior), but must "
            f"cover a brain in MNI space, {_mm(lower)} to {_mm(upper)}. {remedy}"
        )


def _corners_mm(shape: Sequence[int], affine: np.ndarray) -> np.ndarray:
    """Return the outer corners of the first and the last voxel, (2, 3)."""
    return nib.affines.apply_affine(affine, [[-0.5] * 3, np.subtract(shape, 0.5)])


def _mm(values: np.ndarray) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)}) mm"
