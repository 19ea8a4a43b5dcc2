"""Check scans and label maps before work starts. Each file is read completely, and results are cached."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np

from ..shared import nifti
from ..shared.label_table import LabelTable
from ..shared.map_reader import map_files, read_map
from ..shared.problems import count
from ..shared.scan_identity import voxels_sha256

READERS = min(4, os.cpu_count())  # each holds one pair in memory, about 0.5 GB at 256 x 256 x 256
LEAST_RATIO = 1.3  # of the means of ventricles and white matter: 0.1 to 0.7 in T1w, 1.4 or more in T2w; chosen
AFFINE_TOLERANCE = 1e-3  # mm; such differences come from rounding of quaternions


def check_pairs(
    items: Sequence[dict],
    table: LabelTable,
    cache_file: str | Path | None = None,
    partial_maps: bool = False,
    spacing_mm: float | None = None,
) -> tuple[list[str], list[list[str] | None]]:
    """Check that scan and label map of each pair are readable and on the same grid, and that the map shows a head.

    Warn about scans that are brighter in the lateral ventricles than in white matter, unlike T1w, about noise, and about voxels
    that are much longer than `spacing_mm`, the model's. The JSON file `cache_file` records pairs that pass.

    Returns:
        one line for each problem, and the identities of scan and map of each pair, or None if it has a problem.
    """
    of_table = hashlib.sha256(json.dumps(table.to_dict()).encode()).hexdigest()
    pairs = [[item["image"], *map_files(item["label"])] for item in items]
    check = partial(_check_pair, table=table, partial_maps=partial_maps)
    problems, found = nifti.check_files(pairs, check, [of_table, partial_maps], READERS, cache_file)
    if odd := [f"{item['image']} ({one[2]})" for item, one in zip(items, found) if one and one[2]]:
        warnings.warn(
            f"{len(odd)} scans, such as {min(odd)}, are brighter in the lateral ventricles than in white matter, unlike T1w. "
            f"They may be T2w, or their maps may be of other scans: look at them",
            stacklevel=3,
        )
    if noise := [item["image"] for item, one in zip(items, found) if one and one[3]]:
        warnings.warn(
            f"{len(noise)} scans, such as {min(noise)}, are noise: neighbouring voxels have nothing in common. Leave them out",
            stacklevel=3,
        )
    _warn_of_coarse([item["image"] for item in items], [one and one[4] for one in found], spacing_mm, "scan")
    return problems, [one and one[:2] for one in found]


def map_problems(
    paths: Sequence[str], table: LabelTable | None = None, partial_maps: bool = False, spacing_mm: float | None = None
) -> list[str]:
    """Check the headers of label maps, and their values if a table is given. Return one line for each problem.

    Warn about voxels that are much longer than `spacing_mm`, the model's.
    """

    def check(path: str) -> list[float]:
        return _sizes_mm(_named(partial(_open_map, table=table, partial_maps=partial_maps), path))

    problems, found = nifti.check_files([[path] for path in paths], check, workers=READERS)
    _warn_of_coarse(paths, found, spacing_mm, "label map")
    return problems


def _warn_of_coarse(
    paths: Sequence[str], sizes_mm: Sequence[Sequence[float] | None], spacing_mm: float | None, image: str
) -> None:
    """Warn of images whose voxels, of three sides each, or None for a refused image, are much longer than the model's."""
    sides = {path: nifti.coarse(each, spacing_mm) for path, each in zip(paths, sizes_mm) if each and spacing_mm}
    if blurred := sorted(path for path, side in sides.items() if side):
        warnings.warn(
            f"the voxels of {count(blurred, image)}, such as {blurred[0]} ({sides[blurred[0]]}), are much longer than the "
            f"model's, {spacing_mm:g} mm (spacing_mm), so details are missing. Leave such files out, or train with a larger "
            f"spacing_mm",
            stacklevel=4,
        )


def _sizes_mm(image: nib.Nifti1Image) -> list[float]:
    return nib.affines.voxel_sizes(image.affine).tolist()


def _check_pair(image: str, label: str, *_: str, table: LabelTable, partial_maps: bool) -> list:
    """Return the identities of scan and map if they pass all checks, and what the warnings of `check_pairs` are about."""
    found, problems = [], []
    for path, check in ((image, _open_scan), (label, partial(_open_map, table=table, partial_maps=partial_maps))):
        try:
            found.append(_named(check, path))
        except ValueError as error:
            problems.append(str(error))
    if not problems:
        (scan, values), label_map = found
        labels = np.asanyarray(nib.as_closest_canonical(label_map).dataobj)
        identity, of_map = voxels_sha256(values), voxels_sha256(labels)
        remedy = f"the scan {image}. Resample the map to the scan with nearest neighbour"
        if label_map.shape[:3] != scan.shape[:3]:
            problems = [f"{label}: has the shape {label_map.shape[:3]}, not {scan.shape[:3]} as {remedy}"]
        elif np.abs(scan.affine - label_map.affine).max() > AFFINE_TOLERANCE:
            rows, map_rows = (np.round(one.affine[:3], 3).tolist() for one in (scan, label_map))
            problems = [f"{label}: has the affine {map_rows}, not {rows} as {remedy}"]
        elif of_map == identity:
            problems = [f"{image}: has the same voxels as its label map {label}. Give the scan"]
        else:
            classes = table.classes(labels, label).reshape(values.shape)
            for part, mask in (("labels", classes > 0), ("labels of the brain", np.isin(classes, table.brain))):
                if mask.any() and np.ptp(inside := values[mask]) == 0:
                    problems = [
                        f"{image}: is {inside[0]:g} wherever its label map {label} has {part}. Give the scan of this map"
                    ]
                    break
    if problems:
        raise ValueError("\n".join(problems))
    return [identity, of_map, _bright_fluid(values, classes, table), nifti.is_noise(values), _sizes_mm(scan)]


def _bright_fluid(values: np.ndarray, classes: np.ndarray, table: LabelTable) -> str:
    """Return both means if the lateral ventricles are clearly brighter than white matter, or "" if not or if one is unknown."""
    masks = [
        np.isin(classes, [number for number, own in enumerate(table.names) if own.endswith(name)])
        for name in ("lateral ventricle", "cerebral white matter")
    ]
    if not all(mask.any() for mask in masks):
        return ""
    fluid, white = (float(values[mask].mean()) for mask in masks)
    lowest = float(values.min())
    bright = fluid - lowest > LEAST_RATIO * (white - lowest)
    return f"ventricles {fluid:.3g}, white matter {white:.3g}" if bright else ""


def _named(check: Callable[[str], object], path: str) -> object:
    """Call `check(path)`, and start its error message with the path."""
    with nifti.named(path):
        return check(path)


def _open_scan(path: str) -> tuple[nib.Nifti1Image, np.ndarray]:
    image = nifti.open_image(path)
    nifti.three_sides(image.shape)
    return image, nifti.read_grey_values(path)


def _open_map(path: str, table: LabelTable | None = None, partial_maps: bool = False) -> nib.Nifti1Image:
    image = nifti.open_image(path, "Copy the orientation of the scan it belongs to")
    nifti.three_sides(image.shape)
    return image if table is None else read_map(path, table, partial_maps)
