"""The ICBM152 template (MNI152NLin2009aSym) of T1-weighted brains at 2 mm, and how well a scan resembles it.

Points are in millimetres, in SimpleITK's LPS convention.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import SimpleITK as sitk
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from scipy.ndimage import affine_transform, binary_dilation, gaussian_filter

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SPACING_MM = 2
# Resemblance is judged without what varies over longer distances: a coil's bias field, and large ventricles (chosen).
SMOOTH_MM = 6


def to_sitk(data: np.ndarray, spacing_mm, directions: np.ndarray, origin_mm) -> sitk.Image:
    """Turn an array (X, Y, Z) with a RAS geometry into a SimpleITK image (LPS)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0), dtype=np.float32))
    image.SetSpacing([float(size) for size in spacing_mm])
    image.SetDirection((LPS_TO_RAS[:3, :3] @ directions).ravel().tolist())
    image.SetOrigin((LPS_TO_RAS[:3, :3] @ origin_mm).tolist())
    return image


def ras_matrix(transform: sitk.AffineTransform) -> np.ndarray:
    """Return a transform as a matrix (4, 4) between points in RAS mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = np.reshape(transform.GetMatrix(), (3, 3))
    matrix[:3, 3] = transform.TransformPoint((0.0, 0.0, 0.0))
    return LPS_TO_RAS @ matrix @ LPS_TO_RAS


@lru_cache(maxsize=1)
def template() -> tuple[sitk.Image, sitk.Image]:
    """Return the brain of the ICBM152 T1 template at 2 mm, and its mask."""
    image = _at_2_mm(load_mni152_template(resolution=1))
    return image, image > 0.05


@lru_cache(maxsize=1)
def tissues() -> tuple[np.ndarray, np.ndarray]:
    """Return masks (Z, Y, X) of the template's voxels that are purely white and mostly grey matter, at 2 mm."""
    white, grey = (_at_2_mm(load(resolution=1)) for load in (load_mni152_wm_template, load_mni152_gm_template))
    return sitk.GetArrayFromImage(white) > 0.9, sitk.GetArrayFromImage(grey) > 0.7


def averaged(scan: sitk.Image) -> sitk.Image:
    """Return the scan with voxels of about 2 mm, which are means of its own, so that noise does not matter."""
    return sitk.BinShrink(scan, [max(1, round(SPACING_MM / size)) for size in scan.GetSpacing()])


def on_template(scan: sitk.Image, affine: sitk.AffineTransform) -> np.ndarray:
    """Return the scan on the voxels of the template (Z, Y, X). `affine` maps points of the template to points of the scan."""
    scan = averaged(scan)
    return sitk.GetArrayFromImage(sitk.Resample(scan, template()[0], affine, sitk.sitkLinear, 0.0))


def resemblance(scan: sitk.Image, affine: sitk.AffineTransform) -> float:
    """Return Pearson's r of scan and template inside the template's brain, without what varies slowly."""
    image, brain = (sitk.GetArrayFromImage(part) for part in template())
    found, expected = (_without_slow(volume)[brain > 0] for volume in (on_template(scan, affine), image))
    return float(np.corrcoef(found, expected)[0, 1]) if found.std() > 0 else 0.0


def brain_on(shape: tuple[int, ...], affine: np.ndarray, to_template: np.ndarray, margin_mm: float = 0.0) -> np.ndarray:
    """Return the mask of the template's brain on a grid.

    Args:
        shape: voxels of the grid (X, Y, Z).
        affine: matrix (4, 4) from its voxel indices to RAS mm.
        to_template: matrix (4, 4) from these to the template's RAS mm.
        margin_mm: the mask is this much wider than the brain, in steps of 2 mm.
    """
    mask = template()[1]
    brain = sitk.GetArrayFromImage(mask).transpose(2, 1, 0) > 0
    if margin_mm:
        brain = binary_dilation(brain, iterations=round(margin_mm / SPACING_MM))
    of_template = np.diag([SPACING_MM] * 3 + [1.0])
    of_template[:3, 3] = LPS_TO_RAS[:3, :3] @ mask.GetOrigin()
    matrix = np.linalg.inv(of_template) @ to_template @ affine
    return affine_transform(brain, matrix[:3, :3], matrix[:3, 3], shape, order=0)


def _without_slow(volume: np.ndarray) -> np.ndarray:
    """Subtract the mean of the brain around each voxel."""
    brain = (sitk.GetArrayViewFromImage(template()[1]) > 0).astype(np.float32)
    sigma = SMOOTH_MM / SPACING_MM
    return volume - gaussian_filter(volume * brain, sigma) / np.maximum(gaussian_filter(brain, sigma), 1e-3)


def _at_2_mm(image) -> sitk.Image:
    at_1_mm = to_sitk(image.get_fdata(), [1, 1, 1], np.eye(3), image.affine[:3, 3])
    return sitk.BinShrink(at_1_mm, [SPACING_MM] * 3)
