"""Match the rows of measurement tables to the volumes of a folder."""

from __future__ import annotations

import filecmp
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
from ldm.data.volumes import POSSIBLE_ML, check_volumes
from shared.participants import SUMMARIES, entity, session_of
from shared.problems import refuse
from shared.tables import is_missing, read_number, read_numbered

QUANTITIES = {  # title and unit
    "ventricles_ml": ("lateral ventricles", "mL"),
    "brain_normalised_ml": ("brain, normalised for head size", "mL"),
    "brain_ml": ("brain", "mL"),
    "icv_ml": ("intracranial volume", "mL"),
    "age": ("age", "years"),
}
TEXT = ("session_id", "file", "tool", "flags", "split")
MEDIANS = {"brain_normalised_ml": (300, 3000), "age": (0, 120)}  # chosen: a median outside shows another unit
LARGEST_ML = 6000  # chosen: more than the whole field of view of the model, 160 x 224 x 160 mm
COLUMNS = ("participant_id", *TEXT, *QUANTITIES, "sex", "noise", "variant")


def read_by_participant(path: Path, several_rows: bool = False) -> pd.DataFrame:
    """Read a table, indexed by participant_id. Only `several_rows` allows more than one row per participant.

    A column is numeric if all of its values are numbers. The columns `QUANTITIES` must be.
    """
    header, rows, problems = read_numbered(path, COLUMNS, empty=several_rows)
    if "participant_id" not in header:
        raise ValueError(f"{path}: expected a column participant_id, got {', '.join(header)}")
    for number, cells in rows.items():
        if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", cells["participant_id"]):
            problems.append(f"{path} row {number}: participant_id must look like sub-0001, got {cells['participant_id']!r}")
        elif cells["participant_id"].lower() in SUMMARIES:
            problems.append(f"{path} row {number}: {cells['participant_id']} sums up other rows. Remove the row")
    refuse(problems)
    wheres = [f"{path} row {number}" for number in rows]
    table = typed([cells["participant_id"] for cells in rows.values()], header, list(rows.values()), wheres)
    if not several_rows:
        _refuse_twice(table, path)
    return table


def typed(
    index: Sequence[str], header: Sequence[str], rows: Sequence[Mapping[str, str]], wheres: Sequence[str]
) -> pd.DataFrame:
    """Make a table of numbers and text from the cells of rows; `wheres` are file and row of each, for messages."""
    columns, problems = {}, []
    for name in [name for name in header if name != "participant_id"]:
        cells = [None if is_missing(row.get(name)) else row[name] for row in rows]
        faults = [] if name in TEXT else list(_faults(name, cells, wheres))
        columns[name] = pd.Series(cells, index, dtype=object)
        if name in QUANTITIES:
            problems += faults
        if name not in TEXT and not faults:
            columns[name] = pd.to_numeric(columns[name])
    refuse(problems)
    return pd.DataFrame(columns, index=pd.Index(index, name="participant_id"))


def _faults(name: str, cells: Iterable[str | None], wheres: Iterable[str]) -> Iterator[str]:
    for cell, where in zip(cells, wheres):
        try:
            read_number(0 if cell is None else cell)
        except ValueError as error:
            yield f"{where}: {name} {error}"


def read_measured(path: Path, folder: Path, images: Mapping[str, Mapping[str, Path]]) -> dict[str, pd.DataFrame]:
    """Read the measurements of a folder, and find the volume that each row describes.

    The column `file` names the volume. Without this column, participant_id and session_id name it.

    Args:
        path: TSV file of the table.
        folder: BIDS folder that was measured.
        images: for each participant, a dict of the name and the file of each volume.

    Returns:
        For each tool a table of its rows, indexed by volume. The column `tool` names the tool; without it, the file name does.
    """
    table = read_by_participant(path, several_rows=True)
    named = table.reindex(columns=["session_id", "file"]).itertuples()
    volumes = [_volume(path, name, session, file, folder, images) for name, session, file in named]
    table = table.set_axis(volumes, axis=0)
    _refuse_twice(table, path)
    refuse_other_unit(table, str(path))
    return split_by_tool(table, path.name)


def refuse_other_unit(table: pd.DataFrame, where: str) -> None:
    """Refuse volumes that are not in mL, and ages not in years. Single volumes may be impossible, because a model may fail.

    Warn of a single volume that would be possible if it was in litres.
    """
    found = [name for name in QUANTITIES if name.endswith("_ml") and name in table]
    # Brain and head show the unit better: the ventricles of a failed model may be so small that they seem to be in litres.
    for name in [name for name in ("brain_ml", "icv_ml") if name in found] or found:
        check_volumes({name: table[name].median()}, f"{where}, its median")
    for name, (low, high) in MEDIANS.items():
        if name in table and ((middle := table[name].median()) < low or middle > high):
            unit = f"{low} to {high} {QUANTITIES[name][1]}"
            raise ValueError(f"{where}: the median of {name} is {middle:g}, but only {unit} are possible. Give the right unit")
    for name in found:
        if (bad := table[name] > LARGEST_ML).any():
            who = bad.idxmax()
            raise ValueError(f"{where}: {name} of {who} is {table.loc[who, name]:g}, which looks like mm3. Give it in mL")
        low, high = POSSIBLE_ML.get(name, (0, 0))
        if (small := (table[name] < low) & table[name].mul(1000).between(low, high)).any():
            who = small.idxmax()
            warnings.warn(
                f"{where}: {name} of {who} is {table.loc[who, name]:g} mL, too little for a head. If it is in litres, give it "
                f"in mL",
                stacklevel=2,
            )


def split_by_tool(table: pd.DataFrame, default: str) -> dict[str, pd.DataFrame]:
    """Return the rows of each tool. `default` is the tool of rows without an entry in the column `tool`."""
    tools = table["tool"].fillna(default).astype(str) if "tool" in table else pd.Series(default, table.index)
    measured = table.drop(columns=["session_id", "file", "tool"], errors="ignore")
    return {tool: measured[tools == tool] for tool in tools.unique()} or {default: measured}


def _volume(
    path: Path, name: str, session: object, file: object, folder: Path, images: Mapping[str, Mapping[str, Path]]
) -> str:
    participant = next((known for known in (name, f"sub-{name}") if known in images), name.split("_")[0])
    if participant not in images:
        raise ValueError(f"{path}: {name} is not in {folder / 'participants.tsv'}. Measure {folder} itself")
    own = images[participant]
    if isinstance(file, str) and file.endswith(("_T1w.nii", "_T1w.nii.gz")):
        volume = next((volume for volume, image in own.items() if _is_measured(Path(file), image, folder)), None)
        if volume is None:
            raise ValueError(
                f"{path}: {name} was measured in {file}, which is not {' or '.join(map(str, own.values()))}. Measure "
                f"{folder} itself; if only the folder's name has changed, correct the column file"
            )
        return volume
    sessions = {volume: session_of(image.relative_to(folder)) for volume, image in own.items()}
    if isinstance(session, str) and set(sessions.values()) != {None}:
        matching = [volume for volume, own_session in sessions.items() if own_session == entity("ses", session)]
    else:
        matching = list(own) if len(own) == 1 else [volume for volume in own if volume == name]
    if len(matching) != 1:
        which = f"{len(matching)} volumes of {session}" if isinstance(session, str) else "several volumes"
        raise ValueError(f"{path}: {name} has {which} in {folder}. Name the volume in a column file, or as sub-X_ses-Y")
    return matching[0]


def _refuse_twice(table: pd.DataFrame, path: Path) -> None:
    if table.index.has_duplicates:
        raise ValueError(f"{path}: {table.index[table.index.duplicated()][0]} appears twice")


def _is_measured(file: Path, image: Path, folder: Path) -> bool:
    """Return whether a table's path names this image. The folder may have been moved or copied since the measurement.

    If the file exists, it must be the image or an equal file of the same name. If not, the path must end with the folder's name
    and the image's path inside the folder.
    """
    inside = image.relative_to(folder).parts
    if file.is_file():
        return file.samefile(image) or (file.parts[-len(inside) :] == inside and filecmp.cmp(file, image, shallow=False))
    names = {folder.absolute().name, folder.resolve().name}
    return any((name, *inside)[-len(file.parts) :] == file.parts[-len(inside) - 1 :] for name in names)
