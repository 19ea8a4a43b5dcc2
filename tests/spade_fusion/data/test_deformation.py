"""Deformed label maps are new anatomies with the same tissues and topology. Sizes are in millimetres."""

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from spade_fusion_bundle.scripts.data.deformation import DeformLabelsd, deform, random_displacement_mm

SHAPE, SPACING_MM = (28, 40, 24), (2.0, 2.0, 3.0)


@pytest.fixture
def head():
    """Three shells with values far apart, off centre, each axis of another length."""
    axes = [np.linspace(-1, 1, n) for n in SHAPE]
    radius = np.sqrt(sum((x - shift) ** 2 for x, shift in zip(np.meshgrid(*axes, indexing="ij"), (0.1, -0.05, 0.2))))
    return torch.tensor(np.select([radius < 0.3, radius < 0.6, radius < 0.8], [2035, 41, 3], 0), dtype=torch.int32)


def jacobian_determinant(displacement_mm, spacing_mm):
    """Jacobian of x + displacement, from differences of neighbouring voxels."""
    sizes = [n - 1 for n in displacement_mm.shape[1:]]
    slopes = [torch.diff(displacement_mm.double(), dim=1 + axis) / mm for axis, mm in enumerate(spacing_mm)]
    slopes = [slope[:, : sizes[0], : sizes[1], : sizes[2]] for slope in slopes]
    return torch.linalg.det(torch.stack(slopes, 1).permute(2, 3, 4, 0, 1) + torch.eye(3))


def rms_mm(displacement_mm):
    return displacement_mm.square().sum(dim=0).mean().sqrt().item()


def test_only_values_of_the_map_appear_and_all_stay(head):
    deformed = deform(head, SPACING_MM, 5.0, seed=1)
    assert deformed.dtype == head.dtype and deformed.shape == head.shape
    assert set(deformed.unique().tolist()) == {0, 3, 41, 2035}
    changed = (deformed != head).float().mean()
    assert 0.05 < changed < 0.5


def test_the_seed_alone_says_which_anatomy(head):
    first, again, other = (deform(head, SPACING_MM, 5.0, seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_zero_millimetres_change_nothing(head):
    assert torch.equal(deform(head, SPACING_MM, 0.0, seed=1), head)


def test_hardly_any_millimetres_change_nothing(head):
    """The resampling itself is exact."""
    assert torch.equal(deform(head, SPACING_MM, 1e-4, seed=1), head)


@pytest.mark.parametrize("deformation_mm, scale_mm", [(5, 40), (20, 40), (10, 20)])
@pytest.mark.parametrize("seed", range(3))
def test_space_never_folds(deformation_mm, scale_mm, seed):
    shape, spacing_mm = (48, 60, 40), (2.0, 2.0, 3.0)
    displacement = random_displacement_mm(shape, spacing_mm, deformation_mm, seed, scale_mm)
    assert jacobian_determinant(displacement, spacing_mm).min() > 0


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (2.0, 2.0, 2.0), (1.0, 2.0, 4.0)])
def test_the_amplitude_is_in_millimetres(spacing_mm):
    shape = [round(96 / mm) for mm in spacing_mm]
    for seed in range(3):
        assert rms_mm(random_displacement_mm(shape, spacing_mm, 5.0, seed)) == pytest.approx(5.0, rel=0.1)


def test_a_finer_or_anisotropic_grid_samples_the_same_field():
    coarse = random_displacement_mm((24, 32, 20), (4.0, 4.0, 4.0), 5.0, seed=3)
    fine = random_displacement_mm((48, 64, 20), (2.0, 2.0, 4.0), 5.0, seed=3)
    means_of_four = fine.unflatten(1, (24, 2)).unflatten(3, (32, 2)).mean(dim=(2, 4))
    assert rms_mm(means_of_four - coarse) < 0.3


def test_a_map_takes_its_values_from_where_the_displacement_says(head):
    """The reference indexes voxel by voxel; voxels have 2, 2 and 3 mm."""
    displacement = random_displacement_mm(SHAPE, SPACING_MM, 5.0, seed=4).numpy()
    sources = np.indices(SHAPE) + displacement / np.reshape(SPACING_MM, (3, 1, 1, 1))
    nearest = np.rint(sources)
    certain = (np.abs(sources - nearest) < 0.49).all(axis=0)
    index = [np.clip(axis, 0, n - 1).astype(int) for axis, n in zip(nearest, SHAPE)]
    expected = head.numpy()[tuple(index)]
    np.testing.assert_array_equal(deform(head, SPACING_MM, 5.0, seed=4).numpy()[certain], expected[certain])


@pytest.mark.parametrize("deformation_mm, scale_mm", [(-1, 40), (21, 40), (5, 0)])
def test_an_amplitude_that_could_fold_is_refused(deformation_mm, scale_mm):
    with pytest.raises(ValueError, match="amplitude must be from 0 to half of the scale"):
        DeformLabelsd("image", deformation_mm, scale_mm)


def test_items_are_deformed_by_their_own_seed_in_their_own_spacing(head):
    affine = np.array([[0, 2.0, 0, -9], [-2.0, 0, 0, 5], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    item = {"image": MetaTensor(head[None].float(), affine=affine)}
    transform = DeformLabelsd("image", deformation_mm=5.0)
    deformed = transform({**item, "deformation_seed": 6})["image"]
    assert torch.equal(deformed.as_tensor()[0], deform(head, SPACING_MM, 5.0, seed=6).float())
    np.testing.assert_allclose(deformed.affine, affine)
    assert torch.equal(transform(item)["image"].as_tensor(), item["image"].as_tensor())
