"""Identify scans by their voxels instead of their file names, so that weights can record their training scans.

A recipe holds "seen_voxels", the identities of all known training scans, and "seen_unknown", which is true if training began
with weights that do not record all of their training scans.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .problems import refuse
from .weights import read_recipe


def voxels_sha256(values: np.ndarray) -> str:
    """Return the identity of a scan: the first 16 hexadecimal digits of the SHA-256 of its voxels in float32.

    `values` come from `nifti.read_grey_values`. So the file's name, compression, orientation and data type do not matter.
    """
    return hashlib.sha256(np.ascontiguousarray(values.T, dtype="<f4")).hexdigest()[:16]


def refuse_copies(data: Mapping[str, Sequence[Mapping]], dataset_dir: str | Path) -> None:
    """Refuse a data set, from `read_dataset`, that has one scan in two splits. Warn about two copies in one split."""
    problems, twins, first = [], [], {}
    for split, items in data.items():
        for item in items:
            other, image = first.setdefault(item["voxels_sha256"], (split, item["image"]))
            if other == split and image != item["image"]:
                twins.append(f"{item['image']} is a copy of {image}")
            if other != split:
                problems.append(f"{item['image']} ({split}) is a copy of {image} ({other}). Remove one of them")
    refuse(problems, f"{dataset_dir} cannot be used for training yet ({len(problems)} scans in two splits):")
    if twins:
        warnings.warn(f"{len(twins)} scans occur twice, such as {twins[0]}. They count twice. Remove all but one", stacklevel=2)


def seen_voxels(items: Sequence[Mapping], *inits: str | Path | None) -> list[str]:
    """Return the sorted identities of training scans, including the scans behind files of initial weights; None is no file."""
    earlier = (identity for init in inits if init is not None for identity in read_recipe(init).get("seen_voxels", ()))
    return sorted({*earlier, *(item["voxels_sha256"] for item in items)})


def seen_unknown(*inits: str | Path | None) -> bool:
    """Check whether a file of initial weights fails to record all of its training scans; None is no file."""
    return any(init is not None and not knows_all(read_recipe(init)) for init in inits)


def knows_all(recipe: Mapping) -> bool:
    """Check whether a recipe records all training scans. Earlier versions wrote "unknown_start" for "seen_unknown"."""
    return "seen_voxels" in recipe and not (recipe.get("seen_unknown") or recipe.get("unknown_start"))


def refuse_seen_by_start(init: str | Path | None, items: Sequence[Mapping], split: str = "validation") -> None:
    """Refuse to fine-tune initial weights, if any, that were trained on held-out scans, because no later weights beat these."""
    if init is not None and Path(init).is_file():  # a missing file is refused where it is loaded
        refuse_seen(items, read_recipe(init), split, str(init))


def warn_unseen(items: Sequence[Mapping], recipe: Mapping, weights: str | Path) -> None:
    """Warn about scans of the training split that weights were not trained on, if their recipe records their scans."""
    seen = set(recipe.get("seen_voxels", ()))
    new = [item["image"] for item in items if item["voxels_sha256"] not in seen]
    if seen and new:
        warnings.warn(
            f"{weights} was not trained on {len(new)} of {len(items)} scans in the split 'training', such as {new[0]}. Its "
            f"volumes get the noise and the bias field of these scans",
            stacklevel=2,
        )


def refuse_seen(items: Sequence[Mapping], recipe: Mapping, split: str, weights: str = "the weights") -> None:
    """Refuse held-out scans that weights were trained on. Warn if the weights do not record all of their training scans.

    `items` are the scans of the split, from `read_dataset`, `recipe` is the recipe of the weights, and `weights` is their name
    in messages.
    """
    if not knows_all(recipe):
        some = "all scans that" if "seen_voxels" in recipe else "which scans"
        warnings.warn(
            f"{weights} do not say {some} they were trained on, so they may have been trained on held-out scans",
            stacklevel=1,  # the same place for all callers, so that Python shows the warning once
        )
    seen = set(recipe.get("seen_voxels", ()))
    known = [item["image"] for item in items if item["voxels_sha256"] in seen]
    if known:
        raise ValueError(
            f"{len(known)} of {len(items)} scans in the split {split!r}, such as {known[0]}, are among those that {weights} "
            f"were trained on. Split the data as training did (--seed, --validation_fraction and other fractions, --folds, "
            f"--datalist, the column split of participants.tsv), or give other scans"
        )
