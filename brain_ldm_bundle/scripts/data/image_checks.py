"""Check that images are complete, three-dimensional, in MNI space, finite and not constant, before work starts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np

from ..shared.mni_box import BRAIN_MM
from ..shared.nifti import check_files, named, open_image, read_grey_values, spread, three_sides
from ..shared.scan_identity import voxels_sha256

# A head may be smaller than the template's, so the image may cut off this much of the template's brain on each side.
BRAIN_MARGIN_MM = 10.0
PREPARE = "Bring it there with: python scripts/prepare_data.py"


class Content(NamedTuple):
    """Identity, lowest and highest intensity of an image."""

    voxels_sha256: str
    lowest: float
    highest: float


def check_images(
    paths: Sequence[str], spacing_mm: float, cache_file: str | Path | None = None
) -> tuple[list[str], dict[str, Content]]:
    """Check images as `bids.read_dataset` describes. Warn about images that may not be registered to MNI space, or
    whose brightest voxels would take contrast from the others.

    Returns:
        one line for each problem, in the order of `paths`, and the content of each image that passes, by its path.
    """
    from_scanner, stretched = [], []

    def check(path: str) -> list:
        with named(path):
            image = open_image(path, PREPARE)
            _check_place(image, spacing_mm)
            values = read_grey_values(path)
        if max(int(image.header["sform_code"]), int(image.header["qform_code"])) == 1:
            from_scanner.append(path)
        lowest, low, high, highest = spread(values)
        if highest - high > high - low:
            stretched.append(path)
        return [voxels_sha256(values), lowest, highest]

    problems, found = check_files([[path] for path in paths], check, [spacing_mm], cache_file=cache_file)
    if from_scanner:
        warnings.warn(
            f"{len(from_scanner)} images, such as {min(from_scanner)}, have the NIfTI code 1 (scanner), not 4 (MNI). "
            f"Their axes and field of view fit MNI space, but they may not be registered to it. If not: {PREPARE}",
            stacklevel=3,
        )
    if stretched:
        warnings.warn(
            f"{len(stretched)} images, such as {min(stretched)}, have a few voxels that are more than twice as bright as the "
            f"other 99.9 %. Scaling to 0 to 1 leaves less than half of the grey values to the others. Clip these voxels",
            stacklevel=3,
        )
    return problems, {path: Content(*content) for path, content in zip(paths, found) if content is not None}


def _check_place(image: nib.Nifti1Image, spacing_mm: float) -> None:
    """Check dimensions, spacing, axes and field of view."""
    shape, affine = three_sides(image.shape), image.affine
    spacings_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if (np.abs(spacings_mm / spacing_mm - 1) > 0.01).any():
        raise ValueError(f"has voxels of {_mm(spacings_mm)}, not {spacing_mm:g} mm (spacing_mm). {PREPARE}")
    cosines = np.abs(affine[:3, :3] / spacings_mm)
    if np.abs(np.sort(cosines, axis=0) - [[0], [0], [1]]).max() > 1e-3:
        degrees = np.degrees(np.arccos(np.clip(cosines.max(axis=0), 0, 1))).max()
        raise ValueError(f"has axes oblique by {degrees:.1f} degrees: not in MNI space. {PREPARE}")
    refuse_elsewhere(shape, affine)


def refuse_elsewhere(shape: Sequence[int], affine: np.ndarray) -> None:
    """Refuse an image whose field of view does not cover a brain in MNI space. Its axes must be parallel to the space's."""
    corners = nib.affines.apply_affine(affine, [[-0.5] * 3, np.subtract(shape, 0.5)])
    lower, upper = np.add(BRAIN_MM[0], BRAIN_MARGIN_MM), np.subtract(BRAIN_MM[1], BRAIN_MARGIN_MM)
    if (corners.min(axis=0) > lower).any() or (corners.max(axis=0) < upper).any():
        raise ValueError(
            f"reaches from {_mm(corners.min(axis=0))} to {_mm(corners.max(axis=0))} (right, anterior, superior), but must "
            f"cover a brain in MNI space, {_mm(lower)} to {_mm(upper)}. {PREPARE}"
        )


def _mm(values: np.ndarray) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)}) mm"
