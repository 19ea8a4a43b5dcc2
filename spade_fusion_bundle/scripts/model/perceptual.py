"""Compute the VGG loss of SPADE with weights from a local file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..shared.files import read_tensors, sha256
from ..shared.weights import refuse_non_finite

logger = logging.getLogger(__name__)

# Widths of the convolutions between poolings of VGG-19 (Simonyan and Zisserman 2015, Table 1, E), up to relu5_1.
STAGES = ((64, 64), (128, 128), (256, 256, 256, 256), (512, 512, 512, 512), (512,))
# Weight of the L1 after relu1_1, relu2_1, relu3_1, relu4_1 and relu5_1, by number of the layer (Wang et al. 2018, pix2pixHD).
WEIGHTS = {1: 1 / 32, 6: 1 / 16, 11: 1 / 8, 20: 1 / 4, 29: 1.0}


class VGGLoss(nn.Module):
    """Compute the L1 between features of a VGG-19 trained on ImageNet, after the first ReLU of each of its five stages.

    As in SPADE, images have intensities of -1 to 1, without ImageNet's normalisation. The grey channel is repeated three times.

    Args:
        weights: file `vgg19-dcbb9e9d.pth` of torchvision.
        expected_sha256: first digits of the file's hash, eight of which are in torchvision's file name; None accepts any.
    """

    def __init__(self, weights: str | Path, expected_sha256: str | None = "dcbb9e9d") -> None:
        super().__init__()
        if not Path(weights).is_file():
            raise FileNotFoundError(
                f"{weights}: no such file. Download vgg19-dcbb9e9d.pth from https://download.pytorch.org/models , or leave "
                f"--vgg_file out to train without the VGG loss"
            )
        found = sha256(weights)
        if expected_sha256 and not found.startswith(expected_sha256):
            raise ValueError(f"{weights}: sha256 {found}, expected {expected_sha256}... . Fetch the file again")
        layers, before = [], 3
        for stage, widths in enumerate(STAGES):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for width in widths:
                layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
                before = width
        self.features = nn.Sequential(*layers)
        state, wanted = read_tensors(weights), self.state_dict()
        known = isinstance(state, Mapping)
        if not known or any(key not in state or state[key].shape != value.shape for key, value in wanted.items()):
            raise ValueError(f"{weights}: not the weights of torchvision's vgg19. Download vgg19-dcbb9e9d.pth")
        refuse_non_finite({key: state[key] for key in wanted}, weights)
        self.load_state_dict({key: state[key] for key in wanted})
        self.eval().requires_grad_(False)

    def forward(self, fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Compute the loss of fake and real slices (N, 1, H, W), intensities -1 to 1; only the fakes get gradients."""
        fake, real = (image.expand(-1, 3, -1, -1) for image in (fake, real.detach()))
        loss = torch.zeros((), device=fake.device)
        for number, layer in enumerate(self.features):
            fake = layer(fake)
            with torch.no_grad():
                real = layer(real)
            if number in WEIGHTS:
                loss = loss + WEIGHTS[number] * F.l1_loss(fake.float(), real.float())
        return loss


def vgg_loss(weights: str | Path | None, expected_sha256: str | None, device: torch.device) -> VGGLoss | None:
    """Load the loss, or warn and return None if `weights` is None."""
    if weights is None:
        logger.warning(
            "The GANs train without the VGG loss of SPADE: --vgg_file names no file. Feature matching remains; textures may "
            "come out less sharp"
        )
        return None
    return VGGLoss(weights, expected_sha256).to(device)
