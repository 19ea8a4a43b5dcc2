"""Slices come from the right plane, return to their place, and are drawn mostly inside the head."""

import numpy as np
import pytest
import torch

from spade_fusion_bundle.scripts.data.planes import AXES, PLANES, RandSlicesd, axis_of, from_slices, to_slices

X, Y, Z = 4, 6, 5


@pytest.fixture
def position():
    """A volume (1, 3, 4, 6, 5) that holds at each voxel where it is: x to the right, y to the front, z to the top."""
    return torch.stack(torch.meshgrid(*(torch.arange(side) for side in (X, Y, Z)), indexing="ij"))[None]


@pytest.mark.parametrize(
    ("plane", "across", "rows", "columns", "shape"),
    [("axial", 2, 0, 1, (Z, 3, X, Y)), ("coronal", 1, 0, 2, (Y, 3, X, Z)), ("sagittal", 0, 1, 2, (X, 3, Y, Z))],
)
def test_slice_k_of_a_plane_is_the_k_th_along_its_axis(position, plane, across, rows, columns, shape):
    slices = to_slices(position, plane)
    assert slices.shape == shape
    for k, piece in enumerate(slices):
        assert (piece[across] == k).all()
        assert torch.equal(piece[rows][:, 0], torch.arange(shape[2])), "rows in their order"
        assert torch.equal(piece[columns][0], torch.arange(shape[3])), "columns in their order"


@pytest.mark.parametrize("plane", PLANES)
def test_slices_of_several_volumes_go_back_where_they_were(plane):
    volumes = torch.arange(2 * 3 * X * Y * Z).reshape(2, 3, X, Y, Z)
    slices = to_slices(volumes, plane)
    assert torch.equal(from_slices(slices, plane, batch=2), volumes)
    # the slices of the first volume come first
    assert torch.equal(slices[: len(slices) // 2], to_slices(volumes[:1], plane))


def test_a_volume_stacked_along_another_plane_shows(position):
    """The sides are equal, so a wrong axis would not show in the shape."""
    cube = torch.arange(4**3).reshape(1, 1, 4, 4, 4)
    for plane in PLANES:
        for other in set(PLANES) - {plane}:
            assert not torch.equal(from_slices(to_slices(cube, plane), other, batch=1), cube)


def test_an_unknown_plane_is_refused_with_the_known_ones():
    assert [axis_of(plane) for plane in ("sagittal", "coronal", "axial")] == [0, 1, 2]
    with pytest.raises(ValueError, match="no plane is called 'transversal'. Give --plane axial, --plane coronal or "):
        axis_of("transversal")
    with pytest.raises(ValueError, match="no plane is called None"):
        axis_of(None)
    with pytest.raises(ValueError, match="no plane is called 'horizontal'"):
        RandSlicesd(("image", "label"), "label", "horizontal", 2)


# The head fills [1, 3) x [2, 5) x [3, 9) of 4 x 8 x 12: each axis has other filled slices.
FILLED = {"sagittal": {1, 2}, "coronal": {2, 3, 4}, "axial": {3, 4, 5, 6, 7, 8}}


@pytest.fixture
def head():
    """Image and label map; the image holds the place of each voxel as a number x + 10 y + 100 z."""
    x, y, z = torch.meshgrid(torch.arange(4), torch.arange(8), torch.arange(12), indexing="ij")
    labels = torch.zeros(1, 4, 8, 12, dtype=torch.uint8)
    labels[:, 1:3, 2:5, 3:9] = 1
    return {"image": (x + 10 * y + 100 * z)[None].float(), "label": labels, "participant_id": "sub-1"}


def number_of(item, plane):
    """Number of a slice, read from its image."""
    digit = {"sagittal": item["image"] % 10, "coronal": item["image"] // 10 % 10, "axial": item["image"] // 100}[plane]
    assert len(digit.unique()) == 1, f"no {plane} slice"
    return int(digit.flatten()[0])


@pytest.mark.parametrize("plane", PLANES)
def test_drawn_slices_are_of_the_plane_not_empty_and_all_different_while_there_are_enough(head, plane):
    filled = FILLED[plane]
    draw = RandSlicesd(("image", "label"), "label", plane, num_slices=len(filled), empty_fraction=0.0)
    for _ in range(10):
        items = draw(head)
        assert {number_of(item, plane) for item in items} == filled


@pytest.mark.parametrize("plane", PLANES)
def test_image_and_labels_stay_together(head, plane):
    draw = RandSlicesd(("image", "label"), "label", plane, num_slices=20, empty_fraction=0.5)
    for item in draw(head):
        assert set(item) == {"image", "label"}
        number = number_of(item, plane)
        for key in ("image", "label"):
            assert torch.equal(item[key], head[key].select(1 + AXES[plane], number))


def test_more_slices_than_the_head_has_are_shared_evenly(head):
    draw = RandSlicesd(("image", "label"), "label", "coronal", num_slices=7, empty_fraction=0.0)
    counts = np.bincount([number_of(item, "coronal") for item in draw(head)], minlength=8)
    assert sorted(counts[[2, 3, 4]]) == [2, 2, 3] and counts.sum() == 7


@pytest.mark.parametrize("fraction", [0.0, 0.2, 1.0])
def test_the_fraction_of_empty_slices_is_the_one_asked_for(head, fraction):
    draw = RandSlicesd(("image", "label"), "label", "axial", num_slices=1000, empty_fraction=fraction)
    draw.set_random_state(seed=0)
    numbers = draw.draw(head["label"])
    empty = [number for number in numbers if number not in FILLED["axial"]]
    assert len(empty) / 1000 == pytest.approx(fraction, abs=0.04)
    if fraction:
        assert set(empty) == set(range(12)) - FILLED["axial"]


def test_a_head_that_fills_its_volume_has_no_empty_slices_to_draw(head):
    head["label"][:] = 1
    draw = RandSlicesd(("image", "label"), "label", "sagittal", num_slices=4, empty_fraction=1.0)
    assert {number_of(item, "sagittal") for item in draw(head)} == {0, 1, 2, 3}


def test_a_volume_without_any_label_is_refused(head):
    """A map may lose its only small structure when it is resampled, which once caused a division by zero."""
    head["label"][:] = 0
    with pytest.raises(ValueError, match="nothing but background.*4, 8, 12"):
        RandSlicesd(("image", "label"), "label", "axial", num_slices=2)(head)


def test_the_same_seed_draws_the_same_slices(head):
    def drawn(seed):
        draw = RandSlicesd(("image", "label"), "label", "axial", num_slices=5, empty_fraction=0.3)
        draw.set_random_state(seed=seed)
        return [draw.draw(head["label"]) for _ in range(3)]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
