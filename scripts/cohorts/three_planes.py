"""Draw three planes of a volume as one picture. The affine gives the sides: the subject's left is at the picture's right."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from shared.nifti import read_volume

POINT_MM = (4.0, -20.0, 12.0)  # MNI space, RAS. The axial and coronal planes here cut both lateral ventricles (chosen)
WHITE_PERCENTILE = 99.8  # percentile of a volume's voxels that is drawn white


def three_planes(path: Path, point_mm: tuple[float, float, float] = POINT_MM) -> np.ndarray:
    """Return the axial, coronal and sagittal plane through `point_mm` side by side, with intensities in [0, 1]."""
    volume, affine = read_canonical(path)
    return (cut(volume, affine, point_mm) / white_level(volume)).clip(0, 1)


def three_planes_of_labels(path: Path, point_mm: tuple[float, float, float] = POINT_MM) -> np.ndarray:
    """Return the same planes of a label map as int32 label values. The frame is 0."""
    volume, affine = read_canonical(path)
    return cut(np.rint(volume).astype(np.int32), affine, point_mm)


def read_canonical(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume as float32, with axes to the subject's right, front and top, and its affine. NaN becomes 0.

    Raises:
        ValueError: the file is damaged, or it is not one 3-D volume.
    """
    image = nib.as_closest_canonical(read_volume(path))
    return np.nan_to_num(np.asarray(image.dataobj, dtype=np.float32)), image.affine


def white_level(volume: np.ndarray) -> float:
    """Return the intensity that is drawn white."""
    return max(float(np.percentile(volume, WHITE_PERCENTILE)), 1e-6)


def cut(volume: np.ndarray, affine: np.ndarray, point_mm: tuple[float, float, float]) -> np.ndarray:
    """Return the axial, coronal and sagittal plane side by side as one picture (rows, columns).

    The picture follows the radiological convention: the subject's right is at the left of the axial and coronal plane. The
    front is on top in the axial plane and at the left in the sagittal plane. If voxel sides differ, voxels are repeated so that
    pixels are square. Each plane has a black column at either side.

    Args:
        volume: voxel values (X, Y, Z), with axes to the subject's right, front and top.
        affine: matrix (4, 4) from voxel indices to RAS mm.
        point_mm: point on all three planes, RAS. A point outside the volume is moved to the nearest voxel.
    """
    spacing_mm = nib.affines.voxel_sizes(affine)
    voxel = np.rint(nib.affines.apply_affine(np.linalg.inv(affine), point_mm)).astype(int)
    x, y, z = np.clip(voxel, 0, np.array(volume.shape) - 1)

    planes = [
        (volume[:, :, z], (0, 1)),  # axial: columns along x, rows along y
        (volume[:, y, :], (0, 2)),  # coronal: x, z
        (volume[x, :, :], (1, 2)),  # sagittal: y, z
    ]
    pictures = [
        _square(plane[::-1, ::-1].T, spacing_mm[rows] / spacing_mm.min(), spacing_mm[columns] / spacing_mm.min())
        for plane, (columns, rows) in planes
    ]
    height = max(len(picture) for picture in pictures)
    return np.concatenate([_framed(picture, height) for picture in pictures], axis=1)


def _square(picture: np.ndarray, rows: float, columns: float) -> np.ndarray:
    """Repeat rows and columns so that pixels are square. Ratios that are not whole use the nearest voxel."""
    height, width = round(picture.shape[0] * rows), round(picture.shape[1] * columns)
    return picture[(np.arange(height) / rows).astype(int)][:, (np.arange(width) / columns).astype(int)]


def _framed(picture: np.ndarray, height: int) -> np.ndarray:
    missing = height - len(picture)
    return np.pad(picture, ((missing // 2, missing - missing // 2), (1, 1)))
