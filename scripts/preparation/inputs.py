"""Find the scan of each participant, and the reasons why others have none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from cohorts.row_matching import QUANTITIES
from shared.image_files import IMAGES, find_files
from shared.participants import OTHER_TABLES, find_row, read_participants, refuse_given_once, session_of
from shared.problems import refuse

TABLES = (".tsv", *OTHER_TABLES)


def find_scans(inputs: list[Path], pattern: str) -> tuple[dict[str, Path], dict[str, str], pd.DataFrame]:
    """Return the scan of each subject, the reasons why other subjects fail, and the table of participants as text."""
    scans: dict[str, list[Path]] = {}
    table, failures = None, {}
    if len(inputs) == 1 and inputs[0].is_dir():
        for path in find_files(inputs[0], pattern, IMAGES):
            scans.setdefault(subject_of(path, path.relative_to(inputs[0]).parts[0]), []).append(path)
        if (inputs[0] / "participants.tsv").is_file():
            table, failures = _participants(inputs[0], scans)
        elif others := [path for path in sorted(inputs[0].glob("[Pp]articipants.*")) if path.suffix.lower() in TABLES]:
            raise ValueError(f"{others[0]}: would be ignored. Save it as participants.tsv, cells separated by tabs")
    else:
        for path in inputs:
            if path.is_dir():
                raise ValueError(f"{path}: give one BIDS folder, or only files")
            of_freesurfer = path.absolute().parent.name == "mri"  # SUBJECT/mri/T1.mgz
            scans.setdefault(subject_of(path, path.absolute().parents[1].name if of_freesurfer else path.name), []).append(path)
    if not scans:
        raise FileNotFoundError(f"{inputs[0]}: no file matches {pattern}; is it a BIDS folder? See --pattern")

    if table is None:
        folders = inputs[0].glob("sub-*/") if len(inputs) == 1 else []
        table = pd.DataFrame({"participant_id": sorted({*scans, *(folder.name for folder in folders)})})
    listed = set(table["participant_id"])
    failures |= {subject: "no row in participants.tsv" for subject in scans.keys() - listed}
    failures |= {subject: f"no file matches {pattern}" for subject in listed - scans.keys()}
    for subject, paths in scans.items():
        if len(paths) > 1:
            differ = len({path.name for path in paths}) == len(paths)
            names = ", ".join(path.name if differ else str(path) for path in paths)
            choose = "choose one with --pattern" if inputs[0].is_dir() else "name one of them"
            failures[subject] = f"{len(paths)} scans ({names}); {choose}"
        elif inputs[0].is_dir() and (folder := _named_otherwise(paths[0], inputs[0])):
            failures[subject] = f"{paths[0]}: the file's name is another participant's. It should begin with {folder}_"
        elif not paths[0].is_file():
            failures[subject] = f"{paths[0]} is missing"
    return {subject: paths[0] for subject, paths in scans.items() if subject not in failures}, failures, table


def subject_of(path: Path, name: str) -> str:
    """Return the participant "sub-X" from the name of a scan's file, or of its folder. Other names lose what BIDS forbids."""
    if found := re.match(r"sub-[a-zA-Z0-9+]+(?=$|_.*\.nii)", name):
        return found[0]
    label = re.sub(r"[^a-zA-Z0-9]", "", re.sub(r"^sub-|(_T1w)?(\.nii(\.gz)?|\.mg[zh])?$", "", name))
    if not label:
        raise ValueError(f"{path}: its participant cannot be named after {name!r}. Rename it to sub- and letters a-z or digits")
    return f"sub-{label}"


def _named_otherwise(path: Path, root: Path) -> str:
    """Return the first folder below `root` of a file that has the name of another participant, or ""."""
    folder = path.relative_to(root).parts[0]
    other = path.name.startswith("sub-") and not re.match(rf"{re.escape(folder)}(?![a-zA-Z0-9+])", path.name)
    return folder if other else ""


def _participants(folder: Path, scans: Mapping[str, Sequence[Path]]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Read the table of participants with the values of the scans' sessions, and why the values of some are not known."""
    header, rows, problems = read_participants(folder / "participants.tsv", None)
    refuse(problems)
    failures, cells = {}, []
    for subject, sessions in rows.items():
        row = next(iter(sessions.values()))
        try:
            paths = scans.get(subject, ())
            session = session_of(paths[0].relative_to(folder)) if len(paths) == 1 else None
            if session or len(paths) == 1 and len(sessions) > 1:
                row = find_row(rows, subject, session)
            if session:
                all_sessions = dict.fromkeys([session, *(path.name for path in (folder / subject).glob("ses-*"))], row)
                refuse_given_once(subject, all_sessions, QUANTITIES)
        except ValueError as error:
            failures[subject] = str(error)
        cells.append({**row.cells, "participant_id": subject})
    columns = [name for name in header if name != "session_id"]
    return pd.DataFrame(cells, columns=columns).fillna(""), failures


def sources(scan_path: Path, settings: dict) -> list[Path]:
    """Return the files that a prepared image is made from: the scan and, if it is used, its brain mask."""
    mask = [scan_path.with_name(stem(scan_path) + settings["mask_suffix"])] if settings["mask_suffix"] else []
    return [scan_path, *mask]


def stem(path: Path) -> str:
    return re.sub(r"(\.nii(\.gz)?|\.mg[zh])$", "", path.name)
