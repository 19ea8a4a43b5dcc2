"""Find pairs of T1w scan and label map in a BIDS data set or a datalist, check them, and split them."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ..shared.files import read_json
from ..shared.image_files import find_in_anat
from ..shared.label_table import LabelTable
from ..shared.map_reader import find_maps
from ..shared.problems import count, refuse
from ..shared.scan_identity import refuse_copies
from ..shared.simulated import BUNDLES, refuse_synthetic
from ..shared.team import Team
from .image_checks import check_pairs
from .splits import SPLIT_COLUMN, SPLITS, read_splits, split_items

FOLDS = 'Put the scans of one fold into "validation", and those of the others into "training"'
DATALIST = '{"training": [{"image": path, "label": path}], "validation": [...]}'


def read_dataset(
    dataset_dir: str | Path | None,
    table: LabelTable,
    datalist: str | Path | Mapping | None = None,
    validation_fraction: float = 0.1,
    fusion_fraction: float = 0.2,
    folds: int = 0,
    seed: int = 0,
    cache_file: str | Path | None = None,
    partial_maps: bool = False,
    spacing_mm: float | None = None,
) -> dict[str, list[dict]]:
    """Find T1w scans with their label maps, check all of them, and split them.

    A scan must be a readable three-dimensional NIfTI of any orientation and spacing. Its map must be on the same grid and
    have only values of the table, and show most of its brain structures. Scans without a map are left out with one warning.

    Args:
        dataset_dir: BIDS folder with scans in `sub-X/[ses-Y/]anat/*_T1w.nii[.gz]`, and maps of the same participant, session
            and run in `derivatives/*/sub-X/[ses-Y/]anat/*_dseg.nii[.gz]` or next to the scan.
        table: label table of the maps.
        datalist: JSON that replaces BIDS, as a file or its content: {"training": [{"image": path, "label": path,
            "participant_id": "sub-X"}, ...], "fusion": [...], "validation": [...], "test": [...]}. Paths are relative to
            `dataset_dir`, by default the folder of the file; ids are optional.
        validation_fraction: share of the participants for validation, if neither the column `split` (train, fusion,
            validation, test) of participants.tsv nor the datalist names the split. The choice depends only on the ids and
            `seed`.
        fusion_fraction: share of the training participants for the fusion network, if no participant has the split fusion.
        folds: number of folds of the training participants, or 0. With folds, no participants are set aside for fusion.
        seed: seed of the choice of participants.
        cache_file: JSON file that records pairs that passed the checks, so that each is read only once.
        partial_maps: whether to accept maps that lack most brain structures of the table.
        spacing_mm: side of the model's voxels. Scans with much longer voxels get a warning.

    Returns:
        {"training": [...], "fusion": [...], "validation": [...], "test": [...]} with items {"image": path, "label": path,
        "participant_id": "sub-X", "voxels_sha256" and "map_sha256": identities of scan and map}; with folds, training items
        have a "fold", 0 to folds - 1, and "fusion" is empty.

    Raises:
        FileNotFoundError: there is no such data set or datalist.
        ValueError: tables, names or files have problems. The message lists up to 20.
    """
    dataset_dir = folder_of(dataset_dir, datalist)
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
    Team().from_first(lambda: refuse_synthetic(dataset_dir, [item["image"] for item in items]))
    faults, identities = Team().from_first(lambda: check_pairs(items, table, cache_file, partial_maps, spacing_mm))
    problems += faults
    refuse(problems, f"{dataset_dir} cannot be used for training yet ({count(problems)}):")
    for item, found in zip(items, identities):
        item["voxels_sha256"], item["map_sha256"] = found
    data = split_items(items, validation_fraction, fusion_fraction, folds, seed)
    refuse_copies(data, dataset_dir)
    return data


def folder_of(dataset_dir: str | Path | None, datalist: str | Path | Mapping | None) -> Path:
    """Return the folder of a data set, by default the one that holds the datalist."""
    if dataset_dir is None and datalist is None:
        raise ValueError("no data set was given. Add --dataset_dir with its folder, such as --dataset_dir /data/study")
    if isinstance(datalist, (str, Path)) and not Path(datalist).is_file():
        raise FileNotFoundError(f"datalist {datalist}: no such file")
    return Path(dataset_dir or ("." if isinstance(datalist, Mapping) else Path(datalist).parent))


def listed(data: Mapping[str, Sequence[dict]] | None, *splits: str) -> list[dict]:
    """Return the items of some splits in one list, which is empty without a data set."""
    return [item for split in splits for item in data[split]] if data else []


def found_or_listed(
    found: dict[str, list[dict]] | None,
    read: Callable[..., dict[str, list[dict]]],
    training: Sequence[Mapping],
    validation: Sequence[Mapping],
) -> dict[str, list[dict]]:
    """Return the data of a folder, or read the lists of MONAI Label, which are checked and split in the same way.

    If `validation` is empty, a share of `training` is used.
    """
    if found:
        return found
    if not training:
        raise ValueError("there is nothing to train on. Give --dataset_dir, a BIDS data set of T1w scans and label maps")
    folder = Path(training[0]["image"]).parent
    return read(folder, datalist={"training": list(training), "validation": list(validation)})


def _bids_items(dataset_dir: Path) -> tuple[list[dict], list[str]]:
    scans = find_in_anat(dataset_dir, "T1w")
    if not scans:
        raise ValueError(f"{dataset_dir}: no T1w scans sub-X/[ses-Y/]anat/*_T1w.nii.gz. Is it the root of a BIDS data set?")
    refuse_synthetic(dataset_dir, ())
    maps_of = {}
    for path, inside in find_maps(dataset_dir, BUNDLES):
        maps_of.setdefault(inside.parent, []).append(path)
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
    split_of = read_splits(table)
    if split_of is not None:
        for participant in sorted({item["participant_id"] for item in items}):
            if participant not in split_of or split_of[participant] not in (None, *SPLIT_COLUMN):
                found = repr(split_of[participant]) if participant in split_of else "no row"
                problems.append(f"{table} {participant}: split must be {', '.join(SPLIT_COLUMN)}, got {found}")
        for item in items:
            item["split"] = SPLIT_COLUMN.get(split_of.get(item["participant_id"]))
    return items, problems


def _belongs(label: Path, scan: Path) -> bool:
    """Check by the BIDS entities whether a map of the same participant and session belongs to this scan."""
    of_label, of_scan = (dict(part.split("-", 1) for part in path.name.split("_") if "-" in part) for path in (label, scan))
    same_run = of_label.get("run") == of_scan.get("run")
    return same_run and all(of_label[entity] == of_scan[entity] for entity in of_label.keys() & of_scan.keys())


def _datalist_items(datalist: str | Path | Mapping, dataset_dir: Path) -> tuple[list[dict], list[str]]:
    content = datalist if isinstance(datalist, Mapping) else read_json(datalist, DATALIST)
    datalist = "datalist" if isinstance(datalist, Mapping) else datalist
    if not any(content.get(split) for split in SPLITS):
        raise ValueError(f"{datalist}: expected {DATALIST}")
    for key, value in content.items():
        if isinstance(value, list) and any(isinstance(entry, Mapping) for entry in value) and key not in SPLITS:
            raise ValueError(f"{datalist}: unknown split {key!r}. Name it {', '.join(SPLITS[:-1])} or {SPLITS[-1]}")
    has_validation = bool(content.get("validation"))
    items, problems, split_of, first, folds = [], [], {}, {}, False
    for split in SPLITS:
        for number, entry in enumerate(content.get(split) or []):
            where = f"{datalist} {split}[{number}]"
            if not isinstance(entry, Mapping) or not all(isinstance(entry.get(key), str) for key in ("image", "label")):
                problems.append(f'{where}: expected {{"image": path, "label": path}}, got {entry!r}')
                continue
            path, label = (dataset_dir / Path(entry[key]).expanduser() for key in ("image", "label"))
            if first.setdefault(path, where) != where:
                problems.append(f"{where}: {path} is also in {first[path].split()[-1]}. Keep one")
            in_name = re.match(r"sub-[0-9A-Za-z+]+(?=_)", path.name)
            participant = entry.get("participant_id")
            if participant is not None:
                participant = f"sub-{str(participant).removeprefix('sub-')}"
            else:  # a scan without an id counts as a separate participant
                participant = in_name[0] if in_name else str(path)
            if split_of.setdefault(participant, split) != split:
                problems.append(f"{where}: {participant} is also in {split_of[participant]}. Keep a participant in one split")
            elif (other := first.setdefault((path, label), where)) != where:
                problems.append(f"{where}: {path} with {label} is also in {other}. Give each pair once")
            folds |= "fold" in entry
            items.append(_item(path, label, participant, split if has_validation or split != "training" else None))
    if folds:
        warnings.warn(f"{datalist}: 'fold' of its entries has no effect. {FOLDS}", stacklevel=4)
    return items, problems


def _item(image: Path, label: Path, participant: str, split: str | None) -> dict:
    return {"image": str(image), "label": str(label), "participant_id": participant, "split": split}
