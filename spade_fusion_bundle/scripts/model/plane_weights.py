"""Strict loading of the bundle's weights, and what to run where they are missing."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from ..data.planes import PLANES
from ..shared.files import read_tensors
from .networks import SpadeFusion, SpadeGenerator

__all__ = ["generator_file", "load_generators", "load_weights", "made_by", "read_recipe"]

COMMAND = "python -m monai.bundle run {run} --config_file configs/train.json --dataset_dir DIR"


def made_by(run: str) -> str:
    """The command that makes weights, for messages."""
    return COMMAND.format(run=run)


def generator_file(models_dir: str | Path, plane: str, fold: int | None = None) -> Path:
    """Where one plane's generator lies; of the cross-validation where a fold is given."""
    return Path(models_dir) / (f"spade_{plane}.pt" if fold is None else f"spade_{plane}_fold{fold}.pt")


def load_weights(network: torch.nn.Module, path: str | Path, command: str = "") -> torch.nn.Module:
    """Load a state dict, exactly: every key of the file is used, every key of the network is set.

    Args:
        network: receives the weights.
        path: the file; keys may have DDP's prefix `module.`.
        command: that makes the file, named when it is missing.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights, or of another architecture; the first differing keys are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file." + (f" Make it with: {command}" if command else ""))
    wanted, found = network.state_dict(), _read(path)
    missing = [key for key in wanted if key not in found]
    unused = [key for key in found if key not in wanted]
    reshaped = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and not key.endswith("_extra_state") and found[key].shape != wanted[key].shape
    ]
    if missing or unused or reshaped:
        counts = ((missing, "keys missing"), (unused, "keys not of this network"), (reshaped, "keys of another shape"))
        parts = [f"{len(keys)} {what}, first: {', '.join(keys[:3])}" for keys, what in counts if keys]
        raise ValueError(
            f"{path}: weights of another architecture. {'; '.join(parts)}. "
            f"Use the sizes and the label table that the file was trained with"
        )
    network.load_state_dict(found)
    return network


def read_recipe(path: str | Path) -> dict:
    """What a file of weights says of its training (label table, spacing, sizes); empty where there is no file yet."""
    if not Path(path).is_file():
        return {}
    state = _read(Path(path), mmap=zipfile.is_zipfile(path)).get("_extra_state")
    return {} if state is None else json.loads(bytes(state.tolist()))


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


def _read(path: Path, **options) -> dict[str, torch.Tensor]:
    found = read_tensors(path, **options)
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"{path}: expected a state dict, names to tensors")
    return {key.removeprefix("module."): value for key, value in found.items()}
