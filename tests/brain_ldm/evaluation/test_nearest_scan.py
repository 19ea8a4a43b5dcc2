"""Test nearest_scan.py: what an anatomy vector ignores, what a relative distance shows, and which threshold is used."""

import numpy as np
import pytest
import torch

from brain_ldm_bundle.scripts.evaluation.nearest_scan import Neighbours, anatomy, threshold, views
from brain_ldm_bundle.scripts.shared import mni_box

SPACING_MM = 8.0


def volume(seed=0, spacing_mm=SPACING_MM):
    return torch.rand((1, *mni_box.size(spacing_mm)), generator=torch.Generator().manual_seed(seed))


def test_anatomy_ignores_linear_changes_of_intensity():
    head = volume()
    torch.testing.assert_close(anatomy(0.4 * head + 0.3, SPACING_MM), anatomy(head, SPACING_MM))
    assert float(anatomy(head, SPACING_MM) @ anatomy(1 - head, SPACING_MM)) == pytest.approx(-1, abs=1e-5)


def test_anatomy_ignores_what_lies_outside_of_the_box_around_the_brain():
    head, changed = volume(), volume()
    changed[:, 0] = 1 - changed[:, 0]  # the rightmost 8 mm of the field of view
    torch.testing.assert_close(anatomy(changed, SPACING_MM), anatomy(head, SPACING_MM))


@pytest.mark.parametrize("spacing_mm", [4.0, 2.0])
def test_anatomy_of_finer_volumes_is_that_of_their_8_mm_means(spacing_mm):
    fine = volume(spacing_mm=spacing_mm)
    factor = round(SPACING_MM / spacing_mm)
    means = fine.unfold(1, factor, factor).unfold(2, factor, factor).unfold(3, factor, factor).mean((-1, -2, -3))
    torch.testing.assert_close(anatomy(fine, spacing_mm), anatomy(means, SPACING_MM))


def test_a_constant_volume_has_no_anatomy():
    with pytest.raises(ValueError, match="constant where the brain should be"):
        anatomy(torch.full((1, 20, 28, 20), 0.25), SPACING_MM)


def test_views_are_the_volume_its_mirror_image_and_both_moved_by_a_voxel():
    head = volume()
    seen = dict(views(head, SPACING_MM))
    assert len(seen) == 14
    assert torch.equal(seen["as it is"], head) and torch.equal(seen["mirrored"], head.flip(1))
    assert torch.equal(seen["moved +8 mm back-front"][:, :, 1:], head[:, :, :-1])
    assert torch.equal(seen["mirrored moved -8 mm bottom-top"][..., :-1], head.flip(1)[..., 1:])
    assert "moved +4 mm left-right" in dict(views(volume(spacing_mm=2.0), 2.0))


def test_the_match_is_what_a_slow_count_finds():
    rng = np.random.default_rng(0)
    scans, query = rng.standard_normal((9, 30)), rng.standard_normal((2, 30))
    participants = ["a", "a", "b", "c", "d", "e", "f", "g", "h"]
    found = Neighbours(torch.from_numpy(scans.copy()), participants, neighbours=3).match(
        torch.from_numpy(query), ["one", "two"]
    )
    residuals, queries = scans - scans.mean(0), query - scans.mean(0)
    r = [[np.dot(q, s) / np.linalg.norm(q) / np.linalg.norm(s) for s in residuals] for q in queries]
    of_scan = np.max(r, axis=0)
    of_participant = sorted([max(of_scan[:2]), *of_scan[2:]], reverse=True)
    assert found.scan == np.argmax(of_scan) and found.view == ["one", "two"][np.argmax(np.array(r)[:, found.scan])]
    assert found.r == pytest.approx(of_participant[0])
    expected = (1 - of_participant[0]) / (1 - np.mean(of_participant[1:4]))
    assert found.relative_distance == pytest.approx(expected)


def test_a_further_scan_of_the_same_participant_is_no_second_neighbour():
    """A copy of someone scanned twice would seem ordinary if the second scan counted."""
    scans = torch.randn((8, 50), generator=torch.Generator().manual_seed(1))
    scans[1] = scans[0] + 0.01 * scans[2]
    twice = ["a", "a", *"bcdefg"]
    query = (scans[0] + 0.3 * scans[3])[None]
    known = Neighbours(scans.clone(), twice, neighbours=1).match(query, ["as it is"]).relative_distance
    unknown = Neighbours(scans, list("zabcdefg"), neighbours=1).match(query, ["as it is"]).relative_distance
    assert known < 0.15 < 0.9 < unknown


def test_the_training_scans_are_held_once():
    """Four times their latents were in memory: 16 GB at 1 mm for the 31 740 scans of Pinaya et al. 2022."""
    scans = torch.randn((8, 50), generator=torch.Generator().manual_seed(1))
    expected = torch.nn.functional.normalize(scans - scans.mean(0))
    neighbours = Neighbours(scans, list("abcdefgh"))
    assert neighbours.residuals.data_ptr() == scans.data_ptr()
    torch.testing.assert_close(neighbours.residuals, expected)


def test_the_relative_distance_of_smoothed_volumes_does_not_fall():
    """Generated volumes are smoother than scans: raw correlations rise with that, relative distances must not."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    field = [gaussian_filter(rng.standard_normal((20, 28, 20)), 1.0) for _ in range(60)]
    scans = torch.from_numpy(np.stack([f.ravel() for f in field[:40]]))
    neighbours = Neighbours(scans, [str(i) for i in range(40)])

    def median(sigma):
        own = [torch.from_numpy(gaussian_filter(f, sigma).ravel())[None] for f in field[40:]]
        return np.median([neighbours.match(q, ["as it is"]).relative_distance for q in own])

    assert median(1.0) == pytest.approx(median(0.0), abs=0.03)


def test_the_threshold_is_half_the_median_or_far_below_the_quartiles():
    assert threshold([0.9, 0.92, 0.94, 0.96, 0.98]) == pytest.approx(0.47)
    broad = [0.2, 0.5, 0.7, 0.8, 0.9]  # quartiles 0.5 and 0.8
    assert threshold(broad) == pytest.approx(0.5 - 3 * 0.3)
