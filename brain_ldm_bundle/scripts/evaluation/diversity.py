"""How alike the volumes of one set are: MS-SSIM and 4-G-R-SSIM of random pairs."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from .gradient_ssim import GradientSSIMMetric
from .ssim import MultiScaleSSIM

__all__ = ["draw_pairs", "mean_over_pairs", "multi_scale_ssim", "score_pairs"]

# Of Wang et al. 2003, from the finest scale to the coarsest.
SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
KERNEL_SIZE, KERNEL_SIGMA = 7, 1.5


def draw_pairs(participants: Sequence[str], number: int, seed: int = 0) -> list[tuple[int, int]]:
    """`number` different pairs of volumes (i, j), i < j, in order; all of them if there are no more.

    Two sessions of one person are alike for a reason that is not the set's lack of diversity, and make no pair.

    Args:
        participants: whom each volume shows.
        number: of pairs.
        seed: of the choice.

    Raises:
        ValueError: fewer than two participants, or no pairs wanted.
    """
    sessions = Counter(participants).values()
    if len(sessions) < 2 or number < 1:
        raise ValueError(f"{number} pairs of {len(sessions)} participants: at least one pair of two participants is needed")
    total = len(participants) * (len(participants) - 1) // 2
    of_one_person = sum(n * (n - 1) // 2 for n in sessions)
    pairs = []
    for position in random.Random(seed).sample(range(total), min(number + of_one_person, total)):
        j = (1 + math.isqrt(1 + 8 * position)) // 2  # pairs counted (0, 1), (0, 2), (1, 2), (0, 3), ...
        i = position - j * (j - 1) // 2
        if participants[i] != participants[j]:
            pairs.append((i, j))
    return sorted(pairs[:number])


def multi_scale_ssim(size: Sequence[int]) -> MultiScaleSSIM:
    """MONAI's MS-SSIM for volumes of `size` voxels with intensities of 0 to 1: a Gaussian window of 7 voxels, sigma 1.5.

    Wang et al. 2003 have five scales and a window of 11, which does not fit 160 x 224 x 160 voxels at the fifth; the authors'
    later code takes 7, too. Coarser grids have fewer scales, as many as the window fits: 4 at 2 mm, 3 at 4 mm, 2 at 8 mm. The
    finest are left out and the others keep their weights, divided by their sum, so that a scale of 16 mm counts as that.

    Raises:
        ValueError: less than a window along some axis.
    """
    scales = [n for n in range(1, 6) if min(size) // 2 ** (n - 1) >= KERNEL_SIZE]
    if not scales:
        raise ValueError(f"volumes of {tuple(size)} voxels are smaller than the window of {KERNEL_SIZE}")
    weights = np.array(SCALE_WEIGHTS[-scales[-1] :])
    return MultiScaleSSIM(
        spatial_dims=3, kernel_size=KERNEL_SIZE, kernel_sigma=KERNEL_SIGMA, weights=(weights / weights.sum()).tolist()
    )


@torch.inference_mode()
def score_pairs(volumes: Dataset, pairs: Sequence[tuple[int, int]], device: torch.device, name: str) -> np.ndarray:
    """MS-SSIM and 4-G-R-SSIM of each pair, (pairs, 2). Two volumes are in memory at a time.

    Args:
        volumes: of (1, D, H, W), 0 to 1.
        pairs: sorted, so that the first of a pair is seldom read again.
        device: that computes.
        name: of the set, for the progress.
    """
    metrics, first, number, scores = None, None, -1, []
    for i, j in tqdm(pairs, f"pairs: {name}", leave=False, disable=None):
        if i != number:
            number, first = i, volumes[i][None].to(device)
        second = volumes[j][None].to(device)
        metrics = metrics or (multi_scale_ssim(first.shape[2:]), GradientSSIMMetric(KERNEL_SIZE, KERNEL_SIGMA))
        scores.append([float(metric(first, second)) for metric in metrics])
    return np.array(scores)


def mean_over_pairs(pairs: Sequence[tuple[int, int]], scores: np.ndarray) -> tuple[float, float, float]:
    """Mean and standard deviation over pairs, and standard error of the mean; `scores` has one number per pair.

    A volume is in many pairs, so they are not independent: the error comes from leaving out one volume after the other
    (jackknife; Arvesen 1969). It is NaN where some volume is in every pair. Each pair is left out twice, with one volume and
    with the other, which counts too much where few of all pairs were drawn: that share of the pairs' own variance is taken
    away (ours; where all were drawn, nothing). The error is no smaller than that of independent pairs.

    Args:
        pairs: numbers of volumes; of participants where some have several volumes, which then are left out together.
        scores: (pairs,).
    """
    pairs, without = np.asarray(pairs), []
    for volume in np.unique(pairs):
        others = scores[(pairs != volume).all(axis=1)]
        without.append(others.mean() if len(others) else math.nan)
    drawn = len(np.unique(np.sort(pairs, axis=1), axis=0)) / math.comb(len(without), 2)
    of_pairs = scores.var() / len(scores)
    variance = np.maximum((len(without) - 1) * np.var(without) - (1 - drawn) * of_pairs, of_pairs)  # of NaN, NaN
    return float(scores.mean()), float(scores.std()), math.sqrt(variance)
