"""Which label maps there are, which variants of them to make, and who makes them; what cannot be used is refused first."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from glob import glob
from itertools import product
from pathlib import Path

import numpy as np

from ..data.deformation import refuse_folding
from ..data.derivative import Derivative, made_here, name_of
from ..data.labels import LabelTable
from ..data.scans_and_maps import read_splits
from ..shared.files import sha256
from ..shared.nifti import check_files, open_image, read_whole
from ..shared.problems import refuse

__all__ = ["find_maps", "inputs", "pending", "rows"]

logger = logging.getLogger(__name__)

MOST_READERS = 4  # each holds a map, some 0.5 GB at 256 x 256 x 256 while its values are looked up
BIDS_FOLDERS = ("sub-*/anat", "sub-*/ses-*/anat", "derivatives/*/sub-*/anat", "derivatives/*/sub-*/ses-*/anat")


def find_maps(label_maps: str | Path | None, output_dir: str | Path | None = None, split: str | None = None) -> list[dict]:
    """Find label maps and check all their headers.

    Args:
        label_maps: a NIfTI file; a folder of them; a BIDS data set, whose `*_dseg.nii[.gz]` are taken from `sub-X/[ses-Y/]anat`
            here and in `derivatives/*`, but for what this bundle wrote; or a pattern such as "DIR/**/*_desc-aseg_dseg.nii.gz".
        output_dir: where images will go; must be another folder.
        split: train, fusion, validation or test: only those whose row in the BIDS data set's participants.tsv says so.

    Returns:
        items {"image": path, "participant_id": "sub-X", "session_id": "ses-Y" or None}, sorted by path. Names come from the
        files' BIDS entities, elsewhere from their letters and digits: training_seg_01.nii.gz is sub-trainingseg01.

    Raises:
        FileNotFoundError: no label map there, or none of the split.
        ValueError: a split without participants.tsv; all headers that are wrong, all names that clash: up to 20 lines, and how
            many more.
    """
    if label_maps is None:
        raise ValueError("no label maps were given. Add --label_maps with a NIfTI file, a folder, or a BIDS data set")
    root = Path(label_maps)
    if output_dir is not None and root.resolve() == Path(output_dir).resolve():
        raise ValueError(f"label_maps and output_dir are one folder, {root}. Choose a new one for --output_dir")
    if root.is_dir():
        found = [path for folder in BIDS_FOLDERS for path in root.glob(f"{folder}/sub-*_dseg.nii*")]
        synthetic = [folder for folder in root.glob("derivatives/*/") if made_here(folder)]
        found = [path for path in found if not any(path.is_relative_to(folder) for folder in synthetic)]
        found = found or list(root.glob("*.nii*"))
    else:
        found = [root] if root.is_file() else [Path(path) for path in glob(str(label_maps), recursive=True)]
    paths = sorted(path for path in found if path.name.endswith((".nii", ".nii.gz")))
    if not paths:
        raise FileNotFoundError(
            f"label_maps {label_maps}: no label maps there. Give a NIfTI file, a folder of them, or a BIDS data set with "
            f"sub-X/[ses-Y/]anat/*_dseg.nii.gz"
        )
    if split is not None:
        paths = _of_split(paths, split, root / "participants.tsv")
    problems = _problems(_check_header, paths)
    maps = []
    for path in paths:
        participant, session = _entities(path)
        if participant == "sub-":
            problems.append(f"{path}: the name has no letter or digit to call the subject by. Rename the file")
        maps.append({"image": str(path), "participant_id": participant, "session_id": session})
    problems += _clashes(maps)
    refuse(problems, f"{label_maps}: {len(problems)} problems with the label maps:")
    return maps


def rows(
    maps: Sequence[Mapping],
    variants: int = 1,
    deformation_mm: float = 5.0,
    deformation_scale_mm: float = 40.0,
    deform_all: bool = False,
    seed: int = 0,
) -> list[dict]:
    """The images to make: `variants` of each map, the first of the map as it is, further ones deformed, as sub-Xv01 ....

    Args:
        maps: from `find_maps`.
        variants: of each map.
        deformation_mm, deformation_scale_mm: as `scripts.data.deformation.deform`.
        deform_all: deform the first variant, too.
        seed: base seed. That of a row depends on it, the row's name and variant, on nothing else.

    Raises:
        ValueError: variants that would be copies of each other, or whose names clash with other maps'.
    """
    if variants < 1:
        raise ValueError(f"variants must be at least 1, got {variants}")
    refuse_folding(deformation_mm, deformation_scale_mm)
    if deformation_mm == 0 and (variants > 1 or deform_all):
        raise ValueError(f"variants {variants} with deformation_mm 0 would be copies of one image. Set --deformation_mm")
    made = []
    for item, variant in product(maps, range(variants)):
        deformed = deform_all or variant > 0
        row_seed = hashlib.sha256(f"{seed}:{name_of(item)}:{variant}".encode()).digest()[:4]
        made.append(
            {
                **item,
                "participant_id": item["participant_id"] + (f"v{variant:02d}" if variant else ""),
                "source_participant_id": item["participant_id"],
                "provenance": {
                    "LabelMap": Path(item["image"]).name,
                    "Variant": variant,
                    "DeformationMm": deformation_mm if deformed else 0,
                    "DeformationScaleMm": deformation_scale_mm if deformed else None,
                    "Seed": int.from_bytes(row_seed, "big") if deformed else None,
                },
            }
        )
    clashes = _clashes(made)
    refuse(clashes, f"{len(clashes)} of the variants' names clash with those of label maps:")
    return made


def pending(
    rows: Sequence[Mapping],
    derivative: Derivative,
    table: LabelTable,
    provenance: Mapping,
    rank: int = 0,
    world_size: int = 1,
) -> list[dict]:
    """The rows that this rank has yet to make: each belongs to one rank, those whole on disk are left out.

    Every map of them is read and checked here, before the first image is made.

    Args:
        rows: from `rows`.
        derivative: that they will be written to.
        table: that their label values must be in.
        provenance: of the whole run, such as WeightsSHA256.
        rank, world_size: of this process.

    Raises:
        ValueError: maps that cannot be read, or with values that are not in the table, or empty: up to 20, and how many more.
    """
    mine = [
        {**row, "provenance": {**row["provenance"], "LabelMapSHA256": sha256(row["image"]), **provenance}}
        for row in rows[rank::world_size]
    ]
    left = [row for row in mine if not derivative.is_complete(row)]
    maps = list(dict.fromkeys(row["image"] for row in left))
    problems = _problems(partial(_check_values, table=table), maps)
    refuse(problems, f"{len(problems)} of {len(maps)} label maps cannot be used:")
    replaced = [str(file) for row in left if (file := derivative.image_file(row)).exists()]
    if replaced:
        logger.warning(
            f"{len(replaced)} images, such as {replaced[0]}, were made from other label maps, settings or weights, or are "
            f"damaged: they will be replaced. Give another --output_dir to keep them"
        )
    logger.info(f"rank {rank}: {len(mine)} of {len(rows)} images are this rank's, {len(mine) - len(left)} of them made already")
    return left


def inputs(rows: Sequence[Mapping]) -> list[dict]:
    """What the transforms need of rows: path of the map, name of the row, and the seed of a deformation."""
    seeds = [row["provenance"]["Seed"] for row in rows]
    named = [{"image": row["image"], "name": name_of(row)} for row in rows]
    return [item if seed is None else item | {"deformation_seed": seed} for item, seed in zip(named, seeds)]


def _entities(path: Path) -> tuple[str, str | None]:
    """Subject and session of a file: BIDS entities, or else a subject made of the name's letters and digits."""
    match = re.match(r"(sub-[0-9A-Za-z+]+)(?:_(ses-[0-9A-Za-z+]+))?(?=[_.])", path.name)
    if match:
        return match[1], match[2]
    return "sub-" + re.sub(r"[^0-9A-Za-z]", "", re.sub(r"\.nii(\.gz)?$", "", path.name)), None


def _clashes(items: Sequence[Mapping]) -> list[str]:
    first, problems = {}, []
    for item in items:
        other = first.setdefault(name_of(item), item["image"])
        if other is not item["image"]:
            problems.append(
                f"{item['image']}: would be written as {name_of(item)}, and so would {other}. Choose between them with a "
                f"pattern such as --label_maps 'DIR/**/*_desc-aseg_dseg.nii.gz', or rename one"
            )
    return problems


def _of_split(paths: Sequence[Path], split: str, table: Path) -> list[Path]:
    """The maps of participants of one split."""
    split_of = read_splits(table) if table.is_file() else None
    if split_of is None:
        raise ValueError(f"split {split!r}: there is no column split in {table} that says whose maps those are")
    chosen = [path for path in paths if split_of.get(_entities(path)[0]) == split]
    if not chosen:
        found = ", ".join(sorted(set(split_of.values())))
        raise FileNotFoundError(f"{table}: no participant with a label map is in the split {split!r}. There are: {found}")
    return chosen


def _check_header(path: str) -> list:
    try:
        image = open_image(path, "Copy the orientation of the scan it belongs to")
        if len(image.shape) != 3 and image.shape[3:] != (1,):  # some tools write a trailing axis of one
            raise ValueError(f"has {len(image.shape)} dimensions {image.shape}; a label map has three. Extract one volume")
        if image.header.get_data_dtype().kind not in "iuf":
            raise ValueError(f"has voxels of type {image.header.get_data_dtype()}; label values are needed")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return []


def _check_values(path: str, table: LabelTable) -> list:
    try:
        table.classes(np.asanyarray(read_whole(path).dataobj), path)
    except ValueError as error:
        raise ValueError(str(error) if str(error).startswith(path) else f"{path}: {error}") from error
    return []


def _problems(check: Callable, paths: Sequence) -> list[str]:
    """What is wrong with the files, in their order."""
    return check_files([[str(path)] for path in paths], check, workers=min(MOST_READERS, os.cpu_count()))[0]
