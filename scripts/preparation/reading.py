"""Read raw scans and brain masks, whatever their orientation, as images of SimpleITK."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from registration.template import to_sitk
from scipy.linalg import polar
from shared.nifti import open_image, read_grey_values, three_sides

COARSEST_SPACING_MM = 3.0
BRIGHTEST_PERCENTILE = 99.8


def read_scan(path: Path, is_mask: bool = False) -> sitk.Image:
    """Read a scan, or a brain mask, in RAS voxel order as float32, with its geometry."""
    image = open_image(path)
    shape = three_sides(image.shape)
    data = read_grey_values(path, is_mask)
    affine = image.affine @ nib.orientations.inv_ornt_aff(nib.io_orientation(image.affine), shape)
    spacing_mm = nib.affines.voxel_sizes(affine)
    if spacing_mm.min() < 0.1 or spacing_mm.max() > COARSEST_SPACING_MM:
        sides = " x ".join(f"{size:.2f}" for size in spacing_mm)
        raise ValueError(f"has voxels of {sides} mm; each side must be 0.1 to {COARSEST_SPACING_MM:g} mm long")
    directions, _ = polar(affine[:3, :3] / spacing_mm)
    if np.abs(directions - affine[:3, :3] / spacing_mm).max() > 0.01:
        raise ValueError("has an affine with shear; resample it to a rectangular grid first")
    low, high = np.percentile(data, (1, BRIGHTEST_PERCENTILE))
    if low < -0.1 * abs(high):
        raise ValueError(f"has a first percentile of {low:.4g}, so it is not a magnitude image; give intensities from 0")
    return to_sitk(data, spacing_mm, directions, affine[:3, 3])


def read_mask(path: Path, scan: sitk.Image) -> sitk.Image:
    """Read a brain mask on the grid of its scan, as float32 values 0 and 1. Probabilities from 0.5 count as brain."""
    try:
        mask = read_scan(path, is_mask=True)
        if not mask.IsSameImageGeometryAs(scan, 0.01, 0.01):
            raise ValueError("has another grid than the scan")
    except ValueError as error:
        raise ValueError(f"brain mask {path}: {error}") from error
    largest = sitk.GetArrayViewFromImage(mask).max()
    mask = sitk.Cast(mask > (0.5 if largest <= 1 else 0), sitk.sitkFloat32)  # probabilities, or labels and intensities
    mask.CopyInformation(scan)
    return mask
