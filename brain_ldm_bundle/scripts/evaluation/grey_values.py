"""Check whether a volume has the grey values of a scan: dark outside of the head, similar inside, and not clipped."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from ..shared.head_mask import head_mask

LEVELS = 256  # Generated volumes are stored in 8 bits: 0, 1/255, ..., 1.
AROUND_HEAD_MM = 8.0
DISTANCES_MM = 2.0  # chosen: grid on which distances from the head are measured, an eighth of the work at 1 mm
CORNER = 0.1  # share of each axis


def as_stored(volume: np.ndarray) -> np.ndarray:
    """Round a volume of 0 to 1 to the levels 0 to 255 in which generated volumes are stored."""
    return np.round(volume * (LEVELS - 1)).astype(np.uint8)


def intensity_checks(volume: np.ndarray, spacing_mm: float) -> tuple[dict[str, float], np.ndarray]:
    """Check the intensities of one volume.

    Args:
        volume: intensities (D, H, W), 0 to 1, not constant; the last axis runs from inferior to superior.
        spacing_mm: edge length of a voxel.

    Returns:
        three numbers, and the share of each of the 256 levels within the head. `background` is the mean intensity of voxels
        more than 8 mm from the head, on a grid of 2 mm, or 0 without such voxels. `corners` is the share of voxels above 0 in
        the eight corners, each a tenth of the axes long. `clipped` is the share of the head's voxels at 1.
    """
    levels = as_stored(volume)
    head = head_mask(levels)
    every = (slice(None, None, max(round(DISTANCES_MM / spacing_mm), 1)),) * 3
    away = ndimage.distance_transform_edt(~head[every], sampling=spacing_mm * every[0].step) > AROUND_HEAD_MM
    background = levels[every][away]
    corners = levels
    for axis, size in enumerate(levels.shape):
        edge = max(1, round(CORNER * size))
        corners = corners.take([*range(edge), *range(size - edge, size)], axis)
    numbers = {
        "background": float(background.mean() / (LEVELS - 1)) if background.size else 0.0,
        "corners": float((corners > 0).mean()),
        "clipped": float((levels[head] == LEVELS - 1).mean()),
    }
    return numbers, np.bincount(levels[head], minlength=LEVELS) / head.sum()


def histogram_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Compute the Wasserstein distance between two histograms of the 256 levels, in units of intensity (0 to 1)."""
    return float(np.abs(np.cumsum(a) - np.cumsum(b)).sum() / (LEVELS - 1))
