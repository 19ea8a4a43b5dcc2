"""Volumes in the report page equal the files, and sliders of its gallery reach all values."""

import base64
import gzip

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cohorts.cohort import read_cohort
from report_page.embedded_volumes import viewer_entry
from report_page.gallery import columns, slider
from report_page.label_names import LabelNames
from tiny_report import AFFINE, SHAPE, label_phantom, make_cohort, make_labelled, phantom

NAMES = LabelNames({0: "background", 17: "left hippocampus"})


def decoded(text):
    return nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(text)))


@pytest.fixture
def labelled(tmp_path):
    return read_cohort(make_labelled(tmp_path / "synthetic", ["sub-1", "sub-2"]))


@pytest.mark.parametrize("volume", ["sub-1", "sub-2"])  # the second is stored from left to right
def test_a_volume_is_embedded_in_8_bit_on_its_grid(labelled, volume):
    entry, data = viewer_entry(labelled, volume, NAMES)
    image = decoded(data["image"])
    assert image.get_data_dtype() == np.uint8 and image.shape == SHAPE and np.allclose(image.affine, AFFINE)
    assert np.abs(image.get_fdata() - phantom().get_fdata()).max() <= 0.8 / 255 / 2 + 1e-6
    assert entry["bounds_mm"] == [[-19, 19], [-27, 27], [-23, 23]] and entry["white"] == pytest.approx(1.0)
    assert "Synthetic" in image.header["descrip"].item().decode()


@pytest.mark.parametrize("volume", ["sub-1", "sub-2"])
def test_label_maps_keep_their_values_by_name(labelled, volume):
    entry, data = viewer_entry(labelled, volume, NAMES)
    labels = np.array(entry["labels"]["names"])[decoded(data["labels"]).get_fdata().astype(int)]
    wanted = label_phantom().get_fdata()
    assert (labels[wanted == 17] == "left hippocampus").all() and (labels[wanted == 53] == "label 53").all()
    assert (labels[wanted == 0] == "background").all() and (wanted == 17).any()


def test_a_label_map_without_background_stays_visible(tmp_path):
    folder = make_labelled(tmp_path / "synthetic", ["sub-1"])
    nib.save(nib.Nifti1Image(np.full(SHAPE, 17, np.uint8), AFFINE), folder / "sub-1" / "anat" / "sub-1_dseg.nii.gz")
    entry, data = viewer_entry(read_cohort(folder), "sub-1", NAMES)
    assert entry["labels"]["names"] == ["background", "left hippocampus"] and (decoded(data["labels"]).get_fdata() == 1).all()


def test_scans_are_not_marked_synthetic(labelled):
    _, data = viewer_entry(labelled, "sub-1", NAMES, synthetic=False)
    assert decoded(data["image"]).header["descrip"].item() == b""


def test_a_coarser_volume_keeps_its_place_and_its_labels(labelled):
    _, data = viewer_entry(labelled, "sub-1", NAMES, spacing_mm=4.0)
    image, labels = decoded(data["image"]), decoded(data["labels"])
    assert nib.affines.voxel_sizes(image.affine) == pytest.approx([4, 4, 4]) and image.shape[0] in (10, 11)
    assert set(np.unique(labels.get_fdata())) == {0, 1, 2, 3}
    brightest = np.unravel_index(image.get_fdata().argmax(), image.shape)
    assert nib.affines.apply_affine(image.affine, brightest)[0] < -10  # RAS mm: the subject's left


def test_a_volume_is_never_made_finer(labelled):
    assert decoded(viewer_entry(labelled, "sub-1", NAMES, spacing_mm=1.0)[1]["image"]).shape == SHAPE


def test_left_and_right_of_a_structure_share_a_colour():
    names = LabelNames({0: "background", 4: "Left-Lateral-Ventricle", 43: "Right-Lateral-Ventricle", 10: "left thalamus"})
    background, left, right, other = names.colours([0, 4, 43, 10]).tolist()
    assert left == right != other and background == [0, 0, 0]


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        ([44.3, 81.97], (44.2, 82.0, 0.2)),
        ([8.08, 127.4], (8.0, 128.0, 1.0)),
        ([0.702, 0.795], (0.702, 0.795, 0.0005)),
        ([0, 3], (0.0, 3.0, 1.0)),
        ([-20.0, 1500.5], (-20.0, 1510.0, 10.0)),
    ],
)
def test_a_slider_reaches_all_values_in_round_steps(values, wanted):
    low, high, step = slider(pd.Series(values))
    assert (low, high, step) == pytest.approx(wanted)
    assert low <= min(values) and high >= max(values)


def test_columns_of_one_value_are_no_filter_and_many_texts_are_none_either(tmp_path):
    names = [f"sub-{i:02}" for i in range(14)]
    volumes_ml = [10.0 + i for i in range(14)]
    folder, measured = make_cohort(tmp_path / "a", names, volumes_ml, volumes_ml, site=["A", "B"] * 7, code=names)
    kinds = {column.title: column.kind for column in columns(read_cohort(folder, [measured]))}
    assert kinds == {
        "lateral ventricles, mL": "number",
        "site": "levels",
        "code": "sorted",
        "measured lateral ventricles, mL": "number",
    }  # age and sex are all the same, measured - requested is 0 everywhere
