import nibabel as nib
import numpy as np
import pytest

from brain_ldm_bundle.scripts.shared import mni_box


def test_the_grid_is_the_published_models():
    assert mni_box.size(1) == (160, 224, 160)
    published = [[-1, 0, 0, 80.481], [0, 1, 0, -125.477], [0, 0, 1, -60.554], [0, 0, 0, 1]]
    np.testing.assert_allclose(mni_box.affine(1), published)


@pytest.mark.parametrize("spacing_mm", [0.5, 1, 2, 4, 8])
def test_every_spacing_fills_the_same_box(spacing_mm):
    corners = nib.affines.apply_affine(mni_box.affine(spacing_mm), [[-0.5] * 3, np.subtract(mni_box.size(spacing_mm), 0.5)])
    np.testing.assert_allclose(corners, [[80.981, -125.977, -61.054], [-79.019, 98.023, 98.946]])


@pytest.mark.parametrize("spacing_mm", [0, -1, 3, 5, 1.1, 1000, float("nan")])
def test_a_spacing_that_does_not_divide_the_box_is_refused(spacing_mm):
    with pytest.raises(ValueError, match="does not divide"):
        mni_box.size(spacing_mm)


def test_the_order_from_left_to_right_has_the_same_voxels():
    las, ras = mni_box.affine(4), mni_box.affine(4, "RAS")
    last = mni_box.size(4)[0] - 1
    for index in ([0, 0, 0], [7, 30, 11]):
        mirrored = [last - index[0], *index[1:]]
        np.testing.assert_allclose(nib.affines.apply_affine(ras, index), nib.affines.apply_affine(las, mirrored))
