"""SPADE generator and discriminator (Park et al. 2019), the 3-D CNN that fuses three planes, and the path through all."""

from __future__ import annotations

import copy
import json

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm
from torch.nn.utils.parametrize import is_parametrized

from ..data.planes import PLANES, from_slices, to_slices

__all__ = ["FusionCNN", "SpadeDiscriminator", "SpadeFusion", "SpadeGenerator", "one_hot"]


def one_hot(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Classes (N, 1, H, W) as float channels (N, num_labels, H, W). Done per batch on the device: it is L times the size."""
    return F.one_hot(labels[:, 0].long(), num_labels).movedim(3, 1).float()


def is_recorded() -> bool:
    """Is a graph being recorded, for ONNX or by tracing? Then nothing may depend on values: all slices count as filled."""
    if torch.jit.is_scripting():
        return False
    else:  # TorchScript does not look in here
        return torch.jit.is_tracing() or torch.compiler.is_exporting()


def conv2d(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, bias: bool = True,
    spectral: bool = False,
) -> nn.Conv2d:  # fmt: skip
    """A convolution that starts as Park et al.'s do: weights normal (Xavier, gain 0.02), biases 0; spectral norm if asked."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=bias)
    nn.init.xavier_normal_(conv.weight, gain=0.02)  # before the norm takes the weight over
    if bias:
        nn.init.zeros_(conv.bias)
    return spectral_norm(conv, eps=1e-12) if spectral else conv


class Recipe(nn.Module):
    """A network whose state dict carries what it needs beyond weights: `recipe`, a JSON-able dict."""

    def __init__(self) -> None:
        super().__init__()
        self.recipe: dict = {}

    def get_extra_state(self) -> torch.Tensor:
        # As a tensor, because every tool that reads a state dict expects tensors in it.
        return torch.tensor(list(json.dumps(self.recipe).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.recipe = json.loads(bytes(state.tolist()))


class SpadeNorm(nn.Module):
    """Spatially adaptive normalisation (Park et al. 2019, Sec. 3, Eq. 1): the labels say scale and shift at each pixel."""

    def __init__(self, channels: int, num_labels: int, hidden: int) -> None:
        super().__init__()
        self.base_norm = nn.BatchNorm2d(channels, affine=False)
        self.embed = conv2d(num_labels, hidden, 3, padding=1)
        self.to_scale = conv2d(hidden, channels, 3, padding=1)
        self.to_shift = conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Features (N, C, h, w) and one-hot labels (N, L, h, w)."""
        embedded = F.relu(self.embed(labels))  # (N, hidden, h, w)
        # 1 + scale: the last layer starts near zero, and this one as a plain normalisation
        return self.base_norm(x) * (1 + self.to_scale(embedded)) + self.to_shift(embedded)


class SpadeBlock(nn.Module):
    """Residual block with SPADE norms (Park et al. 2019, Fig. 4). The shortcut is learnt where the width changes."""

    __constants__ = ["learned_shortcut"]  # so that TorchScript leaves out the branch that a block has no layers for

    def __init__(self, in_channels: int, out_channels: int, num_labels: int, hidden: int, spectral: bool) -> None:
        super().__init__()
        middle = min(in_channels, out_channels)
        self.norm1 = SpadeNorm(in_channels, num_labels, hidden)
        self.conv1 = conv2d(in_channels, middle, 3, padding=1, spectral=spectral)
        self.norm2 = SpadeNorm(middle, num_labels, hidden)
        self.conv2 = conv2d(middle, out_channels, 3, padding=1, spectral=spectral)
        self.learned_shortcut = in_channels != out_channels
        if self.learned_shortcut:
            self.shortcut_norm = SpadeNorm(in_channels, num_labels, hidden)
            self.shortcut_conv = conv2d(in_channels, out_channels, 1, bias=False, spectral=spectral)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        shortcut = x
        if self.learned_shortcut:
            shortcut = self.shortcut_conv(self.shortcut_norm(x, labels))
        x = self.conv1(F.leaky_relu(self.norm1(x, labels), 0.2))
        x = self.conv2(F.leaky_relu(self.norm2(x, labels), 0.2))
        return shortcut + x


class SpadeGenerator(Recipe):
    """Label slices to image slices (Park et al. 2019, as released: "normal" depth, no noise, no encoder).

    Args:
        num_labels: classes.
        ngf: width; the seven blocks have 16, 16, 16, 8, 4, 2 and 1 times as many channels. Park et al.: 64.
        out_channels: of the image. Park et al. make 3 (colours); a T1w slice is 1.
        hidden: channels between the labels and a norm's scale and shift. Park et al.: 128.
        spectral: spectral norm on the blocks' convolutions. False is for weights that have it computed in already.
    """

    __constants__ = ["factor"]
    factor = 32  # five upsamplings by two

    def __init__(self, num_labels: int, ngf: int = 64, out_channels: int = 1, hidden: int = 128, spectral: bool = True) -> None:
        super().__init__()
        self.num_labels = num_labels
        widths = [16 * ngf, 16 * ngf, 16 * ngf, 16 * ngf, 8 * ngf, 4 * ngf, 2 * ngf, ngf]
        self.stem = conv2d(num_labels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            SpadeBlock(before, after, num_labels, hidden, spectral) for before, after in zip(widths[:-1], widths[1:])
        )
        self.to_image = conv2d(ngf, out_channels, 3, padding=1)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """Image slices (N, C, H, W) in -1 to 1, for classes (N, 1, H, W) of 0 to num_labels - 1.

        Raises:
            ValueError: H or W is no multiple of 32.
        """
        height, width = labels.shape[2], labels.shape[3]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"slices of {height} x {width}: both sides must be multiples of {self.factor}, because the generator doubles "
                f"its grid five times. Pad them with background (pad_to_multiple {self.factor})"
            )
        labels = labels.float()
        size = [height // self.factor, width // self.factor]
        segmentation = self.resized(labels, size)
        x = self.stem(segmentation)  # (N, 16 ngf, H / 32, W / 32)
        for number, block in enumerate(self.blocks):
            if number not in (0, 2):  # the first block works on the stem's grid, the two middle ones share theirs
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                size = [2 * size[0], 2 * size[1]]
                segmentation = self.resized(labels, size)
            x = block(x, segmentation)
        return torch.tanh(self.to_image(F.leaky_relu(x, 0.2)))  # (N, C, H, W)

    def resized(self, labels: torch.Tensor, size: list[int]) -> torch.Tensor:
        """One-hot labels at a size; which pixel is kept is the upper left one of each square."""
        return one_hot(F.interpolate(labels, size=size, mode="nearest"), self.num_labels)

    def volumes(self, labels: torch.Tensor, plane: str, slices_per_batch: int) -> torch.Tensor:
        """Volumes (B, 1, X, Y, Z) from 0 to 1, made slice by slice of one plane. Empty slices are 0 and cost nothing."""
        slices = to_slices(labels, plane)  # (B * slices, 1, H, W)
        images = torch.zeros(slices.shape, device=labels.device)
        if is_recorded():
            filled = torch.arange(len(slices), device=labels.device)
        else:
            filled = (slices > 0).flatten(1).any(dim=1).nonzero()[:, 0]
        for numbers in filled.split(slices_per_batch):
            images[numbers] = 0.5 * (self(slices[numbers]).float() + 1)
        return from_slices(images, plane, labels.shape[0]) * (labels > 0)


class PatchDiscriminator(nn.Module):
    """One scale of the discriminator: five convolutions of 4 x 4, padding 2, so that n pixels become n // stride + 1."""

    def __init__(self, in_channels: int, ndf: int) -> None:
        super().__init__()
        widths = [min(ndf * 2**level, 8 * ndf) for level in range(4)]
        self.layers = nn.ModuleList(
            conv2d(before, after, 4, stride=1 if level == 3 else 2, padding=2, bias=level == 0, spectral=level > 0)
            for level, (before, after) in enumerate(zip([in_channels, *widths[:-1]], widths))
        )
        self.layers.append(conv2d(widths[-1], 1, 4, padding=2))

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        outputs = []
        for level, layer in enumerate(self.layers):
            x = layer(x)
            if 0 < level < 4:
                x = F.instance_norm(x)
            if level < 4:
                x = F.leaky_relu(x, 0.2)
            outputs.append(x)
        return outputs


class SpadeDiscriminator(nn.Module):
    """Does an image belong to its labels? Two networks of five layers, on the slice and on one half its size.

    Args:
        num_labels: classes.
        ndf: width of the first layer; up to eight times that further on. Park et al.: 64.
        image_channels: of the image.
    """

    def __init__(self, num_labels: int, ndf: int = 64, image_channels: int = 1) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.scales = nn.ModuleList(PatchDiscriminator(num_labels + image_channels, ndf) for _ in range(2))

    def forward(self, labels: torch.Tensor, image: torch.Tensor) -> list[list[torch.Tensor]]:
        """Per scale four feature maps and the scores of the patches, for classes (N, 1, H, W) and image (N, C, H, W)."""
        x = torch.cat([one_hot(labels, self.num_labels), image], dim=1)  # (N, L + C, H, W)
        outputs = []
        for scale in self.scales:
            outputs.append(scale(x))
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return outputs


class FusionCNN(nn.Module):
    """One volume from three: their mean plus what a small CNN corrects. It starts as the mean.

    There is no normalisation, so that what a voxel becomes depends on its surroundings alone and patches agree. The abstract
    of Ayaz et al. gives no layers; these are chosen.

    Args:
        channels: of the hidden layers.
        layers: convolutions of 3 x 3 x 3, `radius` voxels of reach.
    """

    def __init__(self, channels: int = 32, layers: int = 6) -> None:
        super().__init__()
        self.radius = layers
        widths = [len(PLANES), *[channels] * (layers - 1), 1]
        self.convs = nn.ModuleList(nn.Conv3d(before, after, 3, padding=1) for before, after in zip(widths[:-1], widths[1:]))
        nn.init.zeros_(self.convs[-1].weight)
        nn.init.zeros_(self.convs[-1].bias)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """Volume (B, 1, X, Y, Z) of the planes' volumes (B, 3, X, Y, Z), both about 0 to 1."""
        x = volumes
        for number, conv in enumerate(self.convs):
            x = conv(x if number == 0 else F.relu(x))
        return volumes.mean(dim=1, keepdim=True) + x


class SpadeFusion(Recipe):
    """The whole path from labels to T1w: three generators, slice by slice, and the fusion of their volumes.

    Its generators have their spectral norm computed in. `recipe` says what it was trained for: label table, spacing, sizes.

    Args:
        num_labels, ngf, hidden: of the generators.
        fusion_channels, fusion_layers: of the fusion CNN.
        slices_per_batch: how many slices pass through a generator at once; no result depends on it.
    """

    def __init__(
        self, num_labels: int, ngf: int = 64, hidden: int = 128, fusion_channels: int = 32, fusion_layers: int = 6,
        slices_per_batch: int = 12,
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_labels = num_labels
        self.slices_per_batch = slices_per_batch
        self.generators = nn.ModuleDict(
            {plane: SpadeGenerator(num_labels, ngf, hidden=hidden, spectral=False) for plane in PLANES}
        )
        self.fusion = FusionCNN(fusion_channels, fusion_layers)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """T1w (B, 1, X, Y, Z) from 0 to 1 for classes (B, 1, X, Y, Z) in RAS order, sides multiples of 32.

        Where the class is 0, background, the result is exactly 0.

        Raises:
            ValueError: a class beyond the last, or a side that is no multiple of 32.
        """
        return self.fuse(self.slice_volumes(labels), labels)

    def slice_volumes(self, labels: torch.Tensor) -> torch.Tensor:
        """The volumes of the three planes (B, 3, X, Y, Z) from 0 to 1, in the order axial, coronal, sagittal."""
        labels = labels.round()
        if not is_recorded() and (labels.max() >= self.num_labels or labels.min() < 0):
            raise ValueError(
                f"classes from {int(labels.min())} to {int(labels.max())}: this network knows 0 to {self.num_labels - 1}. "
                f"Map label values to classes with the table that it was trained with"
            )
        volumes = []
        for plane, generator in self.generators.items():
            volumes.append(generator.volumes(labels, plane, self.slices_per_batch))
        return torch.cat(volumes, dim=1)

    def fuse(self, volumes: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """One volume from 0 to 1 of the three, in one pass over the whole volume."""
        return self.fusion(volumes).clamp(0, 1) * (labels > 0.5)

    def take_generator(self, plane: str, generator: SpadeGenerator) -> None:
        """Copy a trained generator, its spectral norm computed into the weights."""
        self.generators[plane].load_state_dict(without_spectral_norm(generator))


def without_spectral_norm(generator: SpadeGenerator) -> dict[str, torch.Tensor]:
    """The state of a generator without spectral norm that gives the images which this one gives in eval mode."""
    # A copy, because reading a weight in training mode moves its norm's estimate. `remove_parametrizations` is of no use: it
    # changes the copy's class, which is the generator's too.
    twin = copy.deepcopy(generator).eval()
    state = {key: value for key, value in twin.state_dict().items() if ".parametrizations." not in key}
    for name, module in twin.named_modules():
        if is_parametrized(module):
            state[f"{name}.weight"] = module.weight.detach()
    return state
