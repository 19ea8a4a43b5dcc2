"""Simulate the effects of a scanner on tissue intensities: receive-coil bias and Rician noise. Draw smooth random fields."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Scanner:
    """How much images differ for other reasons than anatomy. Biases are standard deviations of the logarithm of the signal."""

    contrast: float  # differences in tissue contrast between scans; 1 is that between studies
    own_bias: float  # bias of the receive coil that differs between scans
    shared_bias: float  # bias of the receive coil that is the same in all scans
    variation: float  # differences in noise and own bias, as the standard deviation of their logarithm


# Chosen. "one" is a study with one scanner and sequence, as UK Biobank or the Human Connectome Project.
PROTOCOLS = {"many": Scanner(1.0, 0.08, 0.0, 0.25), "one": Scanner(0.15, 0.02, 0.06, 0.05)}


def smooth_field(
    generator: torch.Generator | np.random.Generator, shape, spacing_mm: float, scale_mm: float, channels: int = 1
) -> torch.Tensor:
    """Draw a Gaussian random field (channels, X, Y, Z) of unit variance with details about `scale_mm` wide."""
    nodes = [max(4, int(np.ceil(size * spacing_mm / (0.75 * scale_mm))) + 3) for size in shape]
    if isinstance(generator, np.random.Generator):
        noise = torch.from_numpy(generator.standard_normal((1, channels, *nodes), dtype=np.float32))
    else:
        noise = torch.randn((1, channels, *nodes), generator=generator)
    field = F.interpolate(noise, size=tuple(shape), mode="trilinear", align_corners=True)[0]
    return field / field.std()


def acquire(
    signal: torch.Tensor, brain: torch.Tensor, spacing_mm: float, generator: torch.Generator, protocol: str = "many"
) -> torch.Tensor:
    """Add coil bias and Rician noise to `signal` (X, Y, Z) as `protocol` says, and scale the brain's brightest voxels to 1."""
    scanner, shape = PROTOCOLS[protocol], signal.shape
    noise, bias = torch.exp(scanner.variation * torch.randn(2, generator=generator)).tolist()
    field = scanner.own_bias * bias * smooth_field(generator, shape, spacing_mm, 90.0)[0]
    if scanner.shared_bias:
        field += scanner.shared_bias * smooth_field(torch.Generator().manual_seed(0), shape, spacing_mm, 90.0)[0]
    noise_sd = 0.022 * noise * spacing_mm**-0.75  # larger voxels have less noise
    real, imaginary = noise_sd * torch.randn((2, *shape), generator=generator)
    magnitude = torch.sqrt((signal * torch.exp(field) + real) ** 2 + imaginary**2)
    return (magnitude / np.quantile(magnitude[brain].numpy(), 0.998)).clamp(0, 1)
