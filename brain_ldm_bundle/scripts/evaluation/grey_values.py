"""Whether a volume's intensities are those of a scan: dark outside of the head, alike inside of it, not cut off."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

__all__ = ["LEVELS", "as_stored", "head_mask", "histogram_distance", "intensity_checks"]

# Generated volumes are stored in 8 bits: 0, 1/255, ..., 1.
LEVELS = 256
AROUND_HEAD_MM = 8.0
CORNER = 0.1


def as_stored(volume: np.ndarray) -> np.ndarray:
    """A volume of 0 to 1 as 0 to 255, the way generated volumes are written."""
    return np.round(volume * (LEVELS - 1)).astype(np.uint8)


def head_mask(volume: np.ndarray) -> np.ndarray:
    """The largest part of what is above Otsu's threshold (Otsu 1979), its holes filled in axial planes.

    Skull and ventricles belong to the head. In three dimensions they would be no holes: the neck, where the volume ends,
    opens them.

    Args:
        volume: (D, H, W) in 0 to 255, the last axis from inferior to superior.
    """
    share = np.bincount(volume.ravel(), minlength=LEVELS) / volume.size
    below, mean = np.cumsum(share), np.cumsum(share * np.arange(LEVELS))
    with np.errstate(divide="ignore", invalid="ignore"):  # levels with all or no voxels below them
        between = np.nan_to_num((mean[-1] * below - mean) ** 2 / (below * (1 - below)), posinf=0)
    plane = ndimage.generate_binary_structure(3, 1) & (np.arange(3) == 1)  # neighbours within a plane
    filled = ndimage.binary_fill_holes(volume > between.argmax(), plane)
    filled |= ndimage.binary_closing(filled, np.ones((1, 1, 3)))  # single planes whose scalp has a gap
    parts, _ = ndimage.label(filled)  # only now: before, the brain is larger than the scalp around it
    return parts == 1 + np.bincount(parts.ravel(), minlength=2)[1:].argmax()


def intensity_checks(volume: np.ndarray, spacing_mm: float) -> tuple[dict[str, float], np.ndarray]:
    """Numbers of one volume (D, H, W), 0 to 1, and the shares of the 256 levels within its head.

    background: mean intensity farther than 8 mm from the head (0 where nothing is).
    corners: share of voxels above 0 in the eight corners, a tenth of each axis.
    clipped: share of the head's voxels at 1.

    Raises:
        ValueError: a constant volume: it has no head.
    """
    levels = as_stored(volume)
    if levels.min() == levels.max():
        raise ValueError(f"the volume is constant ({levels.min() / (LEVELS - 1):g})")
    head = head_mask(levels)
    outside = ndimage.distance_transform_edt(~head, sampling=spacing_mm) > AROUND_HEAD_MM
    edges = [max(1, round(CORNER * size)) for size in levels.shape]
    ends = [
        np.isin(np.arange(size), [*range(edge), *range(size - edge, size)])
        for size, edge in zip(levels.shape, edges, strict=True)
    ]
    numbers = {
        "background": float(levels[outside].mean() / (LEVELS - 1)) if outside.any() else 0.0,
        "corners": float((levels[np.ix_(*ends)] > 0).mean()),
        "clipped": float((levels[head] == LEVELS - 1).mean()),
    }
    return numbers, np.bincount(levels[head], minlength=LEVELS) / head.sum()


def histogram_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Wasserstein distance of two shares of the 256 levels, in intensity 0 to 1: how far grey values have to be moved."""
    return float(np.abs(np.cumsum(a) - np.cumsum(b)).sum() / (LEVELS - 1))
