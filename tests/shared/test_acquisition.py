"""Noise and bias fields are measured as they were planted, and volumes get what was measured, each from its own seed."""

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from brain_ldm_bundle.scripts.shared import acquisition
from brain_ldm_bundle.scripts.shared.recipe import encode
from brain_ldm_bundle.scripts.shared.weights import add_to_recipe, read_recipe, read_state

SHAPE = (40, 56, 46)
CORRELATION = [0.0, 0.3, 0.5]  # each axis has its own, so that swapped axes show
COUNT = len(acquisition.POWERS)
PLANTED = {
    "scans": 6,
    "noise": 0.03,
    "noise_spread": 0.006,
    "background_ratio": 0.6,
    "background_intensity": 0.06,
    "neighbour_correlation": CORRELATION,
    "bias_mean": [0.1 * (powers == (0, 1, 0)) for powers in acquisition.POWERS],
    "bias_factor": (0.04 * np.eye(COUNT)).tolist(),
}
SEEDS = range(6)


def head(seed: int = 0, background: float = 0.06) -> torch.Tensor:
    """White matter with texture around a dark centre, grey matter, and air; no two sides are alike."""
    place = np.indices(SHAPE) - np.array(SHAPE).reshape(3, 1, 1, 1) / 2 + 0.5
    radius = np.sqrt(sum((place[axis] / (0.42 * SHAPE[axis])) ** 2 for axis in range(3)))
    values = np.select([radius < 0.3, radius < 0.85, radius < 1], [0.1, 0.75, 0.45], background)
    texture = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 1.5)
    values = ndimage.gaussian_filter(values + 0.01 * texture / texture.std() * (radius < 1), 0.6)
    return torch.from_numpy(values).float()


@pytest.fixture(scope="module")
def planted():
    """Scans with drawn noise and bias, the volumes without, and what was drawn."""
    drawn = [acquisition.draw(PLANTED, seed) for seed in SEEDS]
    volumes = [head(seed) for seed in SEEDS]
    return [acquisition.add(volume, one) for volume, one in zip(volumes, drawn)], volumes, drawn


@pytest.fixture(scope="module")
def measured(planted):
    return acquisition.measure((scan, volume, None) for scan, volume in zip(*planted[:2]))


def test_planted_noise_is_measured(measured, planted):
    levels = [one["NoiseStandardDeviation"] for one in planted[2]]
    assert measured["scans"] == len(levels)
    assert measured["noise"] == pytest.approx(np.mean(levels), rel=0.15)
    assert measured["noise_spread"] == pytest.approx(np.std(levels, ddof=1), rel=0.3)
    assert measured["background_ratio"] == pytest.approx(0.6, abs=0.09)
    assert measured["neighbour_correlation"] == pytest.approx(CORRELATION, abs=0.09)
    assert measured["background_intensity"] == pytest.approx(0.06, abs=0.002)


def test_planted_bias_fields_are_measured(planted, measured):
    for scan, volume, drawn in zip(*planted):
        found = acquisition.measure([(scan, volume, None)])["bias_mean"]
        fields = [
            acquisition._log_field(field, SHAPE, None)[volume > 0.3] for field in (found, drawn["LogBiasFieldCoefficients"])
        ]
        found, drawn = (field - field.mean() for field in fields)
        assert found.std().item() == pytest.approx(drawn.std().item(), rel=0.15)
        assert (found - drawn).std() < 0.3 * drawn.std()
    own = np.array([one["LogBiasFieldCoefficients"] for one in planted[2]])
    means = [acquisition._log_field(field, SHAPE, None)[volume > 0.3] for field in (measured["bias_mean"], own.mean(axis=0))]
    assert torch.corrcoef(torch.stack(means))[0, 1] > 0.95
    assert means[0].std().item() == pytest.approx(means[1].std().item(), rel=0.15)
    factor = np.array(measured["bias_factor"])
    assert np.trace(factor.T @ factor) == pytest.approx(np.trace(np.cov(own, rowvar=False)), rel=0.3)


def test_a_volume_gets_the_level_that_was_drawn():
    drawn = acquisition.draw(PLANTED | {"bias_mean": [0.0] * COUNT, "bias_factor": []}, 5)
    volume = torch.full(SHAPE, 0.6)
    noise = acquisition.add(volume, drawn) - volume
    assert noise.std().item() == pytest.approx(drawn["NoiseStandardDeviation"], rel=0.03)
    for axis, wanted in enumerate(CORRELATION):
        first = noise.movedim(axis, 0)
        assert (first[1:] * first[:-1]).mean() / noise.var() == pytest.approx(wanted, abs=0.03)
    dark = torch.full(SHAPE, PLANTED["background_intensity"] + 0.2)
    dark[:20] = PLANTED["background_intensity"]
    noise = (acquisition.add(dark, drawn) - dark).double()
    assert noise[20:].std().item() == pytest.approx(drawn["NoiseStandardDeviation"], rel=0.05)
    assert noise[:20].abs().max() < noise[20:].abs().max()


def test_levels_over_many_seeds_have_the_measured_mean_and_spread():
    levels = [acquisition.draw(PLANTED, seed)["NoiseStandardDeviation"] for seed in range(500)]
    assert np.mean(levels) == pytest.approx(0.03, rel=0.03) and np.std(levels) == pytest.approx(0.006, rel=0.1)
    fields = [acquisition.draw(PLANTED, seed)["LogBiasFieldCoefficients"] for seed in range(500)]
    assert np.mean(fields, axis=0) == pytest.approx(np.array(PLANTED["bias_mean"]), abs=0.008)
    assert np.std(fields, axis=0) == pytest.approx(np.full(COUNT, 0.04), rel=0.15)


def test_the_same_seed_gives_the_same_volume_and_the_sidecar_describes_it():
    volume = head()
    wanted = acquisition.add(volume, acquisition.draw(PLANTED, 3))
    sidecar = json.loads(json.dumps(acquisition.draw(PLANTED, 3)))
    assert torch.equal(acquisition.add(volume, sidecar), wanted)
    other = acquisition.draw(PLANTED, 4)
    assert other["NoiseStandardDeviation"] != sidecar["NoiseStandardDeviation"]
    noise = [acquisition.add(volume, sidecar | {"Seed": seed}) - volume for seed in (3, 4)]
    assert not torch.allclose(*noise)


def test_noise_is_not_the_noise_of_the_sampler():
    """The sampler draws its first latent from the same seed: a volume must not show it again."""
    sampled = torch.randn((1, 1, *SHAPE), generator=torch.Generator().manual_seed(3)).flatten()
    noise = acquisition._correlated_noise(SHAPE, 3, [0, 0, 0]).flatten()
    assert abs(torch.corrcoef(torch.stack([sampled, noise]))[0, 1]) < 0.02


def test_nothing_is_added_where_the_volumes_lack_nothing():
    """A skull-stripped scan is 0 outside of the brain, and must stay 0."""
    volumes = [torch.where(head(seed) > 0.3, head(seed), 0.0) for seed in SEEDS[:2]]
    inside = volumes[0] > 0
    measured = acquisition.measure((volume, volume, inside) for volume in volumes)
    assert measured["noise"] == measured["noise_spread"] == 0 and not np.any(measured["bias_factor"])
    assert torch.allclose(acquisition.add(volumes[0], acquisition.draw(measured, 0), inside), volumes[0], atol=1e-6)
    noisy = [acquisition.add(volume, acquisition.draw(PLANTED, seed)) * inside for seed, volume in zip(SEEDS, volumes)]
    stripped = acquisition.measure((scan, volume, inside) for scan, volume in zip(noisy, volumes))
    assert stripped["noise"] > 0.01 and stripped["background_ratio"] == 0  # without air, the noise counts as white
    made = acquisition.add(volumes[0], acquisition.draw(stripped, 0), inside)
    assert not made[~inside].any() and (made - volumes[0])[inside].std() > 0.01


def test_anatomy_that_the_volumes_lack_is_not_taken_for_noise():
    """With large voxels no tissue is flat. At 4 mm, ten times the noise of the scans was measured."""
    drawn = acquisition.draw(PLANTED | {"noise": 0.02, "noise_spread": 0.0, "neighbour_correlation": [0, 0, 0]}, 1)
    anatomy = 0.1 * torch.randn(SHAPE, generator=torch.Generator().manual_seed(0)) * (head() > 0.3)
    measured = acquisition.measure([(acquisition.add(head() + anatomy, drawn), head(), None)])
    assert measured["noise"] == pytest.approx(1.5 / 0.655 * drawn["NoiseStandardDeviationInBackground"], rel=0.15)


def test_a_field_belongs_to_the_head_wherever_the_head_lies_in_its_volume():
    volume, drawn = head(), acquisition.draw(PLANTED | {"noise": 0.0, "noise_spread": 0.0}, 1)
    inside = volume > 0.3
    pad = torch.nn.functional.pad
    wide = acquisition.add(pad(volume, (3, 5, 0, 9, 7, 1)), drawn, pad(inside, (3, 5, 0, 9, 7, 1)))
    assert torch.allclose(wide[7:-1, 0:-9, 3:-5], acquisition.add(volume, drawn, inside), atol=1e-6)
    assert not torch.allclose(acquisition.add(volume, drawn), acquisition.add(volume, drawn, inside), atol=1e-3)


def test_a_single_tiny_or_constant_scan_gives_a_sound_measurement():
    for scan, volume in [(head(), torch.full(SHAPE, 0.4)), (torch.rand(4, 6, 5), torch.zeros(4, 6, 5))]:
        measured = acquisition.measure([(scan, volume, None)])
        assert acquisition.is_measurement(json.loads(json.dumps(measured)))
        assert acquisition.add(volume, acquisition.draw(measured, 0)).isfinite().all()


def test_acquisition_without_a_measurement_is_refused_by_name():
    assert acquisition.measured_in({"acquisition": PLANTED}, True, "model.pt") == PLANTED
    assert acquisition.measured_in({"acquisition": PLANTED}, False, "model.pt") is None
    assert acquisition.draw(None, 3) is None and torch.equal(acquisition.add(head(), None), head())
    with pytest.raises(ValueError, match="acquisition is True, but model.pt holds no measured .* measuring_acquisition"):
        acquisition.measured_in({"spacing_mm": 1}, True, "model.pt")


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise": float("nan")},
        {"noise": "0.1"},
        {"noise_spread": -0.1},
        {"background_ratio": None},
        {"neighbour_correlation": [0.1, 0.1]},
        {"neighbour_correlation": 0.1},
        {"bias_mean": [0.0] * (COUNT - 1)},
        {"bias_mean": ["0"] * COUNT},
        {"bias_factor": [[0.0]]},
        {"bias_factor": 3},
    ],
    ids=str,
)
def test_a_damaged_measurement_is_refused(tmp_path, wrong):
    torch.save({"weight": torch.ones(2), "_extra_state": encode({"acquisition": PLANTED | wrong})}, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="model.pt: 'acquisition' in the recipe of the weights must be a measured noise"):
        read_recipe(tmp_path / "model.pt")


def test_the_recipe_gets_an_entry_and_the_weights_stay(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"weight": torch.ones(2), "_extra_state": encode({"spacing_mm": 2.0, "acquisition": PLANTED})}, path)
    add_to_recipe(path, {"acquisition": PLANTED | {"noise": 0.01}})
    assert read_recipe(path) == {"spacing_mm": 2.0, "acquisition": PLANTED | {"noise": 0.01}}
    assert torch.equal(read_state(path)["weight"], torch.ones(2)) and len(list(tmp_path.iterdir())) == 1
