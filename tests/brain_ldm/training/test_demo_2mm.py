"""The overlay for 2 mm makes networks that can be shipped, and trains the autoencoder on blocks of heads."""

import json

import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from monai.data import MetaTensor

from brain_ldm_bundle.scripts.shared.weights import load_weights

OVERLAY = ROOT / "brain_ldm_bundle/configs/demo_2mm.json"


def parser_of(bundle):
    parser = ConfigParser()
    parser.read_config([str(bundle / "configs/train.json"), str(OVERLAY)])
    return parser


def test_weights_in_half_precision_are_smaller_than_25_mb_and_latents_are_as_published(bundle):
    parser = parser_of(bundle)
    with torch.device("meta"):
        autoencoder, unet = (parser.get_parsed_content(name) for name in ("autoencoder_def", "network_def"))
    assert 2 * sum(p.numel() for network in (autoencoder, unet) for p in network.parameters()) < 24e6
    assert autoencoder.latent_shape(parser.get_parsed_content("image_size")) == (3, 20, 28, 20)


def test_the_autoencoder_learns_from_blocks_at_random_places():
    random_part = json.loads(OVERLAY.read_text())["autoencoder_stage#preprocessing"]["transforms"][1]
    crop = ConfigParser({"crop": random_part}).get_parsed_content("crop").set_random_state(0)
    place = torch.stack(torch.meshgrid(*map(torch.arange, (80, 112, 80)), indexing="ij")).float()
    corners = {tuple(crop({"image": MetaTensor(place)})["image"][:, 0, 0, 0].tolist()) for _ in range(5)}
    assert len(corners) == 5
    assert crop({"image": MetaTensor(place)})["image"].shape == (3, 40, 56, 40)


def test_the_autoencoder_that_ships_has_the_sizes_of_the_overlay(bundle):
    autoencoder = parser_of(bundle).get_parsed_content("autoencoder_def")
    file = ROOT / "brain_ldm_bundle/models/demo_2mm_autoencoder.pt"
    provenance = json.loads(file.with_name("demo_2mm_weights.json").read_text())
    load_weights(autoencoder, file, expected_sha256=provenance["sha256"][file.name])
    assert autoencoder.recipe["seen_voxels"]
