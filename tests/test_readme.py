"""Every command in the documents is valid: its files, settings and options exist, and a slow test runs it at a small size.

A command of an unknown form makes these tests fail. Add code that runs it.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import pytest
from conftest import ROOT

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.shared import overrides

README = ROOT / "README.md"
LDM_DOCS = ROOT / "brain_ldm_bundle" / "docs"
# Pages whose commands are run in the project's folder. The slow test runs the first four, in this order.
STEPS = [LDM_DOCS / "training.md", LDM_DOCS / "generation.md", LDM_DOCS / "evaluation_commands.md", README]
PAGES = ("evaluation", "labels", "editing", "scoreboard", "real_scans", "your_data")
FROM_THE_ROOT = [*STEPS, *(LDM_DOCS / f"{name}.md" for name in PAGES)]
BUNDLE_READMES = sorted(ROOT.glob("*_bundle/docs/README.md"))

# Run by other tests, or needing what a test cannot have.
RUN_ELSEWHERE = {
    "bash scripts/demo.sh": "test_demo.py",
    "bash scripts/test.sh": "runs these tests",
    "python3 -m venv .venv && . .venv/bin/activate": "makes an environment",
    "pip install -r requirements.txt -c constraints.txt": "needs a network",
    "export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu": "needs a network",
    "python scripts/package_bundle.py brain_ldm_bundle": "test_package_bundle.py",
    "bash scripts/start_monailabel.sh": "tools/monailabel_app/test_start.py",
    "python scripts/make_demo_data.py /data/pairs --subjects 20 --seed 905 "
    "--change ventricles_ml 30": "test_counterfactuals.py",
    "python scripts/counterfactuals.py /data/pairs /data/counterfactuals": "test_counterfactuals.py",
    "python scripts/benchmark_generators.py /data/synthetic /data/vaegan --real /data/study --output /data/scoreboard": "needs "
    "more volumes; test_benchmark_generators.py",
    "python scripts/make_labelled_heads.py /data/requests.tsv /data/labelled_heads": "test_make_labelled_heads.py",
    "python -m monai.bundle download_large_files --bundle_path brain_ldm_bundle": "needs a network; test_published.py",
    "python scripts/check_published.py /data/ukb_synthetic": "needs samples of these weights; test_check_published.py",
    "python scripts/segment_t1w.py --download": "needs a network; test_segment_t1w.py",
    "python scripts/segment_t1w.py /data/study /data/study/derivatives/meshnet": "needs these weights; test_segment_t1w.py",
    "published.json": "needs 2.3 GB of weights; test_published.py",
    "python scripts/read_volumes.py /data/synthseg_volumes.csv --output /data/volumes.tsv": "needs SynthSeg",
    "python scripts/reader_study.py score /data/reader_study/key/key.tsv /data/computed/*.tsv /data/results_anna.tsv "
    "/data/results_ben.tsv --output /data/reader_scores": "needs people; test_reader_study_browser.py",
}

# The small training continues from these weights, because later commands refuse volumes without heads.
SHIPPED = {"autoencoder": "autoencoder", "diffusion": "model"}


def commands(page):
    """The commands in the bash blocks and in the tables of a page, in their order."""
    text = page.read_text()
    found = re.findall(r"^```bash\n(.*?)^```|^\|([^\n]*)\|$", text, re.MULTILINE | re.DOTALL)
    return [command for block, row in found for command in (block.splitlines() or in_row(row)) if command.strip()]


def in_row(row):
    """The commands in one row of a table. Names of files and settings in backticks are no commands."""
    return [code for code in re.findall(r"`([^`]+)`", row) if re.match(r"(python|bash|torchrun) \S+\.\w+|python -m ", code)]


def run_elsewhere(command):
    return any(name == command or (name.endswith(".json") and name in command) for name in RUN_ELSEWHERE)


@pytest.mark.parametrize("command", dict.fromkeys(command for page in FROM_THE_ROOT for command in commands(page)))
def test_command_of_a_page_is_valid(command, monkeypatch):
    check(command, ROOT, monkeypatch)


@pytest.mark.parametrize(("readme", "command"), [(path, command) for path in BUNDLE_READMES for command in commands(path)])
def test_command_of_a_bundles_readme_is_valid(readme, command, monkeypatch):
    check(command, readme.parents[1], monkeypatch)


def test_commands_are_found_in_blocks_and_tables(tmp_path):
    page = tmp_path / "page.md"
    row = "| `train.json` | `bash a.sh --b`<br>`python -m c d` |\n"
    page.write_text(f"{row}```bash\nmake one\n```\n```\nno command\n```\n{row}")
    assert commands(page) == ["bash a.sh --b", "python -m c d", "make one", "bash a.sh --b", "python -m c d"]


def test_the_readme_is_short():
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.parametrize("page", sorted(ROOT.glob("*_bundle/docs/code.md")), ids=lambda page: page.parts[-3])
def test_the_files_that_a_page_about_the_code_names_exist(page):
    text = page.read_text()
    bundle = page.parents[1]
    paths = re.findall(r"`((?:scripts|configs)/[\w/]+\.\w+)`((?:[:,] `\w+`)*)", text)
    assert len(paths) >= 15
    for path, names in paths:
        assert (bundle / path).is_file(), path
        source = (bundle / path).read_text()
        assert [name for name in re.findall(r"`(\w+)`", names) if not re.search(rf"(def|class) {name}\b", source)] == [], path
    for path in re.findall(r"`((?!scripts|configs)[\w/]+\.py)`", text):
        assert (ROOT / "scripts" / path).is_file(), path


@pytest.mark.parametrize(
    "command",
    [
        "python scripts/make_request.py a b",
        "python scripts/make_requests.py a b --row 5",
        "python scripts/reader_study.py make --real a --synthetic b",
        "python scripts/reader_study.py score key.tsv anna.tsv --output a --slices 6",
        "python scripts/report.py a --measure b",
        "python -m monai.bundle run trainin --config_file brain_ldm_bundle/configs/train.json",
        "python -m monai.bundle run training --config_file brain_ldm_bundle/configs/train.json --dataset DIR",
        "python -m monai.bundle run --config_file brain_ldm_bundle/configs/infer.json",
        "python -m monai.bundle run --config_file brain_ldm_bundle/configs/inference.json --age 70 --gender F",
        "python -m monai.bundle run training_spade --config_file spade_fusion_bundle/configs/train.json --plan axial",
        "bash scripts/all.sh",
        "make demo",
    ],
)
def test_a_wrong_command_is_noticed(command, monkeypatch):
    with pytest.raises((AssertionError, ValueError)):
        check(command, ROOT, monkeypatch)


def check(command, folder, monkeypatch):
    """Fail unless the command is of a known form and what it names exists."""
    monkeypatch.chdir(folder)
    words = shlex.split(command)
    if words[:2] == ["pip", "install"]:
        files = [word for word in words[2:] if not word.startswith("-")]
        assert files and all(Path(file).is_file() for file in files), files
        return
    if command in RUN_ELSEWHERE and words[0] in ("python3", "export"):
        return
    if words[0] == "torchrun":
        assert words[1] == "--nproc_per_node" and words[2].isdigit()
        words = ["python", *words[3:]]
    if words[0] == "bash":
        assert Path(words[1]).is_file(), f"no {words[1]}"
    elif words[:3] == ["python", "-m", "monai.bundle"]:
        check_bundle(words[3:])
    elif words[0] == "python":
        check_tool(Path(words[1]), words[2:])
    else:
        raise AssertionError(f"no test knows this command: {command}")


def check_bundle(words):
    if words[0] == "download_large_files":
        assert words[1] == "--bundle_path" and (Path(words[2]) / "large_files.yml").is_file()
        return
    if words[0] in ("verify_net_in_out", "ckpt_export", "onnx_export"):
        given = overrides.command_line(words)
        assert Path(given["meta_file"]).is_file() and words[1] in json.loads(Path(given["config_file"]).read_text())
        return
    assert words[0] == "run"
    run_id = "run" if words[1].startswith("--") else words[1]
    given = overrides.command_line(words)
    files = given["config_file"] if isinstance(given["config_file"], list) else [given["config_file"]]
    for file in files:
        assert Path(file).is_file(), f"no {file}"
    base = Path(files[0])
    assert run_id in json.loads(base.read_text()), f"no run id {run_id} in {base}"
    schema = base.with_name("covariates.json")
    covariates = CovariateSchema.from_file(schema).names if base.stem == "inference" and schema.is_file() else []
    overrides.refuse_unknown(lambda: covariates, words)


def check_tool(script, words):
    assert script.is_file(), f"no {script}"
    source = script.read_text()
    command = re.search(rf'(\w+) = \w+\.add_parser\("{re.escape(words[0])}"', source) if words else None
    if command:  # options of this subcommand alone
        source = "\n".join(re.findall(rf"^\s*{command[1]}\.add_argument.*", source, re.MULTILINE))
    options = set(re.findall(r'\badd(?:_argument)?\(\s*"(--\w+)"', source))
    unknown = [word for word in words if word.startswith("--") and word not in options]
    assert not unknown, f"{script} has no option {unknown}"
    required = re.findall(r'\badd(?:_argument)?\(\s*"(--\w+)"[^\n]*required=True', source)
    assert set(required) <= set(words), f"{script} needs {required}"


@pytest.mark.slow
def test_the_commands_of_the_pages_run_one_after_the_other(tmp_path):
    """Small: simulated heads, the demo's sizes, one epoch, a few steps; two processes instead of eight."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}

    def run(command):
        process = subprocess.run(["bash", "-c", command], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, f"{command}\n{process.stdout[-2000:]}\n{process.stderr[-3000:]}"

    run(f"python scripts/make_demo_data.py {tmp_path}/raw_study --subjects 24 --spacing_mm 2 --workers 1")
    participants = tmp_path / "raw_study" / "participants.tsv"  # the audit needs held-out scans, the comparison training scans
    participants.write_text(participants.read_text().replace("\ttrain", "\tvalidation", 2))
    run(f"python scripts/make_demo_data.py {tmp_path}/labelled --subjects 10 --spacing_mm 4 --workers 1")
    for command in dict.fromkeys(command for page in STEPS for command in commands(page)):
        if not run_elsewhere(command):
            run(small(command, tmp_path))

    assert nib.load(next((tmp_path / "first_volume").glob("sub-*/anat/*_T1w.nii.gz"))).shape == (40, 56, 40)
    assert nib.load(next((tmp_path / "one").glob("sub-*/anat/*_T1w.nii.gz"))).shape == (40, 56, 40)
    assert len(list((tmp_path / "synthetic").glob("sub-*/anat/*_T1w.nii.gz"))) == 5
    assert len((tmp_path / "sweep.tsv").read_text().splitlines()) == 1 + 12
    page = (tmp_path / "report.html").read_text()
    assert "5 generated volumes" in page and "VAE-GAN" in page and "4-G-R-SSIM" in page
    assert "flagged" in (tmp_path / "evaluation" / "memorisation.tsv").read_text()
    assert len(list((tmp_path / "edited").glob("sub-*/anat/*_T1w.nii.gz"))) == 1
    assert len(list((tmp_path / "synthetic_labelled").glob("sub-*/anat/*_T1w.nii.gz"))) == 10
    assert len(list((tmp_path / "many_anatomies").glob("sub-*/anat/*_dseg.nii.gz"))) == 20
    assert "label_mean" in (tmp_path / "synthesis_scores" / "summary.tsv").read_text()
    assert (tmp_path / "segmentation" / "segmentation.section.json").is_file()


def small(command, folder):
    """The command at a size that takes seconds, with its files in `folder`."""
    command = command.replace("/data/", f"{folder}/").replace("first_volume", f"{folder}/first_volume")
    command = command.replace("--rows 1000", "--rows 5")
    models = f"--models_dir {folder}/models"
    if "spade_fusion_bundle" in command:
        return small_spade(command, folder)
    if "prepare_data.py" in command:
        return f"{command} --spacing_mm 4"
    if "reader_study.py make" in command:
        return f"{command} --slices 6"
    if "train_regressor.json" in command or "baselines.json" in command:
        return small_evaluation(command, folder, models)
    if "run training" in command:
        command = command.replace("--nproc_per_node 8", "--nproc_per_node 2")
        configs = "brain_ldm_bundle/configs"
        command = command.replace(f"{configs}/train.json --", f"\"['{configs}/train.json','{configs}/demo.json']\" --")
        for overlay in ("multi_gpu", "fine_tuning"):
            command = command.replace(f"'{configs}/{overlay}.json'", f"'{configs}/demo.json','{configs}/{overlay}.json'")
        command = re.sub(r" --init_\w+ \S+", "", command)
        sizes = "--autoencoder_epochs 1 --autoencoder_lr 1e-4 --diffusion_epochs 1 --diffusion_lr 1e-5 --diffusion_batch_size 2"
        sizes += "".join(f" --init_{part} {ROOT}/brain_ldm_bundle/models/demo_{file}.pt" for part, file in SHIPPED.items())
        return f"rm -rf {folder}/models; {command} {models} --output_dir {folder}/eval --cache_dir {folder}/cache {sizes}"
    if "inference.json" in command:
        return f"{command} {models} --steps 10"
    if "evaluate.json" in command:
        # Hardly trained, so the audit may or may not be passed; it must not break.
        done = f" || [ -f {folder}/evaluation/memorisation.section.json ]" if "auditing" in command else " --pairs 4"
        return f"{command} {models} --cache_dir {folder}/cache{done}"
    return command


def small_evaluation(command, folder, models):
    """Of the regressor and the baselines, with the demo's overlay."""
    name, overlay = ("train_regressor", "demo_regressor") if "regressor" in command else ("baselines", "demo_baselines")
    configs = "brain_ldm_bundle/configs"
    command = command.replace(f"{configs}/{name}.json", f"\"['{configs}/{name}.json','{configs}/{overlay}.json']\"")
    epochs = {"train_regressor": "--regressor_epochs 1", "baselines": "--epochs 1"}[name]
    command = command.replace("--volumes 1000", "--volumes 5")
    out = "" if "--output_dir" in command else f" --output_dir {folder}/eval/{name}"
    return f"{command}{out} {models} --cache_dir {folder}/cache {epochs if 'run training' in command else ''}"


def small_spade(command, folder):
    if "segmentation.json" in command:
        configs = "spade_fusion_bundle/configs"
        command = command.replace(f"{configs}/s", f"\"['{configs}/s").replace(
            ".json ", f".json','{configs}/demo_segmentation.json']\" "
        )
        return f"{command} --cache_dir {folder}/spade_cache --steps 2"
    command = f"{command.replace('--variants 10', '--variants 2')} --models_dir {folder}/spade"
    if "train.json" not in command:
        return command if "inference.json" in command else f"{command} --cache_dir {folder}/spade_cache"
    configs = "spade_fusion_bundle/configs"
    command = command.replace(f"{configs}/train.json --", f"\"['{configs}/train.json','{configs}/demo.json']\" --")
    sizes = "--ngf 2 --hidden 4 --spade_epochs 1 --fusion_epochs 1 --fusion_visits 1 --batch_norm_batches 2"
    clean = f"rm -rf {folder}/spade; " if "--plane axial" in command else ""  # start over after all planes in one command
    return f"{clean}{command} --output_dir {folder}/spade_eval --cache_dir {folder}/spade_cache {sizes}"
