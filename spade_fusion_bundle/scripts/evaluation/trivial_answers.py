"""Trivial answers that a network must beat: the mean intensity of each class, and the most frequent class of each voxel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import nibabel as nib
import numpy as np
import torch
from monai.utils import convert_to_tensor
from tqdm import tqdm

from ..shared.nifti import named, open_image

logger = logging.getLogger(__name__)

INTENSITY_BINS = 64
AFFINE_TOLERANCE = 1e-3  # mm; rounding of a quaternion, not another position


def mean_intensity(items: Sequence[dict], preprocessing: Callable, num_classes: int) -> torch.Tensor:
    """Compute the mean intensity (num_classes,) of each class over all voxels of the scans; background is 0.

    A class that is in no scan gets the mean of the whole foreground, with a warning. One scan is in memory at a time.
    """
    if not items:
        raise ValueError("no training scans to learn the mean intensity of each class from. Is the training split empty?")
    sums = torch.zeros(num_classes, dtype=torch.float64)
    counts = torch.zeros(num_classes, dtype=torch.float64)
    for image, classes in _pairs(items, preprocessing, "mean intensity per class"):
        classes = classes.flatten().long()
        sums += torch.bincount(classes, weights=image.flatten().double(), minlength=num_classes)
        counts += torch.bincount(classes, minlength=num_classes)
    sums[0] = counts[0] = 0
    unseen = [number for number in range(1, num_classes) if not counts[number]]
    if unseen:
        logger.warning(
            f"classes {', '.join(map(str, unseen))} are in none of the {len(items)} training scans: the label-mean baseline "
            f"paints them with the mean of the whole foreground, {sums.sum() / counts.sum():.3f}"
        )
    means = torch.where(counts > 0, sums / counts.clamp(min=1), sums.sum() / counts.sum())
    means[0] = 0
    return means.float()


def paint(classes: torch.Tensor, intensities: torch.Tensor) -> torch.Tensor:
    """Paint each voxel of `classes` with the intensity of its class."""
    return intensities.to(classes.device)[classes.long()]


def most_frequent(
    training: Sequence[Mapping], test: Sequence[Mapping], preprocessing: Callable, num_classes: int
) -> tuple[str, torch.nn.Module]:
    """Make the trivial segmentation: the most frequent class of each voxel over the training maps, whatever the scan.

    If the training and test scans do not share one grid, it is the most frequent class of each intensity instead.

    Returns:
        its name, and a module from images (1, 1, D, H, W) to classes (1, 1, D, H, W).
    """
    grids = [_grid(item["label"]) for item in (*training, *test)]
    same = all(shape == grids[0][0] and np.allclose(affine, grids[0][1], atol=AFFINE_TOLERANCE) for shape, affine in grids)
    name, kind = ("trivial: by position", ByPosition) if same else ("trivial: by intensity", ByIntensity)
    return name, kind(training, preprocessing, num_classes)


def _grid(path: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the shape and the affine of a file in RAS order."""
    with named(path):
        image = open_image(path)
    orientation = nib.io_orientation(image.affine)
    shape = np.empty(3, dtype=int)
    shape[orientation[:, 0].astype(int)] = image.shape[:3]
    return tuple(shape.tolist()), image.affine @ nib.orientations.inv_ornt_aff(orientation, image.shape[:3])


def _pairs(items: Sequence[Mapping], preprocessing: Callable, description: str):
    for item in tqdm(items, desc=description, leave=False):
        volumes = preprocessing(dict(item))
        yield tuple(convert_to_tensor(volumes[key], track_meta=False) for key in ("image", "label"))


class ByPosition(torch.nn.Module):
    """Predict the most frequent class of each voxel, or the first of equally frequent ones."""

    def __init__(self, items: Sequence[Mapping], preprocessing: Callable, num_classes: int) -> None:
        super().__init__()
        votes = None
        for _, classes in _pairs(items, preprocessing, "most frequent class per voxel"):
            if votes is None:
                votes = torch.zeros((num_classes, *classes.shape[1:]), dtype=torch.int16)
            votes.scatter_add_(0, classes.long(), torch.ones_like(classes, dtype=torch.int16))
        self.register_buffer("classes", votes.argmax(dim=0)[None, None])  # (1, 1, D, H, W)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classes.expand(len(image), -1, -1, -1, -1)


class ByIntensity(torch.nn.Module):
    """Predict the most frequent class of each of 64 intensities, which cannot distinguish left and right."""

    def __init__(self, items: Sequence[Mapping], preprocessing: Callable, num_classes: int) -> None:
        super().__init__()
        votes = torch.zeros(INTENSITY_BINS * num_classes, dtype=torch.int64)
        for image, classes in _pairs(items, preprocessing, "most frequent class per intensity"):
            both = self._bins(image) * num_classes + classes.long()
            votes += torch.bincount(both.flatten(), minlength=len(votes))
        self.register_buffer("classes", votes.view(INTENSITY_BINS, num_classes).argmax(dim=1))

    @staticmethod
    def _bins(image: torch.Tensor) -> torch.Tensor:
        return (image * INTENSITY_BINS).long().clamp(0, INTENSITY_BINS - 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.classes[self._bins(image)]
