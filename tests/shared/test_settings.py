"""A setting with a wrong type or out of range is refused by name, with its value and with what is allowed."""

import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from monai.bundle import ConfigParser, create_workflow

from brain_ldm_bundle.scripts.shared.refusals import reason
from brain_ldm_bundle.scripts.shared.settings import RELATION, fault, rules_of

CONFIGS = {
    "brain_ldm_bundle": ["train", "inference", "evaluate", "train_regressor", "baselines"],
    "spade_fusion_bundle": ["train", "inference", "evaluate", "segmentation"],
}
OVERLAYS = [
    ("brain_ldm_bundle", "train", ["demo", "demo_2mm", "fine_tuning", "multi_gpu"]),
    ("brain_ldm_bundle", "inference", ["published", "shipped"]),
    ("brain_ldm_bundle", "baselines", ["demo_baselines"]),
    ("brain_ldm_bundle", "train_regressor", ["demo_regressor", "fine_tuning_regressor"]),
    ("spade_fusion_bundle", "train", ["demo", "fine_tuning", "multi_gpu"]),
    ("spade_fusion_bundle", "segmentation", ["demo_segmentation"]),
]
nan, inf = math.nan, math.inf


@pytest.mark.parametrize(
    ("rule", "good", "bad"),
    [
        ("whole number from 1", [1, 10**6], [0, -1, 2.5, 2.0, "8", "8mm", None, True, [1], nan, inf, ""]),
        ("whole number from 2 to 1000", [2, 1000], [1, 1001]),
        ("number above 0 to 1", [1, 0.5, 1e-9], [0, 0.0, -1, 1.1, nan, inf, "0.5", False, None]),
        ("number from 0 below 1 or None", [0, 0.99, None], [1, -1e-9, "None", [0.5]]),
        ("number above 0", [1e30], [inf, 0, "1e-4x"]),
        ("list of whole numbers from 1", [[1], (64, 128)], [[], 8, [0], [1.5], "8", ["8"], [[8]], None]),
        ("list of 2 numbers from 0 below 1", [[0.5, 0.999]], [[0.5], [0.5, 1], [0.1, 0.1, 0.1], 0.5]),
        ("True or False", [True, False], ["True", "yes", "false", 1, 0, None]),
        ("1, 2, 4 or 8", [1, 4.0, 8], [3, "4", 0, True, nan, 1.5]),
        ("ddim, dpm++ or ddpm", ["ddim", "dpm++"], ["DDIM", "dpmmm", "", None, 1, ["ddim"], True]),
        ("auto, cpu, cuda, cuda:N or mps", ["cpu", "cuda:1", "cuda"], ["gpu", "cuda:", "cuda:x", 0, None, "CPU"]),
        ("text or None", ["dcbb9e9d", None], [12, "", " ", 1.5]),
        ("values by name", [{}, {"age": 7}], [None, "age", ["age"]]),
        (
            "file or None",
            ["a b/ü.nii", Path("x"), None],
            [20241130, ("a", "b"), "", " ", True, "tests", "a\0b", "a::1", "s3://a/b"],
        ),
        ("file, its content or None", [{"training": []}, "x.json", None], [["x.json"], 5]),
        ("folder", ["tests", "not there"], ["pyproject.toml", 5]),
        ("output folder", ["tests", "not there/below"], ["pyproject.toml", "pyproject.toml/below", None, ["a"]]),
        ("path", ["tests", "pyproject.toml", "x/**/*.nii"], [5, ""]),
    ],
)
def test_a_rule_allows_the_good_values_alone(monkeypatch, rule, good, bad):
    monkeypatch.chdir(ROOT)
    assert [value for value in good if fault(rule, value) is not None] == []
    assert [value for value in bad if fault(rule, value) is None] == []


def test_a_setting_must_fit_to_the_settings_that_its_rule_names(bundle):
    def refused(name, **changed):
        return refusal("brain_ldm_bundle", name, **changed)

    assert "unet_groups is 7 and unet_channels is [256, 512, 768]. Allowed: whole number from 1, divides" in refused(
        "train", unet_groups=7
    )
    assert refused("train", unet_groups=256) is None
    assert "unet_head_channels is [0, 8] and unet_channels is [256, 512, 768]" in refused("train", unet_head_channels=[0, 8])
    channels = {"generator_channels": [16], "discriminator_channels": [16, 24]}
    assert "groups is 16 and discriminator_channels is [16, 24]" in refused("baselines", groups=16, **channels)
    assert refused("baselines", groups=8, **channels) is None
    assert "feature_level is 3 and discriminator_channels is [16, 24]" in refused("baselines", feature_level=3, **channels)


def test_batches_and_levels_must_fit(spade_bundle):
    assert "fusion_batch_size is 7 and patches_per_volume is 10" in refusal("spade_fusion_bundle", "train", fusion_batch_size=7)
    assert "strides is [2] and channels is" in refusal("spade_fusion_bundle", "segmentation", strides=[2])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_must_be_writable(tmp_path):
    tmp_path.chmod(0o500)
    assert fault("output folder", tmp_path / "a" / "b") == f", but {tmp_path} is read-only"


def refusal(bundle, name, **changed):
    """The message of the check of a config with changed settings."""
    config = json.loads((ROOT / bundle / "configs" / f"{name}.json").read_text())
    parser = ConfigParser(config | changed | {"probe": [f"$scripts.shared.settings.check('{name}')"]})
    try:
        parser.get_parsed_content("probe")
    except RuntimeError as error:
        return str(error.__cause__)


def test_the_config_of_another_bundle_is_refused(bundle):
    message = r"this config is not .*brain_ldm_bundle/configs/inference.json, but Python has loaded the code of that bundle"
    assert re.match(message, refusal("spade_fusion_bundle", "inference"))
    assert "segmentation.json" in refusal("spade_fusion_bundle", "segmentation")


def test_paths_and_numbers_of_numpy_from_python_become_text_and_numbers(bundle):
    parser = ConfigParser(json.loads((ROOT / "brain_ldm_bundle" / "configs" / "evaluate.json").read_text()))
    parser.update({"models_dir": Path("a/b"), "seed": np.int64(3), "probe": ["$scripts.shared.settings.check('evaluate')"]})
    parser.get_parsed_content("probe")
    assert parser.get_parsed_content("model_file") == "a/b/model.pt"
    assert json.dumps(parser.get_parsed_content("seed")) == "3"


@pytest.mark.parametrize("bundle_name", list(CONFIGS))
def test_each_setting_of_each_config_refuses_a_wrong_value_by_name(monkeypatch, forget_scripts, bundle_name):
    """-7.5 is no path, no word, no whole number, and out of each range."""
    monkeypatch.syspath_prepend(ROOT / bundle_name)
    for name in CONFIGS[bundle_name]:
        config = json.loads((ROOT / bundle_name / "configs" / f"{name}.json").read_text())
        settings = list(config)[list(config).index("bundle_root") + 1 : list(config).index("device")]
        assert settings and refusal(bundle_name, name) is None
        rules = json.loads((ROOT / bundle_name / "configs" / "settings.json").read_text())
        for setting in settings:
            rule = rules[name].get(setting) or rules[setting]
            if not rule.startswith("value of"):
                message = refusal(bundle_name, name, **{setting: -7.5})
                assert message.startswith(f"the settings: {setting} is -7.5") and f"Allowed: {rule}." in message, message


@pytest.mark.parametrize(("bundle_name", "base", "overlays"), OVERLAYS)
def test_the_overlays_hold_allowed_values(bundle_name, base, overlays):
    rules = json.loads((ROOT / bundle_name / "configs" / "settings.json").read_text())
    for overlay in overlays:
        for name, value in json.loads((ROOT / bundle_name / "configs" / f"{overlay}.json").read_text()).items():
            rule = rules[base].get(name) or rules.get(name)
            checked = isinstance(rule, str) and name != "_desc_" and str(value)[0] not in "$@"
            assert not checked or fault(RELATION.fullmatch(rule)[1], value) is None, name


def run(config_file, run_id, **settings):
    workflow = create_workflow(config_file=config_file, run_id=run_id, logging_file=False, **settings)
    with pytest.raises(RuntimeError) as error:
        workflow.run()
    return str(reason(error.value))


def test_settings_of_a_workflow_in_python_are_checked(bundle):
    train = "configs/train.json"
    assert run(train, "training", grad_clip=-1) == (
        "the settings: grad_clip is -1. Allowed: number above 0. The default is 1.0."
    )
    assert "no setting is called 'grad_clp' in this config, and nothing uses it. Did you mean 'grad_clip'?" in run(
        train, "training", grad_clp=1.0
    )
    assert "no setting is called 'samplr' in train" in run(train, "training", **{"train#samplr": 1})
    assert "nothing uses it" in run("configs/inference.json", "generating", diagnosis="AD")
    assert "dataset_dir is '@home', which cannot be evaluated (the referring item `@home`" in run(
        train, "training", dataset_dir="@home"
    )
    assert run(train, "training").startswith("no data set was given. Add --dataset_dir")


def test_names_that_a_workflow_of_your_own_uses_are_accepted(bundle, tmp_path):
    own = json.loads(Path("configs/train.json").read_text())
    own |= {"my_rate": 5, "diffusion_lr": "@my_rate", "mine": ["@checks"], "dataset_dir": str(tmp_path)}
    (tmp_path / "own.json").write_text(json.dumps(own))
    assert "participants.tsv" in run(str(tmp_path / "own.json"), "mine")


def test_the_origin_of_a_bad_value_is_named(bundle, tmp_path, monkeypatch):
    overlay = tmp_path / "mine.json"
    overlay.write_text('{"seed": "abc"}')
    files = f"['configs/train.json','{overlay}']"
    monkeypatch.setattr("sys.argv", ["monai.bundle", "run", "training", "--config_file", files, "--cache_rate", "2"])
    assert run(["configs/train.json", str(overlay)], "training", cache_rate=0.5) == (
        f"{overlay}: seed is 'abc'. Allowed: whole number from 0 to 9223372036854775807. The default is 0."
    )
    assert run("configs/train.json", "training", cache_rate=2).startswith("the command line: cache_rate is 2. Allowed: ")


def test_each_rule_of_a_config_replaces_the_common_one():
    assert rules_of("baselines")["discriminator_channels"] == "list of whole numbers from 1"
    assert rules_of("train")["discriminator_channels"] == "whole number from 1"


def test_weights_can_lie_in_a_read_only_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda *_: False)  # root may write everywhere
    assert fault(rules_of("train")["models_dir"], tmp_path) == f", but {tmp_path} is read-only"
    for config in ("inference", "evaluate"):
        assert fault(rules_of(config)["models_dir"], tmp_path) is None


def test_a_setting_that_nothing_reads_is_refused_with_the_settings_that_count(bundle, monkeypatch):
    """--models_dir beside shipped.json was ignored: a volume of other weights was made."""
    shipped = json.loads((ROOT / "brain_ldm_bundle" / "configs" / "shipped.json").read_text())
    arguments = ["run", "--config_file", "['configs/inference.json','configs/shipped.json']", "--models_dir", "mine"]
    monkeypatch.setattr("sys.argv", ["monai.bundle", *arguments])
    message = refusal("brain_ldm_bundle", "inference", models_dir="mine", **shipped)
    assert message == (
        "the command line: models_dir is 'mine', but nothing reads it, because configs/shipped.json replaces model_file and "
        "autoencoder_file. Leave out models_dir, or leave out configs/shipped.json"
    )
    monkeypatch.setattr("sys.argv", ["monai.bundle", "run", "exporting", *arguments[1:]])
    assert refusal("brain_ldm_bundle", "inference", models_dir="mine", **shipped) is None  # the exports lie there
    one = {"models_dir": "mine", "model_file": shipped["model_file"]}  # the folder has the autoencoder
    assert refusal("brain_ldm_bundle", "inference", **one) is None


def test_two_sources_of_one_call_are_refused_by_name(spade_bundle):
    """--dataset_dir beside --label_maps was ignored."""
    message = refusal("spade_fusion_bundle", "inference", dataset_dir="a", label_maps="b")
    assert message == "the settings: dataset_dir is 'a', but has no effect beside label_maps 'b'. Leave one of them out"
    assert refusal("spade_fusion_bundle", "inference", dataset_dir="a", label_maps="a") is None


def test_an_ldm_has_one_table_of_requests(bundle):
    message = refusal("brain_ldm_bundle", "inference", dataset_dir="a", requests="b.tsv")
    assert message.startswith("the settings: dataset_dir is 'a', but has no effect beside requests 'b.tsv'")


def test_a_setting_that_only_another_run_id_reads_is_named(bundle, monkeypatch, tmp_path, caplog):
    """--autoencoder_lr of training_diffusion and --samples of an audit were ignored without a word."""
    given = ["--dataset_dir", str(tmp_path), "--autoencoder_lr", "1e-3", "--diffusion_lr", "1e-3", "--diffusion_epochs", "2"]
    monkeypatch.setattr(
        "sys.argv", ["monai.bundle", "run", "training_diffusion", *given, "--config_file", "configs/train.json"]
    )
    settings = {"dataset_dir": str(tmp_path), "autoencoder_lr": 1e-3, "diffusion_lr": 1e-3, "diffusion_epochs": 2}
    for run_id, config, own in (
        ("training_diffusion", "train", settings),
        ("auditing", "evaluate", {"samples": {"LDM": str(tmp_path)}, "audited_dir": str(tmp_path)}),
        ("training", "train", settings),
    ):
        run(f"configs/{config}.json", run_id, **own)
    said = [record.message for record in caplog.records if "no effect" in record.message]
    assert len(said) == 2
    assert said[0] == (
        "autoencoder_lr is 0.001, but has no effect here: only the run ids training_autoencoder, training read it. Leave it out"
    )
    assert "only the run ids evaluating_samples, evaluating read it" in said[1]


def test_the_spade_stage_names_settings_of_the_fusion(spade_bundle, tmp_path, caplog):
    run("configs/train.json", "training_spade", dataset_dir=str(tmp_path), patch_size=16, ngf=8, lr=1e-3)
    said = [record.message for record in caplog.records if "no effect" in record.message]
    assert len(said) == 1
    assert said[0].startswith("patch_size is 16, but has no effect here: only the run ids training_fusion, training read it")


def test_only_run_ids_are_named_as_readers_of_a_setting(spade_bundle, tmp_path, caplog):
    """A message told the user to give the run id handlers, which is a part of synthesising."""
    run("configs/inference.json", "exporting", models_dir=str(tmp_path), seed=5)
    said = [record.message for record in caplog.records if "no effect" in record.message]
    assert said == ["seed is 5, but has no effect here: only the run id synthesising reads it. Leave it out"]
