"""Register a T1-weighted scan rigidly to the ICBM152 template (MNI152NLin2009aSym).

Points are in millimetres, in SimpleITK's LPS convention. Transforms map MNI points to points of the scan.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import SimpleITK as sitk
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from registration.template import averaged, resemblance, template

BRAIN_CENTRE_LPS_MM = (0.0, 18.0, 5.0)  # centre of the template's brain
BRAIN_HEIGHT_MM = 150.0
USUAL_HEAD_SCALE = 0.9  # length of a usual head / length of the template's head, which is large
# Six real T1w scans, and copies of them that were turned by 30 to 90 degrees, had a resemblance of 0.39 to 0.59 where the fit
# was right by eye, and of at most 0.30 where it was wrong. Simulated heads with ventricles of 146 mL had 0.38.
LOWEST_CORRELATION = 0.34
# Turns of the head in its scanner, in degrees. The other poses are tried if no usual one leads to a fit that resembles the
# template: heads that are turned far to a side, that lie, or that are upside down.
USUAL_POSES = [Rotation.from_euler("x", pitch, degrees=True) for pitch in (-40, -20, 0, 20, 40)]
OTHER_POSES = [
    *(Rotation.from_euler("zx", turn, degrees=True) for turn in product((-60, -30, 30, 60), (-40, 0, 40))),
    *(Rotation.from_euler("x", pitch, degrees=True) for pitch in (-110, -80, 80, 110, 180)),
    *(Rotation.from_euler("y", roll, degrees=True) for roll in (-90, -45, 45, 90, 180)),
    *(Rotation.from_euler("z", yaw, degrees=True) for yaw in (-90, 90, 180)),
]


def register(scan: sitk.Image) -> tuple[sitk.AffineTransform, sitk.AffineTransform]:
    """Find the rigid and the affine transform from MNI points to points of the scan.

    The affine transform also fits the size of the head. The rigid transform is its rotation about the centre of the template's
    brain, with its translation.

    Raises:
        ValueError: the scan does not overlap the template.
    """
    fixed, brain = template()
    # The mask has a margin of one voxel around the brain. A wider margin would let the template's brain grow, see below.
    margin = sitk.BinaryDilate(brain, [1, 1, 1])
    moving = averaged(scan)

    def fit(transform, shrink, sampled_fraction, iterations, weights=()):
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(32)
        method.SetMetricFixedMask(margin)
        method.SetMetricSamplingStrategy(method.RANDOM)
        method.SetMetricSamplingPercentage(sampled_fraction, seed=7)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(2.0, 1e-3, iterations, gradientMagnitudeTolerance=1e-8)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetOptimizerWeights(weights)
        method.SetInitialTransform(transform, inPlace=True)
        pair = [sitk.BinShrink(image, [shrink] * 3) for image in (fixed, moving)]
        method.Execute(*(sitk.SmoothingRecursiveGaussian(image, float(shrink)) for image in pair))
        return method.GetMetricValue()

    # From a single start, the fit could reach a wrong optimum if the head is turned or its centre is estimated badly. The size
    # is fixed at first. Otherwise it could grow until the template's brain fills the skull.
    rotation_and_translation = (1, 1, 1, 1, 1, 1, 0)

    def fits_from(poses: list[Rotation], centre_mm: np.ndarray) -> list[tuple[float, sitk.Similarity3DTransform]]:
        """Fit rotation and translation from each pose, with the centre of the head at three heights."""
        fits = []
        for pose, up_mm in product(poses, (-20.0, 0.0, 20.0)):
            start = sitk.Similarity3DTransform()
            start.SetCenter(BRAIN_CENTRE_LPS_MM)
            start.SetRotation(pose.as_quat().tolist())
            start.SetTranslation((centre_mm - BRAIN_CENTRE_LPS_MM + pose.apply([0, 0, up_mm])).tolist())
            start.SetScale(USUAL_HEAD_SCALE)
            try:
                fits.append((fit(start, 4, 1.0, 40, rotation_and_translation), start))
            except RuntimeError:  # no overlap from this start
                continue
        return fits

    found = []
    for poses, centre_mm in ((USUAL_POSES, top_centre_lps_mm), (OTHER_POSES, centre_lps_mm)):
        if fits := fits_from(poses, centre_mm(moving)):
            best = min(fits, key=lambda fit: fit[0])[1]
            # The best of the short fits may still be 30 degrees off. From there, an affine fit could shear the head instead.
            fit(best, 4, 1.0, 150, rotation_and_translation)
            affine = sitk.AffineTransform(3)
            affine.SetCenter(BRAIN_CENTRE_LPS_MM)
            affine.SetMatrix(best.GetMatrix())
            affine.SetTranslation(best.GetTranslation())
            fit(affine, 2, 0.3, 150)
            fit(affine, 1, 0.05, 150)
            found.append((resemblance(moving, affine), affine))
        if found and found[-1][0] >= LOWEST_CORRELATION:
            break
    if not found:
        raise ValueError("registration found no overlap with the template; is this a scan of a whole head?")
    affine = max(found, key=lambda fit: fit[0])[1]

    rigid = sitk.AffineTransform(affine)
    rigid.SetMatrix(polar(np.reshape(affine.GetMatrix(), (3, 3)))[0].ravel().tolist())
    return rigid, affine


def top_centre_lps_mm(scan: sitk.Image) -> np.ndarray:
    """Return the centroid of the top 150 mm of the head, so that the neck does not count."""
    points_mm = _head_points_lps_mm(scan)
    height_mm = points_mm[:, 2]
    return points_mm[height_mm > np.percentile(height_mm, 99.9) - BRAIN_HEIGHT_MM].mean(axis=0)


def centre_lps_mm(scan: sitk.Image) -> np.ndarray:
    """Return the centroid of the head, whose top may lie on any side."""
    return _head_points_lps_mm(scan).mean(axis=0)


def _head_points_lps_mm(scan: sitk.Image) -> np.ndarray:
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.OtsuThreshold(scan, 0, 1)))
    indices = np.argwhere(sitk.GetArrayViewFromImage(parts) == 1)[:, ::-1]
    directions = np.reshape(scan.GetDirection(), (3, 3))
    return indices * scan.GetSpacing() @ directions.T + scan.GetOrigin()
