"""FID: the Frechet distance between the features of two sets of volumes."""

from __future__ import annotations

import numpy as np

__all__ = ["check_features", "frechet_distance", "principal_components"]


def check_features(features: np.ndarray, name: str, at_least: int = 2, length: int | None = None) -> np.ndarray:
    """Return features (n, F) in double precision.

    Args:
        features: One row per volume.
        name: Name of the set, for error messages.
        at_least: Smallest number of rows that is allowed.
        length: Number of features F that is expected. None allows any number.

    Raises:
        ValueError: The shape is wrong, there are too few volumes, or a feature is NaN or infinite.
    """
    features = np.asarray(features, dtype=np.float64)
    if features.ndim != 2 or (length is not None and features.shape[1] != length):
        raise ValueError(
            f"features of {name!r}: expected an array (n, {length or 'F'}), got {features.shape}. Use one extractor for all"
        )
    if len(features) < at_least:
        raise ValueError(f"features of {name!r}: {len(features)} volumes, at least {at_least} needed. Add volumes")
    broken = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(broken):
        raise ValueError(f"features of {name!r}: those of {len(broken)} volumes are NaN or infinite, first: row {broken[0]}")
    return features


def principal_components(features: np.ndarray, number: int) -> tuple[np.ndarray, float]:
    """Find the directions along which features vary most.

    Args:
        features: Features (n, F), one row per volume.
        number: How many directions to return, at most min(F, n - 1).

    Returns:
        The directions (number, F), and the share of the variance along them, 0 to 1.
    """
    largest = min(features.shape[1], len(features) - 1)
    if not 1 <= number <= largest:
        raise ValueError(
            f"{number} components of {len(features)} volumes with {features.shape[1]} features: use 1 to {largest}"
        )
    _, lengths, axes = np.linalg.svd(features - features.mean(axis=0), full_matrices=False)
    return axes[:number], float(np.square(lengths[:number]).sum() / np.square(lengths).sum())


def frechet_distance(a: np.ndarray, b: np.ndarray, components: np.ndarray | None = None) -> float:
    """Compute the Frechet distance of two normal distributions (Heusel et al. 2017), with mean and covariance of each set.

    The distance is |mean difference|^2 + tr(A + B - 2 (AB)^(1/2)). The last trace is the sum of the singular values of the
    product of the two covariances' roots. This form needs no root of a matrix: it stays real and exact for singular
    covariances, and it is fast enough for a jackknife. MONAI's `FIDMetric` gives the same number, but it calls
    scipy.linalg.sqrtm with an argument that SciPy 1.18 removed.

    Args:
        a: Features (n, F) of the first set, one row per volume.
        b: Features (m, F) of the second set.
        components: Orthonormal directions (k, F). Covariances are compared along these directions only; means are compared
            in all features. None compares covariances in all directions.
    """
    a, b = check_features(a, "first set"), check_features(b, "second set", length=np.shape(a)[1])
    along = [x if components is None else x @ components.T for x in (a, b)]
    roots = [np.linalg.qr((x - x.mean(axis=0)) / np.sqrt(len(x) - 1), mode="r") for x in along]  # (min(n, k), k)
    shared = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    spread = sum(np.square(root).sum() for root in roots)
    return float(np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + spread - 2 * shared)
