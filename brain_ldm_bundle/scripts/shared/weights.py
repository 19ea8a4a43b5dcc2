"""Weights of a network, and the recipe that travels with them: saved by `files.save_weights`, loaded strictly here."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from .files import read_tensors, sha256


class WithRecipe(torch.nn.Module):
    """A network whose `recipe` travels in its state dict: what it needs beyond its weights, as JSON can hold it.

    The network's class sets `self.recipe`. It is not declared here, because TorchScript would then fail on it.
    """

    def get_extra_state(self) -> torch.Tensor:
        # A tensor, because every tool that reads a state dict expects tensors in it.
        return torch.tensor(list(json.dumps(self.recipe).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.recipe = json.loads(bytes(state.tolist()))


def load_weights(
    network: torch.nn.Module, path: str | Path, made_by: str = "", expected_sha256: str | None = None
) -> torch.nn.Module:
    """Load a file of weights exactly: every key of the file is used, every key of the network is set.

    Args:
        network: receives the weights. Its method `current_names(found)`, where it has one, translates the state dict of
            an earlier version.
        path: file of weights, as `read_state` reads it.
        made_by: command that makes the file, for the message that it is missing.
        expected_sha256: hash of the file, where other weights were trained with this very file.

    Returns:
        the same network.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: no file of weights, another hash, or another architecture; the first differing keys are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file." + (f" Make it with: {made_by}" if made_by else ""))
    if expected_sha256 and sha256(path) != expected_sha256:
        raise ValueError(
            f"{path}: sha256 {sha256(path)}, but the other weights were trained with the file {expected_sha256}. "
            f"Keep together what was trained together."
        )
    wanted, found = network.state_dict(), read_state(path)
    if hasattr(network, "current_names"):
        found = network.current_names(found)
    reshaped = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in wanted
        if key in found and not key.endswith("_extra_state") and found[key].shape != wanted[key].shape
    ]
    differences = {
        "keys missing": [key for key in wanted if key not in found],
        "keys not of this network": sorted(found.keys() - wanted.keys()),
        "keys of another shape": reshaped,
    }
    if any(differences.values()):
        parts = [f"{len(keys)} {what}, first: {', '.join(keys[:3])}" for what, keys in differences.items() if keys]
        raise ValueError(
            f"{path}: weights of another architecture. {'; '.join(parts)}. Use the settings that the file was trained with "
            f"(channels and levels of the network, number of covariates, label table)."
        )
    network.load_state_dict(found)
    return network


def read_recipe(path: str | Path) -> dict:
    """Read the recipe in a file of weights: empty for weights without one, and where there is no such file yet."""
    if not Path(path).is_file():
        return {}
    state = read_state(path, mmap=zipfile.is_zipfile(path)).get("_extra_state")
    return {} if state is None else json.loads(bytes(state.tolist()))


def read_state(path: str | Path, **options) -> dict[str, torch.Tensor]:
    """Read the state dict in a file, without the prefix `module.` of DDP.

    Args:
        path: file of a state dict, alone or inside {"model": ...}, {"state_dict": ...} or {"network": ...}.
        **options: for `torch.load`, such as `mmap=True`.

    Raises:
        ValueError: there is no such file, or it holds no state dict.
    """
    found = read_tensors(path, **options)
    for name in ("model", "state_dict", "network"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"{path}: expected a state dict, names to tensors.")
    return {key.removeprefix("module."): value for key, value in found.items()}
