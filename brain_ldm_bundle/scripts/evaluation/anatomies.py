"""Read volumes for the audit in worker processes: the anatomy of each training scan once, and all views of other volumes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..shared.files import atomic, code_sha256, sha256, version
from ..shared.nifti import named
from . import nearest_scan


@dataclass
class Views(Dataset):
    """Volumes (1, D, H, W) on the model's grid, each with the anatomy of its views, (14, F)."""

    data: Sequence[Mapping]  # items with the path "image"
    transform: Callable  # from such an item to one with "image" (1, D, H, W)
    spacing_mm: float

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        volume = torch.as_tensor(self.transform(self.data[index])["image"])
        return volume, anatomy_of_views(volume, self.spacing_mm, self.data[index]["image"])


def anatomy_of_views(volume: torch.Tensor, spacing_mm: float, path: str) -> torch.Tensor:
    with named(path):
        return torch.stack([nearest_scan.anatomy(view, spacing_mm) for _, view in nearest_scan.views(volume, spacing_mm)])


@dataclass
class Anatomies(Dataset):
    """The anatomy (F,) of each scan, which is computed once and stored on disk.

    A file's name depends on the code, the scan's path, size and date, and the spacing.
    """

    data: Sequence[Mapping]  # as for `Views`
    transform: Callable
    spacing_mm: float
    cache_dir: str | Path

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> torch.Tensor:
        scan, file = self.data[index]["image"], self.file(index)
        try:
            return torch.from_numpy(np.load(file))
        except (OSError, ValueError, EOFError):  # missing or damaged
            with named(scan):
                found = nearest_scan.anatomy(torch.as_tensor(self.transform(self.data[index])["image"]), self.spacing_mm)
            with atomic(file) as opened:
                np.save(opened, found.numpy())
            return found

    def file(self, index: int) -> Path:
        code, scan = code_sha256() + sha256(nearest_scan.__file__), version(Path(self.data[index]["image"]).resolve())
        identity = f"{code} {scan} {self.spacing_mm}"
        return Path(self.cache_dir) / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.npy"

    def all(self, num_workers: int = 0) -> torch.Tensor:
        """Return the anatomies of all scans, (n, F)."""
        vectors = torch.empty(len(self), len(self[0]))
        loader = DataLoader(self, batch_size=None, num_workers=num_workers)
        for row, vector in zip(vectors, tqdm(loader, "training scans", leave=False), strict=True):
            row.copy_(vector)
        return vectors
