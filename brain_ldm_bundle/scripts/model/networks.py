"""Networks of the brain LDM. The defaults are the sizes of the published UK Biobank model (Pinaya et al. 2022)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from monai.networks import one_hot
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet, PatchDiscriminator

from ..shared.recipe import WithRecipe
from ..shared.weights import network_of
from .covariate_conditioning import condition
from .published_names import PublishedNames


class Autoencoder(PublishedNames, WithRecipe, AutoencoderKL):
    """Compress a T1w volume (B, 1, D, H, W) in [0, 1] to a latent (B, 3, D/8, H/8, W/8), without attention layers.

    With `num_classes`, it compresses label maps instead: classes (B, 1, D, H, W) go in, and logits (B, num_classes, D, H, W)
    come out. Data and caches hold the classes as they are; only this network makes them one-hot, on its device.

    Each level after the first halves the grid, so D, H and W must be multiples of `factor`.

    `recipe`: {"seen_voxels", "seen_unknown"} of `shared.scan_identity`, and "labels", the label table of maps; the published
    weights have none.
    """

    def __init__(
        self,
        channels: Sequence[int] = (64, 128, 128, 128),
        latent_channels: int = 3,
        num_res_blocks: int = 2,
        norm_num_groups: int = 32,
        num_classes: int = 0,
    ) -> None:
        super().__init__(
            spatial_dims=3,
            in_channels=num_classes or 1,
            out_channels=num_classes or 1,
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
        self.num_classes = num_classes
        self.recipe: dict = {}

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and standard deviation (B, 3, d, h, w) of the latents of volumes (B, 1, D, H, W)."""
        dtype = self.quant_conv_mu.conv.weight.dtype
        return super().encode(one_hot(x, self.num_classes, dtype) if self.num_classes else x.to(dtype))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return volumes (B, 1, D, H, W), or logits of classes, of latents (B, 3, d, h, w)."""
        return super().decode(z.to(self.post_quant_conv.conv.weight.dtype))

    def volumes(self, decoded: torch.Tensor) -> torch.Tensor:
        """Return what was decoded as volumes (B, 1, D, H, W): intensities in float32, or the likeliest classes in uint8."""
        return decoded.argmax(dim=1, keepdim=True).to(torch.uint8) if self.num_classes else decoded.float()

    def shown(self, volumes: torch.Tensor) -> torch.Tensor:
        """Return volumes for pictures, 0 to 1."""
        return volumes / (self.num_classes - 1) if self.num_classes else volumes

    def latent_shape(self, image_size: Sequence[int]) -> tuple[int, ...]:
        """Return the shape (C, d, h, w) of the latent of a volume (D, H, W)."""
        refuse_indivisible(image_size, self.factor, "the levels of this autoencoder")
        return (self.latent_channels, *(side // self.factor for side in image_size))


class DiffusionUNet(PublishedNames, WithRecipe, DiffusionModelUNet):
    """Predict the noise in a latent from the latent and covariates, see `covariate_conditioning`.

    The state dict also holds `scale_factor` and `recipe`. `scale_factor` multiplies latents before noise is added.
    `recipe` holds the prediction type, the covariate schema, the spacing, the sizes of both networks, the hash of the
    autoencoder and the identities of the training scans. The published weights have neither: they use unscaled latents
    of scans of 1 mm and predict the noise.
    """

    implied_recipe = {"spacing_mm": 1.0}  # of weights without a recipe, for `load_weights`
    recipe_needs = ("spacing_mm", "covariates", "prediction_type")  # for `network_of`

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
            # With other values of these two arguments, the published weights load without error but give wrong images.
            include_fc=True,
            use_combined_linear=False,
        )
        self.num_covariates = num_covariates
        self.recipe: dict = {}
        self.register_buffer("scale_factor", torch.tensor(1.0))

    def forward(
        self, x: torch.Tensor, timesteps: torch.Tensor | None = None, context: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Predict the noise in latents, or v or the flow, as the training chose.

        Args:
            x: noisy latents (B, 3, d, h, w).
            timesteps: time steps (B,) from 0 (almost clean) to 999 (noise), for a flow to 1000. None means 0, because MONAI's
                check of shapes passes `x` alone.
            context: scaled covariates (B, 1, 4), about 0 to 1; -1 withholds one, None withholds all.
        """
        if timesteps is None:
            timesteps = torch.zeros(len(x), dtype=torch.long, device=x.device)
        x, context = condition(x, context, self.num_covariates)  # (B, 3 + 4, d, h, w), (B, 1, 4)
        dtype = self.conv_in.conv.weight.dtype
        return super().forward(x.to(dtype), timesteps, context.to(dtype))


class OneInputUNet(DiffusionUNet):
    """The same network with all inputs in one tensor, because MONAI's export commands support only one input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Predict the noise (or v) from latents, time step and covariates (B, 3 + 1 + 4, d, h, w), the last five as maps."""
        latents, values = x[:, : self.out_channels], x[:, self.out_channels :, 0, 0, 0]  # (B, 3, d, h, w), (B, 1 + 4)
        return super().forward(latents, values[:, 0].round().long(), values[:, None, 1:])


class Decoder(torch.nn.Module):
    """The decoder of an autoencoder, for export."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Return volumes (B, 1, D, H, W), or logits of classes, of latents (B, 3, d, h, w) over the scale factor."""
        return self.autoencoder.decode(z)


class Discriminator(PatchDiscriminator):
    """PatchGAN of stage one, with 3 strided convolutions as in the authors' later training code."""

    def __init__(self, channels: int = 96, num_layers_d: int = 3) -> None:
        super().__init__(spatial_dims=3, in_channels=1, channels=channels, num_layers_d=num_layers_d)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return only the logits of the patches of volumes (B, 1, D, H, W), not the feature maps of MONAI's network."""
        return super().forward(x)[-1]


def autoencoder_of(recipe: Mapping, path: str | Path) -> Autoencoder:
    """Make the untrained autoencoder of the weights in a file, with the sizes in the recipe of their diffusion model."""
    return network_of(Autoencoder, "autoencoder", path, **recipe.get("autoencoder", {}))


def check_sizes(image_size: Sequence[int], autoencoder_channels: Sequence[int], unet_channels: Sequence[int]) -> None:
    """Refuse an image size (D, H, W) that the levels of both networks cannot halve, before stage one takes hours."""
    levels, unet_levels = len(autoencoder_channels), len(unet_channels)
    asked_by = f"{levels} levels of the autoencoder and {unet_levels} of the U-Net"
    refuse_indivisible(image_size, 2 ** (levels - 1 + unet_levels - 1), asked_by)


def refuse_indivisible(image_size: Sequence[int], factor: int, asked_by: str) -> None:
    """Refuse an image size (D, H, W) whose sides are not all multiples of the factor that `asked_by` needs."""
    if any(side % factor for side in image_size):
        raise ValueError(
            f"image size {tuple(image_size)}: every side must be a multiple of {factor}, which {asked_by} need. "
            f"Use another spacing or fewer levels"
        )
