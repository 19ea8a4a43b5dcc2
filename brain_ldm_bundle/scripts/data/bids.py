"""Training data from a BIDS data set or a datalist: every image is checked before training starts."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..shared import mni_box
from ..shared.files import read_json
from ..shared.problems import refuse
from .covariates import CovariateSchema, participant_label
from .image_checks import check_images

__all__ = ["find_volumes", "fingerprint", "read_dataset", "refuse_empty"]

SPLITS = ("training", "validation", "test")
SPLIT_COLUMN = {"train": "training", "validation": "validation", "test": "test"}


def read_dataset(
    dataset_dir: str | Path,
    schema: CovariateSchema,
    spacing_mm: float = 1.0,
    datalist: str | Path | None = None,
    validation_fraction: float = 0.1,
    seed: int = 0,
    workers: int | None = None,
    cache_file: str | Path | None = None,
) -> dict[str, list[dict]]:
    """Find the T1w images and their covariates, check all of them, and share them out.

    An image must be a readable NIfTI of three dimensions in MNI space: axes along those of the space, voxels of
    `spacing_mm` within 1 %, and the template's brain inside of it but for 10 mm on each side.

    Args:
        dataset_dir: BIDS: `participants.tsv`, `sub-X/[ses-Y/]anat/*_T1w.nii[.gz]`. Each run and session is an item with
            the participant's covariates; where these change between sessions, use a datalist.
        schema: the covariates.
        spacing_mm: of the model's grid.
        datalist: JSON instead of BIDS, {"training": [{"image": path, "age": 70, ...}], "validation": [...], ...};
            paths relative to `dataset_dir`; "participant_id" is optional.
        validation_fraction: of the participants, where neither a column `split` (train, validation, test) in
            participants.tsv nor the datalist says which. The choice depends on the ids and `seed`, not on any order.
        seed: for that choice.
        workers: threads that read images; None: one per core.
        cache_file: JSON that remembers the sound images (path, size, date, spacing), so that each is read once.

    Returns:
        {"training": [...], "validation": [...], "test": [...]}, with items {"image": path, "participant_id": "sub-X",
        "covariates": scaled numbers in the schema's order, "voxels_sha256": of `scripts.data.image_checks.Content`}.

    Raises:
        FileNotFoundError: no data set, table or datalist there.
        ValueError: all that is wrong with the table, or else with the images, or else scans of which a copy is in another
            split: up to 20 lines, and how many more.
    """
    dataset_dir = Path(dataset_dir)
    if not dataset_dir.is_dir():
        raise FileNotFoundError(f"dataset_dir {dataset_dir}: no such folder")
    mni_box.size(spacing_mm)
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, got {validation_fraction}")
    if datalist is None:
        items, problems = _bids_items(dataset_dir, schema)
    else:
        items, problems = _datalist_items(Path(datalist), dataset_dir, schema)
    faults, contents = check_images([item["image"] for item in items], spacing_mm, workers, cache_file)
    problems += faults
    refuse(problems, f"{dataset_dir} cannot be used for training yet ({len(problems)} problems):")
    for item in items:
        item["voxels_sha256"] = contents[item["image"]].voxels_sha256
    shares = _share_out(items, validation_fraction, seed)
    problems = _copies(shares)
    refuse(problems, f"{dataset_dir} cannot be used for training yet ({len(problems)} scans in two splits):")
    return shares


def find_volumes(folder: str | Path, spacing_mm: float, cache_file: str | Path | None = None) -> list[dict]:
    """All T1w volumes below a folder, such as a generated cohort, checked as those of `read_dataset`; no table is needed.

    Returns:
        {"image": path, "participant_id": "sub-X", and the fields of `scripts.data.image_checks.Content`}, by path.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: it holds no volumes, or some that the model's grid does not fit.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of volumes")
    paths = sorted(path for path in folder.glob("sub-*/**/*_T1w.nii*") if path.name.endswith((".nii", ".nii.gz")))
    if not paths:
        raise ValueError(f"{folder}: no sub-*/anat/*_T1w.nii.gz below it")
    problems, contents = check_images([str(path) for path in paths], spacing_mm, cache_file=cache_file)
    refuse(problems, f"{folder} cannot be used ({len(problems)} problems):")
    return [{"image": str(path), "participant_id": path.name.split("_")[0], **contents[str(path)]._asdict()} for path in paths]


def refuse_empty(data: Mapping[str, Sequence[dict]], world_size: int = 1) -> None:
    """Refuse to train where there are no scans to validate with (no weights would ever be kept), or fewer than ranks.

    Raises:
        ValueError: says of which split.
    """
    for split in ("training", "validation"):
        if len(data[split]) < world_size:
            raise ValueError(
                f"{len(data[split])} scans in the split {split}, at least {world_size} needed. Mark some in the column split "
                f"of participants.tsv (train, validation, test), or set --validation_fraction"
            )


def fingerprint(data: Mapping[str, Sequence[dict]]) -> str:
    """Hash of who is in which split with which covariates; the same wherever the folder lies."""
    rows = sorted((split, Path(i["image"]).name, i["covariates"]) for split, items in data.items() for i in items)
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def _bids_items(dataset_dir: Path, schema: CovariateSchema) -> tuple[list[dict], list[str]]:
    table = dataset_dir / "participants.tsv"
    rows = {row["participant_id"]: row for row in schema.read_table(table, optional=["split"], cohort=True)}
    images = sorted(
        path
        for folder in ("sub-*/anat", "sub-*/ses-*/anat")
        for path in dataset_dir.glob(f"{folder}/sub-*_T1w.nii*")
        if path.name.endswith((".nii", ".nii.gz"))
    )
    problems = []
    with_image = {path.relative_to(dataset_dir).parts[0] for path in images}
    for participants, fault in (
        (sorted(set(rows) - with_image), f"participants in {table} without an image sub-X/[ses-Y/]anat/*_T1w.nii.gz"),
        (sorted(with_image - set(rows)), f"folders with images but without a row in {table}"),
    ):
        if participants:
            more = ", ..." if len(participants) > 10 else ""
            problems.append(f"{len(participants)} {fault}: {', '.join(participants[:10])}{more}. Add or remove them")
    if any("split" in row for row in rows.values()):
        for participant, row in rows.items():
            if row["split"] not in SPLIT_COLUMN:
                problems.append(f"{table} {participant}: split must be train, validation or test, got {row['split']!r}")
    items = []
    for path in images:
        participant = path.relative_to(dataset_dir).parts[0]
        if not path.name.startswith(f"{participant}_"):
            problems.append(f"{path}: the file's name is another participant's. It should begin with {participant}_")
        elif participant in rows:
            row = rows[participant]
            split = SPLIT_COLUMN.get(row.get("split"))
            items.append(_item(path, participant, schema.scale(row), split))
    return items, problems


def _datalist_items(datalist: Path, dataset_dir: Path, schema: CovariateSchema) -> tuple[list[dict], list[str]]:
    content = read_json(datalist)
    if not content.get("training"):
        raise ValueError(f'{datalist}: expected {{"training": [{{"image": path, covariates}}], "validation": [...]}}')
    for key, value in content.items():
        if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value) and key not in SPLITS:
            raise ValueError(f"{datalist}: unknown split {key!r}. Name it {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    said = bool(content.get("validation"))
    items, rows, problems, split_of = [], [], [], {}
    for split in SPLITS:
        for number, entry in enumerate(content.get(split) or []):
            where = f"{datalist} {split}[{number}]"
            if not isinstance(entry, Mapping) or not isinstance(entry.get("image"), str):
                problems.append(f'{where}: expected {{"image": path, covariates}}, got {entry!r}')
                continue
            path = dataset_dir / entry["image"]
            in_name = re.match(r"sub-[0-9A-Za-z+]+(?=_)", path.name)
            try:
                participant = entry.get("participant_id")
                if participant is not None:
                    participant = f"sub-{participant_label(participant)}"
                else:  # without an id, an image is a participant of its own
                    participant = in_name[0] if in_name else str(path)
                row = schema.values(entry, where)
            except ValueError as error:
                problems += [line if line.startswith(where) else f"{where}: {line}" for line in str(error).split("\n")]
                continue
            if split_of.setdefault(participant, split) != split:
                other = split_of[participant]
                problems.append(f"{where}: {participant} is also in {other}. Keep a participant in one split")
            rows.append(row)
            items.append(_item(path, participant, schema.scale(row), split if said or split == "test" else None))
    schema.warn_extrapolation(rows, str(datalist))
    return items, problems


def _item(path: Path, participant: str, covariates: list[float], split: str | None) -> dict:
    return {"image": str(path), "participant_id": participant, "covariates": covariates, "split": split}


def _share_out(items: Sequence[dict], validation_fraction: float, seed: int) -> dict[str, list[dict]]:
    """Items by split; participants without one are ordered by a seeded hash and the first become the validation."""
    unassigned = {item["participant_id"] for item in items if item["split"] is None}
    by_hash = sorted(unassigned, key=lambda participant: hashlib.sha256(f"{seed}:{participant}".encode()).digest())
    number = round(validation_fraction * len(by_hash))
    if validation_fraction > 0 and len(by_hash) > 1:
        number = max(number, 1)
    validation = set(by_hash[:number])
    shares = {split: [] for split in SPLITS}
    for item in items:
        split = item.pop("split") or ("validation" if item["participant_id"] in validation else "training")
        shares[split].append(item)
    if not shares["training"]:
        raise ValueError(f"{len(items)} images, but none left to train on. Put some into the split 'train'")
    return shares


def _copies(shares: Mapping[str, Sequence[dict]]) -> list[str]:
    """Scans that are in two splits, under two names."""
    problems, first = [], {}
    for split, items in shares.items():
        for item in items:
            other, image = first.setdefault(item["voxels_sha256"], (split, item["image"]))
            if other != split:
                problems.append(f"{item['image']} ({split}) is a copy of {image} ({other}). Keep one of them")
    return problems
