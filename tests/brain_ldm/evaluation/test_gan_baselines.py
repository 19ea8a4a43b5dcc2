"""The two baselines use the losses of their papers, and their volumes depend only on weights and seed."""

import functools
import json
import math
from types import SimpleNamespace

import nibabel as nib
import pytest
import tiny
import torch
from brain_ldm.training.test_resume import assert_equal, chain, load
from monai.bundle import ConfigParser, run
from torch.distributions import Normal, kl_divergence

from brain_ldm_bundle.scripts.evaluation import gan_baselines as baselines
from brain_ldm_bundle.scripts.model.gan_networks import LSGAN, VAEGAN, VolumeDiscriminator, VolumeEncoder, VolumeGenerator
from brain_ldm_bundle.scripts.shared.weights import read_recipe

SIZE = (16, 24, 20)
SIZES = {
    "image_size": SIZE,
    "latent_size": 5,
    "generator_channels": [8, 4],
    "discriminator_channels": [4, 8],
    "norm_num_groups": 2,
}
VAEGAN_WEIGHTS = {"kl_weight": 0.01, "gamma": 3.0, "feature_level": 1}
KNOBS = {
    "spacing_mm": tiny.SPACING_MM,
    "use_device": "cpu",
    "num_workers": 0,
    "latent_size": 5,
    "generator_channels": [8, 4],
    "discriminator_channels": [4, 8],
    "groups": 2,
    "epochs": 1,
    "batch_size": 3,
    "panel_interval": 1000,
}
MODELS = {
    "lsgan": (LSGAN, baselines.lsgan_losses),
    "vaegan": (VAEGAN, functools.partial(baselines.vaegan_losses, **VAEGAN_WEIGHTS)),
}


class Fixed(torch.nn.Module):
    """Stands where a part of the network does, and answers what it was given, one answer per call."""

    latent_size = 2

    def __init__(self, *answers):
        super().__init__()
        self.answers = iter(answers)

    def forward(self, x):
        return next(self.answers)

    def hidden(self, x, level):
        return x.flatten(1)

    def judge(self, hidden, level):
        return next(self.answers)


def test_the_shapes_fit_a_grid_of_three_different_sides():
    generator = VolumeGenerator(SIZE, 5, [8, 4], 2)
    volumes = generator(torch.randn(3, 5))
    assert volumes.shape == (3, 1, *SIZE) and 0 <= volumes.min() < volumes.max() <= 1
    discriminator = VolumeDiscriminator(SIZE, [4, 8])
    assert discriminator(volumes).shape == (3, 1) and discriminator.hidden(volumes, 1).shape == (3, 4, 8, 12, 10)
    discriminator.eval()  # in training, each call improves the estimate of the spectral norm
    torch.testing.assert_close(discriminator.judge(discriminator.hidden(volumes, 1), 1), discriminator(volumes))
    mu, sigma = VolumeEncoder(SIZE, 5, [4, 8], 2)(volumes)
    assert mu.shape == sigma.shape == (3, 5) and (sigma > 0).all()


def test_a_size_that_the_levels_cannot_halve_is_refused():
    with pytest.raises(ValueError, match=r"image size \(16, 24, 18\): every side must be a multiple of 4"):
        VolumeGenerator((16, 24, 18), 5, [8, 4], 2)


def test_the_least_squares_losses_are_those_of_the_paper():
    """Mao et al. 2017, Eq. 9, with a = 0, b = c = 1."""
    logits = torch.tensor([[0.5], [2.0], [-1.0], [0.25]])  # two scans, two others
    network = SimpleNamespace(generator=Fixed(torch.zeros(2, 1, *SIZE)), discriminator=Fixed(logits))
    found = baselines.lsgan_losses(network, torch.zeros(2, 1, *SIZE))
    assert found["generator"].item() == pytest.approx(0.5 * (2.0**2 + 0.75**2) / 2)
    assert found["discriminator"].item() == pytest.approx(0.5 * (0.5**2 + 1.0**2) / 2 + 0.5 * (1.0**2 + 0.25**2) / 2)


def test_the_vaegan_losses_are_those_of_a_hand_calculation():
    """Larsen et al. 2016, Algorithm 1: two scans, their reconstructions, two samples of the prior."""
    mu, sigma = torch.tensor([[1.0, 0.0], [0.5, -2.0]]), torch.tensor([[1.0, 0.5], [2.0, 1.0]])
    logits = torch.tensor([[2.0], [0.0], [1.0], [-1.0], [0.5], [-3.0]])
    image = torch.full((2, 1, *SIZE), 0.75)
    generator = Fixed(torch.full((2, 1, *SIZE), 0.25), torch.zeros(2, 1, *SIZE))
    network = SimpleNamespace(encoder=Fixed((mu, sigma)), generator=generator, discriminator=Fixed(logits))
    found = baselines.vaegan_losses(network, image, **VAEGAN_WEIGHTS)
    kl = kl_divergence(Normal(mu, sigma), Normal(0.0, 1.0)).sum(dim=1).mean().item()
    reconstruction = 0.5 * 0.5**2
    real, reconstructed, sampled = ([1 / (1 + math.exp(-x)) for x in pair] for pair in ((2, 0), (1, -1), (0.5, -3)))

    def mean_log(probabilities):
        return sum(map(math.log, probabilities)) / 2

    deceived = -mean_log(reconstructed) - mean_log(sampled)
    told = -mean_log(real) - mean_log([1 - p for p in reconstructed]) - mean_log([1 - p for p in sampled])
    assert found["encoder"].item() == pytest.approx(0.01 * kl + reconstruction, rel=1e-4)
    assert found["generator"].item() == pytest.approx(3.0 * reconstruction + deceived, rel=1e-5)
    assert found["discriminator"].item() == pytest.approx(told, rel=1e-5)


def gradients(network, losses, parts, image):
    """Of each part alone, by torch.autograd.grad, with the same noise every time."""
    found = {}
    for name in parts:
        torch.manual_seed(3)
        parameters = list(getattr(network, name).parameters())
        found[name] = torch.autograd.grad(losses(network, image)[name], parameters, allow_unused=True)
    return found


@pytest.mark.parametrize("model", MODELS)
def test_each_part_descends_its_own_loss_and_no_other(model):
    torch.manual_seed(0)
    kind, losses = MODELS[model]
    network = kind(**SIZES).eval()  # with a spectral norm that stays as it is
    network.train = lambda mode=True: network
    parts = [name for name, _ in network.named_children()]
    image = torch.rand(2, 1, *SIZE)
    wanted = gradients(network, losses, parts, image)
    before = {name: [p.detach().clone() for p in getattr(network, name).parameters()] for name in parts}
    engine = SimpleNamespace(
        network=network,
        optimizer=torch.optim.SGD(baselines.parameter_groups(network, lr=0.1, discriminator_lr=0.01)),
        state=SimpleNamespace(device=torch.device("cpu")),
    )
    torch.manual_seed(3)
    baselines.adversarial_step(engine, {"image": image}, losses, grad_clip=1e9, amp=False)
    for name in parts:
        rate = 0.01 if name == "discriminator" else 0.1
        for parameter, old, gradient in zip(getattr(network, name).parameters(), before[name], wanted[name]):
            step = 0 if gradient is None else rate * gradient
            torch.testing.assert_close(parameter.detach(), old - step, rtol=1e-4, atol=1e-6)


def test_a_volume_depends_on_its_seed_alone():
    torch.manual_seed(0)
    generator = tiny.perturbed(VolumeGenerator(SIZE, 5, [8, 4], 2))
    sampler, device = baselines.VectorSampler(), torch.empty(0)
    three = sampler(device, generator, seeds=[7, 8, 9])
    assert torch.equal(sampler(device, generator, seeds=[9, 7]), three[[2, 0]])
    assert not torch.equal(three[0], three[1])


def test_an_unknown_model_and_no_volumes_are_refused():
    with pytest.raises(ValueError, match="model must be lsgan or vaegan, got 'wgan'"):
        baselines.make_network("wgan")
    for volumes in (0, -3, 2.5, "many"):
        with pytest.raises(ValueError, match="volumes must be a whole number of at least 1"):
            baselines.rows(volumes)


def test_weights_that_are_missing_or_of_the_other_model_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="lsgan.pt: no such weights file. Make it with: .* --model lsgan"):
        baselines.load_generator(tmp_path / "lsgan.pt", "lsgan")
    generator = VolumeGenerator(SIZE, 5, [8, 4], 2)
    generator.recipe = {"model": "vaegan", "spacing_mm": 8.0, "generator": {}}
    torch.save(generator.state_dict(), tmp_path / "lsgan.pt")
    with pytest.raises(ValueError, match="these are weights of vaegan, not of lsgan"):
        baselines.load_generator(tmp_path / "lsgan.pt", "lsgan")


def test_several_processes_are_refused(monkeypatch):
    from brain_ldm_bundle.scripts.shared.device import refuse_ranks

    refuse_ranks()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes, but this training runs in one"):
        refuse_ranks()


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    return tiny.write_dataset(tmp_path_factory.mktemp("blobs"))


@pytest.fixture
def baseline(bundle, tmp_path, dataset_dir):
    """Run a run id of baselines.json in a folder; the folder comes back."""

    def run_one(run_id, folder="", **settings):
        places = tiny.places(dataset_dir, tmp_path / folder)
        run(run_id, config_file="configs/baselines.json", **places | KNOBS | settings)
        return tmp_path / folder

    return run_one


def test_a_baseline_learns_from_the_training_scans_alone(bundle, dataset_dir, tmp_path):
    parser = ConfigParser(ConfigParser.load_config_file("configs/baselines.json"))
    parser.update(tiny.places(dataset_dir, tmp_path) | KNOBS | {"model": "lsgan"})
    learnt = parser.get_parsed_content("train#dataset").data
    assert [item["participant_id"] for item in learnt] == [f"sub-{number:04d}" for number in range(1, 7)]


@pytest.mark.parametrize("model", MODELS)
def test_a_baseline_trained_in_two_goes_equals_one_trained_in_one_and_draws_a_bids_derivative(baseline, model):
    one = baseline("training", "one", model=model, epochs=2)
    baseline("training", "two", model=model, epochs=1)
    two = baseline("training", "two", model=model, epochs=2)
    for name in (f"resume/{model}.pt", f"{model}.pt"):
        assert_equal(load(two / "models" / name), load(one / "models" / name))
    assert len(read_recipe(one / "models" / f"{model}.pt")["seen_voxels"]) == 6  # by which held-out scans are known
    kept, state = load(one / "models" / f"{model}.pt"), load(one / "models" / "resume" / f"{model}.pt")
    assert_equal(kept, state["ema"])  # not the generator of the last step
    (two / "models" / f"{model}.pt").unlink()
    baseline("training", "two", model=model, epochs=2)  # which are done
    assert_equal(load(two / "models" / f"{model}.pt"), kept)
    raw = {name: state["network"][f"generator.{name}"] for name in kept if name != "_extra_state"}
    assert any(not torch.equal(kept[name], values) for name, values in raw.items())

    made = baseline("generating", "one", model=model, volumes=3, sampling_batch_size=2, output_dir=str(one / "made"))
    volumes = sorted((one / "made").glob("sub-*/anat/*_T1w.nii.gz"))
    assert [volume.parts[-3] for volume in volumes] == [f"sub-syn000{number}" for number in (1, 2, 3)] and made == one
    image = nib.load(volumes[0])
    assert image.shape == (20, 28, 20) and 0 <= image.get_fdata().min() <= image.get_fdata().max() <= 1
    sidecar = json.loads((one / "made" / "sub-syn0001" / "anat" / "sub-syn0001_T1w.json").read_text())
    assert sidecar["Synthetic"] and sidecar["Model"] == model and sidecar["Covariates"] == {}
    assert (one / "made" / "participants.tsv").read_text() == "participant_id\nsub-syn0001\nsub-syn0002\nsub-syn0003\n"

    # What is made stays; more volumes are other ones; another batch gives the same.
    before = {volume: volume.stat().st_mtime_ns for volume in volumes}
    baseline("generating", "one", model=model, volumes=4, output_dir=str(one / "made"))
    assert {volume: volume.stat().st_mtime_ns for volume in volumes} == before
    baseline("generating", "one", model=model, volumes=3, sampling_batch_size=1, output_dir=str(one / "again"))
    for volume in volumes:
        assert (one / "again" / volume.relative_to(one / "made")).read_bytes() == volume.read_bytes()
    assert len({volume.read_bytes() for volume in (one / "made").rglob("*_T1w.nii.gz")}) == 4


def test_unknown_overrides_and_models_are_refused_before_any_work(baseline, tmp_path, monkeypatch):
    with pytest.raises(Exception) as error:
        baseline("training", model="wgan")
    assert "model is 'wgan'. Allowed: vaegan or lsgan" in chain(error)
    monkeypatch.setattr(
        "sys.argv", ["monai.bundle", "run", "training", "--config_file", "configs/baselines.json", "--gama", "3"]
    )
    with pytest.raises(Exception) as error:
        baseline("training")
    assert "no setting is called 'gama'" in chain(error) and "'gamma'" in chain(error)
    assert not (tmp_path / "models").exists()
