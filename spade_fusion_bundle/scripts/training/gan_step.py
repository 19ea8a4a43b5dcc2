"""One training step of each stage, for MONAI's trainers (`iteration_update`). Each gives floats for the logs, in MONAI's form:
a list of one dict."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from ignite.engine import Engine

from ..model.losses import discriminator_loss, feature_matching, generator_loss

__all__ = ["fusion_step", "spade_step"]


def spade_step(
    engine: Engine,
    batch: dict,
    feature_weight: float,
    vgg_weight: float,
    l1_weight: float,
    vgg_loss: Callable | None,
    amp: bool,
) -> list[dict[str, float]]:
    """Stage one, one plane: the generator first, then the discriminator on fakes of the generator as it is then.

    Args:
        engine: MONAI's AdversarialTrainer.
        batch: {"image": (N, 1, H, W) in 0 to 1, "label": classes (N, 1, H, W)}.
        feature_weight, vgg_weight: of the terms beside the adversarial one, whose weight is 1. Park et al.: 10 and 10.
        l1_weight: of the L1 between the images. Park et al.: 0.
        vgg_loss: of (fake, real) in -1 to 1, or None.
        amp: bfloat16 autocast; losses in float32.
    """
    state = engine.state
    image, labels = (torch.as_tensor(batch[key]).to(state.device, non_blocking=True) for key in ("image", "label"))
    image = 2 * image - 1
    generator, discriminator = state.g_network.train(), state.d_network.train()
    autocast = torch.autocast(state.device.type, dtype=torch.bfloat16, enabled=amp)
    # Fakes and reals pass through together: batch statistics do not arise (instance norm), but the power iteration of
    # spectral norm would move between two calls, and DDP would not survive it.
    both = torch.cat([labels, labels])

    # (1) The generator. It sees the discriminator without its DDP wrapper, which must not reduce gradients here.
    discriminator.requires_grad_(False)
    state.g_optimizer.zero_grad(set_to_none=True)
    losses = {}
    with autocast:
        fake = generator(labels)
        outputs = getattr(discriminator, "module", discriminator)(both, torch.cat([fake, image]))
    outputs = _float(outputs)
    losses["adversarial"] = generator_loss(outputs, len(fake))
    losses["features"] = feature_matching(outputs, len(fake))
    loss = losses["adversarial"] + feature_weight * losses["features"]
    if vgg_loss is not None:
        with autocast:
            losses["vgg"] = vgg_loss(fake, image)
        loss = loss + vgg_weight * losses["vgg"]
    losses["l1"] = F.l1_loss(fake.float(), image)
    if l1_weight:
        loss = loss + l1_weight * losses["l1"]
    loss.backward()
    state.g_optimizer.step()

    # (2) The discriminator.
    discriminator.requires_grad_(True)
    state.d_optimizer.zero_grad(set_to_none=True)
    with autocast:
        with torch.no_grad():
            fake = generator(labels)
        outputs = discriminator(both, torch.cat([fake, image]))
    losses["discriminator"] = discriminator_loss(_float(outputs), len(fake))
    losses["discriminator"].backward()
    state.d_optimizer.step()
    return [{"loss": loss.item()} | {name: value.item() for name, value in losses.items()}]


def _float(outputs: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    return [[feature.float() for feature in scale] for scale in outputs]


def fusion_step(engine: Engine, batch: dict, amp: bool) -> list[dict[str, float]]:
    """Stage two: mean squared error of the fused patches.

    Args:
        engine: MONAI's SupervisedTrainer.
        batch: {"volumes": (N, 3, 32, 32, 32), "image": (N, 1, 32, 32, 32)}, both 0 to 1.
        amp: bfloat16 autocast.
    """
    volumes, image = (torch.as_tensor(batch[key]).to(engine.state.device, non_blocking=True) for key in ("volumes", "image"))
    network = engine.network.train()
    engine.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(engine.state.device.type, dtype=torch.bfloat16, enabled=amp):
        fused = network(volumes.float())
    loss = F.mse_loss(fused.float(), image.float())
    loss.backward()
    engine.optimizer.step()
    return [{"loss": loss.item()}]
