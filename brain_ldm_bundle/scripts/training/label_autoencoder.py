"""Training step of stage one for label maps."""

from __future__ import annotations

import torch
from ignite.engine import Engine
from monai.losses import DiceCELoss

from .autoencoder import kl_divergence

# Cross-entropy and soft Dice, each with weight 1, over all classes. Each class counts once in the Dice loss, whatever its
# size. Sums go over the batch, because a small class may be absent from a part of a head.
_overlap = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)


def label_autoencoder_step(
    engine: Engine, batch: dict, kl_weight: float, grad_clip: float, amp: bool
) -> list[dict[str, float]]:
    """Update the autoencoder by cross-entropy, soft Dice and KL. There is no discriminator.

    Args:
        engine: MONAI's AdversarialTrainer.
        batch: {"image": classes (B, 1, D, H, W) of uint8}.
        grad_clip: largest norm of the gradient.
        amp: whether the network runs in bfloat16; the losses are computed in float32.
    """
    state = engine.state
    classes = torch.as_tensor(batch["image"]).to(state.device, non_blocking=True)
    autoencoder = state.g_network.train()
    state.g_optimizer.zero_grad(set_to_none=True)
    with torch.autocast(state.device.type, dtype=torch.bfloat16, enabled=amp):
        logits, mu, sigma = autoencoder(classes)  # (B, C, D, H, W)
    overlap, kl = _overlap(logits.float(), classes), kl_divergence(mu, sigma)
    loss = overlap + kl_weight * kl
    loss.backward()
    torch.nn.utils.clip_grad_norm_(autoencoder.parameters(), grad_clip)
    state.g_optimizer.step()
    return [{"loss": loss.item(), "overlap": overlap.item(), "kl": kl.item()}]
