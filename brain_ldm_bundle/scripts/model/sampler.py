"""From noise and covariates to volumes, with one seed per volume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from monai.inferers import Inferer

from ..data.covariates import NULL
from .networks import Autoencoder, DiffusionUNet
from .noise_schedule import DDIM, DDPM


def row_seed(base_seed: int, row_id: str) -> int:
    """Seed of one requested volume. It depends on these two alone, so a row gives the same volume wherever it is made."""
    return int.from_bytes(hashlib.sha256(f"{base_seed}:{row_id}".encode()).digest()[:7], "big")


@dataclass(eq=False)
class LatentSampler(Inferer):
    """Make volumes for covariates: walk the noise back through the diffusion U-Net, then decode.

    A guidance scale of 1 samples the model as it is. A higher scale strengthens the covariates by classifier-free guidance
    (Ho and Salimans 2022), for models trained with condition dropout; it costs a second U-Net call per step.
    """

    autoencoder: Autoencoder
    scheduler: DDIM | DDPM  # the recipe of the network sets its prediction type
    image_size: Sequence[int]  # voxels (D, H, W); each side a multiple of the autoencoder's factor
    guidance_scale: float = 1.0
    amp: bool = False  # run the networks in bfloat16; noise and steps stay in float32

    def __post_init__(self) -> None:
        self.latent_shape = self.autoencoder.latent_shape(self.image_size)

    @torch.inference_mode()
    def __call__(
        self,
        inputs: torch.Tensor,
        network: DiffusionUNet,
        seeds: Sequence[int],
        start: torch.Tensor | None = None,
        strength: float = 1.0,
    ) -> torch.Tensor:
        """Volumes (B, 1, D, H, W), about 0 to 1.

        Args:
            inputs: scaled covariates, (B, 1, C).
            network: diffusion model.
            seeds: seed of the noise of each row.
            start: latents (B, 3, d, h, w) of images, times the scale factor. They are noised to the step from which
                `strength` of the walk is left, and the rest of the walk is taken (SDEdit, Meng et al. 2022, Sec. 3.2).
            strength: 1, or no `start`: begin at noise. 0: decode `start` as it is.
        """
        recipe = network.recipe
        if self.guidance_scale != 1 and not recipe.get("condition_dropout"):
            raise ValueError(
                f"guidance_scale {self.guidance_scale}: this model was trained without condition dropout, it has no "
                f"unconditional branch to guide from. Use guidance_scale 1."
            )
        self.scheduler.prediction_type = recipe.get("prediction_type", "epsilon")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # on the CPU: the same noise on any device
        noise = [torch.randn((1, *self.latent_shape), generator=generator) for generator in generators]
        latent = torch.cat(noise).to(inputs.device)  # (B, 3, d, h, w)
        timesteps = self.scheduler.timesteps.tolist()
        if start is not None and strength < 1:
            timesteps = timesteps[len(timesteps) - round(strength * len(timesteps)) :]
            first = torch.tensor(timesteps[:1] * len(latent), device=latent.device)  # (B,)
            latent = self.scheduler.add_noise(start, latent, first) if timesteps else start
        for t in timesteps:
            output = self._predict(network, latent, t, inputs)
            latent, _ = self.scheduler.step(output.float(), t, latent, generator=generators)
        return self._decode(latent / network.scale_factor)

    def _predict(self, network: DiffusionUNet, latent: torch.Tensor, t: int, context: torch.Tensor) -> torch.Tensor:
        guided = self.guidance_scale != 1
        if guided:  # the unconditional half in the same batch
            latent, context = torch.cat([latent, latent]), torch.cat([context, torch.full_like(context, NULL)])
        timesteps = torch.full((len(latent),), t, device=latent.device)
        with torch.autocast(latent.device.type, dtype=torch.bfloat16, enabled=self.amp):
            output = network(latent, timesteps, context)
        if not guided:
            return output
        conditional, unconditional = output.float().chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode one volume at a time, because the decoder needs the most memory."""
        with torch.autocast(latent.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return torch.cat([self.autoencoder.decode(row).float() for row in latent.split(1)])


@dataclass(eq=False)
class Reconstructor(Inferer):
    """Encode a volume to the mean of its latent and decode it again."""

    amp: bool = False

    def __call__(self, inputs: torch.Tensor, network: Autoencoder) -> torch.Tensor:
        network = getattr(network, "module", network)  # DDP wraps forward only
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return network.reconstruct(inputs).float()
