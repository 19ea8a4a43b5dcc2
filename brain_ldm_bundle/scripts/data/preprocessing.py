"""From a scan on disk to the network's input: orientation, grid and intensities, the same for every workflow."""

from __future__ import annotations

import torch
from monai.transforms import Compose, EnsureChannelFirstd, EnsureTyped, LoadImaged, RandFlipd, ScaleIntensityd

from .grid import ToGridd

__all__ = ["preprocessing"]


def preprocessing(
    spacing_mm: float, scale_intensities: bool = True, track_meta: bool = False, mirror_probability: float = 0.0
) -> Compose:
    """Transforms of an item {"image": path} or {"image": path, "covariates": scaled numbers}.

    The image becomes a float32 tensor (1, D, H, W) on the model's grid, in the orientation LAS. The covariates become a
    float32 tensor (C,).

    Args:
        spacing_mm: side of a voxel of the model's grid.
        scale_intensities: scale each scan from its lowest to its highest intensity to [0, 1]. Generated volumes have that
            range already and keep the values that were written, so that a faint volume is not made bright.
        track_meta: give a MetaTensor, which can be brought back to the grid of its file.
        mirror_probability: probability that left and right are exchanged, for training.
    """
    transforms = [
        LoadImaged("image", image_only=True),
        EnsureChannelFirstd("image"),
        ToGridd("image", spacing_mm),
        *([ScaleIntensityd("image", minv=0.0, maxv=1.0)] if scale_intensities else []),
        EnsureTyped(["image", "covariates"], dtype=torch.float32, track_meta=track_meta, allow_missing_keys=True),
        *([RandFlipd("image", spatial_axis=0, prob=mirror_probability)] if mirror_probability else []),
    ]
    return Compose(transforms)
