"""MONAI Label's real server serves both bundles to its real client, with the sample app `monaibundle` and with our own app."""

import json
import os

import nibabel as nib
import numpy as np
import pytest
from label_server import COVARIATES, NEEDS_LABEL, infer
from monai.bundle import run
from tiny_bundles import LDM, SPADE

pytestmark = NEEDS_LABEL


def test_both_bundles_are_served(client):
    info = client.first_info
    assert info["models"].keys() == {SPADE, LDM}
    assert info["models"][LDM]["config"].items() >= {"age": 65, "sex": "F", "strength": 0.6, "seed": 0}.items()
    assert info["datastore"] == {"total": 10, "completed": 6, "label_tags": {"final": 6}}
    if client.own:
        assert {model["type"] for model in info["models"].values()} == {"others"}
        assert list(info["trainers"]) == [SPADE]
    else:
        assert SPADE in info["trainers"]


def test_a_label_map_becomes_a_t1w_on_its_own_grid(client, spade_bundle, tmp_path):
    """The values equal the output of the bundle on the command line. The order of the axes does not change the image."""
    models, canonical = str(client.bundles / SPADE / "models"), []
    settings = {"models_dir": models, "use_device": "cpu", "output_dtype": "float32"}
    for axcodes in ("LAS", "PIR"):
        given, output = client.studies / f"map{axcodes}.nii.gz", tmp_path / axcodes
        made, result = infer(client, SPADE, f"map{axcodes}")
        assert made.shape == nib.load(given).shape and made.get_data_dtype() == np.float32
        assert "".join(nib.aff2axcodes(made.affine)) == axcodes
        np.testing.assert_allclose(made.affine, nib.load(given).affine, atol=1e-4)
        run(config_file="configs/inference.json", label_maps=str(given), output_dir=str(output), **settings)
        expected = nib.load(next(output.rglob("*_T1w.nii.gz"))).get_fdata()
        np.testing.assert_allclose(made.get_fdata(), expected, atol=1e-4)
        assert expected.std() > 0.01 and len(np.unique(made.get_fdata())) > 300
        if client.own:
            assert result["notice"].startswith("Synthetic image")
            assert made.header["descrip"].item().decode() == "Synthetic, not for clinical use"
        canonical.append(nib.as_closest_canonical(made).get_fdata())
    np.testing.assert_allclose(*canonical, atol=1e-5)


def test_a_file_may_come_with_the_request(client):
    path, _ = client.infer(SPADE, "", {}, file=str(client.studies / "mapLAS.nii.gz"))
    np.testing.assert_array_equal(nib.load(path).get_fdata(), infer(client, SPADE, "mapLAS")[0].get_fdata())
    os.remove(path)


def test_no_request_takes_the_values_or_the_mark_from_an_answer_of_our_app(client):
    if not client.own:
        pytest.skip("the sample app does what the request says")
    expected, _ = infer(client, SPADE, "mapLAS")
    for params in (
        {"result_extension": ".nrrd"},
        {"result_dtype": "uint8"},  # of 0 to 1 only 0 and 1 would be left
        {"result_write_to_file": False},
        {"skip_writer": True},
        {"save_label": True, "label_tag": "../../written"},
    ):
        made, result = infer(client, SPADE, "mapLAS", **params)
        np.testing.assert_array_equal(made.get_fdata(), expected.get_fdata(), err_msg=str(params))
        assert made.get_data_dtype() == np.float32 and result["notice"].startswith("Synthetic image"), params
        assert made.header["descrip"].item().decode() == "Synthetic, not for clinical use", params
    assert not list(client.studies.parent.rglob("written"))


def test_a_head_is_edited_toward_the_requested_covariates(client, bundle, tmp_path):
    """The volume equals the output of the run id `editing`, lies on the head's own grid, and is reproducible."""
    request = COVARIATES | {"strength": 0.5, "seed": 3}
    made, _ = infer(client, LDM, "head", **request)
    given = client.studies / "head.nii.gz"
    assert made.shape == nib.load(given).shape and "".join(nib.aff2axcodes(made.affine)) == "PIR"
    np.testing.assert_allclose(made.affine, nib.load(given).affine, atol=1e-4)
    models = str(client.bundles / LDM / "models")
    settings = {"models_dir": models, "output_dir": str(tmp_path / "out"), "use_device": "cpu", "output_dtype": "float32"}
    run(
        "editing",
        config_file="configs/inference.json",
        image=str(given),
        request=COVARIATES,
        strength=0.5,
        seed=3,
        steps=4,
        **settings,
    )
    expected = nib.load(next((tmp_path / "out").rglob("*_T1w.nii.gz"))).get_fdata()
    np.testing.assert_allclose(made.get_fdata(), expected, atol=1e-4)
    assert expected.std() > 0.01

    def values(**changes):
        return infer(client, LDM, "head", **{**request, **changes})[0].get_fdata()

    np.testing.assert_array_equal(values(), made.get_fdata())
    np.testing.assert_array_equal(values(ventricles_ml="90"), made.get_fdata())  # as a form sends it
    for changes in ({"seed": 4}, {"sex": "F"}, {"strength": 1}):
        assert np.abs(values(**changes) - made.get_fdata()).max() > 1e-4, changes
    np.testing.assert_array_equal(values(strength=0), values(strength=0, seed=4, sex="F"))


def test_the_answer_of_our_app_says_which_values_were_used(client):
    if not client.own:
        pytest.skip("the sample app does not say it")
    made, result = infer(client, LDM, "head", ventricles_ml=90, strength=0)
    used = {"age": 65, "sex": "F", "ventricles_ml": 90, "brain_normalised_ml": 1500, "strength": 0, "seed": 0}
    assert result["used"] == used == json.loads(made.header.extensions[0].get_content())
    assert infer(client, SPADE, "mapLAS")[1]["used"] == {}
