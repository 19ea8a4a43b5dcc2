"""Refuse NIfTI headers whose voxels do not have exactly one place in millimetres."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from nibabel.nifti1 import data_type_codes

UNITS = {1: "metres", 3: "micrometres"}  # codes of length; 0 is unknown, which is taken as mm, and 2 is mm
CODES = range(6)  # of sform and qform
# Rounding of pixdim in text and float32. It moves the end of a head of 256 mm by less than 0.3 mm.
ZOOM_TOLERANCE = 1e-3
# A quaternion has three float32 numbers. The fourth follows from them with an error of up to 3.5e-4, which turns a volume by
# 7e-4 rad: 0.3 mm at the far corner of 256 x 256 x 256 mm.
PLACE_TOLERANCE_MM = 0.5
LEAST_MM, MOST_MM = 0.01, 50  # sides of voxels; those in metres or micrometres are outside, whatever unit the header names
SAVE = "save it again in Python: nib.save(nib.Nifti1Image(image.dataobj, A), 'new.nii.gz')"
CHOOSE = f"Find out which is right, and {SAVE} with A = image.get_sform() or A = image.get_qform()"


def refuse_ambiguous(header: Any, oriented: bool = True, remedy: str = "Convert it again from DICOM") -> None:
    """Refuse a header that gives its voxels no place, several places, or no value.

    Args:
        header: Nifti1Header or Nifti2Header as it is on disk, without nibabel's corrections.
        oriented: whether the directions of the axes must be known.
        remedy: advice for a header without orientation.

    Raises:
        ValueError: one fault, without the name of the file.
    """
    shape = tuple(int(side) for side in header["dim"][1 : 1 + int(header["dim"][0])])
    if not shape or min(shape) < 1:
        raise ValueError(f"has the shape {shape}, so it has no voxels. {remedy}")
    code = int(header["datatype"])
    if code not in data_type_codes.dtype:
        raise ValueError(f"has voxels of an unknown type (datatype {code}). {remedy}")
    dtype = header.get_data_dtype()
    if dtype.kind not in "iuf":
        name = "RGB" if dtype.names else dtype
        raise ValueError(f"has voxels of type {name}; one real number per voxel is needed. Convert it to float32")
    for name in ("scl_slope", "scl_inter"):
        if not np.isfinite(header[name]):
            raise ValueError(f"has the {name} {header[name]}, so its values are unknown. {remedy}, or set slope 1 and inter 0")
    unit = int(header["xyzt_units"]) & 7
    if unit not in (0, 2):
        raise ValueError(
            f"has lengths in {UNITS.get(unit, 'an unknown unit')} (xyzt_units {int(header['xyzt_units'])}), but mm are needed. "
            f"Convert the affine to mm, and {SAVE} with A = the affine in mm"
        )
    axes = min(3, len(shape))
    pixdim = np.asarray(header["pixdim"][1 : 1 + axes], dtype=float)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise ValueError(f"has the voxel sizes {_mm(pixdim)} (pixdim); they must be above 0. {remedy}")
    _refuse_forms(header, shape, pixdim, oriented, remedy)


def _refuse_forms(header: Any, shape: tuple[int, ...], pixdim: np.ndarray, oriented: bool, remedy: str) -> None:
    """Refuse sform and qform that are missing, that contradict each other, or that contradict pixdim."""
    header = header.copy()
    header["pixdim"][0] = -1 if header["pixdim"][0] == -1 else 1  # as nibabel does; some tools leave it 0
    codes = {name: int(header[f"{name}_code"]) for name in ("sform", "qform")}
    for name, code in codes.items():
        if code not in CODES:
            raise ValueError(f"has the unknown {name}_code {code}, so left and right are unknown. {remedy}")
    if oriented and not any(codes.values()):
        raise ValueError(f"has neither a qform nor an sform, so left and right are unknown. {remedy}")
    forms = {}
    for name in (name for name, code in codes.items() if code):
        try:
            forms[name] = np.asarray(getattr(header, f"get_{name}")(), dtype=float)
        except ValueError as error:
            raise ValueError(f"has a {name} that is no rotation ({error}). {remedy}") from error
        refuse_flat(forms[name], remedy)
        sides = np.linalg.norm(forms[name][:3, : len(pixdim)], axis=0)
        if np.abs(sides / pixdim - 1).max() > ZOOM_TOLERANCE:
            raise ValueError(f"has voxels of {_mm(sides)} by its {name}, but of {_mm(pixdim)} by its pixdim. {CHOOSE}")
    if len(forms) == 2:
        corners = list(itertools.product(*((0, side - 1) for side in (*shape, 1, 1)[:3])))
        apart_mm = np.linalg.norm(np.subtract(*(apply_affine(form, corners) for form in forms.values())), axis=1).max()
        if apart_mm > PLACE_TOLERANCE_MM:
            raise ValueError(
                f"has two places: its sform (code {codes['sform']}) and its qform (code {codes['qform']}) are up to "
                f"{apart_mm:.3g} mm apart. {CHOOSE}"
            )


def refuse_flat(affine: np.ndarray, remedy: str) -> None:
    """Refuse an affine (4, 4) that cannot be inverted, or whose lengths are not in mm."""
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not (np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-6 * sides.prod() > 0):
        raise ValueError(f"has an affine that cannot be inverted, {np.round(affine[:3], 6).tolist()}. {remedy}")
    if sides.min() < LEAST_MM or sides.max() > MOST_MM:
        raise ValueError(
            f"has voxels of {_mm(sides)}, and those of a scan have {LEAST_MM} to {MOST_MM} mm, so its unit is another. "
            f"Convert the affine to mm, and {SAVE} with A = the affine in mm"
        )


def _mm(values: np.ndarray) -> str:
    return f"({', '.join(f'{value:.6g}' for value in values)}) mm"
