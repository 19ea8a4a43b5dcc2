"""One strict loader for every layout of weights in circulation."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch

from .files import read_tensors, sha256

__all__ = ["load_weights", "read_recipe", "read_state", "start_from"]

# What our networks carry beyond the published ones (see DiffusionUNet). A file may lack all of it, not half.
BEYOND_PUBLISHED = {"scale_factor", "_extra_state"}


def load_weights(
    network: torch.nn.Module, path: str | Path, made_by: str = "", expected_sha256: str | None = None
) -> torch.nn.Module:
    """Load a file of weights into `network`, exactly: every key of the file is used, every key of the network is set.

    Takes the layout of MONAI 1.6, that of monai-generative 0.2 (the published UK Biobank files), keys prefixed
    `module.` by DDP, and a state dict inside `{"model": ...}`, `{"state_dict": ...}` or `{"network": ...}`.

    Args:
        network: receives the weights.
        path: the file.
        made_by: the command that makes the file, named when it is missing.
        expected_sha256: of the file, where another file belongs to this very one.

    Returns:
        the same network.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights, another hash, or another architecture; the first differing keys are named.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such weights file." + (f" Make it with: {made_by}" if made_by else ""))
    if expected_sha256 and sha256(path) != expected_sha256:
        raise ValueError(
            f"{path}: sha256 {sha256(path)}, but the other weights were trained with the file {expected_sha256}. "
            f"Keep together what was trained together."
        )
    network.load_state_dict(_matched(network.state_dict(), read_state(path), path))
    return network


def read_recipe(path: str | Path) -> dict:
    """What a diffusion model's file says of its training; empty for the published weights, and where there is no file yet."""
    if not Path(path).is_file():
        return {}
    state = read_state(Path(path), mmap=zipfile.is_zipfile(path)).get("_extra_state")
    return {} if state is None else json.loads(bytes(state.tolist()))


def read_state(path: Path, **options) -> dict[str, torch.Tensor]:
    """The state dict in a file, of whatever layout, without DDP's prefix.

    Raises:
        ValueError: no such file, or not a file of weights.
    """
    found = read_tensors(path, **options)
    for name in ("model", "state_dict", "network"):
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ValueError(f"{path}: expected a state dict, names to tensors.")
    return {key.removeprefix("module."): value for key, value in found.items()}


def start_from(network: torch.nn.Module, path: str | Path | None) -> None:
    """Fine-tune: begin with the weights of a file, where one is given."""
    if path is not None:
        load_weights(network, path)


def _matched(wanted: Mapping[str, torch.Tensor], found: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    """The tensors of `found` under the names of `wanted`, or a ValueError that names what differs."""
    if BEYOND_PUBLISHED.isdisjoint(found):
        found = found | {key: wanted[key] for key in BEYOND_PUBLISHED & wanted.keys()}
    old_name = {}
    for key in wanted:
        old_keys = (key, key.replace(".postconv.", ".conv."), key.replace(".out_proj.", ".to_out.0."))
        old_name[key] = next((old for old in old_keys if old in found), None)
    missing = [key for key, old in old_name.items() if old is None]
    unused = sorted(found.keys() - set(old_name.values()))
    reshaped = [
        f"{key} {tuple(found[old].shape)} instead of {tuple(wanted[key].shape)}"
        for key, old in old_name.items()
        if old is not None and key != "_extra_state" and found[old].shape != wanted[key].shape
    ]
    if missing or unused or reshaped:
        counts = ((missing, "keys missing"), (unused, "keys not of this network"), (reshaped, "keys of another shape"))
        parts = [f"{len(keys)} {what}, first: {', '.join(keys[:3])}" for keys, what in counts if keys]
        raise ValueError(
            f"{path}: weights of another architecture. {'; '.join(parts)}. "
            f"Use the sizes that the file was trained with (channels, levels, number of covariates)."
        )
    return {key: found[old] for key, old in old_name.items()}
