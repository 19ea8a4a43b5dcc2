"""Load weights of a network strictly, and build the network that they belong to. `files.save_weights` writes such files."""

from __future__ import annotations

import inspect
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from .files import non_finite, read_tensors, refuse_unwritable, save_weights, sha256
from .recipe import decode, encode, refuse_other_settings

# Other software stores weights below these names. A prefix is dropped if all names begin with it, and none of the network's.
PREFIXES = ("module.", "network.", "model.", "net.", "ema_model.")

KINDS = {  # a tensor that only this kind of network has
    "time_embed.0.weight": "a diffusion model",
    "quant_conv_mu.conv.weight": "an autoencoder",
    "final.4.weight": "a regressor",
    "linear.weight": "the generator of a baseline",
    "generators.axial.stem.weight": "a complete SPADE fusion model",
    "stem.weight": "the SPADE generator of one plane",
}

FREE = {"image_size", "slices_per_batch"}  # arguments of networks that may exceed all sides of their tensors


def load_weights(
    network: torch.nn.Module,
    path: str | Path,
    made_by: str = "",
    expected_sha256: str | None = None,
    settings: Mapping | None = None,
) -> torch.nn.Module:
    """Load weights into `network` strictly, with the same keys and shapes in file and network, and return it.

    Args:
        network: network to fill. If it has a method `current_names(found)`, this translates the state dict of an earlier
            version. If it has `implied_recipe`, this holds for weights without a recipe.
        path: file of weights, as `read_state` reads it.
        made_by: command that makes the file. The message for a missing file names it.
        expected_sha256: hash that the file must have, because other weights were trained with it; None accepts any.
        settings: settings of this run, which must agree with the recipe in the file; None compares nothing.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no weights or NaN, has another hash or recipe, or fits another architecture; names the
            first such keys. Or the scale factor of latents is not above 0.
    """
    path = Path(path)
    refuse_missing(path, made_by)
    settings_are = "channels and levels of the network, number of covariates, label table"
    remedy = f"Use the settings that the file was trained with ({settings_are})"
    found = _fitting(network, read_state(path), path, remedy)
    if expected_sha256 and sha256(path) != expected_sha256:
        raise ValueError(
            f"{path}: sha256 {sha256(path)}, but the other weights were trained with the file {expected_sha256}. "
            f"Use the two files that were trained together."
        )
    refuse_non_finite(found, path)
    if "scale_factor" in found and not (factor := float(found["scale_factor"])) > 0:
        raise ValueError(f"{path}: the scale factor of the latents is {factor:g}, but must be above 0. Fetch or train it again")
    recipe = decode(found["_extra_state"], path) if "_extra_state" in found else {}
    if settings is not None:
        refuse_other_settings(settings, recipe or getattr(network, "implied_recipe", {}), path)
    network.load_state_dict(found)
    return network


def refuse_missing(path: str | Path, made_by: str = "") -> None:
    """Refuse a file of weights that does not exist, and name the command that makes it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such weights file." + (f" Make it with: {made_by}" if made_by else ""))


def network_of(make: Callable[..., torch.nn.Module], key: str, path: str | Path, **more) -> torch.nn.Module:
    """Make the untrained network that the weights in a file belong to, with their recipe. Load them with `load_weights`.

    Args:
        make: class of the network.
        key: entry of the recipe that holds the arguments of the class. Without a recipe, its defaults are used. A recipe must
            have the entries in `recipe_needs` of the class, because defaults would give wrong images.
        path: file of weights. If it does not exist, the network has the default sizes.
        more: further arguments of the class. Those of the recipe replace them.

    Raises:
        ValueError: the file holds no weights, or weights of another network than its recipe describes.
    """
    path = Path(path)
    if not path.is_file():
        return make(**more)
    state = _without_prefix(read_state(path, mmap=zipfile.is_zipfile(path)), PREFIXES)
    recipe = read_recipe(path)
    sizes = more | recipe.get(key, {})
    kind = f" of {_kind(state)}" if _kind(state) else ""
    said = sizes or "its default sizes, because the file has no recipe"
    problem = f"{path}: these weights{kind} do not fit a {make.__name__} with {said}"
    defaults = {name: parameter.default for name, parameter in inspect.signature(make).parameters.items()}
    largest = max([len(state), *(side for tensor in state.values() for side in tensor.shape)])
    if any(_exceeds(size, largest) for name, size in (defaults | sizes).items() if name not in FREE):
        raise ValueError(f"{problem}. Fetch or train them again")  # before the network takes all memory
    try:
        network = make(**sizes)
    except Exception as error:  # of MONAI and PyTorch, also ZeroDivisionError, for arguments that describe no network
        raise ValueError(f"{problem} ({' '.join(str(error).split())[:200]}). Fetch or train them again") from error
    _fitting(network, state, path, f"The network has {said}. Fetch or train the weights again")
    refuse_non_finite(state, path)  # MONAI's `load` loads them without `load_weights`
    if recipe and (lacking := [name for name in getattr(make, "recipe_needs", ()) if name not in recipe]):
        raise ValueError(f"{path}: the recipe in the weights lacks {', '.join(lacking)}. Fetch or train them again")
    network.recipe = recipe
    return network


def _exceeds(size: Any, largest: int) -> bool:
    """Check whether a size, or one in a list of sizes, is above the largest side of any tensor."""
    return any(type(number) is int and number > largest for number in (size if isinstance(size, (list, tuple)) else [size]))


def _fitting(network: torch.nn.Module, found: Mapping, path: Path, remedy: str) -> Mapping:
    """Return the state dict under the names of `network`. Refuse it if names, shapes or types differ."""
    wanted = network.state_dict()
    found = _without_prefix(found, [p for p in PREFIXES if not any(key.startswith(p) for key in wanted)])
    kinds = [_kind(wanted), _kind(found)]
    if hasattr(network, "current_names"):
        found = network.current_names(found)
    both = [key for key in wanted if key in found and not key.endswith("_extra_state")]
    differences = {
        "keys missing": [key for key in wanted if key not in found],
        "keys not of this network": sorted(found.keys() - wanted.keys()),
        "keys of another shape": [
            f"{key} {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
            for key in both
            if found[key].shape != wanted[key].shape
        ],
        "keys of another type": [
            f"{key} {_type(found[key])} instead of {wanted[key].dtype}"
            for key in both
            if found[key].is_floating_point() != wanted[key].is_floating_point() or _type(found[key]) != str(found[key].dtype)
        ],
    }
    if any(differences.values()):
        parts = [f"{len(keys)} {what}, first: {', '.join(keys[:3])}" for what, keys in differences.items() if keys]
        other = f" ({kinds[1]}, not {kinds[0]})" if all(kinds) and kinds[0] != kinds[1] else ""
        raise ValueError(f"{path}: weights of another architecture{other}. {'; '.join(parts)}. {remedy}.")
    return found


def _type(tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        return "without values"
    return str(tensor.dtype if tensor.layout == torch.strided else tensor.layout)


def _kind(state: Mapping) -> str:
    return next((kind for name, kind in KINDS.items() if name in state), "")


def refuse_non_finite(state: Mapping, path: str | Path) -> None:
    """Refuse a state dict with NaN or infinity, before hours of work with it; name its first such tensor and the file."""
    broken = next(non_finite(state), None)
    if broken:
        raise ValueError(
            f"{path}: {broken} holds NaN or infinity. The training diverged or a conversion failed: fetch or train it again."
        )


def read_recipe(path: str | Path) -> dict:
    """Read the recipe in a file of weights. It is empty if the weights have none, or if there is no such file."""
    if not Path(path).is_file():
        return {}
    state = _without_prefix(read_state(path, mmap=zipfile.is_zipfile(path)), PREFIXES).get("_extra_state")
    return {} if state is None else decode(state, path)


def recipe_to_extend(path: str | Path, used: Mapping) -> dict:
    """Read the recipe in a file of weights for `add_to_recipe`, before work starts.

    Weights without a recipe are refused, and settings that this run `used` instead of those in the recipe.
    """
    refuse_missing(path, "python -m monai.bundle run training --config_file configs/train.json --dataset_dir DIR")
    refuse_unwritable(path)
    recipe = read_recipe(path)
    if not recipe:
        raise ValueError(f"{path}: these weights have no recipe, so nothing can be stored in it. Give weights of this bundle")
    refuse_other_settings({**recipe, **used}, recipe, path)
    return recipe


def add_to_recipe(path: str | Path, entries: Mapping) -> None:
    """Write entries into the recipe in a file of weights. The file is replaced at once, and its tensors stay the same."""
    state = read_state(path)
    recipe = encode(decode(state["_extra_state"], path) | dict(entries))
    decode(recipe, path)  # refuses a wrong entry before it is written
    save_weights(state | {"_extra_state": recipe}, path)


def read_state(path: str | Path, **options) -> dict[str, torch.Tensor]:
    """Read the state dict in a file, without what DDP, `torch.compile` and averages of weights add to its names.

    The file holds it alone or as its only entry of tensors, such as {"model": ..., "epoch": 3}. `options` are for `torch.load`.

    Raises:
        ValueError: the file holds no state dict, or several; the message names what it holds.
    """
    content = read_tensors(path, **options)
    state = content if _is_state(content) else _only_state(content, path)
    if "n_averaged" in state:  # torch.optim.swa_utils.AveragedModel counts there
        state = {key: value for key, value in state.items() if key != "n_averaged"}
    state = {key.replace("_orig_mod.", ""): value for key, value in state.items()}
    return _without_prefix(state, ["module."])


def _without_prefix(state: Mapping, prefixes: Iterable[str]) -> dict[str, torch.Tensor]:
    """Drop prefixes that all names have, such as "module." of DDP."""
    while prefix := next((prefix for prefix in prefixes if all(key.startswith(prefix) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def _is_state(content: Any) -> bool:
    tensors = isinstance(content, Mapping) and all(isinstance(value, torch.Tensor) for value in content.values())
    return tensors and all(isinstance(key, str) for key in content) and len(content) > 0


def _only_state(content: Any, path: str | Path) -> Mapping[str, torch.Tensor]:
    """Return the only state dict among the entries of a file, or among the entries of these."""
    entries = content if isinstance(content, Mapping) else {}
    if {"settings", "epoch_length"} <= entries.keys():
        raise ValueError(f"{path}: this is the state of an interrupted training. Use the weights that the training wrote.")
    found, level = {}, entries
    for _ in range(2):
        # A mapping of single numbers, such as metrics, is no state dict.
        found = {name: part for name, part in level.items() if _is_state(part) and any(t.ndim for t in part.values())}
        if found or "param_groups" in entries:
            break
        parts = {name: part for name, part in level.items() if isinstance(part, Mapping) and "param_groups" not in part}
        level = {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}
    if len(found) == 1 and "param_groups" not in entries:
        return next(iter(found.values()))
    names = ", ".join(map(str, list(found or entries)[:8])) or type(content).__name__
    what = "the state of an optimizer" if "param_groups" in entries else f"several: {names}" if found else names
    raise ValueError(
        f"{path}: expected a state dict, which maps names to tensors, found {what}. Save the weights of one network alone: "
        f"torch.save(network.state_dict(), FILE)."
    )
