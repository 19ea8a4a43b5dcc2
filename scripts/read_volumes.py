"""Volumes that others measured, as a table like that of measure_volumes.py: SynthSeg, FreeSurfer, segmentations.

    python scripts/read_volumes.py SOURCE [SOURCE ...] --output volumes.tsv

A source is one of

  synthseg_volumes.csv   what SynthSeg writes with --vol (also FreeSurfer's mri_synthseg)
  aseg.stats             of FreeSurfer 5.2 or later, or a folder of recon-all, or a folder of such folders (SUBJECTS_DIR)
  aseg_table.tsv         what asegstats2table writes
  sub-01_dseg.nii.gz     a segmentation with FreeSurfer's labels: SynthSeg's, aseg.mgz, aparc+aseg.mgz; or a folder of them
  volumes.tsv            any table with participant_id and ventricles_ml, brain_ml, icv_ml

The result has the columns participant_id, file, ventricles_ml, brain_ml, icv_ml, brain_normalised_ml, flags and tool, in mL:

  ventricles_ml        left and right lateral ventricles with their inferior horns (labels 4, 5, 43, 44), as Pinaya et al. 2022.
                       SynthSeg counts the choroid plexus in; FreeSurfer has labels of its own for it, which are left out
  brain_ml             grey and white matter, cerebellum, brain stem; no ventricles, choroid plexus, CSF or vessels. Of
                       aseg.stats: BrainSegVolNotVent + Brain-Stem (FreeSurfer leaves the brain stem out since 5.2)
  icv_ml               SynthSeg: total intracranial; FreeSurfer: EstimatedTotalIntraCranialVol, which comes from a registration;
                       n/a for aseg.mgz alone, which has no CSF around the brain: give the recon-all folder instead
  brain_normalised_ml  brain_ml x 1902 mL / icv_ml

Tools differ by more than groups of people do: compare volumes of one tool only. Research tool, not for clinical use.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from measurement.label_values import read_volume_labels
from measurement.output_table import VOLUMES, check_unit, complete_row, participant_of, write_table
from nibabel.filebasedimages import ImageFileError

SEGMENTATIONS = (".nii", ".nii.gz", ".mgz", ".mgh")
TABLES = (".csv", ".tsv", ".txt", ".dat")
MOST_LISTED = 10

CSF = 24
SYNTHSEG = (  # all that it can write, with and without --parc; CSF since version 2.0
    *(2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28),
    *(41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60, *range(1000, 1036), *range(2000, 2036)),
)
CSF_AROUND_BRAIN_ML = 50  # SynthSeg's label 24 is all of the CSF, FreeSurfer's a few mL between the ventricles

# Columns of `SynthSeg --vol` in lower case; parcels (ctx-...) are parts of the cerebral cortex and not added again.
SYNTHSEG_PARTS = (
    *("cerebral white matter", "cerebral cortex", "cerebellum white matter", "cerebellum cortex", "thalamus", "caudate"),
    *("putamen", "pallidum", "hippocampus", "amygdala", "accumbens area", "ventral dc"),
)
SYNTHSEG_BRAIN = ("brain-stem", *(f"{side} {name}" for side in ("left", "right") for name in SYNTHSEG_PARTS))
SYNTHSEG_VENTRICLES = tuple(f"{side} {name}lateral ventricle" for side in ("left", "right") for name in ("", "inferior "))
SYNTHSEG_ICV = "total intracranial"
SYNTHSEG_COLUMNS = (SYNTHSEG_ICV, *SYNTHSEG_VENTRICLES, *SYNTHSEG_BRAIN)

# Names in aseg.stats and asegstats2table.
ASEG_VENTRICLES = ("Left-Lateral-Ventricle", "Left-Inf-Lat-Vent", "Right-Lateral-Ventricle", "Right-Inf-Lat-Vent")
ASEG_BRAIN = ("BrainSegVolNotVent", "Brain-Stem")
ASEG_ICV = ("EstimatedTotalIntraCranialVol", "eTIV")  # the same; the name in a table depends on the version
ASEG_OLD_ICV = ("IntraCranialVol", "ICV")
ASEG_COLUMNS = (*ASEG_VENTRICLES, *ASEG_BRAIN, *ASEG_ICV, *ASEG_OLD_ICV)


def read_source(path: Path) -> Iterator[dict]:
    """Rows of a source: participant_id, file, the volumes in mL, tool and error, "" or why this row was refused.

    Raises:
        FileNotFoundError: no such source, or a folder without any.
        ValueError: a table of no known kind, or a file of another kind.
    """
    if path.is_dir():
        for inside in _sources_in(path):
            yield from read_source(inside)
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    elif path.name.endswith(SEGMENTATIONS):
        yield _row(path, participant_of(_telling_name(path)), lambda: segmentation_volumes(path))
    elif path.suffix == ".stats":
        yield _row(path, participant_of(_telling_name(path)), lambda: (aseg_volumes(read_stats(path), str(path)), "FreeSurfer"))
    elif path.name.endswith(TABLES):
        yield from _table_rows(path)
    else:
        raise ValueError(f"{path}: not a table ({', '.join(TABLES)}), .stats or segmentation ({', '.join(SEGMENTATIONS)})")


def _sources_in(folder: Path) -> list[Path]:
    """The stats or segmentations of a folder: recon-all's, those of many subjects, BIDS, or lying in it."""
    for pattern in ("stats/aseg.stats", "*/stats/aseg.stats", "sub-*/**/*_dseg.nii*"):
        if found := sorted(folder.glob(pattern)):
            return found
    if found := sorted(path for path in folder.iterdir() if path.name.endswith(SEGMENTATIONS)):
        return found
    raise FileNotFoundError(
        f"{folder}: no stats/aseg.stats, */stats/aseg.stats, sub-*/**/*_dseg.nii.gz or segmentation in it. Give tables by name"
    )


def _telling_name(path: Path) -> str:
    """The file's name, or the subject's folder for FreeSurfer's files, which are all called the same."""
    return path.parents[1].name if path.parent.name in ("stats", "mri") else path.name


def _row(file: Path, participant_id: str, read: Callable) -> dict:
    """One row of the table; `read` returns the volumes in mL and the tool, or raises ValueError, which `error` keeps."""
    try:
        volumes, tool = read()
    except ValueError as error:
        return complete_row(participant_id, file, {}, "") | {"error": str(error)}
    return complete_row(participant_id, file, volumes, tool) | {"error": ""}


# --- Segmentations -------------------------------------------------------------------------------------------------


def segmentation_volumes(path: Path) -> tuple[dict[str, float], str]:
    """Volumes in mL of a label map with FreeSurfer's labels, and the tool that made it, judged by its labels.

    A voxel's volume is the determinant of the affine, so that any orientation and spacing will do.

    Raises:
        ValueError: unreadable, not 3-D, not integers, unknown labels, empty, or volumes that no head has.
    """
    try:
        image = nib.squeeze_image(nib.load(path))
        values = np.asanyarray(image.dataobj)
    except (OSError, EOFError, zlib.error, ImageFileError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    if values.ndim != 3:
        raise ValueError(f"{path}: expected one 3-D label map, got shape {values.shape}")
    voxel_ml = _voxel_ml(image, path)

    labels, counts = np.unique(values, return_counts=True)  # NaN sorts last
    if not np.isfinite(labels).all() or not np.array_equal(labels, np.rint(labels)):
        raise ValueError(f"{path}: its values are no integers: probabilities, or interpolated. Give the label map itself")
    volume_ml = {int(label): count * voxel_ml for label, count in zip(labels, counts, strict=True) if label != 0}
    if not volume_ml:
        raise ValueError(f"{path}: the label map is empty, all {values.size} voxels are 0")
    summed = read_volume_labels()
    if unknown := [label for label in volume_ml if label not in summed["icv_ml"]]:
        listed = ", ".join(f"{label} ({volume_ml[label]:.1f} mL)" for label in unknown[:MOST_LISTED])
        more = f" and {len(unknown) - MOST_LISTED} more" if len(unknown) > MOST_LISTED else ""
        raise ValueError(f"{path}: labels {listed}{more} are not FreeSurfer's. Translate them first")

    by_synthseg = set(volume_ml) <= set(SYNTHSEG) and volume_ml.get(CSF, 0) > CSF_AROUND_BRAIN_ML
    volumes = {
        **{name: sum(volume_ml.get(label, 0) for label in summed[name]) for name in ("ventricles_ml", "brain_ml")},
        "icv_ml": sum(volume_ml.values()) if by_synthseg else math.nan,  # as SynthSeg: everything but the background
    }
    check_unit(volumes, str(path))
    return volumes, "SynthSeg segmentation" if by_synthseg else "FreeSurfer segmentation"


def _voxel_ml(image: nib.spatialimages.SpatialImage, path: Path) -> float:
    spacing_mm = nib.affines.voxel_sizes(image.affine)
    if not ((0.1 <= spacing_mm) & (spacing_mm <= 10)).all():
        raise ValueError(f"{path}: voxels of {np.round(spacing_mm, 4).tolist()}; are they in mm? 0.1 to 10 mm are possible")
    return float(abs(np.linalg.det(image.affine[:3, :3]))) / 1000


# --- FreeSurfer's statistics ---------------------------------------------------------------------------------------


def read_stats(path: Path) -> dict[str, float]:
    """Volumes in mm3 of an aseg.stats: structures by name, and the header's measures by their second name, as eTIV.

    Raises:
        ValueError: no table in it, or another unit than mm^3.
    """
    volumes_mm3, columns = {}, []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.lstrip("#").split()
        if line.startswith("# Measure "):
            fields = [field.strip() for field in line.removeprefix("# Measure ").split(",")]
            if len(fields) == 5 and fields[4] != "unitless":
                if fields[4] != "mm^3":
                    raise ValueError(f"{path}: {fields[1]} is in {fields[4]}, expected mm^3")
                volumes_mm3[fields[1]] = _number(fields[3], f"{path}: {fields[1]}")
        elif line.startswith("# ColHeaders"):
            columns = words[1:]
        elif words and not line.startswith("#"):
            if not {"StructName", "Volume_mm3"} <= set(columns):
                raise ValueError(f"{path}: no line '# ColHeaders ... Volume_mm3 StructName': is this an aseg.stats?")
            row = dict(zip(columns, words))
            volumes_mm3[row.get("StructName", "")] = _number(row.get("Volume_mm3", ""), f"{path}: {row.get('StructName')}")
    if not volumes_mm3:
        raise ValueError(f"{path}: no volumes in it")
    return volumes_mm3


def aseg_volumes(volumes_mm3: Mapping[str, float], where: str) -> dict[str, float]:
    """Our volumes in mL from FreeSurfer's names, of aseg.stats or of a row of asegstats2table.

    Raises:
        ValueError: a volume that is needed is not there; FreeSurfer before 5.2; volumes that no head has.
    """
    icv = next((name for name in ASEG_ICV if name in volumes_mm3), None)
    if icv is None and set(ASEG_OLD_ICV) & set(volumes_mm3):
        raise ValueError(f"{where}: from FreeSurfer before 5.2, whose brain volume is another. Use a later version")
    needed = (*ASEG_VENTRICLES, *ASEG_BRAIN, icv or ASEG_ICV[0])
    if missing := [name for name in needed if name not in volumes_mm3]:
        raise ValueError(f"{where}: no {', '.join(missing)}")
    volumes = {
        "ventricles_ml": sum(volumes_mm3[name] for name in ASEG_VENTRICLES) / 1000,
        "brain_ml": sum(volumes_mm3[name] for name in ASEG_BRAIN) / 1000,
        "icv_ml": volumes_mm3[icv] / 1000,
    }
    check_unit(volumes, where)
    return volumes


# --- Tables --------------------------------------------------------------------------------------------------------


def _table_rows(path: Path) -> Iterator[dict]:
    """Rows of a table: SynthSeg's, asegstats2table's, or one with our own columns."""
    table = _read_text_table(path)
    lower = [column.strip().lower() for column in table.columns]
    if "left lateral ventricle" in lower:
        table.columns = lower
        who, convert, columns, tool = table.columns[0], synthseg_volumes, SYNTHSEG_COLUMNS, "SynthSeg"
    elif "left-lateral-ventricle" in lower:
        who, convert, columns, tool = table.columns[0], aseg_volumes, ASEG_COLUMNS, "FreeSurfer"
    elif "participant_id" in lower and set(lower) & set(VOLUMES):
        who, convert, columns, tool = "participant_id", own_volumes, VOLUMES, "unknown"
    else:
        raise ValueError(
            f"{path}: no table of SynthSeg ('left lateral ventricle'), of asegstats2table ('Left-Lateral-Ventricle') or "
            f"one with participant_id and {', '.join(VOLUMES)}; its columns are {', '.join(table.columns[:6])}, ..."
        )
    if table.empty:
        raise ValueError(f"{path}: no rows in it")
    for number, cells in enumerate(table.to_dict("records"), 2):
        name = Path(cells[who].rstrip("/")).name  # asegstats2table may write the folder's path
        if not name:
            raise ValueError(f"{path} row {number}: no name of a participant in the column {who!r}")
        where = f"{path} row {number} ({name})"
        texts = {column: cells[column] for column in columns if column in cells}
        read = partial(_convert_cells, convert, texts, where, cells.get("tool") or tool)
        yield _row(path, participant_of(name), read)


def _convert_cells(convert: Callable, texts: Mapping[str, str], where: str, tool: str) -> tuple[dict[str, float], str]:
    numbers = {column: _number(text, f"{where}: {column}") for column, text in texts.items() if text.strip() not in ("n/a", "")}
    return convert(numbers, where), tool


def _read_text_table(path: Path) -> pd.DataFrame:
    """Cells as text, columns by their names, whichever of tab, comma, semicolon and space separates them."""
    header = path.read_text(encoding="utf-8-sig", errors="replace").partition("\n")[0]
    separator = next((mark for mark in "\t,;" if mark in header), r"\s+")
    try:
        return pd.read_csv(path, sep=separator, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no table that can be read ({error})") from error


def synthseg_volumes(volumes_mm3: Mapping[str, float], where: str) -> dict[str, float]:
    """Our volumes in mL from a row of SynthSeg's --vol table; names in lower case, mm3.

    Raises:
        ValueError: a structure is missing, such as the total intracranial volume before version 2.0; wrong unit.
    """
    if missing := [name for name in SYNTHSEG_COLUMNS if name not in volumes_mm3]:
        raise ValueError(f"{where}: no {', '.join(missing[:MOST_LISTED])}. SynthSeg 2.0 or later writes it")
    volumes = {
        "ventricles_ml": sum(volumes_mm3[name] for name in SYNTHSEG_VENTRICLES) / 1000,
        "brain_ml": sum(volumes_mm3[name] for name in SYNTHSEG_BRAIN) / 1000,
        "icv_ml": volumes_mm3[SYNTHSEG_ICV] / 1000,
    }
    check_unit(volumes, where)
    return volumes


def own_volumes(volumes_ml: Mapping[str, float], where: str) -> dict[str, float]:
    """Volumes that are in mL already; those that the table lacks are NaN."""
    check_unit(volumes_ml, where)
    return {name: volumes_ml.get(name, math.nan) for name in VOLUMES}


def _number(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where} must be a finite number, got {text!r}")
    return value


# --- Command -------------------------------------------------------------------------------------------------------


def read_all(sources: Iterable[Path]) -> list[dict]:
    """Rows of all sources.

    Raises:
        ValueError: a participant is there twice.
    """
    rows, file_of = [], {}
    for source in sources:
        for row in read_source(Path(source)):
            who = row["participant_id"]
            if who in file_of:
                raise ValueError(f"{who} is there twice, in {file_of[who]} and {row['file']}. Give each participant once")
            file_of[who] = row["file"]
            rows.append(row)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="tables, aseg.stats, segmentations, folders")
    parser.add_argument("--output", type=Path, required=True, help="TSV to write, one row per participant, in mL")
    arguments = parser.parse_args()
    if not arguments.output.parent.is_dir():
        raise FileNotFoundError(f"{arguments.output.parent}: no such folder for --output")

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
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
