"""One training step of the fusion CNN, for MONAI's SupervisedTrainer (`iteration_update`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from ignite.engine import Engine


def fusion_step(engine: Engine, batch: dict, amp: bool) -> list[dict[str, float]]:
    """Minimise the mean squared error of fused patches.

    Args:
        engine: MONAI's SupervisedTrainer.
        batch: {"volumes": (N, 3, 32, 32, 32), "image": (N, 1, 32, 32, 32)}, intensities 0 to 1.
        amp: whether the network runs in bfloat16.
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
