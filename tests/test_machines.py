"""The Dockerfile and the jobs of Slurm in the pages are valid, as far as a machine without Docker and Slurm can tell."""

import json
import os
import re
import shlex
import shutil
import subprocess

import pytest
from conftest import ROOT
from test_readme import check

PAGE = ROOT / "brain_ldm_bundle" / "docs" / "machines.md"
DOCKERFILE = ROOT / "scripts" / "Dockerfile"
PAGES = sorted(ROOT.glob("*_bundle/docs/*.md"))
JOBS = [
    job
    for page in PAGES
    for job in re.findall(r"^ *```\n( *#!/bin/bash\n.*?)^ *```", page.read_text(), re.MULTILINE | re.DOTALL)
]  # fmt: skip


def instructions():
    """Lines of the Dockerfile as (instruction, arguments); continued lines are joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", "")
    return [tuple(line.split(maxsplit=1)) for line in text.splitlines() if line.strip()]


def copy_into(image, before_run):
    """Repeat the COPY instructions before or after the installation."""
    names = [name for name, _ in instructions()]
    some = instructions()[: names.index("RUN")] if before_run else instructions()[names.index("RUN") :]
    for name, arguments in some:
        if name == "COPY":
            *sources, target = arguments.split()
            for source in sources:
                path = ROOT / source
                to = image / target / (path.name if target.endswith("/") else "")
                if path.is_dir():
                    ignore = shutil.ignore_patterns("models", "eval", "cache", "__pycache__")
                    shutil.copytree(path, to, ignore=ignore, dirs_exist_ok=True)
                else:
                    to.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, to)


@pytest.mark.parametrize(("device", "index"), [("cpu", "https://download.pytorch.org/whl/cpu"), ("cuda", ""), ("gpu", None)])
def test_the_image_installs_the_tested_versions_and_its_command_starts(tmp_path, device, index):
    """A false Python records the installation, the only step that needs a network. None means: DEVICE is refused."""
    image, environment, log = tmp_path / "image", tmp_path / "venv", tmp_path / "log"
    copy_into(image, before_run=True)
    false_python = f'#!/bin/bash\n[ "$1" != -m ] || echo "$PIP_EXTRA_INDEX_URL $*" >> {log}\n'
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").write_text(false_python)
    (environment / "bin" / "python").chmod(0o755)
    variables = {"VIRTUAL_ENV": str(environment), "PATH": f"{environment / 'bin'}:{os.environ['PATH']}"}
    shell = {"cwd": image, "env": os.environ | variables | {"DEVICE": device, "PIP_EXTRA_INDEX_URL": ""}, "text": True}
    [run] = [arguments for name, arguments in instructions() if name == "RUN"]
    built = subprocess.run(["bash", "-ec", run], **shell, capture_output=True)
    if index is None:
        assert built.returncode == 2 and not log.exists() and "DEVICE must be cpu or cuda" in built.stderr
        return
    assert built.returncode == 0, built.stderr
    [made, installed] = log.read_text().splitlines()
    assert made == f"{index} -m venv {environment}"
    assert installed == f"{index} -m pip install --quiet --requirement requirements.txt --constraint constraints.txt"

    copy_into(image, before_run=False)
    [command] = [json.loads(arguments) for name, arguments in instructions() if name == "CMD"]
    assert (image / command[1]).is_file()
    started = subprocess.run([*command, "--help"], **shell, capture_output=True)
    assert started.returncode == 0 and started.stdout.startswith("bash scripts/demo.sh")
    again = subprocess.run(["bash", "-euc", ". scripts/setup.sh"], **shell, capture_output=True)
    assert again.returncode == 0 and len(log.read_text().splitlines()) == 2, "a container must not install again"
    missing = [name for name in json.loads(demo_files()) if not (image / name).is_file()]
    assert missing == []


def demo_files():
    """Scripts and configs that the demo names, as JSON."""
    text = (ROOT / "scripts" / "demo.sh").read_text()
    names = re.findall(r"scripts/\w+\.py|\w+_bundle/configs/\w+\.json", text)
    assert len(names) > 5
    return json.dumps(names)


def test_the_image_has_a_python_that_is_tested():
    [base] = [arguments for name, arguments in instructions() if name == "FROM"]
    version = re.fullmatch(r"python:(3\.\d+)-slim", base)[1]
    assert f'"{version}"' in (ROOT / ".github" / "workflows" / "tests.yml").read_text()


@pytest.mark.parametrize("job", JOBS, ids=range(len(JOBS)))
def test_a_job_of_slurm_is_valid(job, monkeypatch):
    assert subprocess.run(["bash", "-n"], input=job, text=True).returncode == 0
    first, options, *lines = [line.strip() for line in job.replace("\\\n", "").splitlines()]
    assert first == "#!/bin/bash" and options.startswith("#SBATCH --") and len(lines) == 1
    words = shlex.split(lines[0].replace("$SLURM_ARRAY_TASK_ID", "1"))
    assert words[0] == "srun"
    check(shlex.join(words[1:]), ROOT, monkeypatch)
    array = re.search(r"--array=1-(\d+)", options)
    assert bool(array) == ("--shard" in words)
    if array:
        assert words[words.index("--shard") + 1] == f"1/{array[1]}"
    else:
        assert f"--gres=gpu:{words[words.index('--nproc_per_node') + 1]} " in options


def test_there_are_jobs_for_training_and_for_cohorts():
    assert sum("torchrun" in job for job in JOBS) == 1 and sum("--shard" in job for job in JOBS) >= 2


def test_commands_inside_containers_are_valid(monkeypatch):
    blocks = re.findall(r"^```\n((?:docker|apptainer) .*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", "").splitlines()]
    inside = [shlex.split(line[line.index("python -m") :]) for line in lines if "python -m" in line]
    assert len(lines) == 6 and len(inside) == 2
    for words in inside:
        check(shlex.join(words), ROOT, monkeypatch)
    for line in lines:
        for name in re.findall(r"--build-arg (\w+)=", line):
            assert ("ARG", f"{name}=cpu") in instructions()
        for file in re.findall(r"--file (\S+)", line):
            assert (ROOT / file).is_file()
    workdir = dict(instructions())["WORKDIR"]
    assert f"--pwd {workdir} " in PAGE.read_text()
