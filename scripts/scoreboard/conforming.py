"""Bring a T1w volume of any grid, orientation and intensity convention onto the project's grid, with one kind of mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from measurement.volume_net import (
    CLASSES,
    MOST_ZEROS,
    SPACING_MM,
    VOXEL_ML,
    fraction_of_brain_covered,
    from_black,
    near_largest,
    on_grid,
    scale_intensity,
)
from shared import mni_box
from shared.head_mask import head_mask
from shared.nifti import grey_values, named, read_volume
from torch.utils.data import Dataset

WHITE_PERCENTILE = 99.5  # of the voxels in the mask
FEWEST_BRAIN_ML = 300  # as in measure_volumes.py
LEAST_COVERED = 0.95  # of the MNI brain inside the field of view, as in measure_volumes.py

Change = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]  # of the voxels and the affine of a volume


@dataclass
class Head:
    """A volume on the grid of `mni_box`, in LAS order."""

    image: torch.Tensor  # (D, H, W), 0 to 1, and 0 outside of the mask
    mask: torch.Tensor
    outline_ml: float  # volume of all that is brighter than air, with the holes in it
    volumes_ml: dict[str, float]  # volume of each structure; with the mask "head", there are none
    misplaced: bool  # whether the header places the brain outside of the field of view


@dataclass
class Files(Dataset):
    """Voxels and affine of each file, with "", or nothing with the reason why the file is refused."""

    paths: list[Path]
    aligned: bool = False  # whether to register each volume rigidly to MNI space first
    affines: Sequence[np.ndarray] | None = None  # affine of each file, if it was found before
    change: Change | None = None  # plants a defect in each volume

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray | None, np.ndarray | None, str]:
        try:
            values, affine = read(self.paths[index])
            if self.affines is not None:
                affine = self.affines[index]
            elif self.aligned:
                with named(self.paths[index]):
                    affine = aligned(values, affine)
        except ValueError as refusal:
            return None, None, str(refusal)
        return *(self.change(values, affine) if self.change else (values, affine)), ""


def aligned(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the affine that places a head in MNI space, by the rigid registration of prepare_data.py."""
    from registration.rigid import register  # here, because ITK takes long to import
    from registration.template import ras_matrix, to_sitk

    spacing_mm = nib.affines.voxel_sizes(affine)
    rigid, _ = register(to_sitk(values, spacing_mm, affine[:3, :3] / spacing_mm, affine[:3, 3]))
    return np.linalg.inv(ras_matrix(rigid)) @ affine


def read(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read the voxels of a T1w volume, with a background of 0, and its affine. The message of an error names the file."""
    image = read_volume(path)
    with named(path):
        values = grey_values(image).astype(np.float32)
        outside = values == 0
        if values.min() < 0 and outside.mean() > MOST_ZEROS:  # z-scored inside of a mask
            values[outside] = values.min()
        return from_black(values), image.affine


def conform(values: np.ndarray, affine: np.ndarray, spacing_mm: float, network: torch.nn.Module | None) -> Head:
    """Resample a volume by its affine, mask it, and scale the 99.5th percentile inside of the mask to 1.

    Args:
        values: voxels in any orientation, with a background of 0.
        affine: matrix from voxel indices to RAS mm.
        spacing_mm: edge length of a voxel of the grid.
        network: network of measure_volumes.py. It finds the space inside of the skull, with or without a skull in the image,
            and the volumes of the structures. None masks the head by Otsu's threshold instead.

    Raises:
        ValueError: there is no head or no brain.
    """
    image, volumes_ml = on_grid(values, affine, spacing_mm), {}
    if not image.max() > image.min():
        raise ValueError("its affine places no voxel that varies in MNI space. Correct the header")
    outline = head_mask(image.numpy())
    if network is None:
        mask = torch.from_numpy(outline)
    else:
        fine = on_grid(values, affine, SPACING_MM).to(next(network.parameters()).device)
        probabilities = torch.softmax(network(scale_intensity(fine)[None, None]), 1)[0].cpu()
        labels = probabilities.max(0).indices.numpy()
        inside = near_largest(labels > 0, 1) & (probabilities[0] < 0.5)
        volumes_ml = {name: float(p[inside].sum()) * VOXEL_ML for name, p in zip(CLASSES[1:], probabilities[1:], strict=True)}
        volumes_ml["ventricles"] = float(probabilities[-1][near_largest(labels == 4, 2)].sum()) * VOXEL_ML
        if (brain_ml := volumes_ml["grey"] + volumes_ml["white"]) < FEWEST_BRAIN_ML:
            raise ValueError(f"only {brain_ml:.0f} mL of brain found. Is it a T1w in MNI space?")
        mask = F.interpolate(inside[None, None].float(), mni_box.size(spacing_mm), mode="area")[0, 0] > 0.5
    white = float(np.percentile(image[mask].numpy(), WHITE_PERCENTILE))
    if white <= 0:
        raise ValueError("is 0 where the head should be. Correct the header")
    image = (image / white).clamp(0, 1) * mask
    misplaced = fraction_of_brain_covered(affine, values.shape) < LEAST_COVERED
    image, mask = image.flip(0).contiguous(), mask.flip(0).contiguous()  # from RAS to LAS
    return Head(image, mask, float(outline.sum()) * spacing_mm**3 / 1000, volumes_ml, misplaced)
