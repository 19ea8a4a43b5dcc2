import pytest
import torch
from monai.metrics import MultiScaleSSIMMetric, SSIMMetric
from monai.networks.layers import separable_filtering

from brain_ldm_bundle.scripts.evaluation.diversity import MultiScaleSSIM
from brain_ldm_bundle.scripts.shared.ssim import SSIM, filtered

SHAPE = (30, 38, 34)


@pytest.fixture
def volumes():
    """Two pairs: alike, and not."""
    torch.manual_seed(0)
    a = torch.nn.functional.avg_pool3d(torch.rand(2, 1, *(side + 4 for side in SHAPE)), 5, stride=1)
    noise = torch.rand(2, 1, *SHAPE) * torch.tensor([0.02, 0.5]).view(2, 1, 1, 1, 1)
    return a, a.flip(2) * 0.2 + a * 0.8 + noise


def test_a_filter_along_each_axis_is_the_product_of_all():
    torch.manual_seed(0)
    images, kernels = torch.rand(2, 1, 8, 10, 12), [torch.rand(3), torch.rand(1), torch.rand(5)]
    expected = separable_filtering(images, kernels)[:, :, 1:-1, :, 2:-2]
    assert torch.allclose(filtered(images, kernels), expected, atol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"win_size": 7, "kernel_sigma": (1.0, 1.5, 2.0), "data_range": 2.0, "k2": 0.05}])
def test_ssim_is_that_of_monai(volumes, settings):
    found, expected = (metric(spatial_dims=3, **settings)(*volumes) for metric in (SSIM, SSIMMetric))
    assert found.shape == (2, 1) and torch.allclose(found, expected, atol=3e-5)  # MONAI's own rounding
    assert float(expected[0]) > float(expected[1]) + 0.1


@pytest.mark.parametrize("settings", [{}, {"data_range": 2.0, "k1": 0.05, "kernel_sigma": (1.0, 1.5, 2.0)}])
def test_ms_ssim_is_that_of_monai(volumes, settings):
    settings = {"spatial_dims": 3, "kernel_size": 7, "weights": (0.5, 0.3, 0.2), **settings}
    found, expected = (metric(**settings)(*volumes) for metric in (MultiScaleSSIM, MultiScaleSSIMMetric))
    assert found.shape == (2, 1) and torch.allclose(found, expected, atol=3e-5)  # MONAI's own rounding
    assert float(expected[0]) > float(expected[1]) + 0.1


def test_opposite_volumes_have_an_ms_ssim_of_zero():
    """A negative factor has no power."""
    torch.manual_seed(0)
    a = torch.rand(2, 1, *SHAPE)
    assert MultiScaleSSIM(spatial_dims=3, kernel_size=7, weights=(0.5, 0.5))(a, 1 - a).tolist() == [[0.0], [0.0]]


def test_what_the_window_does_not_fit_is_refused(volumes):
    with pytest.raises(ValueError, match=r"volumes of \(15, 19, 17\) voxels are smaller than the window of \(17, 17, 17\)"):
        MultiScaleSSIM(spatial_dims=3, kernel_size=17, weights=(0.5, 0.5))(*volumes)
    with pytest.raises(ValueError, match=r"a Gaussian window are needed, got .* uniform"):
        SSIM(spatial_dims=3, kernel_type="uniform")(*volumes)
    with pytest.raises(ValueError, match=r"volumes \(B, 1, D, H, W\) .* are needed, got torch.Size\(\[2, 2, 30, 38, 34\]\)"):
        SSIM(spatial_dims=3)(*(torch.cat([x, x], dim=1) for x in volumes))
