"""The sets of volumes that Table 1 compares: real scans, generated volumes, and trivial answers made from real scans."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.networks.layers import gaussian_1d
from torch.nn.functional import pad
from torch.utils.data import Dataset

from ..data.bids import find_volumes
from ..data.preprocessing import TOLERANCE_VOXELS
from ..shared import mni_box
from ..shared.nifti import open_image
from ..shared.problems import of_each
from ..shared.ssim import filtered
from .grey_values import LEVELS, as_stored

logger = logging.getLogger(__name__)

BLUR_MM = 8.0  # full width at half maximum


class Volumes(Dataset):
    """Volumes (1, D, H, W), 0 to 1 in steps of 1/255, read one at a time.

    Generated volumes are stored in 8 bits. Real scans are rounded to the same steps. Otherwise the faint noise in their
    background would have a structure that generated volumes cannot have. Items have the path "image" and the "participant_id",
    and `transform` turns them into {"image": (1, D, H, W) in 0 to 1}. A volume that is constant in 8 bits is refused when it is
    read.
    """

    def __init__(self, items: Sequence[dict], transform: Callable[[dict], dict]) -> None:
        self.items = list(items)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.levels(index)).float() / (LEVELS - 1)

    def levels(self, index: int) -> np.ndarray:
        """Read a volume (1, D, H, W) in levels of 0 to 255."""
        return self._stored(index, self.transform(self.items[index])["image"])

    def _stored(self, index: int, volume: torch.Tensor) -> np.ndarray:
        levels = as_stored(torch.as_tensor(volume).clamp(0, 1).numpy())
        if levels.min() == levels.max():
            where, value = self.items[index]["image"], levels.min() / (LEVELS - 1)
            raise ValueError(f"{where}: is constant ({value:.2g}) in 8 bits, as it is or blurred. Leave it out")
        return levels


class Blurred(Volumes):
    """Up to `number` of the volumes, drawn by `seed`, smoothed by a Gaussian of 8 mm: an example of a set without details."""

    def __init__(self, volumes: Volumes, spacing_mm: float, number: int, seed: int) -> None:
        self.volumes = volumes
        self.rows = sorted(np.random.default_rng(seed).permutation(len(volumes))[:number].tolist())
        self.items = [volumes.items[row] for row in self.rows]
        self.kernel = gaussian_1d(torch.tensor(BLUR_MM / (2 * math.sqrt(2 * math.log(2))) / spacing_mm))

    def levels(self, index: int) -> np.ndarray:
        volume = pad(self.volumes[self.rows[index]][None], [len(self.kernel) // 2] * 6)
        return self._stored(index, filtered(volume, [self.kernel] * 3)[0])


class Remembered(Volumes):
    """The same volumes, with the last `number` kept at 1 byte per voxel, because a volume is in several pairs."""

    def __init__(self, volumes: Volumes, number: int) -> None:
        self.volumes, self.items, self.number = volumes, volumes.items, number
        self.kept: dict[int, np.ndarray] = {}

    def levels(self, index: int) -> np.ndarray:
        if index not in self.kept:
            if len(self.kept) >= self.number:
                del self.kept[next(iter(self.kept))]
            self.kept[index] = self.volumes.levels(index)
        return self.kept[index]


class Repeated(Volumes):
    """One volume three times: an example of a set without diversity. More copies would not change the scores."""

    def __init__(self, volume: torch.Tensor) -> None:
        self.volume, self.items = volume, [{"image": "", "participant_id": f"mean-{n}"} for n in (1, 2, 3)]

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.volume


def find_samples(
    samples: Mapping[str, str] | None,
    spacing_mm: float,
    fewest: int,
    taken: Container[str] = (),
    cache_file: str | Path | None = None,
    scans: Iterable[Mapping] = (),
) -> dict[str, list[dict]]:
    """Find the volumes of each generated set with `find_volumes`, and check that they can be compared.

    Args:
        samples: folder of each set, by the name of the set.
        spacing_mm: spacing of the grid that the volumes must lie on.
        fewest: smallest number of participants in a set.
        taken: reserved names that no set may have.
        cache_file: file that records checked images.
        scans: scans of the data set, items from `read_dataset`. A set must not contain any of them.
    """
    if not isinstance(samples, Mapping) or not samples:
        raise ValueError(f"samples: expected names and folders of generated volumes, {{'LDM': DIR}}, got {samples!r}")
    own = {scan["voxels_sha256"]: scan["image"] for scan in scans}
    found, same = {}, {}
    for name, folder in samples.items():
        if not str(name).strip():
            raise ValueError(f"samples: the set of {folder} has an empty name. Give it one, such as LDM")
        if name in taken:
            raise ValueError(f"samples: the name {name!r} is reserved for another row. Choose another")
        found[name] = find_volumes(folder, spacing_mm, cache_file)
        refuse_few(found[name], name, fewest)
        _refuse_copies(found[name], name, own)
        of_each(lambda item: _refuse_unlike_generated(item, spacing_mm), found[name], f"volumes of {name} cannot be compared:")
        other = same.setdefault(frozenset(item["voxels_sha256"] for item in found[name]), name)
        if other != name:
            raise ValueError(
                f"samples: {other!r} ({samples[other]}) and {name!r} ({folder}) are the same volumes. Leave one out"
            )
    return found


def _refuse_copies(items: Sequence[Mapping], name: str, own: Mapping[str, str]) -> None:
    """Refuse copies of the data set's scans, `own` (hash of the voxels to path). Warn about copies within the set."""
    copies = [(item["image"], own[item["voxels_sha256"]]) for item in items if item["voxels_sha256"] in own]
    if copies:
        raise ValueError(
            f"{name}: {len(copies)} of {len(items)} volumes are scans of the data set itself, such as {copies[0][0]} (the "
            f"voxels of {copies[0][1]}). Give the folder of generated volumes"
        )
    repeated = len(items) - len({item["voxels_sha256"] for item in items})
    if repeated:
        logger.warning(
            f"{name}: {repeated} of {len(items)} volumes have the same voxels as another. Either files were copied (leave "
            f"these out, because intervals count them as samples), or the generator repeats itself"
        )


def _refuse_unlike_generated(item: Mapping, spacing_mm: float) -> None:
    """Refuse intensities outside of 0 to 1, and voxels off the grid, because interpolation would blur the set."""
    path, size = item["image"], mni_box.size(spacing_mm)
    if item["lowest"] < -1e-3 or item["highest"] > 1 + 1e-3:
        raise ValueError(
            f"{path}: has intensities of {item['lowest']:g} to {item['highest']:g}; generated volumes are not rescaled and "
            f"must lie in 0 to 1"
        )
    image = open_image(path)
    to_grid = np.linalg.inv(mni_box.affine(spacing_mm)) @ image.affine  # from voxels to voxels
    shape = tuple(image.shape[axis] for axis in np.abs(to_grid[:3, :3]).argmax(axis=1))
    remedy = "Generate it on the grid, because volumes are not moved, cropped or padded here"
    if shape != size:
        raise ValueError(
            f"{path}: has {' x '.join(map(str, shape))} voxels (left, anterior, superior), the model's grid "
            f"{' x '.join(map(str, size))}. {remedy}"
        )
    corners = nib.affines.apply_affine(to_grid, list(itertools.product(*((0, n - 1) for n in image.shape))))
    off = np.abs([corners.min(axis=0), corners.max(axis=0) - np.subtract(size, 1)]).max()
    if off > TOLERANCE_VOXELS:
        raise ValueError(f"{path}: lies {off:.2g} voxels ({off * spacing_mm:.2g} mm) away from the model's grid. {remedy}")


def halves(participants: Sequence[str], seed: int | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Draw a random half of the participants, and return the rows of this half and the rows of the other half."""
    people, person = np.unique(participants, return_inverse=True)
    first = np.random.default_rng(seed).permutation(len(people))[: len(people) // 2]
    chosen = np.isin(person, first)
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def count_participants(items: Sequence[dict]) -> int:
    return len({item["participant_id"] for item in items})


def refuse_few(items: Sequence[dict], name: str, fewest: int) -> None:
    if (people := count_participants(items)) < fewest:
        raise ValueError(f"{name}: volumes of {people} participants; at least {fewest} are needed to compare distributions")
