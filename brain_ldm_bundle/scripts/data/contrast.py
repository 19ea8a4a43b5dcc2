"""Tell a T1w from a volume in which fluid is bright, by places in MNI space whose tissue is known."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Centres of cubes in MNI space, in mm. In each of 70 simulated heads with ventricles of 8 to 130 mL, and in five real ones, the
# first lay in white matter (centrum semiovale), and most of the others in the lateral ventricles, unless these were small.
WHITE_MATTER_MM = [(x, y, 35) for x in (-25, 25) for y in (-22, -10)]
VENTRICLES_MM = [(side * x, y, z) for side in (-1, 1) for x, y, z in ((8, 0, 20), (10, -13, 22), (12, -25, 20))]
SIDE_MM = 10
# Ventricles minus white matter, as a share of all intensities, was at most -0.25 in these T1w, and ventricles were at most 0.73
# times as bright. With a simulated contrast of T2w, these values were at least 0.11 and 1.3 in voxels of 4 mm. In voxels of
# 8 mm, in which small ventricles mix with tissue, they were at least 0.01 and 1.04, so that not every T2w is found.
LEAST_SHARE, LEAST_RATIO = 0.02, 1.1


def fluid_brighter_than_white_matter(values: np.ndarray, lower_mm: Sequence[float], spacing_mm: float) -> str:
    """Return both intensities if the ventricles are clearly brighter than white matter, as in a T2w. Otherwise return "".

    Args:
        values: intensities (X, Y, Z) of a head in MNI space, in RAS order.
        lower_mm: corner of the volume at which its first voxel begins.
        spacing_mm: edge length of a voxel, up to 8 mm.
    """
    lowest, highest = np.percentile(values[::2, ::2], (0.1, 99.9))
    white, fluid = (
        [_mean(values, np.subtract(centre, lower_mm), spacing_mm) for centre in places]
        for places in (WHITE_MATTER_MM, VENTRICLES_MM)
    )
    fluid = min(np.median(fluid[:3]), np.median(fluid[3:]))  # of the darker side, so that noise alone is rarely taken for it
    least = max(np.median(white) + LEAST_SHARE * (highest - lowest), lowest + LEAST_RATIO * (np.median(white) - lowest))
    return f"ventricles {fluid:.3g}, white matter {np.median(white):.3g}" if fluid > max(least, *white) else ""


def _mean(values: np.ndarray, centre_mm: np.ndarray, spacing_mm: float) -> float:
    """Return the mean of a cube around a place, which is given in mm from the corner of the volume."""
    first, last = (np.round((centre_mm + half_mm) / spacing_mm).astype(int) for half_mm in (-SIDE_MM / 2, SIDE_MM / 2))
    return values[tuple(slice(a, max(b, a + 1)) for a, b in zip(first, last))].mean()
