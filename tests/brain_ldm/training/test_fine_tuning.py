"""Fine-tuning keeps the weights that it starts from unless it finds better ones, in every stage."""

import shutil

import pytest
import tiny
import torch
from conftest import entered_bundle
from monai.bundle import run
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from brain_ldm_bundle.scripts.shared.weights import read_recipe, read_state

pytestmark = pytest.mark.slow

REGRESSOR = {"regressor_channels": [8, 8], "regressor_features": 8, "regressor_groups": 4, "regressor_batch_size": 3}
GENERAL = {key: tiny.SETTINGS[key] for key in ("spacing_mm", "use_device", "num_workers")}
TOO_FAST = {"autoencoder_lr": 1.0, "diffusion_lr": 1.0}


def train_regressor(dataset_dir, folder, overlays=(), **settings):
    config_file = ["configs/train_regressor.json", *overlays]
    run("training", config_file=config_file, **tiny.places(dataset_dir, folder), **GENERAL | REGRESSOR | settings)
    return folder / "models"


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    return tiny.write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def start(dataset_dir, tmp_path_factory):
    """Weights of all stages that have learnt something."""
    folder = tmp_path_factory.mktemp("start")
    with entered_bundle(tiny.BUNDLE):
        tiny.train(dataset_dir, folder, autoencoder_epochs=6, diffusion_epochs=6)
        train_regressor(dataset_dir, folder, regressor_epochs=6)
    return folder / "models"


def inits(start):
    return {"init_autoencoder": str(start / "autoencoder.pt"), "init_diffusion": str(start / "model.pt")}


def same_tensors(one, other):
    one, other = read_state(one), read_state(other)
    return all(torch.equal(one[key], value) for key, value in other.items() if key != "_extra_state")


def curve(folder, name):
    """Return the value of a scalar of TensorBoard by epoch."""
    events = EventAccumulator(str(folder)).Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def test_a_stage_that_only_makes_its_weights_worse_gives_them_back_and_says_so(bundle, dataset_dir, start, tmp_path, capsys):
    models = tiny.train(dataset_dir, tmp_path, autoencoder_epochs=2, diffusion_epochs=2, **TOO_FAST, **inits(start))
    said = capsys.readouterr().out
    for stage, file, metric in (("autoencoder", "autoencoder.pt", "val_ssim"), ("diffusion", "model.pt", "val_mse")):
        assert same_tensors(models / file, start / file)
        selection = read_recipe(models / file)["selection"]
        assert (selection["epoch"], selection["metric"]) == (0, metric)
        values = curve(tmp_path / "output" / "tensorboard" / stage, metric)
        assert sorted(values) == [0, 1, 2] and values[0] == pytest.approx(selection["value"], rel=1e-5)
        before = read_recipe(start / file)["selection"]["value"]
        assert selection["value"] == pytest.approx(before, rel=1e-4)  # of the same scans
        assert f"{models / file}: no epoch was better than the start of this training" in said
    # The diffusion model knows the autoencoder that is the old one.
    assert "was trained further" not in said


def test_the_overlay_divides_the_rates_by_ten_and_lets_them_fall(bundle, dataset_dir, start, tmp_path):
    settings = tiny.SETTINGS | {"autoencoder_epochs": 3, "diffusion_epochs": 3, "diffusion_lr": 5e-3} | inits(start)
    config_file = ["configs/train.json", "configs/fine_tuning.json"]
    run("training", config_file=config_file, **tiny.places(dataset_dir, tmp_path), **settings)
    for stage, file, lr, sign in (("autoencoder", "autoencoder.pt", 1e-3, 1), ("diffusion", "model.pt", 5e-3, -1)):
        resume = torch.load(tmp_path / "models" / "resume" / f"{stage}.pt", weights_only=True)
        rate = resume["optimizer"]["param_groups"][0]
        assert rate["initial_lr"] == pytest.approx(lr / 10) and rate["lr"] < 0.02 * rate["initial_lr"]
        selection = read_recipe(tmp_path / "models" / file)["selection"]
        assert sign * selection["value"] >= sign * selection["start"]


def test_the_regressor_keeps_its_start_too_and_resumes_without_validating_it_again(bundle, dataset_dir, start, tmp_path):
    init = {"init_regressor": str(start / "regressor.pt")}
    for epochs in (1, 2):
        train_regressor(dataset_dir, tmp_path, regressor_lr=1.0, regressor_epochs=epochs, **init)
        assert same_tensors(tmp_path / "models" / "regressor.pt", start / "regressor.pt")
    assert read_recipe(tmp_path / "models" / "regressor.pt")["selection"]["epoch"] == 0
    events = EventAccumulator(str(tmp_path / "output" / "tensorboard")).Reload().Scalars("val_l1")
    assert [event.step for event in events] == [0, 1, 2]
    train_regressor(dataset_dir, tmp_path / "slow", ["configs/fine_tuning_regressor.json"], regressor_epochs=2, **init)
    resume = torch.load(tmp_path / "slow" / "models" / "resume" / "regressor.pt", weights_only=True)
    assert resume["optimizer"]["param_groups"][0]["initial_lr"] == pytest.approx(1e-4)


def test_a_start_that_has_seen_the_validation_scans_is_refused(bundle, dataset_dir, start, tmp_path):
    """It would look better than all that follow."""
    mixed = shutil.copytree(dataset_dir, tmp_path / "mixed")
    table = (mixed / "participants.tsv").read_text()
    (mixed / "participants.tsv").write_text(
        table.replace("train", "x").replace("validation", "train").replace("\tx", "\tvalidation")
    )
    for (name, file), run_id in zip(inits(start).items(), ("training", "training_diffusion"), strict=True):
        with pytest.raises(Exception) as error:
            tiny.train(mixed, tmp_path / "out", run_id, **{name: file})
        assert f"are among those that {file} were trained on" in str(error.value.__cause__ or error.value)
    assert not (tmp_path / "out" / "models").exists()
