"""Convert volumes of SynthSeg or FreeSurfer, or segmentations, into a table in the format of measure_volumes.py.

    python scripts/read_volumes.py SOURCE [SOURCE ...] --output volumes.tsv

A SOURCE is one of

  synthseg_volumes.csv   the output of SynthSeg with --vol (also of FreeSurfer's mri_synthseg)
  aseg.stats             from FreeSurfer 5.2 or later, or a folder of recon-all, or a folder of such folders (SUBJECTS_DIR).
                         Where there are longitudinal runs (X.long.Y), the other runs of the same scans are left out
  aseg_table.tsv         the output of asegstats2table
  sub-01_dseg.nii.gz     a segmentation with FreeSurfer's labels (SynthSeg's, aseg.mgz, aparc+aseg.mgz, segment_t1w.py's), or a
                         folder of them. Those of other tools need --label_table, such as samseg or unest
  volumes.tsv            any table with participant_id and ventricles_ml, brain_ml, icv_ml

The session comes from the name of the scan (sub-01_ses-02), its path or a column session_id. The result has the columns
participant_id, session_id (if there are sessions), file, ventricles_ml, brain_ml, icv_ml, brain_normalised_ml, flags and tool:

  ventricles_ml        Left and right lateral ventricles with their inferior horns (labels 4, 5, 43, 44), as in Pinaya et al.
                       2022. SynthSeg includes the choroid plexus; FreeSurfer labels it separately, and it does not count.
  brain_ml             Grey and white matter, cerebellum and brain stem, without ventricles, choroid plexus, CSF and vessels.
                       From aseg.stats: BrainSegVolNotVent + Brain-Stem (since 5.2, FreeSurfer's measure omits the brain stem).
  icv_ml               SynthSeg: total intracranial. FreeSurfer: EstimatedTotalIntraCranialVol, which comes from a registration.
                       SAMSEG: all labels inside the skull. Other segmentations give n/a, because they have no CSF around the
                       brain: for aseg.mgz, use the recon-all folder instead.
  brain_normalised_ml  brain_ml x 1902 mL / icv_ml

A flag such as no_brain_stem says that a segmentation lacks a large structure, so the volumes lack it, too: the scan may be cut.
Tools differ by more than groups of people do, so compare volumes of one tool only. The command is for research, not for
clinical use.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from command_line import Parser
from measurement.label_values import label_tables, missing_structures, read_label_names, read_label_values, read_volume_labels


def parse() -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("sources", nargs="+", type=Path, metavar="SOURCE", help="tables, aseg.stats, segmentations, folders")
    parser.add_argument("--output", type=Path, required=True, help="TSV to write, one row per scan, in mL")
    parser.add_argument(
        "--label_table",
        default="freesurfer",
        choices=label_tables(),
        help="meaning of the values of segmentations (default: %(default)s)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

import nibabel as nib
import numpy as np
from cohorts.row_matching import SUMMARIES
from ldm.data.volumes import VOLUMES, check_median, check_volumes
from measurement.output_table import COLUMNS, NORMALISED, complete_row, identity_of, write_table
from shared import refusals
from shared.files import is_device, is_there, read_json, refuse_unwritable
from shared.image_files import find_files
from shared.label_files import by_names, read_labels
from shared.nifti import named
from shared.participants import entity
from shared.problems import count
from shared.simulated import sidecar_of
from shared.tables import is_missing, read_number, read_numbered, refuse_users_columns

SEGMENTATIONS = (".nii", ".nii.gz", ".mgz", ".mgh")
TABLES = (".csv", ".tsv", ".txt", ".dat")
MOST_LISTED = 10
IDENTITY = ("participant_id", "subject", "subject_id", "measure:volume")  # columns of names, the best one first

# Tools by label table, and those whose CSF is all CSF inside the skull.
TOOLS = {"freesurfer": "FreeSurfer", "samseg": "SAMSEG", "unest": "UNesT", "meshnet18": "MeshNet", "demo": "simulated"}
WITH_ICV = ("SynthSeg", "SAMSEG", "simulated")
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
# One side of a structure may be this many times larger than the other. Ventricles may differ by 20 or more (one-sided
# hydrocephalus, or a shunt), and mL beside mm3 differ by about 1000. Chosen.
MOST_UNEQUAL = 100
OTHER_SIDE = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
LEAST_SIDE_ML = 5  # chosen: in a segmentation, a smaller structure may be resected or lie between coarse voxels
FIXED_NAMES = ("stats", "mri")  # folders of FreeSurfer, in which all subjects have files of the same names
STOPPED = "recon_all_stopped"  # flag: the volumes may be of an earlier run, because the last one failed or did not end


def read_source(path: Path, label_table: str = "freesurfer") -> Iterator[dict]:
    """Yield rows of `complete_row`. The `error` of a row is the reason why it was refused, or ""."""
    if path.is_dir():
        for inside in _sources_in(path):
            try:
                is_there(inside)
            except FileNotFoundError as error:
                yield complete_row(_scan(inside), inside, {}, "", str(error))
            else:
                yield from read_source(inside, label_table)
    elif not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    elif path.name.lower().endswith(SEGMENTATIONS):
        yield _row(path, _scan(path), str(path), lambda: segmentation_volumes(path, label_table))
    elif path.suffix == ".stats":
        yield _row(path, _scan(path), str(path), lambda: (aseg_volumes(read_stats(path), str(path)), "FreeSurfer"))
    elif path.name.endswith(TABLES):
        yield from _table_rows(path)
    else:
        raise ValueError(f"{path}: not a table ({', '.join(TABLES)}), .stats or segmentation ({', '.join(SEGMENTATIONS)})")


def _sources_in(folder: Path) -> list[Path]:
    for pattern in ("stats/aseg.stats", "*/stats/aseg.stats", "sub-*/**/*_dseg.*", "*"):
        if found := find_files(folder, pattern, (".stats",) if pattern.endswith(".stats") else SEGMENTATIONS):
            _name_unfinished(folder, found)
            _refuse_links(found)
            return _without_superseded(found) if pattern.endswith(".stats") else found
    inside = [str(path) for path in sorted(folder.glob("derivatives/*")) if path.is_dir() and path.name[0] != "."]
    remedy = f"Give {' or '.join(inside[:MOST_LISTED])}" if inside else "Give tables by name"
    raise FileNotFoundError(
        f"{folder}: no stats/aseg.stats, */stats/aseg.stats, sub-*/**/*_dseg.nii.gz or segmentation in it. {remedy}"
    )


def _name_unfinished(folder: Path, found: Sequence[Path]) -> None:
    """Name the runs of recon-all in a SUBJECTS_DIR that have no aseg.stats. FreeSurfer's average subjects have none either."""
    runs = {path.parent.name for path in folder.glob("*/mri")} - {path.parents[1].name for path in found}
    if unfinished := sorted(run for run in runs if not run.startswith("fsaverage")):
        names = ", ".join(unfinished)
        print(f"{folder}: left out, without stats/aseg.stats: {names}. Has recon-all finished?", file=sys.stderr)


def _refuse_links(found: Sequence[Path]) -> None:
    first: dict[Path, Path] = {}
    for path in found:
        if (other := first.setdefault(path.resolve(), path)) != path:
            raise ValueError(f"{path} and {other} are one file, so one scan would count twice. Remove the link")


def _without_superseded(stats: Sequence[Path]) -> list[Path]:
    """Leave out FreeSurfer's cross-sectional run X of a session and the template Y, if there is a longitudinal run X.long.Y."""
    runs = {path.absolute().parents[1].name: path for path in stats}
    superseded = {part for run in runs if ".long." in run for part in run.split(".long.", 1)}
    return [path for run, path in runs.items() if run not in superseded]


def _scan(path: Path) -> tuple[str, str | None]:
    """Return participant and session of a file. A file of FreeSurfer with a fixed name has those of its subject's folder."""
    path = path.absolute()
    return identity_of(path.parents[1] if path.parent.name in FIXED_NAMES else path)


def _row(
    file: str | Path,
    scan: tuple[str, str | None],
    where: str,
    read: Callable[[], tuple],
    flags: Sequence[str] = (),
) -> dict:
    try:
        volumes, tool, *found = read()
        check_volumes(volumes, where)
    except ValueError as error:
        return complete_row(scan, file, {}, "", str(error))
    return complete_row(scan, file, volumes, tool, flags=[*flags, *found, *([STOPPED] if has_stopped(Path(file)) else [])])


def has_stopped(file: Path) -> bool:
    """Return whether FreeSurfer's last run for the subject of a file in stats or mri ended with an error or did not end."""
    folder = file.absolute().parent
    scripts = folder.parent / "scripts"
    return folder.name in FIXED_NAMES and any((*scripts.glob("recon-all.error"), *scripts.glob("IsRunning.*")))


def segmentation_volumes(path: Path, label_table: str = "freesurfer") -> tuple:
    """Return the volumes in mL of a map with the labels of a table, the tool, which labels or the sidecar show, and any flags.

    Each large structure that the map lacks has a flag: the scan may be cut below, or the map may be of the cerebrum.
    """
    with named(path):
        values, image = read_labels(path, oriented=False)  # volumes do not depend on directions
        values = by_names(values, path, read_label_names(label_table), label_table)
    spacing_mm = nib.affines.voxel_sizes(image.affine)
    if not ((0.1 <= spacing_mm) & (spacing_mm <= 10)).all():
        raise ValueError(f"{path}: voxels of {np.round(spacing_mm, 4).tolist()}; are they in mm? Expected 0.1 to 10 mm")
    voxel_ml = float(abs(np.linalg.det(image.affine[:3, :3]))) / 1000

    labels, counts = np.unique(values, return_counts=True)
    volume_ml = {int(label): count * voxel_ml for label, count in zip(labels, counts, strict=True) if label != 0}
    if not volume_ml:
        raise ValueError(f"{path}: the label map is empty, all {values.size} voxels are 0")
    summed, names, parts_ml = read_volume_labels(label_table), read_label_names(label_table), Counter()
    if unknown := [label for label in volume_ml if label not in names]:
        listed = ", ".join(f"{label} ({volume_ml[label]:.1f} mL)" for label in unknown[:MOST_LISTED])
        more = f" and {len(unknown) - MOST_LISTED} more" if len(unknown) > MOST_LISTED else ""
        raise ValueError(
            f"{path}: labels {listed}{more} are not in the label table {label_table!r}. Choose another one with "
            f"--label_table, or translate them first"
        )

    for label in volume_ml.keys() & (summed["ventricles_ml"] | summed["brain_ml"]):
        parts_ml[names[label]] += volume_ml[label]
    if {"left", "right"} <= {name.split()[0] for name in parts_ml}:  # some tools give both sides the numbers of one
        _refuse_unequal_sides(parts_ml, str(path), LEAST_SIDE_ML)
    volumes = {name: sum(volume for label, volume in volume_ml.items() if label in summed[name]) for name in VOLUMES}
    tool = _tool(path, label_table, volume_ml)
    if tool not in WITH_ICV:
        volumes["icv_ml"] = math.nan
    flags = (f"no_{name.replace(' ', '_')}" for name in missing_structures(volume_ml, label_table))
    return volumes, f"{tool} segmentation", *flags


def _tool(path: Path, label_table: str, volume_ml: Mapping[int, float]) -> str:
    """Return the tool that made a map, by its sidecar, or by its labels and their volumes."""
    with suppress(FileNotFoundError):
        if tool := read_json(sidecar_of(path)).get("SegmentedBy"):
            return tool
    csf_ml = sum(volume_ml.get(label, 0) for label in read_label_values(label_table).get("CSF", ()))
    if label_table == "freesurfer" and set(volume_ml) <= set(SYNTHSEG) and csf_ml > CSF_AROUND_BRAIN_ML:
        return "SynthSeg"
    return TOOLS[label_table]


def read_stats(path: Path) -> dict[str, str]:
    """Read the volumes in mm3 of an aseg.stats as text, by structure or second name of a measure (eTIV), in lower case."""
    volumes_mm3, columns = {}, []

    def add(name: str, volume: str) -> None:
        if (other := volumes_mm3.setdefault(name.lower(), volume)) != volume:
            raise ValueError(f"{path}: {name} is {other} and {volume}, as in two subjects' files joined. Give each file alone")

    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        words = line.lstrip("#").split()
        if line.startswith("# Measure "):
            fields = [field.strip() for field in line.removeprefix("# Measure ").split(",")]
            if len(fields) == 5 and fields[4] != "unitless":
                if fields[4] != "mm^3":
                    raise ValueError(f"{path}: {fields[1]} is in {fields[4]}, expected mm^3")
                add(fields[1], fields[3])
        elif line.startswith("# ColHeaders"):
            columns = words[1:]
        elif words and not line.startswith("#"):
            if not {"StructName", "Volume_mm3"} <= set(columns):
                raise ValueError(f"{path}: no line '# ColHeaders ... Volume_mm3 StructName': is this an aseg.stats?")
            row = dict(zip(columns, words))
            add(row.get("StructName", ""), row.get("Volume_mm3", ""))
    if not volumes_mm3:
        raise ValueError(f"{path}: it holds no volumes")
    return volumes_mm3


def aseg_volumes(cells: Mapping[str, str], where: str) -> dict[str, float]:
    """Convert volumes in mm3 from aseg.stats or a row of asegstats2table to this project's volumes in mL."""
    icv = next((name for name in ASEG_ICV if name.lower() in cells), None)
    if icv is None and any(name.lower() in cells for name in ASEG_OLD_ICV):
        raise ValueError(f"{where}: FreeSurfer before 5.2 defines brain volume differently. Use a later version")
    return _summed_ml(cells, where, ASEG_NAMES | {"icv_ml": [icv or ASEG_ICV[0]]})


def own_volumes(cells: Mapping[str, str], where: str) -> dict[str, float]:
    """Read volumes that are already in mL. Missing ones are NaN."""
    return {name: _number(cells, name, where) for name in (*VOLUMES, NORMALISED) if not is_missing(cells.get(name))}


def _summed_ml(cells: Mapping[str, str], where: str, names: Mapping[str, list[str]], remedy: str = "") -> dict[str, float]:
    """Sum cells in mm3 to volumes in mL. `remedy` ends the message about missing cells. Only an inferior horn may be 0."""
    if missing := [name for group in names.values() for name in group if is_missing(cells.get(name.lower()))]:
        raise ValueError(f"{where}: no {', '.join(missing[:MOST_LISTED])}{remedy}")
    mm3 = {name: _number(cells, name, where) for group in names.values() for name in group}
    if none := [name for name, volume in mm3.items() if volume < 0 or volume == 0 and "inf" not in name.lower()]:
        listed = ", ".join(none[:MOST_LISTED])
        raise ValueError(f"{where}: {listed} would be {mm3[none[0]]:g} mm3: the segmentation failed. Make it again")
    _refuse_unequal_sides({name: volume / 1000 for name, volume in mm3.items() if "inf" not in name.lower()}, where)
    return {volume: sum(mm3[name] for name in group) / 1000 for volume, group in names.items()}


def _refuse_unequal_sides(volumes_ml: Mapping[str, float], where: str, least_ml: float = 0) -> None:
    """Refuse a structure of `least_ml` or more on one side that is missing, or `MOST_UNEQUAL` times smaller, on the other."""
    for name, volume in volumes_ml.items():
        side = name.replace("-", " ").split()[0]
        if side not in OTHER_SIDE or name.endswith("lesion"):
            continue
        other = volumes_ml.get(f"{OTHER_SIDE[side]}{name.removeprefix(side)}", 0)
        if volume >= least_ml and volume > MOST_UNEQUAL * other:
            raise ValueError(
                f"{where}: {name} would be {volume:.3g} mL, but {other:.3g} mL on the other side: the segmentation failed, or "
                f"one is in another unit. Make it again"
            )


def _number(cells: Mapping[str, str], name: str, where: str) -> float:
    try:
        return read_number(cells[name.lower()])
    except ValueError as error:
        raise ValueError(f"{where}: {name} {error}") from None


def _table_rows(path: Path) -> Iterator[dict]:
    """Yield the rows of a table from SynthSeg or asegstats2table, or of a table with this project's columns."""
    columns, numbered, problems = read_numbered(path)
    header = [name.lower() for name in columns]
    if "left lateral ventricle" in header:
        convert, tool = partial(_summed_ml, names=SYNTHSEG_COLUMNS, remedy=". SynthSeg 2.0 or later writes it"), "SynthSeg"
    elif "left-lateral-ventricle" in header:
        convert, tool = aseg_volumes, "FreeSurfer"
    elif "participant_id" in header and set(header) & set(VOLUMES):
        convert, tool = own_volumes, "unknown"
    else:
        raise ValueError(
            f"{path}: no table of SynthSeg ('left lateral ventricle'), of asegstats2table ('Left-Lateral-Ventricle') or "
            f"one with participant_id and {', '.join(VOLUMES)}; its columns are {', '.join(columns[:6])}, ..."
        )
    who = next((name for name in IDENTITY if name in header), header[0])
    if who not in IDENTITY and [row[columns[0]] for row in numbered.values()] in _row_numbers(len(numbered)):
        raise ValueError(f"{path}: its first column numbers the rows. Call the column of participants participant_id")
    known_ml = []
    for number, cells in numbered.items():
        cells = dict(zip(header, cells.values()))
        where = f"{path} row {number} ({Path(cells[who]).name})"
        try:
            alone = path.parent.name in FIXED_NAMES and len(numbered) == 1  # synthseg.vol.csv, whose row is called orig.mgz
            scan = _scan(path) if alone else _identity(cells, who)
        except ValueError as error:
            problems.append(f"{where}: {error}")
            continue
        if cells[who].lower() in SUMMARIES:
            problems.append(f"{where}: this row sums up others, and is left out. Remove it, or rename the participant")
            continue
        file = path if is_missing(cells.get("file")) else cells["file"]
        by = tool if is_missing(cells.get("tool")) else cells["tool"]
        flags = [] if is_missing(cells.get("flags")) else cells["flags"].split(",")
        row = _row(file, scan, where, lambda: (convert(cells, where), by), flags)  # noqa: B023 (called at once)
        known_ml += [row["ventricles_ml"]] if row["ventricles_ml"] > 0 else []
        yield row
    if convert is own_volumes:
        check_median(known_ml, str(path))
    for problem in problems:
        yield complete_row(("", None), path, {}, "", problem)


def _row_numbers(rows: int) -> list[list[str]]:
    return [[str(number) for number in range(first, first + rows)] for first in (0, 1)]


def _identity(cells: Mapping[str, str], who: str) -> tuple[str, str | None]:
    """Return participant and session of a table's row. asegstats2table and SynthSeg may write the scan's path."""
    if is_missing(cells[who]):
        raise ValueError(f"no name of a participant in the column {who!r}")
    participant, session = identity_of(cells[who])
    if not is_missing(cells.get("session_id")):
        own = entity("ses", cells["session_id"])
        if session not in (None, own):
            raise ValueError(f"session_id is {own}, but the name is of {session}. Correct one of them")
        session = own
    if not is_missing(cells.get("file")):
        other, of_file = identity_of(cells["file"])
        if other.startswith("sub-") and (other != participant or of_file and session and of_file != session):
            raise ValueError(f"its file is {cells['file']}, another scan's. Correct one of them")
    return participant, session


def read_all(sources: Iterable[Path], label_table: str = "freesurfer") -> list[dict]:
    """Read the rows of all sources, and refuse a participant or session that appears twice."""
    rows, files_of = [], {}
    for row in (row for source in sources for row in read_source(source, label_table)):
        if row["participant_id"]:
            sessions = files_of.setdefault(row["participant_id"], {})
            for session, file in sessions.items():
                if session == row["session_id"] or None in (session, row["session_id"]):
                    names = (" ".join(filter(None, (row["participant_id"], each))) for each in (session, row["session_id"]))
                    raise ValueError(
                        "{} in {} and {} in {} may be one scan. Give each scan once. A template of several sessions is no "
                        "scan".format(next(names), file, next(names), row["file"])
                    )
            sessions[row["session_id"]] = row["file"]
        rows.append(row)
    return rows


def main() -> int:
    arguments = parse()
    refuse_unwritable(arguments.output, arguments.sources)
    refuse_users_columns(arguments.output, COLUMNS)

    rows = read_all(arguments.sources, arguments.label_table)
    good, refused = [row for row in rows if not row["error"]], [row for row in rows if row["error"]]
    if not good:
        reasons = "\n".join(row["error"] for row in refused)
        raise ValueError(f"none of {len(refused)} rows can be used, and nothing was written:\n{reasons}")
    write_table(good, arguments.output)
    doubtful = sum(bool(row["flags"]) for row in good)
    tools = ", ".join(sorted({row["tool"] for row in good}))
    status = f"{arguments.output}: volumes of {count(good, 'scan')} by {tools}; {doubtful} with flags."
    print(status, file=sys.stderr if is_device(arguments.output) else sys.stdout)
    for row in refused:
        print("refused:", row["error"], file=sys.stderr)
    return 1 if refused else 0


if __name__ == "__main__":
    refusals.run(main)
