"""Heads simulated from FreeSurfer or SynthSeg maps lie in MNI space, keep their labels and have T1w contrast."""

import make_demo_data
import nibabel as nib
import numpy as np
import pytest
import torch
from measurement.label_values import read_label_values
from registration.deep_grey import CENTRES_MM
from simulation import labelled_subject as label_subject
from simulation.labelled_subject import LABELS, SIGNALS

SETTINGS = {"version": "test", "seed": 1, "spacing_mm": 4, "protocol": "many", "labels": ["head.nii.gz"]}


def phantom(orientation="RAS", moved=None):
    """A 2 mm map of three side lengths: white matter with a cortex on top, ventricles, and deep grey at its MNI place.

    `moved` (4, 4) puts the head elsewhere in the scanner.
    """
    affine = nib.affines.from_matvec(2 * np.eye(3), (-60, -90, -50))
    shape = (61, 84, 66)
    x, y, z = (nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1))[..., a] for a in range(3))
    labels = np.zeros(shape, np.int16)
    head = (x / 55) ** 2 + ((y + 10) / 75) ** 2 + ((z - 12) / 55) ** 2 < 1
    labels[head] = np.where(x < 0, 2, 41)[head]
    shell = head & (z > 45)
    labels[shell] = np.where(x < 0, 3, 42)[shell]
    labels[((abs(x) - 8) ** 2 + (y + 20) ** 2 + (z - 28) ** 2 < 64) & head] = 4
    for pair, centre in CENTRES_MM.items():
        for value, sign in zip(pair, (-1, 1), strict=True):
            labels[(x - sign * centre[0]) ** 2 + (y - centre[1]) ** 2 + (z - centre[2]) ** 2 < 20] = value
    image = nib.Nifti1Image(labels, (np.eye(4) if moved is None else moved) @ affine)
    target = nib.orientations.axcodes2ornt(orientation)
    return image.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(image.affine), target))


def save(image, folder, name="head.nii.gz"):
    path = folder / name
    nib.save(image, path)
    return path


def test_every_label_value_of_the_table_has_the_signal_of_one_tissue():
    assert set(LABELS) == set().union(*read_label_values().values())
    assert set(LABELS.values()) == set(SIGNALS)


def test_cortical_parcels_count_as_brain_and_scalp_does_not():
    brain, intracranial = (set(label_subject.VOLUMES[name]) for name in ("brain_ml", "icv_ml"))
    assert {3, 42, 1035, 2001, 16} <= brain
    assert {4, 24, 30, 62} <= intracranial - brain
    assert not {0, 511, 515} & intracranial


def test_a_tilted_head_in_another_orientation_is_put_upright_in_mni_space_and_keeps_its_size(tmp_path):
    angle = np.deg2rad(12)
    tilt = [[1, 0, 0], [0, np.cos(angle), -np.sin(angle)], [0, np.sin(angle), np.cos(angle)]]
    image = phantom("LIA", nib.affines.from_matvec(tilt, (5, -20, 30)))
    t1w, labels = label_subject.make_subject(save(image, tmp_path), 4, seed=1, warp=False)
    assert labels.shape == t1w.shape == (40, 56, 40)
    affine = make_demo_data.mni_box.affine(4, "RAS")
    for value, expected in {10: (-11, -19, 7), 49: (11, -19, 7), 51: (26, 2, 1)}.items():
        centre = nib.affines.apply_affine(affine, np.argwhere(labels == value).mean(0))
        assert centre == pytest.approx(expected, abs=3), LABELS[value]
    assert set(np.unique(labels)) <= set(np.unique(image.get_fdata()))
    assert 4**3 * (labels > 0).sum() == pytest.approx(2**3 * (image.get_fdata() > 0).sum(), rel=0.05)


def test_white_matter_is_brighter_than_cortex_and_cortex_than_ventricles():
    labels = torch.from_numpy(np.repeat([4, 3, 2], 8).astype(np.int16))[:, None, None].expand(24, 20, 16)
    for seed in range(3):
        image = label_subject.paint(labels, torch.Generator().manual_seed(seed))
        ventricle, cortex, white = (float(image[start : start + 6].mean()) for start in (1, 9, 17))
        assert ventricle + 0.1 < cortex < white - 0.1
        assert image.min() >= 0 and image.max() <= 1


def test_coarser_labels_are_the_most_frequent_ones():
    labels = torch.zeros((4, 2, 6), dtype=torch.int16)
    labels[:2, :, :2] = 42
    labels[0, 0, 0] = 2  # one voxel of eight
    labels[2:, :, 4:] = 16
    coarse = label_subject._most_frequent(labels, 2)
    assert coarse.shape == (2, 1, 3)
    assert coarse[0, 0, 0] == 42 and coarse[1, 0, 2] == 16 and coarse.sum() == 58


def test_unknown_values_are_refused_by_number_and_file_before_anything_is_written(tmp_path):
    image = phantom()
    values = np.asarray(image.dataobj).copy()
    values[0, 0, 0] = 999
    path = save(nib.Nifti1Image(values, image.affine), tmp_path)
    with pytest.raises(ValueError, match=r"head\.nii\.gz.*\[999\]"):
        make_demo_data.make_cohort(tmp_path / "cohort", 1, SETTINGS, [path])
    assert not (tmp_path / "cohort").exists()


def test_a_map_without_deep_grey_cannot_be_placed(tmp_path):
    path = save(nib.Nifti1Image(np.full((20, 21, 22), 2, np.int16), np.eye(4)), tmp_path)
    with pytest.raises(ValueError, match=r"head\.nii\.gz: only 0 of 14 deep grey"):
        label_subject.make_subject(path, 4, seed=1, warp=False)


def test_a_map_whose_voxels_are_mirrored_is_refused(tmp_path):
    """The head was turned on its back."""
    image = phantom()
    mirrored = nib.Nifti1Image(np.asarray(image.dataobj)[::-1], image.affine)
    with pytest.raises(
        ValueError, match=r"head\.nii\.gz: the deep grey structures lie 1. mm from their places .* Left and right"
    ):
        label_subject.make_subject(save(mirrored, tmp_path), 4, seed=1, warp=False)


def test_a_map_used_twice_gives_two_anatomies_with_its_own_labels(tmp_path):
    path = save(phantom(), tmp_path)
    table = make_demo_data.make_cohort(tmp_path / "cohort", 2, SETTINGS | {"labels": [path.name]}, [path])
    assert table["ventricles_ml"].nunique() == 2
    assert "n/a" in (tmp_path / "cohort" / "participants.tsv").read_text()  # a label map has no age
    described = (tmp_path / "cohort" / "participants.json").read_text()
    assert "voxels labelled 4-5, 43-44" in described
    labels = nib.load(tmp_path / "cohort/derivatives/labels/sub-0002/anat/sub-0002_dseg.nii.gz")
    assert {10, 49, 2, 41} <= set(np.unique(labels.dataobj)) and labels.get_data_dtype() == np.int16


def test_a_map_that_lacks_the_cerebellum_is_named(tmp_path, capsys):
    """Heads with air in place of the cerebellum were made without a word."""
    path = save(phantom(), tmp_path)
    make_demo_data.make_cohort(tmp_path / "cohort", 1, SETTINGS, [path])
    assert f"{path}: no cerebellar cortex, cerebellar white matter, brain stem" in capsys.readouterr().err


def test_all_heads_of_one_map_are_in_one_split(tmp_path):
    """They share an anatomy: a model that has seen one of them has seen the others."""
    settings = SETTINGS | {"labels": [f"map{k:02}.nii.gz" for k in range(12)]}
    for number in range(1, 37):
        sidecar = {"DemoSettings": settings, "LabelMap": settings["labels"][(number - 1) % 12], "Participant": {}}
        make_demo_data.write_json(tmp_path / f"sub-{number:04}" / "anat" / f"sub-{number:04}_T1w.json", sidecar)
    table = make_demo_data.write_participants(tmp_path, label_subject.VOLUMES)
    splits = table["split"].to_numpy().reshape(3, 12)
    assert (splits == splits[0]).all() and set(splits[0]) == {"train", "validation", "test"}


def test_an_empty_folder_of_maps_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--labels takes a folder of label maps"):
        make_demo_data.main([str(tmp_path / "cohort"), "--labels", str(tmp_path)])
