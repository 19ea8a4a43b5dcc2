"""The model's grid: the only place that knows which box of MNI space its volumes fill."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import Crop, InvertibleTransform, MapTransform, Orientation, Pad, SpatialResample

__all__ = ["BRAIN_MM", "FIELD_OF_VIEW_MM", "LOWER_CORNER_MM", "ToGrid", "ToGridd", "affine", "size"]

# Right, anterior, superior. The field of view of Pinaya et al. 2022. The corner follows from the published bundle: the
# affine of its saver moved by the crop that was made before, so that the first voxel of 1 mm, of the stored order, is
# centred at (80.481, -125.477, -60.554).
FIELD_OF_VIEW_MM = (160, 224, 160)
LOWER_CORNER_MM = (-79.019, -125.977, -61.054)

# Bounding box of the MNI152 brain (mask of ICBM 2009a), its lowest 11 mm cut off by the grid: lower and upper corner.
BRAIN_MM = ((-72.5, -107.5, -61.054), (72.5, 73.5, 82.5))

# Images this close to the grid, in voxels, are taken as lying on it: affines are stored in float32.
TOLERANCE_VOXELS = 1e-3


def size(spacing_mm: float) -> tuple[int, int, int]:
    """Voxels along left, anterior and superior: 160, 224, 160 at 1 mm.

    Raises:
        ValueError: voxels of this size do not fill the box.
    """
    voxels = np.divide(FIELD_OF_VIEW_MM, spacing_mm) if spacing_mm > 0 else np.zeros(3)
    if (voxels < 0.5).any() or np.abs(voxels - np.round(voxels)).max() > 1e-6:
        raise ValueError(f"spacing_mm {spacing_mm} does not divide {FIELD_OF_VIEW_MM} mm, the field of view. Use 1, 2, 4 or 8")
    return tuple(int(n) for n in np.round(voxels))


def affine(spacing_mm: float) -> np.ndarray:
    """4x4, from voxel indices of a network's volume to RAS mm; voxel order LAS, as the published model's.

    Raises:
        ValueError: as `size`.
    """
    size(spacing_mm)
    first = np.array(LOWER_CORNER_MM) + spacing_mm / 2
    first[0] = LOWER_CORNER_MM[0] + FIELD_OF_VIEW_MM[0] - spacing_mm / 2
    matrix = np.diag([-spacing_mm, spacing_mm, spacing_mm, 1.0])
    matrix[:3, 3] = first
    return matrix


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
