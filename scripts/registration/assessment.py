"""Say in plain words why a scan may not be what it should: one T1-weighted scan of a whole head that was placed rightly."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from scipy.linalg import polar
from scipy.spatial.transform import Rotation

from registration.rigid import LOWEST_CORRELATION
from registration.template import on_template, resemblance, template, tissues

# Limits that were chosen. Right fits of six real scans filled 98 % of the template's brain, and white matter was 1.28 to 1.8
# times as bright as grey matter. The volume of adult heads is about 0.65 to 0.9 of the template's.
LOWEST_COVERAGE = 0.98
LOWEST_FILLING = 0.9
EMPTY_BELOW = 0.15  # of the median intensity of the brain
LOWEST_CONTRAST = 1.05
HEAD_VOLUME_RATIOS = (0.5, 1.3)
MOST_TURNED_DEG = 60

MEASURES = (
    "template_correlation",
    "brain_coverage",
    "brain_filled",
    "white_to_grey",
    "head_volume_ratio",
    "turned_deg",
    "suspicious",
)


def assess(scan: sitk.Image, affine: sitk.AffineTransform) -> dict[str, float | str]:
    """Measure how well the affine fit explains the scan, inside the template's brain at 2 mm.

    Returns:
        A dict with these entries.
        template_correlation: Pearson's r of the intensities of scan and template inside the brain, without what varies slowly.
        brain_coverage: fraction of the template's brain that lies inside the scan's field of view.
        brain_filled: fraction of the template's brain that is not empty in the scan.
        white_to_grey: median intensity of white matter / that of grey matter, where the template has them.
        head_volume_ratio: volume of this head / volume of the template's head.
        turned_deg: angle between the axes of the head and those of the scanner.
        suspicious: one sentence for each fault, or "".
    """
    inside = sitk.GetArrayViewFromImage(template()[1]) > 0
    fitted = on_template(scan, affine)
    ones = sitk.Image(scan.GetSize(), sitk.sitkFloat32) + 1
    ones.CopyInformation(scan)
    filled = fitted[inside]
    present = filled[filled > 0]
    white, grey = (max(float(np.median(fitted[tissue])), 0.0) for tissue in tissues())
    matrix = np.reshape(affine.GetMatrix(), (3, 3))
    measures = {
        "template_correlation": resemblance(scan, affine),
        "brain_coverage": float((on_template(ones, affine)[inside] > 0.5).mean()),
        "brain_filled": float((filled > EMPTY_BELOW * np.median(present)).mean()) if present.size else 0.0,
        "white_to_grey": white / grey if grey else 0.0,
        "head_volume_ratio": float(np.linalg.det(matrix)),
        "turned_deg": float(np.degrees(Rotation.from_matrix(polar(matrix)[0]).magnitude())),
    }
    measures = {name: round(value, 4 if name != "turned_deg" else 1) for name, value in measures.items()}
    return measures | {"suspicious": "; ".join(faults(measures))}


def faults(measures: dict[str, float]) -> list[str]:
    """Return what a scan with these measures looks like, if it does not look like a T1w of a whole head."""
    found = []
    if measures["brain_coverage"] < LOWEST_COVERAGE:
        found.append(f"only {measures['brain_coverage']:.0%} of the brain lies in the field of view")
    elif measures["brain_filled"] < LOWEST_FILLING:
        found.append(f"{1 - measures['brain_filled']:.0%} of the brain is empty, as if a part of the head was cut off")
    if measures["white_to_grey"] < LOWEST_CONTRAST:
        found.append("white matter is not brighter than grey matter, so it looks like T2w, PD or FLAIR, or is misplaced")
    elif measures["template_correlation"] < LOWEST_CORRELATION:
        found.append("it does not resemble the template, so it is misplaced, damaged, or no T1w of a head")
    low, high = HEAD_VOLUME_RATIOS
    if not low <= measures["head_volume_ratio"] <= high:
        found.append(f"the head has {measures['head_volume_ratio']:.2f} of the template's volume; {low} to {high} expected")
    if measures["turned_deg"] > MOST_TURNED_DEG and not found:
        found.append(f"the head is turned by {measures['turned_deg']:.0f} degrees, so its header may mistake left for right")
    return found
