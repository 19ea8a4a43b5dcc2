"""Correct and scale the intensities of scans, so that tissues of different heads have comparable values."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from registration.template import on_template, tissues

from preparation.reading import BRIGHTEST_PERCENTILE

# White matter has about this value in scans of the brain only, and in the simulated heads of the shipped weights.
WHITE_MATTER = 0.8


def correct_bias(scan: sitk.Image) -> sitk.Image:
    """Correct the bias field with N4 (Tustison et al. 2010), fitted at about 4 mm."""
    small = sitk.BinShrink(scan, [max(1, round(4 / size)) for size in scan.GetSpacing()])
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(sitk.Clamp(small, lowerBound=0.0), sitk.OtsuThreshold(small, 0, 1))
    return scan / sitk.Exp(n4.GetLogBiasFieldAsImage(scan))


def intensity_of_one(scale: str, volume: np.ndarray, scan: sitk.Image, affine: sitk.AffineTransform) -> float:
    """Return the intensity that becomes 1.

    Args:
        scale: "white_matter" gives the median of the template's white matter the value 0.8. "brightest" gives the 99.8th
            percentile of all that is not background the value 1. White matter then has about 0.6, if the scalp is in the scan.
        volume: the resampled scan.
        scan: the raw scan.
        affine: transform from points of the template to points of the scan.

    Raises:
        ValueError: the resampled scan is empty.
    """
    white = float(np.median(on_template(scan, affine)[tissues()[0]]))
    if scale == "white_matter" and white > 0:  # a scan that is empty there is suspicious, and may be kept all the same
        return white / WHITE_MATTER
    foreground = volume[volume > 0.1 * np.percentile(volume, 99)]
    if not foreground.size:
        raise ValueError("no part of the scan lies inside the box after registration")
    return float(np.percentile(foreground, BRIGHTEST_PERCENTILE))
