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

    The running averages of training belong to earlier weights, and a GAN's images can collapse with them.
    """

    generator: torch.nn.Module
    loader: DataLoader
    batches: int
    device: torch.device

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        labels = (batch["label"] for batch in chain.from_iterable(repeat(self.loader)))
        self.generator.train()
        update_bn(islice(labels, self.batches), self.generator, self.device)
        self.generator.eval()
