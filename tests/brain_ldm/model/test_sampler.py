"""A requested row gives the same volume in any batch. Guidance and scaling follow their formulas."""

from contextlib import nullcontext

import pytest
import tiny
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from brain_ldm_bundle.scripts.data.covariates import NULL
from brain_ldm_bundle.scripts.model.dpm_solver import make_sampler
from brain_ldm_bundle.scripts.model.exact_rewrites import rewrite
from brain_ldm_bundle.scripts.model.sampler import LatentSampler, Reconstructor, row_seed

IMAGE_SIZE = (8, 12, 4)
CONTEXT = torch.tensor([[[0.1, 0.9]], [[0.5, 0.2]], [[1.0, 0.0]]])
SEEDS = [11, 12, 13]


def ddpm():
    """The end of the chain: a thousand steps take minutes."""
    scheduler = make_sampler("ddpm", 1000)
    scheduler.timesteps = scheduler.timesteps[-6:]
    return scheduler


def sampler(scheduler=None, **settings):
    return LatentSampler(tiny.autoencoder(), scheduler or make_sampler("ddim", 5), IMAGE_SIZE, **settings)


def unet(**recipe):
    network = tiny.unet()
    network.recipe = recipe
    return network


def without_steps(**settings):
    """Decodes the noise as it is."""
    scheduler = make_sampler("ddim", 5)
    scheduler.timesteps = scheduler.timesteps[:0]
    return sampler(scheduler, **settings)


def relative_difference(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


# Precision


@pytest.mark.parametrize("rewritten", [False, True], ids=["autocast", "weights"])
def test_bfloat16_changes_a_volume_by_rounding_only(rewritten):
    wanted = sampler()(CONTEXT, unet(), SEEDS)
    half = sampler(amp=True)
    network = unet()
    if rewritten:
        network = rewrite(network, bfloat16=True)
        half.autoencoder = rewrite(half.autoencoder, bfloat16=True)
    found = half(CONTEXT, network, SEEDS)
    assert found.dtype == torch.float32
    assert 1e-5 < ((found - wanted).norm() / wanted.norm()).item() < 0.02


class NoFloat64(TorchDispatchMode):
    """Refuse float64 on the device meta, which stands for a GPU of Apple."""

    def __torch_dispatch__(self, function, types, arguments=(), settings=None):
        answer = function(*arguments, **settings or {})
        for tensor in answer if isinstance(answer, (tuple, list)) else [answer]:
            assert not (isinstance(tensor, torch.Tensor) and tensor.is_meta and tensor.dtype == torch.float64), function
        return answer


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_sampling_uses_no_float64_on_the_device(name):
    """GPUs of Apple have none. Steps of ddpm are computed on the CPU."""
    ours = sampler(make_sampler(name, 3))
    ours.autoencoder.to("meta")
    ours.autocast = lambda *_: nullcontext()  # there is no autocast on meta
    with NoFloat64():
        assert ours(CONTEXT.to("meta"), unet().to("meta"), SEEDS).is_meta
        with pytest.raises(AssertionError):
            CONTEXT.to("meta").double()


# One row, one volume


def dpm_solver():
    return make_sampler("dpm++", 4)


@pytest.mark.parametrize("scheduler", [None, ddpm, dpm_solver], ids=["ddim", "ddpm", "dpm++"])
def test_a_row_gives_the_same_volume_in_any_batch_and_order(scheduler):
    scheduler = scheduler() if scheduler else None
    together = sampler(scheduler)(CONTEXT, unet(), SEEDS)
    assert together.shape == (3, 1, *IMAGE_SIZE)
    order = [2, 0, 1]
    shuffled = sampler(scheduler)(CONTEXT[order], unet(), [SEEDS[i] for i in order])
    for position, row in enumerate(order):
        alone = sampler(scheduler)(CONTEXT[[row]], unet(), [SEEDS[row]])
        assert relative_difference(alone[0], together[row]) < 1e-4
        assert relative_difference(shuffled[position], together[row]) < 1e-4


def test_guided_rows_do_not_depend_on_the_batch_either():
    network = unet(condition_dropout=0.1)
    together = sampler(guidance_scale=3.0)(CONTEXT, network, SEEDS)
    alone = sampler(guidance_scale=3.0)(CONTEXT[[1]], network, SEEDS[1:2])
    assert relative_difference(alone[0], together[1]) < 1e-4


def test_seed_and_covariates_both_change_the_volume():
    volumes = sampler()(CONTEXT[[0, 0, 1]], unet(), [11, 12, 11])
    assert relative_difference(volumes[1], volumes[0]) > 1e-2
    assert relative_difference(volumes[2], volumes[0]) > 1e-4


def test_the_global_generator_neither_changes_a_volume_nor_is_changed():
    torch.manual_seed(1)
    first, state = sampler(ddpm())(CONTEXT, unet(), SEEDS), torch.get_rng_state()
    torch.manual_seed(2)
    tiny_rng = torch.get_rng_state()
    networks = sampler(ddpm()), unet()  # building them seeds the global generator
    torch.set_rng_state(tiny_rng)
    assert torch.equal(networks[0](CONTEXT, networks[1], SEEDS), first)
    assert torch.equal(torch.get_rng_state(), tiny_rng) and not torch.equal(state, tiny_rng)


def test_a_rows_seed_is_fixed_for_all_time():
    """Cohorts that were made before would change otherwise."""
    assert row_seed(0, "sub-0001") == 28673793796841598


def test_rows_and_base_seeds_give_different_seeds():
    seeds = {row_seed(base, f"sub-{row}") for base in range(20) for row in range(50)}
    assert len(seeds) == 1000


# The formulas


def test_guidance_moves_from_the_unconditional_prediction_by_its_scale():
    network, latent = unet(condition_dropout=0.1), torch.randn(3, 3, 4, 6, 2)
    timesteps = torch.full((3,), 600)
    with torch.inference_mode():
        conditional = network(latent, timesteps, CONTEXT)
        unconditional = network(latent, timesteps, torch.full_like(CONTEXT, NULL))
        found = sampler(guidance_scale=2.5)._predict(network, latent, 600, CONTEXT)
    torch.testing.assert_close(found, unconditional + 2.5 * (conditional - unconditional), rtol=1e-4, atol=1e-4)
    assert relative_difference(found, conditional) > 1e-3


def test_latents_are_divided_by_the_scale_factor_before_they_are_decoded():
    network = unet()
    network.scale_factor.fill_(0.25)
    noise = torch.randn((1, 3, 4, 6, 2), generator=torch.Generator().manual_seed(11))
    found = without_steps()(CONTEXT[:1], network, [11])
    with torch.inference_mode():
        torch.testing.assert_close(found, tiny.autoencoder().decode(noise / 0.25))


@pytest.mark.parametrize("name", ["ddim", "dpm++"])
def test_each_prediction_type_is_sampled_by_its_own_formula(name):
    volumes = [
        sampler(make_sampler(name, 5, kind))(CONTEXT[:1], unet(prediction_type=kind), [11])
        for kind in ("epsilon", "v_prediction", "flow")
    ]
    for i in range(3):
        assert volumes[i].isfinite().all() and relative_difference(volumes[i - 1], volumes[i]) > 1e-2


def test_weights_without_a_recipe_predict_the_noise():
    assert torch.equal(sampler()(CONTEXT[:1], unet(), [11]), sampler()(CONTEXT[:1], unet(prediction_type="epsilon"), [11]))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "flow"])
def test_both_samplers_approach_the_same_volume(kind):
    """With more steps the two formulas must agree, because both solve the same equation."""
    network = unet(prediction_type=kind)

    def difference(steps):
        volumes = [sampler(make_sampler(name, steps, kind))(CONTEXT[:1], network, [11]) for name in ("ddim", "dpm++")]
        return relative_difference(*volumes)

    assert difference(50) < 0.5 * difference(5)


def test_guidance_acts_on_dpm_solver_as_well():
    scheduler = make_sampler("dpm++", 4)
    network = unet(condition_dropout=0.1)
    plain, strong = (sampler(scheduler, guidance_scale=scale)(CONTEXT[:1], network, [11]) for scale in (1.0, 3.0))
    assert relative_difference(strong, plain) > 1e-4


def test_bfloat16_stays_near_float32():
    full, half = (sampler(amp=amp)(CONTEXT, unet(), SEEDS) for amp in (False, True))
    assert half.dtype == torch.float32
    assert 0 < relative_difference(half, full) < 0.1


def test_a_reconstruction_is_the_decoded_mean_and_the_same_every_time():
    autoencoder, image = tiny.autoencoder(), torch.rand(2, 1, *IMAGE_SIZE)
    with torch.inference_mode():
        expected = autoencoder.decode(autoencoder.encode(image)[0])
        assert torch.equal(Reconstructor()(image, autoencoder), expected)


# What is refused


@pytest.mark.parametrize("recipe", [{}, {"condition_dropout": 0.0}], ids=["published", "dropout 0"])
def test_guidance_of_a_model_without_condition_dropout_is_refused(recipe):
    with pytest.raises(ValueError, match=r"guidance_scale 2\.0: this model was trained without condition dropout"):
        sampler(guidance_scale=2.0)(CONTEXT, unet(**recipe), SEEDS)


def test_a_sampler_for_another_prediction_type_is_refused():
    with pytest.raises(ValueError, match="the sampler is for epsilon, but the network predicts flow"):
        sampler()(CONTEXT, unet(prediction_type="flow"), SEEDS)


def test_an_image_size_that_the_autoencoder_cannot_make_is_refused():
    with pytest.raises(ValueError, match=r"\(8, 11, 4\): every side must be a multiple of 2"):
        LatentSampler(tiny.autoencoder(), make_sampler("ddim", 5), (8, 11, 4))
