"""The path of Gaussian data is known: DPM-Solver++(2M) follows it with an error of second order, Euler steps of first."""

import pytest
import torch

from brain_ldm_bundle.scripts.model.dpm_solver import DPMSolver, make_sampler
from brain_ldm_bundle.scripts.model.noise_schedule import Flow, training_schedule

KINDS = ["epsilon", "v_prediction", "flow"]
MEAN = torch.tensor([0.3, -1.0, 0.0, 2.0], dtype=torch.float64).reshape(1, 4, 1, 1, 1)
SPREAD = torch.tensor([0.05, 0.3, 1.0, 2.0], dtype=torch.float64).reshape(1, 4, 1, 1, 1)
# The published schedule: square roots of beta evenly spaced.
KEPT = torch.cumprod(1 - torch.linspace(0.0015**0.5, 0.0205**0.5, 1000, dtype=torch.float64) ** 2, dim=0)


def levels(kind, t):
    """Factors of data and noise at a time step, by hand."""
    if kind == "flow":
        return 1 - t / 1000, t / 1000
    return float(KEPT[t] ** 0.5), float((1 - KEPT[t]) ** 0.5)


def exact_network(kind, x, t):
    """The best prediction for normally distributed data of MEAN and SPREAD."""
    data, noise = levels(kind, t)
    clean = MEAN + data * SPREAD**2 / (data**2 * SPREAD**2 + noise**2) * (x - data * MEAN)
    residue = (x - data * clean) / noise
    return {"epsilon": residue, "v_prediction": data * residue - noise * clean, "flow": clean - residue}[kind]


def exact_path(kind, x, first, t):
    """Where the probability flow ODE brings x of time step `first` until time step t, for the same data."""

    def spread(time):
        data, noise = levels(kind, time)
        return (data**2 * SPREAD**2 + noise**2) ** 0.5

    return levels(kind, t)[0] * MEAN + spread(t) / spread(first) * (x - levels(kind, first)[0] * MEAN)


def seeded(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def error_before_the_last_step(kind, steps):
    """Largest distance to the exact path at the last time step, whatever the number of steps."""
    run = make_sampler("dpm++", steps, kind).starting_at(1.0)
    first, last = int(run.timesteps[0]), int(run.timesteps[-1])
    start = x = seeded((2, 4, 2, 3, 4))
    for t in run.timesteps.tolist()[:-1]:
        x, _ = run.step(exact_network(kind, x, t), t, x)
    return (x - exact_path(kind, start, first, last)).abs().max().item()


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_falls_as_the_square_of_the_number_of_steps(kind):
    coarse, middle, fine = (error_before_the_last_step(kind, steps) for steps in (16, 32, 64))
    assert 3.4 < coarse / middle < 6 and 3.4 < middle / fine < 6, (coarse, middle, fine)
    assert fine < 0.005


@pytest.mark.parametrize("kind", KINDS)
def test_fifteen_steps_are_nearer_to_the_exact_path_than_fifty_of_ddim(kind):
    errors = {}
    for name, steps in (("dpm++", 15), ("ddim", 50)):
        run = make_sampler(name, steps, kind).starting_at(1.0)
        start = x = seeded((2, 4, 2, 3, 4))
        for t in run.timesteps.tolist():
            x, _ = run.step(exact_network(kind, x, t), t, x)
        end = MEAN + SPREAD * (start - levels(kind, 999)[0] * MEAN)  # at time step 999, the spread of all data is about 1
        errors[name] = (x - end).square().mean().sqrt().item()
    assert errors["dpm++"] < errors["ddim"], errors


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("steps", [2, 3, 10, 24, 50, 250, 960])
def test_time_steps_are_those_of_the_training_and_fall(kind, steps):
    times = make_sampler("dpm++", steps, kind).timesteps
    assert len(times) == steps and times.dtype == torch.int64 and (times.diff() < 0).all()
    assert times[0] == (1000 if kind == "flow" else 999)
    assert times[-1] == (37 if kind == "flow" else 0)  # as much noise as the published schedule has at 0


@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_even_in_the_logarithm_of_data_over_noise(kind):
    times = make_sampler("dpm++", 12, kind).timesteps.tolist()[1:]  # a flow model starts at pure noise
    ratios = torch.tensor([levels(kind, t) for t in times])
    lengths = (ratios[:, 0] / ratios[:, 1]).log().diff()
    assert lengths.std() < 0.1 * lengths.mean()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strength", [0.01, 0.02, 0.3, 0.6, 0.99])
def test_an_edit_begins_at_its_share_of_the_time_and_ends_on_the_exact_path(kind, strength):
    run = make_sampler("dpm++", 40, kind).starting_at(strength)
    first, last = int(run.timesteps[0]), int(run.timesteps[-1])
    assert first == round(strength * (1000 if kind == "flow" else 999))
    start, noise = MEAN + SPREAD * seeded((2, 4, 2, 3, 4)), seeded((2, 4, 2, 3, 4), 1)
    x = noisy = run.add_noise(start, noise, torch.tensor([first, first]))
    data, amount = levels(kind, first)
    torch.testing.assert_close(noisy, data * start + amount * noise, rtol=1e-5, atol=1e-5)
    for t in run.timesteps.tolist()[:-1]:
        x, _ = run.step(exact_network(kind, x, t), t, x)
    torch.testing.assert_close(x, exact_path(kind, noisy, first, last), rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["dpm++", "ddim", "ddpm"])
def test_an_edit_of_strength_0_takes_no_step_and_a_short_one_few(name):
    """With ddim, an edit of 3 steps and strength 0.1 was the image as it was."""
    sampler = make_sampler(name, 1000 if name == "ddpm" else 20, "v_prediction")
    lengths = [len(sampler.starting_at(strength).timesteps) for strength in (0, 0.001, 0.1, 0.5, 1)]
    assert lengths[0] == 0 and lengths[1] >= 1 and lengths[-1] == len(sampler.timesteps) and lengths == sorted(lengths)


def test_two_runs_of_one_sampler_do_not_share_their_history():
    sampler = make_sampler("dpm++", 10)
    alone, x = sampler.starting_at(1.0), seeded((1, 4, 2, 3, 4))
    expected = y = z = x
    for t in sampler.timesteps.tolist():
        expected, _ = alone.step(exact_network("epsilon", expected, t), t, expected)
    first, second = sampler.starting_at(1.0), sampler.starting_at(1.0)
    for t in sampler.timesteps.tolist():
        y, _ = first.step(exact_network("epsilon", y, t), t, y)
        z, _ = second.step(exact_network("epsilon", -z, t), t, z)
    assert torch.equal(y, expected)


# Rectified flow


def test_noise_and_target_of_the_flow_are_the_straight_line():
    flow, data, noise = training_schedule("flow"), seeded((3, 4, 2, 3, 4)), seeded((3, 4, 2, 3, 4), 1)
    times = torch.tensor([1, 250, 1000])
    share = (times / 1000).reshape(3, 1, 1, 1, 1)
    noisy = flow.add_noise(data, noise, times)
    torch.testing.assert_close(noisy, (1 - share) * data + share * noise, rtol=1e-6, atol=1e-6)
    target = flow.target(data, noise, times)
    torch.testing.assert_close(noisy + share * target, data, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("steps", [10, 30, 64])
def test_euler_steps_of_the_flow_end_at_the_data_of_a_straight_line(steps):
    """30 and 64 do not divide 1000: MONAI's steps of 1 / n would miss the end."""
    flow = make_sampler("ddim", steps, "flow")
    data, x = seeded((1, 4, 2, 3, 4)), seeded((1, 4, 2, 3, 4), 1)
    velocity = data - x
    for t in flow.timesteps.tolist():
        x, _ = flow.step(velocity, t, x)
    torch.testing.assert_close(x, data, rtol=0, atol=1e-9)


def test_euler_steps_of_the_flow_approach_the_exact_path_of_gaussian_data():
    errors = []
    for steps in (50, 100, 200):
        flow, start = make_sampler("ddim", steps, "flow"), seeded((1, 4, 2, 3, 4))
        x = start
        for t in flow.timesteps.tolist():
            x, _ = flow.step(exact_network("flow", x, t), t, x)
        errors.append((x - exact_path("flow", start, 1000, 0)).abs().max().item())
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.4) and errors[1] / errors[2] == pytest.approx(2, abs=0.4), errors


def test_the_flow_starts_at_a_time_that_its_training_visits():
    flow = make_sampler("ddim", 10, "flow")
    assert flow.timesteps[0] == flow.first_time + flow.num_train_timesteps - 1 == 1000


# What is refused


def test_ddpm_of_a_flow_model_is_refused():
    with pytest.raises(ValueError, match=r"a flow model cannot. Use --sampler_name dpm\+\+ or ddim"):
        make_sampler("ddpm", 1000, "flow")


def test_an_unknown_prediction_type_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="one of epsilon, v_prediction, flow, got 'sample'"):
        make_sampler("ddim", 50, "sample")


def test_more_steps_than_time_steps_are_refused():
    with pytest.raises(ValueError, match="at most 964 steps, got 965"):
        make_sampler("dpm++", 965, "flow")
    assert len(make_sampler("dpm++", 1000).timesteps) == 1000


def test_the_classes_behind_the_names():
    assert isinstance(make_sampler("ddim", 10, "flow"), Flow)
    assert isinstance(make_sampler("dpm++", 10, "flow"), DPMSolver)
