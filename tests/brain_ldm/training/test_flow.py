"""A rectified flow trains and samples with the same commands as a diffusion model."""

import json
import traceback

import nibabel as nib
import numpy as np
import pytest
import tiny
from monai.bundle import run

from brain_ldm_bundle.scripts.shared.weights import read_recipe


def generate(models, folder, **settings):
    run(
        config_file="configs/inference.json",
        request={"age": 70, "sex": "F", "ventricles_ml": 40, "brain_normalised_ml": 1400},
        models_dir=str(models),
        output_dir=str(folder),
        use_device="cpu",
        **settings,
    )
    (path,) = folder.glob("sub-*/anat/*_T1w.nii.gz")
    return nib.load(path).get_fdata(), json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())


def test_a_flow_is_trained_and_sampled_by_both_samplers_but_not_by_ddpm(bundle, tmp_path):
    dataset = tiny.write_dataset(tmp_path / "dataset", training=3, validation=1)
    models = tiny.train(dataset, tmp_path, prediction_type="flow", panel_interval=1, panel_steps=2)  # the panels sample as well
    assert read_recipe(models / "model.pt")["prediction_type"] == "flow"
    by_solver, sidecar = generate(models, tmp_path / "dpm", sampler_name="dpm++", steps=10)
    without_rewrites, _ = generate(models, tmp_path / "plain", sampler_name="dpm++", steps=10, exact_rewrites=False)
    np.testing.assert_allclose(without_rewrites, by_solver, rtol=0, atol=1.01 / 255)  # one step of the 8-bit file
    by_euler, _ = generate(models, tmp_path / "euler", sampler_name="ddim", steps=25)
    assert (sidecar["PredictionType"], sidecar["Sampler"], sidecar["Steps"]) == ("flow", "dpm++", 10)
    assert by_solver.std() > 0 and np.abs(by_solver - by_euler).mean() < 0.2 * np.abs(by_euler - by_euler.mean()).mean()
    with pytest.raises(Exception) as error:
        generate(models, tmp_path / "ddpm", sampler_name="ddpm", steps=1000)
    assert "a flow model cannot" in "".join(traceback.format_exception(error.value))
