"""A model of label maps makes maps that the SPADE bundle reads as they are, and is refused where scans are needed."""

import json
import os
from pathlib import Path

import bids_validator
import nibabel as nib
import numpy as np
import pytest
import tiny
import tiny_labels
import torch
from conftest import ROOT, entered_bundle
from monai.bundle import run
from tiny_bundles import REQUEST, write_ldm_weights
from tiny_labels import TABLE

from brain_ldm_bundle.scripts.data.label_maps import CountedClasses
from brain_ldm_bundle.scripts.shared import mni_box
from brain_ldm_bundle.scripts.shared.label_table import LabelTable
from brain_ldm_bundle.scripts.shared.weights import read_recipe
from spade_fusion_bundle.scripts.data.derivative import map_identity
from spade_fusion_bundle.scripts.generation.label_maps import find_maps
from spade_fusion_bundle.scripts.shared.map_reader import read_map

REQUESTS = """participant_id\tage\tsex\tventricles_ml\tbrain_normalised_ml
sub-a\t60\tF\t40\t1300
sub-b\t75\tM\t90\t1200
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a model of label maps, and the data set it was trained on."""
    folder = tmp_path_factory.mktemp("labels")
    data = tiny_labels.write_dataset(folder / "data")
    sizes = {"autoencoder_epochs": 8, "autoencoder_batch_size": 1, "autoencoder_lr": 3e-3, "diffusion_epochs": 1}
    with entered_bundle(ROOT / "brain_ldm_bundle"):
        return tiny_labels.train(data, folder, **sizes), data


def generate(models, folder, run_id="run", **settings):
    places = {"models_dir": str(models), "output_dir": str(folder), "use_device": "cpu"}
    small = {"sampler_name": "ddim", "steps": 2, "smallest_island": 2, "offset_limit": 100.0}
    if run_id == "editing":
        small = {"steps": 2}
    run(run_id, config_file="configs/inference.json", **places, **small | settings)


def table_of_requests(tmp_path):
    path = tmp_path / "requests.tsv"
    path.write_text(REQUESTS)
    return str(path)


def test_the_recipe_has_all_that_maps_need(trained):
    models, _ = trained
    recipe, of_autoencoder = (read_recipe(models / name) for name in ("model.pt", "autoencoder.pt"))
    table = LabelTable.from_dict(recipe["labels"], "weights")
    assert table.to_dict() == TABLE.to_dict() and of_autoencoder["labels"] == recipe["labels"]
    assert CountedClasses.of(table, recipe["volumes"]) == tiny_labels.COUNTED
    assert recipe["autoencoder"]["num_classes"] == TABLE.num_classes
    assert "acquisition" not in recipe  # label maps have no noise


def test_maps_have_the_values_the_place_and_the_volumes_of_the_requests(trained, bundle, tmp_path):
    models, _ = trained
    made = tmp_path / "made"
    generate(models, made, requests=table_of_requests(tmp_path))
    rows = {row.split("\t")[0]: row.split("\t") for row in REQUESTS.splitlines()[1:]}
    for name, row in rows.items():
        image = nib.load(made / name / "anat" / f"{name}_dseg.nii.gz")
        values = np.asarray(nib.as_closest_canonical(image).dataobj)
        assert values.dtype == np.uint8 and set(np.unique(values)) <= set(range(18))
        assert np.allclose(image.affine, mni_box.affine(tiny.SPACING_MM), atol=1e-3)
        counted = tiny_labels.volumes_of(values)
        for covariate, wanted in zip(("ventricles_ml", "brain_normalised_ml"), map(float, row[3:])):
            tolerance = max(0.01 * wanted, 0.2, tiny_labels.VOXEL_ML / 2)
            assert abs(counted[covariate] - wanted) <= tolerance, (name, covariate)
        x = np.argwhere(values == 6)[:, 0].mean(), np.argwhere(values == 7)[:, 0].mean()
        assert x[0] < x[1]  # the left ventricle is on the left
    sidecar = json.loads((made / "sub-a" / "anat" / "sub-a_dseg.json").read_text())
    assert sidecar["Synthetic"] and sidecar["LabelTable"] == "demo" and sidecar["OffsetLimit"] == 100
    assert sidecar["Volumes"]["ventricles_ml"]["Requested"] == 40 and "IntensityScaling" not in sidecar
    assert (made / "participants.tsv").read_text().splitlines()[1].split("\t")[0] == "sub-a"
    assert bids_validator.problems(made) == []


def test_the_spade_bundle_takes_the_folder_as_it_is(trained, bundle, tmp_path):
    models, _ = trained
    generate(models, tmp_path / "made", requests=table_of_requests(tmp_path))
    table = LabelTable.from_file(ROOT / "spade_fusion_bundle" / "configs" / "labels.json", "demo")
    maps = find_maps(tmp_path / "made", tmp_path / "images")
    assert [item["participant_id"] for item in maps] == ["sub-a", "sub-b"]
    for item in maps:
        values = np.asarray(read_map(item["image"], table).dataobj)
        assert np.array_equal(values, np.asarray(nib.load(item["image"]).dataobj))
        source = map_identity(item["image"])["LabelMapSource"]
        assert source["WeightsSHA256"] and source["Covariates"]["age"]["Value"] in (60, 75)


def test_finished_maps_stay_and_shards_make_the_same_maps(trained, bundle, tmp_path):
    models, _ = trained
    requests = table_of_requests(tmp_path)
    for shard in ("1/2", "2/2"):
        generate(models, tmp_path / "shards", requests=requests, shard=shard)
    generate(models, tmp_path / "whole", requests=requests)
    files = sorted((tmp_path / "whole").glob("sub-*/anat/*_dseg.nii.gz"))
    assert len(files) == 2
    for file in files:
        assert file.read_bytes() == (tmp_path / "shards" / file.relative_to(tmp_path / "whole")).read_bytes()
    before = [os.stat(file).st_mtime_ns for file in files]
    generate(models, tmp_path / "whole", requests=requests)
    assert [os.stat(file).st_mtime_ns for file in files] == before
    generate(models, tmp_path / "whole", requests=requests, offset_limit=50.0)  # another setting, other maps
    assert all(now > then for now, then in zip([os.stat(file).st_mtime_ns for file in files], before))


def test_a_volume_out_of_reach_is_reported(trained, bundle, tmp_path, capsys):
    models, _ = trained
    generate(models, tmp_path / "made", request=REQUEST | {"ventricles_ml": 300}, offset_limit=0.01)
    said = capsys.readouterr().out
    assert "has ventricles_ml of" in said and "instead of 300 mL" in said
    sidecar = json.loads(next((tmp_path / "made").glob("sub-*/anat/*_dseg.json")).read_text())
    assert sidecar["Volumes"]["ventricles_ml"]["AsRequested"] is False


def test_a_label_map_is_edited_to_the_requested_volumes(trained, bundle, tmp_path):
    models, data = trained
    [image, *_] = sorted((data / "derivatives").rglob("*_dseg.nii.gz"))
    source = REQUEST | {"ventricles_ml": 40}
    inversion = {"method": "inversion", "source": source, "sampler_name": "ddim", "offset_limit": 100.0, "smallest_island": 2}
    made = {}
    for name, own in {"noise": {"offset_limit": 100.0}, "inversion": inversion, "reconstruction": {"strength": 0}}.items():
        generate(models, tmp_path / name, "editing", image=str(image), request=REQUEST, **own)
        [file] = (tmp_path / name).glob("sub-*/anat/*_dseg.nii.gz")
        made[name] = np.asarray(nib.as_closest_canonical(nib.load(file)).dataobj)
        sidecar = json.loads(file.with_name(file.name.replace(".nii.gz", ".json")).read_text())
        assert sidecar["EditedImage"] == image.name and sidecar["Description"].startswith("Synthetic: a label map edited")
        assert sidecar["Volumes"]["ventricles_ml"]["AsRequested"] is (name != "reconstruction")
        assert bids_validator.problems(tmp_path / name) == []
    original = np.asarray(nib.as_closest_canonical(nib.load(image)).dataobj)
    for name in ("noise", "inversion"):
        wanted = REQUEST["ventricles_ml"]
        assert tiny_labels.volumes_of(made[name])["ventricles_ml"] == pytest.approx(
            wanted, abs=0.01 * wanted + tiny_labels.VOXEL_ML
        )
    assert (made["reconstruction"] == original).mean() > 0.8
    assert (made["noise"] != made["inversion"]).any()


def cause(run_it) -> str:
    """The message of the error below those of MONAI."""
    with pytest.raises(Exception) as failed:
        run_it()
    error = failed.value
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    return str(error)


def test_where_scans_are_needed_label_models_are_refused(trained, bundle, tmp_path):
    models, data = trained
    scans = tiny.write_dataset(tmp_path / "scans", 2, 1)
    head = str(scans / "sub-0001" / "anat" / "sub-0001_T1w.nii.gz")
    edit = cause(lambda: generate(models, tmp_path / "edited", "editing", image=head, request=REQUEST))
    assert "are not in the label table 'demo'" in edit and head in edit
    places = {"models_dir": str(models), "dataset_dir": str(scans), "cache_dir": str(tmp_path / "cache"), "use_device": "cpu"}
    evaluation = {"config_file": "configs/evaluate.json", "output_dir": str(tmp_path / "eval"), "split": "validation"}
    assert "this evaluation needs a model of scans" in cause(lambda: run("evaluating_reconstruction", **places, **evaluation))
    train = cause(lambda: tiny.train(scans, tmp_path, init_autoencoder=str(models / "autoencoder.pt")))
    assert "autoencoder.pt: these weights are of label maps (demo), not of scans" in train
    settings = tiny.SETTINGS | tiny.places(data, tmp_path) | {"models_dir": str(models), "label_table": "demo"}
    noise = cause(lambda: run("measuring_acquisition", config_file="configs/train.json", **settings))
    assert "make label maps, but the noise of scans needs a model of scans" in noise
    write_ldm_weights(Path(tmp_path))
    init = {"init_autoencoder": str(tmp_path / "autoencoder.pt")}
    assert "these weights are of scans" in cause(lambda: tiny_labels.train(data, tmp_path / "again", **init))
    assert not (tmp_path / "edited").exists() and not (tmp_path / "eval").exists()


def test_folders_of_scans_and_of_maps_are_not_mixed(trained, bundle, tmp_path):
    models, _ = trained
    (tmp_path / "scans").mkdir()
    write_ldm_weights(tmp_path / "scans")
    generate(models, tmp_path / "maps", request=REQUEST)
    run(config_file="configs/inference.json", models_dir=str(tmp_path / "scans"), output_dir=str(tmp_path / "t1w"),
        request=REQUEST, steps=2, use_device="cpu")  # fmt: skip
    more = {"request": REQUEST | {"age": 50}, "steps": 2}
    assert "holds T1w, or label maps of another table" in cause(lambda: generate(models, tmp_path / "t1w", **more))
    assert "holds label maps" in cause(lambda: generate(tmp_path / "scans", tmp_path / "maps", **more))
    assert "label maps are whole numbers" in cause(
        lambda: generate(models, tmp_path / "new", request=REQUEST, output_dtype="float32")
    )


def test_requests_without_the_volumes_are_refused(trained, bundle, tmp_path):
    models, _ = trained
    table = tmp_path / "requests.tsv"
    table.write_text("participant_id\tage\tsex\tbrain_normalised_ml\nsub-a\t60\tF\t1300\n")
    message = cause(lambda: generate(models, tmp_path / "made", requests=str(table)))
    assert "no column 'ventricles_ml'" in message and not (tmp_path / "made").exists()
    lacking = {"age": 60, "sex": "F", "ventricles_ml": 30}
    assert "brain_normalised_ml is missing" in cause(lambda: generate(models, tmp_path / "made", request=lacking))


def test_a_missing_volume_that_the_schema_allows_is_refused(trained, tmp_path):
    from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
    from brain_ldm_bundle.scripts.generation.exact_maps import exact_maps
    from brain_ldm_bundle.scripts.generation.requests import refuse_without_volumes

    models, _ = trained
    recipe = read_recipe(models / "model.pt")
    schema = CovariateSchema.from_dict(
        {"covariates": [{**entry, "missing": "allowed"} for entry in recipe["covariates"]["covariates"]]}
    )
    request = schema.request(
        {"participant_id": "a", "age": None, "sex": "F", "ventricles_ml": None, "brain_normalised_ml": 1300}
    )
    refuse_without_volumes([request], None)
    with pytest.raises(ValueError, match="sub-a: ventricles_ml is missing, but label maps are made to the requested volumes"):
        refuse_without_volumes([request], exact_maps(recipe, "model.pt", tiny.SPACING_MM, 5.0, 8))


def test_pictures_of_a_training_are_from_0_to_1(trained):
    from brain_ldm_bundle.scripts.model.networks import autoencoder_of
    from brain_ldm_bundle.scripts.model.sampler import Reconstructor
    from brain_ldm_bundle.scripts.training.autoencoder import reconstructions

    models, _ = trained
    network = autoencoder_of(read_recipe(models / "model.pt"), models / "autoencoder.pt")
    classes = torch.from_numpy(TABLE.classes(tiny_labels.head(), "head"))[None]
    (batch,) = reconstructions([{"image": classes}], network, Reconstructor(), torch.device("cpu"), 1).values()
    assert batch.shape == (2, 1, 20, 28, 20) and 0 <= batch.min() and batch.max() <= 1
