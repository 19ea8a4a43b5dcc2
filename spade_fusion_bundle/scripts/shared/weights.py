"""Load weights of a network strictly, and the recipe that is stored with them. `files.save_weights` writes such files."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from .files import read_tensors, sha256


class WithRecipe(torch.nn.Module):
    """A network that stores a `recipe` in its state dict: settings and records of its training that JSON can hold.

    Subclasses set `self.recipe`. TorchScript would fail if it were declared here.
    """

    def get_extra_state(self) -> torch.Tensor:
        # A tensor, because tools that read a state dict expect nothing else in it.
        return torch.tensor(list(json.dumps(self.recipe).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.recipe = json.loads(bytes(state.tolist()))


def load_weights(
    network: torch.nn.Module, path: str | Path, made_by: str = "", expected_sha256: str | None = None
) -> torch.nn.Module:
    """Load weights into `network` strictly, with the same keys and shapes in file and network, and return it.

    Args:
        network: network to fill. If it has a method `current_names(found)`, this translates the state dict of an earlier
            version.
        path: file of weights, as `read_state` reads it.
        made_by: command that makes the file. The message for a missing file names it.
        expected_sha256: hash that the file must have, because other weights were trained with it; None accepts any.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no weights, has another hash, or fits another architecture; names the first such keys.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file." + (f" Make it with: {made_by}" if made_by else ""))
    if expected_sha256 and sha256(path) != expected_sha256:
        raise ValueError(
            f"{path}: sha256 {sha256(path)}, but the other weights were trained with the file {expected_sha256}. "
            f"Use the two files that were trained together."
        )
    wanted, found = network.state_dict(), read_state(path)
    if hasattr(network, "current_names"):
        found = network.current_names(found)
    differences = {
        "keys missing": [key for key in wanted if key not in found],
        "keys not of this network": sorted(found.keys() - wanted.keys()),
        "keys of another shape": [
            f"{key} {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
            for key in wanted
            if key in found and not key.endswith("_extra_state") and found[key].shape != wanted[key].shape
        ],
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
    """Read the recipe in a file of weights. It is empty if the weights have none, or if there is no such file."""
    if not Path(path).is_file():
        return {}
    state = read_state(path, mmap=zipfile.is_zipfile(path)).get("_extra_state")
    return {} if state is None else json.loads(bytes(state.tolist()))


def read_state(path: str | Path, **options) -> dict[str, torch.Tensor]:
    """Read the state dict in a file, without the prefix `module.` of DDP.

    The file holds it alone or inside {"model": ...}, {"state_dict": ...} or {"network": ...}. `options` are for `torch.load`.
    """
    found = read_tensors(path, **options)
    for name in ("model", "state_dict", "network"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"{path}: expected a state dict, which maps names to tensors.")
    return {key.removeprefix("module."): value for key, value in found.items()}
