"""Every tool answers --help and --version before it imports what takes seconds, and all of them end with the same statuses."""

import json
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

TOOLS = sorted(path for path in ROOT.glob("scripts/*.py") if "refusals.run(main)" in path.read_text())
SLOW = {"torch", "monai", "pandas", "scipy", "sklearn", "skimage", "matplotlib", "nibabel", "SimpleITK"}
ASK_ALL = """
import contextlib, io, json, runpy, sys
sys.path.insert(0, {scripts!r})
answers = {{}}
for path in {tools!r}:
    sys.argv = [path, {option!r}]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            runpy.run_path(path, run_name="__main__")
        except SystemExit as ended:
            status = ended.code
    answers[path] = [status, out.getvalue(), sorted({slow!r} & sys.modules.keys())]
print(json.dumps(answers))
"""


def ask_all(option):
    """Run all tools in one interpreter; return the exit status, the text and the slow modules imported so far of each."""
    code = ASK_ALL.format(scripts=str(ROOT / "scripts"), tools=[str(path) for path in TOOLS], option=option, slow=SLOW)
    return json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_help_imports_nothing_slow_and_states_the_exit_statuses():
    """measure_volumes.py --help took 5.8 s, because it imported PyTorch and MONAI first."""
    answers = ask_all("--help")
    assert len(answers) > 12
    for path, (status, text, slow) in answers.items():
        assert status == 0 and text.startswith("usage: ") and slow == [], f"{path}: {status}, {slow}"
        assert "--version" in text and "exit status: 0" in text and "130" in text, path


def test_version_is_that_of_the_bundle():
    version = json.loads((ROOT / "brain_ldm_bundle" / "configs" / "metadata.json").read_text())["version"]
    for path, (status, text, slow) in ask_all("--version").items():
        assert (status, text.split()[-1], slow) == (0, version, []), path
    for script in ("demo.sh", "start_monailabel.sh"):
        assert subprocess.check_output(["bash", ROOT / "scripts" / script, "--version"], text=True).strip() == version


def test_wrong_options_end_with_status_2():
    answer = subprocess.run([sys.executable, ROOT / "scripts" / "report.py", "--gone"], capture_output=True, text=True)
    assert answer.returncode == 2 and "error: " in answer.stderr.splitlines()[-1]


def test_ctrl_c_ends_with_status_130():
    code = "from shared import refusals\ndef main(): raise KeyboardInterrupt\nrefusals.run(main)"
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", capture_output=True, text=True)
    assert answer.returncode == -signal.SIGINT, "which shells report as 128 + 2"
    assert answer.stderr.splitlines()[-1] == "error: stopped by Ctrl-C. Run the same command again"


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_hides_progress_bars(quiet):
    code = (
        "import sys\nfrom command_line import Parser\nparser = Parser()\nparser.add_quiet()\n"
        "assert vars(parser.parse_args()) == {}\nfrom tqdm import tqdm\nlist(tqdm([1, 2]))\n"
    )
    command = [sys.executable, "-c", code, *(["--quiet"] if quiet else [])]
    answer = subprocess.run(command, cwd=ROOT / "scripts", capture_output=True, text=True, check=True)
    assert bool(answer.stderr) is not quiet


def test_every_tool_with_progress_bars_takes_quiet():
    for path in TOOLS:
        if "tqdm(" in path.read_text():
            assert "parser.add_quiet()" in path.read_text(), path
