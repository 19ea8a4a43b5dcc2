"""Keep the scans of the autoencoder's training in memory, or on disk as whole numbers on the model's grid."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from monai.data import CacheDataset
from monai.transforms import Compose, RandomizableTrait
from torch.utils.data import Dataset

from ..shared.files import atomic, code_sha256, version
from .preprocessing import ToGridd

LEVELS = {"uint8": 255, "uint16": 65535}


def scans(
    data: Sequence[dict],
    transform: Compose,
    cache_rate: float = 0.0,
    stored_as: str | None = None,
    cache_dir: str | Path = "cache",
) -> Dataset:
    """Make the data set of scans.

    Args:
        data: items of `bids.read_dataset`.
        transform: `preprocessing`, which random transforms may follow.
        cache_rate: share of the scans that is kept in memory, if none is stored.
        stored_as: "uint8" or "uint16" stores each scan in `cache_dir` when it is read for the first time; None stores none.
        cache_dir: folder of the stored scans.
    """
    if stored_as is None:
        return CacheDataset(data, transform, cache_rate=cache_rate, progress=False)
    parts = transform.flatten().transforms
    first = next((i for i, part in enumerate(parts) if isinstance(part, RandomizableTrait)), len(parts))
    return StoredScans(data, Compose(parts[:first]), Compose(parts[first:]), cache_dir, stored_as)


@dataclass(eq=False)
class StoredScans(Dataset):
    """Scans that are read, brought to the model's grid and rounded once. Later epochs read an array of whole numbers.

    MONAI's PersistentDataset would keep float32, notice no change of a scan, and stop at a file that was cut short.
    """

    data: Sequence[dict]
    transform: Callable  # from an item to one with "image" (1, D, H, W) in [0, 1], without random parts
    augmentation: Callable  # random transform of such an item
    cache_dir: str | Path
    dtype: str  # "uint8" rounds to 1/255, "uint16" to 1/65535

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> dict:
        item, file = self.data[index], self.file(index)
        try:
            stored = np.load(file)
        except (OSError, ValueError, EOFError):  # missing or damaged
            image = self.transform({"image": item["image"]})["image"]
            stored = np.round(image.numpy() * np.float32(LEVELS[self.dtype])).astype(self.dtype)
            with atomic(file) as opened:
                np.save(opened, stored)
        image = torch.from_numpy(stored.astype(np.float32)) / LEVELS[self.dtype]
        covariates = torch.tensor(item["covariates"], dtype=torch.float32)
        return self.augmentation({**item, "file": item["image"], "image": image, "covariates": covariates})

    def file(self, index: int) -> Path:
        """Return the file of one scan, whose name depends on the code, the grid, and the scan's path, size and date."""
        grid = next(part.affine for part in self.transform.transforms if isinstance(part, ToGridd)).tolist()
        identity = f"{code_sha256()} {version(Path(self.data[index]['image']).resolve())} {grid} {self.dtype}"
        return Path(self.cache_dir) / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"
