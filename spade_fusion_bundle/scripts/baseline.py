"""The trivial synthesis: every class painted with its mean intensity in the training scans. A network has to beat it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import torch
from monai.utils import convert_to_tensor
from tqdm import tqdm

__all__ = ["mean_intensity", "paint"]

logger = logging.getLogger(__name__)


def mean_intensity(items: Sequence[dict], preprocessing: Callable, num_classes: int) -> torch.Tensor:
    """Mean intensity of each class over all voxels of the scans, (num_classes,), float32; background is 0.

    One scan is in memory at a time. A class that no scan has gets the mean of the whole foreground, with a warning.

    Args:
        items: of the training split, {"image", "label", "participant_id"}.
        preprocessing: gives "image" (1, D, H, W) from 0 to 1 and "label" (1, D, H, W), classes 0 to num_classes - 1.
        num_classes: with background, class 0.

    Raises:
        ValueError: no scans; a scan that is not finite; a class beyond the last; nothing but background.
    """
    if not items:
        raise ValueError("no training scans to learn the mean intensity of each class from. Is the training split empty?")
    sums = torch.zeros(num_classes, dtype=torch.float64)
    counts = torch.zeros(num_classes, dtype=torch.float64)
    for item in tqdm(items, desc="mean intensity per class", leave=False):
        volumes = preprocessing(item)
        image, classes = (convert_to_tensor(volumes[key], track_meta=False).flatten() for key in ("image", "label"))
        if not torch.isfinite(image).all():
            raise ValueError(f"{item['participant_id']}: the scan {item['image']} has intensities that are not finite")
        if classes.max() >= num_classes:
            raise ValueError(
                f"{item['participant_id']}: the label map {item['label']} has the class {int(classes.max())}, but the table "
                f"ends with class {num_classes - 1}. Use the label table of the weights"
            )
        sums += torch.bincount(classes.long(), weights=image.double(), minlength=num_classes)
        counts += torch.bincount(classes.long(), minlength=num_classes)
    sums[0] = counts[0] = 0
    if not counts.any():
        raise ValueError(f"the {len(items)} training label maps hold nothing but background")
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
    """The volume in which each voxel has its class's intensity, in the shape of `classes`."""
    return intensities.to(classes.device)[classes.long()]
