"""Generate volumes from noise and covariates, with one seed per volume."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from monai.inferers import Inferer

from ..data.covariates import NULL
from ..shared.acquisition import add, draw
from .dpm_solver import DPMSolver
from .networks import Autoencoder, DiffusionUNet
from .noise_schedule import DDIM, DDPM, Flow, Reversible

# Of the fixed-point iteration of an inversion. With the 4 mm weights and 25 steps, the way back to the latents misses them by
# 4 % of their standard deviation after 1 round, 0.3 % after 3, and 0.03 % after 6.
ROUNDS = 3


def row_seed(base_seed: int, row_id: str) -> int:
    """Return the seed of a requested volume. It depends on nothing else, so any process makes the same volume for a row."""
    return int.from_bytes(hashlib.sha256(f"{base_seed}:{row_id}".encode()).digest()[:7], "big")


@dataclass(eq=False)
class LatentSampler(Inferer):
    """Generate volumes for covariates: denoise random latents with the diffusion U-Net, then decode them.

    A guidance scale of 1 means no guidance. A higher scale strengthens the effect of the covariates by classifier-free guidance
    (Ho and Salimans 2022). It requires a model trained with condition dropout and doubles the cost of each step.
    """

    autoencoder: Autoencoder
    scheduler: DDIM | DDPM | DPMSolver | Flow  # from `make_sampler`, for the prediction type of the network
    image_size: Sequence[int]  # voxels (D, H, W); each side a multiple of the autoencoder's factor
    guidance_scale: float = 1.0
    acquisition: Mapping | None = None  # noise and bias field to add, as `acquisition.measure` returned them; None adds none
    amp: bool = False  # run the networks in bfloat16; noise and steps stay in float32
    # Makes a label map of the logits (C, D, H, W) and the requested values of a row, see `generation.exact_maps`. The result is
    # then a list of what it returns. None: volumes of scans, or the likeliest classes.
    maps: Callable[[torch.Tensor, Mapping], Any] | None = None

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
        requested: Sequence[Mapping] = (),
        source: torch.Tensor | None = None,
    ) -> torch.Tensor | list:
        """Generate volumes (B, 1, D, H, W), about 0 to 1, or classes of label maps.

        Args:
            inputs: scaled covariates (B, 1, C).
            network: diffusion model.
            seeds: seed of each row, for its first noise and for its acquisition.
            start: latents (B, 3, d, h, w) of images, times the scale factor. Noise is added to them up to the share
                `strength` of the time, and removed (SDEdit, Meng et al. 2022, Sec. 3.2). None starts from noise.
            strength: 1 starts from noise; 0 decodes `start` unchanged.
            requested: physical values of each row, for `maps`.
            source: scaled covariates (B, 1, C) of the images in `start`. With them no noise is added; instead the steps of the
                sampler are walked backwards from `start` (see `Reversible`), with the same guidance.

        Raises:
            ValueError: the network was trained without condition dropout but shall be guided, or has another prediction type
                than the scheduler.
        """
        recipe = network.recipe
        if self.guidance_scale != 1 and not recipe.get("condition_dropout"):
            raise ValueError(
                f"guidance_scale {self.guidance_scale}: this model was trained without condition dropout, so it has no "
                f"unconditional prediction to guide from. Use guidance_scale 1."
            )
        predicts = recipe.get("prediction_type", "epsilon")
        if predicts != self.scheduler.prediction_type:
            raise ValueError(f"the sampler is for {self.scheduler.prediction_type}, but the network predicts {predicts}")
        if source is not None and not isinstance(self.scheduler, Reversible):
            raise ValueError(f"the steps of {type(self.scheduler).__name__} cannot be walked backwards. Use the sampler ddim")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]  # on the CPU: the same noise on any device
        noise = [torch.randn((1, *self.latent_shape), generator=generator) for generator in generators]
        latent = torch.cat(noise).to(inputs.device)  # (B, 3, d, h, w)
        scheduler = self.scheduler.starting_at(1.0 if start is None else strength)
        timesteps = scheduler.timesteps.tolist()
        if start is not None and source is not None:
            latent = self._invert(network, scheduler, start, source)
        elif start is not None and strength < 1:
            first = torch.tensor(timesteps[:1] * len(latent), device=latent.device)  # (B,)
            latent = scheduler.add_noise(start, latent, first) if timesteps else start
        for t in timesteps:
            output = self._predict(network, latent, t, inputs)
            latent, _ = scheduler.step(output, t, latent, generator=generators)
        latent = latent / network.scale_factor
        if self.maps is not None:
            return [self.maps(self._decode(row)[0], own) for row, own in zip(latent.split(1), requested, strict=True)]
        # One volume at a time, because the decoder needs the most memory.
        volumes = torch.cat([self.autoencoder.volumes(self._decode(row)) for row in latent.split(1)])  # (B, 1, D, H, W)
        if self.acquisition is not None:
            for volume, seed in zip(volumes[:, 0], seeds, strict=True):
                volume.copy_(add(volume, draw(self.acquisition, seed)))
        return volumes

    def _invert(self, network: DiffusionUNet, scheduler: Reversible, start: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        latent = start.float()
        for t in reversed(scheduler.timesteps.tolist()):
            predict = partial(self._predict, network, t=t, context=source)
            latent = scheduler.reverse_step(predict, t, latent, ROUNDS)
        return latent

    def _predict(self, network: DiffusionUNet, latent: torch.Tensor, t: int, context: torch.Tensor) -> torch.Tensor:
        guided = self.guidance_scale != 1
        if guided:  # the unconditional half in the same batch
            latent, context = torch.cat([latent, latent]), torch.cat([context, torch.full_like(context, NULL)])
        timesteps = torch.full((len(latent),), t, device=latent.device)
        with self.autocast(network):
            output = network(latent, timesteps, context)
        if not guided:
            return output.float()
        conditional, unconditional = output.float().chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)

    def _decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Decode in float32 for `maps`, because in bfloat16 many voxels would have equal differences of logits."""
        with self.autocast(self.autoencoder, self.maps is None):
            return self.autoencoder.decode(latent).float()

    def autocast(self, network: torch.nn.Module, wanted: bool = True) -> torch.autocast:
        """Return the context that runs a network in bfloat16, which does nothing if its weights have this type already."""
        weight, wanted = next(network.parameters()), wanted and self.amp
        return torch.autocast(weight.device.type, dtype=torch.bfloat16, enabled=wanted and weight.dtype == torch.float32)


@dataclass(eq=False)
class Reconstructor(Inferer):
    """Reconstruct volumes from the means of their latents."""

    amp: bool = False

    def __call__(self, inputs: torch.Tensor, network: Autoencoder) -> torch.Tensor:
        network = getattr(network, "module", network)  # DDP wraps forward only
        with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=self.amp):
            return network.volumes(network.reconstruct(inputs))
