"""Which scans weights were trained on: known again by short hashes that travel in their recipe, without names."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

from .weights import read_recipe

__all__ = ["check_split", "identities", "refuse_seen", "what_training_knew"]


def identities(items: Sequence[Mapping], init: str | Path | None = None) -> list[str]:
    """By what scans are known again wherever they lie, without their names: short hashes of file name and size.

    Args:
        items: of `read_dataset`.
        init: file of weights that training begins with; the scans that they have seen count as well.
    """
    earlier = read_recipe(init).get("seen", ()) if init is not None else ()
    return sorted({*earlier, *(_identity(item["image"]) for item in items)})


def _identity(image: str) -> str:
    return hashlib.sha256(f"{Path(image).name} {os.stat(image).st_size}".encode()).hexdigest()[:16]


def refuse_seen(items: Sequence[Mapping], recipe: Mapping, split: str) -> None:
    """Refuse scans that weights were trained on where held-out ones are needed; warn where the weights do not say.

    Args:
        items: of `read_dataset`.
        recipe: of the weights; "seen" are the `identities` of its training scans.
        split: of the items, for the message.

    Raises:
        ValueError: says how many, and by which settings training and evaluation share out alike.
    """
    if "seen" not in recipe:
        warnings.warn(
            "the weights do not say which scans they were trained on: that held-out ones are new to them is not checked",
            stacklevel=1,  # from everywhere the same place: said once
        )
        return
    seen = set(recipe["seen"])
    known = [item["image"] for item in items if _identity(item["image"]) in seen]
    if known:
        raise ValueError(
            f"{len(known)} of {len(items)} scans in the split {split!r}, such as {known[0]}, were trained on. Share out as "
            f"training did (--seed, --validation_fraction, --datalist, the column split of participants.tsv), or name others"
        )


def check_split(data: Mapping[str, Sequence[Mapping]], recipe: Mapping) -> None:
    """Refuse a data set whose validation or test scans were trained on; warn where its training scans were not.

    Raises:
        ValueError: as `refuse_seen`.
    """
    for split in ("validation", "test"):
        refuse_seen(data[split], recipe, split)
    seen = set(recipe.get("seen", ()))
    new = [item["image"] for item in data["training"] if _identity(item["image"]) not in seen]
    if seen and new:
        warnings.warn(
            f"{len(new)} of {len(data['training'])} scans in the split 'training', such as {new[0]}, are not those that the "
            f"weights were trained on (by file name and size): copies of the others would not be found in an audit",
            stacklevel=2,
        )


def what_training_knew(split: str, recipe: Mapping) -> str:
    """What a split's scans are to the weights of `recipe`, in words for a reader."""
    if split == "training":
        return "which it was trained on"
    if "seen" not in recipe:
        return "which should be new to it (its weights do not say which scans they were trained on)"
    return "which chose its best epoch" if split == "validation" else "which it never saw"
