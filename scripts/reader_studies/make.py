"""The page of a reader study and its key: which slices are shown, how they become pictures that differ in content alone."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from cohorts.section import write_whole
from nibabel.filebasedimages import ImageFileError
from PIL import Image
from shared.head_mask import head_mask
from sklearn.metrics import roc_auc_score

DIRECTIONS = {"sagittal": 0, "coronal": 1, "axial": 2}  # axis of a volume in RAS order
KINDS = ("real", "synthetic")
KEY_COLUMNS = ["study", "position", "item", "kind", "direction", "file", "slice", "repeat_of"]
# Of the voxels of a head, drawn black and white (chosen). SPADE writes 0 where a label map has no label, also within the head,
# which is 1.3 to 1.6 % of it in the demo; scans have noise there. Black is more than that in both.
WINDOW_PERCENTILES = (2.0, 99.8)
LEAST_AREA = 0.5  # of the head's largest cross-section in this direction: no slices through skin and neck alone (chosen)
LEAST_COMMON_VIEW = 0.6  # of each side of each volume that the common field of view must hold
MOST_TELLING = 0.95  # area under the ROC curve of the share of black, by which the kinds could be told apart (chosen)
PAGE = Path(__file__).with_name("page")


@dataclass(frozen=True)
class Volume:
    """A T1w volume before its voxels are read; axes in RAS order."""

    path: Path
    kind: str
    digest: str  # SHA-256 of the file
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]


@dataclass
class Item:
    """A slice that is shown; `at` is where between the first and the last slice through the head, 0 to 1."""

    volume: Volume
    direction: str
    at: float
    repeat_of: Item | None = None
    name: str = ""
    slice: int = -1
    png: bytes = b""


# --- Volumes -------------------------------------------------------------------------------------------------------


def find_volumes(sources: Iterable[Path], kind: str, split: str | None = None) -> list[Volume]:
    """The T1w volumes of files and folders: of a data set, of one subject, or else all *.nii[.gz] that lie in a folder.

    With a split, such as "test", the sources are BIDS data sets, and only the participants of that split are taken.

    Raises:
        FileNotFoundError: nothing there.
        ValueError: a file that is no 3-D volume, or a split that the data set does not have.
    """
    paths = []
    for source in map(Path, sources):
        if source.is_dir():
            patterns = ("sub-*/**/*_T1w.nii*", "**/*_T1w.nii*", "*.nii*")
            inside = next(filter(None, (sorted(source.glob(pattern)) for pattern in patterns)), [])
            if not inside:
                raise FileNotFoundError(f"{source}: no *_T1w.nii.gz below it and no *.nii.gz in it")
            paths += inside if split is None else _of_split(inside, source, split)
        elif source.is_file() and split is None:
            paths.append(source)
        elif source.is_file():
            raise ValueError(f"{source}: --split {split} takes folders with participants.tsv, this is a file")
        else:
            raise FileNotFoundError(f"{source}: no such file or folder of {kind} volumes")
    return [_survey(path, kind) for path in paths]


def read_splits(folder: Path) -> dict[str, str]:
    """The split of each participant_id of a data set; empty where participants.tsv is absent or has no such column."""
    table = folder / "participants.tsv"
    if not table.is_file():
        return {}
    rows = pd.read_csv(table, sep="\t", dtype=str, keep_default_na=False)
    return dict(zip(rows["participant_id"], rows["split"])) if {"participant_id", "split"} <= set(rows) else {}


def _of_split(paths: Sequence[Path], folder: Path, split: str) -> list[Path]:
    splits = read_splits(folder)
    if not splits:
        raise ValueError(
            f"{folder / 'participants.tsv'}: no such table with participant_id and split, by which to take {split!r}"
        )
    if split not in splits.values():
        raise ValueError(f"{folder / 'participants.tsv'}: no split {split!r}, but {', '.join(sorted(set(splits.values())))}")
    taken = [path for path in paths if splits.get(path.relative_to(folder).parts[0]) == split]
    if not taken:
        raise FileNotFoundError(f"{folder}: no T1w of the split {split!r}, though participants.tsv has it")
    return taken


def _survey(path: Path, kind: str) -> Volume:
    try:
        image = nib.load(path)
        ornt = nib.io_orientation(image.affine)
    except (OSError, EOFError, zlib.error, ImageFileError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    shape = image.shape[:3] if image.shape[3:] in ((), (1,)) else image.shape
    if len(shape) != 3 or np.isnan(ornt).any():
        raise ValueError(f"{path}: expected one 3-D volume, got shape {image.shape}")
    order = np.argsort(ornt[:, 0])
    spacing_mm = nib.affines.voxel_sizes(image.affine)[order]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return Volume(path, kind, digest, tuple(int(shape[axis]) for axis in order), tuple(float(mm) for mm in spacing_mm))


def common_view(volumes: Sequence[Volume]) -> tuple[int, ...]:
    """Voxels along each axis that all volumes have: what is shown of each, so that the field of view tells nothing.

    Raises:
        ValueError: a volume twice, voxels of different sizes, or fields of view that hardly overlap.
    """
    first_of = {}
    for volume in volumes:
        if volume.digest in first_of:
            other = first_of[volume.digest]
            raise ValueError(f"{volume.path} ({volume.kind}) is the same as {other.path} ({other.kind}). Give each volume once")
        first_of[volume.digest] = volume
    reference = volumes[0]
    for volume in volumes:
        if not np.allclose(volume.spacing_mm, reference.spacing_mm, rtol=0.01):
            raise ValueError(
                f"{volume.path} ({volume.kind}) has voxels of {_listed(volume.spacing_mm)} mm, {reference.path} "
                f"({reference.kind}) of {_listed(reference.spacing_mm)} mm: their sharpness would tell them apart. Bring all "
                "onto one grid in the same way, such as by scripts/prepare_data.py"
            )
    view = tuple(min(sides) for sides in zip(*(volume.shape for volume in volumes)))
    for volume in volumes:
        if (np.array(view) < LEAST_COMMON_VIEW * np.array(volume.shape)).any():
            smallest = next(other for other in volumes if (np.array(other.shape) == view).any())
            raise ValueError(
                f"{volume.path} has {_listed(volume.shape)} voxels, but {smallest.path} only {_listed(smallest.shape)}: the "
                "common field of view would cut heads. Bring all onto one grid"
            )
    return view


def _listed(numbers: Sequence[float]) -> str:
    return " x ".join(f"{number:.4g}" for number in numbers)


def read_windowed(volume: Volume, view: Sequence[int]) -> np.ndarray:
    """A volume in RAS order, `view` voxels around the head, air black, windowed to [0, 1] by percentiles of the head itself.

    Never interpolated. Where a volume is larger than the view, the view is centred on the head and stays inside the volume.
    Air is noisy in scans and exactly 0 in volumes of SPADE: it would tell them apart, so it is not shown.

    Raises:
        ValueError: damaged, NaN, or constant.
    """
    try:
        image = nib.as_closest_canonical(nib.squeeze_image(nib.load(volume.path)))
        values = np.asarray(image.dataobj, dtype=np.float32)
    except (OSError, EOFError, zlib.error, ImageFileError) as error:
        raise ValueError(f"{volume.path}: cannot be read ({error})") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{volume.path}: {np.size(values) - np.isfinite(values).sum()} voxels are NaN or infinite")
    if values.min() == values.max():
        raise ValueError(f"{volume.path}: every voxel is {values.min():g}")
    head = head_mask(values)
    black, white = np.percentile(values[head], WINDOW_PERCENTILES)
    if black == white:
        raise ValueError(f"{volume.path}: the {head.sum()} voxels of its head are {black:g}; there is nothing to show")
    corner = []
    for axis, size in enumerate(view):
        inside = np.flatnonzero(head.any(tuple(other for other in range(3) if other != axis)))
        centre = (inside[0] + inside[-1] + 1) / 2
        corner.append(int(np.clip(round(centre - size / 2), 0, values.shape[axis] - size)))
    values = np.where(head, (values - black) / (white - black), 0).clip(0, 1)
    return values[tuple(slice(low, low + size) for low, size in zip(corner, view))]


def shown_areas(values: np.ndarray, axis: int) -> np.ndarray:
    """Voxels in each slice across `axis` that are not black."""
    return (values > 0).sum(tuple(other for other in range(3) if other != axis))


def choose(volumes: Sequence[Volume], slices: int, rng: np.random.Generator) -> list[Item]:
    """Draw slices, equally many of each kind in each direction, at the same heights in both kinds.

    As many volumes of one kind as of the other: heads that come again and again would tell the smaller cohort. Each of them
    is used before one is used again.
    """
    per_cell = slices // (len(KINDS) * len(DIRECTIONS))
    heights = {name: (np.arange(per_cell) + rng.random(per_cell)) / per_cell for name in DIRECTIONS}
    of_kind = [[volume for volume in volumes if volume.kind == kind] for kind in KINDS]
    number = min(slices // 2, *map(len, of_kind))
    items = []
    for everyone in of_kind:
        own = [everyone[i] for i in rng.permutation(len(everyone))[:number]]
        drawn = [own[i] for _ in range(-(-slices // number)) for i in rng.permutation(number)]
        cells = [(name, at) for name in DIRECTIONS for at in heights[name]]
        for volume, cell in zip(drawn, rng.permutation(len(cells))):
            items.append(Item(volume, *cells[cell]))
    return items


def cut(items: Sequence[Item], view: Sequence[int], rng: np.random.Generator) -> None:
    """Find the slice of each item and make its picture, reading each volume once.

    Raises:
        ValueError: a volume that cannot be shown, or has not enough slices through the head; kinds that show different parts
            of the head, so that the share of black tells them apart.
    """
    black = {(name, kind): [] for name in DIRECTIONS for kind in KINDS}
    for digest in dict.fromkeys(item.volume.digest for item in items):
        own = [item for item in items if item.volume.digest == digest]
        values = read_windowed(own[0].volume, view)
        areas = {axis: shown_areas(values, axis) for axis in DIRECTIONS.values()}
        thick = {axis: np.flatnonzero(area >= LEAST_AREA * area.max()) for axis, area in areas.items()}
        for name, axis in DIRECTIONS.items():
            black[name, own[0].volume.kind] += [1 - areas[axis][k] * view[axis] / values.size for k in thick[axis]]
        taken = set()
        for item in sorted(own, key=lambda item: item.repeat_of is not None):
            axis = DIRECTIONS[item.direction]
            if item.repeat_of:
                item.slice = item.repeat_of.slice
            else:
                usable = [int(k) for k in thick[axis] if (axis, k) not in taken]
                if not usable:
                    raise ValueError(f"{item.volume.path}: no {item.direction} slice left. Give more volumes or fewer --slices")
                item.slice = usable[min(int(item.at * len(usable)), len(usable) - 1)]
                taken.add((axis, item.slice))
            item.png = picture(values, axis, item.slice, rng)
    _refuse_telling_black(black)


def _refuse_telling_black(black: Mapping[tuple[str, str], Sequence[float]]) -> None:
    """Refuse kinds whose slices are told apart by the share of black alone, such as heads and brains.

    Args:
        black: shares of all slices that could be shown, by direction and kind.
    """
    for name in DIRECTIONS:
        real, synthetic = (black[name, kind] for kind in KINDS)
        area = roc_auc_score([0] * len(real) + [1] * len(synthetic), [*real, *synthetic])
        if max(area, 1 - area) > MOST_TELLING:
            raise ValueError(
                f"{100 * np.mean(real):.0f} % of the {name} slices of real volumes are black, but "
                f"{100 * np.mean(synthetic):.0f} % of synthetic ones: readers would tell them apart by that. Do both show the "
                "whole head? Synthetic volumes of label maps that hold the brain alone need real scans without the skull"
            )


def picture(values: np.ndarray, axis: int, index: int, rng: np.random.Generator) -> bytes:
    """PNG of a slice, 8 bits, without compression and without metadata: its size depends on the direction alone.

    Radiological convention: the subject's right at the picture's left; sagittal: the front at the left. Rounded with a dither
    of one grey level, or the gaps in the histogram of volumes that were stored with 8 bits would tell them apart.
    """
    plane = values.take(index, axis)[::-1, ::-1].T
    dither = rng.random(plane.shape) - rng.random(plane.shape)
    grey = np.rint(plane * 255 + dither).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def order(items: Sequence[Item], repeats: int, rng: np.random.Generator) -> list[Item]:
    """Shuffle, and show some items again, of all kinds and directions in turn, at least a third of the study later."""
    shuffled = [items[i] for i in rng.permutation(len(items))]
    early = list(range(len(shuffled) * 2 // 3))
    cells = {}
    for place in early:
        cells.setdefault((shuffled[place].volume.kind, shuffled[place].direction), []).append(place)
    turns = [cells[cell] for cell in sorted(cells, key=lambda cell: (list(DIRECTIONS).index(cell[1]), cell[0]))]
    chosen = [turn[round_] for round_ in range(len(early)) for turn in turns if round_ < len(turn)][:repeats]
    places = [(float(place), item) for place, item in enumerate(shuffled)]
    for place in chosen:
        original = shuffled[place]
        again = Item(original.volume, original.direction, original.at, repeat_of=original)
        places.append((rng.uniform(place + len(shuffled) / 3, len(shuffled)), again))
    return [item for _, item in sorted(places, key=lambda entry: entry[0])]


# --- The study -----------------------------------------------------------------------------------------------------


def make_study(
    real: Sequence[Path],
    synthetic: Sequence[Path],
    output: Path,
    slices: int = 60,
    repeats: float = 0.1,
    seed: int = 0,
    split: str | None = None,
) -> tuple[Path, Path]:
    """Write `page/reader_study.html` for the readers and `key/key.tsv` for the one who scores them.

    The choice depends on the volumes' content and the seed, not on their names. What the page shows of it, the names of items
    and their order, follows from a hash of both, so that who knows the seed but not the volumes learns nothing from it.

    Args:
        real, synthetic: files or folders of T1w volumes on one grid.
        output: folder; one that holds another study is refused.
        slices: shown once, a multiple of 6: two kinds, three directions.
        repeats: which share of them is shown a second time, up to a half.
        seed: of all choices.
        split: of participants.tsv in the folders of real volumes, such as "test"; None takes all.

    Returns:
        The page and the key.

    Raises:
        FileNotFoundError: no volumes.
        ValueError: volumes or settings from which no blinded study can be made.
    """
    cells = len(KINDS) * len(DIRECTIONS)
    if slices < cells or slices % cells:
        near = max(cells, round(slices / cells) * cells)
        raise ValueError(f"--slices must be a multiple of {cells} (two kinds, three directions), got {slices}. Take {near}")
    if not 0 <= repeats <= 0.5:
        raise ValueError(f"--repeats is a share of the slices, 0 to 0.5, got {repeats:g}")
    volumes = [*find_volumes(real, "real", split), *find_volumes(synthetic, "synthetic")]
    view = common_view(volumes)

    content = sorted((volume.kind, volume.digest) for volume in volumes)
    secret = hashlib.sha256(json.dumps([seed, slices, repeats, content]).encode()).digest()
    rng = np.random.default_rng(int.from_bytes(secret, "big"))
    by_content = sorted(volumes, key=lambda volume: (volume.kind, volume.digest))
    shown = order(choose(by_content, slices, rng), round(repeats * slices), rng)
    cut(shown, view, rng)
    for position, item in enumerate(shown):  # a name says nothing about the kind, it comes from the position
        item.name = hashlib.sha256(f"item {position}".encode() + secret).hexdigest()[:8]
    # Also of the pictures: what is shown otherwise is another study.
    study = hashlib.sha256(secret + b"".join(item.png for item in shown)).hexdigest()[:10]
    page, key = output / "page" / "reader_study.html", output / "key" / "key.tsv"
    _refuse_another(key, study)
    _write_key(key, study, shown)
    _write_page(page, study, shown, view, volumes[0].spacing_mm)
    return page, key


def _refuse_another(key: Path, study: str) -> None:
    """A key that is lost makes every result of its readers worthless."""
    if key.is_file():
        there = set(pd.read_csv(key, sep="\t", dtype=str)["study"])
        if there != {study}:
            raise ValueError(f"{key} is the key of another study, {', '.join(sorted(there))}. Choose another --output")


def _write_key(path: Path, study: str, shown: Sequence[Item]) -> None:
    rows = []
    for position, item in enumerate(shown, 1):
        again = item.repeat_of.name if item.repeat_of else ""
        rows.append([study, position, item.name, item.volume.kind, item.direction, str(item.volume.path), item.slice, again])
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, pd.DataFrame(rows, columns=KEY_COLUMNS).to_csv(sep="\t", index=False).encode())


def _write_page(path: Path, study: str, shown: Sequence[Item], view: Sequence[int], spacing_mm: Sequence[float]) -> None:
    sides_mm = np.multiply(view, spacing_mm)
    extent = {}
    for name, axis in DIRECTIONS.items():
        width_mm, height_mm = (sides_mm[other] for other in range(3) if other != axis)
        extent[name] = {"width": f"{100 * width_mm / max(sides_mm):.2f}%", "height": f"{100 * height_mm / max(sides_mm):.2f}%"}
    items = [{"id": item.name, "direction": item.direction, "image": base64.b64encode(item.png).decode()} for item in shown]
    content = (PAGE / "page.html").read_text(encoding="utf-8")
    parts = {
        "{{STYLE}}": (PAGE / "page.css").read_text(encoding="utf-8"),
        "{{SCRIPT}}": (PAGE / "page.js").read_text(encoding="utf-8"),
        "{{STUDY}}": json.dumps({"study": study, "extent": extent, "items": items}),
    }
    for mark, text in parts.items():
        assert content.count(mark) == 1, mark
        content = content.replace(mark, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, content.encode())
