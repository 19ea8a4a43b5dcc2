"""Save the state of a training stage, and resume from it when the same command runs again."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from .files import read_tensors, refuse_unwritable, save_weights
from .handlers import BestWeights
from .refusals import end_with, is_bundle_command

PROSE = {"_desc_", "description", "source"}  # keys of settings that only a reader uses

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Resume:
    """Save the whole state of a stage in one file, and load it when the same command runs again.

    The state is saved after every epoch, every `every_minutes` within an epoch, and on SIGTERM, which then ends the run with
    exit status 143. A run that resumes at the end of an epoch gives bit-identical results. If it resumes within an epoch, the
    rest of that epoch has other random draws. The state is saved after all other handlers of an event have run.

    Objects have `state_dict` and `load_state_dict`: networks without their DDP wrapper, optimisers, schedulers, `BestWeights`.
    A file that was saved with other `settings` is refused, and so is one that another run writes meanwhile.
    """

    path: str | Path
    objects: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    writes: bool = True  # True on the first rank only
    remedy: str = ""  # end of the message that refuses other settings
    every_minutes: float = 10  # a SIGKILL loses at most this much work
    terminated: bool = field(default=False, init=False)
    _before: Any = field(default=None, init=False)  # handler of SIGTERM before the run
    _seen: tuple | None = field(default=None, init=False)  # identity of the file when this run read or wrote it

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self.load)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._release)

    def load(self, engine: Engine) -> None:
        if not engine.has_event_handler(self.save):  # handlers that are added now run after all others
            engine.add_event_handler(Events.ITERATION_COMPLETED, self._after_iteration)
            engine.add_event_handler(Events.EPOCH_COMPLETED, self.save)
        self._last_save = time.monotonic()
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            self._before = signal.signal(signal.SIGTERM, self._on_sigterm)
        if self.writes:
            refuse_unwritable(self.path)  # else the first epoch would be lost
        self._seen = _identity(self.path)
        if self._seen is None:
            return
        try:
            state = read_tensors(self.path)
        except ValueError as error:
            raise ValueError(
                f"{self.path}: this state of an interrupted training is damaged. Delete it to start the stage over"
            ) from error
        try:
            settings = _without_prose(self.settings)
            for name, value in _without_prose(state.get("settings", {})).items():
                if settings.get(name, value) != value:  # settings of earlier versions that are gone are ignored
                    hashed = name in ("data", "seen_voxels")
                    now = (
                        "other scans, maps, covariates, splits or initial weights, or an earlier version and images that "
                        "are not .nii.gz"
                        if hashed
                        else f"{value}, now {settings[name]}"
                    )
                    raise ValueError(f"{name}: {now}")
            for name, item in sorted(self.objects.items(), key=lambda pair: isinstance(pair[1], LRScheduler)):
                _restore(item, state[name])  # schedules after their optimisers
            epoch, within, epoch_length = (state[key] for key in ("epoch", "iteration_of_epoch", "epoch_length"))
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{self.path} was made by a run with other settings ({reason}). "
                f"Use those settings again, or delete the file to start over. {self.remedy}".strip()
            ) from error
        engine.state.epoch = epoch
        if epoch_length != engine.state.epoch_length:  # the data or batch size changed: repeat the epoch
            within = 0
        engine.state.iteration = engine.state.epoch * engine.state.epoch_length + within
        logger.info(f"{self.path}: resuming after epoch {engine.state.epoch} of {engine.state.max_epochs}")
        if engine.state.epoch >= engine.state.max_epochs:
            for lost in [item.path for item in self.objects.values() if isinstance(item, BestWeights) and item.is_lost()]:
                raise FileNotFoundError(
                    f"{lost}: these weights are missing, and all epochs are done, so nothing would write them again. Put the "
                    f"file back, or delete {self.path} to train the stage again"
                )
            logger.warning(f"{self.path}: all epochs are done, nothing is left to train. Delete it to start over.")

    def save(self, engine: Engine) -> None:
        epoch, within = divmod(engine.state.iteration, engine.state.epoch_length)
        position = {"epoch": epoch, "iteration_of_epoch": within, "epoch_length": engine.state.epoch_length}
        if self.writes:
            states = {name: item.state_dict() for name, item in self.objects.items()}
            save_weights(states | position | {"settings": dict(self.settings)}, self.path)
            self._seen = _identity(self.path)
        self._last_save = time.monotonic()
        if self.terminated:
            if self.writes and is_bundle_command():
                end_with(f"error: stopped by SIGTERM, and {self.path} is saved. Run the same command again")
            raise SystemExit(143)  # engine.terminate() would let the next stage start

    def _after_iteration(self, engine: Engine) -> None:
        if self.writes and _identity(self.path) not in (None, self._seen):  # before validation, which may replace the weights
            raise ValueError(f"{self.path}: another run writes this file, too. Wait for it, or give another --models_dir")
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


def _identity(path: str | Path) -> tuple | None:
    """Return what tells a file from a later one with its name, or None if there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _without_prose(setting: Any) -> Any:
    """Drop descriptions from nested settings. Their wording may change between versions, and no training depends on it."""
    if isinstance(setting, Mapping):
        return {key: _without_prose(value) for key, value in setting.items() if key not in PROSE}
    return [_without_prose(value) for value in setting] if isinstance(setting, (list, tuple)) else setting


def _restore(item: Any, state: Mapping[str, Any]) -> None:
    """Load a state, but keep the learning rates and schedules of the config, which may have changed."""
    if isinstance(item, LRScheduler):
        vars(item).update({key: state[key] for key in ("last_epoch", "_step_count", "_last_lr")})
        if isinstance(item, LambdaLR):  # the scheduler sets it only at its next step
            for group, base_lr, factor in zip(item.optimizer.param_groups, item.base_lrs, item.lr_lambdas):
                group["lr"] = base_lr * factor(item.last_epoch)
    elif isinstance(item, torch.optim.Optimizer):
        scheduled = ("initial_lr", "max_lr", "min_lr")  # schedulers compute the next rate from these
        own = [{key: group[key] for key in scheduled if key in group} or {"lr": group["lr"]} for group in item.param_groups]
        item.load_state_dict(state)
        for group, values in zip(item.param_groups, own):
            group.update(values)
    else:
        item.load_state_dict(state)
