"""Apply RadImageNet's ResNet-50, a 2-D network, to the slices of a volume in three planes."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from monai.losses.perceptual import subtract_mean
from monai.networks.nets.resnet import ResNetFeatures

from ..shared.head_mask import head_mask
from ..shared.weights import load_weights, read_state
from .grey_values import as_stored

KERAS_EPSILON = 1.001e-5  # of batch norm
SLICES_AT_ONCE = 16  # chosen: about 200 MB at 1 mm


class RadImageNet(torch.nn.Module):
    """Compute the last layer of a ResNet-50 trained on 1.35 million CT, MR and ultrasound images (Mei et al. 2022).

    The features are averaged over the pixels of each slice through the head, then over the slices of a plane. They are 2048
    for each of the sagittal, coronal and axial plane. MAISI (Guo et al. 2025) instead compares the distributions of single
    slices for each plane. But neighbouring slices are not independent, and slices of one head differ more than heads do. We
    use one vector per volume, so our numbers cannot be compared with MAISI's.

    A slice is used if it contains a voxel of `head_mask`. It is interpolated to pixels of 1 mm, so that heads are as large as
    in the training images of 224 x 224 pixels. It has the radiological orientation: anterior or superior is on top, and the
    patient's right (in sagittal slices anterior) is on the left.

    Args:
        weights: one of two files, recognised by its tensors. `RadImageNet-ResNet50_notop.pth` has the paper's weights,
            converted from Keras for MONAI's perceptual loss. Its input channels are blue, green, red, each minus ImageNet's
            mean. `ResNet50.pt` is a later training in PyTorch by RadImageNet's authors, for intensities of -1 to 1.
        spacing_mm: edge length of a voxel of the volumes.
    """

    name = "RadImageNet ResNet-50, slices averaged per plane"

    def __init__(self, weights: str | Path, spacing_mm: float) -> None:
        super().__init__()
        self.spacing_mm = spacing_mm
        self.keras = "conv1.bias" in read_state(Path(weights))
        network = ResNetFeatures("resnet50", pretrained=False, spatial_dims=2, in_channels=3)
        load_weights(_as_in_keras(network) if self.keras else _numbered(network), weights)
        self.network = network.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn (B, 1, D, H, W), 0 to 1, not constant, in LAS order, into (B, 3 x 2048): sagittal, coronal, axial."""
        return torch.stack([self._features(volume) for volume in x[:, 0]])

    def _features(self, volume: torch.Tensor) -> torch.Tensor:
        head = torch.from_numpy(head_mask(as_stored(volume.cpu().numpy()))).to(volume.device)
        volume, head = volume.flip(1, 2), head.flip(1, 2)  # from anterior, from superior
        planes = [volume.movedim(axis, 0)[head.movedim(axis, 0).flatten(1).any(1)].mT for axis in range(3)]
        return torch.cat([self._mean(slices) for slices in planes])

    def _mean(self, slices: torch.Tensor) -> torch.Tensor:
        """Turn slices (n, H, W) into features (2048,)."""
        size = [round(pixels * self.spacing_mm) for pixels in slices.shape[1:]]
        total = torch.zeros(())
        for batch in slices[:, None].split(SLICES_AT_ONCE):
            images = F.interpolate(batch, size, mode="bilinear", antialias=True).repeat(1, 3, 1, 1)
            images = subtract_mean(images) if self.keras else 2 * images - 1
            total = total + self.network(images)[-1].mean(dim=(2, 3)).sum(0)
        return total / len(slices)


def _as_in_keras(network: ResNetFeatures) -> ResNetFeatures:
    """Change a network to Keras' version, whose convolutions have biases and whose blocks start with the strided one."""
    for part in network.modules():
        if isinstance(part, torch.nn.Conv2d):
            part.bias = torch.nn.Parameter(torch.zeros(part.out_channels))
        elif isinstance(part, torch.nn.BatchNorm2d):
            part.eps = KERAS_EPSILON
    for layer in _layers(network):
        layer[0].conv1.stride, layer[0].conv2.stride = layer[0].conv2.stride, layer[0].conv1.stride
    return network


def _numbered(network: ResNetFeatures) -> torch.nn.Module:
    """Name the parts of a network backbone.0 (the first convolution) to backbone.7 (the last layer)."""
    parts = [network.conv1, network.bn1, network.act, network.maxpool, *_layers(network)]
    return torch.nn.ModuleDict({"backbone": torch.nn.Sequential(*parts)})


def _layers(network: ResNetFeatures) -> list[torch.nn.Sequential]:
    return [network.layer1, network.layer2, network.layer3, network.layer4]
