"""Tell a T1w of a whole brain from other volumes by the intensities of its own classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

LEAST_CONTRAST = 1.05  # white to grey matter, and grey matter to fluid; chosen, see `registration.assessment`
MOST_EMPTY = 0.05  # share of the brain without a signal; chosen
DARK = 0.02  # intensity up to which a voxel is empty, where 1 is bright; chosen
# Mean place of grey matter, white matter and ventricles in MNI space. It was at most 3.7 mm away along an axis in 4 real and 40
# simulated heads, and 6.5 mm or more in 7 of these heads that were moved by 15 mm along an axis.
BRAIN_CENTRE_MM, MOST_OFF_CENTRE_MM = (0, -22, 9), 6
CORE_CENTRE_MM, CORE_RADII_MM = (0, -18, 12), (45, 60, 35)  # ellipsoid in MNI space inside of every adult brain; chosen


def refuse_other_contrast(white: np.ndarray, grey: np.ndarray, fluid: np.ndarray) -> None:
    """Refuse a T2w, a PD, a FLAIR, or a brain with empty parts, by the intensities of voxels of each class.

    Raises:
        ValueError: the intensities are not those of a T1w. The message does not name the file.
    """
    brain = np.concatenate([white, grey])
    if not brain.size:
        raise ValueError("no brain was found. Is it a T1w of a whole head?")
    if (empty := float(np.mean(brain <= 0))) > MOST_EMPTY:
        raise ValueError(f"{empty:.0%} of the brain is empty, as if a part of the head was cut off. Give a whole head")
    levels = [float(np.median(part)) for part in (white, grey, fluid) if part.size]
    if any(brighter < LEAST_CONTRAST * darker for brighter, darker in zip(levels, levels[1:])):
        listed = ", ".join(f"{name} {level:.3g}" for name, level in zip(("white matter", "grey matter", "ventricles"), levels))
        raise ValueError(f"the order of its tissues is not that of a T1w, white > grey > fluid ({listed}). Give a T1w")


def flags(image: np.ndarray, labels: np.ndarray, lower_mm: Sequence[float], spacing_mm: float) -> list[str]:
    """Return the names of what speaks against a T1w of a whole head in MNI space, as flags of a table.

    Args:
        image: intensities (X, Y, Z) in RAS order, where 1 is bright.
        labels: 2 for grey matter, 3 for white matter, 4 for ventricles.
        lower_mm: corner of the volume at which its first voxel begins.
        spacing_mm: edge length of a voxel.
    """
    found = []
    levels = [float(np.median(image[labels == label])) for label in (3, 2, 4) if (labels == label).any()]
    if any(brighter < LEAST_CONTRAST * darker for brighter, darker in zip(levels, levels[1:])):
        found.append("contrast_not_t1w")
    axes_mm = np.ogrid[tuple(slice(size) for size in image.shape)]
    core = sum(
        (((index + 0.5) * spacing_mm + low - centre) / radius) ** 2
        for index, low, centre, radius in zip(axes_mm, lower_mm, CORE_CENTRE_MM, CORE_RADII_MM)
    )
    if np.mean(image[(core < 1) & (labels != 4)] <= DARK) > MOST_EMPTY:  # some scanners set fluid to 0
        found.append("brain_partly_empty")
    centre_mm = (np.array(ndimage.center_of_mass(labels >= 2)) + 0.5) * spacing_mm + lower_mm
    if (np.abs(centre_mm - BRAIN_CENTRE_MM) > MOST_OFF_CENTRE_MM).any():
        found.append("brain_off_centre")
    return found
