"""The parts of configs/evaluate.json work together: they refuse bad input, and their results do not overwrite each other."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from brain_ldm.evaluation.test_feature_extractors import write_regressor
from brain_ldm.training.test_resume import chain
from conftest import entered_bundle
from monai.bundle import run
from tiny_bundles import write_ldm_weights

from brain_ldm_bundle.scripts.data.image_checks import check_images
from brain_ldm_bundle.scripts.shared.files import sha256
from brain_ldm_bundle.scripts.shared.weights import read_recipe


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    return tiny.write_dataset(tmp_path_factory.mktemp("blobs"))


@pytest.fixture(scope="module")
def trained(dataset_dir, tmp_path_factory):
    """The folder of the weights of one training."""
    with entered_bundle(tiny.BUNDLE):
        return tiny.train(dataset_dir, tmp_path_factory.mktemp("trained"))


@pytest.fixture
def evaluate(bundle, dataset_dir, trained, tmp_path):
    """Copy the trained weights into a folder; a function that runs a run id of evaluate.json there comes back."""
    shutil.copytree(trained, tmp_path / "models")
    (tmp_path / "output").mkdir()

    def run_one(run_id, dataset_dir=dataset_dir, **settings):
        places = tiny.places(dataset_dir, tmp_path)
        run(run_id, config_file="configs/evaluate.json", **places | {"use_device": "cpu", "split": "validation"} | settings)

    return run_one


def seen(folder, numbers):
    """The hashes of the scans of these participants."""
    paths = [str(folder / image(number)) for number in numbers]
    return sorted(content.voxels_sha256 for content in check_images(paths, tiny.SPACING_MM)[1].values())


def image(number):
    return f"sub-{number:04d}/anat/sub-{number:04d}_T1w.nii.gz"


def datalist(folder, **splits):
    """A datalist of the participants of these numbers."""
    rows = pd.read_csv(folder / "participants.tsv", sep="\t").drop(columns="split").to_dict("records")
    return {split: [rows[number - 1] | {"image": image(number)} for number in numbers] for split, numbers in splits.items()}


def sections(folder):
    return {path.name for path in folder.glob("*.section.json")}


def test_every_part_refuses_a_split_other_than_the_trainings(evaluate, dataset_dir, tmp_path):
    """`evaluating` with another --seed scored scans that were trained on as held out."""
    assert read_recipe(tmp_path / "models" / "model.pt")["seen_voxels"] == seen(dataset_dir, range(1, 7))
    other = shutil.copytree(dataset_dir, tmp_path / "other")
    (other / "participants.tsv").write_text(
        re.sub("train$", "validation", (other / "participants.tsv").read_text(), count=3, flags=re.MULTILINE)
    )
    for run_id, settings in (
        ("evaluating", {}),
        ("evaluating_reconstruction", {}),
        ("evaluating_samples", {"samples": {"LDM": str(dataset_dir)}}),
        ("auditing", {"audited_dir": str(dataset_dir)}),
        ("evaluating", {"split": "training", "audited_dir": str(dataset_dir)}),
    ):
        with pytest.raises(Exception) as error:
            evaluate(run_id, other, **settings)
        assert "3 of 5 scans in the split 'validation', such as" in chain(error), run_id
        assert "were trained on. Split the data as training did" in chain(error), run_id
    assert not sections(tmp_path / "output")


def test_the_autoencoder_says_itself_which_scans_it_was_trained_on(evaluate, dataset_dir, tmp_path):
    """Its file said nothing, so that a diffusion model trained on other scans spoke for it."""
    assert read_recipe(tmp_path / "models" / "autoencoder.pt")["seen_voxels"] == seen(dataset_dir, range(1, 7))
    state = torch.load(tmp_path / "models" / "model.pt")
    recipe = read_recipe(tmp_path / "models" / "model.pt") | {"seen_voxels": []}
    state["_extra_state"] = torch.tensor(list(json.dumps(recipe).encode()), dtype=torch.uint8)
    torch.save(state, tmp_path / "models" / "model.pt")
    (tmp_path / "list.json").write_text(json.dumps(datalist(dataset_dir, training=[7, 8], validation=[1, 2])))
    with pytest.raises(Exception) as error:
        evaluate("evaluating_reconstruction", datalist=str(tmp_path / "list.json"))
    assert "2 of 2 scans in the split 'validation', such as" in chain(error)


def test_a_baseline_that_was_trained_on_held_out_scans_is_refused(bundle, tmp_path):
    dataset_dir = tiny.write_dataset(tmp_path / "blobs", training=12, validation=6)
    models = tmp_path / "models"
    models.mkdir()
    write_ldm_weights(models)
    write_regressor(models / "regressor.pt")
    recipe = {"seen_voxels": seen(dataset_dir, [18])}
    torch.save({"_extra_state": torch.tensor(list(json.dumps(recipe).encode()), dtype=torch.uint8)}, models / "vaegan.pt")
    made = shutil.copytree(dataset_dir, tmp_path / "made")
    for path in made.glob("sub-*/anat/*.nii.gz"):
        scan = nib.load(path)
        nib.save(nib.Nifti1Image(scan.get_fdata(dtype=np.float32) / 255, scan.affine), path)
        sidecar = {"Model": "vaegan", "WeightsSHA256": sha256(models / "vaegan.pt")}
        Path(str(path).replace(".nii.gz", ".json")).write_text(json.dumps(sidecar))
    settings = tiny.places(dataset_dir, tmp_path) | {"use_device": "cpu", "split": "validation"}
    for run_id, sets in (
        ("evaluating_samples", {"samples": {"VAE-GAN": str(made)}}),
        ("auditing", {"audited_dir": str(made)}),
        ("evaluating", {"samples": {"VAE-GAN": str(made)}}),
        ("evaluating", {"audited_dir": str(made)}),
    ):
        with pytest.raises(Exception) as error:
            run(run_id, config_file="configs/evaluate.json", **settings, **sets)
        assert "1 of 6 scans in the split 'validation', such as" in chain(error), (run_id, sets)
        assert "that the weights of vaegan were trained on" in chain(error), (run_id, sets)
    assert not sections(tmp_path / "output")


def test_the_scans_through_the_autoencoder_are_kept_where_asked_for(evaluate, tmp_path):
    evaluate("evaluating_reconstruction")
    assert not (tmp_path / "through").exists()
    evaluate("evaluating_reconstruction", reconstructions_dir=str(tmp_path / "through"))
    assert sorted(path.name for path in (tmp_path / "through").glob("sub-*/anat/*.nii.gz")) == [
        "sub-0007_T1w.nii.gz",
        "sub-0008_T1w.nii.gz",
    ]


def test_no_section_of_an_earlier_model_stands_beside_the_new_ones(evaluate, tmp_path):
    """The page showed the "passed" audit of another model."""
    output = tmp_path / "output"
    for name in ("samples", "memorisation", "conditioning"):
        (output / f"{name}.section.json").write_text("{}")
    evaluate("evaluating")
    assert sections(output) == {"reconstruction.section.json", "conditioning.section.json"}
    torch.save({}, tmp_path / "models" / "autoencoder.pt")
    with pytest.raises(Exception) as error:
        evaluate("evaluating_reconstruction")
    assert "autoencoder.pt" in chain(error)
    assert sections(output) == {"reconstruction.section.json", "conditioning.section.json"}  # refused before any work
