"""Copies of both bundles with weights of tiny networks, for tests of MONAI's own commands and of Python."""

import shutil
from pathlib import Path

import tiny
import tiny_spade
import torch
from conftest import ROOT

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.model.networks import Autoencoder, DiffusionUNet
from spade_fusion_bundle.scripts.model.networks import SpadeFusion
from spade_fusion_bundle.scripts.shared.label_table import LabelTable

LDM, SPADE = BUNDLES = ("brain_ldm_bundle", "spade_fusion_bundle")

AUTOENCODER = {"channels": [4, 4], "latent_channels": 3, "num_res_blocks": 1, "norm_num_groups": 2}
UNET = {"channels": [8, 8], "num_head_channels": [0, 8], "num_res_blocks": 1, "norm_num_groups": 4}
SPADE_SIZES = {"ngf": 2, "hidden": 4, "fusion_channels": 4, "fusion_layers": 2}
REQUEST = {"age": 70, "sex": "F", "ventricles_ml": 30, "brain_normalised_ml": 1500}


def write_ldm_weights(models: Path) -> None:
    """Write an autoencoder and a diffusion model with the channels of the metadata, and with each other's settings."""
    torch.manual_seed(0)
    autoencoder = tiny.perturbed(Autoencoder(**AUTOENCODER))
    schema = CovariateSchema.from_file(ROOT / LDM / "configs" / "covariates.json")
    unet = tiny.perturbed(DiffusionUNet(**UNET))
    unet.recipe = {
        "spacing_mm": tiny.SPACING_MM,
        "prediction_type": "epsilon",
        "covariates": schema.to_dict(),
        "autoencoder": AUTOENCODER,
        "unet": UNET,
    }
    torch.save(autoencoder.state_dict(), models / "autoencoder.pt")
    torch.save(unet.state_dict(), models / "model.pt")


def write_spade_weights(models: Path) -> None:
    torch.manual_seed(0)
    table = LabelTable.from_file(ROOT / SPADE / "configs" / "labels.json", "demo")
    sizes = SPADE_SIZES | {"num_labels": table.num_classes}
    network = tiny.perturbed(SpadeFusion(**sizes))
    network.recipe = {"labels": table.to_dict(), "spacing_mm": tiny_spade.SPACING_MM, "network": sizes}
    torch.save(network.state_dict(), models / "model.pt")


def copy_bundle(name: str, folder: Path) -> Path:
    """Copy a bundle, with tiny weights instead of its own."""
    ignored = shutil.ignore_patterns("models", "eval", "cache", "__pycache__")
    copy = shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (copy / "models").mkdir()
    {LDM: write_ldm_weights, SPADE: write_spade_weights}[name](copy / "models")
    return copy


def config(name: str) -> dict[str, str]:
    """Files that MONAI's commands need, relative to the folder of a bundle."""
    return {"meta_file": "configs/metadata.json", "config_file": f"configs/{name}.json"}


def settings(name: str, data: dict, workflow: str, folder: Path) -> dict:
    """Overrides that make a workflow of a bundle small."""
    places = {"output_dir": str(folder / "out"), "use_device": "cpu"}
    if workflow == "train":
        sizes = tiny.SETTINGS if name == LDM else tiny_spade.SETTINGS
        folders = {"models_dir": str(folder / "models"), "cache_dir": str(folder / "cache")}
        return {**sizes, **places, **folders, "dataset_dir": data[name]}
    if workflow == "evaluate":
        return {**places, "dataset_dir": data[name], "cache_dir": str(folder / "cache"), "split": "validation"}
    return {**places, "request": REQUEST, "steps": 2} if name == LDM else {**places, "label_maps": data[name]}
