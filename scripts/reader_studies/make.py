"""Choose the slices of a reader study, and write its page and its key."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from cohorts.origin import edited_image
from shared.files import refuse_unwritable, write_text
from shared.simulated import is_simulated
from shared.tables import read_table
from sklearn.metrics import roc_auc_score

from reader_studies.slices import (
    DIRECTIONS,
    KINDS,
    Volume,
    check_voxels,
    common_view,
    find_volumes,
    picture,
    read_windowed,
)

SIMULATED = "The others, which count as real, are simulated heads and not scans of persons."
EDITS = "Some of the synthetic images are edits of scans, and may identify persons."
KEY_COLUMNS = ["study", "position", "item", "kind", "direction", "file", "slice", "repeat_of", "simulated"]
# Smallest cross-section of the head in a slice, as a fraction of the largest one in the same direction (chosen). Smaller slices
# may show skin or neck alone.
LEAST_AREA = 0.5
LARGEST_BLACK_AUC = 0.95  # area under the ROC curve of a classifier that sees only the share of black (chosen)
PAGE = Path(__file__).with_name("page")


@dataclass
class Item:
    """A slice of the study."""

    volume: Volume
    direction: str  # key of DIRECTIONS
    height: float  # position of the slice in the head, from 0 (first slice) to 1 (last slice)
    repeat_of: Item | None = None  # the earlier item with the same slice
    name: str = ""  # eight hexadecimal digits, which do not reveal the kind
    slice: int = -1  # index along the axis of the direction
    png: bytes = b""


def choose(volumes: Sequence[Volume], slices: int, rng: np.random.Generator) -> list[Item]:
    """Draw the same number of slices of each kind in each direction, at the same heights in both kinds.

    Both kinds show the same number of volumes. Otherwise the heads of the smaller cohort would appear more often, which would
    reveal them. Every volume is used once before any volume is used twice.
    """
    per_cell = slices // (len(KINDS) * len(DIRECTIONS))
    cells = [(name, height) for name in DIRECTIONS for height in (np.arange(per_cell) + rng.random(per_cell)) / per_cell]
    of_kind = [[volume for volume in volumes if volume.kind == kind] for kind in KINDS]
    number = min(slices // 2, *map(len, of_kind))
    items = []
    for everyone in of_kind:
        own = [everyone[i] for i in rng.permutation(len(everyone))[:number]]
        drawn = [own[i] for _ in range(-(-slices // number)) for i in rng.permutation(number)]
        items += [Item(volume, *cells[cell]) for volume, cell in zip(drawn, rng.permutation(len(cells)))]
    return items


def order(items: Sequence[Item], repeats: int, rng: np.random.Generator) -> list[Item]:
    """Shuffle the items and repeat some of them.

    A repeat follows at least a third of the study later. The repeated items come from all kinds and directions in turn.
    """
    shuffled = [items[i] for i in rng.permutation(len(items))]
    early = len(shuffled) * 2 // 3
    turns = [
        [place for place in range(early) if (shuffled[place].direction, shuffled[place].volume.kind) == (direction, kind)]
        for direction in DIRECTIONS
        for kind in KINDS
    ]
    chosen = [turn[round_] for round_ in range(early) for turn in turns if round_ < len(turn)][:repeats]
    places = [(float(place), item) for place, item in enumerate(shuffled)]
    for place in chosen:
        first = shuffled[place]
        again = Item(first.volume, first.direction, first.height, repeat_of=first)
        places.append((rng.uniform(place + len(shuffled) / 3, len(shuffled)), again))
    return [item for _, item in sorted(places, key=lambda entry: entry[0])]


def cut(items: Sequence[Item], view: Sequence[int], rng: np.random.Generator) -> None:
    """Find the slice of each item and draw its picture; each volume is read once."""
    black = {(name, kind): [] for name in DIRECTIONS for kind in KINDS}
    for digest in dict.fromkeys(item.volume.digest for item in items):
        own = [item for item in items if item.volume.digest == digest]
        values, usable = read_windowed(own[0].volume, view), {}
        for name, axis in DIRECTIONS.items():
            areas = (values > 0).sum(tuple(other for other in range(3) if other != axis))
            thick = np.flatnonzero(areas >= LEAST_AREA * areas.max())
            black[name, own[0].volume.kind] += [1 - area * view[axis] / values.size for area in areas[thick]]
            usable[name] = thick.tolist()
        for item in sorted(own, key=lambda item: item.repeat_of is not None):
            if item.repeat_of:
                item.slice = item.repeat_of.slice
            else:
                left = usable[item.direction]
                if not left:
                    raise ValueError(f"{item.volume.path}: no {item.direction} slice left. Give more volumes or fewer --slices")
                item.slice = left.pop(min(int(item.height * len(left)), len(left) - 1))
            item.png = picture(values, DIRECTIONS[item.direction], item.slice, rng)
    _refuse_revealing_black(black)


def _refuse_revealing_black(black: Mapping[tuple[str, str], Sequence[float]]) -> None:
    """Refuse the study if the share of black pixels shows the kind of a slice, as it does for brains and whole heads."""
    for name in DIRECTIONS:
        real, synthetic = (black[name, kind] for kind in KINDS)
        area = roc_auc_score([0] * len(real) + [1] * len(synthetic), [*real, *synthetic])
        if max(area, 1 - area) > LARGEST_BLACK_AUC:
            raise ValueError(
                f"{100 * np.mean(real):.0f} % of the {name} slices of real volumes are black, but "
                f"{100 * np.mean(synthetic):.0f} % of synthetic ones: readers could guess by this alone. Do both show the "
                "whole head? Synthetic volumes from label maps of the brain alone need real scans without the skull"
            )


def make_study(
    real: Sequence[Path],
    synthetic: Sequence[Path],
    output: Path,
    slices: int = 60,
    repeats: float = 0.1,
    seed: int = 0,
    split: str | None = None,
) -> tuple[Path, Path]:
    """Write `page/reader_study.html` for the readers, and `key/key.tsv` for the person who scores them.

    The choice depends on the content of the volumes and on the seed, not on file names. Names and order of the items follow
    from a hash of both, so a person who knows the seed but not the volumes learns nothing. `reader_study.py make --help`
    describes the arguments.

    Returns:
        The path of the page and the path of the key.

    Raises:
        FileNotFoundError: a folder holds no volumes.
        ValueError: no blinded study can be made of these volumes or settings.
    """
    cells = len(KINDS) * len(DIRECTIONS)
    if slices < cells or slices % cells:
        near = max(cells, round(slices / cells) * cells)
        raise ValueError(f"--slices must be a multiple of {cells} (two kinds, three directions), got {slices}. Take {near}")
    if not 0 <= repeats <= 0.5:
        raise ValueError(f"--repeats is a share of the slices, 0 to 0.5, got {repeats:g}")
    page, key = output / "page" / "reader_study.html", output / "key" / "key.tsv"
    for path in (page, key):
        refuse_unwritable(path)
    volumes = [*find_volumes(real, "real", split), *find_volumes(synthetic, "synthetic")]
    view = common_view(volumes)

    volumes.sort(key=lambda volume: (volume.kind, volume.digest))
    content = [(volume.kind, volume.digest) for volume in volumes]
    secret = hashlib.sha256(json.dumps([seed, slices, repeats, content]).encode()).digest()
    rng = np.random.default_rng(int.from_bytes(secret, "big"))
    shown = order(choose(volumes, slices, rng), round(repeats * slices), rng)
    check_voxels(item.volume for item in shown)
    cut(shown, view, rng)
    for position, item in enumerate(shown):  # a name comes from the position, so it says nothing about the kind
        item.name = hashlib.sha256(f"item {position}".encode() + secret).hexdigest()[:8]
    # The id also depends on the pictures, because other pictures make another study.
    study = hashlib.sha256(secret + b"".join(item.png for item in shown)).hexdigest()[:10]
    if key.is_file() and (there := {row.get("study", "") for row in read_table(key)}) != {study}:
        # Without its key, all results of a study are worthless.
        raise ValueError(f"{key} is the key of another study, {', '.join(sorted(there))}. Choose another --output")
    was_there = key.is_file()
    _write_key(key, study, shown)  # before the page, because ratings without a key are worthless
    of_kind = {kind: {item.volume.path for item in shown if item.volume.kind == kind} for kind in KINDS}
    notes = [EDITS] * any(map(edited_image, of_kind["synthetic"])) + [SIMULATED] * any(map(is_simulated, of_kind["real"]))
    try:
        _write_page(page, study, shown, np.multiply(view, volumes[0].spacing_mm), " ".join(notes))
    except BaseException:
        if not was_there:
            key.unlink()
        raise
    return page, key


def _write_key(path: Path, study: str, shown: Sequence[Item]) -> None:
    rows = []
    for position, item in enumerate(shown, 1):
        again = item.repeat_of.name if item.repeat_of else ""
        rows.append([study, position, item.name, item.volume.kind, item.direction, str(item.volume.path), item.slice, again])
        rows[-1].append("yes" if item.volume.kind == "real" and is_simulated(item.volume.path) else "no")
    write_text(path, pd.DataFrame(rows, columns=KEY_COLUMNS).to_csv(sep="\t", index=False))


def _write_page(path: Path, study: str, shown: Sequence[Item], sides_mm: np.ndarray, note: str) -> None:
    extent = {}
    for name, axis in DIRECTIONS.items():
        width, height = (f"{100 * side:.2f}%" for side in np.delete(sides_mm, axis) / max(sides_mm))
        extent[name] = {"width": width, "height": height}
    items = [{"id": item.name, "direction": item.direction, "image": base64.b64encode(item.png).decode()} for item in shown]
    content = (PAGE / "page.html").read_text(encoding="utf-8")
    parts = {
        "{{STYLE}}": (PAGE / "page.css").read_text(encoding="utf-8"),
        "{{SCRIPT}}": (PAGE / "page.js").read_text(encoding="utf-8"),
        "{{NOTE}}": note,
        "{{STUDY}}": json.dumps({"study": study, "extent": extent, "items": items}),
    }
    for mark, text in parts.items():
        assert content.count(mark) == 1, mark
        content = content.replace(mark, text)
    write_text(path, content)
