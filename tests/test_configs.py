"""The configs are consistent: overlays change existing keys, settings are used, and every config runs from any folder."""

import json
import re

import pytest
from conftest import ROOT
from monai.bundle import ConfigParser

WORKFLOWS = ("train.json", "inference.json", "evaluate.json")
# Workflows of one bundle alone.
FURTHER = {
    "brain_ldm_bundle": ("baselines.json", "train_regressor.json"),
    "spade_fusion_bundle": ("segmentation.json",),
}
OVERLAYS = {
    "brain_ldm_bundle": {
        "demo.json": "train.json",
        "demo_2mm.json": "train.json",
        "fine_tuning.json": "train.json",
        "labels.json": "train.json",
        "multi_gpu.json": "train.json",
        "published.json": "inference.json",
        "shipped.json": "inference.json",
        "demo_baselines.json": "baselines.json",
        "demo_regressor.json": "train_regressor.json",
        "fine_tuning_regressor.json": "train_regressor.json",
    },
    "spade_fusion_bundle": {
        "demo.json": "train.json",
        "fine_tuning.json": "train.json",
        "multi_gpu.json": "train.json",
        "demo_segmentation.json": "segmentation.json",
    },
}
DATA = {
    "brain_ldm_bundle": {"covariates.json", "label_tables.json", "settings.json", "tracking.json"},
    "spade_fusion_bundle": {"labels.json", "settings.json", "tracking.json"},
}
BUNDLES = tuple(OVERLAYS)
WORKFLOWS_OF = [(bundle, name) for bundle in BUNDLES for name in (*WORKFLOWS, *FURTHER[bundle])]


def path(bundle, name):
    return ROOT / bundle / "configs" / name


def load(bundle, name):
    return json.loads(path(bundle, name).read_text())


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_config_is_a_workflow_an_overlay_or_data(bundle):
    known = {*WORKFLOWS, *FURTHER[bundle], *OVERLAYS[bundle], *DATA[bundle], "metadata.json"}
    assert {file.name for file in (ROOT / bundle / "configs").glob("*.json")} == known


@pytest.mark.parametrize(
    ("bundle", "overlay", "base"), [(bundle, *pair) for bundle in BUNDLES for pair in OVERLAYS[bundle].items()]
)
def test_every_key_of_an_overlay_exists_in_its_base_and_changes_it(bundle, overlay, base):
    config = load(bundle, base)
    for key, value in load(bundle, overlay).items():
        here = config
        for part in key.lstrip("+").split("#"):
            assert part in here, f"{overlay}: {key} is not in {base}"
            here = here[part]
        assert here != value, f"{overlay}: {key} is {value} in {base} as well"


@pytest.mark.parametrize(("bundle", "name"), WORKFLOWS_OF)
def test_every_knob_is_used(bundle, name):
    text = path(bundle, name).read_text()
    used = set(re.findall(r"@(\w+)|settings\.content\('(\w+)'\)", text))
    used = {name for pair in used for name in pair}
    # MONAI reads these itself, or they are what a user runs.
    entry = {"_desc_", "imports", "run", "finalize", "export_def"}
    entry |= {"training", "training_spade", "measuring_acquisition", "generating", "editing", "synthesising", "segmenting"}
    entry |= {"exporting"}
    entry |= {"evaluating", "evaluating_samples", "predicting", "auditing"}
    knobs = [key for key in load(bundle, name) if key not in entry]
    assert [key for key in knobs if key not in used] == []


def test_every_setting_of_inference_is_read_by_its_run_ids_or_warned_of():
    """`editing` had no reference to shard, so each of n jobs made all edits."""
    config = load("brain_ldm_bundle", "inference.json")
    settings = list(config)[list(config).index("bundle_root") + 1 : list(config).index("device")]

    def unread(run_id):
        read, left = set(), [run_id]
        while left:
            name = left.pop()
            read.add(name)
            names = re.findall(r"@(\w+)|settings\.content\('(\w+)'\)", json.dumps(config.get(name)))
            left += {name for pair in names for name in pair if name} - read
        return {*settings} - read

    assert unread("editing") == {"batch_size"}  # edits are made one at a time
    assert unread("generating") == {"method", "source", "strength"}  # `settings.check` names them


@pytest.mark.parametrize(
    ("bundle", "name"), [*WORKFLOWS_OF, *((bundle, name) for bundle in BUNDLES for name in OVERLAYS[bundle])]
)
def test_no_config_includes_another_file(bundle, name):
    assert '"%' not in path(bundle, name).read_text()  # they resolve against the current folder


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize("folder", [".", "BUNDLE", "tests"])
def test_the_bundle_is_found_from_any_folder(bundle, folder, monkeypatch, forget_scripts):
    monkeypatch.chdir(ROOT / folder.replace("BUNDLE", bundle))
    monkeypatch.syspath_prepend(ROOT / bundle)  # as `monai.bundle run` does with the config's parent
    for name in WORKFLOWS:
        parser = ConfigParser(ConfigParser.load_config_file(path(bundle, name)))
        assert parser.get_parsed_content("models_dir") == str(ROOT / bundle / "models"), name
    parser = ConfigParser(ConfigParser.load_config_file(path(bundle, "train.json")))
    if bundle == "brain_ldm_bundle":
        assert parser.get_parsed_content("schema").names == ["sex", "age", "ventricles_ml", "brain_normalised_ml"]
    else:
        assert parser.get_parsed_content("table").names[0] == "background"
