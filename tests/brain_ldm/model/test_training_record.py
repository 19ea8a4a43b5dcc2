"""Scans that weights were trained on are found, and refused where new scans are needed."""

import json
import shutil
import warnings

import nibabel as nib
import pytest
import torch
from conftest import ROOT
from tiny_images import SPACING_MM, VOLUME, save

from brain_ldm_bundle.scripts.data import bids
from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.model import training_record as seen
from brain_ldm_bundle.scripts.shared.files import sha256
from brain_ldm_bundle.scripts.shared.scan_identity import seen_unknown, seen_voxels

SCHEMA = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")


@pytest.fixture
def dataset(tmp_path):
    """Eight participants."""
    folder = tmp_path / "cohort"
    lines = ["participant_id\tage\tsex\tventricles_ml\tbrain_normalised_ml"]
    for number in range(1, 9):
        lines.append(f"sub-{number}\t60\tF\t30\t1500")
        save(folder / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz", VOLUME + number)
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    return folder


def write(path, recipe):
    """A file of weights with a recipe; what the sidecars of its volumes say comes back."""
    torch.save({"_extra_state": torch.tensor(list(json.dumps(recipe).encode()), dtype=torch.uint8)}, path)
    return {"Model": recipe.get("model"), "WeightsSHA256": sha256(path)}


def test_a_scan_is_identified_in_any_folder_and_file(dataset, tmp_path):
    data = bids.read_dataset(dataset, SCHEMA, SPACING_MM)
    shutil.copytree(dataset, tmp_path / "moved")
    for path in (tmp_path / "moved").glob("sub-*/anat/*.nii.gz"):
        nib.save(nib.load(path), path.with_name(path.name.replace("_T1w.nii.gz", "_run-1_T1w.nii")))
        path.unlink()
    moved = bids.read_dataset(tmp_path / "moved", SCHEMA, SPACING_MM)
    known = seen_voxels(data["training"])
    assert known == seen_voxels(moved["training"]) and len(known) == len(data["training"])
    assert set(known).isdisjoint(seen_voxels(moved["validation"]))
    assert "sub" not in "".join(known)


def test_a_split_that_differs_from_the_training_is_noticed(dataset):
    """Another --seed, and scans that were trained on passed as held out."""
    data = bids.read_dataset(dataset, SCHEMA, SPACING_MM, seed=0)
    recipe = {"seen_voxels": seen_voxels(data["training"])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen.check_split(data, recipe)
    other = bids.read_dataset(dataset, SCHEMA, SPACING_MM, seed=1)
    assert other["validation"] != data["validation"]
    with pytest.raises(
        ValueError, match="in the split 'validation', such as .*, are among .* trained on. Split the data as .*--seed"
    ):
        seen.check_split(other, recipe)
    fewer = {"training": [*data["training"], *data["validation"]], "validation": [], "test": []}
    with pytest.warns(UserWarning, match=f"not trained on {len(data['validation'])} of .* 'training', such as"):
        seen.check_split(fewer, recipe)
    with pytest.warns(UserWarning, match="the weights do not say which scans they were trained on"):
        seen.check_split(other, {})


def test_scans_of_an_earlier_training_stay_seen(dataset, tmp_path):
    data = bids.read_dataset(dataset, SCHEMA, SPACING_MM)
    known = seen_voxels(data["training"][:2])
    write(tmp_path / "model.pt", {"seen_voxels": known})
    further = seen_voxels(data["training"][5:], tmp_path / "model.pt")
    assert further == sorted(known + seen_voxels(data["training"][5:]))


def test_scans_are_seen_that_either_network_was_trained_on(tmp_path):
    model, autoencoder = tmp_path / "model.pt", tmp_path / "autoencoder.pt"
    write(model, {"spacing_mm": 8.0, "seen_voxels": ["a", "b"]})
    both = {"spacing_mm": 8.0, "seen_unknown": False}
    assert seen.recipe_of(model, autoencoder) == both | {"seen_voxels": ["a", "b"]}  # it is not there yet
    write(autoencoder, {"seen_voxels": ["b", "c"]})
    assert seen.recipe_of(model, autoencoder) == both | {"seen_voxels": ["a", "b", "c"]}
    write(model, {"spacing_mm": 8.0})  # one that does not say: the published one, say
    assert seen.recipe_of(model, autoencoder) == both | {"seen_voxels": ["b", "c"], "seen_unknown": True}
    write(model, {"seen_voxels": ["a"]})
    for unknown in ({"seen_voxels": ["b"], "seen_unknown": True}, {"seen_voxels": ["b"], "unknown_start": "0" * 64}, {}):
        write(autoencoder, unknown)
        assert seen.recipe_of(model, autoencoder)["seen_unknown"]
    write(model, {})
    assert "seen_voxels" not in seen.recipe_of(model, autoencoder)


def test_weights_that_begin_with_others_of_unknown_scans_do_not_claim_to_know_all(tmp_path):
    """The page said "which it never saw" of weights that had begun with some of 448 other heads."""
    init, recipe = tmp_path / "init.pt", {"seen_voxels": ["a"]}
    assert seen_unknown(None) is False
    for known, unknown in (({"spacing_mm": 8.0}, True), (recipe, False), (recipe | {"seen_unknown": True}, True)):
        write(init, known)
        assert seen_unknown(init) is unknown
    assert seen.what_training_knew("test", recipe) == "which it never saw"
    assert seen.what_training_knew("test", recipe | {"seen_unknown": True}).startswith("which should be new to it (not checked")


def test_held_out_scans_that_a_baseline_was_trained_on_are_refused(dataset, tmp_path):
    data = bids.read_dataset(dataset, SCHEMA, SPACING_MM, validation_fraction=0.5)
    made_by_lsgan = write(tmp_path / "lsgan.pt", {"model": "lsgan", "seen_voxels": seen_voxels(data["training"])})
    made_by_vaegan = write(tmp_path / "vaegan.pt", {"model": "vaegan", "seen_voxels": seen_voxels(data["validation"][:3])})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        seen.check_baselines(data, tmp_path, {}, {"Sampler": "ddim", "WeightsSHA256": "0"}, made_by_lsgan)
    with pytest.raises(ValueError, match="3 of 4 .* 'validation', such as .*, are among those that the weights of vaegan were"):
        seen.check_baselines(data, tmp_path, made_by_lsgan, made_by_vaegan)
    write(tmp_path / "vaegan.pt", {"model": "vaegan", "seen_voxels": []})  # trained again since
    with pytest.warns(UserWarning, match="the weights of vaegan do not say which scans they were trained on"):
        seen.check_baselines(data, tmp_path, made_by_vaegan)
