"""A label map of logits has the requested volumes, whole ventricles on their sides, and no islands."""

import numpy as np
import pytest
import tiny_labels
import torch
from scipy import ndimage
from tiny_labels import SUMS, TABLE

from brain_ldm_bundle.scripts.generation.exact_maps import FULL, ExactMaps

SPACING_MM = 4.0
LEFT, RIGHT = TABLE.names.index("left lateral ventricle"), TABLE.names.index("right lateral ventricle")
BRAIN_VALUES = (2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15)  # of the table "demo", as make_demo_data.py counts the brain


def likely_head(seed: int = 0, noise: float = 0.3) -> torch.Tensor:
    """Logits (23, 40, 56, 40) of a head, with soft borders and smooth noise; x runs to the right."""
    classes = TABLE.classes(tiny_labels.head(), "head").repeat(2, 0).repeat(2, 1).repeat(2, 2)
    rng = np.random.default_rng(seed)
    shares = [ndimage.gaussian_filter((classes == number).astype(np.float32), 1.0) for number in range(TABLE.num_classes)]
    logits = np.log(np.stack(shares) + 1e-3)
    logits += noise * ndimage.gaussian_filter(rng.normal(size=logits.shape), (0, 1, 1, 1)) * 8
    return torch.from_numpy(logits).float()


def exact(limit: float = 8.0, smallest: int = 4) -> ExactMaps:
    return ExactMaps(TABLE, SUMS, SPACING_MM, limit, smallest)


def count_ml(classes: np.ndarray) -> dict[str, float]:
    """Volumes that are counted in the label values, as the simulation counts them."""
    values, voxel_ml = TABLE.first_values()[classes], SPACING_MM**3 / 1000
    brain, inside = np.isin(values, BRAIN_VALUES).sum(), np.isin(values, range(1, 16)).sum()
    return {"ventricles_ml": np.isin(values, (6, 7)).sum() * voxel_ml, "brain_normalised_ml": brain * 1902 / inside}


def parts(mask: np.ndarray) -> np.ndarray:
    """Number of voxels of each part of a mask, the largest first."""
    return np.sort(np.bincount(ndimage.label(mask, FULL)[0].ravel())[1:])[::-1]


@pytest.mark.parametrize("ventricles", [0.6, 1.0, 1.5])
@pytest.mark.parametrize("brain", [0.93, 1.05])
def test_counted_volumes_are_the_requested_ones(ventricles, brain):
    logits = likely_head()
    likeliest = count_ml(logits.argmax(0).numpy())
    requested = {"ventricles_ml": ventricles * likeliest["ventricles_ml"], "brain_normalised_ml": 1902 * 0.7 * brain}
    classes, volumes = exact()(logits, requested)
    for name, counted in count_ml(classes).items():
        assert abs(counted - requested[name]) <= max(0.01 * requested[name], 0.2), name
        entry = volumes[name]
        assert entry["AsRequested"] and entry["Requested"] == requested[name]
        assert entry["Counted"] == pytest.approx(counted, abs=1e-3)
        assert entry["Uncorrected"] == pytest.approx(likeliest[name], abs=1e-3)
        assert abs(entry["Offset"]) < 8


def test_more_is_a_larger_offset():
    logits = likely_head()
    offsets = [exact()(logits, {"ventricles_ml": ml})[1]["ventricles_ml"]["Offset"] for ml in (30, 60, 90)]
    assert offsets[0] < offsets[1] < offsets[2]


@pytest.mark.parametrize("ventricles_ml", [None, 30, 110])
def test_ventricles_are_one_part_on_each_side_without_holes(ventricles_ml):
    logits = likely_head()
    logits[LEFT, 4:6, 25:28, 20:22] = 20.0  # an island far from the ventricle
    logits[TABLE.names.index("left cerebral white matter"), 13:15, 20:22, 19:21] = 20.0  # a hole in the middle of it
    likeliest = logits.argmax(0).numpy()
    assert len(parts(likeliest == LEFT)) > 1
    classes, _ = exact()(logits, {"ventricles_ml": ventricles_ml})
    for side in (LEFT, RIGHT):
        mask = classes == side
        assert len(parts(mask)) == 1
        assert np.array_equal(ndimage.binary_fill_holes(mask), mask)
    assert (classes == LEFT).nonzero()[0].max() < 20 <= (classes == RIGHT).nonzero()[0].min()  # x runs to the right


def test_islands_go_to_a_class_that_touches_them():
    logits = likely_head(noise=1.0)
    smallest = 6
    likeliest = logits.argmax(0).numpy()
    assert any((parts(likeliest == number)[1:] < smallest).any() for number in range(TABLE.num_classes))
    for requested in ({}, {"ventricles_ml": 50, "brain_normalised_ml": 1300}):
        classes, volumes = exact(smallest=smallest)(logits, requested)
        for number in range(TABLE.num_classes):
            assert (parts(classes == number)[1:] >= smallest).all(), TABLE.names[number]
        assert all(volumes[name]["AsRequested"] for name in requested)


def test_a_leap_of_the_volume_is_filled_voxel_by_voxel():
    """A horn of the ventricle joins at one offset. The request lies between the volume without it and with it."""
    logits = torch.full((TABLE.num_classes, 30, 24, 20), -5.0)
    logits[TABLE.names.index("left cerebral white matter")] = 0.0
    logits[LEFT, 4:14, 4:14, 4:14] = torch.rand(10, 10, 10) + 1  # 1000 voxels
    logits[LEFT, 16:26, 4:14, 4:14] = torch.rand(10, 10, 10) + 1
    logits[LEFT, 14:16, 9, 9] = -1.0  # the bridge
    requested_ml = 1500 * SPACING_MM**3 / 1000
    classes, volumes = exact()(logits, {"ventricles_ml": requested_ml})
    assert abs((classes == LEFT).sum() - 1500) <= 15 and len(parts(classes == LEFT)) == 1
    assert volumes["ventricles_ml"]["AsRequested"]


@pytest.mark.parametrize(("name", "wanted"), [("ventricles_ml", 400.0), ("ventricles_ml", 0.0), ("brain_normalised_ml", 600.0)])
def test_a_request_beyond_the_limit_is_reported_and_not_forced(name, wanted):
    _, volumes = exact(limit=0.3)(likely_head(), {name: wanted})
    assert volumes[name]["AsRequested"] is False and abs(volumes[name]["Offset"]) == 0.3
    assert volumes[name]["Counted"] != pytest.approx(wanted, rel=0.05)


def test_a_mirrored_head_gives_the_mirrored_map():
    logits, requested = likely_head(), {"ventricles_ml": 70.0, "brain_normalised_ml": 1350.0}
    mirror = torch.from_numpy(TABLE.mirror.astype(np.int64))
    classes, _ = exact()(logits, requested)
    mirrored, _ = exact()(logits.flip(1)[mirror], requested)
    assert (mirrored == TABLE.mirror[classes[::-1]]).mean() > 0.999  # the order of sides and of islands decides ties


def test_a_table_without_such_classes_leaves_the_map_as_it_is():
    sums = {"ventricles_ml": [], "csf": [], "outside_skull": []}
    logits = likely_head(noise=0)
    maps = ExactMaps(TABLE, sums, SPACING_MM, 5.0, 1)
    classes, volumes = maps(logits, {"ventricles_ml": 30.0, "brain_normalised_ml": 1300.0})
    assert np.array_equal(classes, logits.argmax(0).numpy())
    assert volumes["ventricles_ml"]["Offset"] is None and not volumes["ventricles_ml"]["AsRequested"]
