"""What a user added to the tables of prepared scans, which a further run keeps. What the source withdrew is not a user's."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from shared.files import read_json
from shared.participants import read_one_each
from shared.problems import count

TABLE, REGISTRATIONS = "participants.tsv", "registration.tsv"
DESCRIPTIONS, DATASET = "participants.json", "dataset_description.json"
SAID = "SourceParticipants"  # entry of DATASET: the columns and descriptions that the source had when it was last read


def source_entries(table: pd.DataFrame, descriptions: dict[str, dict]) -> dict:
    """Return the entry of the data set's description by which the next run tells the source's entries from a user's."""
    return {SAID: {"Columns": list(table.columns), "Descriptions": descriptions}}


def with_users_entries(
    table: pd.DataFrame, descriptions: dict[str, dict], out_dir: Path
) -> tuple[pd.DataFrame, dict[str, dict]]:
    """Add to the source's table and descriptions the columns, rows and descriptions that a user added in `out_dir`."""
    said = _read(out_dir / DATASET).get(SAID, {"Columns": [], "Descriptions": {}})
    kept = {name: what for name, what in _read(out_dir / DESCRIPTIONS).items() if said["Descriptions"].get(name) != what}
    return _with_users_cells(table, out_dir / TABLE, {name.lower() for name in said["Columns"]}), kept | descriptions


def _read(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def _with_users_cells(table: pd.DataFrame, earlier: Path, withdrawn: set[str]) -> pd.DataFrame:
    header, rows = read_one_each(earlier) if earlier.exists() else ((), {})
    spelling = {name.lower(): name for name in table}
    own = [name for name in header if name.lower() not in spelling.keys() | withdrawn]
    table = table.assign(**{name: [rows.get(who, {}).get(name, "") for who in table["participant_id"]] for name in own})
    prepared = read_one_each(earlier.with_name(REGISTRATIONS))[1] if rows else {}  # by the run before, so of the source
    of_source = {*table["participant_id"], *prepared}
    others = {who: row for who, row in rows.items() if who not in of_source}
    if without := [who for who in others if not any((earlier.parent / who).rglob("*.nii*"))]:
        rows_without = count(without, "row")
        print(f"{earlier}: keeps {rows_without} without a scan, such as {without[0]}. Remove such rows", file=sys.stderr)
    added = [{spelling.get(name.lower(), name): cell for name, cell in row.items()} for row in others.values()]
    added = pd.DataFrame(added, columns=table.columns, dtype=object).assign(participant_id=list(others)).fillna("")
    return pd.concat([table, added], ignore_index=True)
