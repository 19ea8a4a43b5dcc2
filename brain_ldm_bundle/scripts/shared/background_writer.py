"""Write volumes in background threads, while the evaluator makes the next ones."""

from __future__ import annotations

import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from ignite.engine import Engine, Events

from .base_derivative import BaseDerivative
from .refusals import end_with, is_bundle_command

THREADS = 2  # chosen: with zlib, a volume of 1 mm takes longer to compress than a fast GPU takes to make it
WAITING = 16  # chosen: largest number of volumes in memory that are not on disk yet


class BackgroundWriter:
    """Write each volume that an evaluator makes. If one is invalid, the others are still made.

    Volumes are rounded on their device. Threads compress and write them. The evaluator waits while `WAITING` volumes are not on
    disk. When its run ends, every volume is on disk, also after an error or Ctrl-C. On SIGTERM, the evaluator completes its
    batch. Then the run ends with exit status 143.

    A full disk (OSError) ends the run. Files that were written stay, and the same command makes the others later.

    A subclass defines `volumes(engine)`, which yields the arguments of `derivative.write` for each volume of a batch.
    """

    def __init__(self, derivative: BaseDerivative) -> None:
        self.derivative = derivative
        self.problems: list[str] = []
        self.terminated = False
        self._waiting: deque[Future] = deque()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="write")
        self._handler_before: Any = None

    def volumes(self, engine: Engine) -> Iterator[tuple[Any, torch.Tensor, Any]]:
        raise NotImplementedError

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._end)

    def __call__(self, engine: Engine) -> None:
        for row, volume, other in self.volumes(engine):
            try:
                stored = self.derivative.stored(row, volume)
            except ValueError as error:
                self.problems.append(str(error))
                continue
            self._wait(WAITING - 1)
            self._waiting.append(self._threads.submit(self.derivative.write, row, stored, other))
        if self.terminated:
            raise SystemExit(143)

    def report(self) -> None:
        """Raise an error if volumes were not written, and list them."""
        if self.problems:
            raise RuntimeError("\n".join([f"{len(self.problems)} volumes were not written, all others were:", *self.problems]))

    def _start(self, engine: Engine) -> None:
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            self._handler_before = signal.signal(signal.SIGTERM, self._on_sigterm)

    def _wait(self, most: int) -> None:
        """Wait for the oldest volumes until at most this number is left."""
        while len(self._waiting) > most:
            try:
                self._waiting.popleft().result()
            except ValueError as error:
                self.problems.append(str(error))

    def _end(self, engine: Engine, error: BaseException | None = None) -> None:
        try:
            self._wait(0)
        finally:
            if self._handler_before is not None:
                signal.signal(signal.SIGTERM, self._handler_before)
                self._handler_before = None
            if isinstance(error, SystemExit) and is_bundle_command():
                end_with("error: stopped by SIGTERM, and each volume that was made is on disk. Run the same command again")
            if error is not None:
                raise error

    def _on_sigterm(self, signum: int, frame: Any) -> None:
        self.terminated = True
