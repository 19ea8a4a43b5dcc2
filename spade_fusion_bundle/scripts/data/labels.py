"""Choose the label table of a model: that of its weights, or another one with the same classes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path

from ..shared.label_table import LabelTable

LABELS = Path(__file__).resolve().parents[2] / "configs" / "labels.json"


def table_of(recipe: Mapping, labels_file: str | Path, name: str | None = None) -> LabelTable:
    """Return the label table in a model's recipe, or the table `name` of `labels_file`, which must have the same classes.

    Without a name, another file than the bundle's own must hold the table of the model's name.
    """
    trained = LabelTable.from_dict(recipe["labels"], "the table in the model's weights") if "labels" in recipe else None
    if name is None and trained and Path(labels_file).resolve() == LABELS:
        return trained
    name = name or (trained.name if trained else "freesurfer")
    table = LabelTable.from_file(labels_file, name)
    if trained and trained.names != table.names:
        differing = next(number for number, (a, b) in enumerate(zip_longest(trained.names, table.names)) if a != b)
        raise ValueError(
            f"label_table {name!r} has other classes than the model's table {trained.name!r}, from class {differing} on. Leave "
            f"out --label_table to use the model's, or write a table that maps your values to classes of the same names"
        )
    return table
