"""Read and check the recipe of weights: settings and records of a training that are stored in the state dict."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import torch

from .acquisition import is_measurement

SIZES = ("autoencoder", "unet", "regressor", "generator", "network")  # entries that hold arguments of a network
LARGEST_SIDE = 1000  # voxels of an image, by which memory grows


class WithRecipe(torch.nn.Module):
    """A network that stores a `recipe` in its state dict: settings and records of its training that JSON can hold.

    Subclasses set `self.recipe`. TorchScript would fail if it were declared here.
    """

    def get_extra_state(self) -> torch.Tensor:
        self._last_state = encode(self.recipe)
        return self._last_state

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.recipe = decode(state, "the weights")

    def load_state_dict(self, state_dict: Mapping[str, Any], *args, **options):
        """Load a state dict as PyTorch does. Refuse one that holds tensors of this network itself.

        `monai.networks.copy_model_state`, and so `monai.bundle.load`, fills up what a file lacks with them, without a word.
        """
        own = ["_extra_state"] if state_dict.get("_extra_state") is vars(self).get("_last_state", self) else []
        own += [name for name, tensor in self.state_dict().items() if _is_same(tensor, state_dict.get(name))]
        if own:
            raise ValueError(
                f"these weights lack {len(own)} of the {len(self.state_dict())} tensors of this {type(self).__name__}, first: "
                f"{', '.join(own[:3])}. MONAI would leave them untrained. Build the network that the file describes: "
                f"monai.bundle.load(..., workflow_type='inference', net_override={{'path': FILE}})"
            )
        return super().load_state_dict(state_dict, *args, **options)


def _is_same(tensor: torch.Tensor, other: Any) -> bool:
    return isinstance(other, torch.Tensor) and tensor.numel() > 0 and tensor.is_set_to(other)


def encode(recipe: Mapping) -> torch.Tensor:
    """Store a recipe in a tensor, because tools that read a state dict expect nothing else in it."""
    return torch.tensor(list(json.dumps(recipe).encode()), dtype=torch.uint8)


def decode(state: torch.Tensor, where: object) -> dict:
    """Read the recipe in the tensor of a state dict and check it; error messages name `where`.

    Raises:
        ValueError: it is damaged, or an entry has a wrong type or an impossible value.
    """
    try:
        recipe = json.loads(bytes(list(state.tolist())))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{where}: the recipe in the weights is damaged ({error}). Fetch or train them again") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"{where}: the recipe in the weights is no JSON object but {recipe!r:.80}. Fetch or train them again")
    for name, value in recipe.items():
        expected = _expected(name, value)
        if expected:
            raise ValueError(
                f"{where}: {name!r} in the recipe of the weights must be {expected}, got {value!r:.80}. Fetch or train them "
                f"again"
            )
    return recipe


def _expected(name: str, value: Any) -> str:
    """Describe what an entry of a recipe should be, or return "" if it is right."""
    if name == "spacing_mm" and not _is_number(value, 0.05, 50):
        return "a voxel size from 0.05 to 50 mm"
    if name == "condition_dropout" and not _is_number(value, 0, 1):
        return "a number from 0 to 1"
    if name == "prediction_type" and value not in ("epsilon", "v_prediction", "flow"):
        return "'epsilon', 'v_prediction' or 'flow'"
    if name == "seen_voxels" and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        return "a list of the training scans' hashes"
    if name == "seen_unknown" and not isinstance(value, bool):
        return "true or false"
    if name == "autoencoder_sha256" and not isinstance(value, str):
        return "a hash"
    if name == "volumes" and value is not None and not _is_lists_of_text(value):
        return "lists of class names, one for each volume"
    if name == "acquisition" and not is_measurement(value):
        return "a measured noise and bias field"
    if name == "selection" and not isinstance(value, dict):
        return "the epoch that was chosen, with its metric"
    if name in SIZES and not (isinstance(value, dict) and all(_is_size(key, size) for key, size in value.items())):
        return f"sizes of a network: whole numbers, and image sizes of up to {LARGEST_SIDE} voxels"
    return ""


def _is_lists_of_text(value: Any) -> bool:
    lists = list(value.values()) if isinstance(value, dict) else [None]
    return all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in lists)


def _is_number(value: Any, low: float, high: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and low <= value <= high


def _is_size(name: str, size: Any) -> bool:
    if isinstance(size, list):
        return len(size) <= 20 and all(type(item) is int and _is_size(name, item) for item in size)
    return type(size) is int and 0 <= size and (name != "image_size" or size <= LARGEST_SIDE)


def refuse_other_settings(used: Mapping, recipe: Mapping, where: object) -> None:
    """Refuse settings that `used` and the recipe of the weights give differently; error messages name the file `where`.

    Settings without an entry in the recipe may have any value.
    """
    for name, value in recipe.items():
        if name not in used or used[name] != value:
            now = f"{used[name]!r:.80}" if name in used else "nothing"
            raise ValueError(
                f"{name} is {now}, but {where} was trained with {value!r:.80}. The weights fix this setting: leave it out, or "
                f"choose other weights"
            )
