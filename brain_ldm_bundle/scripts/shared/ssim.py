"""SSIM (Wang et al. 2004) as in MONAI, but with the Gaussian window applied axis by axis.

MONAI 1.6.1 convolves with the whole window. A window of 11 voxels takes 1331 multiplications per voxel there, and 33 here.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.metrics import MultiScaleSSIMMetric, SSIMMetric
from torch.signal.windows import gaussian

WINDOW = 11  # voxels; as in MONAI and Wang et al. 2004


def filtered(images: torch.Tensor, kernels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Filter images along each axis without padding; each side becomes len(kernel) - 1 voxels shorter.

    The function adds shifted images. On a CPU, PyTorch's convolutions of one channel take about ten times as long.

    Images (B, C, ...) have any number of spatial axes, and there is a kernel (K,) for each of them.
    """
    for axis, kernel in enumerate(kernels, start=2):
        size = images.shape[axis] - len(kernel) + 1
        first, *others = kernel.tolist()
        total = images.narrow(axis, 0, size) * first
        for shift, weight in enumerate(others, start=1):
            total.add_(images.narrow(axis, shift, size), alpha=weight)
        images = total
    return images


class SSIM(SSIMMetric):
    """Compute SSIM of volumes (B, 1, D, H, W) with a Gaussian window. It takes the arguments of MONAI's metric."""

    def _compute_metric(self, y_pred: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return mean_of_each(ssim_maps(self, y_pred, y)[0])


def mean_of_each(values: torch.Tensor) -> torch.Tensor:
    return values.flatten(1).mean(dim=1, keepdim=True)  # (B, 1)


def ssim_maps(metric: SSIMMetric | MultiScaleSSIMMetric, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute SSIM around each voxel of volumes (B, 1, D, H, W) where the window fits, with and without luminance."""
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
    return (2 * mean_a * mean_b + luminance) / (mean_a**2 + mean_b**2 + luminance) * contrasts, contrasts
