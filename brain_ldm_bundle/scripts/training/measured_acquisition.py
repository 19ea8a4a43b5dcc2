"""Measure the noise and the bias field that the decoder's volumes lack, and store them with the diffusion model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from monai.inferers import Inferer
from tqdm import tqdm

from ..data.label_maps import refuse_maps
from ..model.networks import Autoencoder
from ..shared.acquisition import MOST_SCANS, measure
from ..shared.scan_identity import warn_unseen
from ..shared.weights import add_to_recipe, load_weights, recipe_to_extend


def store(
    model_file: str | Path,
    autoencoder: Autoencoder,
    autoencoder_file: str | Path,
    data: Mapping[str, Sequence[dict]],
    preprocessing: Callable[[dict], dict],
    inferer: Inferer,
    used: Mapping,
    device: torch.device,
    again: bool = True,
) -> None:
    """Compare scans with their reconstructions, and write the result into the recipe in `model_file`.

    Validation scans come first, because an autoencoder may reproduce the noise of its training scans. At most `MOST_SCANS` are
    read.

    Args:
        model_file: weights of the diffusion model, which this function replaces.
        autoencoder: network to load `autoencoder_file` into, which must be the autoencoder of the diffusion model.
        data: scans of each split, from `read_dataset`.
        preprocessing: turns a scan's item into {"image": (1, D, H, W)} on the model's grid, without random parts.
        inferer: `Reconstructor`.
        used: spacing of this run, which must be that of the model.
        device: where the autoencoder runs.
        again: whether to measure if the model holds a measurement already.

    Raises:
        FileNotFoundError: one of the files is missing.
        ValueError: the model has no recipe, or another autoencoder or spacing.
    """
    recipe = recipe_to_extend(model_file, used)
    refuse_maps(recipe, model_file, "the noise of scans")
    if "acquisition" in recipe and not again:
        return
    warn_unseen(data["training"], recipe, model_file)
    made_by = "python -m monai.bundle run training_autoencoder ..."
    load_weights(autoencoder, autoencoder_file, made_by, recipe.get("autoencoder_sha256"))
    autoencoder.to(device).eval()

    def pairs() -> Iterator[tuple[torch.Tensor, torch.Tensor, None]]:
        for item in tqdm([*data["validation"], *data["training"]][:MOST_SCANS], desc="noise and bias field", unit="scan"):
            image = torch.as_tensor(preprocessing(item)["image"])[None].to(device)  # (1, 1, D, H, W)
            yield image[0, 0], inferer(image, autoencoder)[0, 0], None

    with torch.inference_mode():
        add_to_recipe(model_file, {"acquisition": measure(pairs())})
