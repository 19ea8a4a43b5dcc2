"""Compare the names in a BIDS `dseg.tsv` with a label table. Names decide if a value means another structure there."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

MOST_LISTED = 5

# Words of FreeSurfer, SynthSeg and others, and the same in words of the label tables. They are replaced in this order.
SPELLINGS = {
    "wm lh": "left cerebral white matter",
    "wm rh": "right cerebral white matter",
    "lh": "left",
    "l": "left",
    "rh": "right",
    "r": "right",
    "ctx": "cerebral cortex",
    "wm": "white matter",
    "unsegmentedwhitematter": "cerebral white matter",
    "cc": "cerebral white matter",
    "corpus callosum": "cerebral white matter",
    "hypointensities": "lesion",
    "hyperintensities": "lesion",
    "cerebrum": "cerebral",
    "cerebellum": "cerebellar",
    "brainstem": "brain stem",
    "ventraldc": "ventral diencephalon",
    "ventral dc": "ventral diencephalon",
    "substancia nigra": "ventral diencephalon",
    "substantia nigra": "ventral diencephalon",
    "inf": "inferior",
    "lat": "lateral",
    "vent": "ventricle",
    "3rd": "third",
    "4th": "fourth",
    "5th": "fifth",
    "cerebrospinal fluid": "csf",
    "unknown": "background",
    "gray": "grey",
}
FILLERS = {"left", "right", "midline", "and", "the", "of"}


class Meaning(NamedTuple):
    """Side ("left", "right" or "") and words of a structure's name."""

    side: str
    words: frozenset[str]

    def fits(self, other: Meaning) -> bool:
        """Check that the names agree: the sides do, and one name has all words of the other."""
        same_side = not (self.side and other.side) or self.side == other.side
        fewer, more = sorted((self.words, other.words), key=len)
        return same_side and (fewer == more or bool(fewer) and fewer < more)


def meaning(name: str) -> Meaning:
    """Return the meaning of a name such as "Left-Inf-Lat-Vent", "ctx-lh-insula" or "left lateral ventricle"."""
    text = " " + " ".join(re.findall(r"[^\W_]+", name.lower())) + " "
    for spelling, ours in SPELLINGS.items():
        text = text.replace(f" {spelling} ", f" {ours} ")
    words = text.split()
    side = next((word for word in words if word in ("left", "right")), "")
    return Meaning(side, frozenset(word.rstrip("s") for word in words if word not in FILLERS))


def translated(
    values: np.ndarray, names: Mapping[int, str], names_file: str, table_names: Mapping[int, str], table: str
) -> np.ndarray:
    """Return the values of a label table for a map whose values have `names` in the file `names_file`.

    `table_names` are the names of all values of the label table `table`. Values of the map stay as they are if their names
    agree with these. If the names of other values are all in the table, these values are replaced by the table's, with a
    warning. A map with such values must have a name for every value.

    Raises:
        ValueError: a name contradicts the table and cannot be translated.
    """
    ours = {value: meaning(name) for value, name in table_names.items()}
    present = [int(value) for value in np.unique(values)]
    named = {value: meaning(names[value]) for value in present if value in names}
    wrong = [value for value, found in named.items() if value in ours and not _agrees(value, found, ours)]
    new = {value: _value_of(named[value], ours) for value in named if value in wrong or value not in ours}
    if new and None not in new.values() and set(present) <= {0, *named}:
        listed = _listed(f"{value} as {table_names[target]} ({target})" for value, target in new.items())
        warnings.warn(f"{names_file}: values are read by their names there: {listed}", stacklevel=2)
        result = values.copy()
        for value, target in new.items():
            result[values == value] = target
        return result
    if wrong:
        listed = _listed(f"{value} is {names[value]!r} there and {table_names[value]!r} in the table" for value in wrong)
        raise ValueError(
            f"{names_file} contradicts the label table {table!r}: {listed}. Choose the table that the map was made "
            f"with, or correct the names"
        )
    return values


def _listed(entries: Iterable[str]) -> str:
    entries = list(entries)
    more = f" and {len(entries) - MOST_LISTED} more" if len(entries) > MOST_LISTED else ""
    return ", ".join(entries[:MOST_LISTED]) + more


def _agrees(value: int, found: Meaning, ours: Mapping[int, Meaning]) -> bool:
    if value == 0:  # tools name the background in many ways
        return _value_of(found, ours) in (0, None)
    return found.fits(ours[value])


def _value_of(found: Meaning, ours: Mapping[int, Meaning]) -> int | None:
    """Return the table's first value with this meaning, or None if there is none, or several structures or sides fit."""
    fitting = [value for value, own in ours.items() if own.fits(found)]
    if len({ours[value].words for value in fitting}) > 1:
        return None
    fitting = [value for value in fitting if ours[value].side == found.side] or fitting
    return fitting[0] if len({ours[value].side for value in fitting}) == 1 else None
