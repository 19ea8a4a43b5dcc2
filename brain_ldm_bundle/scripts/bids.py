"""Training data from a BIDS data set or a datalist: every image is checked before training starts."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from tqdm import tqdm

from . import grid
from .covariates import CovariateSchema, participant_label, refuse
from .files import atomic, read_whole
from .weights import read_recipe

__all__ = [
    "check_split",
    "find_volumes",
    "fingerprint",
    "identities",
    "read_dataset",
    "refuse_elsewhere",
    "refuse_empty",
    "refuse_seen",
    "what_training_knew",
]

SPLITS = ("training", "validation", "test")
SPLIT_COLUMN = {"train": "training", "validation": "validation", "test": "test"}

# A head may be smaller than the template's, so this much of the template's brain may lie outside of the image.
BRAIN_MARGIN_MM = 10.0
PREPARE = "Bring it there with: python scripts/prepare_data.py"


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
        "covariates": scaled numbers in the schema's order}.

    Raises:
        FileNotFoundError: no data set, table or datalist there.
        ValueError: all that is wrong with the table, or else with the images: up to 20 lines, and how many more.
    """
    dataset_dir = Path(dataset_dir)
    if not dataset_dir.is_dir():
        raise FileNotFoundError(f"dataset_dir {dataset_dir}: no such folder")
    grid.size(spacing_mm)
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction must be at least 0 and below 1, got {validation_fraction}")
    if datalist is None:
        items, problems = _bids_items(dataset_dir, schema)
    else:
        items, problems = _datalist_items(Path(datalist), dataset_dir, schema)
    problems += _image_problems([item["image"] for item in items], spacing_mm, workers, cache_file)
    refuse(problems, f"{dataset_dir} cannot be used for training yet ({len(problems)} problems):")
    return _share_out(items, validation_fraction, seed)


def find_volumes(folder: str | Path, spacing_mm: float, cache_file: str | Path | None = None) -> list[dict]:
    """All T1w volumes below a folder, such as a generated cohort, checked as those of `read_dataset`; no table is needed.

    Returns:
        {"image": path, "participant_id": "sub-X"}, by path.

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
    problems = _image_problems([str(path) for path in paths], spacing_mm, None, cache_file)
    refuse(problems, f"{folder} cannot be used ({len(problems)} problems):")
    return [{"image": str(path), "participant_id": path.name.split("_")[0]} for path in paths]


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


def identities(items: Sequence[Mapping], init: str | Path | None = None) -> list[str]:
    """By what scans are known again wherever they lie, without their names: short hashes of file name and size.

    Args:
        items: of `read_dataset`.
        init: file of weights that training begins with; the scans that they have seen count as well.
    """
    earlier = read_recipe(init).get("seen", ()) if init is not None else ()
    return sorted({*earlier, *(_identity(item["image"]) for item in items)})


def _identity(image: str) -> str:
    return hashlib.sha256(f"{Path(image).name} {os.stat(image).st_size}".encode()).hexdigest()[:16]


def refuse_seen(items: Sequence[Mapping], recipe: Mapping, split: str) -> None:
    """Refuse scans that weights were trained on where held-out ones are needed; warn where the weights do not say.

    Args:
        items: of `read_dataset`.
        recipe: of the weights; "seen" are the `identities` of its training scans.
        split: of the items, for the message.

    Raises:
        ValueError: says how many, and by which settings training and evaluation share out alike.
    """
    if "seen" not in recipe:
        warnings.warn(
            "the weights do not say which scans they were trained on: that held-out ones are new to them is not checked",
            stacklevel=1,  # from everywhere the same place: said once
        )
        return
    seen = set(recipe["seen"])
    known = [item["image"] for item in items if _identity(item["image"]) in seen]
    if known:
        raise ValueError(
            f"{len(known)} of {len(items)} scans in the split {split!r}, such as {known[0]}, were trained on. Share out as "
            f"training did (--seed, --validation_fraction, --datalist, the column split of participants.tsv), or name others"
        )


def check_split(data: Mapping[str, Sequence[Mapping]], recipe: Mapping) -> None:
    """Refuse a data set whose validation or test scans were trained on; warn where its training scans were not.

    Raises:
        ValueError: as `refuse_seen`.
    """
    for split in ("validation", "test"):
        refuse_seen(data[split], recipe, split)
    seen = set(recipe.get("seen", ()))
    new = [item["image"] for item in data["training"] if _identity(item["image"]) not in seen]
    if seen and new:
        warnings.warn(
            f"{len(new)} of {len(data['training'])} scans in the split 'training', such as {new[0]}, are not those that the "
            f"weights were trained on (by file name and size): copies of the others would not be found in an audit",
            stacklevel=2,
        )


def what_training_knew(split: str, recipe: Mapping) -> str:
    """What a split's scans are to the weights of `recipe`, in words for a reader."""
    if split == "training":
        return "which it was trained on"
    if "seen" not in recipe:
        return "which should be new to it (its weights do not say which scans they were trained on)"
    return "which chose its best epoch" if split == "validation" else "which it never saw"


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
    if not datalist.is_file():
        raise FileNotFoundError(f"{datalist}: no such datalist")
    try:
        content = json.loads(datalist.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{datalist}: this is not JSON ({error})") from error
    if not isinstance(content, Mapping) or not content.get("training"):
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


def _image_problems(paths: Sequence[str], spacing_mm: float, workers: int | None, cache_file: str | Path | None) -> list[str]:
    """What is wrong with the images, in their order; sound ones are remembered and not read again."""
    sound = _read_cache(cache_file)
    from_scanner = []

    def check(path: str) -> str | None:
        try:
            stat = os.stat(path)
        except OSError as error:
            return f"{path}: {error.strerror}"
        key, fingerprint = os.path.abspath(path), [stat.st_size, stat.st_mtime_ns, spacing_mm]
        if sound.get(key) == fingerprint:
            return None
        try:
            header = _check_header(path, spacing_mm)
            if max(int(header["sform_code"]), int(header["qform_code"])) == 1:
                from_scanner.append(path)
            _check_content(path)
            sound[key] = fingerprint
        except ValueError as error:
            return f"{path}: {error}"
        return None

    try:
        with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
            found = list(tqdm(pool.map(check, paths), "Checking images", len(paths), leave=False, disable=None))
    finally:
        if cache_file is not None:
            Path(cache_file).parent.mkdir(parents=True, exist_ok=True)
            with atomic(cache_file) as file:
                file.write(json.dumps(sound).encode())
    if from_scanner:
        warnings.warn(
            f"{len(from_scanner)} images, such as {min(from_scanner)}, have the NIfTI code 1 (scanner), not 4 (MNI). "
            f"Their axes and field of view would fit; if they were not registered to MNI space: {PREPARE}",
            stacklevel=3,
        )
    return [problem for problem in found if problem]


def _read_cache(cache_file: str | Path | None) -> dict[str, list[int]]:
    try:
        cache = json.loads(Path(cache_file).read_text()) if cache_file is not None else {}
    except (OSError, ValueError):  # none yet, or damaged: everything is read once more
        cache = {}
    return cache if isinstance(cache, dict) else {}


def _check_header(path: str, spacing_mm: float) -> nib.Nifti1Header:
    """Dimensions, spacing and place, without reading voxels."""
    try:
        image = nib.load(path)
        header, shape, affine = image.header, image.shape, image.affine
        codes = max(int(header["sform_code"]), int(header["qform_code"]))
    except (OSError, EOFError, ValueError, KeyError, zlib.error, ImageFileError, HeaderDataError) as error:
        raise ValueError(f"is not a NIfTI image that can be read ({error})") from error
    if len(shape) != 3:
        raise ValueError(f"has {len(shape)} dimensions {shape}; three are needed. Extract one volume, e.g. by fslroi")
    if header.get_data_dtype().kind not in "iuf":
        raise ValueError(f"has voxels of type {header.get_data_dtype()}; grey values are needed")
    if codes == 0:
        raise ValueError(f"has neither a qform nor an sform, so left and right are unknown. {PREPARE}")
    spacings_mm = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (np.abs(spacings_mm / spacing_mm - 1) <= 0.01).all():
        raise ValueError(f"has voxels of {_mm(spacings_mm)}, not {spacing_mm:g} mm (spacing_mm). {PREPARE}")
    cosines = np.abs(affine[:3, :3] / spacings_mm)
    if np.abs(np.sort(cosines, axis=0) - [[0], [0], [1]]).max() > 1e-3:
        degrees = np.degrees(np.arccos(np.clip(cosines.max(axis=0), 0, 1))).max()
        raise ValueError(f"has axes oblique by {degrees:.1f} degrees: not in MNI space. {PREPARE}")
    refuse_elsewhere(shape, affine)
    return header


def refuse_elsewhere(shape: Sequence[int], affine: np.ndarray) -> None:
    """Refuse an image whose box does not hold a brain in MNI space; its axes must lie along those of the space.

    Raises:
        ValueError: says from where to where it reaches.
    """
    corners = nib.affines.apply_affine(affine, [[-0.5] * 3, np.subtract(shape, 0.5)])
    lower, upper = np.add(grid.BRAIN_MM[0], BRAIN_MARGIN_MM), np.subtract(grid.BRAIN_MM[1], BRAIN_MARGIN_MM)
    if (corners.min(axis=0) > lower).any() or (corners.max(axis=0) < upper).any():
        raise ValueError(
            f"reaches from {_mm(corners.min(axis=0))} to {_mm(corners.max(axis=0))} (right, anterior, superior), too "
            f"little for a brain in MNI space, {_mm(lower)} to {_mm(upper)}. {PREPARE}"
        )


def _check_content(path: str) -> None:
    """Every voxel."""
    values = np.asanyarray(read_whole(path).dataobj)
    bad = values.size - np.count_nonzero(np.isfinite(values))
    if bad:
        raise ValueError(f"has {bad} voxels that are NaN or infinite. Replace them, e.g. by 0")
    if values.min() == values.max():
        raise ValueError(f"is {values.min():g} everywhere. Convert it again, or remove it")


def _mm(values: np.ndarray) -> str:
    return f"({', '.join(f'{value:.4g}' for value in values)}) mm"
