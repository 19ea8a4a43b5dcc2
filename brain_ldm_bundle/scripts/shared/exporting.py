"""Export networks with torch.export, to files that need PyTorch but no code of this project and none of MONAI."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import torch

from .files import atomic, refuse_unwritable


@torch.no_grad()
def export(
    network: torch.nn.Module, shapes: Sequence[Sequence[int]], path: str, recipe: Mapping, any_batch: bool = True
) -> None:
    """Export a network in eval mode, and write it with its recipe as the extra file recipe.json.

    Args:
        network: network on the CPU.
        shapes: shape of each input without the batch; () is one whole number for each item.
        path: file ending in .pt2.
        recipe: what users need to know about the inputs, such as the covariates.
        any_batch: whether the file takes any number of items, or one.
    """
    refuse_unwritable(path)
    items = 2 if any_batch else 1  # PyTorch would take a batch of 1 as a constant
    inputs = tuple(torch.zeros((items, *shape), dtype=torch.float32 if shape else torch.long) for shape in shapes)
    dynamic = tuple({0: torch.export.Dim("batch", min=1)} for _ in inputs) if any_batch else None
    program = torch.export.export(network.cpu().eval(), inputs, dynamic_shapes=dynamic)
    with atomic(path) as file:
        torch.export.save(program, file, extra_files={"recipe.json": json.dumps(recipe)})
    print(f"{path}: inputs {', '.join(str(list(tensor.shape[1:])) for tensor in inputs)}, batch {'any' if any_batch else 1}")
