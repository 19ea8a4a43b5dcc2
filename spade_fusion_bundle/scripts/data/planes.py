"""Convert volumes to axial, coronal and sagittal slices. Only this file has axis numbers; volumes (..., X, Y, Z) are in RAS."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import list_data_collate, pad_list_data_collate
from monai.transforms import MapTransform, Randomizable
from monai.utils import convert_to_tensor

PLANES = ("axial", "coronal", "sagittal")


def _axis(plane: str) -> int:
    # Axis along which the slices are numbered: x to the right, y to the front, z to the top. TorchScript cannot read a dict of
    # the module, so this is a chain of ifs.
    if plane == "axial":
        return 2
    if plane == "coronal":
        return 1
    assert plane == "sagittal", plane
    return 0


AXES = {plane: _axis(plane) for plane in PLANES}


def axis_of(plane: str) -> int:
    """Return the spatial axis along which a plane's slices are numbered, or raise ValueError if there is no such plane."""
    if plane not in AXES:
        raise ValueError(f"no plane is called {plane!r}. Give --plane axial, --plane coronal or --plane sagittal")
    return AXES[plane]


def to_slices(volumes: torch.Tensor, plane: str) -> torch.Tensor:
    """Cut volumes (B, C, X, Y, Z) into one batch of slices (B * slices, C, H, W); the other two axes keep their order."""
    return volumes.movedim(2 + _axis(plane), 1).flatten(0, 1)


def from_slices(slices: torch.Tensor, plane: str, batch: int) -> torch.Tensor:
    """Stack the slices of `to_slices` into volumes (B, C, X, Y, Z)."""
    return slices.unflatten(0, [batch, -1]).movedim(1, 2 + _axis(plane))


def from_the_right(volumes: torch.Tensor) -> torch.Tensor:
    """Flip volumes (B, C, X, Y, Z) from RAS to LAS order, which `tensorboard_panels.three_planes` needs."""
    return volumes.flip(2 + AXES["sagittal"])


class RandSlicesd(MapTransform, Randomizable):
    """Draw random slices (C, H, W) of one plane from volumes (C, X, Y, Z), and return a list of dicts, one for each slice.

    Args:
        keys: keys of volumes of equal size.
        label_key: key of the classes. Slices with only background are drawn rarely, because nothing can be learnt from them
            and they distort the statistics of batch norm.
        plane: axial, coronal or sagittal.
        num_slices: number of slices. No slice is drawn again before all are drawn once.
        empty_fraction: probability that a slice has only background, if there are such slices.
    """

    def __init__(self, keys: KeysCollection, label_key: str, plane: str, num_slices: int, empty_fraction: float = 0.02) -> None:
        super().__init__(keys)
        self.label_key = label_key
        self.axis = axis_of(plane)
        self.num_slices = num_slices
        self.empty_fraction = empty_fraction

    def draw(self, labels: torch.Tensor) -> Sequence[int]:
        """Draw the indices of the slices for classes (1, X, Y, Z), and refuse an empty label map."""
        others = [axis for axis in range(3) if axis != self.axis]
        filled = np.asarray((labels[0] > 0).any(others[1]).any(others[0]))
        if not filled.any():
            raise ValueError(
                f"a label map is nothing but background at the size of training, {tuple(labels.shape[1:])} voxels. Train with "
                f"a smaller --spacing_mm, or leave out scans of a few labelled voxels"
            )
        filled, empty = np.flatnonzero(filled), np.flatnonzero(~filled)
        chosen = [self.R.permutation(filled) for _ in range(1 + self.num_slices // len(filled))]
        chosen = np.concatenate(chosen)[: self.num_slices]
        if len(empty):
            swapped = self.R.random(self.num_slices) < self.empty_fraction
            chosen[swapped] = self.R.choice(empty, swapped.sum())
        return chosen.tolist()

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> list[dict]:
        numbers = self.draw(data[self.label_key])
        return [
            {key: torch.as_tensor(data[key]).select(1 + self.axis, number) for key in self.key_iterator(data)}
            for number in numbers
        ]


def collate_slices(batch: Sequence[list[dict]]) -> dict[str, torch.Tensor]:
    """Join the slices of several volumes to one batch; smaller slices are padded with background, 0 in image and label."""
    slices = list(chain.from_iterable(batch))
    if len({item["label"].shape for item in slices}) == 1:
        return list_data_collate(slices)
    padded = pad_list_data_collate(slices)
    # Padding gives MetaTensors, and everything computed from them, even gradients, would be a slow MetaTensor.
    return convert_to_tensor({key: padded[key] for key in ("image", "label")}, track_meta=False)
