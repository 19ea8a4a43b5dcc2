import numpy as np
import pytest
from brain_ldm.evaluation.test_grey_values import SHAPE, head
from scipy import ndimage
from skimage.filters import threshold_otsu

from brain_ldm_bundle.scripts.shared.head_mask import head_mask


def as_stored(volume):
    return np.round(volume * 255).astype(np.uint8)


def test_the_head_is_found_with_its_dark_inside_and_without_specks():
    volume, distance = head(background=0.08)
    volume[1, 2, 3] = 0.9
    assert np.array_equal(head_mask(as_stored(volume)), distance < 1)


def test_the_inside_of_a_skull_counts_though_the_neck_is_open_and_a_plane_has_a_gap():
    x, y, z = np.indices(SHAPE)
    distance = ((x - 10) / 8) ** 2 + ((y - 13) / 11) ** 2
    head = (distance < 1) & (z < 20)
    shell = head & ((distance > 0.75) | (z > 17))
    shell[10:, 13, 9] = False  # a gap in one plane
    brain = (distance < 0.4) & (z < 16)  # larger than the scalp, and apart from it
    assert brain.sum() > shell.sum()
    assert np.array_equal(head_mask(as_stored(0.8 * shell + 0.9 * brain)), head)


@pytest.mark.parametrize("kind", [np.float32, np.uint8])
def test_the_threshold_is_the_one_of_scikit_image(kind):
    rng = np.random.default_rng(0)
    air, tissue = rng.normal(20, 8, 9000), rng.normal(120, 30, 5000)
    volume = np.concatenate([air, tissue]).clip(0, 200).reshape(20, 35, 20).astype(kind)
    filled = volume > threshold_otsu(volume)
    filled = ndimage.binary_fill_holes(filled, ndimage.generate_binary_structure(2, 1)[..., None])
    filled |= ndimage.binary_closing(filled, np.ones((1, 1, 3)))
    parts, _ = ndimage.label(filled)
    assert np.array_equal(head_mask(volume), parts == 1 + np.bincount(parts.ravel())[1:].argmax())
