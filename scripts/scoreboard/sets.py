"""Find the volumes of a set, one of each participant, and the covariates that its table has."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from cohorts.row_matching import COLUMNS, QUANTITIES, refuse_other_unit, typed
from measurement.output_table import identity_of
from shared.files import is_there
from shared.image_files import find_t1w
from shared.participants import Row, find_row, other_units, read_participants, refuse_other_table
from shared.problems import refuse

SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}  # numbers are not read, because studies count in different ways


def find_volumes(folder: Path, seed: int) -> list[Path]:
    """Return one volume of each participant of a folder, in random order."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder. Name a folder of NIfTI volumes")
    found = find_t1w(folder)
    of_person: dict[str, Path] = {}
    for number in np.random.default_rng(seed).permutation(len(found)):
        of_person.setdefault(identity_of(found[number].relative_to(folder))[0], found[number])
    return list(of_person.values())


def read_table(folder: Path, paths: Sequence[Path]) -> pd.DataFrame:
    """Return the row of participants.tsv of each volume. Without the table, or without a row, covariates are missing.

    A warning names volumes without a row.
    """
    table = folder / "participants.tsv"
    if not is_there(table):
        refuse_other_table(table)
        return pd.DataFrame(index=range(len(paths)))
    header, rows, problems = read_participants(table, COLUMNS)
    refuse(problems + other_units(table, {name: unit for name, (_, unit) in QUANTITIES.items()}))
    own, without = [], []
    for path in paths:
        try:
            own.append(find_row(rows, *identity_of(path.relative_to(folder))))
        except ValueError as error:
            own.append(Row(str(table), {}))
            without.append(error)
    if without:
        text = f"{table}: {len(without)} of {len(paths)} volumes count without covariates, because there is {without[0]}"
        warnings.warn(text, stacklevel=2)
    found = typed(list(map(str, paths)), header, [row.cells for row in own], [row.where for row in own])
    refuse_other_unit(found, str(table))
    if "sex" in found:
        found["sex"] = found["sex"].astype(str).str.strip().str.lower().map(SEXES)
    return found.reset_index(drop=True)
