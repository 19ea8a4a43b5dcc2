"""SPADE generator and discriminator (Park et al. 2019), the fusion CNN, and the complete model from labels to T1w."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from ..data.planes import PLANES, from_slices, to_slices
from ..shared.recipe import WithRecipe
from .spade_norm import SpadeNorm, conv2d


def one_hot(labels: torch.Tensor, num_labels: int) -> torch.Tensor:
    """Convert classes (N, 1, H, W) to float channels (N, num_labels, H, W)."""
    return F.one_hot(labels[:, 0].long(), num_labels).movedim(3, 1).float()


def is_recorded() -> bool:
    """Check whether ONNX export or tracing records a graph, which must not depend on the values of a tensor."""
    if torch.jit.is_scripting():
        return False
    else:  # TorchScript does not compile this branch
        return torch.jit.is_tracing() or torch.compiler.is_exporting()


class SpadeBlock(nn.Module):
    """Residual block with SPADE norms (Park et al. 2019, Fig. 4). A block that changes the width has a learnt shortcut."""

    __constants__ = ["learned_shortcut"]  # so that TorchScript skips the branch whose layers a block lacks

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


class SpadeGenerator(WithRecipe):
    """Generate image slices from label slices (Park et al. 2019, as released: "normal" depth, no noise, no encoder).

    Args:
        num_labels: number of classes, including the background.
        ngf: channels of the last block; the seven blocks have 16, 16, 16, 8, 4, 2 and 1 times as many. Park et al.: 64.
        out_channels: channels of the image: 1 for T1w, 3 for the colour images of Park et al.
        hidden: channels of the hidden layer in each SPADE norm. Park et al.: 128.
        spectral: whether the blocks' convolutions have spectral norm; False for weights that already include it.
    """

    __constants__ = ["factor"]
    factor = 32  # five upsamplings by two

    def __init__(self, num_labels: int, ngf: int = 64, out_channels: int = 1, hidden: int = 128, spectral: bool = True) -> None:
        super().__init__()
        self.recipe: dict = {}
        self.num_labels = num_labels
        widths = [16 * ngf, 16 * ngf, 16 * ngf, 16 * ngf, 8 * ngf, 4 * ngf, 2 * ngf, ngf]
        self.stem = conv2d(num_labels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList(
            SpadeBlock(before, after, num_labels, hidden, spectral) for before, after in zip(widths[:-1], widths[1:])
        )
        self.to_image = conv2d(ngf, out_channels, 3, padding=1)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """Make image slices (N, C, H, W), intensities -1 to 1, from classes (N, 1, H, W), 0 to num_labels - 1.

        H and W must be multiples of 32.
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
            if number not in (0, 2):  # block 0 has the stem's grid, block 2 has block 1's grid
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
                size = [2 * size[0], 2 * size[1]]
                segmentation = self.resized(labels, size)
            x = block(x, segmentation)
        return torch.tanh(self.to_image(F.leaky_relu(x, 0.2)))  # (N, C, H, W)

    def resized(self, labels: torch.Tensor, size: list[int]) -> torch.Tensor:
        """Return one-hot labels at another size by nearest neighbour, which keeps the upper left pixel of each square."""
        return one_hot(F.interpolate(labels, size=size, mode="nearest"), self.num_labels)

    def volumes(self, labels: torch.Tensor, plane: str, slices_per_batch: int) -> torch.Tensor:
        """Make volumes (B, 1, X, Y, Z), intensities 0 to 1, from slices of one plane; slices without labels stay 0."""
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
    """One scale of the discriminator: five convolutions of 4 x 4, padding 2; n pixels become n // stride + 1."""

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
    """Judge whether an image fits its labels, by one network on the slice and one on the slice at half the resolution.

    Args:
        num_labels: number of classes, including the background.
        ndf: channels of the first layer; later layers have up to eight times as many. Park et al.: 64.
        image_channels: channels of the image.
    """

    def __init__(self, num_labels: int, ndf: int = 64, image_channels: int = 1) -> None:
        super().__init__()
        self.num_labels = num_labels
        self.scales = nn.ModuleList(PatchDiscriminator(num_labels + image_channels, ndf) for _ in range(2))

    def forward(self, labels: torch.Tensor, image: torch.Tensor) -> list[list[torch.Tensor]]:
        """Return four feature maps and the patches' scores of each scale, for classes (N, 1, H, W), images (N, C, H, W)."""
        x = torch.cat([one_hot(labels, self.num_labels), image], dim=1)  # (N, L + C, H, W)
        outputs = []
        for scale in self.scales:
            outputs.append(scale(x))
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return outputs


class FusionCNN(nn.Module):
    """Fuse the volumes of three planes into their mean plus a correction by a small CNN, which is zero at the start.

    The CNN has no normalisation, so a voxel depends only on its neighbourhood and overlapping patches agree. Ayaz et al. 2022
    do not describe the layers, so the design is ours.

    Args:
        channels: channels of the hidden layers.
        layers: number of 3 x 3 x 3 convolutions, and so the radius of the neighbourhood in voxels.
    """

    def __init__(self, channels: int = 32, layers: int = 6) -> None:
        super().__init__()
        self.radius = layers
        widths = [len(PLANES), *[channels] * (layers - 1), 1]
        self.convs = nn.ModuleList(nn.Conv3d(before, after, 3, padding=1) for before, after in zip(widths[:-1], widths[1:]))
        nn.init.zeros_(self.convs[-1].weight)
        nn.init.zeros_(self.convs[-1].bias)

    def forward(self, volumes: torch.Tensor) -> torch.Tensor:
        """Fuse the planes' volumes (B, 3, X, Y, Z) into one (B, 1, X, Y, Z); intensities about 0 to 1."""
        x = volumes
        for number, conv in enumerate(self.convs):
            x = conv(x if number == 0 else F.relu(x))
        return volumes.mean(dim=1, keepdim=True) + x


class SpadeFusion(WithRecipe):
    """The complete model from labels to T1w: three generators make slices, and the fusion CNN merges their volumes.

    The generators' weights include spectral norm. `recipe` holds the label table, spacing and sizes of the training.
    A generator processes up to `slices_per_batch` slices at once, which affects speed and memory but not the result.
    """

    recipe_needs = ("spacing_mm", "labels")  # for `network_of`

    def __init__(
        self, num_labels: int, ngf: int = 64, hidden: int = 128, fusion_channels: int = 32, fusion_layers: int = 6,
        slices_per_batch: int = 12,
    ) -> None:  # fmt: skip
        super().__init__()
        self.recipe: dict = {}
        self.num_labels = num_labels
        self.slices_per_batch = slices_per_batch
        self.generators = nn.ModuleDict(
            {plane: SpadeGenerator(num_labels, ngf, hidden=hidden, spectral=False) for plane in PLANES}
        )
        self.fusion = FusionCNN(fusion_channels, fusion_layers)

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """Make T1w (B, 1, X, Y, Z), intensities 0 to 1, from classes (B, 1, X, Y, Z) in RAS order.

        All sides must be multiples of 32. The background, class 0, is exactly 0 in the result.
        """
        return self.fuse(self.slice_volumes(labels), labels)

    def slice_volumes(self, labels: torch.Tensor) -> torch.Tensor:
        """Make the axial, coronal and sagittal volumes (B, 3, X, Y, Z), intensities 0 to 1, from classes (B, 1, X, Y, Z)."""
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
        """Merge the three volumes into one, intensities 0 to 1, in one pass over the whole volume."""
        return self.fusion(volumes).clamp(0, 1) * (labels > 0.5)


def without_spectral_norm(generator: SpadeGenerator) -> dict[str, torch.Tensor]:
    """Return the state dict of an equivalent generator without spectral norm (in eval mode)."""
    training = generator.training
    generator.eval()  # in training mode, reading a weight changes the estimate of its norm
    state = {key: value for key, value in generator.state_dict().items() if ".parametrizations." not in key}
    for name, module in generator.named_modules():
        if is_parametrized(module):
            state[f"{name}.weight"] = module.weight.detach()
    generator.train(training)
    return state
