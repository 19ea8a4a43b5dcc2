"""Match the rows of measurement tables to the volumes of a folder."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd


def read_by_participant(path: Path, several_rows: bool = False) -> pd.DataFrame:
    """Read a TSV table, indexed by participant_id. Only `several_rows` allows more than one row per participant."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    table = pd.read_csv(path, sep="\t", dtype={"participant_id": str}, encoding="utf-8-sig")
    if "participant_id" not in table:
        raise ValueError(f"{path}: expected a column participant_id, got {', '.join(map(str, table))}")
    names = table["participant_id"]
    if (bad := ~names.fillna("").str.fullmatch(r"[\w.+-]*\w[\w.+-]*")).any():
        raise ValueError(f"{path}: a participant_id must look like sub-0001, got {names[bad].iloc[0]!r}")
    table = table.set_index("participant_id")
    if not several_rows:
        _refuse_twice(table, path)
    empty = [name for name in table if table[name].isna().all()]
    return table.astype(dict.fromkeys(empty, float))


def read_measured(path: Path, folder: Path, images: Mapping[str, Mapping[str, Path]]) -> dict[str, pd.DataFrame]:
    """Read the measurements of a folder, and find the volume that each row describes.

    The column `file` names the volume. Without this column, participant_id names it.

    Args:
        path: TSV file of the table.
        folder: BIDS folder that was measured.
        images: for each participant, a dict of the name and the file of each volume.

    Returns:
        For each tool a table of its rows, indexed by volume. The column `tool` names the tool; without it, the file name does.
    """
    table = read_by_participant(path, several_rows=True)
    files = table["file"] if "file" in table else pd.Series(np.nan, table.index)
    volumes = [_volume(path, name, file, folder, images) for name, file in zip(table.index, files)]
    table = table.set_axis(volumes, axis=0)
    _refuse_twice(table, path)
    return split_by_tool(table, path.name)


def split_by_tool(table: pd.DataFrame, default: str) -> dict[str, pd.DataFrame]:
    """Return the rows of each tool. `default` is the tool of rows without an entry in the column `tool`."""
    tools = table["tool"].fillna(default).astype(str) if "tool" in table else pd.Series(default, table.index)
    measured = table.drop(columns=["file", "tool"], errors="ignore")
    return {tool: measured[tools == tool] for tool in tools.unique()} or {default: measured}


def _volume(path: Path, name: str, file: object, folder: Path, images: Mapping[str, Mapping[str, Path]]) -> str:
    participant = name if name in images else name.split("_")[0]
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
    volume = next(iter(own)) if len(own) == 1 else name
    if volume not in own:
        raise ValueError(f"{path}: {name} has several volumes in {folder}. Name the volume in a column file, or as sub-X_ses-Y")
    return volume


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
