"""The networks have the published sizes and use all their inputs."""

import pytest
import torch

from brain_ldm_bundle.scripts.model.networks import Autoencoder, DiffusionUNet, Discriminator, check_sizes


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def test_the_defaults_are_the_published_models():
    with torch.device("meta"):
        assert round(parameters(Autoencoder()) / 1e6, 2) == 13.77
        assert round(parameters(DiffusionUNet()) / 1e6, 1) == 553.2


def test_a_head_of_1_mm_becomes_a_latent_of_3_x_20_x_28_x_20():
    with torch.device("meta"):
        assert Autoencoder().latent_shape((160, 224, 160)) == (3, 20, 28, 20)


def test_the_latent_shape_is_that_of_an_encoded_image():
    autoencoder = Autoencoder([4, 4, 8], latent_channels=2, num_res_blocks=1, norm_num_groups=2)
    mu, sigma = autoencoder.encode(torch.rand(1, 1, 8, 16, 12))
    assert mu.shape[1:] == sigma.shape[1:] == autoencoder.latent_shape((8, 16, 12))


def test_an_image_that_cannot_be_halved_is_refused():
    autoencoder = Autoencoder([4, 4, 8], norm_num_groups=2)
    with pytest.raises(ValueError, match=r"\(8, 14, 12\): every side must be a multiple of 4"):
        autoencoder.latent_shape((8, 14, 12))
    with pytest.raises(ValueError, match="multiple of 8, which 3 levels of the autoencoder and 2 of the U-Net"):
        check_sizes((40, 56, 44), [4, 4, 8], [8, 8])
    check_sizes((40, 56, 40), [4, 4, 8], [8, 8])


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    network = DiffusionUNet(2, 3, channels=[8, 16], num_head_channels=[0, 8], num_res_blocks=1, norm_num_groups=4)
    for p in network.parameters():  # its last layers start at zero: any input would give zero
        torch.nn.init.normal_(p, std=0.1)
    return network.eval()


@torch.no_grad()
def test_each_covariate_changes_the_prediction(unet):
    x, t, context = torch.randn(1, 2, 4, 6, 8), torch.tensor([500]), torch.full((1, 1, 3), 0.5)
    base = unet(x, t, context)
    assert base.shape == x.shape
    for index in range(3):
        changed = context.clone()
        changed[..., index] = 0.9
        assert (unet(x, t, changed) - base).abs().max() > 1e-4, f"covariate {index} is ignored"


@torch.no_grad()
def test_covariates_enter_as_maps_and_as_context(unet):
    x, t = torch.randn(1, 2, 4, 6, 8), torch.tensor([500])
    context = torch.rand(1, 1, 3)
    by_hand = torch.cat([x, context.reshape(1, 3, 1, 1, 1).repeat(1, 1, 4, 6, 8)], dim=1)
    expected = super(DiffusionUNet, unet).forward(by_hand, t, context)
    torch.testing.assert_close(unet(x, t, context), expected)


def test_scale_factor_and_recipe_travel_in_the_state_dict(unet):
    unet.recipe = {"prediction_type": "v_prediction", "note": "Größe"}
    unet.scale_factor.fill_(0.25)
    other = DiffusionUNet(2, 3, channels=[8, 16], num_head_channels=[0, 8], num_res_blocks=1, norm_num_groups=4)
    other.load_state_dict(unet.state_dict())
    assert other.recipe == unet.recipe
    assert other.scale_factor == 0.25
    assert all(isinstance(value, torch.Tensor) for value in unet.state_dict().values())


def test_the_discriminator_judges_patches():
    logits = Discriminator(channels=4)(torch.rand(2, 1, 32, 48, 40))
    assert logits.shape[:2] == (2, 1)
    assert logits.shape[2] < logits.shape[4] < logits.shape[3]  # as the sides of the image
