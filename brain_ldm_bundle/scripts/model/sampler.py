"""From noise and covariates to volumes, one seed per volume."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from monai.inferers import Inferer

from ..data.covariates import NULL
from .networks import Autoencoder, DiffusionUNet
from .noise_schedule import DDIM, DDPM

__all__ = ["LatentSampler", "Reconstructor", "row_seed"]


def row_seed(base_seed: int, row_id: str) -> int:
    """The seed of one requested volume. It depends on nothing but these two, so a row gives one volume wherever it is made."""
    return int.from_bytes(hashlib.sha256(f"{base_seed}:{row_id}".encode()).digest()[:7], "big")


class LatentSampler(Inferer):
    """Draw volumes for covariates: walk the noise back through the diffusion U-Net, then decode.

    Args:
        autoencoder: decodes the latents.
        scheduler: from `scripts.model.noise_schedule.make_sampler`, its steps set. The prediction type comes from the recipe
            of the network.
        image_size: voxels of a volume; each side a multiple of the autoencoder's factor.
        guidance_scale: 1 samples the model as it is. Above 1, classifier-free guidance (Ho and Salimans 2022) strengthens
            the covariates, for models that were trained with condition dropout; it costs a second U-Net call per step.
        amp: run the networks in bfloat16; the noise and the steps stay in float32.

    Raises:
        ValueError: image size not divisible; guidance asked of a model trained without condition dropout.
    """

    def __init__(
        self,
        autoencoder: Autoencoder,
        scheduler: DDIM | DDPM,
        image_size: Sequence[int],
        guidance_scale: float = 1.0,
        amp: bool = False,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.scheduler = scheduler
        self.latent_shape = autoencoder.latent_shape(image_size)
        self.guidance_scale = guidance_scale
        self.amp = amp

    @torch.inference_mode()
    def __call__(
        self,
        inputs: torch.Tensor,
        network: DiffusionUNet,
        seeds: Sequence[int],
        start: torch.Tensor | None = None,
        strength: float = 1.0,
    ) -> torch.Tensor:
        """Volumes (B, 1, D, H, W), about 0 to 1, for scaled covariates (B, 1, C) and one seed per row.

        Args:
            inputs: the covariates.
            network: denoises.
            seeds: of the noise.
            start: latents (B, 3, d, h, w) of images, times the scale factor. They are noised to the step from which
                `strength` of the walk is left (SDEdit, Meng et al. 2022, Sec. 3.2), and the rest of the walk is taken.
            strength: 1, or without `start`: from noise alone. 0: no step at all, `start` is decoded as it is.
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
        return self.decode(latent / network.scale_factor)

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

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Volumes (B, 1, D, H, W) of unscaled latents; one at a time, because the decoder sets the peak of the memory."""
        with torch.autocast(latent.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return torch.cat([self.autoencoder.decode(row).float() for row in latent.split(1)])


class Reconstructor(Inferer):
    """Encode a volume to the mean of its latent and decode it again: what the autoencoder alone keeps of an image."""

    def __init__(self, amp: bool = False) -> None:
        super().__init__()
        self.amp = amp

    def __call__(self, inputs: torch.Tensor, network: Autoencoder) -> torch.Tensor:
        network = getattr(network, "module", network)  # DDP wraps forward only
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return network.reconstruct(inputs).float()
