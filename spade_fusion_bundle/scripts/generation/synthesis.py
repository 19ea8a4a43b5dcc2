"""From the classes of label maps to T1w images: the model's table and grid, the networks' way over a volume, the writing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product, zip_longest
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer, sliding_window_inference
from monai.utils import convert_to_dst_type

from ..data.derivative import Derivative
from ..data.labels import LabelTable
from ..data.planes import PLANES
from ..model.plane_weights import generator_file, made_by

__all__ = ["Synthesiser", "WriteImages", "box_around", "refuse_missing_weights", "table_of"]

PATCH = 32  # Ayaz et al. 2022


def table_of(recipe: Mapping, labels_file: str | Path, name: str | None = None) -> LabelTable:
    """The label table that a model was trained with, or `name` of `labels_file` where one is given.

    Raises:
        ValueError: a given table has other classes than the model.
    """
    if name is None and "labels" in recipe:
        return LabelTable.from_dict(recipe["labels"], where="the table in the model's weights")
    table = LabelTable.from_file(labels_file, name or "freesurfer")
    trained = recipe.get("labels")
    names = LabelTable.from_dict(trained, where="the table in the model's weights").names if trained else table.names
    if names != table.names:
        differing = next(number for number, pair in enumerate(zip_longest(names, table.names)) if pair[0] != pair[1])
        raise ValueError(
            f"label_table {name!r} has other classes than the model's table {trained['name']!r}, from class {differing} "
            f"on. Leave out --label_table to use that, or write a table that maps your values to classes of the same names"
        )
    return table


def refuse_missing_weights(model_file: str | Path, models_dir: str | Path) -> None:
    """Say how to make the model where there is none, in view of which planes are trained already; before it is built.

    Raises:
        FileNotFoundError: with the commands.
    """
    if Path(model_file).is_file():
        return
    missing = [plane for plane in PLANES if not generator_file(models_dir, plane).is_file()]
    if len(missing) == len(PLANES):
        raise FileNotFoundError(f"{model_file}: no such weights file. Make it with: {made_by('training')}")
    state = f"Still to train: {', '.join([*missing, 'fusion'])}"
    commands = [made_by(f"training_spade --plane {plane}") for plane in missing] + [made_by("training_fusion")]
    raise FileNotFoundError(f"{model_file}: no such weights file. {state}. Make it with: {', then '.join(commands)}")


class Synthesiser(Inferer):
    """T1w from classes by `SpadeFusion`, with a choice of how the fusion CNN goes over the volume.

    Args:
        merge: "whole": in one pass, cut into blocks where the volume is larger than one, each with as much margin as the CNN
            reaches, so that the result is that of one pass; or "patches": patches of 32 voxels with half overlap, weighted
            by a Gaussian, as published (Ayaz et al. 2022).
        block: side in voxels.
        amp: run the networks in bfloat16.

    Raises:
        ValueError: no such merge.
    """

    def __init__(self, merge: str = "whole", block: int = 128, amp: bool = False) -> None:
        super().__init__()
        if merge not in ("whole", "patches"):
            raise ValueError(f"merge must be whole or patches, got {merge!r}")
        self.merge = merge
        self.block = block
        self.amp = amp

    @torch.no_grad()
    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """T1w (B, 1, X, Y, Z) from 0 to 1 for classes (B, 1, X, Y, Z) in RAS order; a MetaTensor for a MetaTensor.

        Raises:
            ValueError: as `SpadeFusion`.
        """
        labels = torch.as_tensor(inputs).as_subclass(torch.Tensor)
        with torch.autocast(labels.device.type, dtype=torch.bfloat16, enabled=self.amp):
            volumes = network.slice_volumes(labels)  # (B, 3, X, Y, Z)
            if self.merge == "whole":  # beyond the labels' reach all is background
                around = box_around(labels > 0.5, network.fusion.radius)
                image = torch.zeros(labels.shape, device=labels.device)
                image[around] = in_blocks(network.fusion, volumes[around], self.block, network.fusion.radius).float()
            else:
                image = sliding_window_inference(volumes, (PATCH,) * 3, 8, network.fusion, overlap=0.5, mode="gaussian")
        image = image.float().clamp(0, 1) * (labels > 0.5)
        return convert_to_dst_type(image, inputs, dtype=torch.float32)[0]


def in_blocks(network: Callable[[torch.Tensor], torch.Tensor], volumes: torch.Tensor, block: int, margin: int) -> torch.Tensor:
    """`network(volumes)`, (B, 1, X, Y, Z) of (B, C, X, Y, Z), in blocks with up to `margin` voxels around them."""
    sizes = volumes.shape[2:]
    result = volumes.new_empty((len(volumes), 1, *sizes))
    for starts in product(*(range(0, size, block) for size in sizes)):
        around = [slice(max(start - margin, 0), start + block + margin) for start in starts]
        within = [slice(start - cut.start, start - cut.start + block) for start, cut in zip(starts, around)]
        inside = tuple(slice(start, start + block) for start in starts)
        result[(..., *inside)] = network(volumes[(..., *around)])[(..., *within)].to(result.dtype)
    return result


def box_around(mask: torch.Tensor, margin: int) -> tuple[slice, ...]:
    """Index of the smallest box around masks (B, 1, X, Y, Z), grown by a margin as far as the volume goes; all, if empty."""
    found = mask.any(dim=0)[0].nonzero()
    if not len(found):
        return (slice(None),) * mask.ndim
    low, high = found.amin(dim=0) - margin, found.amax(dim=0) + margin + 1
    return (slice(None), slice(None), *(slice(max(0, a), b) for a, b in zip(low.tolist(), high.tolist())))


class WriteImages:
    """Write each image that an evaluator makes; one that cannot be written does not keep the others from being made.

    A full disk (OSError) does end the run: what is written stays, and the same command goes on later.

    Args:
        derivative: where to.
        rows: in the order of the evaluator's batches of one.
    """

    def __init__(self, derivative: Derivative, rows: Sequence[Mapping]) -> None:
        self.derivative = derivative
        self.rows = rows
        self.problems: list[str] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        row = self.rows[engine.state.iteration - 1]
        volume, labels = engine.state.output[0]["pred"], engine.state.batch[0]["dseg"]
        try:
            self.derivative.write(row, volume[0].cpu(), labels[0].cpu())
        except ValueError as error:
            self.problems.append(str(error))

    def report(self) -> None:
        """End with an error that names the rows without an image, if there are any."""
        if self.problems:
            raise RuntimeError("\n".join([f"{len(self.problems)} images were not written, all others were:", *self.problems]))
