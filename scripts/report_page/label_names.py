"""Label maps on the report page: names from the data set's dseg.tsv, and a colour for each."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.colors import hsv_to_rgb

GOLDEN_ANGLE = 0.381966  # of a turn: neighbours in a list get hues far from each other


class LabelNames:
    """Names and colours of label values. Left and right of a structure share a colour; 0 is background.

    Args:
        names: label value -> name, such as "left lateral ventricle"; other values go by their number.
    """

    def __init__(self, names: dict[int, str]) -> None:
        self.names = names
        structures = list(dict.fromkeys(_without_side(name) for _, name in sorted(names.items())))
        self._order = {structure: k for k, structure in enumerate(structures)}

    def name(self, value: int) -> str:
        return self.names.get(value, "background" if value == 0 else f"label {value}")

    def colours(self, values: Iterable[int]) -> np.ndarray:
        """(n, 3) uint8 RGB; background is black."""
        values = list(values)
        order = np.array([self._order.get(_without_side(self.name(value)), value) for value in values], float)
        hsv = np.stack([order * GOLDEN_ANGLE % 1, np.where(order % 2, 0.55, 0.75), np.where(order % 3, 0.95, 0.75)], axis=-1)
        rgb = (hsv_to_rgb(hsv) * 255).round().astype(np.uint8)
        rgb[[value == 0 for value in values]] = 0
        return rgb


def read_label_names(folder: Path) -> LabelNames:
    """The names in a folder's dseg.tsv (BIDS: columns index and name); without that file, numbers."""
    path = folder / "dseg.tsv"
    if not path.is_file():
        return LabelNames({})
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig")
    if not {"index", "name"} <= set(table.columns):
        raise ValueError(f"{path}: expected columns index and name, got {', '.join(table.columns)}")
    if (bad := ~table["index"].str.fullmatch(r"\d+")).any():
        raise ValueError(f"{path}: index must be a whole number, got {table['index'][bad].iloc[0]!r}")
    return LabelNames({int(value): name for value, name in zip(table["index"], table["name"])})


def _without_side(name: str) -> str:
    return name.lower().removeprefix("left ").removeprefix("right ").removeprefix("left-").removeprefix("right-")
