"""Load MedicalNet (Med3D), 3-D ResNets trained on 23 medical data sets, from local files of weights."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.networks.nets.resnet import ResNetFeatures

from ..shared.weights import load_weights, read_state

# Layers that keep the resolution at 1/8, with their dilation (code of the MedicalNet project).
DILATIONS = {"layer3": 2, "layer4": 4}


class MedicalNet(torch.nn.Module):
    """Compute the features of Pinaya et al. 2022: the last layer of MedicalNet (Chen et al. 2019), averaged over the volume.

    Each volume is scaled to mean 0 and standard deviation 1, as in the training of MedicalNet.

    Args:
        weights: file `resnet_50_23dataset.pth` (2048 features) or `resnet_10_23dataset.pth` (512) of the MedicalNet project,
            whose segmentation head is not used. The depth is read from the file.
    """

    def __init__(self, weights: str | Path) -> None:
        super().__init__()
        depth = 50 if "layer1.0.conv3.weight" in read_state(Path(weights)) else 10  # only ResNet-50 has conv3
        self.name = f"MedicalNet ResNet-{depth}"
        self.network = load_weights(medicalnet(depth), weights).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute features (B, 2048) or (B, 512) of volumes (B, 1, D, H, W)."""
        dims = (1, 2, 3, 4)
        x = (x - x.mean(dim=dims, keepdim=True)) / x.std(dim=dims, keepdim=True)
        return self.network(x)[-1].mean(dim=dims[1:])


def medicalnet(depth: int) -> ResNetFeatures:
    """Make an untrained network with the architecture of MedicalNet's files.

    It maps volumes (B, 1, D, H, W) to the features of each layer; the last are (B, C, D / 8, H / 8, W / 8). MONAI's ResNet
    has the same tensors, but its last two layers have strides instead of MedicalNet's dilations.

    Args:
        depth: number of layers, 10 (C is 512) or 50 (C is 2048).
    """
    network = ResNetFeatures(f"resnet{depth}", pretrained=False)
    for layer, dilation in DILATIONS.items():
        for part in getattr(network, layer).modules():
            if isinstance(part, torch.nn.Conv3d):
                part.stride = (1, 1, 1)
                if part.kernel_size == (3, 3, 3):
                    part.dilation = part.padding = (dilation,) * 3
    return network
