"""Plant defects in real scans. Each control must rank worst on its own score, and be named."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
from scipy import ndimage
from shared import mni_box

from scoreboard.conforming import Change, Files
from scoreboard.measures import Measured, Meter

BLUR_MM = 8.0  # full width at half maximum, as in Table 1 of the bundle
NOISE = 0.1  # standard deviation, as a share of the 99.5th percentile
SHIFT_MM = 16.0  # to the front, where the grid has room; whole voxels of the grid, so that nothing is interpolated
SCALE = 0.9  # of each side
OLDER_YEARS = 10.0
BRAIN_CENTRE_MM = np.mean(mni_box.BRAIN_MM, axis=0)
MIDDLE_MM = np.add(mni_box.LOWER_CORNER_MM, np.divide(mni_box.FIELD_OF_VIEW_MM, 2))  # a mirror here maps voxels to voxels


@dataclass(frozen=True)
class Defect:
    """A planted defect: its score and the end of this score at which it must be worst, and how to plant it in a volume."""

    score: str
    end: str  # "low" or "high", as in `scores.Kind`
    change: Change | None = None  # None: `plant` changes the set instead


def _blurred(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sigma = BLUR_MM / np.sqrt(8 * np.log(2)) / nib.affines.voxel_sizes(affine)
    return ndimage.gaussian_filter(values, sigma), affine


def _noisy(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Add Rician noise. Its seed is the number of bright voxels, so that each scan has its own noise in every run."""
    rng = np.random.default_rng(int(np.count_nonzero(values > values.mean())))
    real, imaginary = NOISE * np.percentile(values, 99.5) * rng.standard_normal((2, *values.shape), dtype=np.float32)
    return np.hypot(values + real, imaginary), affine


def _moved(matrix: np.ndarray, centre_mm: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the affine of a volume after a linear map (3, 3) about a centre."""
    return nib.affines.from_matvec(matrix, centre_mm - matrix @ centre_mm) @ affine


def _with_other_axes(values: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Exchange RAS and LPS in the header, and keep the volume's place."""
    centre_mm = nib.affines.apply_affine(affine, (np.array(values.shape) - 1) / 2)
    return values, _moved(np.diag([-1.0, -1.0, 1.0]), centre_mm, affine)


DEFECTS = {
    "blurred": Defect("sharpness", "low", _blurred),
    "noisy": Defect("noise", "high", _noisy),
    "mirrored": Defect("sides", "low", lambda v, a: (v, _moved(np.diag([-1.0, 1.0, 1.0]), MIDDLE_MM, a))),
    "wrong affine": Defect("axes", "high", _with_other_axes),
    "shifted": Defect("shift", "high", lambda v, a: (v, nib.affines.from_matvec(np.eye(3), (0, SHIFT_MM, 0)) @ a)),
    "scaled brain": Defect("size", "low", lambda v, a: (v, _moved(SCALE * np.eye(3), BRAIN_CENTRE_MM, a))),
    "copied": Defect("copies", "high"),
    "collapsed": Defect("variety", "low"),
    "ten years older": Defect("age_bias", "high"),
    "sex swapped": Defect("sex", "low"),
}


def plant(name: str, half: Measured, reference: Measured, meter: Meter) -> Measured | None:
    """Return the scans of a half of the study with a defect. The other half is the reference.

    The result is None if the defect needs a covariate that the study's table lacks.
    """
    defect, table = DEFECTS[name], half.table
    if defect.change:
        return meter.measure(Files(half.paths, affines=half.affines, change=defect.change), table, f"control: {name}")
    if name == "copied":
        return reference
    if name == "collapsed":
        return half.of([0] * len(half)).with_table(**table)
    if name == "ten years older" and "age" in table:  # heads look older than the table asks
        return half.with_table(age=table["age"].astype(float) - OLDER_YEARS)
    if name == "sex swapped" and "sex" in table:
        return half.with_table(sex=table["sex"].map({"F": "M", "M": "F"}))
    return None
