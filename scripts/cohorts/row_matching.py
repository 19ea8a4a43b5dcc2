"""Tables of measurement: which volume of a folder each row is of."""

from __future__ import annotations

import filecmp
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd


def read_table(path: Path) -> pd.DataFrame:
    """A tab-separated table by participant_id; "n/a" is NaN.

    Raises:
        FileNotFoundError: no such table.
        ValueError: no column participant_id, one twice, or one that is no name of a folder.
    """
    table = _read_rows(path)
    if table.index.has_duplicates:
        raise ValueError(f"{path}: {table.index[table.index.duplicated()][0]} is there twice")
    return table


def _read_rows(path: Path) -> pd.DataFrame:
    """As `read_table`; a participant may have several rows."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table")
    table = pd.read_csv(path, sep="\t", dtype={"participant_id": str}, encoding="utf-8-sig")
    if "participant_id" not in table:
        raise ValueError(f"{path}: expected a column participant_id")
    names = table["participant_id"]
    if (bad := ~names.fillna("").str.fullmatch(r"[\w.+-]*\w[\w.+-]*")).any():
        raise ValueError(f"{path}: a participant_id such as sub-0001 is needed, got {names[bad].iloc[0]!r}")
    table = table.set_index("participant_id")
    empty = [name for name in table if table[name].isna().all()]
    return table.astype(dict.fromkeys(empty, float))


def read_measured(path: Path, folder: Path, images: Mapping[str, Mapping[str, Path]]) -> tuple[str, pd.DataFrame]:
    """A table of measurement by volume, and the tool that measured (its column `tool`, else the table's name).

    A row is the volume that its column `file` names. Without such a column, participant_id names the volume.

    Args:
        path: of the table.
        folder: that was measured.
        images: of its volumes, by participant and volume.

    Raises:
        FileNotFoundError: no such table.
        ValueError: a row of another folder's volume, one that does not say which of a participant's volumes it is, or two
            rows of one volume.
    """
    table = _read_rows(path)
    files = table["file"] if "file" in table else pd.Series(np.nan, table.index)
    volumes = []
    for name, file in zip(table.index, files):
        participant = name.split("_")[0] if name not in images else name
        if participant not in images:
            raise ValueError(f"{path}: {name} is not in {folder / 'participants.tsv'}. Measure {folder} itself")
        own = images[participant]
        if isinstance(file, str) and file.endswith(("_T1w.nii", "_T1w.nii.gz")):
            volume = next((volume for volume, image in own.items() if _is_measured(Path(file), image, folder)), None)
            if volume is None:
                raise ValueError(
                    f"{path}: {name} was measured in {file}, which is not {' or '.join(map(str, own.values()))}. Measure "
                    f"{folder} itself; where only its name has changed, correct the column file"
                )
        else:
            volume = next(iter(own)) if len(own) == 1 else name
        if volume not in own:
            raise ValueError(f"{path}: {name} has several volumes in {folder}. A column file must say which, or sub-X_ses-Y")
        volumes.append(volume)
    table = table.set_axis(volumes, axis=0)
    if table.index.has_duplicates:
        raise ValueError(f"{path}: {table.index[table.index.duplicated()][0]} is there twice")
    tools = table["tool"].dropna().unique() if "tool" in table else []
    return " and ".join(map(str, tools)) or path.name, table.drop(columns=["file", "tool"], errors="ignore")


def _is_measured(file: Path, image: Path, folder: Path) -> bool:
    """Whether the path in a table is that of an image of the folder, which may have been moved or copied since.

    A file that is there must be the image, or equal and of its name. Of one that is not, the path must be that of the image,
    from the folder's name on.
    """
    inside = image.relative_to(folder).parts
    if file.is_file():
        return file.samefile(image) or (file.parts[-len(inside) :] == inside and filecmp.cmp(file, image, shallow=False))
    names = {folder.absolute().name, folder.resolve().name}
    return any((name, *inside)[-len(file.parts) :] == file.parts[-len(inside) - 1 :] for name in names)
