"""Compare the features of two sets of volumes by MMD, density and coverage."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from scipy.spatial.distance import pdist

from .jackknife import Participants, jackknife, split_into_parts

NEIGHBOURS = 5
ROWS_AT_A_TIME = 256  # rows of a matrix of distances: 65 MB for the 31 740 volumes of Pinaya et al. 2022
ROWS_FOR_MEDIAN = 2000


def median_distance(features: np.ndarray) -> float:
    """Compute the median distance between two rows, the width of `squared_mmd`'s kernel (Gretton et al. 2012, Sec. 8).

    If there are more than 2000 rows, 2000 random ones are used, the same ones each time.

    Raises:
        ValueError: the median is 0, because half of the volumes or more have equal features.
    """
    if len(features) > ROWS_FOR_MEDIAN:
        features = np.random.default_rng(0).choice(features, ROWS_FOR_MEDIAN, replace=False)
    median = float(np.median(pdist(features)))
    if median <= 0:
        raise ValueError("the median distance of the reference's features is 0: it holds one volume many times")
    return median


def squared_mmd(a: np.ndarray, b: np.ndarray, width: float, participants: Participants = (None, None)) -> tuple[float, float]:
    """Compute the unbiased squared maximum mean discrepancy (Gretton et al. 2012, Eq. 3) and its standard error.

    The kernel is exp(-|x - y|^2 / (2 width^2)). The discrepancy of equal distributions is about 0 and may be negative. MONAI's
    `MMDMetric` has a linear kernel, which compares means only, and it needs two sets of equal size.

    The error comes from `jackknife`, which needs only sums of the kernel over pairs of parts. Each sum is computed once.

    Features `a` (n, F) and `b` (m, F) have a row per volume, and `width` has their unit.
    """
    parts = split_into_parts(a, b, participants)
    sizes = [np.bincount(part) for part in parts]

    def kernel_sums(x: int, y: int) -> np.ndarray:
        members, sums = np.eye(len(sizes[y]))[parts[y]], np.zeros((len(sizes[x]), len(sizes[y])))
        for rows, distances in _distances((a, b)[x], (a, b)[y]):
            np.add.at(sums, parts[x][rows], np.exp(np.square(distances) / (-2 * width**2)) @ members)
        return sums

    sums = {pair: kernel_sums(*pair) for pair in ((0, 0), (1, 1), (0, 1))}

    def mmd(*kept: np.ndarray) -> float:
        n, m = (size[part].sum() for size, part in zip(sizes, kept, strict=True))
        aa, bb, ab = (sums[x, y][np.ix_(kept[x], kept[y])].sum() for x, y in sums)
        return (aa - n) / (n * (n - 1)) + (bb - m) / (m * (m - 1)) - 2 * ab / (n * m)  # each row's kernel with itself is 1

    numbers = np.unique(parts[0]), np.unique(parts[1])
    return float(mmd(*numbers)), jackknife(mmd, *numbers, participants=numbers)[1]


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield the Euclidean distances from some rows of x to all rows of y, because the matrix (n, m) may not fit in memory."""
    for start in range(0, len(x), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        yield rows, torch.cdist(torch.from_numpy(x[rows]), torch.from_numpy(y)).numpy()


def density_coverage(
    real: np.ndarray, generated: np.ndarray, neighbours: int = NEIGHBOURS, participants: Participants = (None, None)
) -> tuple[float, float]:
    """Compute density and coverage (Naeem et al. 2020, ICML, Eq. 4 and 5) of generated features among real ones.

    Each real row is the centre of a ball that reaches to its `neighbours`-th nearest real row. Density is the mean number of
    balls around a generated row, divided by `neighbours`. It is about 1 for equal distributions. Coverage is the share of balls
    that contain a generated row. For equal distributions and sets of equal size it is about 1 - 2^-neighbours, and lower
    with fewer generated rows.

    The rows of one participant have the total weight of one row, and are not neighbours of each other. This is our extension;
    in the paper all samples are independent. Features have the shapes (n, F) and (m, F).

    Raises:
        ValueError: there are not more real participants than neighbours.
    """
    names = (np.arange(len(x)) if who is None else who for x, who in zip((real, generated), participants, strict=True))
    person, other = (np.unique(who, return_inverse=True)[1] for who in names)
    if person.max() < neighbours:
        raise ValueError(f"{person.max() + 1} real participants, at least {neighbours + 1} needed. Add volumes")
    weights, other_weights = (1 / np.bincount(x)[x] for x in (person, other))
    enough = min(neighbours * np.bincount(person).max(), len(real))  # this many rows show at least `neighbours` people
    density, coverage = 0.0, 0.0
    for (rows, distances), (_, from_generated) in zip(_distances(real, real), _distances(real, generated), strict=True):
        distances[person[rows, None] == person] = np.inf
        nearest, who = (x.numpy() for x in torch.from_numpy(distances).topk(int(enough), largest=False))
        last = (weights[who].cumsum(axis=1) > neighbours - 1e-9).argmax(axis=1)[:, None]  # rounding: three thirds are not 1
        inside = from_generated < np.take_along_axis(nearest, last, axis=1)
        density += weights[rows] @ inside @ other_weights / (neighbours * other_weights.sum())
        coverage += weights[rows] @ inside.any(axis=1) / weights.sum()
    return float(density), float(coverage)
