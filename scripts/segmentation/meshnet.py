"""MeshNet, a network of dilated convolutions that labels a T1w scan with 18 classes (Fedorov et al. 2017; brainchop, MIT).

The weights are those of brainchop's model18cls. Their batch norm is folded into the convolutions.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import torch
from monai.networks.blocks import Convolution
from shared.files import atomic
from torch import nn

WEIGHTS = Path(__file__).with_name("meshnet18.bin")
MD5 = "c2c3450ca1b0539b58149b9a9f933eed"
REPOSITORY = "https://raw.githubusercontent.com/neuroneural/brainchop"
# The second address names one state of the repository. None could be tried; the md5 shows whether the right file came.
ADDRESSES = (
    f"{REPOSITORY}/master/public/models/model18cls/model.bin",
    f"{REPOSITORY}/c36ea22355a5e8ae9c54a961ddd15fbe5d1b760b/v3/models/model18cls/model.bin",
)
DILATIONS = (1, 2, 4, 8, 16, 8, 4, 2, 1)
CHANNELS = 21
# FreeSurfer's values of the classes from 1 on, left and right, and their names in FreeSurferColorLUT.txt. Class 0 is the
# background. The network itself does not separate the sides.
CLASSES = (
    ("Cerebral-White-Matter", 2, 41),
    ("Cerebral-Cortex", 3, 42),
    ("Lateral-Ventricle", 4, 43),
    ("Inf-Lat-Vent", 5, 44),
    ("Cerebellum-White-Matter", 7, 46),
    ("Cerebellum-Cortex", 8, 47),
    ("Thalamus", 10, 49),
    ("Caudate", 11, 50),
    ("Putamen", 12, 51),
    ("Pallidum", 13, 52),
    ("3rd-Ventricle", 14, 14),
    ("4th-Ventricle", 15, 15),
    ("Brain-Stem", 16, 16),
    ("Hippocampus", 17, 53),
    ("Amygdala", 18, 54),
    ("Accumbens-area", 26, 58),
    ("VentralDC", 28, 60),
)
SLAB = 8  # voxels along the first axis that a convolution makes at once, so that memory stays small


def build_network() -> nn.Sequential:
    """Return the untrained network, which maps intensities (B, 1, X, Y, Z) in [0, 1] to logits (B, 18, X, Y, Z)."""
    layers = [
        Convolution(3, CHANNELS if k else 1, CHANNELS, dilation=dilation, act="ELU", norm=None, adn_ordering="A")
        for k, dilation in enumerate(DILATIONS)
    ]
    return nn.Sequential(*layers, nn.Conv3d(CHANNELS, len(CLASSES) + 1, kernel_size=1))


def load_network(weights: Path = WEIGHTS) -> nn.Sequential:
    """Return the network with the weights of a model.bin of TensorFlow.js."""
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file. Fetch it first: python scripts/segment_t1w.py --download")
    content = weights.read_bytes()
    if (md5 := hashlib.md5(content).hexdigest()) != MD5:
        raise ValueError(f"{weights}: has the md5 {md5}, but model18cls of brainchop has {MD5}. Remove it and fetch it again")
    return from_tensorflow(np.frombuffer(content, "<f4"))


def from_tensorflow(numbers: np.ndarray) -> nn.Sequential:
    """Return the network with weights in the order of TensorFlow.js: kernels are (D, H, W, in, out), each before its bias."""
    network = build_network().eval()
    start = 0
    with torch.no_grad():
        for parameter in network.parameters():
            part = numbers[start : start + parameter.numel()]
            if parameter.ndim == 5:
                part = part.reshape(*parameter.shape[2:], *parameter.shape[1::-1]).transpose(4, 3, 0, 1, 2)
            parameter.copy_(torch.from_numpy(part.copy()))
            start += parameter.numel()
    return network


def download(path: Path = WEIGHTS, addresses: tuple[str, ...] = ADDRESSES) -> None:
    """Fetch the weights from the first address that has them."""
    problems = []
    for address in addresses:
        try:
            with urlopen(address, timeout=60) as answer:
                content = answer.read()
        except (URLError, OSError) as error:
            problems.append(f"{address}: {getattr(error, 'reason', error)}")
            continue
        if (md5 := hashlib.md5(content).hexdigest()) == MD5:
            with atomic(path) as file:
                file.write(content)
            return
        problems.append(f"{address}: has the md5 {md5}, expected {MD5}")
    raise ValueError("; ".join(problems) + f". Fetch model.bin of brainchop's model18cls by other means, and save it as {path}")


@torch.inference_mode()
def classify(network: nn.Sequential, head: torch.Tensor) -> torch.Tensor:
    """Return the class of each voxel (X, Y, Z) as uint8. `head` has intensities (X, Y, Z) in [0, 1].

    All features lie in one buffer. A layer writes what it makes from a slab in front of its input, where nothing is needed
    any more, so memory holds one layer instead of two.
    """
    size = head.shape[0]
    start = sum(DILATIONS)
    features = head.new_zeros(CHANNELS, start + size, *head.shape[1:])
    source = head[None]
    for layer, dilation in zip(network, DILATIONS):
        begin = 0 if source.shape[0] == 1 else start
        for first in range(0, size, SLAB):
            last = min(first + SLAB, size)
            low, high = max(first - dilation, 0), min(last + dilation, size)
            slab = source[None, :, begin + low : begin + high]
            slab = nn.functional.pad(slab, (0, 0, 0, 0, dilation - (first - low), dilation - (high - last)))
            made = nn.functional.conv3d(
                slab, layer.conv.weight, layer.conv.bias, padding=(0, dilation, dilation), dilation=dilation
            )
            features[:, start - dilation + first : start - dilation + last] = layer.adn(made)[0]
        start -= dilation
        source = features
    slabs = features[:, :size].split(SLAB, dim=1)
    return torch.cat([network[-1](slab[None])[0].argmax(0).to(torch.uint8) for slab in slabs])
