"""Two processes train one SPADE model together. The training ends with one set of files and plain weights.

The tests run on the CPU with gloo. GPUs differ in the device, nccl and batch norm over all processes.
"""

import re
import sys

import pytest
import tiny
import tiny_spade
import torch

from spade_fusion_bundle.scripts.data.planes import PLANES
from spade_fusion_bundle.scripts.model.networks import SpadeFusion, SpadeGenerator
from spade_fusion_bundle.scripts.shared.weights import load_weights, read_recipe

pytestmark = pytest.mark.slow

PATIENCE_S = 300
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
CONFIGS = "['configs/train.json','configs/multi_gpu.json']"


def torchrun(arguments):
    """Run a `python -m monai.bundle ...` command in two processes; gives exit status and output."""
    process = tiny.start([*TORCHRUN, *arguments[1:]], tiny_spade.BUNDLE, OMP_NUM_THREADS="1")
    try:
        output, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    return process.returncode, output


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A training of all stages by two processes."""
    folder = tmp_path_factory.mktemp("multi_gpu")
    tiny_spade.write_dataset(folder / "dataset", ("train", "train", "fusion", "fusion", "validation", "validation"))
    settings = tiny.places(folder / "dataset", folder) | tiny_spade.SETTINGS
    status, output = torchrun(tiny.command("training", CONFIGS, **settings))
    assert status == 0, output
    (folder / "log.txt").write_text(output)
    return folder


def test_training_leaves_one_set_of_files(folder):
    files = sorted(str(path.relative_to(folder / "models")) for path in (folder / "models").rglob("*") if path.is_file())
    planes = [f"spade_{plane}.pt" for plane in PLANES]
    assert files == ["model.pt", "resume/fusion.pt", *(f"resume/{name}" for name in planes), *planes]
    assert len(list((folder / "cache" / "planes").iterdir())) == 4
    assert {path.name for path in (folder / "output" / "tensorboard").iterdir()} == {
        "fusion",
        *(f"spade_{plane}" for plane in PLANES),
    }


def test_each_rank_takes_its_half_of_the_scans(folder):
    """Two scans are a batch for one process, and half a batch for each of two."""
    for stage in ("spade_axial", "fusion"):
        state = torch.load(folder / "models" / "resume" / f"{stage}.pt", weights_only=True)
        assert (state["epoch"], state["epoch_length"]) == (1, 1), stage
        assert state["optimizer"]["state"][0]["step"] == 1
    assert re.search(r"synthesising for the fusion: 100%.* 1/1", (folder / "log.txt").read_text())


def test_the_weights_load_without_ddp(folder):
    path = folder / "models" / "model.pt"
    assert not any(key.startswith("module.") for key in torch.load(path, weights_only=True))
    load_weights(SpadeFusion(**read_recipe(path)["network"]), path)
    for plane in PLANES:
        path = folder / "models" / f"spade_{plane}.pt"
        assert not any(key.startswith("module.") for key in torch.load(path, weights_only=True))
        load_weights(SpadeGenerator(12, ngf=2, hidden=4), path)


def test_one_process_goes_on_where_two_stopped(folder, spade_bundle):
    settings = {"run_id": "training_spade", "plane": "coronal", "spade_epochs": 2}
    models = tiny_spade.train(folder / "dataset", folder, **settings)
    assert torch.load(models / "resume" / "spade_coronal.pt", weights_only=True)["epoch"] == 2


def test_fewer_scans_than_processes_are_refused(tmp_path):
    tiny_spade.write_dataset(tmp_path / "dataset", ("train", "train", "fusion", "fusion", "validation"))
    settings = tiny.places(tmp_path / "dataset", tmp_path) | tiny_spade.SETTINGS
    status, output = torchrun(tiny.command("training", CONFIGS, **settings))
    assert status != 0
    assert "1 scan in the split validation, at least 2 needed" in output


def test_several_processes_without_their_config_are_refused(tmp_path, spade_bundle, monkeypatch):
    """Each process refuses by itself, by what torchrun tells it."""
    dataset_dir = tiny_spade.write_dataset(tmp_path / "dataset", ("train", "fusion", "validation"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError) as error:
        tiny_spade.train(dataset_dir, tmp_path)
    assert "2 processes would each train alone: add configs/multi_gpu.json to --config_file" in str(error.value.__cause__)
    assert not (tmp_path / "models").exists()
