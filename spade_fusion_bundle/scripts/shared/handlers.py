"""Handlers for long trainings: seed each epoch, keep the best weights, show the progress, stop at NaN."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from ignite.utils import manual_seed
from monai.data.utils import set_rnd
from tqdm import tqdm

from .files import save_weights

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class EpochSeed:
    """Seed all random generators at the start of each epoch from (seed, epoch, rank).

    A resumed run then draws the same numbers as an uninterrupted one, and two ranks draw different noise.
    """

    seed: int
    rank: int = 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        seed = (self.seed * 1_000_003 + engine.state.epoch * 1009 + self.rank) % 2**31
        manual_seed(seed)
        set_rnd(engine.data_loader.dataset, seed)  # MONAI's random transforms have their own generators


@dataclass(eq=False)
class BestWeights:
    """Save the weights of a network whenever the evaluator's metric improves on its best value.

    The best value is reset at the epoch `restart_at_epoch`, in which the loss changes. The adversarial phase gives sharper
    images with a lower SSIM, so metrics before and after its start cannot be compared.
    """

    path: str | Path  # file of the state dict; weights that are not finite are never written
    network: torch.nn.Module  # without its DDP wrapper
    metric: str  # name of the evaluator's metric
    larger_is_better: bool = True
    restart_at_epoch: int | None = None
    writes: bool = True  # True on the first rank only
    best: float = field(default=-math.inf, init=False)  # larger is better
    best_epoch: int = field(default=0, init=False)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        value = float(engine.state.metrics[self.metric])
        score = value if self.larger_is_better else -value
        if self.best_epoch < (self.restart_at_epoch or 0) <= engine.state.epoch:
            self.best = -math.inf
        if math.isfinite(value) and score > self.best:
            if self.writes:
                save_weights(self.network.state_dict(), self.path)
            self.best, self.best_epoch = score, engine.state.epoch
            logger.info(f"{self.path}: best {self.metric} so far, {value:.5f}")

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        if self.is_lost():
            self.best = -math.inf  # the next validation writes weights again

    def is_lost(self) -> bool:
        """Check whether the file of the best weights is missing, although an epoch of this training has written it."""
        return self.best_epoch > 0 and not Path(self.path).is_file()


class MovingAverage(EMAHandler):
    """Keep a moving average of a network's weights in `ema_model`. The momentum is at least 9 / (9 + step).

    With a constant momentum of 1e-4, the average after a thousand steps would still be mostly the untrained network.
    """

    def _update_ema_model(self, engine: Engine, name: str) -> None:
        momentum = max(self.momentum, 9 / (9 + engine.state.iteration))
        setattr(engine.state, name, momentum)
        average, current = ([value.data for value in network.parameters()] for network in (self.ema_model, self.model))
        torch._foreach_mul_(average, 1 - momentum)  # a few kernels, where ignite starts two for each tensor
        torch._foreach_add_(average, current, alpha=momentum)


class Progress:
    """Show one bar for a whole stage, with the time left and the mean loss of the last hundred steps."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.losses: deque[float] = deque(maxlen=100)
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)  # after a resume state is loaded
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _open(self, engine: Engine) -> None:
        if self.bar is None:
            total, done = engine.state.max_epochs * engine.state.epoch_length, engine.state.iteration
            self.bar = tqdm(total=total, initial=done, desc=self.description, unit="step", mininterval=1, smoothing=0.05)

    def _advance(self, engine: Engine) -> None:
        self.losses.append(engine.state.output[0]["loss"])
        mean = sum(self.losses) / len(self.losses)
        self.bar.set_postfix(epoch=engine.state.epoch, loss=f"{mean:.4f}", refresh=False)
        self.bar.update()

    def _close(self, engine: Engine) -> None:
        if self.bar is not None:
            self.bar.close()


class StopAtNonFinite:
    """End the run at the first loss that is NaN or infinite, before a checkpoint is written."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if not math.isfinite(engine.state.output[0]["loss"]):
            raise RuntimeError(
                f"the loss of iteration {engine.state.iteration} (epoch {engine.state.epoch}) is not finite: "
                f"{engine.state.output[0]}. The last complete checkpoint is untouched; lower the learning rate and run again."
            )


def validation_interval(at_most: int, epochs: int) -> int:
    """Return the largest divisor of `epochs` up to `at_most`, so that the last epoch is validated."""
    return max(n for n in range(1, min(at_most, epochs) + 1) if epochs % n == 0)
