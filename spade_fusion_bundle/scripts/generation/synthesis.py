"""Make T1w images from classes, and write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from ignite.engine import Engine
from monai.inferers import Inferer
from monai.utils import convert_to_dst_type

from ..data.derivative import Derivative
from ..shared.acquisition import add, draw
from ..shared.background_writer import BackgroundWriter
from .patch_merging import merge_patches, merge_whole


@dataclass(eq=False)
class Synthesiser(Inferer):
    """Make T1w from classes with `SpadeFusion`, for inference, evaluation and MONAI Label."""

    merge: str = "whole"  # as in one pass; "patches" applies the CNN to overlapping patches, as published (Ayaz et al. 2022)
    block: int = 128  # edge length in voxels of the blocks of "whole"
    amp: bool = False  # whether the networks run in bfloat16
    acquisition: Mapping | None = None  # noise and bias field to add, as `acquisition.measure` returned them; None adds none

    def __post_init__(self) -> None:
        if self.merge not in ("whole", "patches"):
            raise ValueError(f"merge must be whole or patches, got {self.merge!r}")

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, seeds: Sequence[int] | None = None) -> torch.Tensor:
        """Make T1w (B, 1, X, Y, Z), intensities 0 to 1, from classes (B, 1, X, Y, Z) in RAS order.

        `seeds` has the seed of each volume's acquisition; None stands for 0, 1, .... The result is a MetaTensor if the classes
        are one.
        """
        labels = torch.as_tensor(inputs).as_subclass(torch.Tensor)
        volumes = self.fuse(self.planes(labels, network), labels, network)
        for volume, own, seed in zip(volumes[:, 0], labels[:, 0], range(len(labels)) if seeds is None else seeds, strict=True):
            volume.copy_(add(volume, draw(self.acquisition, seed), own > 0.5))
        return convert_to_dst_type(volumes, inputs, dtype=torch.float32)[0]

    @torch.no_grad()
    def planes(self, labels: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Make the axial, coronal and sagittal volumes (B, 3, X, Y, Z) from classes (B, 1, X, Y, Z)."""
        with self._autocast(labels):
            return network.slice_volumes(labels)

    @torch.no_grad()
    def fuse(self, volumes: torch.Tensor, labels: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Fuse the result of `planes` into T1w (B, 1, X, Y, Z), intensities 0 to 1, background 0."""
        inside = labels > 0.5
        with self._autocast(labels):
            if self.merge == "whole":
                image = merge_whole(network.fusion, volumes, inside, self.block)
            else:
                image = merge_patches(network.fusion, volumes)
        return image.float().clamp(0, 1) * inside

    def _autocast(self, labels: torch.Tensor) -> torch.autocast:
        return torch.autocast(labels.device.type, dtype=torch.bfloat16, enabled=self.amp)


def map_batch(batch: Mapping, device: torch.device, non_blocking: bool = False, **kwargs) -> tuple:
    """Return the classes of a batch of `label_maps.Pending.inputs`, and the keyword arguments of `Synthesiser`."""
    return batch["image"].to(device, non_blocking=non_blocking), None, (), {"seeds": batch["seed"].tolist()}


class WriteImages(BackgroundWriter):
    """Write each image that an evaluator makes, see `BackgroundWriter`.

    The "row" of an item of the batch is the index of its row in `rows`, which `label_maps.pending` returns.
    """

    def __init__(self, derivative: Derivative, rows: Sequence[Mapping]) -> None:
        super().__init__(derivative)
        self.rows = rows

    def volumes(self, engine: Engine) -> Iterator[tuple[Mapping, torch.Tensor, torch.Tensor]]:
        for item, output in zip(engine.state.batch, engine.state.output):
            yield self.rows[int(item["row"])], output["pred"][0], item["dseg"][0].cpu()
