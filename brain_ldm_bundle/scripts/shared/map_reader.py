"""Find label maps, and read them with the values of a label table. The checks and the transforms use the same function."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from pathlib import Path

import nibabel as nib

from .image_files import find_in_anat
from .image_reader import CheckedReader
from .label_files import by_names, find_lookups, read_labels
from .label_table import LabelTable
from .nifti import named
from .simulated import made_by


def find_maps(dataset_dir: Path, but_of: Collection[str] = ()) -> list[tuple[Path, Path]]:
    """Find the label maps `*_dseg` of a BIDS data set, next to its scans and in the data sets `derivatives/*`.

    Args:
        dataset_dir: folder of the data set.
        but_of: generators whose data sets in `derivatives` are left out, because their maps are synthetic; see `made_by`.

    Returns:
        the path of each map, and its path inside of its data set.
    """
    found = []
    for root in (dataset_dir, *sorted(dataset_dir.glob("derivatives/[!.]*/"))):
        if root == dataset_dir or not any(made_by(root, generator) for generator in but_of):
            found += [(path, path.relative_to(root)) for path in find_in_anat(root, "dseg")]
    return found


def read_map(path: str | Path, table: LabelTable, partial_maps: bool = False) -> nib.Nifti1Image:
    """Read a label map (X, Y, Z) with values of `table`, as integers. The names of a `dseg.tsv` count.

    Args:
        path: file of the map.
        table: label table of the map.
        partial_maps: whether to accept a map that lacks most brain structures of the table.

    Raises:
        ValueError: the file is damaged, or its values are not the table's or mean another thing. The message names the file.
    """
    with named(path):
        values, image = read_labels(path)
        values = by_names(values, path, table.value_names(), table.name)
    table.classes(values, str(path))
    if not partial_maps:
        table.refuse_other_meaning(values, str(path))
    image.header.set_slope_inter(1, 0)
    return nib.Nifti1Image(values.astype("int32"), image.affine, image.header, dtype="int32")


def map_files(path: str | Path) -> list[str]:
    """Return the files that determine what `read_map` returns: the map and the table of its names, if there is one."""
    return [str(path), *map(str, find_lookups(path))]


class MapReader(CheckedReader):
    """Read label maps with `read_map` in MONAI's `LoadImaged`."""

    def __init__(self, table: LabelTable, partial_maps: bool = False) -> None:
        super().__init__(partial(read_map, table=table, partial_maps=partial_maps))
