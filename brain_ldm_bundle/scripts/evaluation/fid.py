"""How far two sets of feature vectors lie apart, and how sure that is: Frechet distance, MMD, density and coverage."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from scipy.spatial.distance import pdist

__all__ = [
    "FeatureSpace",
    "check_features",
    "density_coverage",
    "frechet_distance",
    "jackknife",
    "median_distance",
    "principal_components",
    "squared_mmd",
]


NEIGHBOURS = 5
GROUPS = 20
ROWS_AT_A_TIME = 256  # of a matrix of distances: 65 MB for the 31 740 volumes of Pinaya et al. 2022
ROWS_FOR_MEDIAN = 2000


def check_features(features: np.ndarray, name: str, at_least: int = 2, length: int | None = None) -> np.ndarray:
    """Features (n, F) in double precision.

    Args:
        features: one row per volume.
        name: of the set, for the errors.
        at_least: rows.
        length: F, where another set decides it.

    Raises:
        ValueError: another shape, too few volumes, NaN or infinity.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or (length is not None and features.shape[1] != length):
        expected = f"(n, {length or 'F'})"
        raise ValueError(f"features of {name!r}: expected an array {expected}, got {features.shape}. Use one extractor for all")
    if len(features) < at_least:
        raise ValueError(f"features of {name!r}: {len(features)} volumes, at least {at_least} needed. Add volumes")
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise ValueError(f"features of {name!r}: those of {len(broken)} volumes are NaN or infinite, first: row {broken[0]}")
    return features


def principal_components(features: np.ndarray, number: int) -> tuple[np.ndarray, float]:
    """Directions (number, F) of the largest variance of features (n, F), and the share of variance that they hold.

    Raises:
        ValueError: more components than features, or than a covariance of these volumes has.
    """
    largest = min(features.shape[1], len(features) - 1)
    if not 1 <= number <= largest:
        raise ValueError(
            f"{number} components of {len(features)} volumes with {features.shape[1]} features: use 1 to {largest}"
        )
    _, lengths, axes = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    return axes[:number], float(np.square(lengths[:number]).sum() / np.square(lengths).sum())


def frechet_distance(a: np.ndarray, b: np.ndarray, components: np.ndarray | None = None) -> float:
    """Frechet distance of two normal distributions with the mean and covariance of features (n, F) and (m, F): FID.

    |mean difference|^2 + tr(A + B - 2 (AB)^(1/2)) (Heusel et al. 2017). The last trace is the sum of the singular values of
    the product of the two covariances' roots, so that no root of a matrix is taken: it stays real and exact for singular
    covariances, and is fast enough to be computed a hundred times. MONAI's `FIDMetric`, with which it agrees, takes
    scipy.linalg.sqrtm in a form that SciPy 1.18 no longer has.

    Args:
        a, b: one row per volume.
        components: orthonormal (k, F); covariances are compared along these alone and taken as equal elsewhere. Means are
            compared in all features.
    """
    a, b = check_features(a, "first set"), check_features(b, "second set", length=np.shape(a)[1])
    along = [x if components is None else x @ components.T for x in (a, b)]
    roots = [np.linalg.qr((x - x.mean(axis=0)) / np.sqrt(len(x) - 1), mode="r") for x in along]  # (min(n, k), k)
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(np.square(root).sum() for root in roots)
    return float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + spread - 2 * shared)


def jackknife(
    statistic: Callable[[np.ndarray, np.ndarray], float],
    a: np.ndarray,
    b: np.ndarray,
    groups: int = GROUPS,
    participants: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
) -> tuple[float, float]:
    """A distance of two sets, corrected for its bias, and the standard error.

    The Frechet distance is too large by about c/n; Chong and Forsyth 2020 (CVPR) extrapolate it over 1/n to infinitely many
    samples. So does the jackknife (Quenouille 1956; Efron and Stein 1981 for the error), from n and n - 1 samples of each of
    the two sets, without a choice of sizes or random subsets. The corrected distance of equal distributions scatters about 0
    and may be negative.

    Args:
        statistic: of two arrays of rows.
        a, b: rows, independent where they are of different participants.
        groups: of equal size that are left out in turn; single participants where a set has no more of them than this.
        participants: whom the rows of a and of b show, who are left out with all their rows, from both sets at once if anyone
            is in both; None: each row another one, who is in no other set.
    """
    whole, bias, variance = statistic(a, b), 0.0, 0.0
    part_a, part_b = _parts(a, b, participants, groups)
    numbers = np.unique(part_a), np.unique(part_b)
    for parts in [np.union1d(*numbers)] if len(np.intersect1d(*numbers)) else numbers:
        without = [statistic(a[part_a != part], b[part_b != part]) for part in parts]
        bias += (len(parts) - 1) * (np.mean(without) - whole)
        variance += (len(parts) - 1) * np.var(without)
    return float(whole - bias), float(np.sqrt(variance))


def _parts(
    a: np.ndarray, b: np.ndarray, participants: tuple[Sequence[str] | None, Sequence[str] | None], groups: int
) -> list[np.ndarray]:
    """With which part each row of a and of b is left out. The two sets share numbers of parts only if they share people."""
    names = [
        [f"row {row} of {name}" for row in range(len(rows))] if who is None else who
        for name, rows, who in zip("ab", (a, b), participants, strict=True)
    ]
    shared = len(np.intersect1d(*names)) > 0
    part, number = {}, 0
    for people in [np.union1d(*names)] if shared else map(np.unique, names):
        order, count = np.random.default_rng(0).permutation(len(people)), min(groups, len(people))
        if shared:  # who is in one set alone, and who in both, is spread over all parts: none takes the whole of a small set
            kind = np.isin(people, names[0]) + 2 * np.isin(people, names[1])
            order = order[kind[order].argsort(kind="stable")]
            order = np.concatenate([order[start::count] for start in range(count)])
        for chosen in np.array_split(order, count):
            part |= dict.fromkeys(people[chosen].tolist(), number)
            number += 1
    return [np.array([part[person] for person in np.asarray(who).tolist()]) for who in names]


def median_distance(features: np.ndarray) -> float:
    """Median distance of two rows: the width of `squared_mmd`'s kernel (Gretton et al. 2012, Sec. 8).

    Of all pairs of up to 2000 rows; of all pairs of 2000 random rows, the same ones each time, where there are more.

    Raises:
        ValueError: it is 0: half of the volumes or more have equal features.
    """
    if len(features) > ROWS_FOR_MEDIAN:
        features = np.random.default_rng(0).choice(features, ROWS_FOR_MEDIAN, replace=False)
    median = float(np.median(pdist(features)))
    if median <= 0:
        raise ValueError("the median distance of the reference's features is 0: it holds one volume many times")
    return median


def squared_mmd(
    a: np.ndarray,
    b: np.ndarray,
    width: float,
    participants: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy, kernel exp(-|x - y|^2 / (2 width^2)) (Gretton et al. 2012, Eq. 3), and its
    standard error.

    About 0 for equal distributions, which may be negative. MONAI's `MMDMetric` has a linear kernel, which compares means
    alone, and takes sets of equal size only.

    The error is that of `jackknife`. All that it needs are the kernel's sums over pairs of parts, so each is computed once.
    """
    a, b = check_features(a, "first set"), check_features(b, "second set", length=np.shape(a)[1])
    parts = _parts(a, b, participants, GROUPS)
    sizes = [np.bincount(part) for part in parts]

    def kernel_sums(x: int, y: int) -> np.ndarray:
        members, sums = np.eye(len(sizes[y]))[parts[y]], np.zeros((len(sizes[x]), len(sizes[y])))
        for rows, distances in _distances((a, b)[x], (a, b)[y]):
            np.add.at(sums, parts[x][rows], np.exp(np.square(distances) / (-2 * width**2)) @ members)
        return sums

    sums = {pair: kernel_sums(*pair) for pair in ((0, 0), (1, 1), (0, 1))}

    def mmd(*kept: np.ndarray) -> float:
        """Of the rows in some parts of a, and some of b."""
        n, m = (size[part].sum() for size, part in zip(sizes, kept, strict=True))
        aa, bb, ab = (sums[x, y][np.ix_(kept[x], kept[y])].sum() for x, y in sums)
        return (aa - n) / (n * (n - 1)) + (bb - m) / (m * (m - 1)) - 2 * ab / (n * m)  # each row's kernel with itself is 1

    numbers = np.unique(parts[0]), np.unique(parts[1])
    return float(mmd(*numbers)), jackknife(mmd, *numbers, participants=numbers)[1]


def _distances(x: np.ndarray, y: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Euclidean distances of some rows of x from all of y, and which rows: never a matrix (n, m) at once."""
    for start in range(0, len(x), ROWS_AT_A_TIME):
        rows = slice(start, start + ROWS_AT_A_TIME)
        yield rows, torch.cdist(torch.from_numpy(x[rows]), torch.from_numpy(y)).numpy()


def density_coverage(
    real: np.ndarray,
    generated: np.ndarray,
    neighbours: int = NEIGHBOURS,
    participants: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020, ICML, Eq. 4 and 5) of generated features among real ones.

    Around each real row lies a ball that reaches to its `neighbours`-th nearest real row. Density: in how many balls a
    generated row lies, over `neighbours`; about 1 for equal distributions. Coverage: share of balls with a generated row in
    them, 0 to 1; for equal distributions and sets of one size about 1 - 2^-neighbours, less with fewer generated rows.

    Rows of one participant share the weight of one, and are no neighbours of each other (ours; the paper has single samples).

    Args:
        real, generated: rows.
        neighbours: of the balls.
        participants: whom the rows of each set show; None: each row another one.

    Raises:
        ValueError: not more real participants than neighbours.
    """
    real = check_features(real, "real", at_least=neighbours + 1)
    generated = check_features(generated, "generated", at_least=1, length=real.shape[1])
    names = (np.arange(len(x)) if who is None else who for x, who in zip((real, generated), participants, strict=True))
    person, other = (np.unique(who, return_inverse=True)[1] for who in names)
    if person.max() < neighbours:
        raise ValueError(f"{person.max() + 1} real participants, at least {neighbours + 1} needed. Add volumes")
    weights, other_weights = (1 / np.bincount(x)[x] for x in (person, other))
    enough = min(neighbours * np.bincount(person).max(), len(real))  # so many rows show as many people as `neighbours`
    density, coverage = 0.0, 0.0
    for (rows, distances), (_, from_generated) in zip(_distances(real, real), _distances(real, generated), strict=True):
        distances[person[rows, None] == person] = np.inf
        nearest, who = (x.numpy() for x in torch.from_numpy(distances).topk(int(enough), largest=False))
        last = (weights[who].cumsum(axis=1) > neighbours - 1e-9).argmax(axis=1)[:, None]  # of each ball; thirds do not add up
        inside = from_generated < np.take_along_axis(nearest, last, axis=1)
        density += weights[rows] @ inside @ other_weights / (neighbours * other_weights.sum())
        coverage += weights[rows] @ inside.any(axis=1) / weights.sum()
    return float(density), float(coverage)


class FeatureSpace:
    """Distances of features from those of real scans.

    A covariance of F features needs more than F volumes. With fewer, the covariances of the Frechet distance are compared
    along the first principal components of the real scans alone; means are compared in all features, and so is everything
    else: a shift in a direction in which real scans hardly differ must not go unseen.

    Args:
        reference: features (n, F) of real scans.
        dimensions: components; with as many as features nothing is left out.
        standardise: divide features by the reference's standard deviations; those that are constant there are left out.

    Raises:
        ValueError: as `principal_components` and `median_distance`; no feature that varies.
    """

    def __init__(self, reference: np.ndarray, dimensions: int, standardise: bool = False) -> None:
        deviations = reference.std(axis=0)
        self.kept = deviations > 1e-9 * np.abs(reference).max() if standardise else np.ones(len(deviations), dtype=bool)
        self.scale = deviations[self.kept] if standardise else 1.0
        self.length = int(self.kept.sum())
        if not self.length:
            raise ValueError(
                f"none of {len(deviations)} features varies between {len(reference)} volumes: the extractor is blind"
            )
        self.dimensions = min(dimensions, self.length)
        self.components, self.share = principal_components(self.scaled(reference), self.dimensions)
        self.width = median_distance(self.scaled(reference))

    def scaled(self, features: np.ndarray) -> np.ndarray:
        """The features that distances are taken of."""
        return features[:, self.kept] / self.scale

    def compare(
        self,
        features: np.ndarray,
        reference: np.ndarray,
        participants: tuple[Sequence[str] | None, Sequence[str] | None] = (None, None),
    ) -> dict[str, float]:
        """FID, MMD, density and coverage of a set among real scans; `participants` as `jackknife`."""

        def frechet(x: np.ndarray, y: np.ndarray) -> float:
            return frechet_distance(x, y, self.components)

        a, b = self.scaled(features), self.scaled(reference)
        corrected, error = jackknife(frechet, a, b, participants=participants)
        mmd, mmd_error = squared_mmd(a, b, self.width, participants)
        density, coverage = density_coverage(b, a, participants=participants[::-1])
        return {
            "fid": frechet(a, b),
            "fid_corrected": corrected,
            "fid_standard_error": error,
            "squared_mmd": mmd,
            "squared_mmd_standard_error": mmd_error,
            "density": density,
            "coverage": coverage,
        }

    def text(self, extractor: str) -> str:
        """Where distances are taken, for a reader."""
        if self.dimensions == self.length:
            return f"Features: {extractor}, all {self.length}."
        return (
            f"Features: {extractor}, {self.length}. A covariance of so many needs more volumes than there are: FID compares "
            f"covariances along the {self.dimensions} first principal components of the real scans alone "
            f"({100 * self.share:.0f} % of their variance), means in all features."
        )
