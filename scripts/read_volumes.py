"""Convert volumes of SynthSeg or FreeSurfer, or segmentations, into a table in the format of measure_volumes.py.

    python scripts/read_volumes.py SOURCE [SOURCE ...] --output volumes.tsv

A SOURCE is one of

  synthseg_volumes.csv   the output of SynthSeg with --vol (also of FreeSurfer's mri_synthseg)
  aseg.stats             from FreeSurfer 5.2 or later, or a folder of recon-all, or a folder of such folders (SUBJECTS_DIR)
  aseg_table.tsv         the output of asegstats2table
  sub-01_dseg.nii.gz     a segmentation with FreeSurfer's labels (SynthSeg's, aseg.mgz, aparc+aseg.mgz), or a folder of them
  volumes.tsv            any table with participant_id and ventricles_ml, brain_ml, icv_ml

The result has the columns participant_id, file, ventricles_ml, brain_ml, icv_ml, brain_normalised_ml, flags and tool:

  ventricles_ml        Left and right lateral ventricles with their inferior horns (labels 4, 5, 43, 44), as in Pinaya et al.
                       2022. SynthSeg includes the choroid plexus; FreeSurfer labels it separately, and it does not count.
  brain_ml             Grey and white matter, cerebellum and brain stem, without ventricles, choroid plexus, CSF and vessels.
                       From aseg.stats: BrainSegVolNotVent + Brain-Stem (since 5.2, FreeSurfer's measure omits the brain stem).
  icv_ml               SynthSeg: total intracranial. FreeSurfer: EstimatedTotalIntraCranialVol, which comes from a registration.
                       aseg.mgz alone gives n/a, because it has no CSF around the brain: use the recon-all folder instead.
  brain_normalised_ml  brain_ml x 1902 mL / icv_ml

Tools differ by more than groups of people do, so compare volumes of one tool only. The command is for research, not for
clinical use.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from measurement.label_values import read_label_names, read_volume_labels
from measurement.output_table import VOLUMES, check_unit, complete_row, write_table
from shared.files import refuse_unwritable
from shared.image_files import find_files
from shared.label_files import by_names, read_labels
from shared.nifti import named

SEGMENTATIONS = (".nii", ".nii.gz", ".mgz", ".mgh")
TABLES = (".csv", ".tsv", ".txt", ".dat")
MOST_LISTED = 10

CSF = 24
SYNTHSEG = (  # all labels that it can write, with and without --parc; CSF since version 2.0
    *(2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28),
    *(41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60, *range(1000, 1036), *range(2000, 2036)),
)
CSF_AROUND_BRAIN_ML = 50  # label 24 is all CSF in SynthSeg, but only a few mL in FreeSurfer

# Columns of `SynthSeg --vol` in lower case. Parcels (ctx-...) are parts of the cerebral cortex and are not added again.
SYNTHSEG_PARTS = (
    *("cerebral white matter", "cerebral cortex", "cerebellum white matter", "cerebellum cortex", "thalamus", "caudate"),
    *("putamen", "pallidum", "hippocampus", "amygdala", "accumbens area", "ventral dc"),
)
SYNTHSEG_COLUMNS = {
    "ventricles_ml": [f"{side} {name}lateral ventricle" for side in ("left", "right") for name in ("", "inferior ")],
    "brain_ml": ["brain-stem", *(f"{side} {name}" for side in ("left", "right") for name in SYNTHSEG_PARTS)],
    "icv_ml": ["total intracranial"],
}

# Names in aseg.stats and asegstats2table.
ASEG_NAMES = {
    "ventricles_ml": ["Left-Lateral-Ventricle", "Left-Inf-Lat-Vent", "Right-Lateral-Ventricle", "Right-Inf-Lat-Vent"],
    "brain_ml": ["BrainSegVolNotVent", "Brain-Stem"],
}
ASEG_ICV = ("EstimatedTotalIntraCranialVol", "eTIV")  # two names of one volume; a table's name depends on the version
ASEG_OLD_ICV = ("IntraCranialVol", "ICV")


def read_source(path: Path) -> Iterator[dict]:
    """Yield rows of `complete_row`. The `error` of a row is the reason why it was refused, or ""."""
    if path.is_dir():
        for inside in _sources_in(path):
            yield from read_source(inside)
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    elif path.name.endswith(SEGMENTATIONS):
        yield _row(path, _subject_name(path), str(path), lambda: segmentation_volumes(path))
    elif path.suffix == ".stats":
        yield _row(path, _subject_name(path), str(path), lambda: (aseg_volumes(read_stats(path), str(path)), "FreeSurfer"))
    elif path.name.endswith(TABLES):
        yield from _table_rows(path)
    else:
        raise ValueError(f"{path}: not a table ({', '.join(TABLES)}), .stats or segmentation ({', '.join(SEGMENTATIONS)})")


def _sources_in(folder: Path) -> list[Path]:
    for pattern in ("stats/aseg.stats", "*/stats/aseg.stats", "sub-*/**/*_dseg.*", "*"):
        if found := find_files(folder, pattern, (".stats",) if pattern.endswith(".stats") else SEGMENTATIONS):
            return found
    raise FileNotFoundError(
        f"{folder}: no stats/aseg.stats, */stats/aseg.stats, sub-*/**/*_dseg.nii.gz or segmentation in it. Give tables by name"
    )


def _subject_name(path: Path) -> str:
    """Return the file's name or, for a file of FreeSurfer with a fixed name, the name of the subject's folder."""
    return path.parents[1].name if path.parent.name in ("stats", "mri") else path.name


def _row(file: Path, name: str, where: str, read: Callable[[], tuple[dict[str, float], str]]) -> dict:
    try:
        volumes, tool = read()
        check_unit(volumes, where)
    except ValueError as error:
        return complete_row(name, file, {}, "", str(error))
    return complete_row(name, file, volumes, tool)


def segmentation_volumes(path: Path) -> tuple[dict[str, float], str]:
    """Return the volumes in mL of a map with FreeSurfer's labels. The labels also show the tool, which is returned, too."""
    with named(path):
        values, image = read_labels(path)
        values = by_names(values, path, read_label_names("freesurfer"), "freesurfer")
    spacing_mm = nib.affines.voxel_sizes(image.affine)
    if not ((0.1 <= spacing_mm) & (spacing_mm <= 10)).all():
        raise ValueError(f"{path}: voxels of {np.round(spacing_mm, 4).tolist()}; are they in mm? Expected 0.1 to 10 mm")
    voxel_ml = float(abs(np.linalg.det(image.affine[:3, :3]))) / 1000

    labels, counts = np.unique(values, return_counts=True)
    volume_ml = {int(label): count * voxel_ml for label, count in zip(labels, counts, strict=True) if label != 0}
    if not volume_ml:
        raise ValueError(f"{path}: the label map is empty, all {values.size} voxels are 0")
    summed = read_volume_labels()
    if unknown := [label for label in volume_ml if label not in summed["icv_ml"]]:
        listed = ", ".join(f"{label} ({volume_ml[label]:.1f} mL)" for label in unknown[:MOST_LISTED])
        more = f" and {len(unknown) - MOST_LISTED} more" if len(unknown) > MOST_LISTED else ""
        raise ValueError(f"{path}: labels {listed}{more} are not FreeSurfer's. Translate them first")

    by_synthseg = set(volume_ml) <= set(SYNTHSEG) and volume_ml.get(CSF, 0) > CSF_AROUND_BRAIN_ML
    volumes = {name: sum(volume for label, volume in volume_ml.items() if label in summed[name]) for name in VOLUMES}
    if not by_synthseg:
        volumes["icv_ml"] = math.nan
    return volumes, "SynthSeg segmentation" if by_synthseg else "FreeSurfer segmentation"


def read_stats(path: Path) -> dict[str, str]:
    """Read the volumes in mm3 of an aseg.stats as text, keyed by structure or by the second name of a measure, such as eTIV."""
    volumes_mm3, columns = {}, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.lstrip("#").split()
        if line.startswith("# Measure "):
            fields = [field.strip() for field in line.removeprefix("# Measure ").split(",")]
            if len(fields) == 5 and fields[4] != "unitless":
                if fields[4] != "mm^3":
                    raise ValueError(f"{path}: {fields[1]} is in {fields[4]}, expected mm^3")
                volumes_mm3[fields[1]] = fields[3]
        elif line.startswith("# ColHeaders"):
            columns = words[1:]
        elif words and not line.startswith("#"):
            if not {"StructName", "Volume_mm3"} <= set(columns):
                raise ValueError(f"{path}: no line '# ColHeaders ... Volume_mm3 StructName': is this an aseg.stats?")
            row = dict(zip(columns, words))
            volumes_mm3[row.get("StructName", "")] = row.get("Volume_mm3", "")
    if not volumes_mm3:
        raise ValueError(f"{path}: it holds no volumes")
    return volumes_mm3


def aseg_volumes(cells: Mapping[str, str], where: str) -> dict[str, float]:
    """Convert volumes in mm3 from aseg.stats or a row of asegstats2table to this project's volumes in mL."""
    icv = next((name for name in ASEG_ICV if name in cells), None)
    if icv is None and set(ASEG_OLD_ICV) & set(cells):
        raise ValueError(f"{where}: FreeSurfer before 5.2 defines brain volume differently. Use a later version")
    return _summed_ml(cells, where, ASEG_NAMES | {"icv_ml": [icv or ASEG_ICV[0]]})


def own_volumes(cells: Mapping[str, str], where: str) -> dict[str, float]:
    """Read volumes that are already in mL. Missing ones are NaN."""
    return {name: _number(cells[name], f"{where}: {name}") for name in VOLUMES if not _is_empty(cells.get(name, ""))}


def _summed_ml(cells: Mapping[str, str], where: str, names: Mapping[str, list[str]], remedy: str = "") -> dict[str, float]:
    """Sum cells in mm3 to volumes in mL. `remedy` ends the message about missing cells."""
    if missing := [name for group in names.values() for name in group if _is_empty(cells.get(name, ""))]:
        raise ValueError(f"{where}: no {', '.join(missing[:MOST_LISTED])}{remedy}")
    return {volume: sum(_number(cells[name], f"{where}: {name}") for name in group) / 1000 for volume, group in names.items()}


def _is_empty(text: str) -> bool:
    return text.strip() in ("", "n/a")


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number, got {text!r}")
    return value


def _table_rows(path: Path) -> Iterator[dict]:
    """Yield the rows of a table from SynthSeg or asegstats2table, or of a table with this project's columns."""
    table = _read_text_table(path)
    lower = [column.strip().lower() for column in table.columns]
    who = table.columns[0]
    if "left lateral ventricle" in lower:
        table.columns = lower
        who, tool = lower[0], "SynthSeg"
        convert = partial(_summed_ml, names=SYNTHSEG_COLUMNS, remedy=". SynthSeg 2.0 or later writes it")
    elif "left-lateral-ventricle" in lower:
        convert, tool = aseg_volumes, "FreeSurfer"
    elif "participant_id" in lower and set(lower) & set(VOLUMES):
        who, convert, tool = "participant_id", own_volumes, "unknown"
    else:
        raise ValueError(
            f"{path}: no table of SynthSeg ('left lateral ventricle'), of asegstats2table ('Left-Lateral-Ventricle') or "
            f"one with participant_id and {', '.join(VOLUMES)}; its columns are {', '.join(table.columns[:6])}, ..."
        )
    if table.empty:
        raise ValueError(f"{path}: the table has no rows")
    for number, cells in enumerate(table.to_dict("records"), 2):
        name = Path(cells[who].rstrip("/")).name  # asegstats2table may write the folder's path
        if not name:
            raise ValueError(f"{path} row {number}: no name of a participant in the column {who!r}")
        where = f"{path} row {number} ({name})"
        yield _row(path, name, where, lambda: (convert(cells, where), cells.get("tool") or tool))  # noqa: B023 (called at once)


def _read_text_table(path: Path) -> pd.DataFrame:
    """Read a table with all cells as text. The separator may be tab, comma, semicolon or space."""
    header = path.read_text(encoding="utf-8-sig", errors="replace").partition("\n")[0]
    separator = next((mark for mark in "\t,;" if mark in header), r"\s+")
    try:
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: the table cannot be read ({error})") from error


def read_all(sources: Iterable[Path]) -> list[dict]:
    """Read the rows of all sources, and refuse a participant that appears twice."""
    rows, file_of = [], {}
    for row in (row for source in sources for row in read_source(source)):
        who = row["participant_id"]
        if who in file_of:
            raise ValueError(f"{who} appears twice, in {file_of[who]} and {row['file']}. Give each participant once")
        file_of[who] = row["file"]
        rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="tables, aseg.stats, segmentations, folders")
    parser.add_argument("--output", type=Path, required=True, help="TSV to write, one row per participant, in mL")
    arguments = parser.parse_args()
    refuse_unwritable(arguments.output, arguments.sources)

    rows = read_all(arguments.sources)
    good, refused = [row for row in rows if not row["error"]], [row for row in rows if row["error"]]
    for row in refused:
        print("refused:", row["error"], file=sys.stderr)
    if not good:
        raise ValueError(f"none of {len(refused)} rows can be used; nothing was written")
    write_table(good, arguments.output)
    doubtful = sum(bool(row["flags"]) for row in good)
    tools = ", ".join(sorted({row["tool"] for row in good}))
    print(f"{arguments.output}: volumes of {len(good)} participants by {tools}; {doubtful} with flags.")
    return 1 if refused else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
