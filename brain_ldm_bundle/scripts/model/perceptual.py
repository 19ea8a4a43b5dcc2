"""Compute a perceptual loss with MedicalNet weights from a local file, without downloads or random numbers."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from ..shared.files import sha256
from ..shared.weights import load_weights
from .medicalnet import medicalnet

logger = logging.getLogger(__name__)


class PerceptualLoss(torch.nn.Module):
    """Compare two volumes by the features of a 3-D ResNet-10 trained on 23 medical data sets (Chen et al. 2019, Med3D).

    As in LPIPS, features of the last layer are normalised over channels and compared at each voxel.

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
        return super().train(False)  # batch norm must keep MedicalNet's statistics

    def _features(self, image: torch.Tensor) -> torch.Tensor:
        x = self.network((image - image.mean()) / (image.std() + 1e-6))[-1]
        return x / (x.norm(dim=1, keepdim=True) + 1e-6)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Compute the mean squared distance between the features of two volumes (B, 1, D, H, W)."""
        return (self._features(prediction) - self._features(target)).square().sum(dim=1).mean()


def perceptual_loss(weights: str | Path | None, expected_sha256: str | None, device: torch.device) -> PerceptualLoss | None:
    """Load the loss, or warn and return None if `weights` is None."""
    if weights is None:
        if expected_sha256 is not None:
            raise ValueError("perceptual_sha256 is given, but not the file that has this hash. Add --perceptual_weights_file")
        logger.warning(
            "Stage one trains without its perceptual loss: --perceptual_weights_file names no file. "
            "Reconstructions will be smoother than the paper's."
        )
        return None
    return PerceptualLoss(weights, expected_sha256).to(device)
