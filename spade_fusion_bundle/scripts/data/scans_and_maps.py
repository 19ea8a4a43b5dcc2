"""Pairs of T1w scan and label map from a BIDS data set or a datalist: found, checked and shared out before training starts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from ..shared.files import read_json
from ..shared.problems import refuse
from ..shared.tables import read_table
from .derivative import made_here
from .image_checks import check_pairs
from .labels import LabelTable

__all__ = ["fingerprint", "from_lists", "listed", "pair_key", "read_dataset", "read_splits", "refuse_too_few"]

SPLITS = ("training", "fusion", "validation", "test")
SPLIT_COLUMN = {"train": "training", "fusion": "fusion", "validation": "validation", "test": "test"}


def read_dataset(
    dataset_dir: str | Path,
    table: LabelTable,
    datalist: str | Path | Mapping | None = None,
    validation_fraction: float = 0.1,
    fusion_fraction: float = 0.2,
    folds: int = 0,
    seed: int = 0,
    cache_file: str | Path | None = None,
) -> dict[str, list[dict]]:
    """Find the T1w scans and their label maps, check all of them, and share them out.

    A scan must be a readable NIfTI of three dimensions; its map must lie on the same grid (any orientation and spacing)
    and hold values of the table. Scans without a map are left out with one warning.

    Args:
        dataset_dir: BIDS: scans `sub-X/[ses-Y/]anat/*_T1w.nii[.gz]`; maps of the same participant, session and run
            `derivatives/*/sub-X/[ses-Y/]anat/*_dseg.nii[.gz]`, or beside the scan.
        table: which values the maps may hold.
        datalist: JSON instead of BIDS, {"training": [{"image": path, "label": path, "participant_id": "sub-X"}, ...],
            "fusion": [...], "validation": [...], "test": [...]}; paths relative to `dataset_dir`; ids are optional. The file,
            or its content.
        validation_fraction: of the participants, where neither a column `split` (train, fusion, validation, test) in
            participants.tsv nor the datalist says which. The choice depends on the ids and `seed`, not on any order.
        fusion_fraction: of the training participants that the fusion network is trained on and the GANs do not see, where
            nobody is named for it.
        folds: 0, or k: each training participant is in one of k folds of equal size, and fusion is trained on what
            the GANs of the other folds make of it. Then nobody is set aside, and those named for fusion are shared too.
        seed: for the choice of participants.
        cache_file: JSON that remembers the sound pairs (path, size, date, table), so that each is read once.

    Returns:
        {"training": [...], "fusion": [...], "validation": [...], "test": [...]}, with items {"image": path, "label": path,
        "participant_id": "sub-X", "voxels_sha256": identity of the scan}; with folds, those of "training" have a "fold",
        0 to k - 1, and "fusion" is empty.

    Raises:
        FileNotFoundError: no such data set or datalist.
        ValueError: all that is wrong with the tables, names and files: up to 20 lines, and how many more.
    """
    dataset_dir = Path(dataset_dir)
    if not dataset_dir.is_dir():
        raise FileNotFoundError(f"dataset_dir {dataset_dir}: no such folder")
    for name, fraction in (("validation_fraction", validation_fraction), ("fusion_fraction", fusion_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"{name} must be at least 0 and below 1, got {fraction}")
    if folds < 0:
        raise ValueError(f"folds must be 0 (a share of the participants is set aside for fusion) or at least 2, got {folds}")
    if datalist is None:
        items, problems = _bids_items(dataset_dir)
    else:
        items, problems = _datalist_items(datalist, dataset_dir)
    problems += check_pairs(items, table, cache_file)
    refuse(problems, f"{dataset_dir} cannot be used for training yet ({len(problems)} problems):")
    return _share_out(items, validation_fraction, fusion_fraction, folds, seed)


def listed(data: Mapping[str, Sequence[dict]] | None, *splits: str) -> list[dict]:
    """The items of these splits, one after the other; none where there is no data set."""
    return [item for split in splits for item in data[split]] if data else []


def from_lists(
    read: Callable[..., dict[str, list[dict]]], training: Sequence[Mapping], validation: Sequence[Mapping]
) -> dict[str, list[dict]]:
    """The data where they come as lists, as MONAI Label gives them, instead of as a folder; checked and shared out as there.

    Args:
        read: `read_dataset` with its settings.
        training: {"image": path, "label": path}; a share of them is kept for the fusion.
        validation: the same; without any, a share of `training`.

    Raises:
        ValueError: neither folder nor lists; as `read_dataset`.
    """
    if not training:
        raise ValueError("there is nothing to train on. Give --dataset_dir, a BIDS data set of T1w scans and label maps")
    folder = Path(training[0]["image"]).parent
    return read(folder, datalist={"training": list(training), "validation": list(validation)})


def refuse_too_few(data: Mapping[str, Sequence[dict]], folds: int = 0, world_size: int = 1) -> None:
    """Refuse to train where a stage would have nothing to learn from or to be judged by, or fewer scans than ranks.

    Raises:
        ValueError: says of which split, and how to get more.
    """
    if folds == 1:
        raise ValueError("--folds 1 would leave no scans to train the GANs on. Give at least 2, or 0 to set some aside")
    participants = {item["participant_id"] for item in data["training"]}
    if len(participants) < folds:
        raise ValueError(
            f"{len(participants)} participants in the split training for {folds} folds. Lower --folds, or add some"
        )
    needed = {"training": "--validation_fraction", "validation": "--validation_fraction"}
    if folds == 0:
        needed["fusion"] = "--fusion_fraction (or --folds, to set none aside)"
    for split, option in needed.items():
        if len(data[split]) < world_size:
            raise ValueError(
                f"{len(data[split])} scans in the split {split}, at least {world_size} needed. Mark some in the column split "
                f"of participants.tsv (train, fusion, validation, test) or in the datalist, or change {option}"
            )
    for fold in range(folds):
        held_out = sum(item["fold"] == fold for item in data["training"])
        fewest = min(held_out, len(data["training"]) - held_out)
        if fewest < world_size:
            raise ValueError(f"{fewest} scans inside or outside of fold {fold} for {world_size} ranks. Run fewer processes")


def fingerprint(data: Mapping[str, Sequence[dict]]) -> str:
    """Hash of which scans and maps are in which split and fold; the same wherever the folder lies."""
    rows = sorted(
        (split, Path(item["image"]).name, Path(item["label"]).name, item.get("fold", -1))
        for split, items in data.items()
        for item in items
    )
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def pair_key(item: Mapping, settings: Sequence) -> bytes:
    """Name of a prepared pair in a cache: another one for other files, or when they have changed, and for other settings."""
    paths = [os.path.abspath(item[key]) for key in ("image", "label")]
    stats = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    return hashlib.sha256(json.dumps([stats, settings]).encode()).hexdigest()[:32].encode()


def _bids_items(dataset_dir: Path) -> tuple[list[dict], list[str]]:
    scans = _find(dataset_dir, "T1w")
    if not scans:
        raise ValueError(f"{dataset_dir}: no T1w scans sub-X/[ses-Y/]anat/*_T1w.nii.gz. Is it the root of a BIDS data set?")
    maps_of = {}
    for root in (dataset_dir, *sorted(dataset_dir.glob("derivatives/*/"))):
        if made_here(root):  # synthetic images beside the maps they were made from
            continue
        for path in _find(root, "dseg"):
            maps_of.setdefault(path.relative_to(root).parent, []).append(path)
    items, problems, without = [], [], []
    for path in scans:
        folder = path.relative_to(dataset_dir).parent
        participant = folder.parts[0]
        maps = [label for label in maps_of.get(folder, []) if _belongs(label, path)]
        if not path.name.startswith(f"{participant}_"):
            problems.append(f"{path}: the file's name is another participant's. It should begin with {participant}_")
        elif not maps:
            without.append(path)
        elif len(maps) > 1:
            listed = ", ".join(str(label.relative_to(dataset_dir)) for label in maps)
            problems.append(
                f"{path}: {len(maps)} label maps belong to it: {listed}. Say which one in a --datalist, or remove others"
            )
        else:
            items.append(_item(path, maps[0], participant, None))
    if len(without) == len(scans):
        expected = without[0].relative_to(dataset_dir).with_name(without[0].name.replace("_T1w", "_dseg"))
        raise ValueError(
            f"{dataset_dir}: none of {len(scans)} T1w scans has a label map, such as derivatives/ANY_NAME/{expected}. Segment "
            f"them first, e.g. by FreeSurfer or SynthSeg, or say where the maps are in a --datalist"
        )
    if without:
        warnings.warn(
            f"{len(without)} of {len(scans)} T1w scans in {dataset_dir}, such as {without[0].name}, have no label map "
            f"(*_dseg.nii.gz of the same participant, session and run) and are left out",
            stacklevel=3,
        )
    table = dataset_dir / "participants.tsv"
    split_of = read_splits(table) if table.is_file() else None
    if split_of is not None:
        for participant in sorted({item["participant_id"] for item in items}):
            if split_of.get(participant) not in SPLIT_COLUMN:
                found = repr(split_of[participant]) if participant in split_of else "no row"
                problems.append(f"{table} {participant}: split must be {', '.join(SPLIT_COLUMN)}, got {found}")
        for item in items:
            item["split"] = SPLIT_COLUMN.get(split_of.get(item["participant_id"]))
    return items, problems


def _find(root: Path, suffix: str) -> list[Path]:
    return sorted(
        path
        for folder in ("sub-*/anat", "sub-*/ses-*/anat")
        for path in root.glob(f"{folder}/sub-*_{suffix}.nii*")
        if path.name.endswith((".nii", ".nii.gz"))
    )


def _belongs(label: Path, scan: Path) -> bool:
    """Whether a map in the folder of the same participant and session is of this scan, by the entities of both names."""
    of_label, of_scan = (dict(part.split("-", 1) for part in path.name.split("_") if "-" in part) for path in (label, scan))
    same_run = of_label.get("run") == of_scan.get("run")
    return same_run and all(of_label[entity] == of_scan[entity] for entity in of_label.keys() & of_scan.keys())


def read_splits(table: Path) -> dict[str, str] | None:
    """Participant to cell of the column split; None where there is no such column.

    Raises:
        ValueError: not a table of participants, or one participant twice.
    """
    rows = read_table(table)
    if "split" not in rows[0]:
        return None
    if "participant_id" not in rows[0]:
        raise ValueError(f"{table}: no column 'participant_id'. It has: {', '.join(map(str, rows[0]))}")
    splits = {}
    for number, row in enumerate(rows, 2):
        participant = f"sub-{row['participant_id'].strip().removeprefix('sub-')}"
        if participant in splits:
            raise ValueError(f"{table} row {number}: participant_id {participant} has a row already. Keep one")
        splits[participant] = row["split"].strip()
    return splits


def _datalist_items(datalist: str | Path | Mapping, dataset_dir: Path) -> tuple[list[dict], list[str]]:
    content = datalist if isinstance(datalist, Mapping) else read_json(datalist)
    datalist = "datalist" if isinstance(datalist, Mapping) else datalist
    if not any(content.get(split) for split in SPLITS):
        raise ValueError(f'{datalist}: expected {{"training": [{{"image": path, "label": path}}], "validation": [...]}}')
    for key, value in content.items():
        if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value) and key not in SPLITS:
            raise ValueError(f"{datalist}: unknown split {key!r}. Name it {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    said = bool(content.get("validation"))
    items, problems, split_of = [], [], {}
    for split in SPLITS:
        for number, entry in enumerate(content.get(split) or []):
            where = f"{datalist} {split}[{number}]"
            if not isinstance(entry, Mapping) or not all(isinstance(entry.get(key), str) for key in ("image", "label")):
                problems.append(f'{where}: expected {{"image": path, "label": path}}, got {entry!r}')
                continue
            path, label = (dataset_dir / entry[key] for key in ("image", "label"))
            in_name = re.match(r"sub-[0-9A-Za-z+]+(?=_)", path.name)
            participant = entry.get("participant_id")
            if participant is not None:
                participant = f"sub-{str(participant).removeprefix('sub-')}"
            else:  # without an id, a scan is a participant of its own
                participant = in_name[0] if in_name else str(path)
            if split_of.setdefault(participant, split) != split:
                problems.append(f"{where}: {participant} is also in {split_of[participant]}. Keep a participant in one split")
            items.append(_item(path, label, participant, split if said or split != "training" else None))
    return items, problems


def _item(image: Path, label: Path, participant: str, split: str | None) -> dict:
    return {"image": str(image), "label": str(label), "participant_id": participant, "split": split}


def _share_out(
    items: Sequence[dict], validation_fraction: float, fusion_fraction: float, folds: int, seed: int
) -> dict[str, list[dict]]:
    """Items by split. Participants are ordered by a seeded hash; the first become the validation, the next the fusion."""

    def by_hash(participants: Iterable[str]) -> list[str]:
        return sorted(set(participants), key=lambda participant: hashlib.sha256(f"{seed}:{participant}".encode()).digest())

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
        item = {key: item[key] for key in ("image", "label", "participant_id", "voxels_sha256")}
        if participant in fold_of:
            item["fold"] = fold_of[participant]
        shares[split_of[participant]].append(item)
    return shares


def _share(fraction: float, participants: int) -> int:
    """How many that is: one at least, where a fraction is asked for and one remains."""
    number = round(fraction * participants)
    return max(number, 1) if fraction > 0 and participants > 1 else number
