"""The brain LDM reproduces tensors of the published design, in the published layout of weights.

LDM_REFERENCE names the file. Every size is read from it, so that another file of the same format works, too.
"""

import os
from pathlib import Path

import pytest
import torch
from conftest import ROOT

from brain_ldm_bundle.scripts.model.networks import Autoencoder, DiffusionUNet
from brain_ldm_bundle.scripts.model.noise_schedule import DDIM, NOISE_SCHEDULE
from brain_ldm_bundle.scripts.shared.weights import load_weights

DEFAULT = ROOT.parent / "shared" / "reference" / "ldm_reference.pt"
FILE = Path(os.environ.get("LDM_REFERENCE", DEFAULT))

pytestmark = pytest.mark.skipif(not FILE.is_file(), reason=f"no reference tensors at {FILE}; set LDM_REFERENCE")


def worst(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference, relative to the largest value."""
    assert found.shape == wanted.shape
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.fixture(scope="module")
def reference():
    return torch.load(FILE, weights_only=True)


@pytest.fixture(scope="module")
def autoencoder(reference, tmp_path_factory):
    config = reference["autoencoder_config"]
    path = tmp_path_factory.mktemp("weights") / "autoencoder.pt"
    torch.save(reference["autoencoder"], path)
    network = Autoencoder(
        channels=config["num_channels"],
        latent_channels=config["latent_channels"],
        num_res_blocks=config["num_res_blocks"],
        norm_num_groups=config["norm_num_groups"],
    )
    return load_weights(network, path).eval()


@pytest.fixture(scope="module")
def unet(reference, tmp_path_factory):
    config = reference["unet_config"]
    path = tmp_path_factory.mktemp("weights") / "model.pt"
    torch.save(reference["unet"], path)
    network = DiffusionUNet(
        latent_channels=config["out_channels"],
        num_covariates=config["cross_attention_dim"],
        channels=config["num_channels"],
        num_head_channels=config["num_head_channels"],
        num_res_blocks=config["num_res_blocks"],
        norm_num_groups=config["norm_num_groups"],
    )
    return load_weights(network, path).eval()


@pytest.fixture(scope="module")
def sampler(reference):
    scheduler = DDIM()
    scheduler.set_timesteps(reference["scheduler"]["steps"])
    return scheduler


def test_the_noise_schedule_is_the_references(reference):
    for name, value in NOISE_SCHEDULE.items():
        assert reference["scheduler"][name] == value, name


def test_the_sampler_walks_the_references_grid(reference, sampler):
    assert sampler.timesteps.tolist() == list(reference["scheduler"]["timesteps"])


@torch.inference_mode()
def test_the_first_prediction_of_the_unet_agrees(reference, unet, sampler):
    t = sampler.timesteps[:1].expand(len(reference["noise"]))
    found = unet(reference["noise"], t, reference["covariates"])
    assert worst(found, reference["first_unet_output"]) < 1e-4


@torch.inference_mode()
def test_the_sampled_latent_and_its_image_agree(reference, unet, autoencoder, sampler):
    latent = reference["noise"]
    for t in sampler.timesteps.tolist():
        prediction = unet(latent, torch.full((len(latent),), t), reference["covariates"])
        latent, _ = sampler.step(prediction, t, latent)
    assert worst(latent, reference["latent"]) < 1e-4
    assert worst(autoencoder.decode(latent), reference["image"]) < 1e-4


@torch.inference_mode()
def test_the_encoder_agrees(reference, autoencoder):
    mu, sigma = autoencoder.encode(reference["image"])
    assert worst(mu, reference["encoded_mu"]) < 1e-5
    assert worst(sigma, reference["encoded_sigma"]) < 1e-5
