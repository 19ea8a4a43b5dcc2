"""A step of stage one does exactly what the paper describes."""

from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from brain_ldm_bundle.scripts.model.networks import Autoencoder, Discriminator
from brain_ldm_bundle.scripts.training import autoencoder as stage_one

SETTINGS = {
    "kl_weight": 1e-6,
    "perceptual_weight": 0.0,
    "adversarial_weight": 0.1,
    "gradient_weight": 0.0,
    "adversarial_from_epoch": 3,
    "grad_clip": 1.0,
    "amp": False,
}


def test_the_kl_divergence_is_that_of_torch_summed_over_a_latent():
    mu, sigma = torch.randn(2, 3, 4, 5, 6), torch.rand(2, 3, 4, 5, 6) + 0.1
    expected = kl_divergence(Normal(mu, sigma), Normal(0.0, 1.0)).flatten(1).sum(dim=1).mean()
    torch.testing.assert_close(stage_one.kl_divergence(mu, sigma), expected, rtol=1e-5, atol=1e-3)


def test_the_kl_divergence_is_float32_under_autocast():
    mu = torch.full((1, 3, 20, 28, 20), 0.1, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kl = stage_one.kl_divergence(mu, torch.ones_like(mu))
    assert kl.dtype == torch.float32
    assert kl.item() == pytest.approx(0.5 * float(mu.flatten()[0]) ** 2 * mu.numel(), rel=1e-3)


@pytest.fixture
def adversarial_engine():
    torch.manual_seed(0)
    autoencoder = Autoencoder([4, 4], latent_channels=2, num_res_blocks=1, norm_num_groups=2)
    discriminator = Discriminator(channels=4)
    state = SimpleNamespace(
        device=torch.device("cpu"),
        epoch=1,
        g_network=autoencoder,
        d_network=discriminator,
        g_optimizer=torch.optim.SGD(autoencoder.parameters(), lr=0.01),
        d_optimizer=torch.optim.SGD(discriminator.parameters(), lr=0.01),
    )
    return SimpleNamespace(state=state)


def weights(network):
    return torch.cat([p.detach().flatten().clone() for p in network.parameters()])


def test_the_discriminator_joins_at_its_epoch_and_rests_before(adversarial_engine):
    state, batch = adversarial_engine.state, {"image": torch.rand(1, 1, 32, 40, 36)}
    before = weights(state.g_network), weights(state.d_network)
    (losses,) = stage_one.autoencoder_step(adversarial_engine, batch, **SETTINGS)
    assert "discriminator" not in losses and "adversarial" not in losses
    assert not torch.equal(weights(state.g_network), before[0])
    assert torch.equal(weights(state.d_network), before[1])

    state.epoch = 3
    (losses,) = stage_one.autoencoder_step(adversarial_engine, batch, **SETTINGS)
    assert losses["discriminator"] > 0 and losses["adversarial"] > 0
    assert not torch.equal(weights(state.d_network), before[1])


def test_the_autoencoders_loss_is_the_weighted_sum_of_its_parts(adversarial_engine):
    adversarial_engine.state.epoch = 3
    settings = SETTINGS | {"kl_weight": 0.001, "gradient_weight": 0.5, "perceptual_weight": 2.0}
    perceptual = torch.nn.MSELoss()
    batch = {"image": torch.rand(1, 1, 32, 40, 36)}
    (found,) = stage_one.autoencoder_step(adversarial_engine, batch, **settings, perceptual_loss=perceptual)
    expected = found["l1"] + 0.001 * found["kl"] + 0.5 * found["gradient"] + 2.0 * found["perceptual"]
    assert found["loss"] == pytest.approx(expected + 0.1 * found["adversarial"], rel=1e-5)
