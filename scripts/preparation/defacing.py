"""Remove the face from a scan. The template that was fitted to the brain tells where it is."""

from __future__ import annotations

import numpy as np
from registration.template import brain_on

# The box of the face in the space of the template (RAS, mm): all that is before HINDMOST and below HIGHEST. The brain stays,
# and so does what is nearer to it than the margin (chosen by eye).
HINDMOST_MM = 25.0
HIGHEST_MM = 15.0
MARGIN_MM = 8.0


def deface(volume: np.ndarray, affine: np.ndarray, to_template: np.ndarray) -> np.ndarray:
    """Set eyes, nose, mouth and cheeks to 0.

    Args:
        volume: intensities (X, Y, Z).
        affine: matrix (4, 4) from voxel indices to RAS mm.
        to_template: matrix (4, 4) from these to the template's RAS mm, with the size of this head.
    """
    matrix = to_template @ affine
    x, y, z = np.ogrid[tuple(slice(size) for size in volume.shape)]
    forward_mm, upward_mm = (a * x + b * y + c * z + d for a, b, c, d in matrix[1:3])
    face = (forward_mm > HINDMOST_MM) & (upward_mm < HIGHEST_MM)
    return np.where(face & ~brain_on(volume.shape, affine, to_template, MARGIN_MM), 0, volume).astype(volume.dtype)
