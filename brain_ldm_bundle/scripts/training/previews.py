"""What TensorBoard shows of a training: scans beside their reconstructions, and samples."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..model.networks import DiffusionUNet
from ..model.sampler import LatentSampler, Reconstructor

__all__ = ["reconstructions", "samples"]


@torch.no_grad()
def reconstructions(dataset: Sequence, network: torch.nn.Module, inferer: Reconstructor, device: torch.device, count: int):
    """The first held-out scans, then what the autoencoder makes of them."""
    network.eval()
    images = torch.stack([torch.as_tensor(dataset[i]["image"]) for i in range(min(count, len(dataset)))]).to(device)
    return {"scan and reconstruction": torch.cat([images, inferer(images, network)])}


def samples(dataset: Sequence, network: DiffusionUNet, sampler: LatentSampler, device: torch.device, count: int):
    """Volumes drawn for the covariates of the first held-out participants, from the same noise every time."""
    context = torch.stack([dataset[i]["covariates"] for i in range(min(count, len(dataset)))]).to(device)
    return {"samples": sampler(context, network.eval(), seeds=range(len(context)))}
