"""Read label maps as whole numbers, and the BIDS tables `dseg.tsv` that name their values."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import nibabel as nib
import numpy as np

from . import nifti
from .files import is_there
from .label_names import translated
from .tables import is_missing, read_table

TOLERANCE = 0.01  # allows rounding of float maps; interpolated maps differ far more from integers


def read_labels(path: str | Path, oriented: bool = True) -> tuple[np.ndarray, nib.Nifti1Image]:
    """Read the label values (X, Y, Z) of a map in the order of the file, as integers, and the image with its affine.

    A header that scales integers gives values that differ from integers by up to half of its slope. These are rounded. If
    `oriented` is false, the directions of the axes need not be known.

    Raises:
        ValueError: the file is damaged, is not one volume, or its voxels are not integers. The message does not name the file.
    """
    image = nifti.read_whole(path, oriented=oriented)
    shape = nifti.three_sides(image.shape)
    stored = image.get_data_dtype()
    slope = abs(float(getattr(image.dataobj, "slope", 1)))
    if stored.kind != "f" and slope > 1:
        raise ValueError(f"its header scales integers by {slope:g}, so labels between are lost. Write it again unscaled")
    values = np.asanyarray(image.dataobj).reshape(shape)
    rounding = slope / 2 if stored.kind != "f" and slope < 1 else 0
    return whole_numbers(values, max(TOLERANCE, rounding + 1e-4)), image


def whole_numbers(values: np.ndarray, tolerance: float = TOLERANCE) -> np.ndarray:
    """Round label values to integers, as int32 if they fit.

    Raises:
        ValueError: values are not finite, or differ from an integer by more than `tolerance`.
    """
    if values.dtype.kind != "f":
        return values
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise ValueError(f"{bad} voxels are NaN or infinite. Write the label map again as integers")
    rounded = np.rint(values)
    fractions = np.abs(values - rounded) > tolerance
    if fractions.any():
        raise ValueError(
            f"{np.count_nonzero(fractions)} of {values.size} voxels are not integers, such as {values[fractions][0]:g}: the "
            f"label map looks interpolated, or shows probabilities. Resample it from the original by nearest neighbour"
        )
    return rounded.astype(np.int32) if np.abs(rounded).max(initial=0) < 2**31 else rounded


def smallest_integers(values: np.ndarray) -> np.ndarray:
    """Convert integers to the smallest type that BIDS tools read: uint8, int16 or int32."""
    lowest, highest = values.min(), values.max()
    dtype = next(t for t in (np.uint8, np.int16, np.int32) if np.iinfo(t).min <= lowest and highest <= np.iinfo(t).max)
    return values.astype(dtype)


def by_names(values: np.ndarray, path: str | Path, table_names: Mapping[int, str], table: str) -> np.ndarray:
    """Return a map's values in the numbers of a label table, if a `dseg.tsv` names them. See `label_names.translated`.

    Args:
        values: label values of the map.
        path: file of the map.
        table_names: name of each value of the label table.
        table: name of the label table, for error messages.

    Raises:
        ValueError: the names contradict the table, or cannot be read, or two files have names. The message names the file.
    """
    lookups = find_lookups(path)
    if len(lookups) > 1:
        raise ValueError(f"{path}: both {lookups[0]} and {lookups[1]} name its values. Keep one")
    return translated(values, read_names(lookups[0]), str(lookups[0]), table_names, table) if lookups else values


def find_lookups(path: str | Path) -> list[Path]:
    """Find the table that names a map's values: `dseg.tsv` or `*_dseg.tsv` with some of the entities of the map's name.

    BIDS lets it lie beside the map or in a folder above, up to the data set's root. The nearest folder with such a table
    counts, and in it the name with the most entities. The list is empty without a table, and has several if they are equal.
    """
    path = Path(os.path.abspath(path))  # not resolved, because the name of a link counts, not its target's
    entities = set(re.sub(r"\.(nii|nii\.gz|mgz|mgh)$", "", path.name).split("_"))
    for folder in path.parents:
        names = {table: set(table.stem.split("_")) for table in _tables(folder, os.stat(folder).st_mtime_ns)}
        fitting = {table: len(own) for table, own in names.items() if "dseg" in own and own - {"dseg"} <= entities}
        fitting = {table: count for table, count in fitting.items() if is_there(table)}
        if fitting:
            return [table for table, count in fitting.items() if count == max(fitting.values())]
        if not re.fullmatch(r"anat|(sub|ses)-[0-9A-Za-z+]+", folder.name):
            break
    return []


@lru_cache
def _tables(folder: Path, modified_ns: int) -> list[Path]:
    """Find the tables of names in a folder, which is listed only once: it can hold 100,000 maps."""
    return sorted(table for table in folder.glob("*dseg.tsv") if table.name[0] != ".")


def read_names(path: str | Path) -> dict[int, str]:
    """Read the name of each label value from the columns index and name of a `dseg.tsv`.

    Raises:
        ValueError: a column is missing, an index is not an integer, or a value has two names.
    """
    names = {}
    for row in read_table(path, ("index", "name")):
        if not {"index", "name"} <= row.keys():
            raise ValueError(f"{path}: expected columns index and name, got {', '.join(row)}")
        if not re.fullmatch(r"-?\d+(\.0*)?", row["index"]):
            raise ValueError(f"{path}: index must be a whole number, got {row['index']!r}")
        value, name = int(float(row["index"])), row["name"]
        if names.setdefault(value, name) != name:
            raise ValueError(f"{path}: index {value} is {names[value]!r} and {name!r}. Keep one")
    return {value: name for value, name in names.items() if not is_missing(name)}
