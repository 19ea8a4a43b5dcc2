"""demo.sh: its steps in order, resumed after a failure, and never a folder deleted that is not its own.

The fast tests put a shell script in the place of Python, which notes what it is asked to do. The slow one is real.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

STEPS = ["make_demo_data.py", "training", "make_requests.py", "inference.json", "evaluate.json"]
STEPS += ["measure_volumes.py", "measure_volumes.py", "report.py"]
STEPS += ["spade/training", "--variants", "spade/evaluation"]
PYTHON = """#!/bin/bash
if [ "$1" = -c ] || [ "$2" = pip ]; then exit 0; fi
echo "$@" >> "{log}"
case "$*" in *"$FAIL_AT"*) [ -z "$FAIL_AT" ] || exit 3 ;; esac
case "$*" in
    *make_demo_data.py*)
        mkdir -p "$2"
        printf 'participant_id\\tage\\tsplit\\nsub-0001\\t60\\ttrain\\nsub-0002\\t61\\ttest\\n' > "$2/participants.tsv" ;;
esac
"""


@pytest.fixture
def demo(tmp_path):
    """Run demo.sh with arguments; gives its process and the commands of this run."""
    environment = tmp_path / "a venv"
    (environment / "bin").mkdir(parents=True)
    log = tmp_path / "commands.txt"
    (environment / "bin" / "python").write_text(PYTHON.format(log=log))
    (environment / "bin" / "python").chmod(0o755)
    shutil.copy(ROOT / "requirements.txt", environment / "installed-requirements.txt")

    def run(*arguments, fail_at=""):
        log.unlink(missing_ok=True)
        path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        variables = os.environ | {"VIRTUAL_ENV": str(environment), "PATH": path, "FAIL_AT": fail_at}
        command = ["bash", str(ROOT / "scripts" / "demo.sh"), *map(str, arguments)]
        process = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        return process, log.read_text().splitlines() if log.exists() else []

    return run


def test_the_steps_run_in_order_and_the_end_says_where_the_results_are(demo, tmp_path):
    process, commands = demo("--output", tmp_path / "my demo")
    assert process.returncode == 0, process.stderr
    assert len(commands) == len(STEPS)
    for command, step in zip(commands, STEPS):
        assert step in command
    for k in range(1, 12):
        assert f"[{k}/11]" in process.stdout
    assert f"{tmp_path}/my demo/report.html\n  {tmp_path}/my demo/report.png\n" in process.stdout
    assert "not for clinical use" in process.stdout


def test_only_test_scans_are_measured(demo, tmp_path):
    _, commands = demo("--output", tmp_path / "my demo")
    assert "sub-0002_T1w.nii.gz" in commands[6] and "sub-0001" not in commands[6]


def test_a_second_run_does_nothing_again(demo, tmp_path):
    demo("--output", tmp_path / "out")
    process, commands = demo("--output", tmp_path / "out")
    assert process.returncode == 0 and commands == [] and process.stdout.count("done before") == 10


def test_a_failure_names_its_step_and_the_next_run_goes_on_there(demo, tmp_path):
    process, _ = demo("--output", tmp_path / "out", fail_at="inference.json")
    assert process.returncode != 0
    assert "Stopped in step [5/11] Generate" in process.stderr and "--fresh" in process.stderr
    process, commands = demo("--output", tmp_path / "out")
    assert process.returncode == 0 and "inference.json" in commands[0] and len(commands) == len(STEPS) - 3


def test_fresh_starts_over_in_its_own_folder_only(demo, tmp_path):
    demo("--output", tmp_path / "out")
    (tmp_path / "out" / "old").touch()
    (tmp_path / "beside").touch()
    process, commands = demo("--output", tmp_path / "out", "--fresh")
    assert process.returncode == 0 and len(commands) == len(STEPS)
    assert not (tmp_path / "out" / "old").exists() and (tmp_path / "beside").exists()


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_folder_of_others_is_refused_and_left_alone(demo, tmp_path, fresh):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    process, commands = demo("--output", tmp_path / "thesis", *fresh)
    assert process.returncode == 1 and "did not make" in process.stderr and commands == []
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


def test_a_tiny_demo_is_not_mixed_with_a_whole_one(demo, tmp_path):
    demo("--output", tmp_path / "out", "--tiny")
    process, commands = demo("--output", tmp_path / "out")
    assert process.returncode == 1 and "other settings" in process.stderr and commands == []


def test_unknown_options_are_refused_and_help_is_given(demo):
    process, commands = demo("--fast")
    assert process.returncode == 2 and "unknown option: --fast" in process.stderr and commands == []
    process, _ = demo("--help")
    assert process.returncode == 0 and "--fresh" in process.stdout


@pytest.mark.slow
def test_the_tiny_demo_makes_a_page_and_a_picture(tmp_path):
    command = ["bash", str(ROOT / "scripts" / "demo.sh"), "--tiny", "--output", str(tmp_path / "out")]
    python = Path(shutil.which("python")).parent.parent
    variables = os.environ | {"VIRTUAL_ENV": os.environ.get("VIRTUAL_ENV", str(python))}
    process = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-3000:]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "8 generated volumes" in page and "4 test" in page and (tmp_path / "out" / "report.png").stat().st_size > 10_000
