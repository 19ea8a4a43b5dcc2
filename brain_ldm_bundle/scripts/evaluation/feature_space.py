"""The space of features in which generated sets are compared with real scans."""

from __future__ import annotations

import numpy as np

from .fid import frechet_distance
from .jackknife import Participants, jackknife
from .mmd_coverage import density_coverage, median_distance, squared_mmd


class FeatureSpace:
    """Compare features of a set with features of real scans.

    A covariance of F features needs more than F volumes. With fewer volumes, the Frechet distance compares covariances only
    along the first principal components of the real scans. Means and all other distances use all features, so that a shift in
    a direction of small variance counts as well.

    Args:
        reference: features (n, F) of real scans.
        dimensions: number of principal components, at most F.
        standardise: whether to divide features by their standard deviation over the reference, without constant features.
    """

    def __init__(self, reference: np.ndarray, dimensions: int, standardise: bool = False) -> None:
        deviations = reference.std(axis=0)
        self.kept = deviations > 1e-9 * np.abs(reference).max() if standardise else np.ones(len(deviations), dtype=bool)
        self.scale = deviations[self.kept] if standardise else 1.0
        self.length = int(self.kept.sum())
        if not self.length:
            raise ValueError(
                f"none of {len(deviations)} features varies between {len(reference)} volumes. Use another extractor"
            )
        self.dimensions = min(dimensions, self.length)
        scaled = self.scaled(reference)
        _, lengths, axes = np.linalg.svd(scaled - scaled.mean(axis=0), full_matrices=False)
        self.components = axes[: self.dimensions]  # (dimensions, F): directions of the largest variance
        self.share = float(np.square(lengths[: self.dimensions]).sum() / np.square(lengths).sum())
        self.width = median_distance(scaled)

    def scaled(self, features: np.ndarray) -> np.ndarray:
        """Divide features (n, F) by their scale, and leave out constant ones."""
        return features[:, self.kept] / self.scale

    def compare(
        self, features: np.ndarray, reference: np.ndarray, participants: Participants = (None, None)
    ) -> dict[str, float]:
        """Compare features (m, F) of a set with features (n, F) of real scans by FID, MMD, density and coverage."""
        a, b = self.scaled(features), self.scaled(reference)
        corrected, error = jackknife(lambda x, y: frechet_distance(x, y, self.components), a, b, participants=participants)
        mmd, mmd_error = squared_mmd(a, b, self.width, participants)
        density, coverage = density_coverage(b, a, participants=participants[::-1])
        return {
            "fid": frechet_distance(a, b, self.components),
            "fid_corrected": corrected,
            "fid_standard_error": error,
            "squared_mmd": mmd,
            "squared_mmd_standard_error": mmd_error,
            "density": density,
            "coverage": coverage,
        }

    def text(self, extractor: str) -> str:
        """Describe the features in a report; `extractor` is the name of the extractor."""
        if self.dimensions == self.length:
            return f"Features: {extractor}, all {self.length}."
        return (
            f"Features: {extractor}, {self.length}. There are too few volumes for a covariance of so many features. So FID "
            f"compares covariances only along the {self.dimensions} first principal components of the real scans "
            f"({100 * self.share:.0f} % of their variance), and means in all features."
        )
