"""Images are resampled to the model's grid and back, and intensities of scans are scaled to [0, 1]."""

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from tiny_images import SPACING_MM, VOLUME, rotated, save, shifted

from brain_ldm_bundle.scripts.data.preprocessing import ToGridd, preprocessing
from brain_ldm_bundle.scripts.shared import mni_box


def on_grid(path):
    transform = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), ToGridd("image", SPACING_MM)])
    # MONAI Label stores the path of the image under this key
    return transform({"image": path, "image_path": str(path)}), transform


@pytest.mark.parametrize("codes", ["LAS", "RAS", "LPI", "PIR", "SLA", "ASR"])
def test_an_image_on_the_grid_comes_out_bit_equal_from_any_storage(tmp_path, codes):
    image = nib.Nifti1Image(VOLUME, mni_box.affine(SPACING_MM))
    stored = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))
    nib.save(stored, tmp_path / "image.nii.gz")
    item, transform = on_grid(tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(item["image"][0].numpy(), VOLUME)
    np.testing.assert_allclose(item["image"].affine.numpy(), mni_box.affine(SPACING_MM), atol=1e-4)
    back = transform.inverse(item)["image"]
    np.testing.assert_array_equal(back[0].numpy(), np.asarray(stored.dataobj))


def test_a_left_sided_mark_stays_on_the_left(tmp_path):
    """x below 0 is the left: beyond the middle of axis 0, which runs from right to left."""
    volume = np.zeros((21, 28, 20), dtype=np.float32)  # RAS
    volume[2, 20, 5] = 1
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1])
    affine[:3, 3] = np.add(mni_box.LOWER_CORNER_MM, SPACING_MM / 2)
    item, _ = on_grid(save(tmp_path / "image.nii.gz", volume, affine))
    assert np.argwhere(item["image"][0].numpy()).tolist() == [[17, 20, 5]]
    assert (mni_box.affine(SPACING_MM) @ [17, 20, 5, 1])[0] < 0


def test_whole_voxel_offsets_crop_and_pad_exactly(tmp_path):
    """Two voxels more on the right, three fewer behind, one more above than the grid."""
    affine = shifted(x=2 * SPACING_MM, y=3 * SPACING_MM)
    volume = np.random.default_rng(1).random((22, 25, 21), dtype=np.float32)
    item, transform = on_grid(save(tmp_path / "image.nii.gz", volume, affine))
    expected = np.zeros(mni_box.size(SPACING_MM), dtype=np.float32)
    expected[:, 3:, :] = volume[2:, :, :20]
    np.testing.assert_array_equal(item["image"][0].numpy(), expected)
    np.testing.assert_allclose(item["image"].affine.numpy(), mni_box.affine(SPACING_MM), atol=1e-4)
    back = transform.inverse(item)["image"]
    assert back.shape == (1, 22, 25, 21)
    np.testing.assert_array_equal(back[0, 2:, :, :20].numpy(), volume[2:, :, :20])
    np.testing.assert_allclose(back.affine.numpy(), affine, atol=1e-4)


def test_half_voxel_offsets_are_interpolated(tmp_path):
    item, _ = on_grid(save(tmp_path / "image.nii.gz", affine=shifted(y=SPACING_MM / 2)))
    expected = (VOLUME[:, :-1] + VOLUME[:, 1:]) / 2
    np.testing.assert_allclose(item["image"][0, :, 1:].numpy(), expected, atol=1e-5)


def test_an_oblique_image_of_another_spacing_lands_where_its_affine_says(tmp_path):
    """A smooth function of the position in mm, sampled on a foreign grid, is the same function on ours."""

    def field(affine, shape):
        x, y, z = np.moveaxis(nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0)
        return (1 + 0.004 * x + 0.002 * y - 0.003 * z).astype(np.float32)

    affine = rotated(5) @ np.diag([0.75, 0.75, 0.75, 1])
    affine[:3, 3] = nib.affines.apply_affine(rotated(5), [-1, -1, -1])
    shape = (36, 48, 34)
    item, _ = on_grid(save(tmp_path / "image.nii.gz", field(affine, shape), affine))
    result = item["image"][0].numpy()
    inside = (slice(3, -3),) * 3
    np.testing.assert_allclose(result[inside], field(mni_box.affine(SPACING_MM), result.shape)[inside], atol=1e-4)


@pytest.mark.parametrize("offset_mm", [-400, 400])
def test_an_image_beside_the_grid_becomes_zeros(tmp_path, offset_mm):
    item, transform = on_grid(save(tmp_path / "image.nii.gz", affine=shifted(x=offset_mm)))
    assert transform.inverse(item)["image"].shape == (1, *VOLUME.shape)
    assert item["image"].shape == (1, *mni_box.size(SPACING_MM)) and not torch.any(item["image"])


def test_intensities_of_a_scan_are_scaled_and_those_of_a_generated_volume_kept(tmp_path):
    item = {"image": save(tmp_path / "image.nii.gz", 40 + 50 * VOLUME), "covariates": [0.5, 1.0]}
    scan, generated = (preprocessing(SPACING_MM, scale_intensities=scale)(item)["image"] for scale in (True, False))
    assert (scan.min(), scan.max()) == (0, 1) and type(scan) is torch.Tensor
    np.testing.assert_allclose(generated[0].numpy(), 40 + 50 * VOLUME, rtol=1e-6)


def test_mirrored_heads_have_their_left_on_the_right(tmp_path):
    item = {"image": save(tmp_path / "image.nii.gz")}
    plain, mirrored = (preprocessing(SPACING_MM, mirror_probability=p)(item)["image"] for p in (0.0, 1.0))
    assert torch.equal(mirrored, plain.flip(1)) and not torch.equal(mirrored, plain)
