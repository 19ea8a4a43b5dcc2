"""Scans and label maps are checked before training. Sound pairs are remembered, so that each is read once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from ..shared import nifti
from ..shared.identities import voxels_sha256
from .labels import LabelTable

__all__ = ["check_pairs"]

MOST_READERS = 4  # each holds a pair, some 0.5 GB at 256 x 256 x 256 while its values are looked up

# Entries of scan's and map's affine may differ by so much: rounding of a quaternion, not another position.
AFFINE_TOLERANCE = 1e-3


def check_pairs(
    items: Sequence[dict], table: LabelTable, workers: int | None = None, cache_file: str | Path | None = None
) -> list[str]:
    """Check scans and label maps. Sound pairs are remembered and not read again.

    Args:
        items: {"image": path of the T1w, "label": path of the map}; a sound scan gets "voxels_sha256", its identity.
        table: label table with the values that maps may hold.
        workers: number of threads that read files; None: one per core, at most 4.
        cache_file: JSON that remembers the sound pairs by path, size, date and table.

    Returns:
        problems, one line each, in the order of `items`.
    """
    of_table = hashlib.sha256(json.dumps(table.to_dict()).encode()).hexdigest()

    pairs = [[item["image"], item["label"]] for item in items]
    problems, found = nifti.check_files(
        pairs, partial(_check_pair, table), [of_table], workers or min(MOST_READERS, os.cpu_count()), cache_file
    )
    for item, identity in zip(items, found):
        if identity is not None:
            (item["voxels_sha256"],) = identity
    return problems


def _check_pair(table: LabelTable, image: str, label: str) -> list[str]:
    """Identity of a sound scan with a sound map on its grid."""
    problems, grids = [], []
    try:
        *grid, identity = _check_image(image)
        grids.append(grid)
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
    if problems:
        raise ValueError("\n".join(problems))
    return [identity]


def _check_image(path: str) -> tuple[tuple[int, ...], np.ndarray, str]:
    """Shape, affine and identity of a sound T1w."""
    scan = nifti.open_image(path)
    nifti.refuse_not_3d(scan.shape)
    return scan.shape, scan.affine, voxels_sha256(nifti.read_grey_values(path))


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
