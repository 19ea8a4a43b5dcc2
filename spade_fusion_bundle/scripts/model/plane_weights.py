"""Name and load the weights of the three planes, and name the commands that make them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..data.planes import PLANES
from ..shared.weights import load_weights
from .networks import SpadeFusion, SpadeGenerator, without_spectral_norm

COMMAND = "python -m monai.bundle run {} --config_file configs/train.json --dataset_dir DIR"


def generator_file(models_dir: str | Path, plane: str, fold: int | None = None) -> Path:
    """Return the file of one plane's generator, or of its generator that was trained without a fold."""
    return Path(models_dir) / (f"spade_{plane}.pt" if fold is None else f"spade_{plane}_fold{fold}.pt")


def load_generators(
    network: SpadeFusion,
    generator: Callable[[], SpadeGenerator],
    models_dir: str | Path,
    recipe: Mapping,
    fold: int | None = None,
) -> SpadeFusion:
    """Load the trained generators of the three planes into `network`, and leave its fusion CNN unchanged.

    The generators must have the label table, the spacing and the hash of the splits ("data") of `recipe`, because the fusion
    must not learn from subjects that a generator was trained on. With `fold`, generators trained without this fold are loaded.

    Raises:
        FileNotFoundError: a generator is missing. The message names the command that makes it.
        ValueError: weights have another architecture, plane, label table, spacing or split of the data.
    """
    for plane in PLANES:
        path = generator_file(models_dir, plane, fold)
        flags = "" if fold is None else f" --fold {fold} --folds K"
        trained = load_weights(generator(), path, COMMAND.format(f"training_spade --plane {plane}{flags}"))
        refuse_other_generator(
            trained, path, {"plane": plane} | {key: recipe.get(key) for key in ("labels", "spacing_mm", "data")}
        )
        network.generators[plane].load_state_dict(without_spectral_norm(trained))
    return network


def refuse_other_generator(trained: SpadeGenerator, path: str | Path, wanted: Mapping) -> None:
    """Refuse a trained generator whose recipe has other values than `wanted`; error messages name its file."""
    for key, value in wanted.items():
        found = trained.recipe.get(key)
        if found != value:
            then = f"other {key} ({str(found)[:200]}), now {str(value)[:200]}"
            if key == "data":  # a hash
                then = "other scans, maps, splits or folds, or by an earlier version with images that are not .nii.gz"
            raise ValueError(
                f"{path}: trained with {then}. Use those again, or train the plane again with another --models_dir"
            )


def refuse_missing_weights(model_file: str | Path, models_dir: str | Path) -> None:
    """Refuse to start without the model, and name the commands that train what is missing."""
    if Path(model_file).is_file():
        return
    missing = [plane for plane in PLANES if not generator_file(models_dir, plane).is_file()]
    state, runs = "", ["training"]
    if len(missing) < len(PLANES):
        state = f" Still to train: {', '.join([*missing, 'fusion'])}."
        runs = [*(f"training_spade --plane {plane}" for plane in missing), "training_fusion"]
    commands = ", then ".join(COMMAND.format(run) for run in runs)
    raise FileNotFoundError(f"{model_file}: no such weights file.{state} Make it with: {commands}")
