"""Measure time, floating-point operations and memory of two ways to the same result, in turns."""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

CLEAR = Path("/proc/self/clear_refs")  # Linux: writing 5 resets the highest resident memory


@dataclass
class Case:
    """Two ways to do the same work: `theirs` with MONAI's modules as the zoo's bundles use them, and `ours`."""

    name: str
    theirs: Callable[[], object]
    ours: Callable[[], object]
    comment: str = ""  # what differs
    same: bool = True  # whether both return the same tensor


class Meter:
    """Measure on one device: seconds on a GPU, CPU seconds of all threads on a CPU, where other programs may run, too."""

    def __init__(self, device: torch.device, bfloat16: bool) -> None:
        self.device, self.cuda = device, device.type == "cuda"
        self.rate = max(self._rate(torch.bfloat16 if bfloat16 else torch.float32) for _ in range(3))

    def _rate(self, dtype: torch.dtype) -> float:
        """Return the floating-point operations per second of a large product of matrices, which is the floor of all cases."""
        side = 8192 if self.cuda else 1024
        a = torch.randn(side, side, device=self.device, dtype=dtype)
        a @ a
        return 2 * side**3 / self.seconds(lambda: a @ a)[0]

    def seconds(self, work: Callable[[], object]) -> tuple[float, object]:
        """Return how long a call takes, and its result."""
        clock = time.perf_counter if self.cuda else time.process_time
        self._wait()
        start = clock()
        result = work()
        self._wait()
        return max(clock() - start, 1e-9), result

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def _peak_gib(self, work: Callable[[], object]) -> tuple[float | None, object]:
        """Return the memory that a call needs at most beyond what is held before, None if unknown, and the call's result."""
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            result = work()
            return (torch.cuda.max_memory_allocated(self.device) - before) / 2**30, result
        try:
            CLEAR.write_text("5")
        except OSError:  # not Linux
            return None, work()
        before = _status("VmRSS")
        result = work()
        return max(0, _status("VmHWM") - before) / 2**20, result

    def compare(self, case: Case, repeats: int) -> dict:
        """Measure both ways of a case in turns; times are medians.

        The first call of each way counts operations and memory, and prepares what later calls reuse. With 0 repeats, its time
        counts, too.
        """
        found: dict = {"case": case.name, "comment": case.comment}
        ways = {"theirs": case.theirs, "ours": case.ours}
        results, times = {}, {}
        for way, work in ways.items():
            with FlopCounterMode(display=False) as counter:
                found[f"{way}_peak_gib"], (seconds, results[way]) = self._peak_gib(lambda work=work: self.seconds(work))
            found[f"{way}_tflop"] = counter.get_total_flops() / 1e12
            times[way] = [] if repeats else [seconds]
        if case.same:
            ours, theirs = (results[way].float() for way in ("ours", "theirs"))
            found["relative_difference"] = float((ours - theirs).norm() / theirs.norm())
        results.clear()
        for _ in range(repeats):
            for way, work in ways.items():
                times[way].append(self.seconds(work)[0])
        for way, seconds in times.items():
            found[f"{way}_s"] = statistics.median(seconds)
        found["ratio"] = statistics.median(theirs / ours for theirs, ours in zip(*times.values()))
        floor = found["ours_tflop"] * 1e12 / self.rate
        found["share_of_floor"] = floor / found["ours_s"] if floor else None
        return found


def _status(name: str) -> int:
    """Return a size in KiB from the kernel's description of this process."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1])


def highest_gib() -> float:
    """Return the highest resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)
