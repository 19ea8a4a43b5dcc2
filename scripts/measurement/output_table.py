"""Tables of brain volumes in mL, one row per scan: measure_volumes.py and read_volumes.py write them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

VOLUMES = ("ventricles_ml", "brain_ml", "icv_ml")
NORMALISED = "brain_normalised_ml"
TEMPLATE_ICV_ML = 1902.0  # intracranial volume of ICBM152 2009a, as in make_demo_data.py
USUAL_ML = {"ventricles_ml": (3, 200), "brain_ml": (700, 1900), "icv_ml": (900, 2200)}  # adults, with room


def normalised_ml(brain_ml: float, icv_ml: float) -> float:
    """Brain volume scaled to the head size of the MNI template, as SIENAX and UK Biobank's field 25009."""
    return brain_ml * TEMPLATE_ICV_ML / icv_ml


def quality_flags(volumes: Mapping[str, float]) -> str:
    """Name what makes a row doubtful, comma separated: volumes that are missing (NaN) or unusual; "" when nothing does."""
    flags = []
    for name, (low, high) in USUAL_ML.items():
        if not low <= volumes[name] <= high:
            flags.append(f"{name}_{'missing' if math.isnan(volumes[name]) else 'unusual'}")
    return ",".join(flags)


def participant_of(name: str) -> str:
    """`sub-X` of a file's or folder's name, or else the name without its endings."""
    subject = re.search(r"sub-[a-zA-Z0-9]+", name)
    return subject[0] if subject else name.split(".")[0]


def session_of(name: str) -> str | None:
    """`ses-Y` of a file's name of BIDS, None where there is none."""
    session = re.search(r"_(ses-[a-zA-Z0-9]+)_", name)
    return session[1] if session else None


def write_table(rows: Sequence[Mapping], path: Path) -> None:
    """Write rows as TSV, volumes in mL; an interrupted write leaves nothing behind. A column session_id where a file has one.

    Args:
        rows: participant_id, file, the volumes, flags, tool; other keys are left out.
        path: of the table.
    """
    table = pd.DataFrame(rows, columns=["participant_id", "file", *VOLUMES, NORMALISED, "flags", "tool"])
    sessions = table["file"].map(lambda file: session_of(Path(file).name))
    if sessions.notna().any():
        table.insert(1, "session_id", sessions)
    beside = path.with_name(path.name + ".part")
    table.to_csv(beside, sep="\t", index=False, float_format="%.2f", na_rep="n/a")
    os.replace(beside, path)
