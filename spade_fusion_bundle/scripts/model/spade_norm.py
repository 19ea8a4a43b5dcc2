"""SPADE normalisation: the label map determines scale and shift of the features at each pixel (Park et al. 2019, Sec. 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations


class SpectralNorm(parametrizations._SpectralNorm):
    """Spectral norm in float32, whatever autocast says: in bfloat16, PyTorch's fails on GPUs and is inexact."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        with torch.autocast(weight.device.type, enabled=False):
            return super().forward(weight)


def conv2d(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, bias: bool = True,
    spectral: bool = False,
) -> nn.Conv2d:  # fmt: skip
    """Make a convolution with the initial values of Park et al. 2019: normal weights (Xavier, gain 0.02) and zero biases."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
    nn.init.xavier_normal_(conv.weight, gain=0.02)  # before spectral norm replaces the weight
    if bias:
        nn.init.zeros_(conv.bias)
    if spectral:
        parametrizations.spectral_norm(conv, eps=1e-12)
        conv.parametrizations.weight[0].__class__ = SpectralNorm
    return conv


class SpadeNorm(nn.Module):
    """Apply batch norm without learnt parameters, then scale and shift computed from the labels (Park et al. 2019, Eq. 1)."""

    def __init__(self, channels: int, num_labels: int, hidden: int) -> None:
        super().__init__()
        self.base_norm = nn.BatchNorm2d(channels, affine=False)
        self.embed = conv2d(num_labels, hidden, 3, padding=1)
        self.to_scale = conv2d(hidden, channels, 3, padding=1)
        self.to_shift = conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Normalise features (N, C, h, w) by one-hot labels (N, L, h, w)."""
        embedded = F.relu(self.embed(labels))  # (N, hidden, h, w)
        # The last layers start near zero, so with 1 + scale training starts from a plain normalisation.
        return self.base_norm(x) * (1 + self.to_scale(embedded)) + self.to_shift(embedded)
