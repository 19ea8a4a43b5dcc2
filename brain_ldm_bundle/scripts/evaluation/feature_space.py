"""The space of features in which generated sets are compared with real scans."""

from __future__ import annotations

import numpy as np

from .fid import frechet_distance
from .jackknife import Participants, jackknife
from .mmd_coverage import density_coverage, median_distance, squared_mmd


class FeatureSpace:
    """Distances of features from those of real scans.

    A covariance of F features needs more than F volumes. With fewer volumes, the Frechet distance compares covariances along
    the first principal components of the real scans only. Means and all other distances use all features: a shift in a
    direction in which real scans hardly differ must count.

    Args:
        reference: features (n, F) of real scans.
        dimensions: number of principal components, at most F.
        standardise: whether features are divided by their standard deviation over the reference. Constant features are left
            out then.
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
        scaled = self._scaled(reference)
        _, lengths, axes = np.linalg.svd(scaled - scaled.mean(axis=0), full_matrices=False)
        self.components = axes[: self.dimensions]  # (dimensions, F): directions of the largest variance
        self.share = float(np.square(lengths[: self.dimensions]).sum() / np.square(lengths).sum())
        self.width = median_distance(scaled)

    def _scaled(self, features: np.ndarray) -> np.ndarray:
        return features[:, self.kept] / self.scale

    def compare(
        self, features: np.ndarray, reference: np.ndarray, participants: Participants = (None, None)
    ) -> dict[str, float]:
        """Compute FID, MMD, density and coverage of features (m, F) of a set among those of real scans (n, F)."""
        a, b = self._scaled(features), self._scaled(reference)
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
        """Describe the space to a reader; `extractor` is the name of what made the features."""
        if self.dimensions == self.length:
            return f"Features: {extractor}, all {self.length}."
        return (
            f"Features: {extractor}, {self.length}. A covariance of so many features needs more volumes than there are. So FID "
            f"compares covariances along the {self.dimensions} first principal components of the real scans only "
            f"({100 * self.share:.0f} % of their variance), and means in all features."
        )
