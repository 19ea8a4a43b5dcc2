"""Measure the similarity of volumes within one set by MS-SSIM and 4-G-R-SSIM of random pairs."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from monai.metrics import MultiScaleSSIMMetric
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..shared.ssim import mean_of_each, ssim_maps
from .gradient_ssim import GradientSSIMMetric

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # Wang et al. 2003, from the finest scale to the coarsest
KERNEL_SIZE, KERNEL_SIGMA = 7, 1.5


def draw_pairs(participants: Sequence[str], number: int, seed: int = 0) -> list[tuple[int, int]]:
    """Draw up to `number` different pairs of volumes (i, j), i < j, and return them sorted.

    Two sessions of one participant do not form a pair, because their similarity does not mean a lack of diversity.
    `participants` has the participant of each volume.
    """
    sessions = Counter(participants).values()
    if len(sessions) < 2 or number < 1:
        raise ValueError(f"{number} pairs of {len(sessions)} participants: at least one pair of two participants is needed")
    total = len(participants) * (len(participants) - 1) // 2
    of_one_person = sum(n * (n - 1) // 2 for n in sessions)
    pairs = []
    for position in random.Random(seed).sample(range(total), min(number + of_one_person, total)):
        j = (1 + math.isqrt(1 + 8 * position)) // 2  # pairs are counted (0, 1), (0, 2), (1, 2), (0, 3), ...
        i = position - j * (j - 1) // 2
        if participants[i] != participants[j]:
            pairs.append((i, j))
    return sorted(pairs[:number])


class MultiScaleSSIM(MultiScaleSSIMMetric):
    """Compute MS-SSIM of volumes (B, 1, D, H, W) with a Gaussian window. It takes the arguments of MONAI's metric."""

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        factors = []
        for weight in self.weights:
            ssim, contrast = map(mean_of_each, ssim_maps(self, y_pred, y))
            factors.append(contrast.relu() ** weight)
            y_pred, y = F.avg_pool3d(y_pred, 2), F.avg_pool3d(y, 2)
        factors[-1] = ssim.relu() ** self.weights[-1]
        return torch.stack(factors).prod(dim=0)


def multi_scale_ssim(size: Sequence[int]) -> MultiScaleSSIM:
    """Make MONAI's MS-SSIM for volumes of 0 to 1, with a Gaussian window of 7 voxels and sigma 1.5.

    Wang et al. 2003 use five scales and a window of 11 voxels, which is larger than the fifth scale of 160 x 224 x 160 voxels.
    The authors' later code also uses 7. A coarser grid has fewer scales, because the window must fit: 4 at 2 mm, 3 at 4 mm and
    2 at 8 mm. The finest scales are left out. The weights of the others are divided by their sum, so each weight belongs to
    the same scale in mm on every grid.
    """
    scales = [n for n in range(1, 6) if min(size) // 2 ** (n - 1) >= KERNEL_SIZE]
    if not scales:
        raise ValueError(f"volumes of {tuple(size)} voxels are smaller than the window of {KERNEL_SIZE}")
    weights = np.array(SCALE_WEIGHTS[-scales[-1] :])
    return MultiScaleSSIM(
        spatial_dims=3, kernel_size=KERNEL_SIZE, kernel_sigma=KERNEL_SIGMA, weights=(weights / weights.sum()).tolist()
    )


@dataclass
class Pairs(Dataset):
    """Pairs of volumes, each (1, 1, D, H, W)."""

    volumes: Dataset  # of volumes (1, D, H, W)
    pairs: Sequence[tuple[int, int]]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> list[torch.Tensor]:
        return [self.volumes[number][None] for number in self.pairs[index]]


@torch.inference_mode()
def score_pairs(
    volumes: Dataset, pairs: Sequence[tuple[int, int]], device: torch.device, name: str, num_workers: int = 0
) -> np.ndarray:
    """Compute MS-SSIM and 4-G-R-SSIM, (pairs, 2), of pairs of volumes (1, D, H, W), 0 to 1.

    Each of `num_workers` processes, or this one, has two volumes in memory at a time.
    """
    metrics, scores = None, []
    loader = DataLoader(Pairs(volumes, pairs), batch_size=None, num_workers=num_workers)
    for pair in tqdm(loader, f"pairs: {name}", leave=False, disable=None):
        first, second = (volume.to(device) for volume in pair)
        metrics = metrics or (multi_scale_ssim(first.shape[2:]), GradientSSIMMetric(KERNEL_SIZE, KERNEL_SIGMA))
        scores.append([float(metric(first, second)) for metric in metrics])
    return np.array(scores)


def mean_over_pairs(pairs: Sequence[tuple[int, int]], scores: np.ndarray) -> tuple[float, float, float]:
    """Compute mean and standard deviation of the scores, and the standard error of the mean.

    A volume is in many pairs, so pairs are not independent. The error comes from a jackknife that leaves out one volume at a
    time (Arvesen 1969). It is NaN if a volume is in every pair. Each pair is left out twice, once with each of its volumes. If
    only some of all pairs were drawn, this counts the variance of the pairs too often. We subtract the excess, which is zero
    if all pairs were drawn. The error is never smaller than for independent pairs.

    `pairs` are indices of volumes, or of participants if some have several volumes. The volumes of a participant are then left
    out together.
    """
    pairs, without = np.asarray(pairs), []
    for volume in np.unique(pairs):
        others = scores[(pairs != volume).all(axis=1)]
        without.append(others.mean() if len(others) else math.nan)
    drawn = len(np.unique(np.sort(pairs, axis=1), axis=0)) / math.comb(len(without), 2)
    of_pairs = scores.var() / len(scores)
    variance = np.maximum((len(without) - 1) * np.var(without) - (1 - drawn) * of_pairs, of_pairs)  # NaN stays NaN
    return float(scores.mean()), float(scores.std()), math.sqrt(variance)
