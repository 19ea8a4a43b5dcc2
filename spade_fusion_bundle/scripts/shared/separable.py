"""Filters that work along one axis after the other, such as Gaussian windows and Sobel's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["filtered"]


def filtered(images: torch.Tensor, kernels: Sequence[torch.Tensor]) -> torch.Tensor:
    """Images (B, C, ...) through one kernel (K,) along each axis, only where all of it fits: each side K - 1 shorter.

    Sums of shifted images. On a CPU, PyTorch's convolutions of one channel take about ten times as long, separable or not.

    Args:
        images: of any number of axes.
        kernels: one for each axis of the images.
    """
    for axis, kernel in enumerate(kernels, start=2):
        size = images.shape[axis] - len(kernel) + 1
        first, *others = kernel.tolist()
        total = images.narrow(axis, 0, size) * first
        for shift, weight in enumerate(others, start=1):
            total.add_(images.narrow(axis, shift, size), alpha=weight)
        images = total
    return images
