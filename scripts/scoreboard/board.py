"""Score sets, halves of the real scans and planted controls in the same way, and write the results."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from ldm.evaluation.feature_space import FeatureSpace
from scipy.spatial.distance import cdist
from shared.files import write_json
from shared.tables import write_table

from scoreboard import FEWEST
from scoreboard.controls import DEFECTS, plant
from scoreboard.measures import Measured, Meter
from scoreboard.naming import Floor, halves_of, measure_floor
from scoreboard.scores import KINDS, Score, Space, scores

VOLUMES_PER_DIMENSION, MOST_DIMENSIONS = 4, 10  # the first as in Table 1 of the bundle; the second chosen
DRAWS = 3  # random subsets of each size in the curves
CURVES = ("fid_uncorrected", "fid", "squared_mmd", "coverage", "ms_ssim", "structures")
HALF = "other half of the scans"


@dataclass
class Board:
    """The scores of all sets, by the name of the set. Each was compared with the half `reference` of the real scans."""

    n: int
    reference: Measured
    space: FeatureSpace  # of the reference
    floor: Floor
    sets: dict[str, Measured]
    found: dict[str, dict[str, Score]]  # of sets, of the other half, and of controls
    controls: list[str]
    curves: dict[str, pd.DataFrame] = field(default_factory=dict)  # score -> n, and mean and SD of each set

    def named(self, name: str) -> dict[str, str]:
        return self.floor.named(self.found[name])

    def worst(self, score: str, end: str) -> str:
        """Return the set or control with the lowest or highest value of a score."""
        values = {name: found[score][0] for name, found in self.found.items() if score in found}
        return (min if end == "low" else max)(values, key=values.get)

    def finds(self, control: str) -> bool:
        """Return whether a control is the worst on its own score, and is named."""
        defect = DEFECTS[control.removeprefix("control: ")]
        return self.worst(defect.score, defect.end) == control and defect.score in self.named(control)

    def rows(self) -> Iterator[list]:
        """Yield a row for each set and score: value, 95 % interval, limits of halves of scans, and the defect or ""."""
        for name, found in self.found.items():
            named = self.named(name)
            for score, (value, error) in found.items():
                interval = [value - 1.96 * error, value + 1.96 * error]
                limits = self.floor.limits(score) if score in self.floor.values else (math.nan, math.nan)
                yield [name, score, KINDS[score].title, value, *interval, *limits, named.get(score, "")]


HEADER = ["set", "score", "title", "value", "low_95", "high_95", "lowest_of_halves", "highest_of_halves", "named"]


def score_all(meter: Meter, real: Measured, sets: Mapping[str, Measured], n: int) -> Board:
    """Score all sets against one half of the scans, the halves against each other, and controls made of the other half."""
    dimensions = max(1, min(MOST_DIMENSIONS, n // VOLUMES_PER_DIMENSION))
    space: Space = partial(FeatureSpace, dimensions=dimensions, standardise=meter.extractor.standardise)
    floor = measure_floor(real, n, space, meter.seed)
    reference, half = (real.of(rows) for rows in halves_of(len(real), n, (meter.seed, 0)))
    planted = {name: plant(name, half, reference, meter) for name in DEFECTS}
    planted = {f"control: {name}": one for name, one in planted.items() if one is not None}
    compare = partial(scores, real=reference, space=space, copied_below=floor.copied_below)
    found = {name: compare(one, known=real, errors=True) for name, one in sets.items()} | {HALF: compare(half, errors=True)}
    found |= {name: compare(one) for name, one in planted.items()}
    board = Board(n, reference, space(reference.features), floor, dict(sets), found, list(planted))
    board.curves = _curves(sets | {HALF: half}, reference, space, floor.copied_below, max(FEWEST, 2 * dimensions), meter.seed)
    return board


def _curves(
    sets: Mapping[str, Measured], reference: Measured, space: Space, copied_below: float, fewest: int, seed: int
) -> dict[str, pd.DataFrame]:
    """Score random subsets of m volumes of each set against m of the reference, for growing m."""
    n, found = len(reference), []
    sizes = sorted({round(m) for m in np.geomspace(min(fewest, n), n, 4)})
    for name, one in sets.items():
        for m in [m for m in sizes if m <= len(one)]:
            for draw in range(DRAWS):
                rng = np.random.default_rng((seed, m, draw))
                parts = [of.of(rng.permutation(len(of))[:m]) for of in (one, reference)]
                values = scores(*parts, space, copied_below)
                found += [(score, name, m, values[score][0]) for score in CURVES if score in values]
    table = pd.DataFrame(found, columns=["score", "set", "n", "value"])
    return {
        score: of.groupby(["set", "n"], sort=False)["value"].agg(["mean", "std"])
        for score, of in table.groupby("score", sort=False)
    }


def nearest_and_strangest(given: Measured, reference: Measured, space: FeatureSpace) -> tuple[int, int]:
    """Return the volumes whose features are nearest to those of a scan, and farthest from those of all scans."""
    of_each = cdist(*(space.scaled(of.features) for of in (given, reference))).min(axis=1)
    return int(of_each.argmin()), int(of_each.argmax())


def write_results(board: Board, settings: Mapping, folder: Path) -> None:
    """Write scoreboard.tsv and scoreboard.json."""
    rows = list(board.rows())
    texts = [[f"{x:.6g}" if isinstance(x, float) and math.isfinite(x) else "n/a" if x != x else x for x in row] for row in rows]
    write_table(folder / "scoreboard.tsv", [HEADER, *texts])
    numbers = [{k: None if isinstance(x, float) and not math.isfinite(x) else x for k, x in zip(HEADER, row)} for row in rows]
    curves = {
        score: [dict(zip(("set", "n", "mean", "sd"), row)) for row in of.reset_index().to_numpy().tolist()]
        for score, of in board.curves.items()
    }
    named = {name: list(dict.fromkeys(board.named(name).values())) for name in board.found}
    write_json(folder / "scoreboard.json", dict(settings) | {"named": named, "scores": numbers, "curves": curves})
