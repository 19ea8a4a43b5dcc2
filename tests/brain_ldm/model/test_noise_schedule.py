"""The samplers follow the formulas of their papers, which are written out here by hand."""

import pytest
import torch

from brain_ldm_bundle.scripts.model.dpm_solver import make_sampler
from brain_ldm_bundle.scripts.model.noise_schedule import DDIM, DDPM

# The published schedule: square roots of beta evenly spaced.
BETA = torch.linspace(0.0015**0.5, 0.0205**0.5, 1000, dtype=torch.float64) ** 2
ALPHA_BAR = torch.cumprod(1 - BETA, dim=0)


def denoised_and_noise(output, x, t, prediction_type):
    """x0 and epsilon by x = sqrt(a) x0 + sqrt(1 - a) epsilon and v = sqrt(a) epsilon - sqrt(1 - a) x0."""
    signal, noise = ALPHA_BAR[t] ** 0.5, (1 - ALPHA_BAR[t]) ** 0.5
    if prediction_type == "v_prediction":
        return signal * x - noise * output, signal * output + noise * x
    return (x - noise * output) / signal, output


def seeded(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_fifty_steps_are_the_published_grid():
    assert make_sampler("ddim", 50).timesteps.tolist() == list(range(980, -1, -20))


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [4, 30, 50])
def test_ddim_follows_formula_12_of_its_paper(prediction_type, steps):
    """Song et al. 2021 with eta 0, on the grid (n - 1) s, ..., s, 0 with s = 1000 // n."""
    sampler = DDIM(prediction_type)
    sampler.set_timesteps(steps)
    stride = 1000 // steps
    x = expected = seeded((2, 3, 4, 5, 6))
    for i in reversed(range(steps)):
        denoised, noise = denoised_and_noise(torch.tanh(expected), expected, i * stride, prediction_type)
        before = ALPHA_BAR[(i - 1) * stride] if i else torch.tensor(1.0)
        expected = before**0.5 * denoised + (1 - before) ** 0.5 * noise
    for t in sampler.timesteps.tolist():
        x, _ = sampler.step(torch.tanh(x), t, x)
    torch.testing.assert_close(x, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_ddpm_step_draws_from_the_posterior(prediction_type):
    """Ho et al. 2020, equations 6 and 7, with the variance of the posterior."""
    sampler, t = DDPM(prediction_type), 400
    x, output = seeded((2, 3, 4, 5, 6), 1), seeded((2, 3, 4, 5, 6), 2)
    denoised, _ = denoised_and_noise(output, x, t, prediction_type)
    before, here = ALPHA_BAR[t - 1], ALPHA_BAR[t]
    mean = (before**0.5 * BETA[t] * denoised + (1 - BETA[t]) ** 0.5 * (1 - before) * x) / (1 - here)
    deviation = ((1 - before) / (1 - here) * BETA[t]) ** 0.5
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    found, _ = sampler.step(output, t, x, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(found, mean + deviation * noise, rtol=1e-4, atol=1e-5)


def test_the_last_ddpm_step_adds_no_noise():
    x, output = seeded((1, 3, 4, 5, 6), 1), seeded((1, 3, 4, 5, 6), 2)
    denoised, _ = denoised_and_noise(output, x, 0, "epsilon")
    found, _ = DDPM().step(output, 0, x, generator=[torch.Generator()])
    torch.testing.assert_close(found.double(), denoised, rtol=1e-4, atol=1e-5)


def test_a_row_gets_the_same_ddpm_noise_alone_and_in_a_batch():
    sampler, x, output = DDPM(), seeded((3, 2, 4, 5, 6), 1), seeded((3, 2, 4, 5, 6), 2)
    together, _ = sampler.step(output, 500, x, generator=[torch.Generator().manual_seed(seed) for seed in (5, 6, 7)])
    for row, seed in enumerate((5, 6, 7)):
        alone, _ = sampler.step(output[[row]], 500, x[[row]], generator=[torch.Generator().manual_seed(seed)])
        assert torch.equal(alone[0], together[row])


def test_rows_get_different_ddpm_noise():
    x = torch.zeros(2, 1, 4, 5, 6)
    found, _ = DDPM().step(x, 500, x, generator=[torch.Generator().manual_seed(seed) for seed in (5, 6)])
    assert not torch.isclose(found[0], found[1]).any()


def test_training_and_sampling_share_one_schedule():
    for sampler in (DDPM(), DDIM()):
        torch.testing.assert_close(sampler.alphas_cumprod.double(), ALPHA_BAR, rtol=1e-4, atol=1e-6)


# What is refused


@pytest.mark.parametrize("steps", [50, 999])
def test_ddpm_with_other_than_1000_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"takes all 1000 steps, got {steps}.*use the ddim sampler"):
        make_sampler("ddpm", steps)


def test_ddpm_with_1000_steps_visits_each():
    assert make_sampler("ddpm", 1000).timesteps.tolist() == list(range(999, -1, -1))


@pytest.mark.parametrize("steps", [350, 501, 800])
def test_a_number_of_steps_whose_grid_would_begin_half_way_is_refused(steps):
    """1000 // 501 is 1: the grid would be 500, 499, ..., 0, and noise would be taken for a half-finished image."""
    with pytest.raises(ValueError, match=f"{steps} steps of {1000 // steps} reach"):
        make_sampler("ddim", steps)


@pytest.mark.parametrize("steps", [0, -1])
def test_less_than_one_step_is_refused(steps):
    with pytest.raises(ValueError, match="at least 1"):
        make_sampler("ddim", steps)


def test_an_unknown_sampler_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"one of \['ddim', 'ddpm', 'dpm\+\+'\], got 'plms'"):
        make_sampler("plms", 50)
