"""DPM-Solver++(2M), which needs the fewest steps, and the choice of a sampler by its name."""

from __future__ import annotations

import copy
import math

import torch

from .noise_schedule import DDIM, DDPM, Flow, levels, training_schedule


class DPMSolver:
    """DPM-Solver++(2M) with data prediction (Lu et al. 2022, Algorithm 2), for all prediction types.

    The steps are even in the logarithm of the ratio of data and noise. Each is rounded to a time step of the training, and the
    solver uses the exact ratio there. The last step ends at the data that the network predicts.

    Flow models have this ratio between zero and infinity. Their steps cover the range of the published noise schedule, but the
    first begins at pure noise.
    """

    def __init__(self, prediction_type: str = "epsilon") -> None:
        self.prediction_type = prediction_type
        self.data, self.noise = levels(prediction_type)
        self.log_ratio = (self.data / self.noise).log()  # falls with time
        published = torch.stack(levels("epsilon"))[:, [-1, 0]]
        self.lowest, highest = (published[0] / published[1]).log().tolist()
        self.last_time = int((self.log_ratio - highest).abs().argmin())

    def set_timesteps(self, num_inference_steps: int) -> None:
        first = len(self.log_ratio) - 1
        if num_inference_steps > first - self.last_time + 1:
            raise ValueError(f"dpm++ takes at most {first - self.last_time + 1} steps, got {num_inference_steps}. Use 10 to 50")
        self.timesteps = self._times(first, num_inference_steps)

    def starting_at(self, strength: float) -> DPMSolver:
        """Return a copy without history that begins at this share (0 to 1) of the time. At 0 it has no time steps.

        Its steps are about as long as those of the complete path.
        """
        run = copy.copy(self)
        run.previous = None  # (time step, data predicted there)
        first = round(strength * (len(self.log_ratio) - 1))
        if strength < 1:
            length, complete = (self._length(time) for time in (first, len(self.log_ratio) - 1))
            steps = min(max(1, round(len(self.timesteps) * length / complete)), max(1, first - self.last_time + 1))
            run.timesteps = self._times(first, steps) if first else self.timesteps[:0]
        return run

    def _length(self, first: int) -> float:
        """Return the length of the path from a time step to the last, in the logarithm of the ratio."""
        return max(0.0, float(self.log_ratio[self.last_time]) - max(self.lowest, float(self.log_ratio[first])))

    def _times(self, first: int, steps: int) -> torch.Tensor:
        if steps == 1:
            return torch.tensor([first])
        end = float(self.log_ratio[self.last_time])
        wanted = torch.linspace(end - self._length(first), end, steps, dtype=torch.float64)
        nearest = (self.log_ratio - wanted[:, None]).abs().argmin(dim=1)
        nearest[0] = first
        # Near both ends, several steps may round to one time: move them, so that the times fall.
        place = torch.arange(steps)
        return (nearest + place).cummin(dim=0)[0].clamp(min=self.last_time + steps - 1) - place

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Add noise to latents (B, 3, d, h, w) at the time steps (B,)."""
        data, amount = (level[timesteps.cpu()].to(noise).reshape(-1, 1, 1, 1, 1) for level in (self.data, self.noise))
        return data * original_samples + amount * noise

    def step(self, model_output: torch.Tensor, timestep: int, sample: torch.Tensor, generator=None) -> tuple[torch.Tensor, ...]:
        """Return the latents (B, 3, d, h, w) at the next of the time steps, and the data that the network predicts now.

        Call it on the result of `starting_at`, once for each of its time steps, in their order. Nothing is random here.
        """
        data, noise = float(self.data[timestep]), float(self.noise[timestep])
        if self.prediction_type == "epsilon":
            predicted = (sample - noise * model_output) / data
        elif self.prediction_type == "v_prediction":
            predicted = data * sample - noise * model_output
        else:
            predicted = sample + noise * model_output
        later = self.timesteps[self.timesteps < timestep]
        if not len(later):
            return predicted, predicted
        now, then = float(self.log_ratio[timestep]), float(self.log_ratio[later[0]])
        used = predicted
        if self.previous is not None and math.isfinite(before := float(self.log_ratio[self.previous[0]])):
            used = predicted + 0.5 * (then - now) / (now - before) * (predicted - self.previous[1])
        self.previous = timestep, predicted
        kept = float(self.noise[later[0]]) / noise
        return kept * sample + (float(self.data[later[0]]) - kept * data) * used, predicted


def make_sampler(name: str, steps: int, prediction_type: str = "epsilon") -> DDIM | DDPM | DPMSolver | Flow:
    """Make a sampler for a network with this prediction type, and set its time steps.

    Args:
        name: "ddim" (for flow models these are Euler steps), "dpm++" (DPM-Solver++(2M)), or "ddpm" with all 1000 steps.
        steps: number of steps, at least 1.
        prediction_type: what the network predicts: "epsilon", "v_prediction" or "flow".
    """
    schedule = training_schedule(prediction_type)
    samplers = {"ddim": lambda: DDIM(prediction_type), "ddpm": lambda: schedule, "dpm++": lambda: DPMSolver(prediction_type)}
    if name not in samplers:
        raise ValueError(f"sampler must be one of {sorted(samplers)}, got {name!r}")
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    if prediction_type == "flow" and name == "ddpm":
        raise ValueError("sampler 'ddpm' removes noise at random, which a flow model cannot. Use --sampler_name dpm++ or ddim")
    sampler = schedule if prediction_type == "flow" and name == "ddim" else samplers[name]()
    sampler.set_timesteps(steps)
    return sampler
