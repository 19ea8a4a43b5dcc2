"""A perceptual loss from a local file of 3-D MedicalNet weights. It downloads nothing and draws no random numbers."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ..shared.files import sha256
from ..shared.weights import load_weights
from .medicalnet import medicalnet

logger = logging.getLogger(__name__)


class PerceptualLoss(torch.nn.Module):
    """Distance of two volumes in the features of a 3-D ResNet-10 trained on 23 medical data sets (Chen et al. 2019, Med3D).

    It compares the features of the last layer, normalised over channels, voxel by voxel, as LPIPS does.

    `weights` is MedicalNet's file `resnet_10_23dataset.pth`, whose segmentation head is not used. Without `expected_sha256`,
    any file is accepted that fits the network.
    """

    def __init__(self, weights: str | Path, expected_sha256: str | None = None) -> None:
        super().__init__()
        self.network = load_weights(
            medicalnet(10), weights, made_by="download resnet_10_23dataset.pth from the MedicalNet project"
        )
        found = sha256(weights)
        if expected_sha256 and found != expected_sha256:
            raise ValueError(f"{weights}: sha256 {found}, expected {expected_sha256}. Fetch the file again.")
        self.network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> PerceptualLoss:
        return super().train(False)  # its batch norm must keep the statistics of its own training

    def _features(self, image: torch.Tensor) -> torch.Tensor:
        x = self.network((image - image.mean()) / (image.std() + 1e-6))[-1]
        return x / (x.norm(dim=1, keepdim=True) + 1e-6)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Mean squared distance of the features of two volumes (B, 1, D, H, W)."""
        return (self._features(prediction) - self._features(target)).square().sum(dim=1).mean()


def perceptual_loss(weights: str | Path | None, expected_sha256: str | None, device: torch.device) -> PerceptualLoss | None:
    """Load the loss, or return None with one warning where `weights` is None."""
    if weights is None:
        logger.warning(
            "Stage one trains without its perceptual loss: --perceptual_weights_file names no file. "
            "Reconstructions will be smoother than the paper's."
        )
        return None
    return PerceptualLoss(weights, expected_sha256).to(device)
