"""What turns a volume into the features that distributions are compared by: a published network's file, or the regressor."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ..model.medicalnet import MedicalNet
from ..model.regressor_network import Regressor
from ..shared.files import sha256
from ..shared.weights import read_state
from .covariate_regressor import load_regressor
from .radimagenet import RadImageNet

__all__ = ["Extractor", "RegressorLevels", "load_extractor"]

EXPECTED = (
    "MedicalNet's resnet_50_23dataset.pth or resnet_10_23dataset.pth, or RadImageNet's RadImageNet-ResNet50_notop.pth or "
    "ResNet50.pt"
)


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
    """MedicalNet or RadImageNet where a file of theirs is named, else all levels of the regressor of the cohort's covariates.

    The regressor has seen the training scans and no others, and it learnt to look at what the covariates change.

    Args:
        extractor_file: which of the networks it is, is read from it.
        extractor_sha256: of that file; None accepts any that fits.
        regressor_file: of the regressor, for want of an `extractor_file`.
        spacing_mm: of the volumes.
        device: that computes.

    Raises:
        FileNotFoundError, ValueError: no such file, another hash, or weights of another network; as `load_regressor`.
    """
    if extractor_file is not None:
        network = _published_network(Path(extractor_file), extractor_sha256, spacing_mm).to(device)
        return Extractor(network, f"{network.name}, {_which(extractor_file)}")
    network = RegressorLevels(load_regressor(regressor_file, spacing_mm)).to(device).eval()
    name = f"all levels of the cohort's covariate regressor, standardised, {_which(regressor_file)}"
    return Extractor(network, name, standardise=True)


def _published_network(path: Path, expected_sha256: str | None, spacing_mm: float) -> MedicalNet | RadImageNet:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Download {EXPECTED}")
    if expected_sha256 and sha256(path) != expected_sha256:
        raise ValueError(f"{path}: sha256 {sha256(path)}, expected {expected_sha256}. Fetch the file again")
    shapes = {key: tuple(tensor.shape) for key, tensor in read_state(path).items()}
    if shapes.get("conv1.weight") == (64, 1, 7, 7, 7):
        return MedicalNet(path)
    first = "backbone.0.weight" if "conv1.bias" not in shapes else "conv1.weight"  # ImageNet's ResNet-50 has neither
    if shapes.get(first) == (64, 3, 7, 7):
        return RadImageNet(path, spacing_mm)
    found = ", ".join(f"{key} {shape}" for key, shape in list(shapes.items())[:3])
    raise ValueError(f"{path}: weights of another architecture ({found}). Expected {EXPECTED}")


def _which(path: str | Path) -> str:
    return f"{Path(path).name} (sha256 {sha256(path)[:12]})"
