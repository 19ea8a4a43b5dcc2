"""Structural similarity in 3-D (Wang et al. 2004): MONAI's numbers, with the Gaussian window one axis after the other.

`monai.metrics.regression.compute_ssim_and_cs` (1.6.1) convolves with all of its 1331 weights, thirty times the work on a CPU.
"""

from __future__ import annotations

import torch
from monai.metrics.regression import RegressionMetric

__all__ = ["SSIM", "WINDOW", "ssim_map"]

WINDOW, SIGMA = 11, 1.5  # voxels; Wang et al. 2004
C1, C2 = 0.01**2, 0.03**2  # for a data range of 1


def ssim_map(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """SSIM around every voxel of volumes from 0 to 1, in their shape (B, 1, D, H, W); beyond their borders 0 goes on."""
    volumes = torch.cat([prediction, target, prediction**2, target**2, prediction * target])
    windows = [_window(side).to(volumes) for side in volumes.shape[2:]]
    averages = torch.einsum("bcxyz,xi,yj,zk->bcijk", volumes, *windows)
    mu_x, mu_y, mu_xx, mu_yy, mu_xy = averages.split(len(prediction))
    variances, covariance = mu_xx - mu_x**2 + mu_yy - mu_y**2, mu_xy - mu_x * mu_y
    luminance = (2 * mu_x * mu_y + C1) / (mu_x**2 + mu_y**2 + C1)
    return luminance * (2 * covariance + C2) / (variances + C2)


def _window(side: int) -> torch.Tensor:
    """Weights (side, side) by which the voxels of a line count around each of them; nothing beyond its ends."""
    offsets = torch.arange(side)[:, None] - torch.arange(side)
    inside = torch.arange(-(WINDOW // 2), WINDOW // 2 + 1)
    gaussian, total = ((-0.5 * (distance / SIGMA) ** 2).exp() for distance in (offsets, inside))
    return gaussian * (offsets.abs() <= WINDOW // 2) / total.sum()


class SSIM(RegressionMetric):
    """Mean over the voxels around which the whole window fits, as `monai.metrics.SSIMMetric` for volumes from 0 to 1."""

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if min(y.shape[2:]) < WINDOW:
            raise ValueError(f"volumes of {tuple(y.shape[2:])} voxels are smaller than the window of {WINDOW}")
        fits = slice(WINDOW // 2, -(WINDOW // 2))
        return ssim_map(y_pred.float(), y.float())[..., fits, fits, fits].flatten(1).mean(dim=1, keepdim=True)  # (B, 1)
