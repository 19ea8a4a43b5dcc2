"""Read the meaning of label values from the SPADE bundle's label tables, which the whole project uses."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from shared.files import read_json

LABELS_FILE = Path(__file__).resolve().parents[2] / "spade_fusion_bundle" / "configs" / "labels.json"
# Classes of about 5 mL or more in adults, so that even coarse voxels show them. Smaller ones may lie between coarse voxels.
LARGE = (
    *("cerebral cortex", "cerebral white matter", "cerebellar cortex", "cerebellar white matter", "brain stem", "thalamus"),
    *("caudate", "putamen", "hippocampus", "ventral diencephalon", "deep grey matter"),
)


def read_label_values(table: str = "freesurfer") -> dict[str, set[int]]:
    """Return the label values of each class of a table, such as `freesurfer`, keyed by the name of the class."""
    values: dict[str, set[int]] = {}
    for value, _, name in _entries(table):
        values.setdefault(name, set()).add(value)
    return values


def read_label_names(table: str) -> dict[int, str]:
    """Return the name of each label value of a table, such as "left cerebral cortex", by rising value."""
    return {value: name if side == "midline" else f"{side} {name}" for value, side, name in sorted(_entries(table))}


def _entries(table: str) -> Iterator[tuple[int, str, str]]:
    """Yield value, side and class name of each label."""
    for entry in read_json(LABELS_FILE)[table]:
        for side in ("left", "right", "midline"):
            for item in entry.get(side, []):
                first, _, last = str(item).partition("-")
                yield from ((value, side, entry["name"]) for value in range(int(first), int(last or first) + 1))


def missing_structures(found: Collection[int], table: str = "freesurfer") -> list[str]:
    """Return the names of the large brain structures of a table whose values are not among the `found` ones."""
    values = read_label_values(table)
    return [name for name in LARGE if name in values and values[name].isdisjoint(found)]


def label_tables() -> list[str]:
    """Return the names of the tables."""
    return [name for name in read_json(LABELS_FILE) if not name.startswith("_")]


def read_volume_labels(table: str = "freesurfer") -> dict[str, set[int]]:
    """Return the label values of a table that belong to each volume.

    `ventricles_ml` has the lateral ventricles. `brain_ml` has brain tissue without CSF, choroid plexus and vessels. `icv_ml`
    has every value inside the skull.
    """
    content = read_json(LABELS_FILE)
    values, sums = read_label_values(table), content["_volumes"]
    brain = [entry["name"] for entry in content[table] if entry["brain"] and entry["name"] not in sums["csf"]]
    return {
        "ventricles_ml": set().union(*(values[name] for name in sums["ventricles_ml"])),
        "brain_ml": set().union(*(values[name] for name in brain)),
        "icv_ml": set().union(*(values[name] for name in values.keys() - {"background", *sums["outside_skull"]})),
    }
