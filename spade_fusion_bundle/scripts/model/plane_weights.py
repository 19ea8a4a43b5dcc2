"""Strict loading of the bundle's weights, and what to run where they are missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..data.planes import PLANES
from ..shared.weights import load_weights
from .networks import SpadeFusion, SpadeGenerator

__all__ = ["generator_file", "load_generators", "made_by"]

COMMAND = "python -m monai.bundle run {run} --config_file configs/train.json --dataset_dir DIR"


def made_by(run: str) -> str:
    """The command that makes weights, for messages."""
    return COMMAND.format(run=run)


def generator_file(models_dir: str | Path, plane: str, fold: int | None = None) -> Path:
    """Where one plane's generator lies; of the cross-validation where a fold is given."""
    return Path(models_dir) / (f"spade_{plane}.pt" if fold is None else f"spade_{plane}_fold{fold}.pt")


def load_generators(
    network: SpadeFusion,
    generator: Callable[[], SpadeGenerator],
    models_dir: str | Path,
    recipe: Mapping,
    fold: int | None = None,
) -> SpadeFusion:
    """Put the trained generators of the three planes into `network`.

    Args:
        network: its fusion CNN stays as it is.
        generator: makes one to load into.
        models_dir: holds spade_axial.pt, spade_coronal.pt and spade_sagittal.pt.
        recipe: of this run; label table and spacing must be those that the generators were trained with, and "data", the
            hash of who is in which split, too: the fusion must not learn from subjects that a generator has seen.
        fold: of the cross-validation.

    Raises:
        FileNotFoundError: one is missing; says which command makes it.
        ValueError: weights of another architecture, plane, label table, spacing or split of the data.
    """
    for plane in PLANES:
        path = generator_file(models_dir, plane, fold)
        trained = load_weights(generator(), path, made_by(f"training_spade --plane {plane}" + _fold_flag(fold)))
        wanted = {"plane": plane} | {key: recipe.get(key) for key in ("labels", "spacing_mm", "data")}
        for key, value in wanted.items():
            found = trained.recipe.get(key)
            if found != value:
                raise ValueError(
                    f"{path}: trained with other {key} ({str(found)[:200]}), now {str(value)[:200]}. Use those again, or train "
                    f"the plane anew with another --models_dir"
                )
        network.take_generator(plane, trained)
    return network


def _fold_flag(fold: int | None) -> str:
    return "" if fold is None else f" --fold {fold} --folds K"
