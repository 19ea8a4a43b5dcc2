"""Start the diffusion model from weights that were trained on other covariates."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..data.covariates import Covariate, CovariateSchema
from ..model.networks import DiffusionUNet
from ..model.published_names import PUBLISHED_COVARIATES
from ..shared.weights import load_weights, read_recipe, refuse_missing

logger = logging.getLogger(__name__)


def load_start(network: DiffusionUNet, init: str | Path, recipe: Mapping) -> DiffusionUNet:
    """Load weights to fine-tune into the network, and return a network with the recipe that these weights had.

    If the weights were trained on other covariates, the columns of those in both schemas keep their weights, and new ones start
    at zero, so that they change nothing before the first step. One that the new schema lacks stays at its scaled value 0.

    Args:
        network: network of this training, for the covariates of `recipe`.
        init: file of weights. Without a recipe, they have the covariates of the published weights.
        recipe: recipe of this training; its "unet" holds the sizes of the network.

    Raises:
        ValueError: the file does not fit, or a covariate in both schemas is scaled in another way.
    """
    refuse_missing(init)
    known = read_recipe(init)
    if "covariates" not in recipe or (known and "covariates" not in known):
        return load_weights(network, init)
    old = CovariateSchema.from_dict(known.get("covariates", PUBLISHED_COVARIATES), str(init))
    new = CovariateSchema.from_dict(recipe["covariates"])
    if old.inputs == new.inputs:
        return load_weights(network, init)
    columns = matched_columns(old, new, str(init))
    start = load_weights(DiffusionUNet(**recipe["unet"] | {"num_covariates": len(old.names)}), init)
    network.load_state_dict(with_columns(start.state_dict(), columns, start.out_channels))
    return start


def matched_columns(old: CovariateSchema, new: CovariateSchema, where: str) -> list[int | None]:
    """Return the column of the old schema for each covariate of the new one, None for a new covariate; say which they are.

    Raises:
        ValueError: a covariate of both schemas is scaled in another way; messages begin with the file of weights, `where`.
    """
    positions = {name.lower(): position for position, name in enumerate(old.names)}
    columns = [positions.get(name.lower()) for name in new.names]
    for covariate, column in zip(new.covariates, columns, strict=True):
        if column is not None:
            _refuse_other_scaling(old.covariates[column], covariate, where)
    kept = [name for name, column in zip(new.names, columns, strict=True) if column is not None]
    if not kept:
        raise ValueError(
            f"{where} was trained on the covariates {', '.join(old.names)}, and this training has none of them "
            f"({', '.join(new.names)}). Keep one or more of them in --covariates_file, or train from the beginning"
        )
    fresh = [name for name in new.names if name not in kept]
    gone = [name for position, name in enumerate(old.names) if position not in columns]
    logger.warning(
        f"{where}: fine-tuning keeps the weights of {', '.join(kept)}"
        + (f"; new, with weights of zero: {', '.join(fresh)}" if fresh else "")
        + (f"; left out, as if always at the low end of the range or the level 0: {', '.join(gone)}" if gone else "")
    )
    return columns


def _refuse_other_scaling(old: Covariate, new: Covariate, where: str) -> None:
    """Refuse a covariate whose values the old weights would read as others. Levels may be added."""
    same = (
        (old.unit or new.unit) == (new.unit or old.unit)
        and old.scale == new.scale
        and (old.levels is None) == (new.levels is None)
    )
    if same and old.levels is not None:
        same = all(new.levels.get(level) == code for level, code in old.levels.items())
    elif same:
        same = list(map(float, old.range)) == list(map(float, new.range))
    if not same:
        by = (
            f"levels {dict(old.levels)}"
            if old.levels
            else f"range {list(old.range)} {old.unit or '(no unit)'}, scale {old.scale!r}"
        )
        now = (
            f"levels {dict(new.levels)}"
            if new.levels
            else f"range {list(new.range)} {new.unit or '(no unit)'}, scale {new.scale!r}"
        )
        raise ValueError(
            f"{where}: {new.name} was scaled by {by}, now by {now}. The weights know only the former: give {new.name} these in "
            f"--covariates_file ('limits' may be wider than 'range'), or another name to learn it from the beginning"
        )


def with_columns(
    state: Mapping[str, torch.Tensor], columns: Sequence[int | None], latent_channels: int
) -> dict[str, torch.Tensor]:
    """Return the state dict of a `DiffusionUNet` for other covariates: old columns by position, zeros for None.

    Covariates enter as the last input channels of the first convolution, and as the features of the cross-attention's token.
    """
    changed = dict(state)
    for key, value in state.items():
        if key == "conv_in.conv.weight":  # (C, 3 + 4, 3, 3, 3)
            changed[key] = torch.cat([value[:, :latent_channels], _picked(value[:, latent_channels:], columns)], dim=1)
        elif key.endswith((".attn2.to_k.weight", ".attn2.to_v.weight")):  # (C, 4)
            changed[key] = _picked(value, columns)
    return changed


def _picked(value: torch.Tensor, columns: Sequence[int | None]) -> torch.Tensor:
    zero = torch.zeros_like(value[:, 0])
    return torch.stack([zero if column is None else value[:, column] for column in columns], dim=1)
