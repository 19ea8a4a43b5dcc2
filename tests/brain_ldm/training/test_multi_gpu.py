"""Two processes share one training and one cohort. They do not hang, use each scan once and leave one set of files.

The tests run on the CPU with gloo. GPUs differ only in the device and nccl.
"""

import re
import sys

import nibabel as nib
import numpy as np
import pytest
import tiny
import torch
from monai.bundle import run

from brain_ldm_bundle.scripts.model.networks import DiffusionUNet
from brain_ldm_bundle.scripts.shared.weights import load_weights, read_recipe

pytestmark = pytest.mark.slow

PATIENCE_S = 300
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def torchrun(arguments):
    """Run a `python -m monai.bundle ...` command in two processes; what it says comes back."""
    process = tiny.start([*TORCHRUN, *arguments[1:]], OMP_NUM_THREADS="1")
    try:
        output, _ = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Both stages for two epochs, the discriminator in the second, by two processes."""
    folder = tmp_path_factory.mktemp("multi_gpu")
    settings = tiny.places(tiny.write_dataset(folder / "dataset"), folder) | tiny.SETTINGS
    settings |= {"autoencoder_epochs": 2, "diffusion_epochs": 2, "adversarial_from_epoch": 2}
    output = torchrun(tiny.command("training", "['configs/train.json','configs/multi_gpu.json']", **settings))
    (folder / "log.txt").write_text(output)
    return folder


def test_training_leaves_one_set_of_files(folder):
    assert files(folder / "models") == ["autoencoder.pt", "model.pt", "resume/autoencoder.pt", "resume/diffusion.pt"]
    assert len(files(folder / "cache" / "latents")) == 8
    assert len(files(folder / "output" / "tensorboard" / "diffusion")) > 0


def test_each_rank_takes_its_half_of_the_scans(folder):
    """Six scans in batches of three are two steps for one process, and one for each of two."""
    for stage in ("autoencoder", "diffusion"):
        state = torch.load(folder / "models" / "resume" / f"{stage}.pt", weights_only=True)
        assert (state["epoch"], state["epoch_length"]) == (2, 1)
        assert state["optimizer"]["state"][0]["step"] == 2
    assert re.search(r"encoding: 100%.* 3/3", (folder / "log.txt").read_text())


def test_the_weights_load_without_ddp(folder):
    path = folder / "models" / "model.pt"
    assert not any(key.startswith("module.") for key in torch.load(path, weights_only=True))
    load_weights(DiffusionUNet(**read_recipe(path)["unet"]), path)


def test_one_process_continues_a_training_of_two(folder, bundle):
    models = tiny.train(folder / "dataset", folder, "training_diffusion", diffusion_epochs=3)
    assert torch.load(models / "resume" / "diffusion.pt", weights_only=True)["epoch"] == 3


def test_two_processes_or_two_shards_make_each_row_once_and_as_one_process_does(folder, bundle):
    table = folder / "requests.tsv"
    rows = [f"sub-{i}\t{45 + 5 * i}\tF\t{20 + 9 * i}\t1500" for i in range(5)]
    table.write_text("\n".join(["participant_id\tage\tsex\tventricles_ml\tbrain_normalised_ml", *rows]) + "\n")
    settings = {"models_dir": str(folder / "models"), "requests": str(table), "use_device": "cpu", "steps": 4, "batch_size": 2}
    settings |= {"output_dtype": "float32"}
    config_file = "configs/inference.json"
    output = torchrun(tiny.command("generating", config_file, output_dir=folder / "two", **settings))
    assert output.count("5 of 5 volumes are to be made") == 1
    for shard in ("1/2", "2/2"):
        run("generating", config_file=config_file, output_dir=str(folder / "shards"), shard=shard, **settings)
    run("generating", config_file=config_file, output_dir=str(folder / "one"), **settings)
    assert files(folder / "two") == files(folder / "one") == files(folder / "shards")
    images = [name for name in files(folder / "one") if name.endswith(".nii.gz")]
    assert len(images) == 5
    for name in images:
        one, two, shards = (np.asarray(nib.load(folder / made / name).dataobj) for made in ("one", "two", "shards"))
        np.testing.assert_allclose(two, one, atol=1e-4)
        np.testing.assert_allclose(shards, one, atol=1e-4)
    tables = [(folder / made / "participants.tsv").read_text() for made in ("one", "two", "shards")]
    assert len(set(tables)) == 1
