"""Handlers for long trainings: resume after a kill, keep the best weights, show the progress, stop at NaN."""

from __future__ import annotations

import logging
import math
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from ignite.utils import manual_seed
from monai.data.utils import set_rnd
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from tqdm import tqdm

from .files import read_tensors, save_weights

__all__ = ["BestWeights", "EpochSeed", "MovingAverage", "Progress", "Resume", "StopAtNonFinite", "validation_interval"]

logger = logging.getLogger(__name__)


class EpochSeed:
    """Seed every generator at the start of each epoch from (seed, epoch, rank).

    So a run that was killed continues as if it had never stopped, and two ranks draw different noise.
    """

    def __init__(self, seed: int, rank: int = 0) -> None:
        self.seed = seed
        self.rank = rank

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        seed = (self.seed * 1_000_003 + engine.state.epoch * 1009 + self.rank) % 2**31
        manual_seed(seed)
        set_rnd(engine.data_loader.dataset, seed)  # MONAI's random transforms hold generators of their own


class Resume:
    """Save the whole state of a stage in one file, and load it when the same command runs again.

    The state is saved after every epoch, every `every_minutes` within an epoch, and on SIGTERM, which then ends the run with
    exit status 143. From the end of an epoch, a run continues bit for bit. From within an epoch, the rest of it sees other
    random draws. The state is saved after all other handlers of an event, whatever their order in a list.

    Args:
        path: file of the state.
        objects: everything to save, by name. It has `state_dict` and `load_state_dict`: networks without their DDP wrapper,
            optimisers, schedulers, `BestWeights`.
        settings: plain values. A file that was made with other values is refused.
        writes: True on the first rank only.
        every_minutes: longest work in minutes that a SIGKILL within an epoch costs.
    """

    def __init__(
        self,
        path: str | Path,
        objects: Mapping[str, Any],
        settings: Mapping[str, Any] | None = None,
        writes: bool = True,
        every_minutes: float = 10,
    ) -> None:
        self.path = Path(path)
        self.objects = dict(objects)
        self.settings = dict(settings or {})
        self.writes = writes
        self.every_minutes = every_minutes
        self.terminated = False
        self._before = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._release)

    def load(self, engine: Engine) -> None:
        if not engine.has_event_handler(self.save):  # added now, they come after all handlers that were attached before the run
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        self._last_save = time.monotonic()
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            self._before = signal.signal(signal.SIGTERM, self._on_sigterm)
        if not self.path.exists():
            return
        state = read_tensors(self.path)
        try:
            for name, value in state.get("settings", {}).items():
                if self.settings.get(name, value) != value:  # a setting of an earlier version may be gone
                    raise ValueError(f"{name}: {value}, now {self.settings[name]}")
            for name, item in sorted(self.objects.items(), key=lambda pair: isinstance(pair[1], LRScheduler)):
                _restore(item, state[name])  # a schedule after its optimiser
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{self.path} was made by a run with other settings ({reason}). "
                f"Use those settings again, or delete the file to start over."
            ) from error
        engine.state.epoch, within = state["epoch"], state["iteration_of_epoch"]
        if state["epoch_length"] != engine.state.epoch_length:  # other data or batch size: the epoch begins again
            within = 0
        engine.state.iteration = engine.state.epoch * engine.state.epoch_length + within
        logger.info(f"{self.path}: resuming after epoch {engine.state.epoch} of {engine.state.max_epochs}")
        if engine.state.epoch >= engine.state.max_epochs:
            logger.warning(f"{self.path}: all epochs are done, nothing is left to train. Delete it to start over.")

    def save(self, engine: Engine) -> None:
        epoch, within = divmod(engine.state.iteration, engine.state.epoch_length)
        position = {"epoch": epoch, "iteration_of_epoch": within, "epoch_length": engine.state.epoch_length}
        if self.writes:
            states = {name: item.state_dict() for name, item in self.objects.items()}
            save_weights(states | position | {"settings": self.settings}, self.path)
        self._last_save = time.monotonic()
        if self.terminated:
            raise SystemExit(143)  # after engine.terminate() the next stage would start

    def _after_iteration(self, engine: Engine) -> None:
        due = self.terminated or time.monotonic() - self._last_save > 60 * self.every_minutes
        if due and engine.state.iteration % engine.state.epoch_length:  # at the end of an epoch, `save` runs after validation
            self.save(engine)

    def _on_sigterm(self, signum, frame) -> None:
        self.terminated = True

    def _release(self, engine: Engine, error: BaseException | None = None) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        if error is not None:
            raise error


def _restore(item: Any, state: Mapping[str, Any]) -> None:
    """Load a state. Learning rates and the shape of their schedule come from the config, which may have changed since."""
    if isinstance(item, LRScheduler):
        vars(item).update({key: state[key] for key in ("last_epoch", "_step_count", "_last_lr")})
        if isinstance(item, LambdaLR):  # the schedule itself would set it only after the next step or epoch
            for group, base_lr, factor in zip(item.optimizer.param_groups, item.base_lrs, item.lr_lambdas):
                group["lr"] = base_lr * factor(item.last_epoch)
    elif isinstance(item, torch.optim.Optimizer):
        scheduled = ("initial_lr", "max_lr", "min_lr")  # what schedules compute the next rate from
        own = [{key: group[key] for key in scheduled if key in group} or {"lr": group["lr"]} for group in item.param_groups]
        item.load_state_dict(state)
        for group, values in zip(item.param_groups, own):
            group.update(values)
    else:
        item.load_state_dict(state)


class BestWeights:
    """Write the weights of a network whenever a metric of the evaluator is better than ever before.

    Args:
        path: file of the state dict. A network that is not finite is never written.
        network: network without its DDP wrapper.
        metric: name of the evaluator's metric.
        larger_is_better: False for losses.
        restart_at_epoch: epoch from which the loss is another one. Earlier metrics do not count any more then, because the
            adversarial phase gives sharper images of a lower SSIM.
        writes: True on the first rank only.
    """

    def __init__(
        self,
        path: str | Path,
        network: torch.nn.Module,
        metric: str,
        larger_is_better: bool = True,
        restart_at_epoch: int | None = None,
        writes: bool = True,
    ) -> None:
        self.path = Path(path)
        self.network = network
        self.metric = metric
        self.sign = 1 if larger_is_better else -1
        self.writes = writes
        self.best = -math.inf
        self.best_epoch = 0
        self.restart_at_epoch = restart_at_epoch or 0

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        value = float(engine.state.metrics[self.metric])
        if self.best_epoch < self.restart_at_epoch <= engine.state.epoch:
            self.best = -math.inf
        if math.isfinite(value) and self.sign * value > self.best:
            if self.writes:
                save_weights(self.network.state_dict(), self.path)
            self.best, self.best_epoch = self.sign * value, engine.state.epoch
            logger.info(f"{self.path}: best {self.metric} so far, {value:.5f}")

    def state_dict(self) -> dict[str, float]:
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.best, self.best_epoch = state["best"], state["best_epoch"]


class MovingAverage(EMAHandler):
    """Average a network's weights over the steps, in `ema_model`. The first steps count less: momentum 9 / (9 + step).

    With a constant momentum of 1e-4, most of the average after a thousand steps would still be the untrained network.
    """

    def _update_ema_model(self, engine: Engine, name: str) -> None:
        setattr(engine.state, name, max(self.momentum, 9 / (9 + engine.state.iteration)))
        super()._update_ema_model(engine, name)


class Progress:
    """Show one bar for a whole stage, with the time left and the mean loss of the last hundred steps."""

    def __init__(self, description: str) -> None:
        self.description = description
        self.losses: deque[float] = deque(maxlen=100)
        self.bar: tqdm | None = None

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.EPOCH_STARTED, self._open)  # a state is loaded by then
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
    """End the run at the first loss that is NaN or infinite, before it reaches a checkpoint."""

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        if not math.isfinite(engine.state.output[0]["loss"]):
            raise RuntimeError(
                f"the loss of iteration {engine.state.iteration} (epoch {engine.state.epoch}) is not finite: "
                f"{engine.state.output[0]}. The last complete checkpoint is untouched; lower the learning rate and run again."
            )


def validation_interval(at_most: int, epochs: int) -> int:
    """Number of epochs between validations: the largest divisor of `epochs` up to `at_most`, so that the last is validated."""
    return max(n for n in range(1, min(at_most, epochs) + 1) if epochs % n == 0)
