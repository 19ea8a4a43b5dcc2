"""The networks: of the brain LDM, with the sizes of the published UK Biobank model (Pinaya et al. 2022), and beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from monai.networks import nets
from monai.networks.blocks import ResidualUnit, UpSample
from monai.networks.layers.factories import Act
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet, PatchDiscriminator
from torch.nn.utils.parametrizations import spectral_norm

from ..data.covariates import NULL
from ..shared.weights import WithRecipe
from .published_names import PublishedNames

__all__ = [
    "Autoencoder",
    "DiffusionUNet",
    "Discriminator",
    "LSGAN",
    "OneInputUNet",
    "Regressor",
    "VAEGAN",
    "VolumeDiscriminator",
    "VolumeEncoder",
    "VolumeGenerator",
    "check_sizes",
]


class Autoencoder(PublishedNames, WithRecipe, AutoencoderKL):
    """Compress a T1w volume (B, 1, D, H, W) in [0, 1] to a latent (B, 3, D/8, H/8, W/8), without attention layers.

    Every level after the first halves the grid, so D, H and W must be multiples of `self.factor`.

    `recipe`: {"seen_voxels", "seen_unknown"} of `shared.identities`; the published weights have none.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 128, 128),
        latent_channels: int = 3,
        num_res_blocks: int = 2,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__(
            spatial_dims=3,
            in_channels=1,
            out_channels=1,
            channels=channels,
            latent_channels=latent_channels,
            num_res_blocks=num_res_blocks,
            norm_num_groups=norm_num_groups,
            norm_eps=1e-6,
            attention_levels=[False] * len(channels),
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )
        self.factor = 2 ** (len(channels) - 1)
        self.recipe: dict = {}
        self.finest_channels = channels[0]

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latents (B, 3, D/8, H/8, W/8) of volumes (B, 1, D, H, W)."""
        mu, sigma = super().encode(self._in_company(x, x.shape[2:]))
        return mu[: len(x)], sigma[: len(x)]

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Volumes (B, 1, D, H, W) of latents (B, 3, D/8, H/8, W/8)."""
        return super().decode(self._in_company(z, [side * self.factor for side in z.shape[2:]]))[: len(z)]

    def _in_company(self, x: torch.Tensor, image_size: Sequence[int]) -> torch.Tensor:
        """Of a single small volume a batch of two, which takes a CPU a quarter of the time: PyTorch leaves the convolution of
        one image to oneDNN only if channels x D x H exceed 20480 (`use_mkldnn` in ATen/native/Convolution.cpp)."""
        small = self.finest_channels * image_size[0] * image_size[1] <= 20480
        alone = len(x) == 1 and x.device.type == "cpu" and not torch.jit.is_tracing()  # a trace must take any number
        return torch.cat([x, x]) if small and alone else x

    def latent_shape(self, image_size: Sequence[int]) -> tuple[int, ...]:
        """Channels and grid of the latent of an image of `image_size` voxels.

        Raises:
            ValueError: when a side is no multiple of `self.factor`.
        """
        if any(side % self.factor for side in image_size):
            raise ValueError(
                f"image size {tuple(image_size)}: every side must be a multiple of {self.factor}, the factor by which "
                f"this autoencoder compresses. Crop or pad the images, or choose another spacing or fewer levels."
            )
        return (self.latent_channels, *(side // self.factor for side in image_size))


class DiffusionUNet(PublishedNames, WithRecipe, DiffusionModelUNet):
    """Denoise a latent given covariates, by hybrid conditioning (Pinaya et al. 2022, Sec. 2.2).

    The covariates enter twice: as constant maps beside the latent and as the one token of the cross-attention.

    What a model needs beyond its weights travels in its state dict: `scale_factor`, by which latents are multiplied
    before they are noised, and `recipe`, a JSON-able dict (prediction type, covariate schema, spacing, the
    autoencoder's hash, the identities of the training scans). The published weights have neither: they use unscaled
    latents and predict the noise.
    """

    def __init__(
        self,
        latent_channels: int = 3,
        num_covariates: int = 4,
        channels: Sequence[int] = (256, 512, 768),
        num_head_channels: Sequence[int] = (0, 512, 768),
        num_res_blocks: int = 2,
        norm_num_groups: int = 32,
    ) -> None:
        super().__init__(
            spatial_dims=3,
            in_channels=latent_channels + num_covariates,
            out_channels=latent_channels,
            channels=channels,
            num_res_blocks=num_res_blocks,
            attention_levels=[heads > 0 for heads in num_head_channels],
            num_head_channels=num_head_channels,
            norm_num_groups=norm_num_groups,
            norm_eps=1e-6,
            resblock_updown=True,
            with_conditioning=True,
            transformer_num_layers=1,
            cross_attention_dim=num_covariates,
            upcast_attention=True,
            # With any other value of these two the published weights load without an error and give wrong images.
            include_fc=True,
            use_combined_linear=False,
        )
        self.num_covariates = num_covariates
        self.recipe: dict = {}
        self.register_buffer("scale_factor", torch.tensor(1.0))

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor | None = None, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict the noise (or v) in latents.

        Args:
            x: noisy latents, (B, 3, d, h, w).
            timesteps: (B,), 0 (almost clean) to 999 (noise). MONAI's check of a network's shapes gives it `x` alone; then 0.
            context: scaled covariates, (B, 1, 4), each in about 0 to 1, -1 where withheld; without it, all are withheld.
        """
        if timesteps is None:
            timesteps = torch.zeros(len(x), dtype=torch.long, device=x.device)
        if context is None:
            context = torch.full((len(x), 1, self.num_covariates), NULL, device=x.device)
        maps = context[:, 0, :, None, None, None].expand(-1, -1, *x.shape[2:])  # (B, 4, d, h, w)
        x = torch.cat([x, maps], dim=1)  # (B, 3 + 4, d, h, w)
        return super().forward(x, timesteps, context)


class OneInputUNet(DiffusionUNet):
    """The same network, the same weights, with all inputs in one tensor: MONAI's export commands know only such networks."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predict the noise (or v) from (B, 3 + 1 + 4, d, h, w): latents, then time step and covariates as constant maps."""
        latents, values = x[:, : self.out_channels], x[:, self.out_channels :, 0, 0, 0]  # (B, 3, d, h, w), (B, 1 + 4)
        return super().forward(latents, values[:, 0].round().long(), values[:, None, 1:])


class Discriminator(PatchDiscriminator):
    """PatchGAN of stage one: 3 layers of strided convolutions, as in the authors' later training code."""

    def __init__(self, channels: int = 96, num_layers_d: int = 3) -> None:
        super().__init__(spatial_dims=3, in_channels=1, channels=channels, num_layers_d=num_layers_d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of the patches of a volume (B, 1, D, H, W); MONAI returns the feature maps of every layer too."""
        return super().forward(x)[-1]


class Regressor(WithRecipe, nets.Regressor):
    """Read covariates from a volume: five levels of residual convolutions, one layer of features, one number per covariate.

    After the age predictor of Cole et al. 2017 (NeuroImage 163:115), which Pinaya et al. 2022 used: blocks of two 3x3x3
    convolutions, each of half the grid before it, then a fully connected layer. Ours has residual, strided blocks, group
    instead of batch normalisation (an answer does not depend on who else is in the batch), and `num_features` features
    before the answer.

    `recipe`: {"covariates": schema, "spacing_mm", "regressor": the arguments below, "seen_voxels", "seen_unknown"}.

    Args:
        image_size: voxels of a volume.
        num_outputs: covariates.
        channels: of the levels; each halves the grid, rounding up.
        num_features: length of the penultimate layer.
        norm_num_groups: of the normalisation; divides all channels.
    """

    def __init__(
        self,
        image_size: Sequence[int],
        num_outputs: int,
        channels: Sequence[int] = (16, 32, 64, 128, 128),
        num_features: int = 64,
        norm_num_groups: int = 8,
    ) -> None:
        self.num_features = num_features
        super().__init__(
            in_shape=(1, *image_size),
            out_shape=(num_outputs,),
            channels=channels,
            strides=[2] * len(channels),
            norm=("GROUP", {"num_groups": norm_num_groups}),
        )
        self.recipe: dict = {}

    def _get_final_layer(self, in_shape: Sequence[int]) -> torch.nn.Sequential:
        activation = Act[self.act]
        return torch.nn.Sequential(
            activation(),
            torch.nn.Flatten(),
            torch.nn.Linear(math.prod(map(int, in_shape)), self.num_features),
            activation(),
            torch.nn.Linear(self.num_features, *self.out_shape),
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """What the answers are a linear function of, (B, num_features), for volumes (B, 1, D, H, W) in [0, 1]."""
        return self.final[:-1](self.net(x))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled covariates (B, C), in the schema's order, of volumes (B, 1, D, H, W) in [0, 1]."""
        return self.final[-1](self.features(x))


class VolumeGenerator(WithRecipe, nets.Generator):
    """A whole volume from one vector: a linear layer to the coarsest grid, then upsampling and a residual unit per level.

    The last upsampling is a sub-pixel one (Aitken et al. 2017), so that nothing is convolved on the finest grid.

    `recipe`: {"model", "spacing_mm", "generator": the arguments below, "seen_voxels"}.

    Args:
        image_size: voxels of a volume; each side a multiple of 2 ** len(channels).
        latent_size: length of the vector.
        channels: of the grids from the coarsest to the last but one, each twice as fine.
        norm_num_groups: of the normalisation; divides all channels.

    Raises:
        ValueError: a side that the levels cannot halve.
    """

    def __init__(
        self,
        image_size: Sequence[int],
        latent_size: int = 512,
        channels: Sequence[int] = (512, 256, 128, 64, 32),
        norm_num_groups: int = 8,
    ) -> None:
        factor = 2 ** len(channels)
        if any(side % factor for side in image_size):
            raise ValueError(
                f"image size {tuple(image_size)}: every side must be a multiple of {factor}, which the {len(channels)} levels "
                f"of the generator ask for. Use another spacing or fewer generator_channels"
            )
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
        # No transposed convolutions: they leave a chequered pattern.
        if is_last:
            return UpSample(3, in_channels, out_channels, strides, mode="pixelshuffle")
        return torch.nn.Sequential(
            UpSample(3, in_channels, out_channels, strides, mode="nontrainable", align_corners=False),
            ResidualUnit(3, out_channels, out_channels, act=self.act, norm=self.norm),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Volumes (B, 1, D, H, W) in [0, 1] of vectors (B, latent_size) from a standard normal distribution."""
        return super().forward(x).sigmoid()


class VolumeDiscriminator(nets.Regressor):
    """Judge a whole volume by strided convolutions with spectral normalisation, each of half the grid before it."""

    def __init__(self, image_size: Sequence[int], channels: Sequence[int] = (16, 32, 64, 128, 256)) -> None:
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
        """What the first `level` convolutions make of volumes: (B, channels, a grid 2**level times as coarse)."""
        return self.net[:level](x)

    def judge(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Logits (B, 1) of what `hidden` gave for volumes."""
        return self.final(self.net[level:](hidden))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, 1) of volumes (B, 1, D, H, W): high where a volume looks real."""
        return super().forward(x)


class VolumeEncoder(nets.Regressor):
    """Mean and standard deviation (B, latent_size) of the vector that a volume (B, 1, D, H, W) may have come from."""

    def __init__(
        self,
        image_size: Sequence[int],
        latent_size: int = 512,
        channels: Sequence[int] = (16, 32, 64, 128, 256),
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__(
            in_shape=(1, *image_size),
            out_shape=(2, latent_size),
            channels=channels,
            strides=[2] * len(channels),
            norm=("GROUP", {"num_groups": norm_num_groups}),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mu, log_variance = super().forward(x).float().unbind(dim=1)
        # Bound to +-4, smoothly: it ran away where the generator made nothing of the vector yet. A clamp gives no way back.
        return mu, torch.exp(2 * torch.tanh(log_variance / 4))


class LSGAN(torch.nn.Module):
    """The networks of a least-squares GAN (Mao et al. 2017), in three dimensions and without condition."""

    def __init__(
        self,
        image_size: Sequence[int],
        latent_size: int = 512,
        generator_channels: Sequence[int] = (512, 256, 128, 64, 32),
        discriminator_channels: Sequence[int] = (16, 32, 64, 128, 256),
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__()
        self.generator = VolumeGenerator(image_size, latent_size, generator_channels, norm_num_groups)
        self.discriminator = VolumeDiscriminator(image_size, discriminator_channels)


class VAEGAN(LSGAN):
    """The networks of a VAE-GAN (Larsen et al. 2016): those of a GAN, and an encoder of the discriminator's channels."""

    def __init__(
        self,
        image_size: Sequence[int],
        latent_size: int = 512,
        generator_channels: Sequence[int] = (512, 256, 128, 64, 32),
        discriminator_channels: Sequence[int] = (16, 32, 64, 128, 256),
        norm_num_groups: int = 8,
    ) -> None:
        super().__init__(image_size, latent_size, generator_channels, discriminator_channels, norm_num_groups)
        self.encoder = VolumeEncoder(image_size, latent_size, discriminator_channels, norm_num_groups)


def check_sizes(image_size: Sequence[int], autoencoder_channels: Sequence[int], unet_channels: Sequence[int]) -> None:
    """Refuse an image size that the levels of the two networks cannot halve, before hours go into the first of them.

    Raises:
        ValueError: a side that is no multiple of the factor.
    """
    factor = 2 ** (len(autoencoder_channels) - 1 + len(unet_channels) - 1)
    if any(side % factor for side in image_size):
        raise ValueError(
            f"image size {tuple(image_size)}: every side must be a multiple of {factor}, which {len(autoencoder_channels)} "
            f"levels of the autoencoder and {len(unet_channels)} of the U-Net ask for. Use another spacing or fewer levels"
        )
