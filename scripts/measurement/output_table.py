"""Check and write the table of volumes in mL of measure_volumes.py and read_volumes.py, with one row per scan."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from shared.files import atomic

VOLUMES = ("ventricles_ml", "brain_ml", "icv_ml")
NORMALISED = "brain_normalised_ml"
TEMPLATE_ICV_ML = 1902.0  # intracranial volume of ICBM152 2009a, as in make_demo_data.py
USUAL_ML = {"ventricles_ml": (3, 200), "brain_ml": (700, 1900), "icv_ml": (900, 2200)}  # wide limits for adults; chosen
# No adult head has volumes outside these limits, whatever its disease. In a wrong unit, a volume is 1000 times too large or
# small.
POSSIBLE_ML = {"ventricles_ml": (0.5, 700), "brain_ml": (300, 2500), "icv_ml": (500, 3000)}


def complete_row(name: str, file: Path, volumes: Mapping[str, float], tool: str, error: str = "") -> dict:
    """Return a row with the participant of the file `name`, volumes in mL (NaN if missing), normalised brain and flags."""
    row = {"participant_id": participant_of(name), "file": str(file), "tool": tool, "error": error}
    row |= {name: volumes.get(name, math.nan) for name in VOLUMES}
    # Brain volume scaled to the head size of the MNI template, as in SIENAX and in field 25009 of UK Biobank.
    row[NORMALISED] = row["brain_ml"] * TEMPLATE_ICV_ML / row["icv_ml"]
    return row | {"flags": quality_flags(row)}


def quality_flags(volumes: Mapping[str, float]) -> str:
    """Return the names of volumes that are missing (NaN) or unusual, separated by commas, or ""."""
    flagged = [name for name, (low, high) in USUAL_ML.items() if not low <= volumes[name] <= high]
    return ",".join(f"{name}_{'missing' if math.isnan(volumes[name]) else 'unusual'}" for name in flagged)


def check_unit(volumes_ml: Mapping[str, float], where: str) -> None:
    """Refuse volumes outside `POSSIBLE_ML`, and name the unit that they seem to have. NaN is accepted."""
    for name, (low, high) in POSSIBLE_ML.items():
        value = volumes_ml.get(name, math.nan)
        if math.isnan(value) or low <= value <= high:
            continue
        unit = "; it looks like mm3 where mL were expected" if low <= value / 1000 <= high else ""
        if low <= value * 1000 <= high:
            unit = "; it looks 1000 times too small, like L for mL or mL for mm3"
        raise ValueError(f"{where}: {name} would be {value:g} mL, but only {low:g} to {high:g} mL are possible{unit}")


def participant_of(name: str) -> str:
    """Return the `sub-X` in the name of a file or folder, or the name without its endings."""
    subject = re.search(r"sub-[a-zA-Z0-9]+", name)
    return subject[0] if subject else name.split(".")[0]


def write_table(rows: Sequence[Mapping], path: Path) -> None:
    """Write rows of `complete_row` as TSV. A column session_id is added if a file's name has a BIDS session."""
    table = pd.DataFrame(rows, columns=["participant_id", "file", *VOLUMES, NORMALISED, "flags", "tool"])
    sessions = table["file"].map(lambda file: Path(file).name).str.extract(r"_(ses-[a-zA-Z0-9]+)_", expand=False)
    if sessions.notna().any():
        table.insert(1, "session_id", sessions)
    with atomic(path) as file:
        table.to_csv(file, sep="\t", index=False, float_format="%.2f", na_rep="n/a")
