"""Check and write the table of volumes in mL of measure_volumes.py and read_volumes.py, with one row per scan."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from ldm.data.volumes import TEMPLATE_ICV_ML, VOLUMES
from shared.files import atomic
from shared.tables import separator_of

NORMALISED = "brain_normalised_ml"
COLUMNS = ("participant_id", "session_id", "file", *VOLUMES, NORMALISED, "flags", "tool")
ENDINGS = re.compile(r"(?i)\.(long\..*|nii|nii\.gz|mgz|mgh|stats|0)$")  # of images, FreeSurfer's runs and numbers of pandas
MOST_DIFFERENT = 0.02  # of a given normalised brain from the computed one; rounding differs by less; chosen
USUAL_ML = {"ventricles_ml": (5, 200), "brain_ml": (700, 1900), "icv_ml": (900, 2200)}  # wide limits for adults; chosen


def complete_row(
    scan: tuple[str, str | None],
    file: str | Path,
    volumes: Mapping[str, float],
    tool: str,
    error: str = "",
    flags: Sequence[str] = (),
) -> dict:
    """Return a row with participant and session of the `scan`, volumes in mL (NaN if missing), normalised brain and flags.

    The normalised brain among the `volumes` counts if brain or intracranial volume is missing. If it differs from the computed
    one, the row has a flag. The caller's own `flags` come first.
    """
    row = {"participant_id": scan[0], "session_id": scan[1], "file": str(file), "tool": tool, "error": error}
    row |= {name: volumes.get(name, math.nan) for name in VOLUMES}
    # Brain volume scaled to the head size of the MNI template, as in SIENAX and in field 25009 of UK Biobank.
    normalised = row["brain_ml"] * TEMPLATE_ICV_ML / row["icv_ml"]
    given = volumes.get(NORMALISED, math.nan)
    row[NORMALISED] = given if math.isnan(normalised) else normalised
    if abs(given / normalised - 1) > MOST_DIFFERENT:
        flags = [*flags, f"{NORMALISED}_differs"]
    return row | {"flags": ",".join(filter(None, [*flags, quality_flags(row)]))}


def quality_flags(volumes: Mapping[str, float]) -> str:
    """Return the names of volumes that are missing (NaN) or unusual, separated by commas, or ""."""
    flagged = [name for name, (low, high) in USUAL_ML.items() if not low <= volumes[name] <= high]
    return ",".join(f"{name}_{'missing' if math.isnan(volumes[name]) else 'unusual'}" for name in flagged)


def identity_of(name: str | Path) -> tuple[str, str | None]:
    """Return participant and session in the name or path of a scan, such as ("sub-01", "ses-2") of sub-01_ses-2.long.sub-01.

    The participant is the `sub-X` in the name or in a folder above it or, without any, the name without its endings. The
    session is the `ses-Y` in the name or in a folder below the participant's, or None.
    """
    *folders, name = Path(name).parts
    inside = re.search(r"(?<![a-zA-Z0-9])sub-[a-zA-Z0-9+]+", name)
    of_participant = [k for k, folder in enumerate(folders) if re.fullmatch(r"sub-[a-zA-Z0-9+]+", folder)]
    below = folders[of_participant[-1] :] if of_participant else []
    participant = inside[0] if inside else below[0] if below else ENDINGS.sub("", name)
    sessions = (re.search(r"(?<![a-zA-Z0-9])ses-[a-zA-Z0-9+]+", part) for part in (name, *reversed(below)))
    return participant, next((session[0] for session in sessions if session), None)


def write_table(rows: Sequence[Mapping], path: Path) -> None:
    """Write rows of `complete_row` as a table, with a column session_id if one of them has a session."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    if table["session_id"].isna().all():
        table = table.drop(columns="session_id")
    with atomic(path) as file:
        table.to_csv(file, sep=separator_of(path), index=False, float_format="%.2f", na_rep="n/a")
