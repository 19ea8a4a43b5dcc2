"""The configs hold together: overlays change what exists, knobs are used, and every file runs from anywhere."""

import json
import re

import pytest
from conftest import ROOT
from monai.bundle import ConfigParser

CONFIGS = ROOT / "brain_ldm_bundle" / "configs"
WORKFLOWS = ("train.json", "inference.json", "evaluate.json")
OVERLAYS = {"demo.json": "train.json", "multi_gpu.json": "train.json", "published.json": "inference.json"}


def load(name):
    return json.loads((CONFIGS / name).read_text())


def test_every_config_is_a_workflow_an_overlay_or_data():
    known = {*WORKFLOWS, *OVERLAYS, "covariates.json", "metadata.json"}
    assert {path.name for path in CONFIGS.glob("*.json")} == known


@pytest.mark.parametrize(("overlay", "base"), OVERLAYS.items())
def test_every_key_of_an_overlay_exists_in_its_base(overlay, base):
    config = load(base)
    for key in load(overlay):
        here = config
        for part in key.lstrip("+").split("#"):
            assert part in here, f"{overlay}: {key} is not in {base}"
            here = here[part]


@pytest.mark.parametrize("name", WORKFLOWS)
def test_every_knob_is_used(name):
    text = (CONFIGS / name).read_text()
    used = {reference for reference in re.findall(r"@(\w+)", text)}
    # MONAI reads these itself, or they are what a user runs.
    entry = {"_desc_", "imports", "run", "finalize", "training", "generating", "evaluating"}
    knobs = [key for key in load(name) if key not in entry]
    assert [key for key in knobs if key not in used] == []


@pytest.mark.parametrize("name", [*WORKFLOWS, *OVERLAYS])
def test_no_config_includes_another_file(name):
    assert '"%' not in (CONFIGS / name).read_text()  # they resolve against the current folder


@pytest.mark.parametrize("folder", [".", "brain_ldm_bundle", "tests"])
def test_the_bundle_is_found_from_any_folder(folder, monkeypatch, forget_scripts):
    monkeypatch.chdir(ROOT / folder)
    monkeypatch.syspath_prepend(ROOT / "brain_ldm_bundle")  # as `monai.bundle run` does with the config's parent
    parser = ConfigParser(ConfigParser.load_config_file(CONFIGS / "train.json"))
    assert parser.get_parsed_content("models_dir") == str(ROOT / "brain_ldm_bundle" / "models")
    assert parser.get_parsed_content("schema").names == ["sex", "age", "ventricles_ml", "brain_normalised_ml"]
