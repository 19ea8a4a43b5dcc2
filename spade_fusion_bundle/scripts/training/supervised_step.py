"""One training step of the fusion CNN or of a segmentation network, for MONAI's SupervisedTrainer (`iteration_update`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from ignite.engine import Engine
from monai.utils import convert_to_tensor


def supervised_step(engine: Engine, batch: dict, amp: bool, keys: Sequence[str] = ("image", "label")) -> list[dict[str, float]]:
    """Minimise the trainer's loss of the network's output; the loss is computed in float32.

    Args:
        engine: MONAI's SupervisedTrainer.
        batch: tensors by key; a batch may hold further entries.
        amp: whether the network runs in bfloat16.
        keys: key of the network's input, and key of what the loss compares the output with.
    """
    image, target = (convert_to_tensor(batch[key], track_meta=False).to(engine.state.device, non_blocking=True) for key in keys)
    engine.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(engine.state.device.type, dtype=torch.bfloat16, enabled=amp):
        output = engine.network.train()(image.float())
    loss = engine.loss_function(output.float(), target)
    loss.backward()
    engine.optimizer.step()
    return [{"loss": loss.item()}]
