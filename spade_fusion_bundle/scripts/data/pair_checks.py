"""Whether scans and label maps can be trained on: each is read and checked once, and sound pairs are remembered."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..shared import nifti
from .labels import LabelTable

__all__ = ["pair_problems"]

MOST_READERS = 4  # each holds a pair, some 0.5 GB at 256 x 256 x 256 while its values are looked up

# Entries of scan's and map's affine may differ by so much: rounding of a quaternion, not another position.
AFFINE_TOLERANCE = 1e-3


def pair_problems(
    items: Sequence[Mapping], table: LabelTable, workers: int | None = None, cache_file: str | Path | None = None
) -> list[str]:
    """What is wrong with the files, in their order, one line each; sound pairs are remembered and not read again.

    Args:
        items: {"image", "label"}, paths of T1w and map.
        table: whose values the maps may hold.
        workers: threads that read; None: one per core, at most 4.
        cache_file: JSON that remembers the sound pairs by path, size, date and table.
    """
    of_table = hashlib.sha256(json.dumps(table.to_dict()).encode()).hexdigest()

    def check(image: str, label: str) -> list:
        problems = _problems_of_pair(image, label, table)
        if problems:
            raise ValueError("\n".join(problems))
        return []

    pairs = [[item["image"], item["label"]] for item in items]
    return nifti.check_files(pairs, check, [of_table], workers or min(MOST_READERS, os.cpu_count()), cache_file)[0]


def _problems_of_pair(image: str, label: str, table: LabelTable) -> list[str]:
    problems, grids = [], []
    try:
        grids.append(_check_image(image))
    except ValueError as error:
        problems.append(f"{image}: {error}")
    try:
        grids.append(_check_label(label, table))
    except ValueError as error:
        problems.append(f"{label}: {str(error).removeprefix(f'{label}: ')}")
    if not problems:
        (shape, affine), (of_label, label_affine) = grids
        remedy = f"the scan {image}. Resample the map to the scan with nearest neighbour"
        if of_label != shape:
            problems.append(f"{label}: has the shape {of_label}, not {shape} as {remedy}")
        elif np.abs(affine - label_affine).max() > AFFINE_TOLERANCE:
            rows, label_rows = (np.round(matrix[:3], 3).tolist() for matrix in (affine, label_affine))
            problems.append(f"{label}: has the affine {label_rows}, not {rows} as {remedy}")
    return problems


def _check_image(path: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a sound T1w."""
    scan = nifti.open_image(path)
    nifti.refuse_not_3d(scan.shape)
    nifti.read_grey_values(path)
    return scan.shape, scan.affine


def _check_label(path: str, table: LabelTable) -> tuple[tuple[int, ...], np.ndarray]:
    """Shape and affine of a sound label map; one trailing axis of length 1, as some tools write, is ignored."""
    image = nifti.open_image(path)
    shape = image.shape
    if shape[3:] == (1,):
        shape = shape[:3]
    if len(shape) != 3:
        raise ValueError(f"is a {len(shape)}-D map {shape}; three dimensions are needed, with one label per voxel")
    table.classes(np.asanyarray(nifti.read_whole(path).dataobj), path)
    return shape, image.affine
