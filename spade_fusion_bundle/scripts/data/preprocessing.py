"""Prepare scans and label maps. Only this file sets orientation, spacing and intensities.

The volumes have RAS order and the model's spacing. Scans have intensities 0 to 1, and label maps become classes.
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

from ..shared.image_reader import CheckedReader
from ..shared.label_table import LabelTable
from ..shared.label_transforms import ToClassesd
from ..shared.map_reader import MapReader
from .deformation import DeformLabelsd

PAIR = ("image", "label")
FILES = ("scan_file", "map_file")
SIDE_MULTIPLE = 32  # the generators halve a slice five times


def scan_and_map(table: LabelTable, spacing_mm: float) -> Compose:
    """Make the transform that prepares a scan and its label map for training and evaluation.

    It maps {"image", "label"}, two paths, to volumes (1, X, Y, Z) of float32 and uint8, and keeps the paths as "scan_file" and
    "map_file". Both volumes are cropped to the labels and padded to multiples of 32 voxels. The scan becomes 0 where the map
    is background, such as in the skull around a map of the brain, because a synthetic image is 0 there.
    """
    mask_scan = MaskIntensityd("image", mask_key="label")
    crop = CropForegroundd(PAIR, source_key="label", allow_smaller=True, start_coord_key=None, end_coord_key=None)
    return Compose(
        [
            *_load_in_ras(table, spacing_mm),
            mask_scan,
            crop,
            _scale_intensities(),
            mask_scan,  # again, because in a scan with negative values 0 is not the lowest
            DivisiblePadd(PAIR, k=SIDE_MULTIPLE),
            _to_tensors(),
        ]
    )


def scan_to_segment(table: LabelTable, spacing_mm: float) -> Compose:
    """Make the transform that prepares a scan and its label map for segmentation.

    It differs from `scan_and_map` in that it keeps the whole field of view and prepares the scan without the map, because a
    new scan has none.
    """
    keep = SelectItemsd((*PAIR, *FILES, "participant_id"), allow_missing_keys=True)
    return Compose([*_load_in_ras(table, spacing_mm), _scale_intensities(), _to_tensors(), keep])


def label_map_to_synthesise(
    table: LabelTable,
    spacing_mm: float,
    pad_to_multiple: int,
    deformation_mm: float,
    deformation_scale_mm: float,
    partial_maps: bool = False,
) -> Compose:
    """Make the transform that prepares a label map for synthesis. `Invertd` resamples the result to the map's own grid.

    It maps {"image": path} to "image", classes in RAS order at the model's spacing, "dseg", the label values on the map's own
    grid, and "classes", the classes of "dseg". The map is cropped to its labels, with sides that are multiples of
    `pad_to_multiple`; 1 keeps the whole map. Items with a "deformation_seed" are deformed, see deformation.py. A map that lacks
    most brain structures of the table is refused unless `partial_maps` is True.
    """
    crop = CropForegroundd("image", source_key="image", k_divisible=pad_to_multiple, start_coord_key=None, end_coord_key=None)
    return Compose(
        [
            LoadImaged("image", reader=MapReader(table, partial_maps)),
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
    """Return input and target of a synthesis for MONAI's engines: classes and scan, each (B, 1, X, Y, Z)."""
    return tuple(torch.as_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in ("label", "image"))


class ToModelSpacingd(Spacingd):
    """Resample classes (1, D, H, W) to the model's voxels by nearest neighbour; the inverse resamples the image linearly."""

    def __init__(self, keys: KeysCollection, spacing_mm: float) -> None:
        super().__init__(keys, pixdim=(spacing_mm,) * 3, mode="nearest")

    def __call__(self, data: Mapping[Hashable, torch.Tensor], lazy: bool | None = None) -> dict[Hashable, torch.Tensor]:
        # Pass only the maps. Spacingd 1.6.1 treats every entry named image_* as metadata, and fails on the "image_path" of
        # MONAI Label.
        moved = super().__call__({key: data[key] for key in self.key_iterator(data)}, lazy)
        for labels in moved.values():
            labels.applied_operations = convert_applied_interp_mode(labels.applied_operations, mode="bilinear")
        return {**data, **moved}


def _load_in_ras(table: LabelTable, spacing_mm: float) -> list[Transform]:
    return [
        CopyItemsd(PAIR, names=FILES),
        LoadImaged("image", reader=CheckedReader(), image_only=True),
        LoadImaged("label", reader=MapReader(table, partial_maps=True), image_only=True),  # `read_dataset` has checked it
        EnsureChannelFirstd(PAIR),
        Orientationd(PAIR, axcodes="RAS", labels=None),
        ToClassesd("label", table),
        Spacingd(PAIR, pixdim=spacing_mm, mode=("bilinear", "nearest")),
    ]


def _scale_intensities() -> Transform:
    """Scale the lowest intensity to 0 and the 99.8th percentile to 1; brighter voxels become 1."""
    return ScaleIntensityRangePercentilesd("image", lower=0, upper=99.8, b_min=0.0, b_max=1.0, clip=True)


def _to_tensors() -> Transform:
    return EnsureTyped(PAIR, dtype=(torch.float32, torch.uint8), track_meta=False)
