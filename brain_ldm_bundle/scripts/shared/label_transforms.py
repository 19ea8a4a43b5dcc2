"""Transforms of label maps: from label values to classes, and mirroring."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import MapTransform, RandomizableTransform
from monai.utils import convert_to_dst_type

from .label_table import LabelTable


class ToClassesd(MapTransform):
    """Convert label maps (1, D, H, W) to classes (1, D, H, W) of uint8 by a label table."""

    def __init__(self, keys: KeysCollection, table: LabelTable) -> None:
        super().__init__(keys)
        self.table = table

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        data = dict(data)
        for key in self.key_iterator(data):
            where = str(getattr(data[key], "meta", {}).get("filename_or_obj", f"label map {key!r}"))
            classes = self.table.classes(np.asarray(torch.as_tensor(data[key]).cpu()), where)
            data[key], *_ = convert_to_dst_type(classes, data[key], dtype=torch.uint8)
        return data


class RandMirrord(RandomizableTransform, MapTransform):
    """Mirror a head on its grid: flip left and right, and swap the classes that have a side.

    All volumes of the keys (channels, X, Y, Z) are in RAS or LAS order. The volumes of `label_key` hold classes of `table`.
    """

    def __init__(self, keys: KeysCollection, label_key: str, table: LabelTable, prob: float = 0.5) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.label_key = label_key
        self.mirror = torch.from_numpy(table.mirror)

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        data = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return data
        for key in self.key_iterator(data):
            # MONAI's Flip also flips the affine, so that the head in space would not be mirrored.
            mirrored = torch.as_tensor(data[key]).flip(1)
            if key == self.label_key:
                mirrored = self.mirror.to(mirrored.device)[mirrored.long()].to(mirrored.dtype)
            data[key], *_ = convert_to_dst_type(mirrored, data[key], dtype=mirrored.dtype)
        return data
