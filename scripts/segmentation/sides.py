"""Tell left from right in a map whose classes hold both sides."""

from __future__ import annotations

import numpy as np
from registration.deep_grey import CENTRES_MM, rigid_to_mni

from segmentation.meshnet import CLASSES

LEFT, RIGHT = (np.array([0, *(entry[side] for entry in CLASSES)], np.uint8) for side in (1, 2))
DEEP = [number for number, values in enumerate(zip(LEFT, RIGHT)) if values in CENTRES_MM]
ROUNDS = 3  # of splitting and placing; the plane moves by less than 0.1 mm after them


def freesurfer_values(classes: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return FreeSurfer's value of each voxel as uint8.

    The plane between the sides is that of MNI space: the deep grey structures of both sides are placed there by a rotation and
    a translation. The first plane is upright, through their centre.

    Args:
        classes: class of each voxel (X, Y, Z).
        affine: matrix (4, 4) from voxel indices to RAS mm.

    Raises:
        ValueError: the deep grey structures do not lie as in a head.
    """
    voxels = np.argwhere(np.isin(classes, DEEP))
    if not len(voxels):
        raise ValueError("no deep grey matter was found. Is it a T1w of a whole head?")
    to_mni = np.eye(4)
    to_mni[0, 3] = -(affine @ [*voxels.mean(0), 1])[0]
    x, y, z = np.ogrid[tuple(slice(size) for size in classes.shape)]
    for _ in range(ROUNDS):
        a, b, c, d = (to_mni @ affine)[0]
        values = np.where(a * x + b * y + c * z + d > 0, RIGHT[classes], LEFT[classes])
        try:
            to_mni = rigid_to_mni(values, affine)
        except ValueError as error:
            raise ValueError(f"left and right cannot be told apart, because {error}") from error
    return values
