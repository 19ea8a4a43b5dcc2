"""One training step of each stage, and the loss that validates the second. The numbers are arguments, set in the config.

A training step gives floats for the logs, in the form that MONAI's handlers read: a list of one dict.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from ignite.engine import Engine
from monai.losses import PatchAdversarialLoss

from ..data.covariates import NULL

__all__ = [
    "autoencoder_step",
    "denoise",
    "diffusion_step",
    "diffusion_validation_step",
    "image_as_target",
    "kl_divergence",
    "warmup",
]

_adversarial = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)


def kl_divergence(mu: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """KL(N(mu, sigma) || N(0, 1)), summed over a latent and averaged over the batch; in float32 whatever comes in."""
    mu, variance = mu.float(), sigma.float() ** 2
    kl = 0.5 * (mu**2 + variance - torch.log(variance + 1e-8) - 1)
    return kl.flatten(1).sum(dim=1).mean()


def warmup(steps: int, total: int) -> Callable[[int], float]:
    """Factor of the learning rate: from 0.01 to 1 in `steps`, or in a tenth of all `total` steps where that is less."""
    steps = max(1, min(steps, total // 10))
    return lambda step: min(1.0, 0.01 + 0.99 * step / steps)


def image_as_target(batch: dict, device: torch.device, non_blocking: bool = False, **kwargs) -> tuple:
    """Input and target of a reconstruction: the same image."""
    image = torch.as_tensor(batch["image"]).to(device, non_blocking=non_blocking)
    return image, image


def autoencoder_step(
    engine: Engine,
    batch: dict,
    kl_weight: float,
    perceptual_weight: float,
    adversarial_weight: float,
    gradient_weight: float,
    adversarial_from_epoch: int,
    grad_clip: float,
    amp: bool,
    perceptual_loss: torch.nn.Module | None = None,
) -> list[dict[str, float]]:
    """Stage one (Pinaya et al. 2022, Sec. 2.1): L1 + KL + perceptual + patch adversarial.

    The discriminator joins at `adversarial_from_epoch` (epochs count from 1), once there are images worth judging.

    Args:
        engine: MONAI's AdversarialTrainer.
        batch: {"image": (B, 1, D, H, W) in [0, 1]}.
        kl_weight, perceptual_weight, adversarial_weight: of the terms beside the L1, whose weight is 1.
        gradient_weight: of the L1 between the images' finite differences along the three axes. Not in the paper (0).
        grad_clip: the gradient's norm is clipped to this.
        amp: bfloat16 autocast; the KL stays in float32.
        perceptual_loss: of (reconstruction, image), or None.
    """
    state = engine.state
    image = torch.as_tensor(batch["image"]).to(state.device, non_blocking=True)
    autoencoder, discriminator = state.g_network.train(), state.d_network.train()
    adversarial = adversarial_weight > 0 and state.epoch >= adversarial_from_epoch
    autocast = torch.autocast(state.device.type, dtype=torch.bfloat16, enabled=amp)

    # (1) The autoencoder. It sees the discriminator without its DDP wrapper, which must not reduce gradients here.
    discriminator.requires_grad_(False)
    state.g_optimizer.zero_grad(set_to_none=True)
    losses = {}
    with autocast:
        reconstruction, mu, sigma = autoencoder(image)
        losses["l1"] = F.l1_loss(reconstruction.float(), image)
        losses["kl"] = kl_divergence(mu, sigma)
        loss = losses["l1"] + kl_weight * losses["kl"]
        if gradient_weight:
            losses["gradient"] = sum(F.l1_loss(reconstruction.diff(dim=d), image.diff(dim=d)) for d in (2, 3, 4))
            loss = loss + gradient_weight * losses["gradient"]
        if perceptual_loss is not None:
            losses["perceptual"] = perceptual_loss(reconstruction.float(), image)
            loss = loss + perceptual_weight * losses["perceptual"]
        if adversarial:
            logits = getattr(discriminator, "module", discriminator)(reconstruction)
            losses["adversarial"] = _adversarial(logits.float(), target_is_real=True, for_discriminator=False)
            loss = loss + adversarial_weight * losses["adversarial"]
    loss.backward()
    torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), grad_clip)
    state.g_optimizer.step()

    # (2) The discriminator, on the same images.
    if adversarial:
        discriminator.requires_grad_(True)
        state.d_optimizer.zero_grad(set_to_none=True)
        with autocast:
            fake = _adversarial(discriminator(reconstruction.detach()).float(), target_is_real=False, for_discriminator=True)
            real = _adversarial(discriminator(image).float(), target_is_real=True, for_discriminator=True)
            losses["discriminator"] = 0.5 * (fake + real)
        losses["discriminator"].backward()
        torch.nn.utils.clip_grad_norm_(discriminator.parameters(), grad_clip)
        state.d_optimizer.step()
    return [{"loss": loss.item()} | {name: value.item() for name, value in losses.items()}]


def denoise(network, scheduler, latent, context, noise, timesteps, amp: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What the network predicts for noised latents (B, 3, d, h, w), and what it should: the noise, or v."""
    noisy = scheduler.add_noise(original_samples=latent, noise=noise, timesteps=timesteps)
    v_prediction = scheduler.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latent, noise, timesteps) if v_prediction else noise
    with torch.autocast(latent.device.type, dtype=torch.bfloat16, enabled=amp):
        prediction = network(noisy, timesteps, context)
    return prediction.float(), target


def diffusion_step(
    engine: Engine, batch: dict, scheduler, condition_dropout: float, grad_clip: float, amp: bool
) -> list[dict[str, float]]:
    """Stage two (Sec. 2.2): mean squared error of the predicted noise (or v) at a random step of the chain.

    Args:
        engine: MONAI's SupervisedTrainer.
        batch: {"mu", "sigma": (B, 3, d, h, w), "covariates": (B, 1, C)} of `LatentDataset`.
        scheduler: `scripts.model.noise_schedule.DDPM`; its prediction type says what is predicted.
        condition_dropout: share of the rows whose covariates are withheld, for classifier-free guidance; paper: 0.
        grad_clip: the gradient's norm is clipped to this.
        amp: bfloat16 autocast.
    """
    device, network = engine.state.device, engine.network.train()
    mu, sigma, context = (batch[key].to(device, non_blocking=True) for key in ("mu", "sigma", "covariates"))
    scale_factor = getattr(network, "module", network).scale_factor
    latent = scale_factor * (mu + sigma * torch.randn_like(mu))
    timesteps = torch.randint(scheduler.num_train_timesteps, (len(latent),), device=device)
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
    """Prediction and target on held-out latents, with noise and time steps that are the same at every validation.

    Each batch is noised to 8 steps spread over the chain, so that two epochs differ by the network alone.
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
