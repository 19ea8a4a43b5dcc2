"""Weights that exist get the measured noise and bias field, and from then on volumes have them unless a user says no."""

import json
import shutil
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from test_weights_fix_settings import SPACING_MM, refusal
from tiny_bundles import AUTOENCODER, BUNDLES, LDM, SPADE, SPADE_SIZES, UNET, settings

from brain_ldm_bundle.scripts.shared.acquisition import add, draw
from brain_ldm_bundle.scripts.shared.weights import add_to_recipe, read_recipe, read_state

NAMES = {
    "channels": "channels",
    "num_head_channels": "head_channels",
    "num_res_blocks": "res_blocks",
    "norm_num_groups": "groups",
}
SIZES = {SPADE: SPADE_SIZES, LDM: {}}
for network, sizes in (("autoencoder", AUTOENCODER), ("unet", UNET)):
    SIZES[LDM] |= {f"{network}_{NAMES[key]}": value for key, value in sizes.items() if key in NAMES}


@pytest.fixture(params=BUNDLES)
def case(request, enter, data, tmp_path):
    """Enter a bundle: its name, a copy of its models, and functions that measure and that generate."""
    name = request.param
    models = shutil.copytree(enter(name) / "models", tmp_path / "models")
    one_map = {} if name == LDM else {"label_maps": str(next(Path(data[SPADE]).rglob("sub-01_dseg.nii.gz")))}
    training = settings(name, data, "train", tmp_path) | SIZES[name] | {"models_dir": str(models)}
    sampling = settings(name, data, "inference", tmp_path) | one_map | {"models_dir": str(models), "output_dtype": "float32"}

    def generate(**more):
        monai.bundle.run(config_file="configs/inference.json", **sampling | more)
        (image,) = Path((sampling | more)["output_dir"]).rglob("*_T1w.nii.gz")
        return np.asarray(nib.load(image).dataobj), json.loads(image.with_name(f"{image.name[:-7]}.json").read_text()), image

    return name, models / "model.pt", training, sampling, generate


@pytest.mark.filterwarnings("ignore")
@pytest.mark.slow
def test_measured_noise_and_bias_are_stored_and_added(case):
    name, model, training, sampling, generate = case
    tensors = {key: value for key, value in read_state(model).items() if key != "_extra_state"}
    recipe = read_recipe(model)
    monai.bundle.run("measuring_acquisition", config_file="configs/train.json", **training)
    measured = read_recipe(model)["acquisition"]
    assert read_recipe(model) == recipe | {"acquisition": measured} and measured["noise"] >= 0
    assert all(torch.equal(value, tensors[key]) for key, value in read_state(model).items() if key != "_extra_state")
    assert measured["scans"] == (4 if name == LDM else 2)  # validation and training

    add_to_recipe(model, {"acquisition": measured | {"noise": 0.05, "noise_spread": 0.01}})
    bare, sidecar, _ = generate(acquisition=False)
    assert sidecar["Acquisition"] is None
    noisy, sidecar, image = generate()  # in the place of the other
    assert sidecar["Acquisition"] == draw(read_recipe(model)["acquisition"], sidecar["Acquisition"]["Seed"])
    if name == LDM:
        assert sidecar["Acquisition"]["Seed"] == sidecar["Seed"]
        wanted = add(torch.tensor(bare), sidecar["Acquisition"])
        assert np.abs(noisy - wanted.numpy()).max() < 1e-5
    else:
        assert not noisy[bare == 0].any() and (noisy - bare)[bare > 0].std() > 0.02
    written = image.stat().st_mtime_ns
    assert (generate()[0] == noisy).all() and image.stat().st_mtime_ns == written  # complete: not made again


@pytest.mark.filterwarnings("ignore")
def test_weights_without_the_measurement_refuse_acquisition(case):
    _, model, _, sampling, _ = case
    message = refusal(None, "inference", **sampling | {"acquisition": True})
    assert f"acquisition is True, but {model} holds no measured noise and bias field" in message
    assert not Path(sampling["output_dir"]).exists()


@pytest.mark.filterwarnings("ignore")
def test_a_measurement_with_other_settings_or_weights_is_refused_and_changes_nothing(case):
    name, model, training, _, _ = case
    add_to_recipe(model, {"spacing_mm": 1.0, "autoencoder_sha256": "0" * 64})
    before = model.read_bytes()
    assert f"spacing_mm is {SPACING_MM[name]}, but" in refusal("measuring_acquisition", "train", **training)
    if name == LDM:
        add_to_recipe(model, {"spacing_mm": SPACING_MM[name]})
        before = model.read_bytes()
        assert "other weights were trained with" in refusal("measuring_acquisition", "train", **training)
    assert model.read_bytes() == before
    state = read_state(model)
    state.pop("_extra_state")
    torch.save(state, model)
    assert "have no recipe" in refusal("measuring_acquisition", "train", **training)
    model.unlink()
    assert "no such weights file. Make it with: python -m monai.bundle run training" in refusal(
        "measuring_acquisition", "train", **training
    )
