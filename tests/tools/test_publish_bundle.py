"""Both bundles reach a hub in one command, with safetensors and a model card, and come back from it unchanged."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import package_bundle
import publish_bundle
import pytest
import torch
from conftest import ROOT
from releases.model_card import hub_page, model_card
from tiny_bundles import BUNDLES, LDM, SPADE, copy_bundle


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Copies of both bundles, whose tiny weights have the names of those that come with a bundle."""
    folder = tmp_path_factory.mktemp("bundles")
    for name in BUNDLES:
        for path in list((copy_bundle(name, folder) / "models").glob("*.pt")):
            path.rename(path.with_name(f"demo_{path.name}"))
    (folder / "trained").mkdir()
    shutil.copy(folder / SPADE / "models" / "demo_model.pt", folder / "trained" / "model.pt")
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path):
    pytest.importorskip("huggingface_hub", reason="pip install huggingface_hub")
    pytest.importorskip("safetensors", reason="pip install safetensors")
    with hub_server.serve() as server:
        settings = {"ENDPOINT": server.url, "TOKEN": hub_server.TOKEN, "HOME": tmp_path / "hf"}
        for name, value in settings.items():
            monkeypatch.setenv(f"HF_{name}", str(value))
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        yield server
    assert server.unknown == []


def run(*arguments: object, folder: Path = ROOT) -> subprocess.CompletedProcess:
    """Run a command in a process of its own, because huggingface_hub reads its settings on import."""
    return subprocess.run([sys.executable, *map(str, arguments)], cwd=folder, capture_output=True, text=True)


def publish(*arguments: object) -> subprocess.CompletedProcess:
    return run("scripts/publish_bundle.py", *arguments)


@pytest.mark.slow
def test_one_command_uploads_both_bundles_and_monai_downloads_them(bundles, hub, tmp_path):
    """The LDM with the weights that come with it, the SPADE bundle with those of a training."""
    trained = {SPADE: bundles / "trained"}
    done = publish(*(bundles / name for name in BUNDLES), "--repo", "someone", "--weights", f"{SPADE}={trained[SPADE]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(hub.repos) == [f"someone/{name}" for name in BUNDLES]
    for name, repo in zip(BUNDLES, hub.repos.values()):
        files = package_bundle.checked_files(bundles / name, trained.get(name))
        version = json.loads((bundles / name / "configs" / "metadata.json").read_text())["version"]
        assert repo.private and repo.tags == {version: repo.head}
        uploaded = repo.commits[repo.head]
        weights = {file for file in files if file.endswith(".pt")}
        assert weights and uploaded.keys() - files.keys() <= (
            {file.replace(".pt", ".safetensors") for file in weights} | {"README.md", "docs/model_card.md"}
        )
        downloaded = tmp_path / name
        source = ["--source", "huggingface_hub", "--repo", f"someone/{name}", "--name", name, "--version", version]
        back = run("-m", "monai.bundle", "download", *source, "--bundle_dir", tmp_path, folder=tmp_path)
        assert back.returncode == 0, back.stdout + back.stderr
        for file in files.keys() - {"docs/model_card.md"}:
            assert (downloaded / file).read_bytes() == files[file].read_bytes(), file
        assert_safetensors(downloaded / "models")


def assert_safetensors(models: Path) -> None:
    from safetensors.torch import load_file

    for path in models.glob("*.pt"):
        state, same = torch.load(path, weights_only=True), load_file(path.with_suffix(".safetensors"))
        assert state.keys() == same.keys() and all(torch.equal(state[key], same[key]) for key in state)


@pytest.mark.slow
def test_a_version_that_is_there_is_refused_before_anything_is_uploaded(bundles, hub):
    assert publish(bundles / SPADE, "--repo", "someone").returncode == 0
    before = hub.repos[f"someone/{SPADE}"].head
    again = publish(bundles / LDM, bundles / SPADE, "--repo", "someone")
    assert again.returncode == 1 and re.search(r"version [\d.]+ is there already. Raise it in", again.stderr.splitlines()[-1])
    assert list(hub.repos) == [f"someone/{SPADE}"] and hub.repos[f"someone/{SPADE}"].head == before


@pytest.mark.slow
def test_a_new_version_leaves_no_file_of_the_old_one(bundles, hub, tmp_path):
    copy = shutil.copytree(bundles / SPADE, tmp_path / SPADE)
    assert publish(copy, "--repo", "someone", "--public").returncode == 0
    repo = hub.repos[f"someone/{SPADE}"]
    first = repo.head
    metadata = copy / "configs" / "metadata.json"
    changed = json.loads(metadata.read_text())
    metadata.write_text(json.dumps(changed | {"version": "9.9.9", "changelog": {"9.9.9": "new", **changed["changelog"]}}))
    (copy / "docs" / "planes.png").unlink()
    assert publish(copy, "--repo", "someone").returncode == 0
    assert not repo.private and repo.tags == {changed["version"]: first, "9.9.9": repo.head}
    assert repo.commits[first].keys() - repo.commits[repo.head].keys() == {"docs/planes.png"}


def test_a_dry_run_of_both_names_both_repositories(bundles, capsys):
    publish_bundle.main([str(bundles / LDM), str(bundles / SPADE), "--repo", "someone", "--dry_run"])
    assert re.findall(r"Would create (\S+) \(private\)", capsys.readouterr().out) == [f"someone/{name}" for name in BUNDLES]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([LDM, SPADE, "--repo", "someone/name"], "--repo someone/name: expected USER, or USER/NAME for one bundle"),
        ([LDM], "--repo None: expected USER"),
        ([LDM, SPADE, "--repo", "someone", "--weights", "models"], "--weights models: expected NAME=FOLDER with names of"),
        ([LDM, "--repo", "someone", "--weights", f"{SPADE}=models"], f"expected NAME=FOLDER with names of {LDM}"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(bundles, monkeypatch, arguments, message):
    monkeypatch.chdir(bundles)
    with pytest.raises(ValueError, match=message):
        publish_bundle.main([*arguments, "--dry_run"])


@pytest.mark.parametrize("name", BUNDLES)
def test_the_model_card_of_a_bundle_is_the_one_that_its_files_give(name):
    card = ROOT / name / "docs" / "model_card.md"
    remedy = f"python scripts/publish_bundle.py {name} --card"
    assert card.read_text(encoding="utf-8") == model_card(ROOT / name, ROOT / name / "models"), remedy


def test_a_card_states_what_the_weights_were_trained_on_and_how_good_they_are():
    card = model_card(ROOT / LDM, ROOT / LDM / "models")
    for file in (ROOT / LDM / "models").glob("*.pt"):
        assert f"`models/{file.name}`" in card
    facts = json.loads((ROOT / LDM / "models" / "demo_weights.json").read_text())
    assert facts["trained_on"] in card and facts["requested_against_measured_ventricles"] in card
    assert "## Limitations" in card and "Apache-2.0" in card


def test_a_card_refuses_the_facts_of_other_weights(bundles, tmp_path):
    models = shutil.copytree(bundles / SPADE / "models", tmp_path / "models")
    (models / "weights.json").write_text(json.dumps({"what": "Others.", "sha256": {"demo_model.pt": "0" * 64}}))
    with pytest.raises(ValueError, match="weights.json: the facts of another demo_model.pt"):
        model_card(bundles / SPADE, models)
    (models / "weights.json").unlink()
    assert "Nobody has stated what these weights were trained on" in model_card(bundles / SPADE, models)


def test_links_of_a_card_lead_to_the_same_files_on_a_hub():
    found = hub_page("[a](evaluation.md#b) [c](../models/d.json) [e](https://example.org) [f](#g)")
    assert found.endswith("[a](docs/evaluation.md#b) [c](models/d.json) [e](https://example.org) [f](#g)")
    assert found.startswith("---\nlicense: apache-2.0\n")
