"""Compare a data set with the scans that a model was trained on."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..shared.files import sha256
from ..shared.scan_identity import knows_all, refuse_seen
from ..shared.weights import read_recipe


def recipe_of(model_file: str | Path, autoencoder_file: str | Path) -> dict:
    """Read the recipe of a diffusion model and add the training scans of its autoencoder. Either file may be missing."""
    recipe = read_recipe(model_file)
    recipes = [read_recipe(file) for file in (model_file, autoencoder_file) if Path(file).is_file()]
    if not any("seen_voxels" in known for known in recipes):
        return recipe
    seen = {voxels for known in recipes for voxels in known.get("seen_voxels", ())}
    return recipe | {"seen_voxels": sorted(seen), "seen_unknown": not all(map(knows_all, recipes))}


def check_split(data: Mapping[str, Sequence[Mapping]], recipe: Mapping, weights: str = "the weights") -> None:
    """Refuse a data set if the model was trained on its validation or test scans. Warn about new training scans.

    `recipe` is the recipe of the weights, and `weights` their name in messages.
    """
    for split in ("validation", "test"):
        refuse_seen(data[split], recipe, split, weights)
    seen = set(recipe.get("seen_voxels", ()))
    new = [item["image"] for item in data["training"] if item["voxels_sha256"] not in seen]
    if seen and new:
        warnings.warn(
            f"{weights} were not trained on {len(new)} of {len(data['training'])} scans in the split 'training', such as "
            f"{new[0]}: an audit cannot find copies of training scans that the data set lacks",
            stacklevel=2,
        )


def check_baselines(data: Mapping[str, Sequence[Mapping]], models_dir: str | Path, *provenances: Mapping) -> None:
    """Call `check_split` for each baseline that made a generated set. Sets of other models are ignored.

    `models_dir` holds the weights of each baseline under its name. `read_provenance` returns the provenance of each set.
    """
    for provenance in provenances:
        if "Model" in provenance:
            path = Path(models_dir) / f"{provenance['Model']}.pt"
            is_its_file = path.is_file() and sha256(path) == provenance.get("WeightsSHA256")
            check_split(data, read_recipe(path) if is_its_file else {}, f"the weights of {provenance['Model']}")


def what_training_knew(split: str, recipe: Mapping) -> str:
    """Return a relative clause for reports: whether weights with this recipe were trained on the scans of a split."""
    if split == "training":
        return "which it was trained on"
    if not knows_all(recipe):
        return "which should be new to it (not checked, because its weights do not name all of their training scans)"
    return "which chose its best epoch" if split == "validation" else "which it never saw"
