"""Rate the page of a reader study by computed readers, each of which uses one cue. People are compared with them.

A computed reader rates a slice by the rank of its cue among the slices of its direction, in five equal classes, and guesses
that the half with more of the cue is real. It reads the page that people get, and nothing else. It recognises a repeated slice
by its pixels and gives it the same answer. "chance" answers at random, independently each time, and shows the lowest result.
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
from PIL import Image
from scipy import ndimage, stats
from shared.files import write_text
from skimage.filters import sobel

from reader_studies.score import COLUMNS, COMPUTED, RATINGS
from reader_studies.slices import DIRECTIONS, KINDS

STUDY = re.compile(r'<script type="application/json" id="study">(.*?)</script>', re.DOTALL)
DITHER = 2  # largest difference, in grey levels, between two pictures of one slice (see slices.picture)


@dataclass
class Picture:
    """A slice as the page shows it."""

    item: str
    direction: str  # key of DIRECTIONS
    grey: np.ndarray  # grey levels (rows, columns), 0 to 255


def read_page(path: Path) -> tuple[str, list[Picture]]:
    """Read the study's id and its pictures, in the order in which people see them."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such page. `reader_study.py make` wrote it as page/reader_study.html")
    found = STUDY.search(path.read_text(encoding="utf-8", errors="replace"))
    try:
        content, pictures = json.loads(found[1] if found else ""), []
        for item in content["items"]:
            image = Image.open(io.BytesIO(base64.b64decode(item["image"])))
            pictures.append(Picture(item["id"], item["direction"], np.asarray(image, dtype=np.float32)))
        return content["study"], pictures
    except (ValueError, KeyError, TypeError, OSError) as error:
        reason = f"({type(error).__name__}: {error})"
        raise ValueError(f"{path}: not the page of a reader study {reason}. Give STUDY_DIR/page/reader_study.html") from error


def find_inside(grey: np.ndarray) -> np.ndarray:
    """Return the mask of the head without its outline: all pixels whose 3 x 3 neighbourhood contains no air.

    The outline is no cue, because `make` created its edge when it drew air black. Air has grey level 0 or 1, because of the
    dither. Dark parts of the head are not air, because brighter parts enclose them.
    """
    return ndimage.binary_erosion(ndimage.binary_fill_holes(grey > 1), np.ones((3, 3)))


def sharpness(grey: np.ndarray, inside: np.ndarray) -> float:
    """Return the mean magnitude of the Sobel gradient. Krotkov 1987 uses its square (Tenengrad). Noise increases it."""
    return float(sobel(grey)[inside].mean())


def contrast(grey: np.ndarray, inside: np.ndarray) -> float:
    """Return the standard deviation of the grey levels (RMS contrast, Peli 1990)."""
    return float(grey[inside].std())


def noise(grey: np.ndarray, inside: np.ndarray) -> float:
    """Return the standard deviation of the noise in grey levels, by a kernel that hardly responds to edges (Immerkaer 1996)."""
    kernel = np.outer([1, -2, 1], [1, -2, 1])
    return float(np.sqrt(np.pi / 2) / 6 * np.abs(ndimage.convolve(grey, kernel))[inside].mean())


# The function that measures each cue, and whether more of the cue gives a better rating. Every rule guesses that the half with
# more of its cue is real.
CUES = {"sharpness": (sharpness, True), "contrast": (contrast, True), "noise": (noise, False)}
# Explanations in the report of the scores.
RULES = {
    "sharpness": "mean Sobel gradient; the sharpest slices are rated very good",
    "contrast": "standard deviation of the grey levels; the slices with the most contrast are rated very good",
    "noise": "standard deviation of the noise (Immerkaer 1996); the slices with the least noise are rated very good",
    "chance": "random answers",
}


def find_first_times(pictures: list[Picture]) -> np.ndarray:
    """Return for each picture the index of the first picture of the same slice."""
    first = np.arange(len(pictures))
    for place, picture in enumerate(pictures):
        for before in np.flatnonzero(first[:place] == np.arange(place)):
            other = pictures[before]
            if other.direction == picture.direction and np.abs(other.grey - picture.grey).max() <= DITHER:
                first[place] = before
                break
    return first


def answer_by_cue(pictures: list[Picture], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the ratings (1 to 5) and the guesses of one rule of `CUES`.

    Slices with equal values get their mean rank, and so the same answer. A slice exactly in the middle is guessed synthetic.
    """
    measure, more_is_good = CUES[name]
    insides = [find_inside(picture.grey) for picture in pictures]
    if empty := [picture.item for picture, inside in zip(pictures, insides) if not inside.any()]:
        raise ValueError(f"no head is visible on {len(empty)} of {len(pictures)} pictures, such as {empty[0]}")
    values = np.array([measure(picture.grey, inside) for picture, inside in zip(pictures, insides)])
    first, more = find_first_times(pictures), np.full(len(pictures), np.nan)
    for direction in DIRECTIONS:
        places = [k for k, picture in enumerate(pictures) if picture.direction == direction and first[k] == k]
        if places and len(set(values[places])) < 2:
            raise ValueError(
                f"no two {direction} pictures differ in {name}, so there is nothing to rank. Does the page show heads?"
            )
        more[places] = (stats.rankdata(values[places]) - 0.5) / max(len(places), 1)  # within (0, 1)
    more = more[first]
    good = more if more_is_good else 1 - more
    ratings = 1 + np.floor((1 - good) * len(RATINGS)).astype(int)
    return ratings, np.where(more > 0.5, *KINDS)


def rate(page: Path, output: Path, seed: int = 0) -> list[Path]:
    """Write the results of each computed reader, as the page saves them: sharpness.tsv, contrast.tsv, noise.tsv, chance.tsv.

    Raises:
        FileNotFoundError: there is no such page.
        ValueError: the file is not the page of a study, or its pictures cannot be ranked.
    """
    study, pictures = read_page(page)
    try:
        answers = {name: answer_by_cue(pictures, name) for name in CUES}
    except ValueError as error:
        raise ValueError(f"{page}: {error}") from error
    rng = np.random.default_rng(seed)
    answers["chance"] = rng.choice(list(RATINGS), len(pictures)), rng.choice(KINDS, len(pictures))
    items, paths = [picture.item for picture in pictures], []
    for name, (ratings, guesses) in answers.items():
        table = pd.DataFrame(dict(zip(COLUMNS, [study, name + COMPUTED, items, ratings, guesses, "n/a"])))
        paths.append(output / f"{name}.tsv")
        write_text(paths[-1], table.to_csv(sep="\t", index=False))
    return paths
