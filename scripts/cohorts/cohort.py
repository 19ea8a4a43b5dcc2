"""Read a folder of volumes: their expected values, their measured values, and the paths of their images."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment
from shared.files import is_there, read_json
from shared.image_files import find_files
from shared.nifti import read_volume
from shared.participants import Row, Rows, find_row, other_units, read_participants, refuse_given_once, session_of
from shared.problems import count, refuse

from cohorts.origin import is_from_map
from cohorts.row_matching import COLUMNS, QUANTITIES, read_measured, refuse_other_unit, typed
from cohorts.three_planes import POINT_MM

TITLES = {"source_participant_id": "label map of"}
BOOKKEEPING = ("variant",)  # columns of numbers that do not describe a volume
TRAINING = "train"  # name of the training split
MNI_CODES = (3, 4)  # sform_code of Talairach and MNI space


@dataclass
class Cohort:
    """Volumes of a BIDS folder with their expected and measured values.

    The tables `expected` and `measured` have one row per volume, in the order of participants.tsv. A volume has the name of its
    participant, or sub-X_ses-Y if the participant has several volumes. `measured` is NaN where nothing was measured. If two
    tools measured a quantity, `measured` has the value of the first; `tools` returns both.
    """

    folder: Path
    name: str  # name in dataset_description.json, or the folder's name
    expected: pd.DataFrame  # columns of participants.tsv
    measured: pd.DataFrame  # columns of the tables of measurement
    listed: pd.DataFrame  # all rows of participants.tsv
    images: dict[str, Path]  # volume -> its T1w
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)  # tool -> its measurements, indexed by volume
    units: dict[str, str] = field(default_factory=dict)  # column -> unit, from participants.json

    def label_map(self, volume: str) -> Path | None:
        """Return the label map in the image's folder, as SPADE fusion writes it, or None."""
        image = self.images[volume]
        maps = [image.with_name(image.name.split("_T1w.nii")[0] + ending) for ending in ("_dseg.nii.gz", "_dseg.nii")]
        return next((path for path in maps if path.is_file()), None)

    def from_map(self, volume: str) -> bool:
        """Return whether a volume was made from a label map, see `is_from_map`."""
        return is_from_map(self.images[volume], self.label_map(volume))

    def files(self, volumes: Iterable[str]) -> list[Path]:
        """Return the images and label maps of these volumes."""
        return [path for volume in volumes for path in (self.images[volume], self.label_map(volume)) if path]

    def point_mm(self, volume: str) -> tuple[float, float, float]:
        """Return the point on the planes to draw: `POINT_MM`, or the middle of the labels if the map is not in MNI space."""
        path = self.label_map(volume)
        if path is None:
            return POINT_MM
        labels = read_volume(path)
        if int(labels.header["sform_code"]) in MNI_CODES:
            return POINT_MM
        inside = np.argwhere(np.asarray(labels.dataobj) > 0)
        middle = (inside.min(axis=0) + inside.max(axis=0)) / 2 if len(inside) else (np.array(labels.shape) - 1) / 2
        return tuple(float(mm) for mm in nib.affines.apply_affine(labels.affine, middle))

    def quantities(self) -> list[str]:
        """Return the columns of numbers that are both expected and measured. The keys of `QUANTITIES` come first."""
        both = [name for name in self.expected if name in self.measured and _is_number(self.measured[name])]
        known = [name for name in QUANTITIES if name in both]
        return known + [name for name in both if name not in QUANTITIES and _is_number(self.expected[name])]

    def tools(self) -> dict[str, Cohort]:
        """Return by tool the cohort with only the measurements of this tool."""
        return {
            tool: replace(self, measured=table.reindex(self.expected.index), tables={tool: table})
            for tool, table in self.tables.items()
        }

    def readings(self) -> list[tuple[str, str, Cohort]]:
        """Return (quantity, tool, cohort with only this tool's measurements) for all quantities both expected and measured."""
        tools = self.tools().items()
        return [(name, tool, by_tool) for name in self.quantities() for tool, by_tool in tools if name in by_tool.quantities()]

    def pairs(self, name: str) -> pd.DataFrame:
        """Return the expected and measured values of the volumes that have both."""
        return pd.DataFrame({"expected": self.expected[name], "measured": self.measured[name]}).astype(float).dropna()

    def main_quantity(self) -> str | None:
        """Return the quantity to sort the volumes by: a measured one, otherwise one of `QUANTITIES` or any other numbers."""
        numbers = self.numbers()
        return next(iter([*self.quantities(), *(name for name in QUANTITIES if name in numbers), *numbers]), None)

    def numbers(self) -> list[str]:
        """Return the expected columns that hold numbers."""
        return [name for name in self.expected if _is_number(self.expected[name]) and name not in BOOKKEEPING]

    def unseen(self) -> Cohort:
        """Return the cohort without its training split, which a tool may know. If only that was measured, return all."""
        if "split" not in self.expected:
            return self
        rest = (self.expected["split"] != TRAINING) & self.measured[self.quantities()].notna().any(axis=1)
        return replace(self, expected=self.expected[rest], measured=self.measured[rest]) if rest.any() else self

    def participant(self, volume: str) -> str:
        return volume if volume in self.listed.index else volume.split("_")[0]

    def has_several_per_participant(self) -> bool:
        return len(set(map(self.participant, self.images))) < len(self.images)

    def rows_by_tool(self) -> dict[str, pd.DataFrame]:
        """Return by tool its rows with all columns, indexed by participant. Rows that are not in `expected` are left out."""
        rows = {tool: table[table.index.isin(self.expected.index)] for tool, table in self.tables.items()}
        return {tool: table.set_axis(table.index.map(self.participant), axis=0) for tool, table in rows.items()}

    def by(self, name: str, tool: str) -> str:
        """Return " by TOOL" if several tools measured the quantity, else ""."""
        return f" by {tool}" if sum(name in table for table in self.tables.values()) > 1 else ""

    def title(self, name: str, tool: str | None = None) -> str:
        """Return a title such as "lateral ventricles", or "lateral ventricles by SynthSeg" if a tool is given."""
        title = QUANTITIES[name][0] if name in QUANTITIES else TITLES.get(name, name)
        return f"{title} by {tool}" if tool else title

    def unit(self, name: str) -> str:
        """Return the unit of a quantity such as "mL", or "" if it is unknown."""
        return QUANTITIES[name][1] if name in QUANTITIES else self.units.get(name, "")

    def value(self, name: str, number: float, decimals: int | None = None) -> str:
        """Format a number with its unit. The default is 3 significant digits, or all digits before the decimal point."""
        if decimals is None:
            decimals = 0 if number == round(number) else max(0, 2 - math.floor(math.log10(abs(number))))
        text = f"{number:.{decimals}f}"
        return f"{text}\N{NO-BREAK SPACE}{self.unit(name)}".strip()

    def sorted_by(self, quantity: str | None) -> list[str]:
        """Return all volumes by rising expected value, with unknown values last. None keeps the order of the table."""
        volumes = self.expected if quantity is None else self.expected[quantity].sort_values(kind="stable")
        return list(volumes.index)


def read_cohort(folder: Path, measured_files: Sequence[Path] = (), everyone: bool = True) -> Cohort:
    """Read a folder's participants.tsv, and join its measurements by volume.

    Args:
        folder: BIDS folder with participants.tsv and sub-*/**/sub-*_T1w.nii.gz.
        measured_files: tables with measurements of all or some volumes of the folder, see `read_measured`.
        everyone: True keeps volumes that were not measured. False drops them if there are tables.
    """
    participants = folder / "participants.tsv"
    header, rows, problems = read_participants(participants, COLUMNS)
    refuse(problems + other_units(participants, {name: unit for name, (_, unit) in QUANTITIES.items()}))
    first = [next(iter(sessions.values())) for sessions in rows.values()]
    listed = typed(list(rows), header, [row.cells for row in first], [row.where for row in first])
    found = _images(folder, listed.index)
    tables: dict[str, pd.DataFrame] = {}
    for path in measured_files:
        for tool, table in read_measured(path, folder, found).items():
            _refuse_mixed(table, path, listed)
            if tool in tables:
                _refuse_contradictions(tables[tool], table, path, tool)
                table = tables[tool].combine_first(table)
            tables[tool] = table
    measured = pd.concat([pd.DataFrame(), *tables.values()], axis=1)
    measured = measured.loc[:, ~measured.columns.duplicated()]
    images = {volume: path for of_participant in found.values() for volume, path in of_participant.items()}
    if measured_files and not everyone:
        images = {volume: path for volume, path in images.items() if volume in measured.index}
    used = _rows_of_sessions(rows, found, folder, [*QUANTITIES, *measured.select_dtypes("number")])
    expected = typed(list(images), header, *zip(*((used[volume].cells, used[volume].where) for volume in images)))
    description, columns = (_read_optional(folder / name) for name in ("dataset_description.json", "participants.json"))
    name = str(description.get("Name", "")) or folder.resolve().name
    units = {name: str(entry["Units"]) for name, entry in columns.items() if isinstance(entry, dict) and "Units" in entry}
    cohort = Cohort(folder, name, expected, measured.reindex(list(images)), listed, images, tables, units)
    if measured_files:
        _refuse_mixed(expected, participants, measured)
        if not cohort.quantities():
            raise ValueError(
                f"{participants}: nothing to compare, because it has none of the columns of numbers in "
                f"{', '.join(map(str, measured_files))}: {', '.join(measured.select_dtypes('number'))}"
            )
        if "tool" in expected and (same := sorted(tables.keys() & set(expected["tool"]))):
            warnings.warn(
                f"{participants}: is by {same[0]}, too, so its agreement with {same[0]} shows nothing. Give volumes from "
                f"another source",
                stacklevel=2,
            )
        refuse_other_unit(expected[[name for name in cohort.quantities() if name in QUANTITIES]], str(participants))
        _refuse_other_scale(cohort)
    return cohort


def _refuse_other_scale(cohort: Cohort) -> None:
    """Refuse measured volumes whose median and spread are both about 1000 times larger or smaller than the requested ones.

    The ventricles of a failed model may be as small as if they were in litres, but then do not spread as the requests do.
    """
    for name, tool, by_tool in cohort.readings():
        pairs = by_tool.pairs(name)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = [np.divide(*of[["measured", "expected"]]) for of in (pairs.median(), pairs.std())]
        if name.endswith("_ml") and any(all(0.5 < ratio * factor < 2 for ratio in ratios) for factor in (1000, 1 / 1000)):
            raise ValueError(
                f"{cohort.folder / 'participants.tsv'}: {name} has the median {pairs['expected'].median():g}, and {tool} "
                f"measured {pairs['measured'].median():g}, as if one were in another unit. Give both in mL"
            )


def refuse_requests(tables: Sequence[Path]) -> None:
    """Refuse the table of what was requested in place of what was measured, because it would agree with itself."""
    for table in tables:
        folder = table.resolve().parent
        if table.resolve().name == "participants.tsv" and any(folder.glob("sub-*")):
            raise ValueError(f"{table}: holds what was requested. Measure the volumes: scripts/measure_volumes.py {folder}")


def refuse_same_folder(folders: Iterable[Path]) -> None:
    """Refuse a folder that is given twice, for example as generated volumes and as the scans to compare them with."""
    seen: dict[Path, Path] = {}
    for folder in folders:
        if (first := seen.setdefault(folder.resolve(), folder)) is not folder:
            raise ValueError(f"{folder} and {first} are one folder, but two cohorts are compared. Name the other cohort")


def refuse_other_tools(first: Cohort, second: Cohort) -> None:
    """Refuse cohorts that different tools measured, because their measurements cannot be compared."""
    if not set(first.tables) & set(second.tables):
        raise ValueError(
            f"{first.folder} was measured by {' and '.join(first.tables) or 'nothing'}, {second.folder} by "
            f"{' and '.join(second.tables) or 'nothing'}. Measure both with one tool; its name is the column tool of its tables"
        )


def _rows_of_sessions(
    rows: Rows, found: Mapping[str, Mapping[str, Path]], folder: Path, quantities: Iterable[str]
) -> dict[str, Row]:
    """Return the row of participants.tsv, or of a table of sessions, for each volume."""
    of_volume = {}
    for participant, volumes in found.items():
        used = {}
        for volume, path in volumes.items():
            session = session_of(path.relative_to(folder))
            of_volume[volume] = used[session] = find_row(rows, participant, session)
        refuse_given_once(participant, used, dict.fromkeys(quantities))
    return of_volume


def _refuse_contradictions(first: pd.DataFrame, second: pd.DataFrame, path: Path, tool: str) -> None:
    """Refuse two tables of one tool that give one volume different values."""
    both = [name for name in first if name in second and _is_number(first[name]) and _is_number(second[name])]
    for name in both:
        pairs = pd.DataFrame({"first": first[name], "second": second[name]}).dropna()
        if (different := ~np.isclose(pairs["first"], pairs["second"], atol=0.01)).any():
            volume = pairs.index[different][0]
            raise ValueError(
                f"{path}: {name} of {volume} is {pairs.loc[volume, 'second']:g}, but {pairs.loc[volume, 'first']:g} in an "
                f"earlier table by {tool}. Give one of the tables, or name the tools in a column tool"
            )


def _refuse_mixed(table: pd.DataFrame, where: Path, other: pd.DataFrame) -> None:
    """Refuse a column with numbers and text that could not be compared with another table's, for example because of "50,5"."""
    for name in [name for name in table if name in other and not _is_number(table[name])]:
        numbers = pd.to_numeric(table[name], errors="coerce")
        if numbers.notna().any() and (bad := numbers.isna() & table[name].notna()).any():
            row = bad.idxmax()
            raise ValueError(f"{where}, {row}: {name} must be a number as in other rows, got {table.loc[row, name]!r}")


def _images(folder: Path, participants: Iterable[str]) -> dict[str, dict[str, Path]]:
    """Return for each participant the name and the path of each volume."""
    of_participant: dict[str, list[Path]] = {}
    for path in find_files(folder, "*/**/*_T1w.nii*"):
        of_participant.setdefault(path.relative_to(folder).parts[0], []).append(path)
    if unlisted := sorted(name for name in of_participant.keys() - set(participants) if name.startswith("sub-")):
        count_them = f"{count(unlisted, 'folder')} with T1w, such as {unlisted[0]}"
        print(f"{folder}: left out, without a row in participants.tsv: {count_them}", file=sys.stderr)
    found = {}
    for participant in participants:
        paths = [path for path in of_participant.get(participant, ()) if path.name.startswith(participant)]
        if not paths:
            raise FileNotFoundError(f"{folder}: no {participant}_T1w.nii.gz below it, though participants.tsv lists it")
        names = [participant] if len(paths) == 1 else [path.name.split("_T1w.nii")[0] for path in paths]
        found[participant] = dict(zip(names, paths, strict=True))
        if len(found[participant]) < len(paths):
            raise ValueError(f"{folder / participant}: files in several folders have one name ({', '.join(names)}). Keep one")
    return found


def _is_number(values: pd.Series) -> bool:
    return pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)


def _read_optional(path: Path) -> dict:
    return read_json(path) if is_there(path) else {}


def describe(cohort: Cohort) -> str:
    """Return a sentence part with a cohort's number of subjects, and how many of them were measured."""

    def counts(table: pd.DataFrame) -> str:
        splits = table["split"].value_counts().items() if "split" in table else ()
        return f" ({', '.join(f'{count} {split}' for split, count in splits)})" if splits else ""

    text = f"{count(cohort.listed, 'subject')}{counts(cohort.listed)}"
    return f"{text}, of which {len(cohort.measured)}{counts(cohort.expected)} were measured" if cohort.tables else text


def evenly(items: Sequence[str], count: int) -> list[str]:
    """Return `count` items at even steps from the first to the last, or all items if there are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[i] for i in np.linspace(0, len(items) - 1, count).round().astype(int)]


def nearest(cohort: Cohort, quantity: str, wanted: Sequence[float]) -> list[str | None]:
    """Return a different volume for each wanted value, with the least total distance. It is None if volumes run out."""
    known = cohort.expected[quantity].dropna()
    distance = np.nan_to_num(np.abs(np.subtract.outer(np.asarray(wanted, float), known.to_numpy(float))))
    rows, columns = linear_sum_assignment(distance)
    chosen = dict(zip(rows, known.index[columns]))
    return [chosen.get(row) for row in range(len(wanted))]
