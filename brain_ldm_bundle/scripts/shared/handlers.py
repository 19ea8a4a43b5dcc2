"""Handlers for long trainings: seed each epoch, validate the start, keep the best weights, show the progress, stop at NaN."""

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
from monai.engines import Evaluator
from tqdm import tqdm

from .files import save_weights
from .recipe import WithRecipe
from .scan_identity import seen_unknown, seen_voxels

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

    An epoch 0 of the evaluator is the score of the start (`ValidateStart`). Weights that are not better never replace it.

    The best value is reset at the epoch `restart_at_epoch`, in which the loss changes, to the score of the start if there is
    one. The adversarial phase gives sharper images with a lower SSIM, so metrics before and after its start cannot be compared.

    The recipe of the weights says which epoch was chosen, as "selection": {"epoch", "metric", "value", "start"}. Epoch 0 is the
    start, and "start" is its value, or None if it was not validated.
    """

    path: str | Path  # file of the state dict; weights that are not finite are never written
    network: torch.nn.Module  # without its DDP wrapper
    metric: str  # name of the evaluator's metric
    larger_is_better: bool = True
    restart_at_epoch: int | None = None
    writes: bool = True  # True on the first rank only
    best: float = field(default=-math.inf, init=False)  # larger is better
    best_epoch: int = field(default=0, init=False)
    start: float = field(default=-math.inf, init=False)  # score before the first step

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        value, epoch = float(engine.state.metrics[self.metric]), engine.state.epoch
        score = value if self.larger_is_better else -value
        if self.best_epoch < (self.restart_at_epoch or 0) <= epoch:
            self.best = self.start
        if math.isfinite(value) and score > self.best:
            if epoch == 0:
                self.start = score
            if isinstance(self.network, WithRecipe):
                start = self.start_value() if math.isfinite(self.start) else None
                self.network.recipe["selection"] = {"epoch": epoch, "metric": self.metric, "value": value, "start": start}
            if self.writes:
                save_weights(self.network.state_dict(), self.path)
            self.best, self.best_epoch = score, epoch
            what = f"best {self.metric} so far" if epoch else f"{self.metric} before training"
            logger.info(f"{self.path}: {what}, {value:.5f}")

    def start_value(self) -> float:
        """Return the metric before the first step."""
        return self.start if self.larger_is_better else -self.start

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "best_epoch": self.best_epoch, "start": self.start}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.start = state.get("start", -math.inf)  # earlier versions had none
        if self.is_lost():
            self.best = self.start = -math.inf  # the next validation writes weights again

    def is_lost(self) -> bool:
        """Check whether the file of the best weights is missing, although this training has written it."""
        return (self.best_epoch > 0 or math.isfinite(self.start)) and not Path(self.path).is_file()


@dataclass(eq=False)
class ValidateStart:
    """Validate the weights that training starts from before its first step, so that only better ones replace them.

    It runs after all other handlers of the start, because `Resume` loads the score of the start. A resumed run does not
    validate it again.
    """

    validator: Evaluator  # one of its handlers is `best`
    best: BestWeights
    weights: str | Path | None = None  # file that training starts from, which knows the scans that the start has seen

    def attach(self, engine: Engine) -> None:
        # A handler that is added during the event runs after all that were attached before.
        engine.add_event_handler(Events.STARTED, lambda engine: engine.add_event_handler(Events.STARTED, self))
        engine.add_event_handler(Events.COMPLETED, self.report)

    def __call__(self, engine: Engine) -> None:
        if engine.state.iteration > 0:
            return
        if self.weights is None:
            self.validator.run(0)
            return
        recipe = self.best.network.recipe
        by_start = {"seen_voxels": seen_voxels([], self.weights), "seen_unknown": seen_unknown(self.weights)}
        by_training = {key: recipe[key] for key in by_start if key in recipe}
        recipe.update(by_start)
        self.validator.run(0)
        for key in by_start:
            del recipe[key]
        recipe.update(by_training)

    def report(self, engine: Engine) -> None:
        if math.isfinite(self.best.start) and self.best.best_epoch == 0:
            logger.warning(
                f"{self.best.path}: no epoch was better than the start of this training ({self.best.metric} "
                f"{self.best.start_value():.5f}), so the file holds the start, unchanged"
            )


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
