"""Fine-tuning keeps the planes and the fusion that it starts from unless it finds better ones."""

import re
import shutil

import pytest
import tiny_spade
import torch
from conftest import entered_bundle
from monai.bundle import run
from tiny import places

from spade_fusion_bundle.scripts.data.planes import PLANES
from spade_fusion_bundle.scripts.shared.weights import read_recipe, read_state

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    return tiny_spade.write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def start(dataset_dir, tmp_path_factory):
    """The folder of weights of all stages that have learnt something."""
    folder = tmp_path_factory.mktemp("start")
    with entered_bundle(tiny_spade.BUNDLE):
        tiny_spade.train(dataset_dir, folder, spade_epochs=2, fusion_epochs=1, l1_weight=50.0, generator_lr=2e-3)
    return folder / "models"


def same_tensors(one, other, prefix=""):
    one, other = read_state(one), read_state(other)
    return all(torch.equal(one[k], v) for k, v in other.items() if k.startswith(prefix) and not k.endswith("_extra_state"))


def test_planes_and_fusion_that_get_only_worse_are_given_back(spade_bundle, dataset_dir, start, tmp_path, capsys):
    bad = {"generator_lr": 1.0, "fusion_lr": 1.0}
    models = tiny_spade.train(dataset_dir, tmp_path, init_dir=str(start), **bad)
    said = capsys.readouterr().out
    for name in (*(f"spade_{plane}.pt" for plane in PLANES), "model.pt"):
        assert same_tensors(models / name, start / name), name  # with the statistics of batch norm
        assert read_recipe(models / name)["selection"]["epoch"] == 0
        assert f"{models / name}: no epoch was better than the start" in said


def test_the_overlay_lowers_the_rates_and_knows_the_scans_of_its_start(spade_bundle, dataset_dir, start, tmp_path):
    other = shutil.copytree(dataset_dir, tmp_path / "fewer")
    table = (other / "participants.tsv").read_text()
    (other / "participants.tsv").write_text(table.replace("sub-01\ttrain", "sub-01\ttest"))
    # The splits are not those of the start, so scans for the fusion may be known to the generators.
    settings = places(other, tmp_path) | tiny_spade.SETTINGS | {"init_dir": str(start)}
    config_file = ["configs/train.json", "configs/fine_tuning.json"]
    with pytest.raises(Exception) as error:
        run("training", config_file=config_file, **settings)
    refusal = "2 of 2 scans in the split 'fusion'.* are among those that .*model.pt were trained on"
    assert re.search(refusal, str(error.value.__cause__))
    settings = places(dataset_dir, tmp_path) | tiny_spade.SETTINGS | {"init_dir": str(start), "plane": "axial"}
    run("training_spade", config_file=config_file, **settings)
    resume = torch.load(tmp_path / "models" / "resume" / "spade_axial.pt", weights_only=True)
    assert resume["optimizer"]["param_groups"][0]["initial_lr"] == pytest.approx(1e-5)
    assert resume["discriminator_optimizer"]["param_groups"][0]["initial_lr"] == pytest.approx(4e-5)


@pytest.mark.parametrize("missing", ["model.pt", "spade_axial.pt"])
def test_a_folder_without_all_weights_is_refused(spade_bundle, dataset_dir, start, tmp_path, missing):
    partial = shutil.copytree(start, tmp_path / "partial")
    (partial / missing).unlink()
    with pytest.raises(Exception, match="no such weights file|Failed to evaluate") as error:
        tiny_spade.train(dataset_dir, tmp_path, init_dir=str(partial))
    assert missing in str(error.value.__cause__ or error.value)
    assert not (tmp_path / "models" / "spade_axial.pt").exists()
