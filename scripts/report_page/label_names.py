"""Read the names of label values, and choose their colours on the report page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from matplotlib.colors import hsv_to_rgb
from shared.files import is_there
from shared.label_files import read_names

GOLDEN_ANGLE = 0.381966  # fraction of a turn, so that neighbours in a list get very different hues


class LabelNames:
    """Names and colours of label values. Left and right of a structure share a colour; 0 is background.

    Args:
        names: dict from label value to name, such as "left lateral ventricle". Other values are named by their number.
    """

    def __init__(self, names: dict[int, str]) -> None:
        self.names = names
        structures = list(dict.fromkeys(_without_side(name) for _, name in sorted(names.items())))
        self._order = {structure: k for k, structure in enumerate(structures)}

    def name(self, value: int) -> str:
        return self.names.get(value, "background" if value == 0 else f"label {value}")

    def colours(self, values: Iterable[int]) -> np.ndarray:
        """Return the RGB colours as uint8, shape (n, 3). Background is black."""
        values = list(values)
        order = np.array([self._order.get(_without_side(self.name(value)), value) for value in values], float)
        hsv = np.stack([order * GOLDEN_ANGLE % 1, np.where(order % 2, 0.55, 0.75), np.where(order % 3, 0.95, 0.75)], axis=-1)
        rgb = (hsv_to_rgb(hsv) * 255).round().astype(np.uint8)
        rgb[[value == 0 for value in values]] = 0
        return rgb


def read_label_names(folder: Path) -> LabelNames:
    """Read the names in a folder's dseg.tsv (BIDS: columns index and name). Without this file, names are numbers."""
    path = folder / "dseg.tsv"
    return LabelNames(read_names(path) if is_there(path) else {})


def _without_side(name: str) -> str:
    return name.lower().removeprefix("left ").removeprefix("right ").removeprefix("left-").removeprefix("right-")
