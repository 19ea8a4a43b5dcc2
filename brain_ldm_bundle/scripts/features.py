"""What turns a volume into the features that distributions are compared by: MedicalNet from a local file, or the regressor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from monai.networks.nets import resnet10, resnet50

from .files import read_tensors, sha256
from .networks import Regressor
from .regression import load_regressor
from .weights import load_weights

__all__ = ["Extractor", "MedicalNet", "RegressorLevels", "load_extractor"]


class MedicalNet(torch.nn.Module):
    """The last layer of a 3-D ResNet trained on 23 medical data sets (Chen et al. 2019, Med3D), averaged over the volume.

    The extractor of Pinaya et al. 2022. Volumes are brought to mean 0 and standard deviation 1, as MedicalNet was trained.

    Args:
        weights: `resnet_50_23dataset.pth` (2048 features) or `resnet_10_23dataset.pth` (512) of the MedicalNet project; its
            segmentation head is not used. Which of the two it is, is read from it.
        expected_sha256: of that file; None accepts any that fits.

    Raises:
        FileNotFoundError, ValueError: no such file, another hash, or weights of another network.
    """

    def __init__(self, weights: str | Path, expected_sha256: str | None = None) -> None:
        super().__init__()
        if not Path(weights).is_file():
            raise FileNotFoundError(f"{weights}: no such file. Download resnet_50_23dataset.pth of the MedicalNet project")
        if expected_sha256 and sha256(weights) != expected_sha256:
            raise ValueError(f"{weights}: sha256 {sha256(weights)}, expected {expected_sha256}. Fetch the file again")
        self.depth = 50 if _has_bottlenecks(weights) else 10
        resnet = resnet50 if self.depth == 50 else resnet10
        network = resnet(spatial_dims=3, n_input_channels=1, feed_forward=False, bias_downsample=False, shortcut_type="B")
        self.network = load_weights(network, weights).eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, D, H, W) to (B, 2048) or (B, 512)."""
        dims = (1, 2, 3, 4)
        x = (x - x.mean(dim=dims, keepdim=True)) / x.std(dim=dims, keepdim=True)
        network = self.network
        x = network.maxpool(network.act(network.bn1(network.conv1(x))))
        return network.layer4(network.layer3(network.layer2(network.layer1(x)))).mean(dim=dims[1:])


class RegressorLevels(torch.nn.Module):
    """Mean and standard deviation over the volume of every channel at every level of a covariate regressor.

    Not its penultimate layer: trained to answer whatever the contrast and sharpness, that one sees neither. On 84 simulated
    scans at 4 mm it put the same scans blurred by 8 mm closer to themselves than their own two halves. The first levels see
    texture and edges, the last ones anatomy.
    """

    def __init__(self, regressor: Regressor) -> None:
        super().__init__()
        self.levels = regressor.net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 1, D, H, W) to (B, 2 x channels of all levels)."""
        features = []
        for level in self.levels:
            x = level(x)
            features += [x.mean(dim=(2, 3, 4)), x.std(dim=(2, 3, 4), correction=0)]
        return torch.cat(features, dim=1)


class Extractor:
    """Features of one volume, and the name under which they go into tables.

    Args:
        network: from volumes (B, 1, D, H, W) to features (B, F).
        name: what and which file; numbers of different names are never compared.
        standardise: whether distances are taken after a division by the real scans' standard deviations, for features
            that have no common scale.
    """

    def __init__(self, network: Callable[[torch.Tensor], torch.Tensor], name: str, standardise: bool = False) -> None:
        self.network = network
        self.name = name
        self.standardise = standardise

    @torch.inference_mode()
    def __call__(self, volume: torch.Tensor) -> np.ndarray:
        """(1, D, H, W), 0 to 1, to (F,)."""
        return self.network(volume[None])[0].double().cpu().numpy()


def load_extractor(
    extractor_file: str | Path | None,
    extractor_sha256: str | None,
    regressor_file: str | Path,
    spacing_mm: float,
    device: torch.device,
) -> Extractor:
    """MedicalNet where a file of it is named, else all levels of the regressor of the cohort's covariates.

    The regressor has seen the training scans and no others, and it learnt to look at what the covariates change.

    Raises:
        FileNotFoundError, ValueError: as `MedicalNet` and `load_regressor`.
    """
    if extractor_file is not None:
        network = MedicalNet(extractor_file, extractor_sha256).to(device)
        return Extractor(network, f"MedicalNet ResNet-{network.depth}, {_which(extractor_file)}")
    network = RegressorLevels(load_regressor(regressor_file, spacing_mm)).to(device).eval()
    name = f"all levels of the cohort's covariate regressor, standardised, {_which(regressor_file)}"
    return Extractor(network, name, standardise=True)


def _which(path: str | Path) -> str:
    return f"{Path(path).name} (sha256 {sha256(path)[:12]})"


def _has_bottlenecks(path: str | Path) -> bool:
    """Deep ResNets have three convolutions in a block. Nested layouts and prefixes are as `load_weights` takes them."""
    state = read_tensors(path)
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    return any(key.removeprefix("module.") == "layer1.0.conv3.weight" for key in state)
