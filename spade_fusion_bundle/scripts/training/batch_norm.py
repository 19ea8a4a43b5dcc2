"""Estimate the statistics of batch norm again for the weights that are validated."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, repeat

import torch
from ignite.engine import Engine, Events
from monai.data import DataLoader
from torch.optim.swa_utils import update_bn


class ReestimateBatchNorm:
    """Estimate the statistics of batch norm before each validation, from training slices with the current weights.

    The running averages of training belong to earlier weights, and a GAN's images can collapse with them.
    """

    def __init__(self, generator: torch.nn.Module, loader: DataLoader, batches: int, device: torch.device) -> None:
        self.generator = generator
        self.loader = loader
        self.batches = batches
        self.device = device

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        self.generator.train()
        update_bn(islice(self._labels(), self.batches), self.generator, self.device)
        self.generator.eval()

    def _labels(self) -> Iterator[torch.Tensor]:
        return (batch["label"] for batch in chain.from_iterable(repeat(self.loader)))
