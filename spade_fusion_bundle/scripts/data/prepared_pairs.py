"""Store prepared pairs of scan and label map on disk, so that each is read and resampled once."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from copy import deepcopy

import torch
from monai.data import PersistentDataset
from monai.utils import convert_to_tensor

from ..shared.files import code_sha256, read_tensors, save_weights, version
from ..shared.map_reader import map_files


def pair_key(item: Mapping, settings: Sequence) -> bytes:
    """Return the name of a prepared pair in a cache.

    It depends on the files' paths, sizes and dates, on `settings`, and on the code that prepares pairs.
    """
    versions = [version(path) for path in (item["image"], *map_files(item["label"]))]
    return hashlib.sha256(json.dumps([code_sha256(), versions, settings]).encode()).hexdigest()[:32].encode()


class PreparedPairs(PersistentDataset):
    """A `PersistentDataset` that never leaves an incomplete file, and makes a file again that was cut short.

    MONAI's own copies files from another disk, so a full disk or a killed run leaves a part, and the next run ends there.
    """

    def _cachecheck(self, item_transformed: Mapping) -> dict[str, torch.Tensor]:
        file = self.cache_dir / f"{self.hash_func(item_transformed).decode()}{self.transform_hash}.pt"
        if not zipfile.is_zipfile(file):  # `torch.save` writes a zip file, whose table is at its end
            prepared = self._pre_transform(deepcopy(item_transformed))
            save_weights(convert_to_tensor(prepared, convert_numeric=False, track_meta=self.track_meta), file)
        return read_tensors(file)
