"""Find the head in a T1-weighted volume."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def head_mask(volume: np.ndarray) -> np.ndarray:
    """Find the largest connected part above the threshold of Otsu 1979, and fill its holes in axial planes.

    The mask includes skull and ventricles. Holes are filled in each plane, because in three dimensions they are open at the
    neck, where the volume ends.

    Args:
        volume: intensities (X, Y, Z), not constant; the last axis runs from inferior to superior.
    """
    in_plane = ndimage.generate_binary_structure(2, 1)[..., None]
    filled = ndimage.binary_fill_holes(volume > _otsu_threshold(volume), in_plane)
    filled |= ndimage.binary_closing(filled, np.ones((1, 1, 3)))  # fills single planes in which the scalp has a gap
    parts, _ = ndimage.label(filled)  # only after filling, because the brain has more voxels than the scalp
    return parts == 1 + np.bincount(parts.ravel(), minlength=2)[1:].argmax()


def _otsu_threshold(volume: np.ndarray) -> float:
    """Return the centre of the bin that maximises the variance between two classes. Each integer has its own bin."""
    low, high, bins = volume.min(), volume.max(), 256
    if volume.dtype.kind in "iu":
        low, high, bins = low - 0.5, high + 0.5, int(high) - int(low) + 1
    counts, edges = np.histogram(volume, bins, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * centres)
    between = (sums[-1] * below / volume.size - sums[:-1]) ** 2 / (below * (volume.size - below))
    return centres[between.argmax()]
