"""One training step of a plane's SPADE GAN, for MONAI's AdversarialTrainer (`iteration_update`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from ignite.engine import Engine

from ..model.losses import discriminator_loss, feature_matching, generator_loss


def spade_step(
    engine: Engine,
    batch: dict,
    feature_weight: float,
    vgg_weight: float,
    l1_weight: float,
    vgg_loss: Callable | None,
    amp: bool,
) -> list[dict[str, float]]:
    """Update the generator, then the discriminator on fakes of the updated generator.

    Args:
        engine: MONAI's AdversarialTrainer.
        batch: {"image": intensities (N, 1, H, W), 0 to 1, "label": classes (N, 1, H, W)}.
        feature_weight: weight of feature matching; the adversarial term has weight 1. Park et al. 2019: 10.
        vgg_weight: weight of the VGG loss. Park et al. 2019: 10.
        l1_weight: weight of the L1 loss between fake and real. Park et al. 2019 do not use it (0).
        vgg_loss: function of fake and real slices, intensities -1 to 1; None trains without it.
        amp: whether the networks run in bfloat16; losses are computed in float32.
    """
    state = engine.state
    image, labels = (torch.as_tensor(batch[key]).to(state.device, non_blocking=True) for key in ("image", "label"))
    image = 2 * image - 1
    generator, discriminator = state.g_network.train(), state.d_network.train()
    autocast = torch.autocast(state.device.type, dtype=torch.bfloat16, enabled=amp)
    # The discriminator processes fakes and reals in one call, because a second call would advance the power iteration of
    # spectral norm and DDP does not allow it. Instance norm keeps fakes and reals independent.
    both = torch.cat([labels, labels])

    # (1) The generator. The discriminator is used without its DDP wrapper, which must not reduce gradients here.
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
