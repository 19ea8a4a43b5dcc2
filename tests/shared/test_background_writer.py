"""Volumes are written while the next ones are made, and none that was made is lost."""

import os
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from ignite.engine import Engine

from brain_ldm_bundle.scripts.shared.background_writer import THREADS, WAITING, BackgroundWriter
from brain_ldm_bundle.scripts.shared.base_derivative import BaseDerivative

SHAPE = (3, 5, 4)


class Folder(BaseDerivative):
    """Writes the voxels of each volume to a file of its own, after `before(row)`."""

    generator = "test"

    def __init__(self, folder, before=lambda row: None):
        super().__init__(folder, "uint8", "test")
        self.before = before

    def image_file(self, row):
        return self.output_dir / f"sub-{row}_T1w.nii.gz"

    def write(self, row, volume, other):
        self.before(row)
        self.image_file(row).write_bytes(volume.tobytes() + other)

    def written(self):
        return sorted(int(path.name[4:-11]) for path in self.output_dir.iterdir())


@dataclass
class Rows(BackgroundWriter):
    """One batch has the rows of an item of the engine's data; their volumes have the value row / 100."""

    derivative: Folder

    def __post_init__(self):
        super().__init__(self.derivative)

    def volumes(self, engine):
        for row in engine.state.batch:
            yield row, torch.full(SHAPE, torch.nan if row < 0 else row / 100), b"other"


def run(derivative, batches, make=lambda row: None):
    """Run an engine that calls `make(row)` for each row of the batches, and return its writer."""
    writer, engine = Rows(derivative), Engine(lambda engine, batch: [make(row) for row in batch])
    writer.attach(engine)
    engine.run(batches)
    return writer


@pytest.fixture
def folder(tmp_path):
    return tmp_path


def test_all_volumes_are_on_disk_when_the_run_ends(folder):
    derivative = Folder(folder, lambda row: threading.Event().wait(0.01))
    run(derivative, [[1, 2], [3]]).report()
    assert derivative.written() == [1, 2, 3]
    expected = np.full(SHAPE, round(0.03 * 255), np.uint8).tobytes() + b"other"
    assert derivative.image_file(3).read_bytes() == expected


def test_the_next_volume_is_made_while_the_first_is_written(folder):
    second = threading.Event()
    derivative = Folder(folder, lambda row: row == 2 or second.wait(60) or pytest.fail("the evaluator waited for the disk"))
    run(derivative, [[1], [2]], lambda row: row == 2 and second.set()).report()
    assert derivative.written() == [1, 2]


def test_memory_holds_a_fixed_number_of_volumes(folder):
    most, released = [], threading.Event()

    def count(row):
        most.append(row - len(derivative.written()))
        if row == WAITING + 1:
            released.set()

    derivative = Folder(folder, lambda row: row > THREADS or released.wait(60))  # all threads wait at first
    run(derivative, [[row] for row in range(1, 4 * WAITING)], count)
    assert max(most) == WAITING + 1  # and the one that is being made


def test_one_bad_volume_does_not_stop_the_others(folder):
    def fail(row):
        if row == 2:
            raise ValueError("sub-2: no")

    derivative = Folder(folder, fail)
    writer = run(derivative, [[1, 2], [-3, 4]])
    assert derivative.written() == [1, 4]
    with pytest.raises(RuntimeError, match="2 volumes were not written, all others were:\n") as caught:
        writer.report()
    assert "sub--3_T1w.nii.gz: 60 of 60 voxels are NaN or infinite" in str(caught.value) and "sub-2: no" in str(caught.value)


def test_a_full_disk_ends_the_run_and_keeps_what_was_written(folder):
    def fail(row):
        if row == 3:
            raise OSError("No space left on device")

    derivative, made = Folder(folder, fail), []
    with pytest.raises(OSError, match="No space"):
        run(derivative, [[row] for row in range(1, 1000)], made.append)
    assert len(made) < 999 and set(made) - {3, made[-1]} <= set(derivative.written())


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_loses_no_volume_that_was_made(folder, error):
    def make(row):
        if row == 5:
            raise error

    derivative = Folder(folder, lambda row: threading.Event().wait(0.05))
    with pytest.raises(error):
        run(derivative, [[1], [2], [3, 4], [5]], make)
    assert derivative.written() == [1, 2, 3, 4]


def test_sigterm_loses_no_volume_that_was_made(folder):
    """A batch system sends it before it ends a job."""
    before = signal.getsignal(signal.SIGTERM)
    derivative = Folder(folder, lambda row: threading.Event().wait(0.05))
    with pytest.raises(SystemExit) as caught:
        run(derivative, [[1], [2, 3], [4]], lambda row: row == 2 and os.kill(os.getpid(), signal.SIGTERM))
    assert caught.value.code == 143
    assert derivative.written() == [1, 2, 3]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_command_that_sigterm_stops_says_so_last(folder):
    code = (
        "import os, signal, sys; from pathlib import Path; sys.argv[0] = 'monai.bundle'\n"
        "from test_background_writer import Folder, run\n"
        "run(Folder(Path(sys.argv[1]), lambda row: None), [[1], [2]], lambda row: os.kill(os.getpid(), signal.SIGTERM))"
    )
    tests = str(Path(__file__).parent)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([tests, str(ROOT / "tests"), str(ROOT)])}
    ended = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, env=environment)
    assert ended.returncode == 143, ended.stderr
    *_, last = ended.stderr.splitlines()
    assert last == "error: stopped by SIGTERM, and each volume that was made is on disk. Run the same command again"
