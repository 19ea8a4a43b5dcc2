"""Rewrite the SPADE generators for inference: the same slices from the same weights, with less than half of the work.

Scale and shift of a pixel depend only on the labels of the 5 x 5 pixels around it. A palette lists the neighbourhoods that
occur in a batch of slices. Each is computed once, for all pixels that have it. `--exact_rewrites False` leaves the generators
as they are. The rewritten networks keep the names of all weights. In float32 the results differ by rounding only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .networks import SpadeGenerator, is_recorded, one_hot
from .spade_norm import SpadeNorm

MOST_IDS = 2**21  # the number of three ids in a row must fit in 63 bits


def rewrite(network: nn.Module, wanted: bool = True) -> nn.Module:
    """Rewrite all generators of a network in place, and return it; leave it as it is if not `wanted`."""
    for module in [*network.modules()] if wanted else []:
        if type(module) is SpadeGenerator:
            module.__class__, module.stem.__class__ = PaletteGenerator, PaletteStem
        elif type(module) is SpadeNorm:
            module.__class__ = PaletteNorm
    return network


@dataclass(eq=False)
class Palette:
    """The neighbourhoods of labels in a batch of slices.

    The label `num_labels` and the neighbourhood 0 stand for pixels outside of a slice, where convolutions pad with zeros.
    """

    labels: torch.Tensor  # (N, 1, h, w)
    num_labels: int
    small: torch.Tensor  # labels (P, 9) of each neighbourhood of 3 x 3
    large: torch.Tensor  # numbers from 1 (Q, 9) of the small neighbourhoods that each neighbourhood of 5 x 5 consists of
    index: torch.Tensor  # number (N, h, w) of the large neighbourhood around each pixel

    @classmethod
    def of(cls, labels: torch.Tensor, num_labels: int) -> Palette:
        """Make the palette of labels (N, 1, h, w)."""
        small, index = _neighbourhoods(labels[:, 0].long(), num_labels, num_labels + 1)
        large, index = _neighbourhoods(index + 1, 0, len(small) + 1)
        return cls(labels, num_labels, small, large, index)


def _neighbourhoods(ids: torch.Tensor, outside: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the different neighbourhoods of 3 x 3 ids (P, 9) and the number of that around each pixel (N, h, w).

    The ids (N, h, w) are below `count`. Numbers of three ids are made along rows, and of three such numbers along columns.
    """

    def triples(ids: torch.Tensor, count: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        if count > MOST_IDS:
            raise ValueError(f"{count} different parts of label maps in one batch: set a smaller --slices_per_batch")
        size = ids.shape[dim] - 2
        codes = sum(ids.narrow(dim, place, size) * count ** (2 - place) for place in range(3))
        codes, numbers = torch.unique(codes, return_inverse=True)
        return torch.stack([codes // count**2, codes // count % count, codes % count], dim=1), numbers

    rows, numbers = triples(F.pad(ids, (1, 1, 1, 1), value=outside), count, dim=2)  # (R, 3), (N, h + 2, w)
    columns, numbers = triples(numbers, len(rows), dim=1)  # (P, 3), (N, h, w)
    return rows[columns].flatten(1), numbers


class PaletteGenerator(SpadeGenerator):
    """SpadeGenerator whose layers receive a `Palette` instead of one-hot labels, except in training and export."""

    def resized(self, labels: torch.Tensor, size: list[int]) -> torch.Tensor | Palette:
        if self.training or is_recorded():
            return super().resized(labels, size)
        return Palette.of(F.interpolate(labels, size=size, mode="nearest"), self.num_labels)


class PaletteStem(nn.Conv2d):
    """First convolution of a generator."""

    def forward(self, labels: torch.Tensor | Palette) -> torch.Tensor:
        return super().forward(one_hot(labels.labels, labels.num_labels) if isinstance(labels, Palette) else labels)


class PaletteNorm(SpadeNorm):
    """SpadeNorm that computes scale and shift for each neighbourhood of a palette, together with those of the batch norm."""

    def forward(self, x: torch.Tensor, labels: torch.Tensor | Palette) -> torch.Tensor:
        if not isinstance(labels, Palette):
            return super().forward(x, labels)
        # A convolution of 3 x 3 adds up one row for each of nine places: a row of the weight for each label, and a product
        # of the weight with the hidden layer for each small neighbourhood. What lies outside of the slice adds nothing.
        places = torch.arange(9, device=x.device)
        rows = F.pad(self.embed.weight.permute(1, 2, 3, 0), (0, 0, 0, 0, 0, 0, 0, 1)).flatten(0, 2)  # (9 (L + 1), hidden)
        embedded = F.relu(F.embedding_bag(labels.small * 9 + places, rows, mode="sum") + self.embed.bias)  # (P, hidden)

        weight = torch.cat([self.to_scale.weight, self.to_shift.weight])  # (2 C, hidden, 3, 3)
        bias = torch.cat([self.to_scale.bias, self.to_shift.bias])
        rows = F.pad(embedded, (0, 0, 1, 0)) @ weight.permute(1, 2, 3, 0).flatten(1)  # (P + 1, 9 * 2 C)
        rows = rows.view(-1, len(bias)).float()
        scale, shift = (F.embedding_bag(labels.large * 9 + places, rows, mode="sum") + bias).chunk(2, dim=1)  # (Q, C) each
        norm = self.base_norm
        scale = (1 + scale) * (norm.running_var + norm.eps).rsqrt()
        shift = shift - norm.running_mean * scale
        scale, shift = (F.embedding(labels.index, values.to(x.dtype)).movedim(3, 1) for values in (scale, shift))
        return torch.addcmul(shift, x, scale)  # (N, C, h, w)
