"""Each scan is paired with its own label map, and wrong or missing maps are named."""

import shutil
import warnings

import nibabel as nib
import numpy as np
import pytest
from tiny_pairs import (
    LABELS,
    MAP,
    MAP_5,
    SCAN_5,
    add,
    pairs,
    read,
    refusal,
    save,
)

from spade_fusion_bundle.scripts.data.prepared_pairs import pair_key


def test_every_scan_is_paired_with_its_own_map(cohort):
    shares = read(cohort)
    assert list(shares) == ["training", "fusion", "validation", "test"]
    found = pairs(shares)
    assert len(found) == 14
    for image, label in found.items():
        own = image.replace("_T1w", "_dseg")
        assert label == (own if "sub-04" in image else own.replace(str(cohort), str(cohort / LABELS)))
    assert set(shares["training"][0]) == {"image", "label", "participant_id", "voxels_sha256", "map_sha256"}


def test_a_map_of_another_space_or_description_name_is_found(cohort):
    """Entities that only derivatives have, such as space and desc, do not separate the map from its scan."""
    old = cohort / LABELS / "sub-03" / "anat" / "sub-03_run-2_dseg.nii.gz"
    new = old.rename(old.with_name("sub-03_run-2_space-orig_desc-aseg_dseg.nii.gz"))
    assert str(new) in pairs(read(cohort)).values()


def test_a_map_of_another_acquisition_is_not_taken(cohort):
    add(cohort, "sub-05/anat/sub-05_acq-fast")
    save(cohort / "sub-13" / "anat" / "sub-13_acq-fast_T1w.nii.gz")
    save(cohort / LABELS / "sub-13" / "anat" / "sub-13_acq-slow_dseg.nii.gz", MAP)
    (cohort / "sub-05" / "anat" / "sub-05_T1w.nii.gz").rename(cohort / "sub-05" / "anat" / "sub-05_acq-slow_T1w.nii.gz")
    plain = cohort / LABELS / "sub-05" / "anat" / "sub-05_dseg.nii.gz"
    plain.rename(plain.with_name("sub-05_acq-slow_dseg.nii.gz"))
    with pytest.warns(UserWarning, match="1 of 16 T1w scans in .*, such as sub-13_acq-fast_T1w.nii.gz, have no label map"):
        found = pairs(read(cohort))
    for speed in ("fast", "slow"):
        image = cohort / "sub-05" / "anat" / f"sub-05_acq-{speed}_T1w.nii.gz"
        assert found[str(image)].endswith(f"sub-05_acq-{speed}_dseg.nii.gz")


def test_two_maps_of_one_scan_are_listed_and_refused(few):
    save(few / "derivatives" / "freesurfer" / "sub-05" / "anat" / "sub-05_dseg.nii.gz", MAP)
    message = refusal(few)
    assert "sub-05_T1w.nii.gz: 2 label maps belong to it: derivatives/freesurfer/sub-05/anat/sub-05_dseg.nii.gz, " in message
    assert f"{LABELS}/sub-05/anat/sub-05_dseg.nii.gz. Say which one in a --datalist" in message and "(1 problem)" in message


def test_what_the_bundle_has_synthesised_there_is_no_training_data(few):
    before = read(few)
    made = few / "derivatives" / "synthetic"
    shutil.copytree(few / LABELS, made)
    with pytest.raises(ValueError, match="2 label maps belong to it"):
        read(few)
    (made / "dataset_description.json").write_text('{"Name": "x", "GeneratedBy": [{"Name": "spade_fusion_bundle"}]}')
    assert read(few) == before


def test_scans_without_a_map_are_left_out_with_one_warning(cohort):
    for number in ("06", "07"):
        shutil.rmtree(cohort / LABELS / f"sub-{number}")
    with pytest.warns(UserWarning, match="2 of 14 T1w scans .* such as sub-06_T1w.nii.gz, have no label map") as caught:
        shares = read(cohort)
    assert len(caught) == 1 and len(pairs(shares)) == 12


def test_a_sound_data_set_gives_no_warning(cohort):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(cohort)


def test_volumes_that_the_bundle_made_are_no_data_set_of_scans(few):
    """It said that no scan has a label map, although each has one beside it."""
    (few / "dataset_description.json").write_text('{"Name": "x", "GeneratedBy": [{"Name": "spade_fusion_bundle"}]}')
    assert f"{few}: holds synthetic volumes, which spade_fusion_bundle made. Give a data set of scans" in refusal(few)


def test_a_synthetic_volume_among_scans_is_refused(few):
    scan = next(few.glob("sub-*/anat/*_T1w.nii*"))
    scan.with_name(scan.name.split(".")[0] + ".json").write_text('{"Synthetic": true}')
    assert f"{scan}: is synthetic, as " in refusal(few)


def test_a_data_set_without_any_map_is_refused(cohort):
    shutil.rmtree(cohort / "derivatives")
    shutil.rmtree(cohort / "sub-04")
    message = "none of 13 T1w scans has a label map, such as derivatives/ANY_NAME/sub-01/anat/sub-01_dseg.nii.gz"
    assert message in refusal(cohort)


def test_a_folder_without_scans_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        read(tmp_path / "nowhere")
    assert "no T1w scans" in refusal(tmp_path)


@pytest.mark.parametrize("ending", [".csv", ".xlsx"])
def test_splits_in_a_table_of_another_kind_are_refused(few, ending):
    """Participants that such a table puts into the split test were trained on."""
    (few / "participants.tsv").unlink(missing_ok=True)
    (few / f"participants{ending}").write_text("participant_id,split\nsub-01,test\n")
    assert f"{few / f'participants{ending}'}: would be ignored. Save it as participants.tsv" in refusal(few)


def test_a_file_named_for_another_participant_is_refused(few):
    save(few / "sub-05" / "anat" / "sub-06_T1w.nii.gz")
    assert "begin with sub-05_" in refusal(few)


def test_the_prepared_pair_of_other_names_is_another(few):
    (item,) = (item for item in sum(read(few).values(), []) if item["participant_id"] == "sub-05")
    before = pair_key(item, [])
    (few / LABELS / "dseg.tsv").write_text("index\tname\n17\tLeft-Hippocampus\n")
    assert pair_key(item, []) != before


def test_a_data_set_of_freesurfer_files_is_read(few):
    for path in (few / SCAN_5, few / MAP_5):
        image = nib.load(path)
        nib.save(nib.MGHImage(np.asarray(image.dataobj), image.affine), path.with_name(path.name.replace(".nii.gz", ".mgz")))
        path.unlink()
    image, label = ((few / path).with_suffix("").with_suffix(".mgz") for path in (SCAN_5, MAP_5))
    assert pairs(read(few))[str(image)] == str(label)
