"""What the networks of a model were trained on: checks of a data set against it, and words for it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..shared.files import sha256
from ..shared.scan_identity import knows_all, refuse_seen
from ..shared.weights import read_recipe


def recipe_of(model_file: str | Path, autoencoder_file: str | Path) -> dict:
    """Recipe of a diffusion model, to which the training scans of its autoencoder are added. A file may be missing."""
    recipe = read_recipe(model_file)
    recipes = [read_recipe(file) for file in (model_file, autoencoder_file) if Path(file).is_file()]
    if not any("seen_voxels" in known for known in recipes):
        return recipe
    seen = {voxels for known in recipes for voxels in known.get("seen_voxels", ())}
    return recipe | {"seen_voxels": sorted(seen), "seen_unknown": not all(map(knows_all, recipes))}


def check_split(data: Mapping[str, Sequence[Mapping]], recipe: Mapping, weights: str = "the weights") -> None:
    """Refuse a data set whose validation or test scans were trained on. Warn where its training scans were not.

    `recipe` belongs to the weights, which messages call `weights`.
    """
    for split in ("validation", "test"):
        refuse_seen(data[split], recipe, split, weights)
    seen = set(recipe.get("seen_voxels", ()))
    new = [item["image"] for item in data["training"] if item["voxels_sha256"] not in seen]
    if seen and new:
        warnings.warn(
            f"{len(new)} of {len(data['training'])} scans in the split 'training', such as {new[0]}, are not those that "
            f"{weights} were trained on: an audit would not find copies of the others",
            stacklevel=2,
        )


def check_baselines(data: Mapping[str, Sequence[Mapping]], models_dir: str | Path, *provenances: Mapping) -> None:
    """Check the split as `check_split`, against each baseline that made a generated set; sets of other models are left out.

    Training wrote a baseline's weights into `models_dir`, under its name. `read_provenance` gives the provenance of each set.
    """
    for provenance in provenances:
        if "Model" in provenance:
            path = Path(models_dir) / f"{provenance['Model']}.pt"
            is_its_file = path.is_file() and sha256(path) == provenance.get("WeightsSHA256")
            check_split(data, read_recipe(path) if is_its_file else {}, f"the weights of {provenance['Model']}")


def what_training_knew(split: str, recipe: Mapping) -> str:
    """Relative clause on the scans of a split, for a reader: what they are to the weights of `recipe`."""
    if split == "training":
        return "which it was trained on"
    if not knows_all(recipe):
        return "which should be new to it (its weights do not say all that they were trained on, so this is not checked)"
    return "which chose its best epoch" if split == "validation" else "which it never saw"
