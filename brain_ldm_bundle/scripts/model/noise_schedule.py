"""The noise schedule of the published model, and two samplers that use it: DDPM and DDIM."""

from __future__ import annotations

import torch
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler

# Pinaya et al. 2022 state 1000 steps and a fixed variance schedule (Sec. 2.2). The values are from the published config.
NOISE_SCHEDULE = {"num_train_timesteps": 1000, "schedule": "scaled_linear_beta", "beta_start": 0.0015, "beta_end": 0.0205}


class DDPM(DDPMScheduler):
    """Add noise at any of 1000 time steps for training, or sample through all of them."""

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

    def step(self, model_output, timestep, sample, generator=None):
        """Take a step as DDPMScheduler.step does, but accept a list of CPU generators, one for each row of the batch.

        Each row then has its own noise, so a volume depends neither on the other rows nor on the device.
        """
        if not isinstance(generator, list):
            return super().step(model_output, timestep, sample, generator)
        rows = zip(model_output.float().cpu().split(1), sample.float().cpu().split(1), generator)
        steps = [super(DDPM, self).step(output, timestep, row, own) for output, row, own in rows]
        return tuple(torch.cat(part).to(sample.device) for part in zip(*steps))


class DDIM(DDIMScheduler):
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


def make_sampler(name: str, steps: int) -> DDIM | DDPM:
    """Make the sampler "ddim", or "ddpm" with all 1000 steps, and set its time steps."""
    samplers = {"ddim": DDIM, "ddpm": DDPM}
    if name not in samplers:
        raise ValueError(f"sampler must be one of {sorted(samplers)}, got {name!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    sampler = samplers[name]()
    sampler.set_timesteps(steps)
    return sampler
