"""Find and check label maps, plan the images to make from them, and leave out images that exist."""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Mapping, Sequence
from functools import cache
from glob import glob
from itertools import product
from pathlib import Path

from ..data.deformation import refuse_folding
from ..data.derivative import GENERATOR, Derivative, name_of
from ..data.image_checks import map_problems
from ..data.labels import LabelTable
from ..data.map_reader import map_files
from ..data.splits import SPLIT_COLUMN, read_splits
from ..shared.base_derivative import made_by
from ..shared.files import is_there, sha256
from ..shared.image_files import IMAGES, find_files, find_in_anat
from ..shared.participants import split_name
from ..shared.problems import refuse

logger = logging.getLogger(__name__)


def find_maps(label_maps: str | Path | None, output_dir: str | Path | None = None, split: str | None = None) -> list[dict]:
    """Find label maps and check their headers.

    Args:
        label_maps: NIfTI or FreeSurfer file (.mgz), a folder of such files, a BIDS data set, or a pattern such as
            "DIR/**/*_desc-aseg_dseg.nii.gz". In a BIDS data set, every `*_dseg.nii[.gz]` in `sub-X/[ses-Y/]anat` and
            `derivatives/*` is used, except the output of this bundle.
        output_dir: folder of the images to make, which must be another folder.
        split: train, fusion, validation or test, to use only maps of participants with this split in participants.tsv, the
            nearest one above the map that has a column split.

    Returns:
        items {"image": path, "participant_id": "sub-X", "session_id": "ses-Y" or None}, sorted by path. Ids are the BIDS
        entities of the file name, or else its letters and digits: training_seg_01.nii.gz becomes sub-trainingseg01. In
        FreeSurfer's folder SUBJECT/mri, the name of the subject's folder counts.

    Raises:
        FileNotFoundError: there is no label map, or none in the split.
        ValueError: headers are wrong, names clash, or a split is given without participants.tsv.
    """
    if label_maps is None:
        raise ValueError("no label maps were given. Add --label_maps with a NIfTI file, a folder, or a BIDS data set")
    root = Path(label_maps)
    if root.is_file() and not root.name.endswith(IMAGES):
        raise ValueError(f"label_maps {root}: the name must end in {', '.join(IMAGES)} (lower case). Convert or rename it")
    if output_dir is not None and root.resolve() == Path(output_dir).resolve():
        raise ValueError(f"label_maps and output_dir are one folder, {root}. Choose a new one for --output_dir")
    if root.is_dir():
        derivatives = [folder for folder in root.glob("derivatives/[!.]*/") if not made_by(folder, GENERATOR)]
        found = [path for folder in (root, *derivatives) for path in find_in_anat(folder, "dseg")]
        found = found or find_files(root, "*", IMAGES)
    else:
        found = [root] if root.is_file() else [Path(path) for path in glob(str(label_maps), recursive=True)]
    paths = sorted(path for path in found if path.name.endswith(IMAGES))
    if not paths:
        raise FileNotFoundError(
            f"label_maps {label_maps}: no label maps there. Give a NIfTI file (or .mgz), a folder of them, or a BIDS data set "
            f"with sub-X/[ses-Y/]anat/*_dseg.nii.gz"
        )
    if split is not None:
        paths = _of_split(paths, split_name(split))
    problems, maps = map_problems([str(path) for path in paths]), []
    for path in paths:
        participant, session = _entities(path)
        if participant == "sub-":
            problems.append(f"{path}: the name has no letter or digit to name the subject after. Rename the file")
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
    """Plan the images to make. The first variant of a map is the map itself; the others are deformed (sub-Xv01, ...).

    Args:
        maps: items from `find_maps`.
        variants: number of images from each map.
        deformation_mm: amplitude of the deformation in mm.
        deformation_scale_mm: distance between control points of the deformation in mm.
        deform_all: whether the first variant is deformed, too.
        seed: base seed. The seed of an image depends only on this seed, its name and its variant.

    Returns:
        one item for each image: the map's item with "source_participant_id" and "provenance".
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
    refuse(clashes, f"{len(clashes)} of the variants' names clash with names of label maps:")
    return made


def pending(
    rows: Sequence[Mapping],
    derivative: Derivative,
    table: LabelTable,
    provenance: Mapping,
    rank: int = 0,
    world_size: int = 1,
    partial_maps: bool = False,
) -> list[dict]:
    """List the images of all `rows` that this process must make, without those that exist, and check their maps.

    `provenance` holds entries of every sidecar, such as WeightsSHA256. Maps that lack most brain structures of the table are
    refused unless `partial_maps` is True.
    """
    derivative.refuse_clashes(rows)
    mine = [
        {**row, "provenance": {**row["provenance"], **_identity(row["image"]), **provenance}} for row in rows[rank::world_size]
    ]
    left = [row for row in mine if not derivative.is_complete(row)]
    maps = list(dict.fromkeys(row["image"] for row in left))
    problems = map_problems(maps, table, partial_maps)
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
    """Make the transforms' input for each row: path of the map, name of the row, and seed of the deformation, if any."""
    seeds = [row["provenance"]["Seed"] for row in rows]
    named = [{"image": row["image"], "name": name_of(row)} for row in rows]
    return [item if seed is None else item | {"deformation_seed": seed} for item, seed in zip(named, seeds)]


def _identity(label_map: str) -> dict[str, str | None]:
    """Return the hashes of a map and of the table of its names, which may be missing."""
    file, *names = map_files(label_map)
    return {"LabelMapSHA256": sha256(file), "LabelNamesSHA256": sha256(names[0]) if names else None}


def _entities(path: Path) -> tuple[str, str | None]:
    """Return subject and session from a file's BIDS entities, or a subject from the letters and digits of its name."""
    name = f"{path.absolute().parents[1].name}.mgz" if path.parent.name == "mri" else path.name
    match = re.match(r"(sub-[0-9A-Za-z+]+)(?:_(ses-[0-9A-Za-z+]+))?(?=[_.])", name)
    if match:
        return match[1], match[2]
    return "sub-" + re.sub(r"[^0-9A-Za-z]", "", re.sub(r"\.(nii|nii\.gz|mgz|mgh)$", "", name)), None


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


def _of_split(paths: Sequence[Path], split: str) -> list[Path]:
    @cache
    def splits_above(folder: Path) -> tuple[Path, dict[str, str]] | None:
        table = folder / "participants.tsv"
        splits = read_splits(table) if is_there(table) else None
        if splits is None:
            return splits_above(folder.parent) if folder.parent != folder else None
        return table, splits

    chosen, tables, without = [], {}, []
    for path in paths:
        found = splits_above(path.absolute().parent)
        if found is None:
            raise ValueError(
                f"split {split!r}: no participants.tsv with a column split is in a folder above {path}. Add the split of each "
                f"participant"
            )
        tables[found[0]] = found[1]
        own = found[1].get(_entities(path)[0])
        if own not in SPLIT_COLUMN:
            without.append(path)
        elif own == split:
            chosen.append(path)
    names = ", ".join(map(str, tables))
    if without:
        logger.warning(
            f"{len(without)} label maps, such as {without[0]}, have no split ({', '.join(SPLIT_COLUMN)}) in {names} and are "
            f"left out"
        )
    if not chosen:
        known = ", ".join(sorted({own for splits in tables.values() for own in splits.values()}))
        raise FileNotFoundError(f"{names}: no participant with a label map is in the split {split!r}. There are: {known}")
    return chosen
