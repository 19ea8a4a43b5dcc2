"""Both bundles identify a scan by its voxels: a copy with another name is refused, another scan with its name is not."""

import warnings

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from tiny_images import SPACING_MM, VOLUME, save

from brain_ldm_bundle.scripts.data import bids
from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.shared import scan_identity as ldm_identities
from spade_fusion_bundle.scripts.data import scans_and_maps
from spade_fusion_bundle.scripts.shared import scan_identity as spade_identities
from spade_fusion_bundle.scripts.shared.label_table import LabelTable

SCHEMA = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")
TABLE = LabelTable.from_file(ROOT / "spade_fusion_bundle" / "configs" / "labels.json", "freesurfer")


def scan(path, seed):
    """A file of which only the voxels depend on `seed`: uncompressed, all have one size."""
    return save(path, np.random.default_rng(seed).random(VOLUME.shape, dtype=np.float32))


def ldm_items(folder):
    rows = "\n".join(f"{path.name}\t60\tF\t30\t1500" for path in sorted(folder.glob("sub-*")))
    (folder / "participants.tsv").write_text(f"participant_id\tage\tsex\tventricles_ml\tbrain_normalised_ml\n{rows}\n")
    return bids.read_dataset(folder, SCHEMA, SPACING_MM, validation_fraction=0)["training"]


def spade_items(folder):
    for path in folder.glob("sub-*/anat/*_T1w.nii*"):
        image = nib.load(path)
        labels = nib.Nifti1Image(np.full(image.shape, 2, np.uint8), image.affine)
        nib.save(labels, path.with_name(f"{path.name.split('_')[0]}_dseg.nii.gz"))
    return scans_and_maps.read_dataset(folder, TABLE, validation_fraction=0, fusion_fraction=0, partial_maps=True)["training"]


BUNDLES = pytest.mark.parametrize(
    ("read", "identities"), [(ldm_items, ldm_identities), (spade_items, spade_identities)], ids=["ldm", "spade"]
)


@BUNDLES
def test_a_copy_under_another_name_was_trained_on_and_another_scan_of_that_name_was_not(tmp_path, read, identities):
    first = scan(tmp_path / "then" / "sub-1" / "anat" / "sub-1_T1w.nii", seed=1)
    scan(tmp_path / "then" / "sub-2" / "anat" / "sub-2_T1w.nii", seed=2)
    recipe = {"seen_voxels": identities.seen_voxels(read(tmp_path / "then"))}

    other = scan(tmp_path / "others" / "sub-1" / "anat" / "sub-1_T1w.nii", seed=3)
    assert other.stat().st_size == first.stat().st_size
    others = read(tmp_path / "others")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        identities.refuse_seen(others, recipe, "test")

    copy = tmp_path / "copies" / "sub-9" / "anat" / "sub-9_T1w.nii.gz"
    copy.parent.mkdir(parents=True)
    nib.save(nib.load(first), copy)
    with pytest.raises(ValueError, match=r"1 of 1 scans in the split 'test', such as .*sub-9_T1w.nii.gz, are among those"):
        identities.refuse_seen(read(tmp_path / "copies"), recipe, "test")


@pytest.mark.parametrize("recipe", [{}, {"seen": ["0123456789abcdef"]}], ids=["none", "by name and size, as before"])
def test_weights_that_do_not_say_what_they_were_trained_on_are_warned_of(tmp_path, recipe):
    with pytest.warns(UserWarning, match="the weights do not say which scans they were trained on"):
        spade_identities.refuse_seen([{"image": "a.nii", "voxels_sha256": "0123456789abcdef"}], recipe, "test")


def test_weights_that_began_with_unknown_ones_still_know_their_own_scans():
    items = [{"image": f"{name}.nii", "voxels_sha256": name} for name in "ab"]
    for unknown in ({"seen_unknown": True}, {"unknown_start": "0" * 64}):  # the second as earlier versions wrote it
        recipe = {"seen_voxels": ["b"]} | unknown
        assert not ldm_identities.knows_all(recipe)
        with pytest.warns(UserWarning, match="the weights do not say all scans that they were trained on"):
            ldm_identities.refuse_seen(items[:1], recipe, "test")
        with pytest.warns(UserWarning), pytest.raises(ValueError, match="1 of 2 scans .*b.nii, are among"):
            ldm_identities.refuse_seen(items, recipe, "test")
    assert ldm_identities.knows_all({"seen_voxels": ["b"], "unknown_start": None, "seen_unknown": False})


@BUNDLES
def test_two_copies_in_one_split_get_a_warning(tmp_path, read, identities):
    for number, seed in ((1, 5), (2, 6), (3, 5)):
        scan(tmp_path / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii", seed)
    with pytest.warns(UserWarning, match="1 scans occur twice, such as .*sub-3_T1w.nii is a copy of .*sub-1_T1w.nii. They"):
        assert len(read(tmp_path)) == 3


def test_other_scans_than_those_of_the_training_get_a_warning_if_these_are_known():
    """Their noise would be stored with a model that never saw them."""
    items = [{"image": f"{name}.nii", "voxels_sha256": name} for name in "abc"]
    with pytest.warns(UserWarning, match="model.pt was not trained on 2 of 3 scans in the split 'training', such as b.nii"):
        ldm_identities.warn_unseen(items, {"seen_voxels": ["a", "z"]}, "model.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ldm_identities.warn_unseen(items, {"seen_voxels": ["a", "b", "c"]}, "model.pt")
        ldm_identities.warn_unseen(items, {}, "model.pt")
