"""One image of 20 x 28 x 20 random voxels of 8 mm, which fills the model's grid, and functions that damage it."""

from pathlib import Path

import nibabel as nib
import numpy as np

from brain_ldm_bundle.scripts.shared import mni_box

SPACING_MM = 8.0
NOISE = np.random.default_rng(0).random(mni_box.size(SPACING_MM), dtype=np.float32)  # (20, 28, 20)
VOLUME = (NOISE + np.roll(NOISE, 1, axis=0)) / 2  # neighbours along x are alike, as in a head


def save(path: Path, volume: np.ndarray = VOLUME, affine: np.ndarray | None = None, code: int = 4) -> Path:
    """Write a NIfTI file, whose folder need not exist; its path comes back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = mni_box.affine(SPACING_MM) if affine is None else affine
    image = nib.Nifti1Image(volume, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    nib.save(image, path)
    return path


def shifted(**changes: float) -> np.ndarray:
    """The grid's affine, moved by so many mm along x, y or z."""
    affine = mni_box.affine(SPACING_MM)
    for axis, mm in changes.items():
        affine["xyz".index(axis), 3] += mm
    return affine


def rotated(degrees: float) -> np.ndarray:
    """The grid's affine, turned about the z axis."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ mni_box.affine(SPACING_MM)


def with_voxel(value: float) -> np.ndarray:
    """The volume with one voxel of this value."""
    volume = VOLUME.copy()
    volume[3, 4, 5] = value
    return volume
