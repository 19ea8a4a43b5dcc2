"""Scans are identified by their voxels, whatever their files are called. Weights carry the identities of their training scans.

A recipe holds "seen_voxels", the identities of all training scans that are known, and "seen_unknown", whether training began
with weights that do not say what they were trained on.
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
    """Identity of a scan: 16 hexadecimal digits of a SHA-256 of its voxels as float32.

    A copy with another name, compression, orientation or type of number has the same identity.

    Args:
        values: voxels (X, Y, Z) from left to right, back to front and bottom to top, as `nifti.read_grey_values` gives them.
    """
    return hashlib.sha256(np.ascontiguousarray(values.T, dtype="<f4")).hexdigest()[:16]


def refuse_copies(data: Mapping[str, Sequence[Mapping]], dataset_dir: str | Path) -> None:
    """Refuse a data set with one scan in two splits, under two names.

    Args:
        data: scans by split, as `read_dataset` gives them.
        dataset_dir: folder of the data set, for the message.
    """
    problems, first = [], {}
    for split, items in data.items():
        for item in items:
            other, image = first.setdefault(item["voxels_sha256"], (split, item["image"]))
            if other != split:
                problems.append(f"{item['image']} ({split}) is a copy of {image} ({other}). Keep one of them")
    refuse(problems, f"{dataset_dir} cannot be used for training yet ({len(problems)} scans in two splits):")


def seen_voxels(items: Sequence[Mapping], init: str | Path | None = None) -> list[str]:
    """Identities of training scans, sorted.

    Args:
        items: training scans, as `read_dataset` gives them.
        init: file of weights that training begins with, whose scans count as well; None: it begins with random ones.
    """
    earlier = read_recipe(init).get("seen_voxels", ()) if init is not None else ()
    return sorted({*earlier, *(item["voxels_sha256"] for item in items)})


def seen_unknown(init: str | Path | None) -> bool:
    """Whether training begins with weights that do not say all that they were trained on; `init` as in `seen_voxels`."""
    return init is not None and not knows_all(read_recipe(init))


def knows_all(recipe: Mapping) -> bool:
    """Whether weights say of all scans that they were trained on; "unknown_start" is what earlier versions wrote."""
    return "seen_voxels" in recipe and not (recipe.get("seen_unknown") or recipe.get("unknown_start"))


def refuse_seen(items: Sequence[Mapping], recipe: Mapping, split: str, weights: str = "the weights") -> None:
    """Refuse training scans where held-out ones are needed. Warn where the weights do not say what they were trained on.

    Args:
        items: scans of a split, as `read_dataset` gives them.
        recipe: recipe of the weights.
        split: name of the split, for the message.
        weights: what the message calls the weights.
    """
    if not knows_all(recipe):
        some = "all scans that" if "seen_voxels" in recipe else "which scans"
        warnings.warn(
            f"{weights} do not say {some} they were trained on. So it is not checked that held-out scans are new to them",
            stacklevel=1,  # from everywhere the same place, so that Python shows the warning once
        )
    seen = set(recipe.get("seen_voxels", ()))
    known = [item["image"] for item in items if item["voxels_sha256"] in seen]
    if known:
        raise ValueError(
            f"{len(known)} of {len(items)} scans in the split {split!r}, such as {known[0]}, are among those that {weights} "
            f"were trained on. Split the data as training did (--seed, --validation_fraction and other fractions, --folds, "
            f"--datalist, the column split of participants.tsv), or give other scans"
        )
