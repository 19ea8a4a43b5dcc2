"""Estimate the statistics of batch norm again for the weights that are validated."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain, islice, repeat

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from torch.optim.swa_utils import update_bn


@dataclass(eq=False)
class ReestimateBatchNorm:
    """Estimate the statistics of batch norm before each validation, from training slices with the current weights.

    The running averages of training belong to earlier weights, and a GAN's images can collapse with them. Weights to fine-tune
    keep their statistics until the first step, so that the start that is validated is the start that was given.
    """

    generator: torch.nn.Module
    loader: DataLoader
    batches: int
    device: torch.device

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        if engine.state.epoch < 0:  # the evaluator counts it up to 0, the epoch of the start
            return
        labels = (batch["label"] for batch in chain.from_iterable(repeat(self.loader)))
        self.generator.train()
        update_bn(islice(labels, self.batches), self.generator, self.device)
        self.generator.eval()
