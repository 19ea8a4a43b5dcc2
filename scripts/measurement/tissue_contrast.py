"""Tell a T1w of a whole brain from other volumes by the intensities of its own classes."""

from __future__ import annotations

import numpy as np

LEAST_CONTRAST = 1.05  # white to grey matter, and grey matter to fluid; chosen, see `registration.assessment`
MOST_EMPTY = 0.05  # share of the brain without a signal; chosen


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
