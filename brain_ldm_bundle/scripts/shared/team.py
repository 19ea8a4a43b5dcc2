"""Let the processes that torchrun started share work: rows of a cohort, of which a fast process takes more, or one answer."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import count
from typing import Any

from torch.distributed import HashStore, rendezvous
from tqdm import tqdm

from .base_derivative import BaseDerivative
from .device import ranks

PATIENCE = timedelta(days=30)  # a process may wait for all volumes of another one; torchrun ends it if another one fails
NUMBERS = count()  # of the teams of this process
BLOCK = 1000  # rows that are looked at together


class Team:
    """The processes that share a work, or one process alone. All of them must call the methods in the same order.

    They talk through the key-value store of torchrun, so they need no common device and no process group, and the wait for
    another process has no limit. All of them must make their teams in the same order, too.
    """

    def __init__(self) -> None:
        self.name = f"team{next(NUMBERS)}"
        self.rank, self.size = ranks()
        self.store = next(iter(rendezvous("env://")))[0] if self.size > 1 else HashStore()
        self._calls = 0

    def from_first(self, function: Callable[[], Any]) -> Any:
        """Return what `function` returns in the first process, a value for JSON. The others do not call it, but wait."""
        key = self._next_key()
        if self.rank == 0:
            self.store.set(key, json.dumps(function()))
        return self._get(key)

    def gather(self, value: Any) -> list:
        """Return the values of all processes, each a value for JSON, in the order of their ranks."""
        key = self._next_key()
        self.store.set(f"{key}/{self.rank}", json.dumps(value))
        return [self._get(f"{key}/{rank}") for rank in range(self.size)]

    def batches(self, rows: int, batch_size: int) -> Batches:
        """Deal out `rows` in batches. The result is a `batch_sampler` of PyTorch's DataLoader."""
        return Batches(self, rows, batch_size)

    def finish(self, derivative: BaseDerivative, rows: Sequence[Mapping]) -> None:
        """Let the first process list all volumes of the data set when every process has made its own."""
        self.gather(None)
        self.from_first(lambda: derivative.finish(rows))

    def _next_key(self) -> str:
        self._calls += 1
        return f"{self.name}/{self._calls}"

    def _get(self, key: str) -> Any:
        self.store.wait([key], PATIENCE)
        return json.loads(self.store.get(key))


class Batches:
    """Indices of rows, in batches. Each batch goes to the process that asks first, so that unequal GPUs end together."""

    def __init__(self, team: Team, rows: int, batch_size: int) -> None:
        self.team, self.rows, self.batch_size = team, rows, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        key = self.team._next_key()
        while (start := (self.team.store.add(key, 1) - 1) * self.batch_size) < self.rows:
            yield list(range(start, min(start + self.batch_size, self.rows)))

    def __len__(self) -> int:
        if self.team.size > 1:
            raise TypeError("the number of batches of one process depends on the speed of the others")
        return math.ceil(self.rows / self.batch_size)


def shard_of(rows: Sequence, shard: str | None) -> Sequence:
    """Return the K-th of N parts of the rows, for a shard "K/N", or all rows for None.

    Raises:
        ValueError: the shard is not such a text, or there is no such part.
    """
    if shard is None:
        return rows
    part, _, parts = str(shard).partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise ValueError(f"shard must be K/N with K from 1 to N, such as 3/40 for the third of 40 parts, got {shard!r}")
    return rows[int(part) - 1 :: int(parts)]


def left_to_make(rows: Sequence, is_made: Callable[[Any], bool], threads: int = 1) -> list[int]:
    """Return the indices of the rows for which `is_made(row)` is false. Threads save time only if whole files are read."""
    left = []
    bar = tqdm(desc="Looking for volumes", total=len(rows), leave=False, disable=None)
    with ThreadPoolExecutor(threads) as pool, bar:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            answers = map(is_made, block) if threads == 1 else pool.map(is_made, block)
            left += [start + index for index, made in enumerate(answers) if not made]
            bar.update(len(block))
    return left
