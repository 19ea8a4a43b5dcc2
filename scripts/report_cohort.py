"""A folder of volumes as the report page sees it: what they should be, what was measured in them, which are drawn."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

QUANTITIES = {
    "ventricles_ml": "lateral ventricles",
    "brain_normalised_ml": "brain, normalised for head size",
    "brain_ml": "brain",
    "icv_ml": "intracranial volume",
}


@dataclass
class Cohort:
    """Volumes of a BIDS folder with what they should be (`expected`) and what was measured in them (`measured`).

    Both tables have the same rows, by participant_id; `expected` has the columns of participants.tsv. Volumes that could
    not be measured are NaN.
    """

    folder: Path
    name: str  # of dataset_description.json
    expected: pd.DataFrame
    measured: pd.DataFrame

    def image(self, participant: str) -> Path:
        """The participant's T1w volume; FileNotFoundError where there is none."""
        found = sorted(self.folder.glob(f"{participant}/**/{participant}*_T1w.nii*"))
        if not found:
            raise FileNotFoundError(f"{self.folder}: no {participant}_T1w.nii.gz below it, though participants.tsv lists it")
        return found[0]

    def quantities(self) -> list[str]:
        """Volumes that are both expected and measured."""
        return [name for name in QUANTITIES if name in self.expected and name in self.measured]

    def sorted_by(self, quantity: str) -> list[str]:
        return list(self.expected[quantity].sort_values(kind="stable").index)


def read_cohort(folder: Path, measured_file: Path, everyone: bool = False) -> Cohort:
    """Join a folder's participants.tsv with a table of measure_volumes.py.

    Args:
        folder: with participants.tsv and sub-*/**/sub-*_T1w.nii.gz.
        measured_file: rows of all or some of its participants.
        everyone: keep those that were not measured.

    Raises:
        FileNotFoundError: a table is missing.
        ValueError: measured volumes that participants.tsv lacks; no volume both expected and measured.
    """
    expected, measured = _read_table(folder / "participants.tsv"), _read_table(measured_file)
    if unknown := [name for name in measured.index if name not in expected.index]:
        raise ValueError(f"{measured_file}: {unknown[0]} is not in {folder / 'participants.tsv'}. Measure {folder} itself")
    description = folder / "dataset_description.json"
    name = json.loads(description.read_text(encoding="utf-8")).get("Name", "") if description.is_file() else ""
    rows = expected.index if everyone else measured.index
    cohort = Cohort(folder, name or folder.name, expected.loc[rows], measured.reindex(rows))
    if not cohort.quantities():
        wanted = ", ".join(QUANTITIES)
        raise ValueError(f"{folder / 'participants.tsv'}: nothing to compare, it has none of {wanted}")
    for quantity in cohort.quantities():
        values = cohort.expected[quantity]
        if not pd.api.types.is_numeric_dtype(values) or values.isna().any():
            row = pd.to_numeric(values, errors="coerce").isna().idxmax()
            raise ValueError(f"{folder / 'participants.tsv'}, {row}: {quantity} is {values[row]!r}, a number is needed")
    return cohort


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    table = pd.read_csv(path, sep="\t", dtype={"participant_id": str}, encoding="utf-8-sig")
    if "participant_id" not in table:
        raise ValueError(f"{path}: expected a column participant_id")
    if table["participant_id"].duplicated().any():
        raise ValueError(f"{path}: {table['participant_id'][table['participant_id'].duplicated()].iloc[0]} is there twice")
    return table.set_index("participant_id")


def describe(cohort: Cohort) -> str:
    """Name and counts of a cohort, and of the part that was measured."""
    everyone = _read_table(cohort.folder / "participants.tsv")
    listed, measured = f"{len(everyone)} subjects", f"{len(cohort.measured)}"
    if "split" in everyone:
        listed += f" ({_counts(everyone['split'])})"
        measured += f" ({_counts(cohort.expected['split'])})"
    return f"{cohort.name}, {listed}, of which {measured} were measured"


def _counts(splits: pd.Series) -> str:
    return ", ".join(f"{count} {split}" for split, count in splits.value_counts().items())


def evenly(items: Sequence[str], count: int) -> list[str]:
    """`count` of the items from the first to the last, or all if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def nearest(cohort: Cohort, quantity: str, wanted: Sequence[float]) -> list[str | None]:
    """For each wanted value a participant near it, none twice, None where the cohort is too small: least total distance."""
    distance = np.abs(np.subtract.outer(np.asarray(wanted, float), cohort.expected[quantity].to_numpy(float)))
    chosen: list[str | None] = [None] * len(wanted)
    for row, column in zip(*linear_sum_assignment(distance)):
        chosen[row] = cohort.expected.index[column]
    return chosen
