"""A step of stage two does exactly what the paper describes."""

from types import SimpleNamespace

import pytest
import torch

from brain_ldm_bundle.scripts.data.covariates import NULL
from brain_ldm_bundle.scripts.model.networks import DiffusionUNet
from brain_ldm_bundle.scripts.model.noise_schedule import DDPM, training_schedule
from brain_ldm_bundle.scripts.training import diffusion
from brain_ldm_bundle.scripts.training.learning_rate import warmup


def weights(network):
    return torch.cat([p.detach().flatten().clone() for p in network.parameters()])


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
    diffusion.diffusion_step(diffusion_engine(network), batch, DDPM(), condition_dropout=0.25, grad_clip=1.0, amp=False)
    withheld = (network.context == NULL).all(dim=2).squeeze(1)
    assert 70 < withheld.sum() < 130  # 100 of 400 expected, standard deviation 9
    assert torch.equal(network.context[~withheld], batch["covariates"][~withheld])


def test_latents_are_scaled_before_they_are_noised():
    torch.manual_seed(0)
    network = Recorder(scale_factor=0.5)
    diffusion.diffusion_step(diffusion_engine(network), latents(), DDPM(), condition_dropout=0.0, grad_clip=1.0, amp=False)
    clean = network.timesteps < 30
    assert network.x[clean].mean() == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_target_is_the_noise_or_the_velocity(prediction_type):
    scheduler = DDPM(prediction_type)
    latent, noise = torch.randn(2, 3, 2, 3, 4), torch.randn(2, 3, 2, 3, 4)
    timesteps = torch.tensor([100, 900])
    _, target = diffusion.denoise(Recorder(), scheduler, latent, None, noise, timesteps, amp=False)
    alpha = scheduler.alphas_cumprod[timesteps].reshape(2, 1, 1, 1, 1)
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * latent
    torch.testing.assert_close(target, noise if prediction_type == "epsilon" else velocity)


def test_a_flow_trains_towards_data_minus_noise_at_all_times_from_1_to_1000():
    torch.manual_seed(0)
    network, batch, flow = Recorder(), latents(rows=20_000), training_schedule("flow")
    [losses] = diffusion.diffusion_step(diffusion_engine(network), batch, flow, condition_dropout=0.0, grad_clip=1.0, amp=False)
    assert losses["loss"] == pytest.approx(3**2 + 1, rel=0.02)  # the network answers 0; data are 3, noise has variance 1
    assert (network.timesteps.min(), network.timesteps.max()) == (1, 1000)
    share = network.timesteps[:, None, None, None, None] / 1000
    residue = network.x - (1 - share) * 3
    torch.testing.assert_close((residue / share).std(), torch.tensor(1.0), rtol=0.02, atol=0)


def test_validation_gives_the_same_number_twice_and_changes_no_weight():
    torch.manual_seed(0)
    network = DiffusionUNet(2, 4, channels=[8], num_head_channels=[8], num_res_blocks=1, norm_num_groups=4)
    engine, batch, before = diffusion_engine(network), latents(rows=2), weights(network)
    first = diffusion.diffusion_validation_step(engine, batch, DDPM(), amp=False)
    second = diffusion.diffusion_validation_step(engine, batch, DDPM(), amp=False)
    assert torch.equal(first["pred"], second["pred"]) and torch.equal(first["label"], second["label"])
    assert torch.equal(weights(network), before)


def test_the_warm_up_takes_no_more_than_a_tenth_of_a_short_run():
    assert warmup(500, 150)(15) == 1.0
    assert warmup(500, 10**6)(250) == pytest.approx(0.505)
    assert warmup(500, 10**6)(0) == 0.01
    assert warmup(500, 3)(1) == 1.0
