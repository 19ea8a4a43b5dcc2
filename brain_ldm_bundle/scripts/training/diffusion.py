"""Train and validate stage two, the diffusion model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from ignite.engine import Engine

from ..data.covariates import NULL
from ..model.networks import DiffusionUNet
from ..model.sampler import LatentSampler


def denoise(network, scheduler, latent, context, noise, timesteps, amp: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Add noise to latents (B, 3, d, h, w); return the network's prediction and its target."""
    noisy = scheduler.add_noise(original_samples=latent, noise=noise, timesteps=timesteps)
    target = scheduler.target(latent, noise, timesteps)
    with torch.autocast(latent.device.type, dtype=torch.bfloat16, enabled=amp):
        prediction = network(noisy, timesteps, context)
    return prediction.float(), target


def diffusion_step(
    engine: Engine, batch: dict, scheduler, condition_dropout: float, grad_clip: float, amp: bool
) -> list[dict[str, float]]:
    """Minimise the mean squared error of the prediction (noise, v or flow) at random time steps (Pinaya et al. 2022, Sec. 2.2).

    Args:
        engine: MONAI's SupervisedTrainer.
        batch: {"mu": (B, 3, d, h, w), "sigma": (B, 3, d, h, w), "covariates": (B, 1, C)} from a `LatentDataset`.
        scheduler: result of `scripts.model.noise_schedule.training_schedule`, which sets the target.
        condition_dropout: probability of withholding the covariates of a row, for classifier-free guidance. Paper: 0.
        grad_clip: largest norm of the gradient.
        amp: whether the network runs in bfloat16.
    """
    device, network = engine.state.device, engine.network.train()
    mu, sigma, context = (batch[key].to(device, non_blocking=True) for key in ("mu", "sigma", "covariates"))
    scale_factor = getattr(network, "module", network).scale_factor
    latent = scale_factor * (mu + sigma * torch.randn_like(mu))
    timesteps = scheduler.first_time + torch.randint(scheduler.num_train_timesteps, (len(latent),), device=device)
    dropped = torch.rand(len(latent), device=device) < condition_dropout
    context = torch.where(dropped[:, None, None], NULL, context)

    engine.optimizer.zero_grad(set_to_none=True)
    prediction, target = denoise(network, scheduler, latent, context, torch.randn_like(latent), timesteps, amp)
    loss = F.mse_loss(prediction, target)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
    engine.optimizer.step()
    return [{"loss": loss.item()}]


def diffusion_validation_step(engine: Engine, batch: dict, scheduler, amp: bool) -> dict[str, torch.Tensor]:
    """Return prediction and target for held-out latents at 8 evenly spaced time steps.

    Noise and time steps are the same at every validation, so that only the network differs between epochs.
    """
    device, network = engine.state.device, engine.network.eval()
    mu, context = (batch[key].to(device) for key in ("mu", "covariates"))
    generator = torch.Generator().manual_seed(engine.state.iteration)
    steps = torch.linspace(0, scheduler.num_train_timesteps - 1, 10)[1:-1].long()
    pairs = []
    with torch.no_grad():
        for step in steps:
            noise = torch.randn(mu.shape, generator=generator).to(device)
            timesteps = step.expand(len(mu)).to(device)
            pairs.append(denoise(network, scheduler, network.scale_factor * mu, context, noise, timesteps, amp))
    prediction, target = (torch.stack(part, dim=1) for part in zip(*pairs))  # (B, 8, 3, d, h, w)
    return {"pred": prediction, "label": target}


def samples(dataset: Sequence, network: DiffusionUNet, sampler: LatentSampler, device: torch.device, count: int):
    """Generate volumes for the covariates of the first `count` held-out scans, from fixed noise, for TensorBoard."""
    context = torch.stack([dataset[i]["covariates"] for i in range(min(count, len(dataset)))]).to(device)
    return {"samples": sampler.autoencoder.shown(sampler(context, network.eval(), seeds=range(len(context))))}
