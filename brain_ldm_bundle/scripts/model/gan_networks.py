"""Networks of the two baselines, LSGAN and VAE-GAN. They are three-dimensional and have no covariates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks import nets
from monai.networks.blocks import ResidualUnit, UpSample
from torch.nn.utils.parametrizations import spectral_norm

from ..shared.recipe import WithRecipe
from .networks import refuse_indivisible


class VolumeGenerator(WithRecipe, nets.Generator):
    """Generate a volume from a vector: a linear layer to the coarsest grid, then upsampling and a residual unit per level.

    The last upsampling is a sub-pixel convolution (Aitken et al. 2017), so that no layer convolves on the finest grid.

    `recipe`: {"model", "spacing_mm", "generator": the arguments below, "seen_voxels"}.

    Args:
        image_size: voxels (D, H, W) of a volume; each side must be a multiple of 2 ** len(channels).
        latent_size: length of the vector.
        channels: channels of each level from the coarsest to the second finest; each level doubles the grid.
        norm_num_groups: number of groups of the group normalisation, which must divide all channels.
    """

    def __init__(self, image_size: Sequence[int], latent_size: int, channels: Sequence[int], norm_num_groups: int) -> None:
        factor = 2 ** len(channels)
        refuse_indivisible(image_size, factor, f"the {len(channels)} levels of the generator (generator_channels)")
        self.latent_size = latent_size
        super().__init__(
            latent_shape=(latent_size,),
            start_shape=(channels[0], *(side // factor for side in image_size)),
            channels=[*channels[1:], 1],
            strides=[2] * len(channels),
            norm=("GROUP", {"num_groups": norm_num_groups}),
        )
        self.recipe: dict = {}

    def _get_layer(self, in_channels: int, out_channels: int, strides: int, is_last: bool) -> torch.nn.Module:
        # No transposed convolutions, because they cause checkerboard artefacts.
        if is_last:
            return UpSample(3, in_channels, out_channels, strides, mode="pixelshuffle")
        return torch.nn.Sequential(
            UpSample(3, in_channels, out_channels, strides, mode="nontrainable", align_corners=False),
            ResidualUnit(3, out_channels, out_channels, act=self.act, norm=self.norm),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Generate volumes (B, 1, D, H, W) in [0, 1] from vectors (B, latent_size) of a standard normal distribution."""
        return super().forward(x).sigmoid()


class VolumeDiscriminator(nets.Regressor):
    """Judge a whole volume by strided convolutions with spectral normalisation; each halves the grid."""

    def __init__(self, image_size: Sequence[int], channels: Sequence[int]) -> None:
        super().__init__(
            in_shape=(1, *image_size),
            out_shape=(1,),
            channels=channels,
            strides=[2] * len(channels),
            num_res_units=0,
            act=("LEAKYRELU", {"negative_slope": 0.2}),
            norm=None,
        )
        for module in self.modules():
            if isinstance(module, (torch.nn.Conv3d, torch.nn.Linear)):
                spectral_norm(module)

    def hidden(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """Return the features after the first `level` convolutions, (B, channels, D / 2**level, H / 2**level, W / 2**level)."""
        return self.net[:level](x)

    def judge(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Return the logits (B, 1) of volumes from their `hidden` features."""
        return self.final(self.net[level:](hidden))


class VolumeEncoder(nets.Regressor):
    """Estimate mean and standard deviation (B, latent_size) of the vector behind each volume (B, 1, D, H, W)."""

    def __init__(self, image_size: Sequence[int], latent_size: int, channels: Sequence[int], norm_num_groups: int) -> None:
        super().__init__(
            in_shape=(1, *image_size),
            out_shape=(2, latent_size),
            channels=channels,
            strides=[2] * len(channels),
            norm=("GROUP", {"num_groups": norm_num_groups}),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mu, log_variance = super().forward(x).float().unbind(dim=1)
        # tanh bounds the log-variance to +-4. Unbounded, it diverged early in training; a clamp would have no gradient.
        return mu, torch.exp(2 * torch.tanh(log_variance / 4))


class LSGAN(torch.nn.Module):
    """The networks of a least-squares GAN (Mao et al. 2017)."""

    def __init__(
        self,
        image_size: Sequence[int],
        latent_size: int,
        generator_channels: Sequence[int],
        discriminator_channels: Sequence[int],
        norm_num_groups: int,
    ) -> None:
        super().__init__()
        self.generator = VolumeGenerator(image_size, latent_size, generator_channels, norm_num_groups)
        self.discriminator = VolumeDiscriminator(image_size, discriminator_channels)


class VAEGAN(LSGAN):
    """The networks of a VAE-GAN (Larsen et al. 2016): a GAN and an encoder with the discriminator's channels."""

    def __init__(self, **sizes) -> None:
        super().__init__(**sizes)
        size, vector, channels = (sizes[key] for key in ("image_size", "latent_size", "discriminator_channels"))
        self.encoder = VolumeEncoder(size, vector, channels, sizes["norm_num_groups"])
