"""A brain LDM that trains in seconds: eight blobs of 20 x 28 x 20 voxels, latents of 5 x 7 x 5, one level of the U-Net."""

import os
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from conftest import ROOT
from monai.bundle import run

from brain_ldm_bundle.scripts.model.networks import Autoencoder, DiffusionUNet

BUNDLE = ROOT / "brain_ldm_bundle"
SPACING_MM = 8.0
SIZES = {
    "autoencoder_channels": [8, 8, 8],
    "autoencoder_res_blocks": 1,
    "autoencoder_groups": 4,
    "unet_channels": [16],
    "unet_head_channels": [16],
    "unet_res_blocks": 1,
    "unet_groups": 8,
}
SETTINGS = SIZES | {
    "spacing_mm": SPACING_MM,
    "use_device": "cpu",
    "num_workers": 0,
    "autoencoder_epochs": 1,
    "autoencoder_batch_size": 3,
    "autoencoder_lr": 1e-3,
    "diffusion_epochs": 1,
    "diffusion_batch_size": 3,
    "diffusion_lr": 1e-3,
    "ema_momentum": 0.1,
    "lr_warmup_steps": 2,
    "panel_interval": 1000,
    "discriminator_def": {"_target_": "scripts.model.networks.Discriminator", "channels": 4, "num_layers_d": 1},
}


def perturbed(network: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """The network with no weight left at zero: fresh ones answer 0 to everything."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.eval()


def autoencoder() -> Autoencoder:
    """Compresses by 2."""
    torch.manual_seed(0)
    return perturbed(Autoencoder(channels=[8, 8], num_res_blocks=1, norm_num_groups=4))


def unet() -> DiffusionUNet:
    """Of two covariates, with two levels and attention at the lower."""
    torch.manual_seed(0)
    return perturbed(
        DiffusionUNet(num_covariates=2, channels=[8, 8], num_head_channels=[0, 8], num_res_blocks=1, norm_num_groups=4)
    )


def write_dataset(folder: Path, training: int = 6, validation: int = 2) -> Path:
    """A BIDS data set of bright ellipsoids, each with a dark one inside, whose sizes are in participants.tsv."""
    rng = np.random.default_rng(0)
    shape = (20, 28, 20)
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = np.array([-79.019, -125.977, -61.054]) + SPACING_MM / 2
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, np.indices(shape).transpose(1, 2, 3, 0)), 3, 0)
    rows = ["participant_id\tage\tsex\tventricles_ml\tbrain_normalised_ml\tsplit"]
    for number in range(training + validation):
        ventricles_ml, brain_ml = rng.uniform(10, 160), rng.uniform(1200, 1750)
        distance = (x / 65) ** 2 + ((y + 15) / 85) ** 2 + ((z - 12) / 60) ** 2
        image = 220 * (distance < brain_ml / 1750) * (1 - 0.8 * (distance < ventricles_ml / 600))
        image = nib.Nifti1Image((image + rng.uniform(0, 10, shape)).astype(np.uint8), affine)
        image.set_sform(affine, code="mni")
        name = f"sub-{number + 1:04d}"
        path = folder / name / "anat" / f"{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(image, path)
        split = "train" if number < training else "validation"
        rows.append(f"{name}\t{rng.uniform(45, 80):.1f}\t{'FM'[number % 2]}\t{ventricles_ml:.2f}\t{brain_ml:.1f}\t{split}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    (folder / "dataset_description.json").write_text('{"Name": "blobs", "BIDSVersion": "1.9.0"}')
    return folder


def places(dataset_dir: Path, folder: Path) -> dict[str, str]:
    """Where a run reads and writes: the settings that name folders."""
    folders = {f"{name}_dir": str(folder / name) for name in ("models", "output", "cache")}
    return {"dataset_dir": str(dataset_dir)} | folders


def train(dataset_dir: Path, folder: Path, run_id: str = "training", **settings) -> Path:
    """Train in this process, in the `bundle` fixture; the folder of the weights comes back."""
    run(run_id, config_file="configs/train.json", **places(dataset_dir, folder), **SETTINGS | settings)
    return folder / "models"


def command(run_id: str, config_file: str = "configs/train.json", **settings) -> list[str]:
    """`python -m monai.bundle run` with settings, for a process of its own."""
    flags = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", run_id, "--config_file", config_file, *flags]


def start(arguments: list[str], cwd: Path = BUNDLE, **environment: str) -> subprocess.Popen:
    """Start a command; what it says is kept together in `stdout`."""
    return subprocess.Popen(
        arguments,
        cwd=cwd,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
