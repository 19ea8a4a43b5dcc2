"""Latents are encoded once, as distributions, and only by the requested autoencoder."""

import os

import numpy as np
import pytest
import torch

from brain_ldm_bundle.scripts.model.networks import Autoencoder, DiffusionUNet
from brain_ldm_bundle.scripts.shared.files import save_weights, sha256
from brain_ldm_bundle.scripts.shared.weights import load_weights
from brain_ldm_bundle.scripts.training.latents import LatentDataset, ancestors, prepare, refuse_other_autoencoder


def autoencoder():
    return Autoencoder([4, 4], latent_channels=2, num_res_blocks=1, norm_num_groups=2)


@pytest.fixture
def scans(tmp_path):
    """Five scans of three different sides, kept as arrays."""
    torch.manual_seed(0)
    items = []
    for i in range(5):
        path = tmp_path / f"sub-{i}.npy"
        np.save(path, torch.rand(1, 8, 12, 10).numpy())
        items.append({"image": str(path), "participant_id": f"sub-{i}", "covariates": [0.1 * i, 1.0]})
    return items


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(1)
    path = tmp_path / "autoencoder.pt"
    save_weights(autoencoder().state_dict(), path)
    return path


def load(item):
    return {**item, "image": torch.from_numpy(np.load(item["image"]))}


def dataset(scans, weights, tmp_path, **changes):
    arguments = {"transform": load, "autoencoder": autoencoder(), "cache_dir": tmp_path / "latents", "spacing_mm": 4.0}
    return LatentDataset(scans, weights=weights, **(arguments | changes))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_item_is_the_distribution_that_the_encoder_gives(scans, weights, tmp_path, num_workers):
    latents = dataset(scans, weights, tmp_path, num_workers=num_workers)
    latents.encode()
    mu, sigma = load_weights(autoencoder(), weights).eval().encode(load(scans[3])["image"][None])
    item = latents[3]
    torch.testing.assert_close(item["mu"], mu[0])
    torch.testing.assert_close(item["sigma"], sigma[0])
    torch.testing.assert_close(item["covariates"], torch.tensor([[0.3, 1.0]]))


def test_the_data_set_can_be_built_before_its_autoencoder_exists(scans, tmp_path):
    latents = dataset(scans, tmp_path / "missing.pt", tmp_path)
    assert len(latents) == 5
    with pytest.raises(FileNotFoundError, match="missing.pt.*run training_autoencoder"):
        latents.encode()


def test_a_scan_is_encoded_once_until_it_or_the_autoencoder_changes(scans, weights, tmp_path):
    latents = dataset(scans, weights, tmp_path)
    latents.encode()
    first = {latents.file(i): latents.file(i).stat().st_mtime_ns for i in range(5)}
    latents.encode()
    assert {path: path.stat().st_mtime_ns for path in first} == first

    os.utime(scans[2]["image"], ns=(1, 1))
    assert [latents.file(i) in first for i in range(5)] == [True, True, False, True, True]
    torch.manual_seed(2)
    save_weights(autoencoder().state_dict(), weights)
    assert not any(latents.file(i) in first for i in range(5))
    other_grid = dataset(scans, weights, tmp_path, spacing_mm=2.0)
    assert other_grid.file(0) != latents.file(0)


def test_ranks_share_the_scans_without_overlap(scans, weights, tmp_path):
    latents = dataset(scans, weights, tmp_path)
    latents.encode(rank=0, world_size=2)
    assert [latents.file(i).exists() for i in range(5)] == [True, False, True, False, True]
    latents.encode(rank=1, world_size=2)
    assert all(latents.file(i).exists() for i in range(5))
    assert len(list((tmp_path / "latents").iterdir())) == 5  # no partial files


def test_a_scan_that_a_datalist_repeats_is_encoded_once_by_one_rank(scans, weights, tmp_path):
    """A user repeats a scan so that it counts more. Every rank used to encode it again."""
    encoded = []
    latents = dataset(
        [scans[0], scans[0], scans[1], scans[0]], weights, tmp_path, transform=lambda item: encoded.append(item) or load(item)
    )
    for rank in (1, 0):
        latents.encode(rank, world_size=2)
    assert [item["image"] for item in encoded] == [scans[1]["image"], scans[0]["image"]]
    assert len(latents) == 4 and torch.equal(latents[0]["mu"], latents[3]["mu"])


@pytest.mark.parametrize("kept", [0, 50, 200])
def test_a_latent_cut_short_is_encoded_again(scans, weights, tmp_path, kept):
    latents = dataset(scans, weights, tmp_path)
    latents.encode()
    whole = latents.file(1).read_bytes()
    latents.file(1).write_bytes(whole[:kept])
    latents.encode()
    assert latents.file(1).read_bytes() == whole


def test_the_scale_factor_is_one_over_the_spread_of_drawn_latents(scans, weights, tmp_path):
    latents = dataset(scans, weights, tmp_path)
    latents.encode()
    items = [latents[i] for i in range(5)]
    drawn = torch.stack([item["mu"] + item["sigma"] * torch.randn(200, *item["mu"].shape) for item in items])
    assert latents.scale_factor() == pytest.approx(1 / drawn.std().item(), rel=0.01)


def test_an_autoencoder_that_has_diverged_is_refused(scans, weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    state["quant_conv_log_sigma.conv.bias"].fill_(1e38)  # finite, unlike what the encoder makes of it
    state["quant_conv_mu.conv.weight"].fill_(3e38)
    torch.save(state, weights)
    with pytest.raises(ValueError, match="sub-0.npy: its latent is not finite"):
        dataset(scans, weights, tmp_path).encode()
    assert list((tmp_path / "latents").glob("*")) == []


@pytest.fixture
def unet():
    return DiffusionUNet(2, 2, channels=[8], num_head_channels=[8], num_res_blocks=1, norm_num_groups=4)


def test_the_recipe_names_the_autoencoder_and_the_scale_comes_from_the_training_set(scans, weights, tmp_path, unet):
    latents = dataset(scans, weights, tmp_path)
    latents.encode()
    prepare(unet, latents, None, {"_desc_": "left out", "prediction_type": "v_prediction"})
    assert unet.recipe == {"prediction_type": "v_prediction", "autoencoder_sha256": sha256(weights)}
    assert unet.scale_factor.item() == pytest.approx(latents.scale_factor(), rel=1e-6)


def test_fine_tuning_keeps_the_scale_and_refuses_another_prediction_type(scans, weights, tmp_path, unet):
    latents = dataset(scans, weights, tmp_path)
    latents.encode()
    unet.scale_factor.fill_(0.125)
    unet.recipe = {"prediction_type": "v_prediction"}
    save_weights(unet.state_dict(), tmp_path / "model.pt")
    prepare(unet, latents, tmp_path / "model.pt", {"prediction_type": "v_prediction"})
    assert unet.scale_factor == 0.125
    with pytest.raises(ValueError, match="model.pt predicts v_prediction: set --prediction_type v_prediction, not epsilon"):
        prepare(unet, latents, tmp_path / "model.pt", {"prediction_type": "epsilon"})


def test_fine_tuning_needs_the_autoencoder_of_the_diffusion_model_or_one_trained_further(scans, weights, tmp_path, unet):
    """Latents of another autoencoder mean something else, and no error of a shape shows it."""
    further, other, model = (tmp_path / f"{name}.pt" for name in ("further", "other", "model"))
    unet.recipe = {"autoencoder_sha256": sha256(weights)}
    save_weights(unet.state_dict(), model)
    network = autoencoder()
    save_weights(network.state_dict(), other)
    network.recipe = {"ancestors": ancestors(weights)}
    save_weights(network.state_dict(), further)
    network.recipe = {"ancestors": ancestors(further)}
    save_weights(network.state_dict(), tmp_path / "twice.pt")

    recipe = {"prediction_type": "epsilon"}
    prepare(unet, dataset(scans, weights, tmp_path), model, recipe)
    for trained_further in (further, tmp_path / "twice.pt"):
        with pytest.warns(UserWarning, match=f"{trained_further} was trained further since {model}"):
            prepare(unet, dataset(scans, trained_further, tmp_path), model, recipe)
    with pytest.raises(ValueError, match=f"sha256 {sha256(weights)[:16]}, not of {other} .* leave out --init_diffusion"):
        prepare(unet, dataset(scans, other, tmp_path), model, recipe)
    with pytest.raises(ValueError, match="not of a new autoencoder. Start from that autoencoder by --init_autoencoder"):
        refuse_other_autoencoder(model, None)  # both stages, the first from the beginning
    refuse_other_autoencoder(model, weights)
    refuse_other_autoencoder(None, other)
