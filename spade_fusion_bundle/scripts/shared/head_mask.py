"""Where the head is in a T1-weighted volume."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def head_mask(volume: np.ndarray) -> np.ndarray:
    """Find the head: the largest connected part above the threshold of Otsu 1979, with holes filled in axial planes.

    Skull and ventricles belong to the head. Holes are filled plane by plane, because in three dimensions the neck, where the
    volume ends, would open them.

    Args:
        volume: Intensities (X, Y, Z), not constant; the last axis runs from inferior to superior.

    Returns:
        A boolean mask (X, Y, Z).
    """
    in_plane = ndimage.generate_binary_structure(2, 1)[..., None]
    filled = ndimage.binary_fill_holes(volume > _otsu_threshold(volume), in_plane)
    filled |= ndimage.binary_closing(filled, np.ones((1, 1, 3)))  # planes in which the scalp has a gap
    parts, _ = ndimage.label(filled)  # after filling: before, the brain is larger than the scalp around it
    return parts == 1 + np.bincount(parts.ravel(), minlength=2)[1:].argmax()


def _otsu_threshold(volume: np.ndarray) -> float:
    """The centre of the histogram's bin that maximises the variance between the two classes; integers have a bin each."""
    low, high, bins = volume.min(), volume.max(), 256
    if volume.dtype.kind in "iu":
        low, high, bins = low - 0.5, high + 0.5, int(high) - int(low) + 1
    counts, edges = np.histogram(volume, bins, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below, sums = np.cumsum(counts)[:-1], np.cumsum(counts * centres)
    between = (sums[-1] * below / volume.size - sums[:-1]) ** 2 / (below * (volume.size - below))
    return centres[between.argmax()]
