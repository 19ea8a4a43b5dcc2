"""The weights in the repository generate a head without training or a download."""

import json

import nibabel as nib
import numpy as np
from monai.bundle import run

ASKED = {"age": 70, "sex": "F", "ventricles_ml": 40, "brain_normalised_ml": 1400}


def test_the_shipped_weights_make_the_head_that_was_asked_for(bundle, tmp_path):
    run(
        config_file=["configs/inference.json", "configs/shipped.json"],
        request=ASKED,
        steps=10,
        use_device="cpu",
        output_dir=str(tmp_path),
    )
    (path,) = tmp_path.glob("sub-*/anat/*_T1w.nii.gz")
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert {name: entry["Value"] for name, entry in sidecar["Covariates"].items()} == ASKED
    volume = nib.load(path)
    np.testing.assert_allclose(volume.header.get_zooms(), 4)
    values = volume.get_fdata()
    assert values.shape == (40, 56, 40)
    x, y, z = (side // 2 for side in values.shape)
    assert values[x - 8 : x + 8, y - 8 : y + 8, z - 4 : z + 8].mean() > 5 * values[:3, :, -3:].mean()  # brain, air
