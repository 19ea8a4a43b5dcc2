"""Turn a scan or a label map on disk into the network's input.

Only this file sets orientation, spacing, field of view and intensities.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    CopyItemsd,
    Crop,
    EnsureChannelFirstd,
    EnsureTyped,
    InvertibleTransform,
    LoadImaged,
    MapTransform,
    Orientation,
    Pad,
    RandFlipd,
    ScaleIntensityd,
    SpatialResample,
)

from ..shared.image_reader import CheckedReader
from ..shared.label_table import LabelTable
from ..shared.label_transforms import RandMirrord, ToClassesd
from ..shared.map_reader import MapReader
from ..shared.mni_box import affine, size

# Images at most this far from the grid count as on it, because affines are stored in float32.
TOLERANCE_VOXELS = 1e-3


def preprocessing(
    spacing_mm: float,
    scale_intensities: bool = True,
    track_meta: bool = False,
    mirror_probability: float = 0.0,
    table: LabelTable | None = None,
) -> Compose:
    """Make the transforms for an item {"image": path}, with or without "covariates".

    The image becomes a tensor (1, D, H, W) on the model's grid and the covariates a tensor (C,), both in float32. The path
    stays in the item as "file", so that an output can be matched to its input. A label map becomes classes in uint8.

    Args:
        spacing_mm: edge length of a voxel of the model's grid.
        scale_intensities: whether to scale the lowest intensity of each scan to 0 and the highest to 1. Generated volumes
            must keep their intensities, so that a faint one is not brightened.
        track_meta: whether to return a MetaTensor, which can be resampled to the grid of its file.
        mirror_probability: probability of swapping left and right, for training.
        table: label table of the maps; None for scans.
    """
    if table is not None:
        return _of_maps(spacing_mm, track_meta, mirror_probability, table)
    return Compose(
        [
            CopyItemsd("image", names="file"),
            LoadImaged("image", reader=CheckedReader(), image_only=True),
            EnsureChannelFirstd("image"),
            ToGridd("image", spacing_mm),
            *([ScaleIntensityd("image", minv=0.0, maxv=1.0)] if scale_intensities else []),
            EnsureTyped(["image", "covariates"], dtype=torch.float32, track_meta=track_meta, allow_missing_keys=True),
            *([RandFlipd("image", spatial_axis=0, prob=mirror_probability)] if mirror_probability else []),
        ]
    )


def _of_maps(spacing_mm: float, track_meta: bool, mirror_probability: float, table: LabelTable) -> Compose:
    return Compose(
        [
            CopyItemsd("image", names="file"),
            LoadImaged("image", reader=MapReader(table), image_only=True),
            EnsureChannelFirstd("image"),
            ToClassesd("image", table),
            ToGridd("image", spacing_mm, mode="nearest"),
            EnsureTyped("image", dtype=torch.uint8, track_meta=track_meta),
            EnsureTyped("covariates", dtype=torch.float32, allow_missing_keys=True),
            *([RandMirrord("image", "image", table, mirror_probability)] if mirror_probability else []),
        ]
    )


class ToGridd(MapTransform, InvertibleTransform):
    """Bring images (C, X, Y, Z) of any orientation, spacing and position onto the model's grid, padded with zeros.

    The result (C, D, H, W) has the orientation LAS. An image that is shifted by whole voxels keeps its values exactly; any
    other is interpolated, with the `mode` "bilinear" or "nearest".
    """

    def __init__(self, keys: KeysCollection, spacing_mm: float, mode: str = "bilinear") -> None:
        super().__init__(keys)
        self.affine, self.size = affine(spacing_mm), size(spacing_mm)
        self.orient = Orientation(axcodes="LAS", labels=None)
        self.crop, self.pad = Crop(), Pad(mode="constant")
        self.resample = SpatialResample(mode=mode, padding_mode="zeros")

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        return {**data, **{key: self._onto_grid(data[key]) for key in self.keys}}

    def inverse(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        data = dict(data)
        for key in self.keys:
            for transform in (self.resample, self.pad, self.crop, self.orient):
                data[key] = transform.inverse(data[key])
        return data

    def _onto_grid(self, image: MetaTensor) -> MetaTensor:
        image = self.orient(image)
        # Crop and pad by whole voxels first. MONAI's resampling then finds the image on the grid and returns it unchanged;
        # otherwise it would interpolate, with rounding errors even if the voxels coincide.
        start, stop = self._whole_voxels(image)
        shape = image.shape[1:]
        image = self.crop(image, tuple(slice(max(a, 0), b) for a, b in zip(start, stop)))
        image = self.pad(image, [(0, 0), *((max(-a, 0), max(b - n, 0)) for a, b, n in zip(start, stop, shape))])
        return self.resample(image, dst_affine=torch.from_numpy(self.affine), spatial_size=self.size)

    def _whole_voxels(self, image: MetaTensor) -> tuple[list[int], list[int]]:
        """Return the start and end of the grid in the image's voxels, or the whole image if the grid lies between voxels."""
        shape = list(image.shape[1:])
        to_image = np.linalg.inv(np.asarray(image.affine, dtype=float)) @ self.affine
        start = np.round(to_image[:3, 3])
        whole = np.eye(4)
        whole[:3, 3] = start
        corners = np.array(np.meshgrid(*((0, n - 1) for n in self.size))).reshape(3, -1)
        off = (to_image - whole) @ np.vstack([corners, np.ones(8)])
        if np.abs(off).max() > TOLERANCE_VOXELS:
            return [0, 0, 0], shape
        return start.astype(int).tolist(), (start + self.size).astype(int).tolist()
