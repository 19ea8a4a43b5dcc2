"""Covariates read from a volume: training the regressor, loading it, and how far its answers can be trusted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from ignite.engine import Engine

from .covariates import NULL
from .networks import Regressor
from .weights import load_weights, read_recipe

__all__ = [
    "covariate_loss",
    "covariates_as_target",
    "load_regressor",
    "regression_step",
]

MADE_BY = "python -m monai.bundle run training --config_file configs/train_regressor.json --dataset_dir DIR"


def load_regressor(path: str | Path, spacing_mm: float) -> Regressor:
    """The regressor of a file of weights, on the CPU and in eval mode; sizes and covariates come with the weights.

    Args:
        path: as `configs/train_regressor.json` writes it, `models/regressor.pt`.
        spacing_mm: of the volumes that it shall read.

    Raises:
        FileNotFoundError: no such file; with the command that makes it.
        ValueError: no regressor's weights, or a regressor of another spacing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such regressor. Train it first: {MADE_BY}")
    recipe = read_recipe(path)
    if "regressor" not in recipe:
        raise ValueError(f"{path}: these are not a regressor's weights. Train one: {MADE_BY}")
    if recipe["spacing_mm"] != spacing_mm:
        raise ValueError(
            f"{path}: this regressor reads volumes of {recipe['spacing_mm']:g} mm, not of {spacing_mm:g} mm. Train one for "
            f"them: {MADE_BY} --spacing_mm {spacing_mm:g}"
        )
    return load_weights(Regressor(**recipe["regressor"]), path).eval()


def covariate_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of scaled covariates (B, C) over those that are known; 0 where none is."""
    known = target != NULL
    return ((prediction - target).abs() * known).sum() / known.sum().clamp(min=1)


def covariates_as_target(batch: Mapping, device: torch.device, non_blocking: bool = False, **kwargs) -> tuple:
    """Input and target of the regression: image (B, 1, D, H, W) and scaled covariates (B, C)."""
    return tuple(torch.as_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in ("image", "covariates"))


def regression_step(engine: Engine, batch: Mapping, grad_clip: float, amp: bool) -> list[dict[str, float]]:
    """Absolute error of the scaled covariates, as Cole et al. 2017 trained their age predictor.

    Args:
        engine: MONAI's SupervisedTrainer.
        batch: {"image": (B, 1, D, H, W) in [0, 1], "covariates": (B, C)}.
        grad_clip: the gradient's norm is clipped to this.
        amp: bfloat16 autocast; the loss stays in float32.
    """
    network = engine.network.train()
    image, covariates = covariates_as_target(batch, engine.state.device, non_blocking=True)
    engine.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=amp):
        prediction = network(image)
    loss = covariate_loss(prediction.float(), covariates)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
    engine.optimizer.step()
    return [{"loss": loss.item()}]
