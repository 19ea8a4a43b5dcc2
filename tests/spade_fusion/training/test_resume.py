"""A SPADE training that the system stops continues and finishes, from any folder."""

import signal
import time

import pytest
import tiny
import tiny_spade
import torch
from conftest import ROOT

# The wait for a process of its own to import PyTorch and train for an epoch, on a busy machine.
PATIENCE_S = 300


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    return tiny_spade.write_dataset(tmp_path_factory.mktemp("dataset"))


def load(path):
    return torch.load(path, weights_only=True)


def stop_in_the_axial_plane(signal_number, dataset_dir, folder, cwd):
    """Train everything by the command line, stop it during the first plane, and give its exit status."""
    settings = tiny.places(dataset_dir, folder) | tiny_spade.SETTINGS | {"spade_epochs": 100_000, "val_interval": 1}
    config_file = str(tiny_spade.BUNDLE / "configs" / "train.json")
    process = tiny.start(tiny.command("training", config_file, **settings), cwd)
    resume, end = folder / "models" / "resume" / "spade_axial.pt", time.monotonic() + PATIENCE_S
    while not resume.exists() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.2)
    process.send_signal(signal_number)
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert resume.exists(), output
    return process.returncode


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_number", "status"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143)], ids=["SIGKILL", "SIGTERM"]
)
def test_a_stopped_run_goes_on_and_finishes(signal_number, status, spade_bundle, dataset_dir, tmp_path):
    cwd = {signal.SIGKILL: ROOT, signal.SIGTERM: tmp_path}[signal_number]  # from anywhere
    assert stop_in_the_axial_plane(signal_number, dataset_dir, tmp_path, cwd) == status
    stopped = load(tmp_path / "models" / "resume" / "spade_axial.pt")
    load(tmp_path / "models" / "spade_axial.pt")  # whole
    # SIGTERM ends the run, not only its stage
    assert not (tmp_path / "models" / "spade_coronal.pt").exists() and not (tmp_path / "models" / "model.pt").exists()

    epochs = stopped["epoch"] + 2
    models = tiny_spade.train(dataset_dir, tmp_path, "training_spade", plane="axial", spade_epochs=epochs, val_interval=1)
    finished = load(models / "resume" / "spade_axial.pt")
    assert (finished["epoch"], finished["iteration_of_epoch"]) == (epochs, 0)
    for optimizer in ("optimizer", "discriminator_optimizer"):
        steps = finished[optimizer]["state"][0]["step"] - stopped[optimizer]["state"][0]["step"]
        assert steps == 2 * finished["epoch_length"] - stopped["iteration_of_epoch"]


def test_a_plane_with_other_data_or_sizes_does_not_go_on(spade_bundle, dataset_dir, tmp_path):
    settings = {"run_id": "training_spade", "plane": "sagittal"}
    models = tiny_spade.train(dataset_dir, tmp_path, **settings)
    before = {path: path.stat().st_mtime_ns for path in models.rglob("*.pt")}
    for changed, reason in (({"ngf": 4}, "network: "), ({"fusion_fraction": 0.5, "folds": 2}, "data: ")):
        with pytest.raises(Exception) as error:
            tiny_spade.train(dataset_dir, tmp_path, **settings, **{"spade_epochs": 2} | changed)
        found = str(error.value.__cause__ or error.value)
        assert "spade_sagittal.pt was made by a run with other settings" in found and reason in found
    assert {path: path.stat().st_mtime_ns for path in models.rglob("*.pt")} == before
