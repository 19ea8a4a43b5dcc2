"""Split participants into training, fusion, validation and test, and into folds of a cross-validation."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..shared.files import is_there
from ..shared.image_files import packed
from ..shared.participants import read_participants, refuse_other_table
from ..shared.problems import count, refuse
from ..shared.tables import is_missing

SPLITS = ("training", "fusion", "validation", "test")
SPLIT_COLUMN = {"train": "training", "fusion": "fusion", "validation": "validation", "test": "test"}


def read_splits(table: Path) -> dict[str, str | None] | None:
    """Read the split of each participant, None if it is missing; None without participants.tsv or its column split."""
    if not is_there(table):
        refuse_other_table(table)
        return None
    header, rows, problems = read_participants(table, ["split"])
    if "split" not in header:
        return None
    refuse(problems)
    cells = {participant: next(iter(sessions.values())).cells["split"] for participant, sessions in rows.items()}
    return {participant: None if is_missing(cell) else cell.lower() for participant, cell in cells.items()}


def split_items(
    items: Sequence[dict], validation_fraction: float, fusion_fraction: float, folds: int, seed: int
) -> dict[str, list[dict]]:
    """Split items by participant. In the order of a seeded hash, the first are for validation and the next for fusion."""

    def by_hash(participants: Iterable[str]) -> list[str]:
        hashes = {name: hashlib.sha256(f"{seed}:{packed(name)}".encode()).digest() for name in participants}
        return sorted(hashes, key=hashes.get)

    split_of = {item["participant_id"]: item["split"] for item in items}
    unassigned = by_hash(participant for participant, split in split_of.items() if split is None)
    number = _share(validation_fraction, len(unassigned))
    split_of.update(dict.fromkeys(unassigned[:number], "validation") | dict.fromkeys(unassigned[number:], "training"))
    fold_of = {}
    if folds:
        split_of = {participant: "training" if split == "fusion" else split for participant, split in split_of.items()}
        training = by_hash(participant for participant, split in split_of.items() if split == "training")
        fold_of = {participant: number % folds for number, participant in enumerate(training)}
    elif "fusion" not in split_of.values():
        training = by_hash(participant for participant, split in split_of.items() if split == "training")
        split_of.update(dict.fromkeys(training[: _share(fusion_fraction, len(training))], "fusion"))
    shares = {split: [] for split in SPLITS}
    for item in items:
        participant = item["participant_id"]
        item = {key: item[key] for key in ("image", "label", "participant_id", "voxels_sha256", "map_sha256")}
        if participant in fold_of:
            item["fold"] = fold_of[participant]
        shares[split_of[participant]].append(item)
    return shares


def _share(fraction: float, participants: int) -> int:
    """Return a fraction of the participants, at least one unless the fraction is 0 or there is only one participant."""
    number = round(fraction * participants)
    return max(number, 1) if fraction > 0 and participants > 1 else number


def refuse_too_few(data: Mapping[str, Sequence[dict]], folds: int = 0, world_size: int = 1) -> None:
    """Refuse a data set with too few scans to train or validate each stage."""
    if folds == 1:
        raise ValueError("--folds 1 would leave no scans to train the GANs on. Give at least 2, or 0 to set some aside")
    participants = {item["participant_id"] for item in data["training"]}
    if len(participants) < folds:
        raise ValueError(
            f"{count(participants, 'participant')} in the split training for {folds} folds. Lower --folds, or add some"
        )
    needed = {"training": "--validation_fraction", "validation": "--validation_fraction"}
    if folds == 0:
        needed["fusion"] = "--fusion_fraction (or --folds, to set none aside)"
    for split, option in needed.items():
        if len(data[split]) < world_size:
            raise ValueError(
                f"{count(data[split], 'scan')} in the split {split}, at least {world_size} needed. Mark some in the column "
                f"split of participants.tsv (train, fusion, validation, test) or in the datalist, or change {option}"
            )
    for fold in range(folds):
        held_out = sum(item["fold"] == fold for item in data["training"])
        fewest = min(held_out, len(data["training"]) - held_out)
        if fewest < world_size:
            raise ValueError(f"{fewest} scans inside or outside of fold {fold} for {world_size} ranks. Run fewer processes")


def fingerprint(data: Mapping[str, Sequence[dict]]) -> str:
    """Hash names and voxels of scans and maps in each split and fold. The folder and the endings of names do not matter."""
    rows = sorted(
        (
            split,
            packed(Path(item["image"]).name),
            packed(Path(item["label"]).name),
            item["voxels_sha256"],
            item["map_sha256"],
            item.get("fold", -1),
        )
        for split, items in data.items()
        for item in items
    )
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()
