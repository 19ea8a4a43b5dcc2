"""A stopped run continues after any kill, and bit for bit from the end of an epoch."""

import gzip
import json
import re
import shutil
import signal
import time

import nibabel as nib
import pandas as pd
import pytest
import tiny
import torch
from conftest import ROOT

from brain_ldm_bundle.scripts.shared.files import save_weights, sha256
from brain_ldm_bundle.scripts.shared.weights import read_recipe

pytestmark = pytest.mark.slow

# The wait for a process of its own to import PyTorch and train for an epoch, on a busy machine.
PATIENCE_S = 300


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    return tiny.write_dataset(tmp_path_factory.mktemp("dataset"))


def load(path):
    return torch.load(path, weights_only=True)


def assert_equal(found, wanted, where=""):
    """Of nested states, every number."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_equal(found[key], wanted[key], f"{where}/{key}")
    elif isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), where
    else:
        assert found == wanted, where


def test_an_autoencoder_trained_in_two_runs_equals_one_trained_in_one(bundle, dataset_dir, tmp_path):
    """Shuffling, mirroring and the sampled latent draw new numbers in each epoch."""
    settings = {"run_id": "training_autoencoder", "adversarial_from_epoch": 1}
    one = tiny.train(dataset_dir, tmp_path / "one", autoencoder_epochs=3, **settings)
    two = tiny.train(dataset_dir, tmp_path / "two", autoencoder_epochs=1, **settings)
    first = load(two / "resume" / "autoencoder.pt")
    tiny.train(dataset_dir, tmp_path / "two", autoencoder_epochs=3, **settings)
    for name in ("resume/autoencoder.pt", "autoencoder.pt"):
        assert_equal(load(two / name), load(one / name))
    last = load(two / "resume" / "autoencoder.pt")
    assert (first["epoch"], last["epoch"]) == (1, 3)
    for part in ("autoencoder", "discriminator"):
        assert any(not torch.equal(last[part][key], value) for key, value in first[part].items()), f"{part} did not train"


def test_weights_keep_the_scans_of_the_weights_that_they_began_with(bundle, dataset_dir, tmp_path):
    own = shutil.copytree(dataset_dir, tmp_path / "data")
    began = tiny.train(own, tmp_path / "began", autoencoder_epochs=1, diffusion_epochs=1)
    for name in ("autoencoder", "model"):  # as if they did not say what they have seen
        state = load(began / f"{name}.pt")
        recipe = {key: value for key, value in read_recipe(began / f"{name}.pt").items() if key != "seen_voxels"}
        if name == "model":
            recipe["autoencoder_sha256"] = sha256(tmp_path / "autoencoder.pt")
        state["_extra_state"] = torch.tensor(list(json.dumps(recipe).encode()), dtype=torch.uint8)
        save_weights(state, tmp_path / f"{name}.pt")
    files = {"autoencoder": tmp_path / "autoencoder.pt", "diffusion": tmp_path / "model.pt"}
    starts = {"autoencoder_epochs": 1, "diffusion_epochs": 1} | {f"init_{part}": str(file) for part, file in files.items()}
    models = tiny.train(own, tmp_path / "went_on", **starts)
    for file in files.values():
        assert read_recipe(models / file.name)["seen_unknown"] is True
    # A scan that was unpacked is the same.
    packed = next(own.glob("sub-*/anat/*_T1w.nii.gz"))
    scan = packed.with_suffix("")
    scan.write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    tiny.train(own, tmp_path / "went_on", **starts)
    # The autoencoder does not use covariates.
    table = own / "participants.tsv"
    text = table.read_text()
    rows = pd.read_csv(table, sep="\t")
    rows.assign(age=rows["age"] + 1).to_csv(table, sep="\t", index=False)
    with pytest.raises(Exception) as error:
        tiny.train(own, tmp_path / "went_on", **starts)
    assert "If only covariates changed, run training_diffusion" in chain(error)
    table.write_text(text)
    # Scans that were prepared again are others.
    image = nib.load(scan)
    nib.save(nib.Nifti1Image(image.get_fdata(dtype="float32") * 0.9, image.affine), scan)
    with pytest.raises(Exception) as error:
        tiny.train(own, tmp_path / "went_on", "training_autoencoder", **starts | {"autoencoder_epochs": 2})
    assert "autoencoder.pt was made by a run with other settings (seen_voxels: " in chain(error)


def test_a_diffusion_model_trained_in_two_runs_equals_one_trained_in_one(bundle, dataset_dir, tmp_path):
    settings = {"num_workers": 1}  # which lives on through all epochs
    one = tiny.train(dataset_dir, tmp_path / "one", diffusion_epochs=3, **settings)
    (tmp_path / "two" / "models").mkdir(parents=True)
    shutil.copy(one / "autoencoder.pt", tmp_path / "two" / "models")
    two = tiny.train(dataset_dir, tmp_path / "two", "training_diffusion", diffusion_epochs=1, **settings)
    tiny.train(dataset_dir, tmp_path / "two", "training_diffusion", diffusion_epochs=3)
    assert_equal(load(two / "resume" / "diffusion.pt"), load(one / "resume" / "diffusion.pt"))
    assert_equal(load(two / "model.pt"), load(one / "model.pt"))
    assert read_recipe(one / "model.pt")["acquisition"]["scans"] == len(list(dataset_dir.glob("sub-*")))

    # A run that is complete changes nothing.
    before = {path: path.stat().st_mtime_ns for path in two.rglob("*.pt")}
    tiny.train(dataset_dir, tmp_path / "two", "training_diffusion", diffusion_epochs=3)
    assert {path: path.stat().st_mtime_ns for path in two.rglob("*.pt")} == before

    # A diffusion model belongs to one autoencoder, and to what it was told to predict.
    with pytest.raises(Exception) as error:
        tiny.train(dataset_dir, tmp_path / "two", "training_diffusion", diffusion_epochs=4, prediction_type="v_prediction")
    assert "diffusion.pt was made by a run with other settings (prediction_type: epsilon, now v_prediction)" in chain(error)
    tiny.train(dataset_dir, tmp_path / "two", "training_autoencoder", autoencoder_epochs=2)
    with pytest.raises(Exception) as error:
        tiny.train(dataset_dir, tmp_path / "two", "training_diffusion", diffusion_epochs=4)
    assert "diffusion.pt was made by a run with other settings (autoencoder_sha256: " in chain(error)
    assert all(path.stat().st_mtime_ns == before[path] for path in (two / "model.pt", two / "resume" / "diffusion.pt"))


def chain(error):
    """The messages of an error and of those that it came from: MONAI wraps what an expression of a config raises."""
    here, messages = error.value, []
    while here is not None:
        messages.append(str(here))
        here = here.__cause__ or here.__context__
    return "\n".join(messages)


def stop_in_stage_one(signal_number, dataset_dir, folder, cwd):
    """Train both stages by the command line, stop it during the first, and give back its exit status."""
    settings = tiny.places(dataset_dir, folder) | tiny.SETTINGS | {"autoencoder_epochs": 100_000}
    config_file = str(tiny.BUNDLE / "configs" / "train.json")
    process = tiny.start(tiny.command("training", config_file, **settings), cwd)
    resume, end = folder / "models" / "resume" / "autoencoder.pt", time.monotonic() + PATIENCE_S
    while not resume.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal_number)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert resume.exists(), output
    if signal_number == signal.SIGTERM:  # a cluster's time limit
        assert re.search(rf"\nerror: stopped by SIGTERM, and {resume} is saved. Run the same command again\n*$", output)
    return process.returncode


@pytest.mark.parametrize(
    ("signal_number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)], ids=["SIGKILL", "SIGTERM"]
)
def test_a_stopped_run_continues_and_finishes(signal_number, status, bundle, dataset_dir, tmp_path):
    cwd = {signal.SIGKILL: ROOT, signal.SIGTERM: tmp_path}[signal_number]  # from anywhere
    assert stop_in_stage_one(signal_number, dataset_dir, tmp_path, cwd) == status
    stopped = load(tmp_path / "models" / "resume" / "autoencoder.pt")
    load(tmp_path / "models" / "autoencoder.pt")  # whole
    assert not (tmp_path / "models" / "model.pt").exists() and not (tmp_path / "cache" / "latents").exists()

    models = tiny.train(dataset_dir, tmp_path, autoencoder_epochs=stopped["epoch"] + 2)
    finished = load(models / "resume" / "autoencoder.pt")
    assert (finished["epoch"], finished["iteration_of_epoch"]) == (stopped["epoch"] + 2, 0)
    steps = finished["optimizer"]["state"][0]["step"] - stopped["optimizer"]["state"][0]["step"]
    assert steps == 2 * finished["epoch_length"] - stopped["iteration_of_epoch"]
    assert load(models / "model.pt")["scale_factor"] > 0
