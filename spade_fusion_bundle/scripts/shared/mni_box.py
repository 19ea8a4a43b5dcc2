"""The box of MNI space that volumes of the brain model fill, and its voxels at a given spacing."""

from __future__ import annotations

import numpy as np

# Field of view of Pinaya et al. 2022 along right, anterior and superior. The corner comes from the published bundle: it is
# the affine of its saver, shifted by the preceding crop. At 1 mm in LAS order, the centre of the first voxel is
# (80.481, -125.477, -60.554).
FIELD_OF_VIEW_MM = (160, 224, 160)
LOWER_CORNER_MM = (-79.019, -125.977, -61.054)

# Lower and upper corner of the MNI152 brain (mask of ICBM 2009a); the box cuts off its lowest 11 mm.
BRAIN_MM = ((-72.5, -107.5, -61.054), (72.5, 73.5, 82.5))


def size(spacing_mm: float) -> tuple[int, int, int]:
    """Return the number of voxels along each axis of the box, (160, 224, 160) at 1 mm. The spacing must divide the box."""
    voxels = np.divide(FIELD_OF_VIEW_MM, spacing_mm) if spacing_mm > 0 else np.zeros(3)
    if (voxels < 0.5).any() or voxels.max() > 1000 or np.abs(voxels - np.round(voxels)).max() > 1e-6:
        raise ValueError(f"spacing_mm {spacing_mm} does not divide {FIELD_OF_VIEW_MM} mm, the field of view. Use 1, 2, 4 or 8")
    return tuple(int(n) for n in np.round(voxels))


def affine(spacing_mm: float, axcodes: str = "LAS") -> np.ndarray:
    """Return the matrix (4, 4) from voxel indices to RAS millimetres.

    Args:
        spacing_mm: edge length of a voxel, which must divide the box.
        axcodes: order of the voxels: "LAS", as in the published model and in ours, or "RAS".
    """
    size(spacing_mm)
    matrix = np.diag([spacing_mm] * 3 + [1.0])
    matrix[:3, 3] = np.array(LOWER_CORNER_MM) + spacing_mm / 2
    if axcodes == "LAS":
        matrix[0, 0] = -spacing_mm
        matrix[0, 3] = LOWER_CORNER_MM[0] + FIELD_OF_VIEW_MM[0] - spacing_mm / 2
    return matrix
