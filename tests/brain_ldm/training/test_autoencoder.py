"""One step of each stage does what the paper says, and nothing else."""

from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from brain_ldm_bundle.scripts.data.covariates import NULL
from brain_ldm_bundle.scripts.model.networks import Autoencoder, DiffusionUNet, Discriminator
from brain_ldm_bundle.scripts.model.noise_schedule import DDPM
from brain_ldm_bundle.scripts.training import autoencoder as steps

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
    torch.testing.assert_close(steps.kl_divergence(mu, sigma), expected, rtol=1e-5, atol=1e-3)


def test_the_kl_divergence_is_float32_under_autocast():
    mu = torch.full((1, 3, 20, 28, 20), 0.1, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        kl = steps.kl_divergence(mu, torch.ones_like(mu))
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
    (losses,) = steps.autoencoder_step(adversarial_engine, batch, **SETTINGS)
    assert "discriminator" not in losses and "adversarial" not in losses
    assert not torch.equal(weights(state.g_network), before[0])
    assert torch.equal(weights(state.d_network), before[1])

    state.epoch = 3
    (losses,) = steps.autoencoder_step(adversarial_engine, batch, **SETTINGS)
    assert losses["discriminator"] > 0 and losses["adversarial"] > 0
    assert not torch.equal(weights(state.d_network), before[1])


def test_the_autoencoders_loss_is_the_weighted_sum_of_its_parts(adversarial_engine):
    adversarial_engine.state.epoch = 3
    settings = SETTINGS | {"kl_weight": 0.001, "gradient_weight": 0.5, "perceptual_weight": 2.0}
    perceptual = torch.nn.MSELoss()
    batch = {"image": torch.rand(1, 1, 32, 40, 36)}
    (found,) = steps.autoencoder_step(adversarial_engine, batch, **settings, perceptual_loss=perceptual)
    expected = found["l1"] + 0.001 * found["kl"] + 0.5 * found["gradient"] + 2.0 * found["perceptual"]
    assert found["loss"] == pytest.approx(expected + 0.1 * found["adversarial"], rel=1e-5)


class Recorder(torch.nn.Module):
    """Stands where the U-Net does and keeps what it is given."""

    def __init__(self, scale_factor=1.0):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("scale_factor", torch.tensor(scale_factor))

    def forward(self, x, timesteps, context):
        self.x, self.timesteps, self.context = x, timesteps, context
        return self.weight * x


def diffusion_engine(network):
    return SimpleNamespace(
        network=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.1),
        state=SimpleNamespace(device=torch.device("cpu"), iteration=1),
    )


def latents(rows=400):
    mu = torch.full((rows, 2, 2, 3, 4), 3.0)
    return {"mu": mu, "sigma": torch.zeros_like(mu), "covariates": torch.rand(rows, 1, 4)}


def test_whole_rows_of_covariates_are_withheld_at_the_rate_asked_for():
    torch.manual_seed(0)
    network, batch = Recorder(), latents()
    steps.diffusion_step(diffusion_engine(network), batch, DDPM(), condition_dropout=0.25, grad_clip=1.0, amp=False)
    withheld = (network.context == NULL).all(dim=2).squeeze(1)
    assert 70 < withheld.sum() < 130  # 100 of 400 expected, standard deviation 9
    assert torch.equal(network.context[~withheld], batch["covariates"][~withheld])


def test_latents_are_scaled_before_they_are_noised():
    torch.manual_seed(0)
    network = Recorder(scale_factor=0.5)
    steps.diffusion_step(diffusion_engine(network), latents(), DDPM(), condition_dropout=0.0, grad_clip=1.0, amp=False)
    clean = network.timesteps < 30
    assert network.x[clean].mean() == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_target_is_the_noise_or_the_velocity(prediction_type):
    scheduler = DDPM(prediction_type)
    latent, noise = torch.randn(2, 3, 2, 3, 4), torch.randn(2, 3, 2, 3, 4)
    timesteps = torch.tensor([100, 900])
    _, target = steps.denoise(Recorder(), scheduler, latent, None, noise, timesteps, amp=False)
    alpha = scheduler.alphas_cumprod[timesteps].reshape(2, 1, 1, 1, 1)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latent
    torch.testing.assert_close(target, noise if prediction_type == "epsilon" else velocity)


def test_validation_gives_the_same_number_twice_and_changes_no_weight():
    torch.manual_seed(0)
    network = DiffusionUNet(2, 4, channels=[8], num_head_channels=[8], num_res_blocks=1, norm_num_groups=4)
    engine, batch, before = diffusion_engine(network), latents(rows=2), weights(network)
    first = steps.diffusion_validation_step(engine, batch, DDPM(), amp=False)
    second = steps.diffusion_validation_step(engine, batch, DDPM(), amp=False)
    assert torch.equal(first["pred"], second["pred"]) and torch.equal(first["label"], second["label"])
    assert torch.equal(weights(network), before)


def test_the_warm_up_takes_no_more_than_a_tenth_of_a_short_run():
    assert steps.warmup(500, 150)(15) == 1.0
    assert steps.warmup(500, 10**6)(250) == pytest.approx(0.505)
    assert steps.warmup(500, 10**6)(0) == 0.01
    assert steps.warmup(500, 3)(1) == 1.0
