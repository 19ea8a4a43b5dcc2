"""Run the fusion CNN over a volume in patches or blocks, and merge the pieces into one volume."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from monai.inferers import sliding_window_inference
from monai.transforms.utils import generate_spatial_bounding_box

from ..model.networks import FusionCNN

PATCH = 32  # voxels; Ayaz et al. 2022


def merge_patches(fusion: FusionCNN, volumes: torch.Tensor) -> torch.Tensor:
    """Fuse volumes (B, 3, X, Y, Z) as published (Ayaz et al. 2022): patches of 32 voxels that overlap by half.

    Voxels in several patches are averaged, weighted by a Gaussian around the centre of each patch.
    """
    return sliding_window_inference(volumes, (PATCH,) * 3, 8, fusion, overlap=0.5, mode="gaussian")


def merge_whole(fusion: FusionCNN, volumes: torch.Tensor, inside: torch.Tensor, block: int) -> torch.Tensor:
    """Fuse volumes (B, 3, X, Y, Z) in blocks, which saves memory and gives the same result as one pass.

    `inside` (B, 1, X, Y, Z) is true where there are labels. Voxels outside of the CNN's reach from there are 0.
    """
    around = box_around(inside, fusion.radius)
    image = torch.zeros(inside.shape, device=volumes.device)
    image[around] = in_blocks(fusion, volumes[around], block, fusion.radius).float()
    return image


def in_blocks(network: Callable[[torch.Tensor], torch.Tensor], volumes: torch.Tensor, block: int, margin: int) -> torch.Tensor:
    """Compute `network(volumes)`, (B, 1, X, Y, Z), in blocks with up to `margin` voxels of context."""
    sizes = volumes.shape[2:]
    result = volumes.new_empty((len(volumes), 1, *sizes))
    for starts in product(*(range(0, size, block) for size in sizes)):
        around = [slice(max(start - margin, 0), start + block + margin) for start in starts]
        within = [slice(start - cut.start, start - cut.start + block) for start, cut in zip(starts, around)]
        inside = tuple(slice(start, start + block) for start in starts)
        result[(..., *inside)] = network(volumes[(..., *around)])[(..., *within)].to(result.dtype)
    return result


def box_around(mask: torch.Tensor, margin: int) -> tuple[slice, ...]:
    """Return the index of the box around masks (B, 1, X, Y, Z), enlarged by `margin` voxels; empty around empty masks."""
    low, high = generate_spatial_bounding_box(mask.any(dim=0), margin=margin, allow_smaller=True)
    return (slice(None), slice(None), *map(slice, low, high))
