import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from brain_ldm_bundle.scripts.evaluation.gradient_ssim import GradientSSIMMetric, gradient_magnitude, pooled, regions, structure

SHAPE = (12, 15, 13)
BOX = torch.full((3,), 1 / 3)  # a window whose sums can be done by hand


def head(seed=0, shape=SHAPE):
    """Smooth blobs, no two axes alike."""
    noise = np.random.default_rng(seed).random(shape)
    image = ndimage.gaussian_filter(noise, (1.0, 1.5, 2.0))
    image = (image - image.min()) / (image.max() - image.min())
    return torch.from_numpy(image).float()[None, None]


def slow_4grssim(a, b, size=7, sigma=1.5):
    """The definition again: numpy, one window at a time, in double precision."""

    def gradient(x):
        return np.sqrt(sum(ndimage.sobel(x, axis, mode="mirror") ** 2 for axis in range(3)))

    g, h = gradient(a[0, 0].double().numpy()), gradient(b[0, 0].double().numpy())
    axis = np.exp(-((np.arange(size) - size // 2) ** 2) / (2 * sigma**2))
    window = np.einsum("i,j,k->ijk", axis, axis, axis)
    window /= window.sum()
    scores = []
    for reference, other in ((g, h), (h, g)):
        values = {"preserved": [], "changed": [], "smooth": [], "texture": []}
        top = reference.max()
        for corner in itertools.product(*(range(n - size + 1) for n in g.shape)):
            place = tuple(slice(c, c + size) for c in corner)
            x, y = g[place], h[place]
            x, y = x - (window * x).sum(), y - (window * y).sum()
            r = (window * x * y).sum() / math.sqrt((window * x * x).sum() * (window * y * y).sum())
            centre = tuple(c + size // 2 for c in corner)
            one, two = reference[centre] > 0.12 * top, other[centre] > 0.12 * top
            if one and two:
                values["preserved"].append(r)
            elif one or two:
                values["changed"].append(r)
            elif reference[centre] < 0.06 * top:
                values["smooth"].append(r)
            else:
                values["texture"].append(r)
        scores.append(np.mean([np.mean(v) for v in values.values() if v]))
    return np.mean(scores)


def test_it_agrees_with_the_definition_done_slowly():
    a, b = head(0), 0.6 * head(0) + 0.4 * head(1)
    assert float(GradientSSIMMetric()(a, b)) == pytest.approx(slow_4grssim(a, b), abs=1e-4)


def test_the_gradient_of_a_ramp_is_its_slope_along_any_axis():
    for axis in (2, 3, 4):
        ramp = torch.arange(float((1, 1, *SHAPE)[axis])).mul(0.25).reshape([-1 if n == axis else 1 for n in range(5)])
        magnitude = gradient_magnitude(ramp.expand(1, 1, *SHAPE))
        assert torch.allclose(magnitude[..., 1:-1, 1:-1, 1:-1], torch.tensor(0.25))


def test_structure_is_the_correlation_in_the_window_done_by_hand():
    # Windows of three around the second value: 0 3 6 against 1 2 6. Deviations -3 0 3 and -2 -1 3: 15 / sqrt(18 * 14).
    a, b = torch.tensor([[[0.0, 3.0, 6.0]]]), torch.tensor([[[1.0, 2.0, 6.0]]])
    assert float(structure(a, b, BOX)) == pytest.approx(15 / math.sqrt(18 * 14), abs=1e-6)
    assert float(structure(a, 10 - 2 * a, BOX)) == pytest.approx(-1, abs=1e-6)
    assert float(structure(a, 5 + 3 * a, BOX)) == pytest.approx(1, abs=1e-6)


def test_constant_windows_have_the_structure_1_if_both_are_and_0_if_one_is():
    constant, other = torch.full((1, 1, 3), 0.7), torch.tensor([[[0.1, 0.5, 0.2]]])
    assert float(structure(constant, 0.3 * constant, BOX)) == 1
    assert float(structure(constant, other, BOX)) == 0
    assert float(structure(other, constant, BOX)) == 0


def test_regions_are_found_by_shares_of_the_references_largest_gradient():
    reference = torch.tensor([[[1.0, 0.13, 0.13, 0.11, 0.05, 0.05, 0.07]]])
    other = torch.tensor([[[9.0, 0.13, 0.12, 0.13, 0.13, 0.12, 0.00]]])
    preserved, changed, smooth, texture = (mask[0, 0].int().tolist() for mask in regions(reference, other))
    assert preserved == [1, 1, 0, 0, 0, 0, 0]
    assert changed == [0, 0, 1, 1, 1, 0, 0]
    assert smooth == [0, 0, 0, 0, 0, 1, 0]
    assert texture == [0, 0, 0, 0, 0, 0, 1]


def test_regions_count_alike_whatever_their_size_and_missing_ones_do_not():
    similarity = torch.tensor([[[1.0, 1.0, 1.0, 0.2]], [[0.5, 0.5, 0.5, 0.5]]])
    many, one = torch.tensor([[[1, 1, 1, 0]], [[1, 1, 1, 1]]]).bool(), torch.tensor([[[0, 0, 0, 1]], [[0, 0, 0, 0]]]).bool()
    nothing = torch.zeros_like(one)
    assert pooled(similarity, [many, one, nothing, nothing]).tolist() == pytest.approx([0.6, 0.5])


def test_equal_volumes_score_1_and_the_order_and_contrast_do_not_matter():
    metric, a, b = GradientSSIMMetric(), head(0), head(1)
    assert float(metric(a, a)) == pytest.approx(1, abs=1e-5)
    assert float(metric(a, b)) == pytest.approx(float(metric(b, a)), abs=1e-6)
    assert float(metric(a, 0.3 * a + 0.2)) > float(metric(a, b)) + 0.2
    shifted = float(metric(a, torch.roll(a, 2, dims=3)))
    assert float(metric(a, b)) < 0.7 and shifted < 0.9


def test_a_batch_has_one_score_per_pair():
    a, b = torch.cat([head(0), head(2)]), torch.cat([head(1), head(3)])
    single = [float(GradientSSIMMetric()(a[i : i + 1], b[i : i + 1])) for i in range(2)]
    assert GradientSSIMMetric()(a, b)[:, 0].tolist() == pytest.approx(single, abs=1e-6)


def test_volumes_of_two_shapes_are_refused():
    with pytest.raises(ValueError, match="shapes dont match"):
        GradientSSIMMetric()(head(0), head(0)[..., :-1])
