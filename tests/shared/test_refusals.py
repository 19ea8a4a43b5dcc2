"""A program that fails ends with one sentence: what, where, the value and what to do."""

import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset
from monai.transforms import Compose

from brain_ldm_bundle.scripts.shared import refusals
from brain_ldm_bundle.scripts.shared.problems import refuse


def refuse_it(item=None):
    refuse([f"{item}: bad", "b.nii: worse"], "two problems:")


def sentence_of(function, *arguments):
    with pytest.raises(BaseException) as error:
        function(*arguments)
    return refusals.sentence(error.value)


EXPECTED = "two problems:\na.nii: bad\nb.nii: worse"


def test_the_sentence_is_found_below_the_wrappers_of_a_config():
    config = {"_target_": f"{__name__}.refuse_it", "item": "a.nii"}
    parser = ConfigParser({"inner": config, "run": "$len(@inner)"})
    assert sentence_of(parser.get_parsed_content, "run") == EXPECTED


@pytest.mark.parametrize("num_workers", [0, 1])
def test_the_sentence_is_found_below_transforms_and_in_the_text_of_a_worker(num_workers):
    loader = DataLoader(Dataset(["a.nii"], Compose([refuse_it])), num_workers=num_workers)
    assert sentence_of(list, loader) == EXPECTED


def test_the_sentence_of_another_process_is_found():
    with ProcessPoolExecutor(1) as pool:
        assert sentence_of(pool.submit(Compose([refuse_it]), "a.nii").result) == EXPECTED


def test_an_error_of_a_file_names_the_file(tmp_path):
    assert sentence_of(open, tmp_path) == f"{tmp_path}: Is a directory"
    full = OSError(28, "No space left on device", "/data/x.nii")
    assert refusals.sentence(full) == "/data/x.nii: No space left on device"


def test_an_error_that_nobody_raised_on_purpose_is_unexpected_and_says_where():
    line = sentence_of(refuse, 5)
    assert line.startswith("unexpected TypeError: 'int' object is not iterable") or "has no len()" in line
    assert "(scripts/shared/problems.py:" in line and line.endswith("Set BUNDLE_DEBUG=1 to see the traceback")


def test_too_little_memory_says_what_to_do():
    assert "this machine has too little memory (Unable to allocate" in sentence_of(np.zeros, 1 << 58)
    assert "this machine has too little memory" in sentence_of(torch.zeros, 1 << 58)
    assert "smaller batches" in refusals.sentence(MemoryError())
    gpu = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 1 GiB ...")
    assert refusals.sentence(gpu).startswith("the GPU has too little memory. CUDA out of memory. Tried to allocate 2.00 GiB. C")
    assert refusals.sentence(KeyboardInterrupt()) == "stopped by Ctrl-C. Run the same command again"


PROGRAM = """
import atexit, sys
sys.argv[0] = "/lib/monai/bundle/__main__.py"
sys.path.insert(0, "brain_ldm_bundle/scripts")
from shared import problems, refusals
refusals.install()
atexit.register(print, "late chatter", file=sys.stderr)
problems.refuse(["a.nii: bad"])
"""


@pytest.mark.parametrize("debug", ["", "1"])
def test_the_sentence_is_the_last_line_of_a_bundle_and_the_exit_status_is_1(debug):
    environment = dict(os.environ, BUNDLE_DEBUG=debug)
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "error: a.nii: bad"
    assert ("Traceback" in done.stderr) == bool(debug)


def test_the_sentence_is_the_last_line_although_stdout_is_closed():
    command = ["bash", "-c", '"$0" -c "$1" >&-', sys.executable, PROGRAM]
    done = subprocess.run(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1] == "error: a.nii: bad"


def test_a_tool_prints_a_path_that_the_terminal_lacks_letters_for():
    code = "from shared import refusals\nrefusals.run(lambda: print('Größe'))"
    environment = dict(os.environ, PYTHONIOENCODING="ascii")
    said = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT / "scripts", env=environment, text=True)
    assert said == "Gr\\xf6\\xdfe\n"


def test_a_package_that_is_missing_is_named():
    assert sentence_of(__import__, "no_such_package") == "No module named 'no_such_package'. Install it with pip"


def test_torchrun_shows_the_sentence_of_the_first_rank_in_its_summary(tmp_path):
    waits = "import signal, time\ntime.sleep = lambda seconds: print('waits', flush=True) or signal.pause()\n"

    def start(rank):
        environment = dict(os.environ, TORCHELASTIC_ERROR_FILE=str(tmp_path / f"{rank}.json"), RANK=str(rank))
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen([sys.executable, "-c", waits + PROGRAM], cwd=ROOT, env=environment, **pipes)

    first, second = start(0), start(1)
    assert first.wait() == 1 and first.stderr.read() == ""
    message = json.loads((tmp_path / "0.json").read_text())["message"]
    assert message["message"] == "error: a.nii: bad" and message["extraInfo"].keys() == {"timestamp"}
    assert second.stdout.readline() == "waits\n"  # it fails at the same time, and waits for the launcher, which ends it
    second.terminate()
    second.communicate()
    assert not (tmp_path / "1.json").exists()
