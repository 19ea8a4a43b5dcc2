"""Find scans or label maps in a BIDS data set or a datalist, check them before training starts, and split them."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..shared import mni_box
from ..shared.files import read_json
from ..shared.image_files import find_files, find_in_anat, packed
from ..shared.label_table import LabelTable
from ..shared.map_reader import find_maps
from ..shared.participants import Row, entity, find_row, session_of
from ..shared.problems import count, refuse
from ..shared.scan_identity import refuse_copies
from ..shared.simulated import BUNDLES, refuse_synthetic
from ..shared.tables import is_missing
from ..shared.team import Team
from .covariates import CovariateSchema
from .image_checks import Content, check_images
from .measured_rows import column_problems, measured_values, read_rows

SPLITS = ("training", "validation", "test")
SPLIT_COLUMN = {"train": "training", "validation": "validation", "test": "test"}
FOLDS = 'Put the scans of one fold into "validation", and those of the others into "training"'
DATALIST = '{"training": [{"image": path, covariates}], "validation": [...]}'


def read_dataset(
    dataset_dir: str | Path | None,
    schema: CovariateSchema,
    spacing_mm: float = 1.0,
    datalist: str | Path | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    cache_file: str | Path | None = None,
    table: LabelTable | None = None,
) -> dict[str, list[dict]]:
    """Find the T1w scans, or the label maps if a table is given, with their covariates, check all of them, and split them.

    A scan must be a readable three-dimensional NIfTI in MNI space. Its axes must be parallel to the axes of the space, its
    voxels must have `spacing_mm` within 1 %, and its field of view must cover the template's brain except 10 mm on each side.
    So must a label map, whose values must be those of the table.

    Args:
        dataset_dir: BIDS folder with `participants.tsv` and `sub-X/[ses-Y/]anat/*_T1w.nii[.gz]`. Each run and session is an
            item. Label maps are `*_dseg.nii[.gz]` in the same folders or in `derivatives/*/sub-X/[ses-Y/]anat`. Several
            sessions of a participant need their own covariates, in `sub-X/sub-X_sessions.tsv` or in rows of
            `participants.tsv` with a column session_id.
        schema: covariates of the scans.
        spacing_mm: edge length of a voxel of the model's grid.
        datalist: JSON file that replaces BIDS: {"training": [{"image": path, "age": 70, ...}], "validation": [...], "test":
            [...]}. Paths are relative to `dataset_dir`, by default its folder; "participant_id" is optional.
        validation_fraction: share of the participants for validation, if neither the column `split` (train, validation,
            test) of participants.tsv nor the datalist names the split. The choice depends only on the ids and `seed`.
        seed: seed of the choice of participants.
        cache_file: JSON file that records images that passed the checks, so that each is read only once.
        table: label table of the maps; None for scans.

    Returns:
        {"training": [...], "validation": [...], "test": [...]} with items {"image": path, "participant_id": "sub-X",
        "covariates": scaled numbers in the schema's order, "voxels_sha256": identity of the scan}.

    Raises:
        FileNotFoundError: there is no such data set, table or datalist.
        ValueError: the table, the images or the splits have problems. The message lists up to 20.
    """
    if dataset_dir is None and datalist is None:
        raise ValueError("no data set was given. Add --dataset_dir with its folder, such as --dataset_dir /data/study")
    if datalist is not None and not Path(datalist).is_file():
        raise FileNotFoundError(f"datalist {datalist}: no such file")
    dataset_dir = Path(dataset_dir or Path(datalist).parent)
    if not dataset_dir.is_dir():
        raise FileNotFoundError(f"dataset_dir {dataset_dir}: no such folder")
    mni_box.size(spacing_mm)  # refuses a spacing that does not divide the box
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, got {validation_fraction}")
    if datalist is None:
        items, problems = _bids_items(dataset_dir, schema, table is not None)
    else:
        items, problems = _datalist_items(Path(datalist), dataset_dir, schema)
    paths = [item["image"] for item in items]
    Team().from_first(lambda: refuse_synthetic(dataset_dir, paths))
    faults, contents = Team().from_first(lambda: check_images(paths, spacing_mm, cache_file, table))
    problems += faults
    refuse(problems, f"{dataset_dir} cannot be used for training yet ({count(problems)}):")
    for item in items:
        item["voxels_sha256"] = Content(*contents[item["image"]]).voxels_sha256
    data = _split(items, validation_fraction, seed)
    refuse_copies(data, dataset_dir)
    return data


def find_volumes(folder: str | Path, spacing_mm: float, cache_file: str | Path | None = None) -> list[dict]:
    """Find all T1w volumes in a folder without a table, such as a generated cohort, and check them as `read_dataset` does.

    A folder without participants can hold several such folders.

    Returns:
        items {"image": path, "participant_id": "sub-X", and the fields of `image_checks.Content` except the remarks}, sorted by
        path. Loaders could not join items with different remarks into a batch.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of volumes")
    paths = find_files(folder, "sub-*/**/*_T1w.nii*") or find_files(folder, "*/sub-*/**/*_T1w.nii*")
    if not paths:
        raise ValueError(f"{folder}: no sub-*/anat/*_T1w.nii.gz below it")
    problems, contents = check_images([str(path) for path in paths], spacing_mm, cache_file)
    refuse(problems, f"{folder} cannot be used ({count(problems)}):")
    items = [{"image": str(path), "participant_id": path.name.split("_")[0], **contents[str(path)]._asdict()} for path in paths]
    return [{name: value for name, value in item.items() if name != "remarks"} for item in items]


def refuse_empty(data: Mapping[str, Sequence[dict]], world_size: int = 1) -> None:
    """Refuse a split with fewer scans than processes: without training or validation scans, no weights would be saved."""
    for split in ("training", "validation"):
        if len(data[split]) < world_size:
            raise ValueError(
                f"{count(data[split], 'scan')} in the split {split}, at least {world_size} needed. Mark some in the column "
                f"split of participants.tsv (train, validation, test), or set --validation_fraction"
            )


def fingerprint(data: Mapping[str, Sequence[dict]]) -> str:
    """Hash the names and covariates of the scans in each split. Neither the folder's path nor the names' endings matter."""
    rows = sorted((split, packed(Path(i["image"]).name), i["covariates"]) for split, items in data.items() for i in items)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _bids_items(dataset_dir: Path, schema: CovariateSchema, of_maps: bool) -> tuple[list[dict], list[str]]:
    table = dataset_dir / "participants.tsv"
    rows, problems = read_rows(table, schema)
    if of_maps:
        found = find_maps(dataset_dir, BUNDLES)  # whose maps are no data of a study
        problems += _several_maps(found)
        expected = "a label map [derivatives/NAME/]sub-X/[ses-Y/]anat/*_dseg.nii.gz"
    else:
        found = [(path, path.relative_to(dataset_dir)) for path in find_in_anat(dataset_dir, "T1w")]
        expected = "an image sub-X/[ses-Y/]anat/*_T1w.nii.gz"
    scans = [(path, inside, inside.parts[0]) for path, inside in found]
    with_image = {participant for *_, participant in scans}
    for participants, fault in (
        (sorted(set(rows) - with_image), f"participants in {table} without {expected}"),
        (sorted(with_image - set(rows)), f"folders with images but without a row in {table}"),
    ):
        if participants:
            more = ", ..." if len(participants) > 10 else ""
            problems.append(f"{len(participants)} {fault}: {', '.join(participants[:10])}{more}. Add or remove them")
    split_of = {participant: _split_name(next(iter(sessions.values()))) for participant, sessions in rows.items()}
    for participant, split in split_of.items():
        if split not in (None, *SPLIT_COLUMN):
            problems.append(f"{table} {participant}: split must be train, validation or test, got {split!r}")
    used, found = {}, []
    for path, inside, participant in scans:
        if not path.name.startswith(f"{participant}_"):
            problems.append(f"{path}: the file's name is another participant's. It should begin with {participant}_")
        elif participant in rows:
            try:
                session = session_of(inside)
                used.setdefault(participant, {})[session] = find_row(rows, participant, session)
                found.append((path, participant, session))
            except ValueError as error:
                problems.append(f"{path}: {error}")
    values, faults = measured_values(used | {name: rows[name] for name in rows if name not in with_image}, schema, str(table))
    items = [
        _item(path, participant, schema.scale(values[participant, session]), SPLIT_COLUMN.get(split_of[participant]))
        for path, participant, session in found
        if (participant, session) in values
    ]
    return items, problems + faults


def _several_maps(found: Sequence[tuple[Path, Path]]) -> list[str]:
    """Return a line for each scan with several label maps, such as of two atlases."""
    maps = {}
    for path, inside in found:
        run = re.search(r"_run-\w+?(?=_)", path.name)
        maps.setdefault((inside.parent, run and run[0]), []).append(str(path))
    return [
        f"{those[0]}: {len(those)} label maps belong to one scan, also {those[1]}. Name one in a --datalist, or remove others"
        for those in maps.values()
        if len(those) > 1
    ]


def _split_name(row: Row) -> str | None:
    return None if is_missing(row.cells.get("split")) else row.cells["split"]


def _datalist_items(datalist: Path, dataset_dir: Path, schema: CovariateSchema) -> tuple[list[dict], list[str]]:
    content = read_json(datalist, DATALIST)
    if not content.get("training"):
        raise ValueError(f"{datalist}: expected {DATALIST}")
    for key, value in content.items():
        if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value) and key not in SPLITS:
            raise ValueError(f"{datalist}: unknown split {key!r}. Name it {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    names_validation = bool(content.get("validation"))
    items, rows, problems, split_of, first, twice, folds = [], [], [], {}, {}, [], False
    for split in SPLITS:
        for number, entry in enumerate(content.get(split) or []):
            where = f"{datalist} {split}[{number}]"
            if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), str):
                problems.append(f'{where}: expected {{"image": path, covariates}}, got {entry!r}')
                continue
            path = dataset_dir / Path(entry["image"]).expanduser()
            try:
                if entry.get("participant_id") is not None:
                    participant = entity("sub", entry["participant_id"])
                else:  # a scan without an id counts as a separate participant
                    in_name = re.match(r"sub-[0-9A-Za-z+]+(?=_)", path.name)
                    participant = in_name[0] if in_name else str(path)
                row = schema.values(entry)
            except ValueError as error:
                problems += [f"{where}: {line}" for line in str(error).split("\n")]
                continue
            if split_of.setdefault(participant, split) != split:
                other = split_of[participant]
                problems.append(f"{where}: {participant} is also in {other}. Keep a participant in one split")
            elif (other := first.setdefault(path, (where, row)))[1] != row:
                problems.append(f"{where}: {path} has other covariates in {other[0]}. Keep the right ones")
            elif other[0] != where:
                twice.append(path)
            folds |= "fold" in entry
            rows.append(row)
            items.append(_item(path, participant, schema.scale(row), split if names_validation or split == "test" else None))
    if twice:
        warnings.warn(f"{datalist}: {twice[0]} is listed several times, and counts several times", stacklevel=4)
    if folds:
        warnings.warn(f"{datalist}: 'fold' of its entries has no effect. {FOLDS}", stacklevel=4)
    return items, problems + column_problems(rows, schema, str(datalist))


def _item(path: Path, participant: str, covariates: list[float], split: str | None) -> dict:
    return {"image": str(path), "participant_id": participant, "covariates": covariates, "split": split}


def _split(items: Sequence[dict], validation_fraction: float, seed: int) -> dict[str, list[dict]]:
    """Split items by participant. Participants without a split are ordered by a seeded hash; the first are for validation."""
    unassigned = {item["participant_id"] for item in items if item["split"] is None}
    by_hash = sorted(unassigned, key=lambda participant: hashlib.sha256(f"{seed}:{packed(participant)}".encode()).digest())
    number = round(validation_fraction * len(by_hash))
    if validation_fraction > 0 and len(by_hash) > 1:
        number = max(number, 1)
    validation = set(by_hash[:number])
    data = {split: [] for split in SPLITS}
    for item in items:
        split = item.pop("split") or ("validation" if item["participant_id"] in validation else "training")
        data[split].append(item)
    if not data["training"]:
        raise ValueError(f"{count(items, 'image')}, but none left to train on. Put some into the split 'train'")
    return data
