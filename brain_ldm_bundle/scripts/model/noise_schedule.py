"""How noise is added to latents, for the three prediction types, and the samplers DDPM, DDIM and Euler.

The prediction types are "epsilon" (the noise), "v_prediction" (Salimans and Ho 2022) and "flow" (rectified flow, Liu et al.
2022).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler, RFlowScheduler

# Pinaya et al. 2022 state 1000 steps and a fixed variance schedule (Sec. 2.2). The values are from the published config.
NOISE_SCHEDULE = {"num_train_timesteps": 1000, "schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0205}


PREDICTION_TYPES = ("epsilon", "v_prediction", "flow")


class FromStrength:
    """A sampler that can begin at a share of its time steps, to edit an image."""

    def starting_at(self, strength: float):
        """Return a copy with the last `strength` (0 to 1) of the time steps. At 0 it has none, and above at least one."""
        run = copy.copy(self)
        steps = max(round(strength * len(self.timesteps)), strength > 0)
        run.timesteps = self.timesteps[len(self.timesteps) - steps :]
        return run


class Reversible(FromStrength):
    """A sampler whose steps depend on the latent and the prediction alone, so that they can be walked backwards."""

    def reverse_step(
        self, predict: Callable[[torch.Tensor], torch.Tensor], timestep: int, later: torch.Tensor, rounds: int
    ) -> torch.Tensor:
        """Return the latents from which `step` at this time step leads to the latents `later`.

        The step uses the prediction for the latents that are searched. So the equation is solved by fixed-point iteration
        (Pan et al. 2023, AIDI). The first of its `rounds` takes the prediction for `later`, and alone is DDIM inversion
        (Song et al. 2021). `predict` returns the output of the network for latents at this time step.
        """
        # A step is linear in the latent and in the prediction, whatever the network predicts.
        kept, _ = self.step(torch.zeros_like(later), timestep, torch.ones_like(later))
        sample = later
        for _ in range(rounds):
            moved, _ = self.step(predict(sample), timestep, torch.zeros_like(later))
            sample = (later - moved) / kept
        return sample


class DDPM(FromStrength, DDPMScheduler):
    """Add noise at any of 1000 time steps for training, or sample through all of them."""

    first_time = 0  # the first time step of the training

    def __init__(self, prediction_type: str = "epsilon") -> None:
        super().__init__(**NOISE_SCHEDULE, clip_sample=False, prediction_type=prediction_type)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        # DDPMScheduler.step always steps from t to t - 1, so fewer steps would silently give wrong images.
        if num_inference_steps != self.num_train_timesteps:
            raise ValueError(
                f"DDPM takes all {self.num_train_timesteps} steps, got {num_inference_steps}. "
                f"For fewer steps use the ddim sampler."
            )
        super().set_timesteps(num_inference_steps, device)

    def target(self, latent: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return what the network should predict, the noise or v, in the shape of the latents (B, 3, d, h, w)."""
        return self.get_velocity(latent, noise, timesteps) if self.prediction_type == "v_prediction" else noise

    def step(self, model_output, timestep, sample, generator=None):
        """Take a step as DDPMScheduler.step does, but accept a list of CPU generators, one for each row of the batch.

        Each row then has its own noise, so a volume depends neither on the other rows nor on the device.
        """
        if not isinstance(generator, list):
            return super().step(model_output, timestep, sample, generator)
        rows = zip(model_output.float().cpu().split(1), sample.float().cpu().split(1), generator)
        steps = [super(DDPM, self).step(output, timestep, row, own) for output, row, own in rows]
        return tuple(torch.cat(part).to(sample.device) for part in zip(*steps))


class DDIM(Reversible, DDIMScheduler):
    """Sample by DDIM at the time steps of the published model: 50 steps are 980, 960, ..., 20, 0.

    MONAI 1.6 spaces the time steps evenly from 999 to 0 but still steps by 1000 // n, so that a step does not end where the
    next one begins. Its images differ from the published sampler's, most of all with few steps.
    """

    def __init__(self, prediction_type: str = "epsilon") -> None:
        super().__init__(**NOISE_SCHEDULE, clip_sample=False, prediction_type=prediction_type)

    def set_timesteps(self, num_inference_steps: int, device: torch.device | str | None = None) -> None:
        super().set_timesteps(num_inference_steps, device)
        stride = self.num_train_timesteps // num_inference_steps
        if stride * num_inference_steps < 0.9 * self.num_train_timesteps:
            raise ValueError(
                f"{num_inference_steps} steps of {stride} reach only {stride * num_inference_steps} of the chain's "
                f"{self.num_train_timesteps}, too few to begin at noise. Use {self.num_train_timesteps // (stride + 1)} "
                f"or {self.num_train_timesteps // stride} steps."
            )
        self.timesteps = torch.arange(num_inference_steps - 1, -1, -1, device=device) * stride


class Flow(Reversible, RFlowScheduler):
    """Rectified flow: a latent at time t is (1 - t / 1000) data + (t / 1000) noise, and the network predicts data - noise.

    The training uses the time steps 1 to 1000. MONAI draws 0 to 999 for the training, but begins to sample at 1000, which no
    network has seen then. Sampling takes the Euler steps of MONAI's scheduler; they are those of DDIM for this way of adding
    noise. Each step ends where the next one begins, also if the number of steps does not divide 1000.
    """

    first_time = 1

    def __init__(self) -> None:
        super().__init__(num_train_timesteps=1000)
        self.prediction_type = "flow"  # MONAI calls it v_prediction, which has another meaning in this bundle

    def target(self, latent: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return what the network should predict, in the shape of the latents (B, 3, d, h, w)."""
        return latent - noise

    def step(self, model_output, timestep, sample, generator=None):
        later = [t for t in self.timesteps.tolist() if t < timestep]
        return super().step(model_output, timestep, sample, next_timestep=later[0] if later else 0)


def training_schedule(prediction_type: str) -> DDPM | Flow:
    """Return the schedule that adds noise in the training of a network with this prediction type."""
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(f"prediction_type must be one of {', '.join(PREDICTION_TYPES)}, got {prediction_type!r}")
    return Flow() if prediction_type == "flow" else DDPM(prediction_type)


def levels(prediction_type: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the factors of data and noise at each time step, float64 (1000,), or (1001,) for flow."""
    if prediction_type == "flow":
        noise = torch.arange(1001, dtype=torch.float64) / 1000
        return 1 - noise, noise
    kept = DDPM().alphas_cumprod.double()
    return kept.sqrt(), (1 - kept).sqrt()
