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
from ..data.derivative import GENERATOR, Derivative, map_identity, name_of
from ..data.image_checks import map_problems
from ..data.splits import SPLIT_COLUMN, read_splits
from ..shared import map_reader
from ..shared.acquisition import draw
from ..shared.image_files import IMAGES, find_files
from ..shared.label_table import LabelTable
from ..shared.participants import entity, split_name
from ..shared.problems import refuse
from ..shared.settings import changed
from ..shared.tables import read_numbered
from ..shared.team import Team, left_to_make, shard_of

logger = logging.getLogger(__name__)


def find_maps(
    label_maps: str | Path | None,
    output_dir: str | Path | None = None,
    split: str | None = None,
    participants: str | Path | None = None,
) -> list[dict]:
    """Find label maps. `pending` checks them.

    Args:
        label_maps: NIfTI or FreeSurfer file (.mgz), a folder of such files, a BIDS data set, or a pattern such as
            "DIR/**/*_desc-aseg_dseg.nii.gz". In a BIDS data set, every `*_dseg.nii[.gz]` in `sub-X/[ses-Y/]anat` and
            `derivatives/*` is used, except the output of this bundle.
        output_dir: folder of the images to make, which must be another folder.
        split: train, fusion, validation or test, to use only maps of participants with this split in participants.tsv, the
            nearest one above the map that has a column split.
        participants: table whose column participant_id has the participants whose maps are used; None for all.

    Returns:
        items {"image": path, "participant_id": "sub-X", "session_id": "ses-Y" or None, "acquisition_and_run": "acq-A_run-1",
        "run-1" or None}, sorted by path. Ids are the BIDS entities of the file name, or else its letters and digits:
        training_seg_01.nii.gz becomes sub-trainingseg01. In FreeSurfer's folder SUBJECT/mri, the name of the subject's folder
        counts.

    Raises:
        FileNotFoundError: there is no label map, none in the split, or none of a participant.
        ValueError: names clash, or a split is given without participants.tsv.
    """
    if label_maps is None:
        raise ValueError("no label maps were given. Add --label_maps with a NIfTI file, a folder, or a BIDS data set")
    root = Path(label_maps)
    if root.is_file() and not root.name.endswith(IMAGES):
        raise ValueError(f"label_maps {root}: the name must end in {', '.join(IMAGES)} (lower case). Convert or rename it")
    if output_dir is not None and root.resolve() == Path(output_dir).resolve():
        raise ValueError(f"label_maps and output_dir are one folder, {root}. Choose a new one for --output_dir")
    if root.is_dir():
        found = [path for path, _ in map_reader.find_maps(root, [GENERATOR])]
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
    if participants is not None:
        paths = _of_participants(paths, participants, label_maps)
    problems, maps = [], []
    for path in paths:
        participant, session, more = _entities(path)
        if participant == "sub-":
            problems.append(f"{path}: the name has no letter or digit to name the subject after. Rename the file")
        maps.append({"image": str(path), "participant_id": participant, "session_id": session, "acquisition_and_run": more})
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
        one item for each image: the map's item with "source_participant_id", "seed" and "provenance".
    """
    if variants < 1:
        raise ValueError(f"variants must be at least 1, got {variants}")
    refuse_folding(deformation_mm, deformation_scale_mm)
    if deformation_mm == 0 and (variants > 1 or deform_all):
        raise ValueError(f"variants {variants} with deformation_mm 0 would be copies of one image. Set --deformation_mm")
    made = []
    for item, variant in product(maps, range(variants)):
        deformed = deform_all or variant > 0
        row_seed = int.from_bytes(hashlib.sha256(f"{seed}:{name_of(item)}:{variant}".encode()).digest()[:4], "big")
        made.append(
            {
                **item,
                "participant_id": item["participant_id"] + (f"v{variant:02d}" if variant else ""),
                "source_participant_id": item["participant_id"],
                "seed": row_seed,
                "provenance": {
                    "LabelMap": Path(item["image"]).name,
                    "Variant": variant,
                    "DeformationMm": deformation_mm if deformed else 0,
                    "DeformationScaleMm": deformation_scale_mm if deformed else None,
                    "Seed": row_seed if deformed else None,
                },
            }
        )
    clashes = _clashes(made)
    refuse(clashes, f"{len(clashes)} of the variants' names clash with names of label maps:")
    return made


def warn_without_effect(variants: int, deform_all: bool) -> None:
    """Warn of each setting of the deformation that was changed although this run deforms no map."""
    given = changed("inference") if variants == 1 and not deform_all else {}
    for name in ("deformation_mm", "deformation_scale_mm"):
        if name in given:
            logger.warning(
                f"{name} is {given[name]}, but has no effect here: no map is deformed. Add --variants 2 or --deform_all True, "
                f"or leave it out"
            )


class Pending(Sequence):
    """Rows of the images that are still to make, each with its whole provenance, for `Derivative.write`."""

    def __init__(self, rows: Sequence[Mapping], provenance: Mapping) -> None:
        self.rows, self.provenance = rows, provenance

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        return with_provenance(row, map_identity(row["image"]), self.provenance)

    def inputs(self) -> list[dict]:
        """Make the transforms' input for each row: path of the map, index, seed, and seed of the deformation, if any."""
        seeds = [row["provenance"]["Seed"] for row in self.rows]
        inputs = [{"image": row["image"], "row": index, "seed": row["seed"]} for index, row in enumerate(self.rows)]
        return [item if seed is None else item | {"deformation_seed": seed} for item, seed in zip(inputs, seeds)]


def with_provenance(row: Mapping, identity: Mapping, provenance: Mapping) -> dict:
    """Complete the provenance of a row by the identity of its map and by the entries of every sidecar.

    The measured acquisition in `provenance` is replaced by what the seed of the row draws from it.
    """
    drawn = {"Acquisition": draw(provenance.get("Acquisition"), row["seed"])}
    return {**row, "provenance": {**row["provenance"], **identity, **provenance, **drawn}}


def pending(
    rows: Sequence[Mapping],
    derivative: Derivative,
    table: LabelTable,
    provenance: Mapping,
    team: Team | None = None,
    shard: str | None = None,
    partial_maps: bool = False,
    spacing_mm: float | None = None,
) -> Pending:
    """List the images that the processes of a team must make together: those of the shard, without complete ones.

    The maps of these images are checked; the processes share that work.

    Args:
        rows: images of the whole data set.
        derivative: data set of the images.
        table: label table of the maps.
        provenance: entries of every sidecar, such as WeightsSHA256.
        team: processes that share the work; the first one looks for complete images. None: this process is alone.
        shard: part of the data set, such as "3/40", see `team.shard_of`; None: all images.
        partial_maps: whether to accept maps that lack most brain structures of the table.
        spacing_mm: side of the model's voxels. Maps with much longer voxels get a warning.
    """
    mine, team = shard_of(rows, shard), team or Team()

    def is_made(row: Mapping) -> bool:
        identity = derivative.recorded_identity(row) or map_identity(row["image"])
        return derivative.is_complete(with_provenance(row, identity, provenance))

    def find() -> list[int]:
        left = left_to_make(mine, is_made, derivative.threads)
        derivative.refuse_clashes(rows, [mine[index] for index in left])
        return left

    left = [mine[index] for index in team.from_first(find)]
    maps = list(dict.fromkeys(row["image"] for row in left))
    found = team.gather(map_problems(maps[team.rank :: team.size], table, partial_maps, spacing_mm))
    problems = [problem for of_one in found for problem in of_one]
    refuse(problems, f"{len(problems)} of {len(maps)} label maps cannot be used:")
    if team.rank == 0:
        replaced = [str(file) for row in left if (file := derivative.image_file(row)).exists()]
        if replaced:
            logger.warning(
                f"{len(replaced)} images, such as {replaced[0]}, were made from other label maps, settings or weights, or are "
                f"damaged: they will be replaced. Give another --output_dir to keep them"
            )
        of_all = "" if shard is None else f" (shard {shard} of {len(rows)})"
        logger.info(f"{len(left)} of {len(mine)} images{of_all} are to be made, {len(mine) - len(left)} are made already")
    return Pending(left, provenance)


def _entities(path: Path) -> tuple[str, str | None, str | None]:
    """Return subject, session, and acquisition and run by BIDS, or a subject from the letters and digits of the name."""
    name = f"{path.absolute().parents[1].name}.mgz" if path.parent.name == "mri" else path.name
    match = re.match(r"(sub-[0-9A-Za-z+]+)(?:_(ses-[0-9A-Za-z+]+))?(?=[_.])", name)
    if match:
        more = re.findall(r"_((?:acq|run)-[0-9A-Za-z+]+)(?=[_.])", name)
        return match[1], match[2], "_".join(sorted(more)) or None
    return "sub-" + re.sub(r"[^0-9A-Za-z]", "", re.sub(r"\.(nii|nii\.gz|mgz|mgh)$", "", name)), None, None


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


def _of_participants(paths: Sequence[Path], table: str | Path, label_maps: str | Path) -> list[Path]:
    header, rows, problems = read_numbered(table, ["participant_id"])
    if "participant_id" not in header:
        raise ValueError(f"{table}: no column 'participant_id'. It has: {', '.join(header)}")
    refuse(problems)
    wanted = {entity("sub", cells["participant_id"]) for cells in rows.values()}
    chosen = {path: participant for path in paths if (participant := _entities(path)[0]) in wanted}
    if missing := sorted(wanted - set(chosen.values())):
        raise FileNotFoundError(
            f"{table}: {len(missing)} of {len(wanted)} participants, such as {missing[0]}, have no label map in {label_maps}. "
            f"Make the maps first, or remove the rows"
        )
    return list(chosen)


def _of_split(paths: Sequence[Path], split: str) -> list[Path]:
    @cache
    def splits_above(folder: Path) -> tuple[Path, dict[str, str]] | None:
        table = folder / "participants.tsv"
        splits = read_splits(table)
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
        known = ", ".join(sorted({own for splits in tables.values() for own in splits.values() if own}))
        raise FileNotFoundError(f"{names}: no participant with a label map is in the split {split!r}. There are: {known}")
    return chosen
