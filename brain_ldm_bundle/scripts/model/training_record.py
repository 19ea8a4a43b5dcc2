"""Which scans weights were trained on: known again by short hashes that travel in their recipe, without names."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..shared.files import sha256
from ..shared.weights import read_recipe

__all__ = ["check_baselines", "check_split", "identities", "recipe_of", "refuse_seen", "unknown_start", "what_training_knew"]


def identities(items: Sequence[Mapping], init: str | Path | None = None) -> list[str]:
    """By what scans are known again wherever they lie and whatever they are called: the hashes of their voxels.

    Args:
        items: of `read_dataset`.
        init: file of weights that training begins with; the scans that they have seen count as well.
    """
    earlier = read_recipe(init).get("seen_voxels", ()) if init is not None else ()
    return sorted({*earlier, *(item["voxels_sha256"] for item in items)})


def unknown_start(init: str | Path | None) -> str | None:
    """The hash of the weights, at the start of all that led to `init`, that do not say what they were trained on; or None."""
    if init is None:
        return None
    recipe = read_recipe(init)
    return recipe.get("unknown_start") if "seen_voxels" in recipe else sha256(init)


def recipe_of(model_file: str | Path, autoencoder_file: str | Path) -> dict:
    """The recipe of a diffusion model, in which "seen_voxels" are the scans that it or its autoencoder was trained on.

    Where only one of the two files says, the hash of the other is the "unknown_start"; else it is that of either recipe.
    """
    recipe = read_recipe(model_file)
    files = [file for file in (model_file, autoencoder_file) if Path(file).is_file()]
    said = [known["seen_voxels"] for known in map(read_recipe, files) if "seen_voxels" in known]
    if not said:
        return recipe
    starts = [start for start in (unknown_start(file) for file in files) if start]
    return recipe | {"seen_voxels": sorted({*said[0], *said[-1]}), "unknown_start": starts[0] if starts else None}


def refuse_seen(items: Sequence[Mapping], recipe: Mapping, split: str, weights: str = "the weights") -> None:
    """Refuse scans that weights were trained on where held-out ones are needed; warn where the weights do not say.

    Args:
        items: of `read_dataset`.
        recipe: of the weights; "seen_voxels" are the `identities` of its training scans.
        split: of the items, for the message.
        weights: what the message calls them.

    Raises:
        ValueError: says how many, and by which settings training and evaluation share out alike.
    """
    if "seen_voxels" not in recipe:
        warnings.warn(
            f"{weights} do not say which scans they were trained on: that held-out ones are new to them is not checked",
            stacklevel=1,  # from everywhere the same place: said once
        )
        return
    if recipe.get("unknown_start"):
        warnings.warn(
            f"{weights} went on from others ({recipe['unknown_start'][:12]}) that do not say which scans they were trained on: "
            f"that held-out ones are new to those is not checked",
            stacklevel=1,
        )
    seen = set(recipe["seen_voxels"])
    known = [item["image"] for item in items if item["voxels_sha256"] in seen]
    if known:
        raise ValueError(
            f"{len(known)} of {len(items)} scans in the split {split!r}, such as {known[0]}, are among those that {weights} "
            f"were trained on. Share out as training did (--seed, --validation_fraction, --datalist, the column split of "
            f"participants.tsv), or name others"
        )


def check_split(data: Mapping[str, Sequence[Mapping]], recipe: Mapping, weights: str = "the weights") -> None:
    """Refuse a data set whose validation or test scans were trained on; warn where its training scans were not.

    Args:
        data: of `read_dataset`.
        recipe, weights: of `refuse_seen`.

    Raises:
        ValueError: as `refuse_seen`.
    """
    for split in ("validation", "test"):
        refuse_seen(data[split], recipe, split, weights)
    seen = set(recipe.get("seen_voxels", ()))
    new = [item["image"] for item in data["training"] if item["voxels_sha256"] not in seen]
    if seen and new:
        warnings.warn(
            f"{len(new)} of {len(data['training'])} scans in the split 'training', such as {new[0]}, are not those that "
            f"{weights} were trained on: copies of the others would not be found in an audit",
            stacklevel=2,
        )


def check_baselines(data: Mapping[str, Sequence[Mapping]], models_dir: str | Path, *provenances: Mapping) -> None:
    """`check_split` by the weights of the baselines among the models that made generated sets.

    Args:
        data: of `read_dataset`.
        models_dir: holds a baseline's weights under its model's name, as training writes them.
        provenances: of `read_provenance`, one per set.

    Raises:
        ValueError: as `refuse_seen`.
    """
    for provenance in provenances:
        if "Model" in provenance:
            path = Path(models_dir) / f"{provenance['Model']}.pt"
            made_by = path.is_file() and sha256(path) == provenance.get("WeightsSHA256")
            check_split(data, read_recipe(path) if made_by else {}, f"the weights of {provenance['Model']}")


def what_training_knew(split: str, recipe: Mapping) -> str:
    """What a split's scans are to the weights of `recipe`, in words for a reader."""
    if split == "training":
        return "which it was trained on"
    if "seen_voxels" not in recipe:
        return "which should be new to it (its weights do not say which scans they were trained on)"
    if recipe.get("unknown_start"):
        known = "chose its best epoch" if split == "validation" else "it did not see in this training"
        return f"which {known} (it went on from weights without hashes of their training scans: not checked)"
    return "which chose its best epoch" if split == "validation" else "which it never saw"
