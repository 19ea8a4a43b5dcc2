"""An inversion walks the steps of the sampler backwards. For Gaussian data, the latents of an edit are known."""

import pytest
import tiny
import torch

from brain_ldm_bundle.scripts.data.covariates import NULL
from brain_ldm_bundle.scripts.model import sampler as sampler_module
from brain_ldm_bundle.scripts.model.dpm_solver import make_sampler
from brain_ldm_bundle.scripts.model.noise_schedule import levels
from brain_ldm_bundle.scripts.model.sampler import LatentSampler

KINDS = ["epsilon", "v_prediction", "flow"]
SHAPE = (3, 4, 6, 2)
SPREAD = torch.tensor([0.3, 1.0, 2.0]).reshape(1, 3, 1, 1, 1)
OWN, OTHER = torch.tensor([[[0.25]]]), torch.tensor([[[1.0]]])  # covariates


class Same(torch.nn.Module):
    """In place of an autoencoder: a latent is its own volume."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def latent_shape(self, image_size):
        return SHAPE

    def decode(self, latent):
        return latent

    volumes = decode


class OfGaussianData(Same):
    """The best prediction for latents that are normally distributed around the covariate, or around 0 if it is withheld."""

    scale_factor = 1.0

    def __init__(self, kind):
        super().__init__()
        self.recipe, self.levels = {"prediction_type": kind, "condition_dropout": 0.1}, levels(kind)

    def forward(self, x, timesteps, context):
        data, noise = (level[timesteps].float().reshape(-1, 1, 1, 1, 1) for level in self.levels)
        mean = torch.where(context == NULL, 0.0, context)[..., None, None]
        clean = mean + data * SPREAD**2 / (data**2 * SPREAD**2 + noise**2) * (x - data * mean)
        residue = (x - data * clean) / noise
        kind = self.recipe["prediction_type"]
        return {"epsilon": residue, "v_prediction": data * residue - noise * clean, "flow": clean - residue}[kind]


def latents(rows=1):
    return 0.25 + SPREAD * torch.randn((rows, *SHAPE), generator=torch.Generator().manual_seed(4))


def sampler(kind, steps, name="ddim", **settings):
    return LatentSampler(Same(), make_sampler(name, steps, kind), (8, 12, 4), **settings)


def walked(kind, steps, there=OWN, back=OWN, strength=1.0, **settings):
    """The latents after an inversion and the way back."""
    return sampler(kind, steps, **settings)(back, OfGaussianData(kind), [0], latents(), strength, source=there)


def error(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("guidance", [1.0, 2.5], ids=["plain", "guided"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_way_back_with_the_same_covariates_ends_at_the_latents(kind, guidance):
    errors = [error(walked(kind, steps, guidance_scale=guidance), latents()) for steps in (25, 100)]
    assert errors[1] < 0.01 and errors[1] < errors[0] / 4


@pytest.mark.parametrize("kind", KINDS)
def test_more_rounds_return_to_the_latents_with_few_steps(kind, monkeypatch):
    errors = []
    for rounds in (1, 3, 30):
        monkeypatch.setattr(sampler_module, "ROUNDS", rounds)
        errors.append(error(walked(kind, 10), latents()))
    assert errors[0] > 2 * errors[1] and errors[2] < 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_other_covariates_move_the_latents_as_the_exact_counterfactual(kind):
    """The equation of the path keeps (x - data * mean) / spread, and guidance is off."""
    data, noise = (float(level[-1]) for level in levels(kind))
    spread = (data**2 * SPREAD**2 + noise**2) ** 0.5
    moved = 0.75 * (1 - data * SPREAD / spread)  # 0.75 but for what is left of the mean in pure noise
    assert error(walked(kind, 200, back=OTHER) - latents(), moved.expand(1, *SHAPE)) < 0.03


@pytest.mark.parametrize("kind", KINDS)
def test_a_reverse_step_undoes_a_step_if_the_prediction_is_known(kind):
    scheduler, (before, output) = make_sampler("ddim", 50, kind), torch.randn(2, 1, *SHAPE)
    for t in scheduler.timesteps.tolist():
        after, _ = scheduler.step(output, t, before)
        torch.testing.assert_close(scheduler.reverse_step(lambda latents: output, t, after, 1), before, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("strength", "expected"), [(1.0, [8, 6, 4, 2, 0]), (0.4, [2, 0]), (0.0, [])])
def test_the_steps_are_walked_in_reverse_order_and_with_the_covariates_of_the_image(strength, expected):
    ours, seen = sampler("epsilon", 5), []
    predict = ours._predict

    def noted(network, latent, t, context):
        seen.append((t, context.item()))
        return predict(network, latent, t, context)

    ours._predict = noted
    found = ours(OTHER, OfGaussianData("epsilon"), [0], latents(), strength, source=OWN)
    there = [(100 * t, 0.25) for t in reversed(expected) for _ in range(sampler_module.ROUNDS)]
    assert seen == there + [(100 * t, 1.0) for t in expected]
    assert strength > 0 or torch.equal(found, latents())


def test_a_row_is_inverted_as_in_any_other_batch():
    network = tiny.unet()
    network.recipe = {"condition_dropout": 0.1}
    ours = LatentSampler(Same(), make_sampler("ddim", 5), (8, 12, 4), guidance_scale=2.0)
    start, there = latents(3), torch.tensor([[[0.1, 0.9]], [[0.5, 0.2]], [[1.0, 0.0]]])
    together = ours(there.flip(0), network, [1, 2, 3], start, source=there)
    alone = ours(there[:1], network, [3], start[2:], source=there[2:])
    assert error(alone[0], together[2]) < 1e-4
    assert torch.equal(ours(there[:1], network, [9], start[2:], source=there[2:]), alone)  # nothing is random


@pytest.mark.parametrize("name", ["dpm++", "ddpm"])
def test_samplers_with_a_memory_or_with_noise_are_refused(name):
    with pytest.raises(ValueError, match="cannot be walked backwards. Use the sampler ddim"):
        walked("epsilon", 1000 if name == "ddpm" else 5, name=name)
