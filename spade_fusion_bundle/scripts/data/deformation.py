"""Make new anatomies from label maps by smooth random deformations that neither tear nor fold."""

from __future__ import annotations

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F
from monai.config import KeysCollection
from monai.networks.blocks import DVF2DDF, Warp
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type

POINTS_PER_CONTROL = 8  # integration points per distance of the control points, with linear interpolation between them


def refuse_folding(deformation_mm: float, scale_mm: float) -> None:
    """Raise ValueError if a deformation could fold, which is possible if its amplitude is above half of its scale."""
    if not (scale_mm > 0 and 0 <= deformation_mm <= scale_mm / 2):
        raise ValueError(
            f"deformation_mm {deformation_mm} with deformation_scale_mm {scale_mm}: the amplitude must be from 0 to half of "
            f"the scale, or anatomy could fold over itself"
        )


def random_displacement_mm(
    shape: Sequence[int], spacing_mm: Sequence[float], deformation_mm: float, seed: int, scale_mm: float = 40.0
) -> torch.Tensor:
    """Draw the displacement (3, D, H, W), in mm along the array's axes, from each voxel to the point it takes its value from.

    Velocities are random at control points `scale_mm` apart, with cubic B-splines between them (Rueckert et al. 1999). They are
    integrated over one unit of time by scaling and squaring (Arsigny et al. 2006), so the map is smooth and invertible. The
    field is defined in mm from the array's corner, so it does not depend on the voxel size.

    Args:
        shape: number of voxels (D, H, W).
        spacing_mm: voxel size along each axis.
        deformation_mm: root mean square of the velocity's length over the volume. It is about the same for the displacement,
            whose maximum is two to three times as large.
        seed: seed of the velocities.
        scale_mm: distance between control points.
    """
    points = [
        min(n, math.ceil((n - 1) * size / scale_mm * POINTS_PER_CONTROL) + 1) for n, size in zip(shape, spacing_mm, strict=True)
    ]
    # First and last point lie at the centres of the first and the last voxel.
    positions_mm = [size * torch.linspace(0.5, n - 0.5, m) for n, size, m in zip(shape, spacing_mm, points)]
    steps_mm = [size * (n - 1) / max(m - 1, 1) or size for n, size, m in zip(shape, spacing_mm, points)]
    controls = [math.ceil(n * size / scale_mm) + 3 for n, size in zip(shape, spacing_mm)]

    velocity = torch.randn((3, *controls), generator=torch.Generator().manual_seed(seed))
    weights = [_spline(position / scale_mm, m) for position, m in zip(positions_mm, controls)]
    velocity = torch.einsum("cijk,xi,yj,zk->cxyz", velocity, *weights)  # (3, points)
    velocity *= deformation_mm / velocity.square().sum(dim=0).mean().sqrt()
    steps_mm = torch.tensor(steps_mm).view(1, 3, 1, 1, 1)
    displacement = _quiet(DVF2DDF, padding_mode="border")(velocity[None] / steps_mm) * steps_mm  # (1, 3, points)
    return F.interpolate(displacement, size=tuple(shape), mode="trilinear", align_corners=True)[0]


def deform(
    labels: torch.Tensor, spacing_mm: Sequence[float], deformation_mm: float, seed: int, scale_mm: float = 40.0
) -> torch.Tensor:
    """Deform a label map (D, H, W) by `random_displacement_mm`, with nearest neighbours and border padding."""
    if deformation_mm == 0:
        return labels.clone()
    displacement = random_displacement_mm(labels.shape, spacing_mm, deformation_mm, seed, scale_mm)
    displacement /= torch.tensor(spacing_mm, dtype=torch.float32).view(3, 1, 1, 1)
    warp = _quiet(Warp, mode="nearest", padding_mode="border")
    # float32 holds every integer up to 2^24; FreeSurfer's largest value is 14 175
    return warp(labels[None, None].float(), displacement[None])[0, 0].to(labels.dtype)


class DeformLabelsd(MapTransform):
    """Deform label maps (1, D, H, W) on their own grid if the item has a "deformation_seed"."""

    def __init__(self, keys: KeysCollection, deformation_mm: float, scale_mm: float = 40.0) -> None:
        super().__init__(keys)
        refuse_folding(deformation_mm, scale_mm)
        self.deformation_mm = deformation_mm
        self.scale_mm = scale_mm

    def __call__(self, data: Mapping[Hashable, torch.Tensor]) -> dict[Hashable, torch.Tensor]:
        data = dict(data)
        if "deformation_seed" in data:
            for key in self.key_iterator(data):
                spacing_mm = nib.affines.voxel_sizes(np.asarray(data[key].affine))
                labels, seed = data[key].as_tensor()[0], int(data["deformation_seed"])
                labels = deform(labels, spacing_mm.tolist(), self.deformation_mm, seed, self.scale_mm)
                data[key], *_ = convert_to_dst_type(labels[None], data[key])
        return data


def _spline(positions: torch.Tensor, controls: int) -> torch.Tensor:
    """Compute the weights (positions, controls) of cubic B-splines; control k lies at position k - 1."""
    distance = (positions[:, None] - (torch.arange(controls) - 1)).abs()
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = (2 - distance).clamp(min=0) ** 3 / 6
    return torch.where(distance < 1, near, far)


def _quiet(layer: type[torch.nn.Module], **options: str) -> torch.nn.Module:
    """Make a layer without MONAI's warning that its C++ extensions are not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return layer(**options)
