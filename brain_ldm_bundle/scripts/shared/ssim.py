"""MONAI's SSIM and MS-SSIM with the Gaussian window applied along one axis after the other.

MONAI convolves with the whole window: 343 multiplications per voxel for one of 7 voxels, where 21 are enough. The numbers are
the same to rounding.
"""

from __future__ import annotations

import torch
from monai.metrics import MultiScaleSSIMMetric, SSIMMetric
from torch.nn.functional import avg_pool3d
from torch.signal.windows import gaussian

from .separable import filtered

__all__ = ["MultiScaleSSIM", "SSIM"]


class SSIM(SSIMMetric):
    """MONAI's SSIM of volumes (B, 1, D, H, W) with a Gaussian window; arguments as there."""

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return _ssim_and_contrast(self, y_pred, y)[0]


class MultiScaleSSIM(MultiScaleSSIMMetric):
    """MONAI's MS-SSIM of volumes (B, 1, D, H, W) with a Gaussian window; arguments as there."""

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        factors = []
        for weight in self.weights:
            ssim, contrast = _ssim_and_contrast(self, y_pred, y)
            factors.append(contrast.relu() ** weight)
            y_pred, y = avg_pool3d(y_pred, 2), avg_pool3d(y, 2)
        factors[-1] = ssim.relu() ** self.weights[-1]
        return torch.stack(factors).prod(dim=0)


def _ssim_and_contrast(
    metric: SSIMMetric | MultiScaleSSIMMetric, a: torch.Tensor, b: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean SSIM of volumes (B, 1, D, H, W), and the mean of its part without luminance: (B, 1) each."""
    if metric.kernel_type != "gaussian" or a.ndim != 5 or a.shape[1] != 1:
        raise ValueError(f"volumes (B, 1, D, H, W) and a Gaussian window are needed, got {a.shape}, {metric.kernel_type}")
    if any(side < kernel for side, kernel in zip(a.shape[2:], metric.kernel_size, strict=True)):
        raise ValueError(f"volumes of {tuple(a.shape[2:])} voxels are smaller than the window of {tuple(metric.kernel_size)}")
    windows = [gaussian(size, std=sigma) for size, sigma in zip(metric.kernel_size, metric.kernel_sigma, strict=True)]
    a, b = a.float(), b.float()
    means = filtered(torch.cat([a, b, a * a, b * b, a * b]), [window / window.sum() for window in windows])
    mean_a, mean_b, square_a, square_b, product = means.chunk(5)
    luminance, contrast = ((k * metric.data_range) ** 2 for k in (metric.k1, metric.k2))  # stabilising constants
    variances, covariance = square_a - mean_a**2 + square_b - mean_b**2, product - mean_a * mean_b
    contrasts = (2 * covariance + contrast) / (variances + contrast)
    ssim = (2 * mean_a * mean_b + luminance) / (mean_a**2 + mean_b**2 + luminance) * contrasts
    return ssim.flatten(1).mean(dim=1, keepdim=True), contrasts.flatten(1).mean(dim=1, keepdim=True)
