"""Register a T1-weighted scan rigidly to the ICBM152 template (MNI152NLin2009aSym), and assess the registration.

Points are in millimetres, in SimpleITK's LPS convention. Transforms map MNI points to points of the scan.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import SimpleITK as sitk
from nilearn.datasets import load_mni152_template
from scipy.linalg import polar

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])

BRAIN_CENTRE_LPS_MM = (0.0, 18.0, 5.0)  # centre of the template's brain
BRAIN_HEIGHT_MM = 150.0
USUAL_HEAD_SCALE = 0.9  # length of a usual head / length of the template's head, which is large

# A registration outside these limits is called suspicious (chosen). In 12 simulated heads with skull and neck the correlation
# was 0.54 to 0.66. After a rotation by 10 degrees it was 0.44 to 0.52, and after a shift by 10 mm it was 0.23 to 0.33. The
# volume of adult heads is about 0.65 to 0.9 of the template's.
LOWEST_CORRELATION = 0.5
LOWEST_COVERAGE = 0.98
HEAD_VOLUME_RATIOS = (0.5, 1.3)

MEASURES = ("template_correlation", "brain_coverage", "head_volume_ratio", "suspicious")


def to_sitk(data: np.ndarray, spacing_mm, directions: np.ndarray, origin_mm) -> sitk.Image:
    """Turn an array (X, Y, Z) with a RAS geometry into a SimpleITK image (LPS)."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(data.transpose(2, 1, 0), dtype=np.float32))
    image.SetSpacing([float(size) for size in spacing_mm])
    image.SetDirection((LPS_TO_RAS[:3, :3] @ directions).ravel().tolist())
    image.SetOrigin((LPS_TO_RAS[:3, :3] @ origin_mm).tolist())
    return image


@lru_cache(maxsize=1)
def template() -> tuple[sitk.Image, sitk.Image]:
    """Return the brain of the ICBM152 T1 template at 2 mm, and its mask."""
    image = load_mni152_template(resolution=1)
    at_1_mm = to_sitk(image.get_fdata(), [1, 1, 1], np.eye(3), image.affine[:3, 3])
    at_2_mm = sitk.BinShrink(at_1_mm, [2, 2, 2])
    return at_2_mm, at_2_mm > 0.05


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
    moving = sitk.BinShrink(scan, [max(1, round(2 / size)) for size in scan.GetSpacing()])

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

    # From a single start, the fit could reach a wrong optimum if the head is pitched or its centre is estimated badly. The size
    # is fixed at first. Otherwise it could grow until the template's brain fills the skull.
    rotation_and_translation = (1, 1, 1, 1, 1, 1, 0)
    starts = []
    centre_mm = head_centre_lps_mm(moving)
    for pitch_rad in (-0.7, -0.35, 0.0, 0.35, 0.7):
        for up_mm in (-20.0, 0.0, 20.0):
            start = sitk.Similarity3DTransform()
            start.SetCenter(BRAIN_CENTRE_LPS_MM)
            start.SetRotation((1.0, 0.0, 0.0), pitch_rad)
            start.SetTranslation((centre_mm - BRAIN_CENTRE_LPS_MM + [0, 0, up_mm]).tolist())
            start.SetScale(USUAL_HEAD_SCALE)
            try:
                starts.append((fit(start, 4, 1.0, 40, rotation_and_translation), start))
            except RuntimeError:  # no overlap from this start
                continue
    if not starts:
        raise ValueError("registration found no overlap with the template; is this a scan of a whole head?")
    best = min(starts, key=lambda start: start[0])[1]

    affine = sitk.AffineTransform(3)
    affine.SetCenter(BRAIN_CENTRE_LPS_MM)
    affine.SetMatrix(best.GetMatrix())
    affine.SetTranslation(best.GetTranslation())
    fit(affine, 2, 0.3, 150)
    fit(affine, 1, 0.05, 150)

    rigid = sitk.AffineTransform(affine)
    rigid.SetMatrix(polar(np.reshape(affine.GetMatrix(), (3, 3)))[0].ravel().tolist())
    return rigid, affine


def head_centre_lps_mm(scan: sitk.Image) -> np.ndarray:
    """Return the centroid of the top 150 mm of the head, so that the neck does not count."""
    parts = sitk.RelabelComponent(sitk.ConnectedComponent(sitk.OtsuThreshold(scan, 0, 1)))
    indices = np.argwhere(sitk.GetArrayViewFromImage(parts) == 1)[:, ::-1]
    directions = np.reshape(scan.GetDirection(), (3, 3))
    points_mm = indices * scan.GetSpacing() @ directions.T + scan.GetOrigin()
    height_mm = points_mm[:, 2]
    return points_mm[height_mm > np.percentile(height_mm, 99.9) - BRAIN_HEIGHT_MM].mean(axis=0)


def assess(scan: sitk.Image, affine: sitk.AffineTransform) -> dict:
    """Measure how well the affine fit explains the scan, inside the template's brain at 2 mm.

    Returns:
        A dict with these entries.
        template_correlation: Pearson's r of the intensities of scan and template.
        brain_coverage: fraction of the template's brain that lies inside the scan's field of view.
        head_volume_ratio: volume of this head / volume of the template's head.
        suspicious: names of the measures outside their limits, separated by commas, or "".
    """
    fixed, brain = template()
    inside = sitk.GetArrayViewFromImage(brain) > 0
    fitted = sitk.GetArrayFromImage(sitk.Resample(scan, fixed, affine, sitk.sitkLinear, 0.0))[inside]
    ones = sitk.Image(scan.GetSize(), sitk.sitkUInt8) + 1
    ones.CopyInformation(scan)
    covered = sitk.GetArrayFromImage(sitk.Resample(ones, fixed, affine, sitk.sitkNearestNeighbor, 0))[inside]
    correlation = np.corrcoef(fitted, sitk.GetArrayViewFromImage(fixed)[inside])[0, 1] if fitted.std() > 0 else 0.0
    ratio = np.linalg.det(np.reshape(affine.GetMatrix(), (3, 3)))
    suspicious = {
        "template_correlation": correlation < LOWEST_CORRELATION,
        "brain_coverage": covered.mean() < LOWEST_COVERAGE,
        "head_volume_ratio": not HEAD_VOLUME_RATIOS[0] <= ratio <= HEAD_VOLUME_RATIOS[1],
    }
    return {
        "template_correlation": round(float(correlation), 4),
        "brain_coverage": round(float(covered.mean()), 4),
        "head_volume_ratio": round(float(ratio), 4),
        "suspicious": ", ".join(name for name, found in suspicious.items() if found),
    }
