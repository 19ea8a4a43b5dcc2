"""The pictures of three planes follow the affine: sides, millimetres and voxel sizes."""

import nibabel as nib
import numpy as np
import pytest
from cohorts.three_planes import three_planes
from tiny_report import (
    AFFINE,
    CENTRE_MM,
    SHAPE,
    phantom,
    stored_as,
)


@pytest.fixture(params=["RAS", "LAS", "PIR"])
def picture(request, tmp_path):
    path = tmp_path / "sub-1_T1w.nii.gz"
    nib.save(stored_as(phantom(), request.param), path)
    return three_planes(path, CENTRE_MM)


def middle_of(picture, value):
    rows, columns = np.nonzero(np.isclose(picture, value, atol=0.02))
    return rows.mean(), columns.mean()


def test_the_subjects_left_is_at_the_right_and_front_and_head_are_up(picture):
    widths = [SHAPE[0] + 2, SHAPE[0] + 2, SHAPE[1] + 2]  # each plane within a frame of one column
    axial, coronal, sagittal = np.split(picture, np.cumsum(widths)[:-1], axis=1)
    assert picture.shape == (28, sum(widths))

    assert middle_of(axial, 1.0)[1] > 15  # left block at the right edge
    assert middle_of(axial, 0.8)[0] < 5  # front on top
    assert middle_of(coronal, 1.0)[1] > 15
    assert middle_of(coronal, 0.6)[0] < 6  # the coronal plane of 24 rows is centred in 28
    assert middle_of(sagittal, 0.8)[1] < 6  # front at the left
    assert middle_of(sagittal, 0.6)[0] < 6
    assert not np.isclose(sagittal, 1.0).any()


def test_the_plane_lies_at_the_given_millimetres(tmp_path):
    nib.save(phantom(), tmp_path / "a.nii.gz")
    through_left_block = three_planes(tmp_path / "a.nii.gz", (-14.0, 1.0, 1.0))
    assert np.isclose(through_left_block[:, 44:], 1.0).any()


def test_long_voxels_are_drawn_long(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((10, 12, 5), np.float32), np.diag([2.0, 2.0, 6.0, 1.0])), tmp_path / "a.nii.gz")
    assert three_planes(tmp_path / "a.nii.gz").shape == (15, 12 + 12 + 14)


def test_a_series_is_no_volume(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((4, 5, 6, 2), np.float32), AFFINE), tmp_path / "a.nii.gz")
    with pytest.raises(ValueError, match=r"has 4 dimensions \(4, 5, 6, 2\)"):
        three_planes(tmp_path / "a.nii.gz")
