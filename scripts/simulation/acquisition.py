"""Simulate the effects of a scanner on tissue intensities: receive-coil bias and Rician noise. Draw smooth random fields."""

import numpy as np
import torch
import torch.nn.functional as F


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


def acquire(signal: torch.Tensor, brain: torch.Tensor, spacing_mm: float, generator: torch.Generator) -> torch.Tensor:
    """Add coil bias (about 8 %) and Rician noise to `signal` (X, Y, Z), and scale the brain's brightest voxels to 1."""
    biased = signal * torch.exp(0.08 * smooth_field(generator, signal.shape, spacing_mm, 90.0)[0])
    noise_sd = 0.022 * spacing_mm**-0.75  # larger voxels have less noise
    real, imaginary = noise_sd * torch.randn((2, *signal.shape), generator=generator)
    magnitude = torch.sqrt((biased + real) ** 2 + imaginary**2)
    return (magnitude / np.quantile(magnitude[brain].numpy(), 0.998)).clamp(0, 1)
