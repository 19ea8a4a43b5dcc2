"""Label tables map the values of a label map (FreeSurfer, SynthSeg, your own) to the classes of the networks."""

from __future__ import annotations

import difflib
import json
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np

from .files import read_json
from .label_files import smallest_integers, whole_numbers

SIDES = ("left", "right", "midline")
SIDE = re.compile(r"(?<![a-z])left(?![a-z])")  # in the name of a class, in lower case
KEYS = ("class", "name", *SIDES, "brain")
TABLES = 'named tables, {"freesurfer": [{"class": 0, "name": "background", ...}]}'
MOST_CLASSES = 255  # classes are uint8, and 255 marks a value of no class
LARGEST_VALUE = 2**24  # float32, in which MONAI loads label maps, holds integers up to here
MOST_LISTED = 10


class LabelTable:
    """A map from the values of a label map to classes.

    Args:
        name: name of the table.
        entries: one entry for each class, {"class": 8, "name": "caudate", "left": [11], "right": [50], "brain": true}. The
            values of a side are integers or ranges "1000-1035"; "midline" is for structures without a side. Class 0 is the
            background and has the value 0. To separate the sides, give two entries the same name, one with only "left" and
            one with only "right".
        where: file and table that error messages name.

    Attributes:
        num_classes: number of classes, including the background.
        names: name of each class, such as "left caudate" if the table separates the sides.
        brain: classes that brain scores include.
        mirror: class (num_classes,) of the same structure on the other side, as uint8. A class without a side maps to itself.

    Raises:
        ValueError: an entry is wrong. The message names it.
    """

    def __init__(self, name: str, entries: Sequence[Mapping], where: str = "") -> None:
        where = where or f"label table {name!r}"
        if not isinstance(entries, Sequence) or isinstance(entries, str) or len(entries) < 2:
            raise ValueError(f'{where}: expected [{{"class": 0, "name": "background", "midline": [0], "brain": false}}, ...]')
        for number, entry in enumerate(entries):
            _check_entry(entry, f"{where} entry {number}")
        entries = sorted((dict(entry) for entry in entries), key=lambda entry: entry["class"])
        numbers = [entry["class"] for entry in entries]
        if numbers != list(range(len(entries))):
            raise ValueError(f"{where}: the classes must be 0 to {len(entries) - 1}, each once, got {numbers}")
        if len(entries) > MOST_CLASSES:
            raise ValueError(f"{where}: {len(entries)} classes, at most {MOST_CLASSES} are possible. Merge some")
        self.name, self.num_classes, self._entries = name, len(entries), entries

        class_of = {}
        for entry in entries:
            for value in (value for side in _sides(entry) for value in _values(entry[side])):
                if value in class_of:
                    raise ValueError(
                        f"{where}: the value {value} is in class {class_of[value]} ({entries[class_of[value]]['name']}) and in "
                        f"class {entry['class']} ({entry['name']}), or twice in one. Keep one"
                    )
                class_of[value] = entry["class"]
        if class_of.get(0) != 0 or entries[0]["brain"]:
            raise ValueError(f"{where}: class 0 must be the background, with the value 0 and outside of the brain")
        self._lowest = min(class_of)
        self._class_of = np.full(max(class_of) - self._lowest + 1, MOST_CLASSES, np.uint8)  # of each value from the lowest on
        self._class_of[np.array(list(class_of)) - self._lowest] = list(class_of.values())

        self.brain = tuple(entry["class"] for entry in entries if entry["brain"])
        self.mirror = np.arange(self.num_classes, dtype=np.uint8)
        for left, right in _pairs(entries, where):
            self.mirror[[left, right]] = right, left
        self.names = [
            entry["name"] if self.mirror[number] == number else f"{_sides(entry)[0]} {entry['name']}"
            for number, entry in enumerate(entries)
        ]

    @classmethod
    def from_file(cls, path: str | Path, name: str) -> LabelTable:
        """Read the table `name` from a JSON file of tables such as `configs/labels.json`."""
        content = read_json(path, TABLES)
        tables = [key for key in content if not key.startswith("_")]
        if not tables:
            raise ValueError(f"{path}: expected {TABLES}")
        if name not in tables:
            near = difflib.get_close_matches(str(name), tables, 1)
            hint = f". Did you mean {near[0]!r}?" if near else f". There are: {', '.join(tables)}"
            raise ValueError(f"{path}: no label table {name!r}{hint}")
        table = cls(name, content[name], f"{path} table {name!r}")
        if not table.brain:
            raise ValueError(f'{path} table {name!r}: has no class with "brain": true. Mark the classes of the brain in it')
        table._warn_of_hidden_sides(f"{path} table {name!r}")
        return table

    def _warn_of_hidden_sides(self, where: str) -> None:
        """Warn of classes that are sides of one structure by their names alone, because mirroring does not swap them."""
        midline = {entry["name"].lower(): entry["name"] for entry in self._entries if "midline" in entry}
        hidden = {name: SIDE.sub("right", name) for name in midline if SIDE.search(name)}
        if pair := next(((midline[name], midline[other]) for name, other in hidden.items() if other in midline), None):
            warnings.warn(
                f"{where}: {pair[0]!r} and {pair[1]!r} are midline, so a mirrored head keeps the name of the wrong side. Give "
                f"both one name without a side, and their values as 'left' and as 'right'",
                stacklevel=3,
            )

    @classmethod
    def from_dict(cls, content: Mapping, where: str) -> LabelTable:
        """Make the table from the result of `to_dict`, which is stored with weights; error messages name `where`."""
        if not isinstance(content, Mapping) or not {"name", "classes"} <= content.keys():
            raise ValueError(f'{where}: expected a label table {{"name": ..., "classes": [...]}}, got {content!r:.100}')
        return cls(content["name"], content["classes"], f"{where} table {content['name']!r}")

    def to_dict(self) -> dict:
        """Convert the table to plain values, for JSON and weights."""
        return {"name": self.name, "classes": json.loads(json.dumps(self._entries))}

    def sided(self) -> LabelTable:
        """Give each side of a structure its own class. Midline values of such a structure become a third class."""
        entries = []
        for entry in self.to_dict()["classes"]:
            sides = _sides(entry)
            for side in sides:
                apart = len(sides) > 1 and side == "midline"
                name = f"midline {entry['name']}" if apart else entry["name"]
                entries.append({"class": len(entries), "name": name, side: entry[side], "brain": entry["brain"]})
        return LabelTable(self.name, entries)

    def classes_of(self, structures: Collection[str]) -> list[int]:
        """Return the classes of structures, given by their names without a side."""
        return [entry["class"] for entry in self._entries if entry["name"].removeprefix("midline ") in structures]

    def first_values(self) -> np.ndarray:
        """Return the first label value of each class, as the smallest integer type that holds them, uint8, int16 or int32."""
        return smallest_integers(np.array([_values(entry[_sides(entry)[0]])[0] for entry in self._entries]))

    def dseg_rows(self) -> list[tuple[str, str]]:
        """Return the rows of a `dseg.tsv` of BIDS, which names all label values."""
        return [("index", "name"), *((str(value), name) for value, name in sorted(self.value_names().items()))]

    def value_names(self) -> dict[int, str]:
        """Return the name of each label value, with its side if it has one."""
        return {
            value: entry["name"] if side == "midline" else f"{side} {entry['name']}"
            for entry in self._entries
            for side in _sides(entry)
            for value in _values(entry[side])
        }

    def classes(self, values: np.ndarray, where: str) -> np.ndarray:
        """Return the class of every voxel as uint8 in the same shape.

        Args:
            values: label map of any shape; floats within 0.01 of an integer are rounded.
            where: file that error messages name.

        Raises:
            ValueError: values are not in the table, not finite or not integers, or all are background.
        """
        try:
            values = whole_numbers(np.asarray(values))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        outside = (values < self._lowest) | (values > self._lowest + len(self._class_of) - 1)
        classes = self._class_of[np.where(outside, 0, values).astype(np.int64) - self._lowest]
        unknown = outside | (classes == MOST_CLASSES)
        if unknown.any():
            raise ValueError(
                f"{where}: label values {_counted(values[unknown])} are not in the label table {self.name!r}. Choose the table "
                f"that the map was made with, or add the values to a class of the table in the labels_file and train with it"
            )
        if not classes.any():
            raise ValueError(f"{where}: the label map is empty, all {classes.size} voxels are background. Segment it again")
        return classes

    def refuse_other_meaning(self, values: np.ndarray, where: str) -> None:
        """Refuse a map that lacks most brain structures of the table, because it is no map of a head.

        Each value of a mask 0/255 or a tumour 2/4 is in a table, but has another meaning there. A structure with two sides
        counts once, so half a head passes.

        Raises:
            ValueError: the map has fewer than half of the structures with "brain" true. The message names `where`.
        """
        present = np.bincount(self.classes(values, where).ravel(), minlength=self.num_classes) > 0
        brain = {entry["name"] for entry in self._entries if entry["brain"]}
        found = {entry["name"]: entry["brain"] for entry in self._entries[1:] if present[entry["class"]]}
        if 2 * sum(found.values()) < len(brain):
            raise ValueError(
                f"{where}: its values {_counted(values[values != 0])} mean {', '.join(found)} in the label table "
                f"{self.name!r}, but a head has at least {(len(brain) + 1) // 2} of its {len(brain)} brain structures. "
                f"Choose the table that the map was made with, or segment the whole head. If the map shows a part of a head, "
                f"add --partial_maps True"
            )


def _check_entry(entry: Mapping, where: str) -> None:
    if not isinstance(entry, Mapping):
        raise ValueError(f'{where}: expected {{"class": ..., "name": ..., "brain": ...}}, got {entry!r}')
    unknown = [key for key in entry if key not in KEYS]
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}. Possible are {', '.join(KEYS)}")
    for key, kind in (("class", int), ("name", str), ("brain", bool)):
        if type(entry.get(key)) is not kind:
            raise ValueError(f"{where}: {key!r} must be of type {kind.__name__}, got {entry.get(key)!r}")
    if not _sides(entry):
        raise ValueError(f"{where} ({entry['name']}): no values. Give them as 'left', 'right' or 'midline'")
    for side in _sides(entry):
        try:
            _values(entry[side])
        except (TypeError, ValueError):
            raise ValueError(
                f'{where} ({entry["name"]}): {side!r} must list integers or ranges such as "1000-1035" up to {LARGEST_VALUE}, '
                f"got {entry[side]!r}"
            ) from None


def _sides(entry: Mapping) -> list[str]:
    return [side for side in SIDES if side in entry]


def _values(listed: Sequence[int | str]) -> list[int]:
    """Return the label values of a side. Raise TypeError or ValueError if it is not a list of integers and ranges."""
    if not isinstance(listed, Sequence) or isinstance(listed, str) or not listed:
        raise TypeError
    values = []
    for item in listed:
        if isinstance(item, str):
            first, last = map(int, item.split("-"))
            if not -LARGEST_VALUE <= first <= last <= LARGEST_VALUE:
                raise ValueError
            values += range(first, last + 1)
        elif type(item) is int and abs(item) <= LARGEST_VALUE:
            values.append(item)
        else:
            raise TypeError
    return values


def _pairs(entries: Sequence[Mapping], where: str) -> list[tuple[int, int]]:
    """Return the left and the right class of each structure whose sides the table separates."""
    by_name = {}
    for entry in entries:
        by_name.setdefault(entry["name"], []).append(entry)
    pairs = []
    for name, same in by_name.items():
        sides = sorted(_sides(entry) for entry in same)
        if sides == [["left"], ["right"]]:
            if same[0]["brain"] != same[1]["brain"]:
                raise ValueError(f"{where}: the left and the right {name} differ in 'brain'")
            pairs.append((same[0]["class"], same[1]["class"]))
        elif len(same) > 1:
            raise ValueError(
                f"{where}: the name {name!r} is given to classes {[entry['class'] for entry in same]}. Two may share a name, "
                f"one with 'left' alone and one with 'right' alone"
            )
        elif ("left" in same[0]) != ("right" in same[0]):
            raise ValueError(
                f"{where}: class {same[0]['class']} ({name}) has {sides[0]} values, but not the other side's. Give both to the "
                f"class, or let a second class of that name have the other side"
            )
    return pairs


def _counted(values: np.ndarray) -> str:
    found, counts = np.unique(values, return_counts=True)
    listed = ", ".join(f"{value:.0f} ({count} voxels)" for value, count in zip(found[:MOST_LISTED], counts))
    return listed + (f" and {len(found) - MOST_LISTED} more values" if len(found) > MOST_LISTED else "")
