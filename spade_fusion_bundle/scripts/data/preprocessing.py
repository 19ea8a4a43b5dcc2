"""Prepare scans and label maps: the only place that fixes orientation and spacing, and scales intensities.

Volumes come out in RAS order at the model's spacing: scans with intensities 0 to 1, label maps as classes (see labels.py).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch
from monai.config import KeysCollection
from monai.transforms import (
    Compose,
    CopyItemsd,
    CropForegroundd,
    DivisiblePadd,
    EnsureChannelFirstd,
    EnsureTyped,
    LoadImaged,
    MaskIntensityd,
    Orientationd,
    ScaleIntensityRangePercentilesd,
    SelectItemsd,
    Spacingd,
    Transform,
)
from monai.transforms.utils import convert_applied_interp_mode

from .deformation import DeformLabelsd
from .labels import LabelTable, ToClassesd

PAIR = ("image", "label")
FILES = ("scan_file", "map_file")
SIDE_MULTIPLE = 32  # the generators halve a slice five times


def scan_and_map(table: LabelTable, spacing_mm: float) -> Compose:
    """Prepare a scan and its label map for training and evaluation; both are cut to the labels and padded to 32 voxels.

    The scan is 0 where the map is background, such as the skull around a brain map, because a synthetic image is 0 there.

    Returns:
        transform of {"image", "label"}, two paths, to volumes (1, X, Y, Z), float32 and uint8; the paths are kept as
        "scan_file" and "map_file".
    """
    mask_scan = MaskIntensityd("image", mask_key="label")
    crop = CropForegroundd(PAIR, source_key="label", allow_smaller=True, start_coord_key=None, end_coord_key=None)
    return Compose(
        [
            *_load_in_ras(table, spacing_mm),
            mask_scan,
            crop,
            _scale_intensities(),
            mask_scan,  # again: in a scan with negative values 0 was not the lowest
            DivisiblePadd(PAIR, k=SIDE_MULTIPLE),
            _to_tensors(),
        ]
    )


def scan_to_segment(table: LabelTable, spacing_mm: float) -> Compose:
    """Prepare a scan and its label map for segmentation: the scan without use of the map, which a new scan does not have.

    Returns:
        transform of {"image", "label"} as `scan_and_map`, of the whole field of view.
    """
    keep = SelectItemsd((*PAIR, *FILES, "participant_id"), allow_missing_keys=True)
    return Compose([*_load_in_ras(table, spacing_mm), _scale_intensities(), _to_tensors(), keep])


def label_map_to_synthesise(
    table: LabelTable, spacing_mm: float, pad_to_multiple: int, deformation_mm: float, deformation_scale_mm: float
) -> Compose:
    """Prepare a label map for synthesis; `Invertd` brings the image back to the map's own grid.

    The map is cut to its labels, with sides that are multiples of `pad_to_multiple`; 1 keeps the whole map. Items with a
    "deformation_seed" are deformed, see deformation.py.

    Returns:
        transform of {"image": path} to "image": classes in RAS order at the model's spacing, "dseg": the (deformed) label
        values on the map's own grid, "classes": their classes.
    """
    crop = CropForegroundd("image", source_key="image", k_divisible=pad_to_multiple, start_coord_key=None, end_coord_key=None)
    return Compose(
        [
            LoadImaged("image"),
            EnsureChannelFirstd("image"),
            DeformLabelsd("image", deformation_mm, deformation_scale_mm),
            CopyItemsd("image", names="dseg"),
            ToClassesd("image", table),
            CopyItemsd("image", names="classes"),
            Orientationd("image", axcodes="RAS", labels=None),
            ToModelSpacingd("image", spacing_mm),
            *([crop] if pad_to_multiple > 1 else []),
        ]
    )


def map_and_scan(batch: Mapping, device: torch.device, non_blocking: bool = False, **kwargs) -> tuple:
    """Input and target of a synthesis for MONAI's engines (`prepare_batch`): classes and scan, each (B, 1, X, Y, Z)."""
    return tuple(torch.as_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in ("label", "image"))


class ToModelSpacingd(Spacingd):
    """Resample classes (1, D, H, W) to the model's voxels by nearest neighbour; the inverse resamples the image linearly."""

    def __init__(self, keys: KeysCollection, spacing_mm: float) -> None:
        super().__init__(keys, pixdim=(spacing_mm,) * 3, mode="nearest")

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        # Without the other entries: Spacingd 1.6.1 takes every entry named image_* for metadata, and fails on the
        # "image_path" of MONAI Label.
        moved = super().__call__({key: data[key] for key in self.key_iterator(data)}, lazy)
        for labels in moved.values():
            labels.applied_operations = convert_applied_interp_mode(labels.applied_operations, mode="bilinear")
        return {**data, **moved}


def _load_in_ras(table: LabelTable, spacing_mm: float) -> list[Transform]:
    return [
        CopyItemsd(PAIR, names=FILES),
        LoadImaged(PAIR, image_only=True),
        EnsureChannelFirstd(PAIR),
        Orientationd(PAIR, axcodes="RAS", labels=None),
        ToClassesd("label", table),
        Spacingd(PAIR, pixdim=spacing_mm, mode=("bilinear", "nearest")),
    ]


def _scale_intensities() -> Transform:
    """The lowest intensity becomes 0 and the 99.8th percentile 1; what is brighter becomes 1."""
    return ScaleIntensityRangePercentilesd("image", lower=0, upper=99.8, b_min=0.0, b_max=1.0, clip=True)


def _to_tensors() -> Transform:
    return EnsureTyped(PAIR, dtype=(torch.float32, torch.uint8), track_meta=False)
