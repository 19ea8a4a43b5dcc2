import itertools
import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.metrics import MultiScaleSSIMMetric, SSIMMetric
from scipy import ndimage

from brain_ldm_bundle.scripts.evaluation.diversity import draw_pairs, mean_over_pairs, multi_scale_ssim, score_pairs

SHAPE = (15, 18, 16)
WANG = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])


def head(seed, shape=SHAPE, smoothing=(1.0, 1.5, 2.0)):
    image = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), smoothing)
    return torch.from_numpy((image - image.min()) / (image.max() - image.min())).float()[None]


def slow_ssim(a, b, size=7, sigma=1.5):
    """SSIM and its contrast-structure part by Wang's formulae: one window at a time, double precision."""
    a, b = a.double().numpy(), b.double().numpy()
    axis = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    window = np.einsum("i,j,k->ijk", axis, axis, axis)
    window /= window.sum()
    c1, c2, ssim, cs = 0.01**2, 0.03**2, [], []
    for corner in itertools.product(*(range(n - size + 1) for n in a.shape)):
        x, y = (image[tuple(slice(c, c + size) for c in corner)] for image in (a, b))
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        vxy = (window * (x - mx) * (y - my)).sum()
        cs.append((2 * vxy + c2) / (vx + vy + c2))
        ssim.append((2 * mx * my + c1) / (mx**2 + my**2 + c1) * cs[-1])
    return np.mean(ssim), np.mean(cs)


def test_monais_ssim_of_volumes_agrees_with_the_definition():
    a, b = head(0), 0.7 * head(0) + 0.3 * head(1)
    found = float(SSIMMetric(spatial_dims=3, win_size=7, kernel_sigma=1.5)(a[None], b[None]))
    assert found == pytest.approx(slow_ssim(a[0], b[0])[0], abs=1e-5)


def test_monais_ms_ssim_of_volumes_agrees_with_the_definition():
    a, b = head(0), 0.7 * head(0) + 0.3 * head(1)
    coarse = [F.avg_pool3d(image[None], 2)[0] for image in (a, b)]
    weights = WANG[-2:] / WANG[-2:].sum()
    expected = slow_ssim(a[0], b[0])[1] ** weights[0] * slow_ssim(coarse[0][0], coarse[1][0])[0] ** weights[1]
    assert float(multi_scale_ssim(SHAPE)(a[None], b[None])) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(("size", "scales"), [((160, 224, 160), 5), ((80, 112, 80), 4), ((40, 56, 40), 3), ((20, 28, 20), 2)])
def test_coarser_grids_have_fewer_scales_and_the_coarsest_keeps_its_size_in_mm(size, scales):
    weights = multi_scale_ssim(size).weights
    assert weights == pytest.approx(WANG[-scales:] / WANG[-scales:].sum())
    assert 160 / size[0] * 2 ** (scales - 1) == 16
    if size[0] <= 40:
        volume = torch.rand(1, 1, *size)
        assert float(multi_scale_ssim(size)(volume, volume)) == pytest.approx(1)


def test_the_default_of_monai_does_not_fit_the_published_grid():
    volume = torch.zeros(1, 1, 160, 224, 160)
    with pytest.raises(ValueError, match="must be larger than 160"):
        MultiScaleSSIMMetric(spatial_dims=3)(volume, volume)
    with pytest.raises(ValueError, match="smaller than the window of 7"):
        multi_scale_ssim((6, 20, 20))


def test_pairs_are_seeded_different_and_of_two_volumes():
    pairs = draw_pairs(range(20), 50, seed=3)
    assert pairs == draw_pairs(range(20), 50, seed=3) != draw_pairs(range(20), 50, seed=4)
    assert pairs == sorted(set(pairs)) and len(pairs) == 50
    assert all(0 <= i < j < 20 for i, j in pairs)


def test_all_pairs_are_taken_where_there_are_no_more():
    assert draw_pairs(range(6), 1000) == list(itertools.combinations(range(6), 2))
    with pytest.raises(ValueError, match="1000 pairs of 1 participants"):
        draw_pairs(range(1), 1000)


def test_two_sessions_of_one_person_are_no_pair():
    participants = ["a", "b", "a", "c", "a", "b"]
    found = draw_pairs(participants, 1000)
    assert found == [(i, j) for i, j in itertools.combinations(range(6), 2) if participants[i] != participants[j]]
    for seed in range(20):
        assert len(few := draw_pairs(participants, 8, seed)) == 8 and set(few) < set(found)
    with pytest.raises(ValueError, match="5 pairs of 1 participants"):
        draw_pairs(["a", "a", "a"], 5)


def test_a_set_of_one_kind_is_more_alike_than_a_diverse_one():
    diverse = [head(seed) for seed in range(4)]
    alike = [(0.8 * diverse[0] + 0.2 * volume) for volume in diverse]
    blurred = [head(seed, smoothing=(3.0, 3.0, 3.0)) for seed in range(4)]
    repeated = [diverse[0]] * 4
    pairs = draw_pairs(range(4), 6)
    score = {
        name: score_pairs(volumes, pairs, torch.device("cpu"), name).mean(axis=0)
        for name, volumes in {"diverse": diverse, "alike": alike, "blurred": blurred, "repeated": repeated}.items()
    }
    assert (score["diverse"] < score["alike"]).all() and (score["alike"] < 1).all()
    assert score["blurred"][0] > score["diverse"][0]
    assert score["repeated"] == pytest.approx([1, 1], abs=1e-5)


def test_one_pair_of_volumes_is_held_at_a_time():
    read, alive = [], []

    class Watched:
        def __getitem__(self, index):
            alive.append(sum(reference() is not None for reference in read))
            volume = head(index)
            read.append(weakref.ref(volume))
            return volume

    assert score_pairs(Watched(), draw_pairs(range(4), 6), torch.device("cpu"), "x").shape == (6, 2)
    assert len(alive) == 12 and max(alive) <= 3  # before the next volume is read: the pair before, and the first of this one


def test_the_error_of_a_mean_over_pairs_counts_volumes_not_pairs():
    # Scores that are sums of a part of each volume: the mean over all pairs has the error of twice the mean of the parts.
    parts = np.random.default_rng(0).standard_normal(30)
    pairs = draw_pairs(range(30), 1000)
    scores = np.array([parts[i] + parts[j] for i, j in pairs])
    mean, _, error = mean_over_pairs(pairs, scores)
    assert mean == pytest.approx(2 * parts.mean())
    assert error == pytest.approx(2 * parts.std(ddof=1) / math.sqrt(30), rel=1e-6)
    assert math.isnan(mean_over_pairs([(0, 1)], np.array([0.5]))[2])


@pytest.mark.parametrize("of_volumes", [0, 0.5, 1])
def test_the_error_of_a_mean_over_few_of_all_pairs_is_its_spread(of_volumes):
    """It was 1.1 to 1.5 times as large: every pair was left out twice."""
    rng, pairs = np.random.default_rng(0), np.array(draw_pairs(range(40), 50))
    means, errors = [], []
    for _ in range(400):
        parts = of_volumes * rng.standard_normal(40)
        mean, _, error = mean_over_pairs(pairs, parts[pairs].sum(axis=1) + (1 - of_volumes) * rng.standard_normal(50))
        means.append(mean)
        errors.append(error)
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(means), rel=0.13)
