"""Measure the noise and the bias field that synthetic volumes lack, and store them with the complete model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from monai.inferers import Inferer
from tqdm import tqdm

from ..model.networks import SpadeFusion
from ..shared.acquisition import MOST_SCANS, measure
from ..shared.scan_identity import warn_unseen
from ..shared.weights import add_to_recipe, load_weights, recipe_to_extend


def store(
    model_file: str | Path,
    network: SpadeFusion,
    data: Mapping[str, Sequence[dict]],
    preprocessing: Callable[[dict], dict],
    inferer: Inferer,
    used: Mapping,
    device: torch.device,
    again: bool = True,
) -> None:
    """Compare scans with the volumes of their label maps, and write the result into the recipe in `model_file`.

    Validation scans come first, because the networks did not learn from them. At most `MOST_SCANS` are read.

    Args:
        model_file: weights of the complete model, which this function replaces.
        network: network to load them into.
        data: items {"image", "label"} of each split, from `read_dataset`.
        preprocessing: turns such an item into a scan and classes (1, X, Y, Z), as `scan_and_map` does.
        inferer: `Synthesiser` without acquisition.
        used: label table and spacing of this run, which must be those of the model.
        device: where the network runs.
        again: whether to measure if the model holds a measurement already.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the model has no recipe, or another label table, spacing or architecture.
    """
    recipe = recipe_to_extend(model_file, used)
    if "acquisition" in recipe and not again:
        return
    warn_unseen(data["training"], recipe, model_file)
    load_weights(network, model_file).to(device).eval()

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        for item in tqdm([*data["validation"], *data["training"]][:MOST_SCANS], desc="noise and bias field", unit="scan"):
            pair = preprocessing(item)
            classes = torch.as_tensor(pair["label"])[None].to(device)  # (1, 1, X, Y, Z)
            yield torch.as_tensor(pair["image"])[0], inferer(classes, network)[0, 0], classes[0, 0] > 0

    with torch.inference_mode():
        add_to_recipe(model_file, {"acquisition": measure(pairs())})
