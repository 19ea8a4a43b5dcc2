"""Align a FreeSurfer label map rigidly with MNI space, by the centres of its deep grey structures."""

import nibabel as nib
import numpy as np
from scipy.spatial.transform import Rotation

# Label values on the left and right, and the centre of the right structure in MNI space (RAS, mm). The centres were rounded by
# hand. The error of about 2 mm does not matter for the position of a map in the box.
CENTRES_MM = {
    (10, 49): (11, -19, 7),  # thalamus
    (11, 50): (13, 9, 10),  # caudate
    (12, 51): (26, 2, 1),  # putamen
    (13, 52): (20, -4, -1),  # pallidum
    (17, 53): (26, -22, -13),  # hippocampus
    (18, 54): (24, -4, -19),  # amygdala
    (26, 58): (9, 11, -7),  # accumbens
}
MOST_APART_MM = 10  # root mean square: 2 to 5 mm in real maps, 17 mm if their voxels are mirrored; chosen


def rigid_to_mni(labels: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Find the rigid matrix (4, 4) from the map's mm to MNI mm. The head keeps its size.

    Args:
        labels: FreeSurfer label values, shape (X, Y, Z), in any orientation.
        affine: matrix (4, 4) from voxel indices to the map's mm.

    Raises:
        ValueError: the map shows fewer than 6 of the 14 structures, or they do not lie as in a head.
    """
    found, wanted = [], []
    for values, (x, y, z) in CENTRES_MM.items():
        for value, side in zip(values, (-1, 1), strict=True):
            voxels = np.argwhere(labels == value)
            if len(voxels) > 20:
                found.append(nib.affines.apply_affine(affine, voxels.mean(0)))
                wanted.append((side * x, y, z))
    if len(found) < 6:
        raise ValueError(f"only {len(found)} of 14 deep grey structures found, but 6 are needed to place the map in MNI space")
    found, wanted = np.array(found), np.array(wanted, float)
    rotation = Rotation.align_vectors(wanted - wanted.mean(0), found - found.mean(0))[0].as_matrix()
    apart_mm = float(np.sqrt(((wanted - wanted.mean(0) - (found - found.mean(0)) @ rotation.T) ** 2).sum(1).mean()))
    if apart_mm > MOST_APART_MM:
        raise ValueError(
            f"the deep grey structures lie {apart_mm:.0f} mm from their places after the best rotation, but only up to "
            f"{MOST_APART_MM} mm are plausible. Left and right may be exchanged: convert the map again, with its own affine"
        )
    return nib.affines.from_matvec(rotation, wanted.mean(0) - rotation @ found.mean(0))
