"""Name the defects of a set: its scores that lie beyond what halves of real scans give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from ldm.evaluation.diversity import draw_pairs
from ldm.evaluation.nearest_scan import threshold

from scoreboard.measures import Measured
from scoreboard.scores import KINDS, Score, Space, relative_distances, scores

SPLITS = 20
WIDTH = 4.0  # standard deviations of halves (chosen). With normal scores, one in 30 000 of them lies beyond, at each end


@dataclass
class Floor:
    """The scores of halves of real scans against the other halves, over random splits."""

    values: dict[str, np.ndarray]  # score -> its value in each split
    copied_below: float  # relative distance to the nearest scan below which a volume is a copy; 0 or less finds none

    def limits(self, name: str) -> tuple[float, float]:
        """Return the lowest and the highest value that is not named."""
        values = self.values[name]
        spread = WIDTH * values.std(ddof=1)
        return float(min(values.min(), values.mean() - spread)), float(max(values.max(), values.mean() + spread))

    def named(self, found: Mapping[str, Score]) -> dict[str, str]:
        """Return the defects of a set, by the score that shows them."""
        defects = {}
        for name, (value, _) in found.items():
            if name in self.values:
                low, high = self.limits(name)
                defects[name] = KINDS[name].low if value < low else KINDS[name].high if value > high else ""
        return {name: defect for name, defect in defects.items() if defect}


def halves_of(count: int, n: int, seed: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw two groups of n from `count` scans, without a scan in common."""
    order = np.random.default_rng(seed).permutation(count)
    return order[:n], order[n : 2 * n]


def refuse_few_pairs(pairs: int, n: int, seed: int) -> None:
    """Refuse a number of pairs for MS-SSIM of which a half of 2 n scans has none."""
    drawn = np.array(draw_pairs(range(2 * n), pairs, seed))
    halves = [half for split in range(SPLITS) for half in halves_of(2 * n, n, (seed, split))]
    if not all(np.isin(drawn, half).all(axis=1).any() for half in halves):
        raise ValueError(f"--pairs {pairs}: a half of {2 * n} scans has no pair. Give more, such as the default")


def measure_floor(real: Measured, n: int, space: Space, seed: int) -> Floor:
    """Score halves of real scans, n in each, against each other."""
    splits = [[real.of(rows) for rows in halves_of(len(real), n, (seed, split))] for split in range(SPLITS)]
    copied_below = threshold(np.concatenate([relative_distances(half, reference) for reference, half in splits]))
    every = [scores(half, reference, space, copied_below) for reference, half in splits]
    common = [name for name in every[0] if all(name in one for one in every)]
    return Floor({name: np.array([one[name][0] for one in every]) for name in common}, copied_below)
