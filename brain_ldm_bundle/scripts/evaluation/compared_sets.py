"""Sets of volumes as they are compared: real scans and generated ones, read one at a time, and what is made of real scans."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from monai.transforms import GaussianSmooth
from torch.utils.data import Dataset

from ..data.bids import find_volumes
from ..data.preprocessing import TOLERANCE_VOXELS
from ..shared import mni_box
from .grey_values import LEVELS, as_stored

__all__ = ["Blurred", "Remembered", "Repeated", "Volumes", "count_participants", "find_samples", "halves", "refuse_few"]

logger = logging.getLogger(__name__)

BLUR_MM = 8.0  # full width at half maximum


class Volumes(Dataset):
    """Volumes (1, D, H, W), 0 to 1 in steps of 1/255, read one at a time.

    Generated volumes are stored in 8 bits. Real scans are rounded to the same steps: otherwise the faint noise of their
    background would have a structure that no generated volume can have.

    Args:
        items: {"image": path, "participant_id": "sub-X"}.
        transform: from an item to {"image": (1, D, H, W)}.

    Raises (on reading):
        ValueError: NaN, values outside of 0 to 1, a constant volume; with its path.
    """

    def __init__(self, items: Sequence[dict], transform: Callable[[dict], dict]) -> None:
        self.items = list(items)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> torch.Tensor:
        item = self.items[index]
        volume = torch.as_tensor(self.transform(item)["image"]).float()
        if not torch.isfinite(volume).all():
            raise ValueError(f"{item['image']}: has voxels that are NaN or infinite. Generate or prepare it again")
        lowest, highest = float(volume.min()), float(volume.max())
        _refuse_range(item["image"], lowest, highest)
        levels = as_stored(volume.clamp(0, 1).numpy())
        if levels.min() == levels.max():
            raise ValueError(f"{item['image']}: is constant ({lowest:g}): there is nothing to compare. Leave it out")
        return torch.from_numpy(levels).float() / (LEVELS - 1)


class Blurred(Dataset):
    """The same volumes through a Gaussian, in 8 bits as all others: what a set looks like that has no details."""

    def __init__(self, volumes: Volumes, spacing_mm: float) -> None:
        self.volumes, self.items = volumes, volumes.items
        self.smooth = GaussianSmooth(BLUR_MM / (2 * math.sqrt(2 * math.log(2))) / spacing_mm)

    def __len__(self) -> int:
        return len(self.volumes)

    def __getitem__(self, index: int) -> torch.Tensor:
        blurred = torch.as_tensor(self.smooth(self.volumes[index])).clamp(0, 1)
        return torch.from_numpy(as_stored(blurred.numpy())).float() / (LEVELS - 1)


class Remembered(Dataset):
    """The same volumes, of which those read last stay in memory at 1 byte per voxel: a volume is in several pairs.

    Args:
        volumes: in steps of 1/255.
        number: that stay.
    """

    def __init__(self, volumes: Volumes | Blurred, number: int) -> None:
        @functools.lru_cache(maxsize=number)
        def levels(index: int) -> np.ndarray:
            return as_stored(volumes[index].numpy())

        self.items, self.levels = volumes.items, levels

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self.levels(index)).float() / (LEVELS - 1)


class Repeated(Dataset):
    """One volume three times: what a set looks like that has no diversity. More copies would not change a number."""

    def __init__(self, volume: torch.Tensor) -> None:
        self.volume, self.items = volume, [{"image": "", "participant_id": f"mean-{n}"} for n in (1, 2, 3)]

    def __len__(self) -> int:
        return len(self.items)

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
    """The volumes of each generated set, by its name.

    Args:
        samples: name to folder.
        spacing_mm: of the grid that they must lie on.
        fewest: participants of a set.
        taken: names that no set may have.
        cache_file: of checked images, as `find_volumes`.
        scans: the study's own, items of `read_dataset`, none of which can be a sample.

    Raises:
        ValueError: no sets, a name that is one of ours, volumes of another grid or range of intensities, or too few of them;
            copies of the study's scans, or a whole set under two names.
        FileNotFoundError: a folder that is not there.
    """
    if not isinstance(samples, Mapping) or not samples:
        raise ValueError(f"samples: expected names and folders of generated volumes, {{'LDM': DIR}}, got {samples!r}")
    for name in samples:
        if name in taken:
            raise ValueError(f"samples: {name!r} is the name of a row that is always there. Choose another")
    own = {scan["voxels_sha256"]: scan["image"] for scan in scans}
    found, same = {}, {}
    for name, folder in samples.items():
        found[name] = find_volumes(folder, spacing_mm, cache_file)
        refuse_few(found[name], name, fewest)
        _refuse_copies(found[name], name, own)
        for item in found[name]:
            _refuse_off_grid(item["image"], spacing_mm)
            _refuse_range(item["image"], item["lowest"], item["highest"])
        other = same.setdefault(frozenset(item["voxels_sha256"] for item in found[name]), name)
        if other != name:
            raise ValueError(
                f"samples: {other!r} ({samples[other]}) and {name!r} ({folder}) are the same volumes. Leave one out"
            )
    return found


def _refuse_copies(items: Sequence[Mapping], name: str, own: Mapping[str, str]) -> None:
    """Of the study's scans (`own`: their paths by the hash of their voxels); of each other they are counted, with a warning."""
    copies = [(item["image"], own[item["voxels_sha256"]]) for item in items if item["voxels_sha256"] in own]
    if copies:
        raise ValueError(
            f"{name}: {len(copies)} of {len(items)} volumes are scans of the data set itself, such as {copies[0][0]} (the "
            f"voxels of {copies[0][1]}). Give the folder of generated volumes"
        )
    repeated = len(items) - len({item["voxels_sha256"] for item in items})
    if repeated:
        logger.warning(
            f"{name}: {repeated} of {len(items)} volumes have the very voxels of another. Either files were copied (leave "
            f"these out, intervals count them as samples), or the generator repeats itself"
        )


def _refuse_range(path: str, lowest: float, highest: float) -> None:
    if lowest < -1e-3 or highest > 1 + 1e-3:
        raise ValueError(
            f"{path}: has intensities of {lowest:g} to {highest:g}; generated volumes are taken as they are and "
            f"must lie in 0 to 1"
        )


def _refuse_off_grid(path: str, spacing_mm: float) -> None:
    """Any order and direction of axes, but the grid's voxels: a set that is interpolated would be compared blurred."""
    image, size = nib.load(path), mni_box.size(spacing_mm)
    turn = nib.orientations.ornt_transform(nib.io_orientation(image.affine), nib.orientations.axcodes2ornt("LAS"))
    shape = tuple(np.array(image.shape)[np.argsort(turn[:, 0])])
    remedy = "Generate it on the grid; nothing is moved, cropped or padded here"
    if shape != size:
        raise ValueError(
            f"{path}: has {' x '.join(map(str, shape))} voxels (left, anterior, superior), the model's grid "
            f"{' x '.join(map(str, size))}. {remedy}"
        )
    affine = image.affine @ nib.orientations.inv_ornt_aff(turn, image.shape)
    corners = np.array(np.meshgrid(*((0, n - 1) for n in size))).reshape(3, -1).T
    places = nib.affines.apply_affine(np.linalg.inv(mni_box.affine(spacing_mm)) @ affine, corners)
    if (off := np.abs(places - corners).max()) > TOLERANCE_VOXELS:
        raise ValueError(f"{path}: lies {off:.2g} voxels ({off * spacing_mm:.2g} mm) beside the model's grid. {remedy}")


def halves(participants: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a random half of the participants, and of the others: nobody is in both."""
    people, person = np.unique(participants, return_inverse=True)
    first = np.random.default_rng(seed).permutation(len(people))[: len(people) // 2]
    chosen = np.isin(person, first)
    return np.flatnonzero(chosen), np.flatnonzero(~chosen)


def count_participants(items: Sequence[dict]) -> int:
    return len({item["participant_id"] for item in items})


def refuse_few(items: Sequence[dict], name: str, fewest: int) -> None:
    if (people := count_participants(items)) < fewest:
        raise ValueError(f"{name}: volumes of {people} participants; at least {fewest} are needed to compare distributions")
