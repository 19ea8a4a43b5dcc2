"""Computed readers of a reader study: rules that look at one cue of the page's pictures, the yardstick beside people.

Each rates a slice by the rank of its cue among the slices of its direction, in five equal classes, and takes the half with
more of it for real. They read the page that people get, so its pictures and directions are all they know. A slice that comes
twice is known by its pixels and answered once. "chance" answers at random, again where a slice comes again: the floor.
"""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from cohorts.section import write_whole
from PIL import Image
from scipy import ndimage, stats
from skimage.filters import sobel

from reader_studies.make import DIRECTIONS, KINDS
from reader_studies.score import COLUMNS, COMPUTED, RATINGS

STUDY = re.compile(r'<script type="application/json" id="study">(.*?)</script>', re.DOTALL)
DITHER = 2  # grey levels by which two pictures of one slice differ at most, see reader_study_make.picture


@dataclass
class Picture:
    """A slice as the page shows it: grey levels 0 to 255, (rows, columns)."""

    item: str
    direction: str
    grey: np.ndarray


def read_page(path: Path) -> tuple[str, list[Picture]]:
    """The study's id and its pictures, in the order in which people see them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not the page of a reader study.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such page. `reader_study.py make` wrote it as page/reader_study.html")
    found = STUDY.search(path.read_text(encoding="utf-8", errors="replace"))
    try:
        content = json.loads(found[1] if found else "")
        return content["study"], [_decode(item) for item in content["items"]]
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = f"({type(error).__name__}: {error})"
        raise ValueError(f"{path}: not the page of a reader study {reason}. Give STUDY_DIR/page/reader_study.html") from error


def _decode(item: dict) -> Picture:
    image = Image.open(io.BytesIO(base64.b64decode(item["image"])))
    return Picture(item["id"], item["direction"], np.asarray(image, dtype=np.float32))


# --- Cues, of pixels within the head --------------------------------------------------------------------------------


def find_inside(grey: np.ndarray) -> np.ndarray:
    """The head without its outline, which `make` drew by blackening air: no 3 x 3 neighbourhood in it holds air.

    Air is 0 or 1, by the dither; black parts of the head are enclosed by brighter ones.
    """
    return ndimage.binary_erosion(ndimage.binary_fill_holes(grey > 1), np.ones((3, 3)))


def sharpness(grey: np.ndarray, inside: np.ndarray) -> float:
    """Mean magnitude of the Sobel gradient, of which Krotkov 1987 takes the square (Tenengrad). Noise adds to it."""
    return float(sobel(grey)[inside].mean())


def contrast(grey: np.ndarray, inside: np.ndarray) -> float:
    """Standard deviation of the grey levels (RMS contrast, Peli 1990)."""
    return float(grey[inside].std())


def noise(grey: np.ndarray, inside: np.ndarray) -> float:
    """Standard deviation of noise, in grey levels, by a kernel that edges hardly excite (Immerkaer 1996)."""
    kernel = np.outer([1, -2, 1], [1, -2, 1])
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(ndimage.convolve(grey, kernel))[inside].mean())


# Of each cue its measure, and whether more of it is rated better. The half with more of it is taken for real by all.
CUES = {"sharpness": (sharpness, True), "contrast": (contrast, True), "noise": (noise, False)}
# For the text that goes with the scores.
RULES = {
    "sharpness": "mean Sobel gradient, the sharpest are very good",
    "contrast": "standard deviation of the grey levels, those with most are very good",
    "noise": "standard deviation of noise after Immerkaer 1996, those with least are very good",
    "chance": "random answers, the floor",
}


# --- Answers --------------------------------------------------------------------------------------------------------


def find_first_times(pictures: list[Picture]) -> np.ndarray:
    """For each picture the place of the first one of the same slice: itself, or where a slice comes again, the one before."""
    first = np.arange(len(pictures))
    for place, picture in enumerate(pictures):
        for before in np.flatnonzero(first[:place] == np.arange(place)):
            other = pictures[before]
            if other.direction == picture.direction and np.abs(other.grey - picture.grey).max() <= DITHER:
                first[place] = before
                break
    return first


def answer_by_cue(pictures: list[Picture], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Ratings, 1 to 5, and guesses of the rule on one of `CUES`.

    Slices with the same value share the rank in their middle, so the same answer; a rank in the very middle is "synthetic".

    Raises:
        ValueError: a picture without a head, or a direction whose slices all have the same value.
    """
    measure, more_is_good = CUES[name]
    insides = [find_inside(picture.grey) for picture in pictures]
    if empty := [picture.item for picture, inside in zip(pictures, insides) if not inside.any()]:
        raise ValueError(f"no head to be seen on {len(empty)} of {len(pictures)} pictures, such as {empty[0]}")
    values = np.array([measure(picture.grey, inside) for picture, inside in zip(pictures, insides)])
    first, more = find_first_times(pictures), np.full(len(pictures), np.nan)
    for direction in DIRECTIONS:
        places = [k for k, picture in enumerate(pictures) if picture.direction == direction and first[k] == k]
        if places and len(set(values[places])) < 2:
            raise ValueError(f"no two {direction} pictures differ in {name}: nothing to rank. Does the page show heads?")
        more[places] = (stats.rankdata(values[places]) - 0.5) / max(len(places), 1)  # within (0, 1)
    more = more[first]
    good = more if more_is_good else 1 - more
    ratings = 1 + np.floor((1 - good) * len(RATINGS)).astype(int)
    return ratings, np.where(more > 0.5, *KINDS)


def rate(page: Path, output: Path, seed: int = 0) -> list[Path]:
    """Write the results of each computed reader, as the page saves them: sharpness.tsv, contrast.tsv, noise.tsv, chance.tsv.

    Args:
        page: of `make`, as people get it.
        output: folder.
        seed: of chance alone.

    Raises:
        FileNotFoundError, ValueError: see `read_page`, `answer_by_cue`.
    """
    study, pictures = read_page(page)
    try:
        answers = {name: answer_by_cue(pictures, name) for name in CUES}
    except ValueError as error:
        raise ValueError(f"{page}: {error}") from error
    rng = np.random.default_rng(seed)
    answers["chance"] = rng.choice(list(RATINGS), len(pictures)), rng.choice(KINDS, len(pictures))
    output.mkdir(parents=True, exist_ok=True)
    items = [picture.item for picture in pictures]
    for name, (ratings, guesses) in answers.items():
        columns = [study, name + COMPUTED, items, ratings, guesses, "n/a"]
        table = pd.DataFrame(dict(zip(COLUMNS, columns)))
        write_whole(output / f"{name}.tsv", table.to_csv(sep="\t", index=False).encode())
    return [output / f"{name}.tsv" for name in answers]
