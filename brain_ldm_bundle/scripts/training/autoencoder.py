"""Train stage one, the autoencoder: training step, losses, batches and pictures."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from ignite.engine import Engine
from monai.losses import PatchAdversarialLoss

from ..model.sampler import Reconstructor

_adversarial = PatchAdversarialLoss(criterion="least_squares", no_activation_leastsq=True)


def kl_divergence(mu: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Compute KL(N(mu, sigma) || N(0, 1)) in float32, summed over each latent and averaged over the batch."""
    mu, variance = mu.float(), sigma.float() ** 2
    kl = 0.5 * (mu**2 + variance - torch.log(variance + 1e-8) - 1)
    return kl.flatten(1).sum(dim=1).mean()


def image_as_target(batch: dict, device: torch.device, non_blocking: bool = False, **kwargs) -> tuple:
    """Return the image as input and as target of a reconstruction."""
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
    """Update the autoencoder, then the discriminator (Pinaya et al. 2022, Sec. 2.1).

    The autoencoder's loss is the weighted sum of L1, KL, perceptual and patch adversarial losses. The first epoch
    with the discriminator is `adversarial_from_epoch`, counted from 1; it is never used if `adversarial_weight` is 0.
    `gradient_weight` is the weight of the L1 between the finite differences of the images, which the paper does not have.

    Args:
        engine: MONAI's AdversarialTrainer.
        batch: {"image": (B, 1, D, H, W) in [0, 1]}.
        grad_clip: largest norm of the gradient.
        amp: whether the networks run in bfloat16.
        perceptual_loss: function of reconstruction and image, or None.
    """
    state = engine.state
    image = torch.as_tensor(batch["image"]).to(state.device, non_blocking=True)
    autoencoder, discriminator = state.g_network.train(), state.d_network.train()
    adversarial = adversarial_weight > 0 and state.epoch >= adversarial_from_epoch
    autocast = torch.autocast(state.device.type, dtype=torch.bfloat16, enabled=amp)

    # (1) The autoencoder. The discriminator is used without its DDP wrapper, which must not reduce gradients here.
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


@torch.no_grad()
def reconstructions(dataset: Sequence, network: torch.nn.Module, inferer: Reconstructor, device: torch.device, count: int):
    """Return the first `count` held-out scans and their reconstructions, for TensorBoard."""
    network.eval()
    images = torch.stack([torch.as_tensor(dataset[i]["image"]) for i in range(min(count, len(dataset)))]).to(device)
    return {"scan and reconstruction": network.shown(torch.cat([images, inferer(images, network)]))}
