"""Scans and label maps that cannot be used are refused before training, all at once."""

import shutil
import warnings

import nibabel as nib
import numpy as np
import pytest
import tiny_spade
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from tiny_pairs import (
    AFFINE,
    LABELS,
    MAP,
    MAP_5,
    SCAN,
    SCAN_5,
    TABLE,
    TABLES,
    add,
    pairs,
    read,
    refusal,
    save,
    with_voxel,
    write_table,
)

from spade_fusion_bundle.scripts.data.image_checks import map_problems
from spade_fusion_bundle.scripts.data.scans_and_maps import read_dataset
from spade_fusion_bundle.scripts.shared.label_table import LabelTable
from spade_fusion_bundle.scripts.shared.label_transforms import ToClassesd
from spade_fusion_bundle.scripts.shared.map_reader import MapReader

MOVED = AFFINE + [[0, 0, 0, 0.01], [0] * 4, [0] * 4, [0] * 4]


def test_a_scan_without_its_brain_is_refused(tmp_path):
    """As if a mask was applied the wrong way round: the skull remains."""
    tiny_spade.write_dataset(tmp_path, ("train", "train", "fusion", "validation"))
    path = tmp_path / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    scan = nib.load(path)
    labels = np.asarray(nib.load(tmp_path / "derivatives" / "blobs" / "sub-02" / "anat" / "sub-02_dseg.nii.gz").dataobj)
    nib.save(nib.Nifti1Image(np.where((labels > 1) & (labels < 16), 0, scan.get_fdata()), scan.affine, scan.header), path)
    with pytest.raises(ValueError, match=f"{path}: is 0 wherever its label map .* has labels of the brain. Give the scan"):
        read_dataset(tmp_path, LabelTable.from_file(TABLES, "demo"))


@pytest.mark.parametrize("cached", [True, False])
def test_bright_ventricles_get_a_warning_with_both_means_in_each_run(tmp_path, cached):
    """A T2w that is named T1w would be learnt as a T1w."""
    tiny_spade.write_dataset(tmp_path, ("train", "train", "fusion", "validation"))
    path = tmp_path / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    scan = nib.load(path)
    values, table = scan.get_fdata(), LabelTable.from_file(TABLES, "demo")
    nib.save(nib.Nifti1Image(np.where(values < 60, 250, values), scan.affine, scan.header), path)
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"1 scans, such as {path} .ventricles 250, white matter 150., are brighter"):
            read_dataset(tmp_path, table, cache_file=tmp_path / "checked.json" if cached else None)


def test_a_scan_of_noise_gets_a_warning(tmp_path):
    """Values of a scan that a conversion kept modulo 256, for example."""
    tiny_spade.write_dataset(tmp_path, ("train", "train", "fusion", "validation"))
    path = tmp_path / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    scan = nib.load(path)
    noise = np.random.default_rng(0).integers(0, 256, scan.shape)
    nib.save(nib.Nifti1Image(noise, scan.affine, scan.header), path)
    with pytest.warns(UserWarning, match=f"1 scans, such as {path}, are noise"):
        read_dataset(tmp_path, LabelTable.from_file(TABLES, "demo"))


@pytest.mark.parametrize(
    ("file", "image", "message"),
    [
        (SCAN_5, {"volume": np.stack([SCAN, SCAN], -1)}, "has 4 dimensions (5, 6, 7, 2); three are needed"),
        (SCAN_5, {"volume": SCAN[0]}, "has 2 dimensions (6, 7); three are needed"),
        (SCAN_5, {"volume": with_voxel(SCAN, np.nan)}, "has 1 voxels that are NaN or infinite"),
        (SCAN_5, {"volume": with_voxel(SCAN, np.inf)}, "has 1 voxels that are NaN or infinite"),
        (SCAN_5, {"volume": np.full_like(SCAN, 7)}, "is 7 everywhere"),
        (SCAN_5, {"volume": SCAN.astype(np.complex64)}, "has voxels of type complex64"),
        (SCAN_5, {"code": 0}, "has neither a qform nor an sform"),
        (MAP_5, {"volume": np.stack([MAP, MAP], -1)}, "has 4 dimensions (5, 6, 7, 2); three are needed"),
        (MAP_5, {"volume": MAP[0]}, "has 2 dimensions (6, 7)"),
        (MAP_5, {"volume": np.zeros_like(MAP)}, "the label map is empty, all 210 voxels are background"),
        (MAP_5, {"volume": with_voxel(MAP, 999)}, "label values 999 (1 voxels) are not in the label table 'freesurfer'"),
        (MAP_5, {"volume": with_voxel(MAP.astype(np.float32), 2.5)}, "1 of 210 voxels are not integers, such as 2.5"),
        (MAP_5, {"volume": with_voxel(MAP.astype(np.float32), np.nan)}, "1 voxels are NaN or infinite"),
        (MAP_5, {"volume": 255 * (MAP > 0).astype(np.uint8)}, "its values 255 ("),
        (MAP_5, {"volume": np.where(MAP > 4, 0, MAP // 2 * 2)}, "its values 2 ("),  # a tumour: 2, 4
        (MAP_5, {"volume": MAP, "code": 0}, "has neither a qform nor an sform"),
        (MAP_5, {"volume": MAP[:, :, :6]}, "has the shape (5, 6, 6), not (5, 6, 7) as the scan "),
        (MAP_5, {"volume": MAP.transpose(2, 1, 0)}, "has the shape (7, 6, 5), not (5, 6, 7) as the scan "),
        (MAP_5, {"volume": MAP, "affine": MOVED}, "has the affine [[-1.0, 0.0, 0.0, 5.01], "),
        (MAP_5, {"volume": MAP, "affine": np.diag([1.0, 1, 1, 1])}, "has the affine [[1.0, 0.0, 0.0, 0.0], "),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(few, file, image, message):
    path = save(few / file, **image)
    refused = refusal(few)
    assert f"{path}: {message}" in refused and "(1 problem)" in refused and refused.count(str(path)) == 1


def test_another_grid_is_answered_with_both_and_the_remedy(few):
    save(few / MAP_5, MAP, MOVED)
    message = refusal(few)
    assert "not [[-1.0, 0.0, 0.0, 5.0], [0.0, 0.0, 1.2, 6.0], [0.0, -0.9, 0.0, 7.0]] as the scan" in message
    assert f"{few / SCAN_5}. Resample the map to the scan with nearest neighbour" in message


@pytest.mark.parametrize("file", [SCAN_5, MAP_5])
def test_an_affine_without_volume_is_refused(few, file):
    image = nib.load(few / file)
    image = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    image.header["srow_z"] = 0
    image.to_filename(few / file)
    assert f"{few / file}: has an affine that cannot be inverted" in refusal(few)


@pytest.mark.parametrize("file", [SCAN_5, MAP_5])
@pytest.mark.parametrize("lost_bytes", [4, 100])
def test_a_truncated_file_is_refused(few, file, lost_bytes):
    """Four bytes are missing after the last voxel: nibabel alone reads such a file without an error."""
    path = save(few / file, np.tile(SCAN if file == SCAN_5 else MAP, (1, 1, 300)))
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    assert f"{path}: cannot be read to its end" in refusal(few)


@pytest.mark.parametrize("file", [SCAN_5, MAP_5])
def test_a_file_that_is_no_nifti_is_refused(few, file):
    (few / file).write_bytes(b"no image")
    assert f"{few / file}: is not a NIfTI image that can be read" in refusal(few)


def test_a_trailing_axis_of_a_map_is_accepted_and_read_as_the_same_classes(few):
    save(few / MAP_5, MAP[..., None])
    save(few / f"{LABELS}/sub-06/anat/sub-06_dseg.nii.gz", MAP.astype(np.float32))
    found = pairs(read(few))
    load = Compose([LoadImaged("label", reader=MapReader(TABLE)), EnsureChannelFirstd("label"), ToClassesd("label", TABLE)])
    for number in ("05", "06"):
        label = load({"label": found[str(few / f"sub-{number}/anat/sub-{number}_T1w.nii.gz")]})["label"]
        np.testing.assert_array_equal(label.numpy(), TABLE.classes(MAP, "map")[None])


def test_an_affine_within_rounding_is_accepted(few):
    save(few / MAP_5, MAP, AFFINE + 0.05 * (MOVED - AFFINE))
    read(few)


def test_all_faults_are_reported_at_once_and_counted(few):
    save(few / SCAN_5, with_voxel(SCAN, np.nan))
    save(few / MAP_5, with_voxel(MAP, 999))
    save(few / "sub-06" / "anat" / "sub-07_T1w.nii.gz")
    message = refusal(few)
    assert "cannot be used for training yet (3 problems):" in message
    assert message.count("NaN") == message.count("999") == message.count("begin with sub-06_") == 1


def test_at_most_twenty_faults_are_listed(few):
    for run in range(3, 33):
        add(few, f"sub-05/anat/sub-05_run-{run}")
        save(few / LABELS / "sub-05" / "anat" / f"sub-05_run-{run}_dseg.nii.gz", with_voxel(MAP, 999))
    message = refusal(few)
    assert "(30 problems)" in message and len(message.split("\n")) == 22 and "... and 10 more of these" in message


def test_a_copy_of_a_training_scan_in_another_split_is_refused(cohort):
    original, copied = (cohort / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz" for number in ("05", "07"))
    shutil.copy(original, copied)
    write_table(cohort, {1: "validation", 4: "fusion", 7: "test"})
    message = refusal(cohort)
    assert f"(1 scans in two splits):\n{copied} (test) is a copy of {original} (training). Remove one of them" in message


def test_a_scan_without_contrast_inside_its_map_is_refused(cohort):
    label_map = nib.load(cohort / MAP_5)
    labels = np.asanyarray(label_map.dataobj)
    scan = np.where(labels > 0, 0, np.random.default_rng(0).integers(0, 99, labels.shape)).astype(np.float32)
    path = next((cohort / "sub-05").rglob("*_T1w.nii*"))
    nib.save(nib.Nifti1Image(scan, label_map.affine), path)
    assert f"{path}: is 0 wherever its label map " in refusal(cohort)


@pytest.mark.parametrize(("spacing_mm", "coarse"), [(1, False), (0.75, True), (None, False)])
def test_scans_with_much_longer_voxels_than_the_models_are_named(tmp_path, spacing_mm, coarse):
    """Scans of 8 mm were learnt at 1 mm without a word."""
    add(tmp_path, "sub-05/anat/sub-05")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            read(tmp_path, spacing_mm=spacing_mm, cache_file=tmp_path / "checked.json")
    said = [str(each.message) for each in caught if "are much longer" in str(each.message)]
    assert len(said) == 2 * coarse
    assert not coarse or f"voxels of 1 scan, such as {tmp_path / SCAN_5} (1 x 0.9 x 1.2 mm), are much longer" in said[0]


def test_label_maps_with_much_longer_voxels_than_the_models_are_named(tmp_path):
    add(tmp_path, "sub-05/anat/sub-05")
    path = str(tmp_path / MAP_5)
    with pytest.warns(UserWarning, match=f"1 label map, such as {path} .1 x 0.9 x 1.2 mm., .* than the model's, 0.5 mm"):
        assert map_problems([path], TABLE, spacing_mm=0.5) == []
