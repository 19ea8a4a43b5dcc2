"""demo.sh runs its steps in order, resumes after a failure, and deletes only its own folders.

The fast tests replace Python by a shell script that records its arguments. The slow test runs the real demo.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT

STUDIES = ["/reader_study", "/spade_reader_study"]
READING = {
    "studies": [f"{name} reader_study.py {what}" for name in STUDIES for what in ("make", "rate")],
    "report": [*(f"{name} reader_study.py score" for name in STUDIES), "report.py --evaluation --synthetic"],
}
STEPS = {  # what each command of a step must name, the set-up left out
    "data": ["make_demo_data.py --spacing_mm 2"],
    "requests": ["--rows 12"],
    "generation": ["first_requests.tsv"],
    "measurement": ["first_volumes.tsv generated"],
    "first_report": ["report.py"],
    "more_generation": ["/requests.tsv generated"],
    "more_measurement": ["generated_volumes.tsv", "cohort_volumes.tsv"],
    "training": ["make_demo_data.py --spacing_mm 4", "training configs/demo.json"],
    "spade_training": ["spade/training"],
    "spade_synthesis": ["--split test"],
    "evaluation": ["spade evaluate.json"],
    **READING,
}
FULL_STEPS = {
    "data": ["make_demo_data.py --spacing_mm 4"],
    "training": ["configs/demo.json --init_diffusion"],
    "requests": ["--rows 64", "--sweep"],
    "generation": ["requests.tsv"],
    "measurement": ["generated --output", "cohort_volumes.tsv"],
    "first_report": ["report.py"],
    "regressor": ["train_regressor.json"],
    "more_generation": ["sweeps.tsv", "--steps 1000"],
    "more_measurement": ["sweeps --output", "sweeps_ages.tsv", "generated_ages.tsv"],
    "evaluation": [
        "--samples --reconstructions_dir",
        "auditing",
        "reconstructed_volumes.tsv measure_volumes.py",
        "reconstructed_ages.tsv predicting",
        "conditioning.py --real_measured --reconstructed_measured --sweeps_measured",
    ],
    "spade_training": ["spade/training"],
    "spade_synthesis": ["--variants", "--split train", "--split test"],
    "spade_evaluation": ["evaluate.json", "segmentation.json"],
    **READING,
}
COMMANDS, FULL_COMMANDS = ([command for some in steps.values() for command in some] for steps in (STEPS, FULL_STEPS))
PYTHON = """#!/bin/bash
if [ "$1" = -c ] || [ "$2" = pip ]; then exit 0; fi
echo "$@" >> "{log}"
[ -z "$FINDINGS" ] || {{ case "$*" in *auditing*) touch "$FINDINGS" ;; esac; }}
case "$*" in *"$FAIL_AT"*) [ -z "$FAIL_AT" ] || exit 3 ;; esac
case "$*" in
    *make_demo_data.py*)
        mkdir -p "$2"
        printf 'participant_id\\tage\\tsplit\\nsub-0001\\t60\\ttrain\\nsub-0002\\t61\\ttest\\n' > "$2/participants.tsv" ;;
    *make_requests.py*) printf '%s\\n' {{1..100}} > "$3" ;;
esac
while [ $# -gt 0 ]; do  # inference makes a volume for each row of the requests
    case "$1" in
        --requests) requests=$2 ;;
        --output_dir) if [ -n "$requests" ]; then mkdir -p "$2" && cp "$requests" "$2/participants.tsv"; fi ;;
    esac
    shift
done
"""


@pytest.fixture
def demo(tmp_path):
    """Run demo.sh with arguments; gives its process and the commands of this run."""
    environment = tmp_path / "a venv"
    (environment / "bin").mkdir(parents=True)
    log = tmp_path / "commands.txt"
    project = tmp_path / "project"
    for bundle in ("brain_ldm_bundle", "spade_fusion_bundle"):
        (project / bundle / "models").mkdir(parents=True)
    for name in ("demo_autoencoder", "demo_model", "demo_2mm_autoencoder", "demo_2mm_model"):
        (project / "brain_ldm_bundle" / "models" / f"{name}.pt").touch()
    (project / "scripts").mkdir()
    for path in ("scripts/demo.sh", "scripts/setup.sh", "requirements.txt", "requirements-dev.txt", "constraints.txt"):
        shutil.copy(ROOT / path, project / path)
    (environment / "bin" / "python").write_text(PYTHON.format(log=log))
    (environment / "bin" / "python").chmod(0o755)

    def run(*arguments, fail_at="", findings=""):
        log.unlink(missing_ok=True)
        path = f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}"
        variables = os.environ | {"VIRTUAL_ENV": str(environment), "PATH": path, "FAIL_AT": fail_at, "FINDINGS": str(findings)}
        command = ["bash", str(project / "scripts" / "demo.sh"), *map(str, arguments)]
        process = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
        return process, log.read_text().splitlines() if log.exists() else []

    return run


@pytest.mark.parametrize(("options", "steps", "expected"), [([], 14, COMMANDS), (["--full"], 16, FULL_COMMANDS)])
def test_the_steps_run_in_order_and_the_end_says_where_the_results_are(demo, tmp_path, options, steps, expected):
    process, commands = demo("--output", tmp_path / "my demo", *options)
    assert process.returncode == 0, process.stderr
    assert len(commands) == len(expected)
    for command, named in zip(commands, expected):
        assert [part for part in named.split() if part not in command] == []
    for k in range(1, steps + 1):
        assert f"[{k}/{steps}]" in process.stdout
    assert f"{tmp_path}/my demo/report.html\n  {tmp_path}/my demo/report.png\n" in process.stdout
    assert "not for clinical use" in process.stdout


def test_the_first_page_shows_the_first_heads_of_the_shipped_weights_and_waits_for_no_training(demo, tmp_path):
    _, commands = demo("--output", tmp_path / "out")
    assert not any("training" in command for command in commands[: COMMANDS.index("report.py")])
    assert len((tmp_path / "out" / "first_made.tsv").read_text().splitlines()) == 7  # with the header
    for name in ("autoencoder", "model"):
        assert (tmp_path / "out" / "models" / f"{name}.pt").is_file()


def test_missing_weights_are_named_before_any_work(demo, tmp_path):
    (tmp_path / "project" / "brain_ldm_bundle" / "models" / "demo_2mm_model.pt").unlink()
    process, commands = demo("--output", tmp_path / "out")
    assert process.returncode == 1 and commands == [] and not (tmp_path / "out").exists()
    assert "brain_ldm_bundle/models/demo_2mm_model.pt: no such file" in process.stderr.splitlines()[-1]


def test_only_test_scans_are_measured(demo, tmp_path):
    _, commands = demo("--output", tmp_path / "my demo")
    command = commands[COMMANDS.index("cohort_volumes.tsv")]
    assert "sub-0002_T1w.nii.gz" in command and "sub-0001_T1w" not in command


def test_a_second_run_only_writes_the_page_again_with_what_people_rated_since(demo, tmp_path):
    demo("--output", tmp_path / "out")
    (tmp_path / "out" / "reader_study" / "results" / "anna.tsv").touch()
    process, commands = demo("--output", tmp_path / "out")
    assert process.returncode == 0 and process.stdout.count("done before") == len(STEPS) - 1
    assert len(commands) == len(STEPS["report"])
    assert ["results/anna.tsv" in command for command in commands] == [True, False, False]


@pytest.mark.parametrize("harm", [Path.unlink, lambda path: path.write_text("cut short")])
def test_a_result_that_is_lost_or_cut_short_is_made_again_with_all_that_follow(demo, tmp_path, harm):
    demo("--output", tmp_path / "out")
    harm(tmp_path / "out" / "requests.tsv")
    process, commands = demo("--output", tmp_path / "out")
    assert process.returncode == 0
    assert len(commands) == len(COMMANDS) - COMMANDS.index("--rows 12")


def test_what_people_rated_is_not_deleted(demo, tmp_path):
    demo("--output", tmp_path / "out")
    rated = tmp_path / "out" / "spade_reader_study" / "results" / "anna.tsv"
    rated.touch()
    process, commands = demo("--output", tmp_path / "out", "--fresh")
    assert process.returncode == 1 and str(rated) in process.stderr and commands == [] and rated.exists()


def test_a_failure_names_its_step_and_the_next_run_continues_there(demo, tmp_path):
    process, _ = demo("--output", tmp_path / "out", fail_at="inference.json")
    assert process.returncode != 0
    assert "Stopped in step [4/14] Generate" in process.stderr and "--fresh" in process.stderr
    process, commands = demo("--output", tmp_path / "out")
    assert process.returncode == 0 and "inference.json" in commands[0]
    assert len(commands) == len(COMMANDS) - COMMANDS.index("first_requests.tsv")


def test_an_audit_that_finds_copies_does_not_end_the_demo_but_one_that_breaks_does(demo, tmp_path):
    folder = tmp_path / "out" / "evaluation" / "brain_ldm"
    process, _ = demo("--full", "--output", tmp_path / "out", fail_at="auditing")
    assert process.returncode != 0
    folder.mkdir(parents=True)
    process, _ = demo("--full", "--output", tmp_path / "out", fail_at="auditing", findings=folder / "memorisation.section.json")
    assert process.returncode == 0
    process, _ = demo("--full", "--output", tmp_path / "out", "--fresh")
    assert process.returncode == 0


def test_fresh_starts_over_in_its_own_folder_only(demo, tmp_path):
    demo("--output", tmp_path / "out")
    (tmp_path / "out" / "old").touch()
    (tmp_path / "other").touch()
    process, commands = demo("--output", tmp_path / "out", "--fresh")
    assert process.returncode == 0 and len(commands) == len(COMMANDS)
    assert not (tmp_path / "out" / "old").exists() and (tmp_path / "other").exists()


@pytest.mark.parametrize("fresh", [[], ["--fresh"]])
def test_a_folder_of_others_is_refused_and_left_alone(demo, tmp_path, fresh):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").touch()
    process, commands = demo("--output", tmp_path / "thesis", *fresh)
    assert process.returncode == 1 and "did not make" in process.stderr and commands == []
    assert [path.name for path in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


@pytest.mark.parametrize("option", ["--tiny", "--full"])
def test_a_tiny_or_full_demo_is_not_mixed_with_another(demo, tmp_path, option):
    demo("--output", tmp_path / "out", option)
    process, commands = demo("--output", tmp_path / "out")
    assert process.returncode == 1 and "other settings" in process.stderr and commands == []


def test_unknown_options_are_refused_and_help_is_given(demo):
    for arguments, reason in {
        ("--fast",): "unknown option: --fast",
        ("--output", "--fresh"): "needs a folder, got '--fresh'",
    }.items():
        process, commands = demo(*arguments)
        assert process.returncode == 2 and reason in process.stderr.splitlines()[-1] and commands == []
    process, _ = demo("--help")
    assert process.returncode == 0 and "--fresh" in process.stdout and "--full" in process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--full"]])
def test_the_tiny_demo_makes_a_page_and_a_picture(tmp_path, options):
    command = ["bash", str(ROOT / "scripts" / "demo.sh"), "--tiny", *options, "--output", str(tmp_path / "out")]
    python = Path(shutil.which("python")).parent.parent
    variables = os.environ | {"VIRTUAL_ENV": os.environ.get("VIRTUAL_ENV", str(python))}
    process = subprocess.run(command, cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-3000:]
    page = (tmp_path / "out" / "report.html").read_text()
    assert "8 generated volumes" in page and "4 test" in page and (tmp_path / "out" / "report.png").stat().st_size > 10_000
