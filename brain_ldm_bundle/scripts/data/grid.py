"""Bring images onto the model's grid: orientation, spacing and field of view."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, InvertibleTransform, MapTransform, Orientation, Pad, SpatialResample

from ..shared.mni_box import BRAIN_MM, FIELD_OF_VIEW_MM, LOWER_CORNER_MM, affine, size

__all__ = ["BRAIN_MM", "FIELD_OF_VIEW_MM", "LOWER_CORNER_MM", "ToGrid", "ToGridd", "affine", "size"]

# Images this close to the grid, in voxels, are taken as lying on it: affines are stored in float32.
TOLERANCE_VOXELS = 1e-3


class ToGrid(InvertibleTransform):
    """Bring an image (C, ...) of any orientation, spacing and place onto the grid: (C, D, H, W), zeros where it ends.

    Voxels that only move by whole voxels keep their values exactly; others are interpolated.

    Args:
        spacing_mm: of the grid.
        mode: "bilinear", or "nearest" for label maps.
    """

    def __init__(self, spacing_mm: float, mode: str = "bilinear") -> None:
        self.affine, self.size = affine(spacing_mm), size(spacing_mm)
        self.orient = Orientation(axcodes="LAS", labels=None)
        self.crop, self.pad = Crop(), Pad(mode="constant")
        self.resample = SpatialResample(mode=mode, padding_mode="zeros")

    def __call__(self, image: MetaTensor) -> MetaTensor:
        image = self.orient(image)
        # Whole voxels are cropped and padded here: then MONAI's resampling finds the image on the grid and returns it
        # as it is. Left alone, it interpolates, with rounding errors even where voxel meets voxel.
        start, stop = self._whole_voxels(image)
        shape = image.shape[1:]
        image = self.crop(image, tuple(slice(max(a, 0), b) for a, b in zip(start, stop, strict=True)))
        border = [(max(-a, 0), max(b - n, 0)) for a, b, n in zip(start, stop, shape, strict=True)]
        image = self.pad(image, [(0, 0), *border])
        return self.resample(image, dst_affine=torch.from_numpy(self.affine), spatial_size=self.size)

    def inverse(self, image: MetaTensor) -> MetaTensor:
        for transform in (self.resample, self.pad, self.crop, self.orient):
            image = transform.inverse(image)
        return image

    def _whole_voxels(self, image: MetaTensor) -> tuple[list[int], list[int]]:
        """First and end index of the grid in the image's voxels; the image's own, if they fall between voxels."""
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


class ToGridd(MapTransform, InvertibleTransform):
    """`ToGrid` for dictionaries; it comes after LoadImaged and EnsureChannelFirstd.

    Args:
        keys: of the images.
        spacing_mm, mode: as `ToGrid`.
        allow_missing_keys: leave out keys that an item does not have.
    """

    def __init__(
        self, keys: KeysCollection, spacing_mm: float, mode: str = "bilinear", allow_missing_keys: bool = False
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.to_grid = ToGrid(spacing_mm, mode)

    def __call__(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        return {**data, **{key: self.to_grid(data[key]) for key in self.key_iterator(data)}}

    def inverse(self, data: Mapping[Hashable, MetaTensor]) -> dict[Hashable, MetaTensor]:
        return {**data, **{key: self.to_grid.inverse(data[key]) for key in self.key_iterator(data)}}
