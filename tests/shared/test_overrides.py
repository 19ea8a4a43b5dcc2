"""A misspelt setting is an error that names the right one."""

import json
import runpy

import pytest

from brain_ldm_bundle.scripts.shared import overrides

BASE = {
    "diffusion_epochs": 5,
    "deform_all": False,
    "amp": "$cuda",
    "train": {"trainer": {"max_epochs": 5}, "sampler": None, "handlers": [{"seed": 0}]},
    "request": {},
}


@pytest.fixture
def base(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps(BASE))
    return str(path)


def check(base, *arguments, also_known=()):
    overrides.refuse_unknown(lambda: also_known, ["monai.bundle", "run", "training", "--config_file", base, *arguments])


@pytest.mark.parametrize(
    "arguments",
    [
        ("--diffusion_epochs", "3"),
        ("--diffusion_epochs=3",),
        ("--train#trainer#max_epochs", "3"),
        ("--train::trainer::max_epochs=3",),
        ("--train#sampler", "null"),
        ("--train#handlers#0#seed", "-1"),
        ("--amp", "False"),
        ("--deform_all=True",),
        ("--request#age", "70"),  # an empty dict takes any name
        ("--meta_file", "configs/metadata.json", "--logging_file", "x.conf", "--tracking", "mlflow"),
    ],
)
def test_what_the_config_knows_is_accepted(base, arguments):
    check(base, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--difusion_epochs", "3"), "the command line: no setting is called 'difusion_epochs'.*mean 'diffusion_epochs'"),
        (("--train#trainer#max_epoch", "3"), "train#trainer has no 'max_epoch'.*Did you mean 'max_epochs'"),
        (("--qqq=1",), "Known: amp, deform_all, diffusion_epochs, request, train"),
        (("-difusion_epochs", "3"), "no setting is called 'difusion_epochs'"),  # one dash is as good as two
        (("--train#trainr#max_epochs", "3"), "train has no 'trainr'.*Did you mean 'trainer'"),
        (("--train#handlers#0#sed", "3"), "train#handlers#0 has no 'sed'.*Did you mean 'seed'"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest_one(base, arguments, message):
    with pytest.raises(ValueError, match=message):
        check(base, *arguments)


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (("--deform_all", "false"), "'false'"),
        (("--amp=true",), "'true'"),
        (("--deform_all", "no"), "'no'"),
        (("--deform_all=1",), "1"),
    ],
)
def test_words_that_would_count_as_true_are_refused(base, arguments, value):
    """The command line gives "false" as a word, and any word is true."""
    with pytest.raises(ValueError, match=f"is {value}, which counts as true. Write True or False"):
        check(base, *arguments)


def test_names_in_overlays_are_checked_too(base, tmp_path):
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps({"_desc_": "", "diffusion_epochs": 1, "train#sampler": {"_target_": "x"}}))
    bad.write_text(json.dumps({"+train#trainr": {"max_epochs": 1}}))

    def known():
        return ["_desc_"]

    overrides.refuse_unknown(known, ["run", "--config_file", f"['{base}','{good}']"])
    with pytest.raises(ValueError, match=r"bad.json: train has no 'trainr'.*Did you mean 'trainer'"):
        overrides.refuse_unknown(known, ["run", "--config_file", f"['{base}','{good}','{bad}']"])


def test_names_that_are_right_without_a_setting_are_accepted(base):
    check(base, "--age", "70", "--sex=F", "--ventricles_ml", "30.5", also_known=["age", "sex", "ventricles_ml"])


def test_a_workflow_made_in_python_is_not_checked(monkeypatch):
    overrides.refuse_unknown(argv=["pytest", "--rootdir", "/somewhere", "-q"])
    monkeypatch.setattr("sys.argv", ["my_script.py", "--config_file", "mine.json", "--difusion_epochs", "3"])
    overrides.refuse_unknown()
    monkeypatch.setattr("sys.argv", ["/lib/monai/bundle/__main__.py", "run", "--diffusion_epochs", "3"])
    assert overrides.command_line() == {"diffusion_epochs": 3}


@pytest.mark.parametrize(
    ("run_id", "config", "setting", "right"),
    [
        ("training", "train", "--diffusion_epoch", "diffusion_epochs"),
        ("training_diffusion", "train", "--train#trainer#max_epoch", "max_epochs"),
        ("generating", "inference", "--guidance", "guidance_scale"),
        ("evaluating", "evaluate", "--splt", "split"),
    ],
)
def test_the_real_command_line_refuses_a_misspelt_setting(bundle, monkeypatch, run_id, config, setting, right):
    assert_refused(monkeypatch, run_id, config, setting, right)


@pytest.mark.parametrize(
    ("run_id", "config", "setting", "right"),
    [
        ("training", "train", "--spade_epoch", "spade_epochs"),
        ("training_spade", "train", "--planes", "plane"),
        ("training_fusion", "train", "--train#trainer#max_epoch", "max_epochs"),
        ("synthesising", "inference", "--variant", "variants"),
        ("evaluating", "evaluate", "--splt", "split"),
    ],
)
def test_the_spade_bundle_refuses_them_too(spade_bundle, monkeypatch, run_id, config, setting, right):
    assert_refused(monkeypatch, run_id, config, setting, right)


def assert_refused(monkeypatch, run_id, config, setting, right):
    """By `python -m monai.bundle run`, in the current folder."""
    arguments = ["monai.bundle", "run", run_id, "--config_file", f"configs/{config}.json", setting, "3"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(RuntimeError, match="settings.check") as error:
        runpy.run_module("monai.bundle", run_name="__main__")
    assert isinstance(error.value.__cause__, ValueError)
    assert f"Did you mean '{right}'?" in str(error.value.__cause__)


def test_an_overlay_before_its_config_is_refused_with_the_right_order(tmp_path):
    overlay, config = tmp_path / "demo.json", tmp_path / "train.json"
    overlay.write_text('{"epochs": 1}')
    config.write_text('{"bundle_root": ".", "epochs": 9}')
    with pytest.raises(ValueError, match=r"demo.json stands before .*train.json, which .* Give .*train.json first"):
        overrides.refuse_unknown(argv=["run", "--config_file", f"['{overlay}','{config}']"])
    overrides.refuse_unknown(lambda: [], ["run", "--config_file", f"['{config}','{overlay}']"])


def test_another_word_for_a_setting_is_understood(base):
    with pytest.raises(ValueError, match="no setting is called 'gender' .*Did you mean 'sex'"):
        check(base, "--gender", "F", also_known=["generating", "sex"])
