"""Find the images of a data set. Every command that looks for scans or label maps in a folder uses `find_files`."""

from __future__ import annotations

import os
import re
import warnings
from collections import defaultdict
from collections.abc import Container, Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from .problems import refuse

NIFTI = (".nii", ".nii.gz")
IMAGES = (*NIFTI, ".mgz", ".mgh")  # and FreeSurfer's
ENDING = re.compile(r"\.(nii|nii\.gz|mgz|mgh)$", re.IGNORECASE)
NO_MAGNITUDE = re.compile(r"_part-(phase|real|imag)_")
VERSION = re.compile(r"_(space|res|desc|rec)-[A-Za-z0-9]+")  # parts of names that tell versions of one scan apart
NO_SCANS = ("derivatives", "sourcedata", "code")  # folders of BIDS that hold no scans of the data set itself


def find_files(
    folder: str | Path, pattern: str, endings: tuple[str, ...] = NIFTI, skipped: Container[str] = NO_SCANS
) -> list[Path]:
    """Find the images below a folder. Links are followed. Hidden files and folders are ignored, such as `._sub-01_T1w.nii.gz`.

    Phase, real and imaginary parts of scans (`part-phase`, `part-real`, `part-imag` in BIDS) are left out with a warning.

    Args:
        folder: BIDS data set, derivative or any other folder.
        pattern: path inside the folder, such as "sub-*/**/*_T1w.nii*"; `**/` stands for any number of folders.
        endings: endings of the files. Other files are ignored, such as `sub-01_T1w.nii.gz.md5`.
        skipped: names of folders to leave out.

    Returns:
        sorted paths that begin with `folder`. A link to a missing file is among them, so that its reader refuses it by name.

    Raises:
        OSError: a folder cannot be read, or the link of a participant or session leads nowhere.
        ValueError: one image exists with two endings, two names differ only in case, or a name differs from the pattern in
            case only.
    """
    folder = Path(folder)
    names = (*pattern.split("/"), *(["*"] if pattern.endswith("**") else []))
    found = [Path(path) for path in _files(os.fspath(folder), [names], skipped) if path.endswith(endings)]
    refuse_twice(found, folder)
    if parts := [path for path in found if NO_MAGNITUDE.search(path.name)]:
        warnings.warn(f"{len(parts)} images, such as {min(parts)}, are left out: they show no magnitude", stacklevel=2)
        found = [path for path in found if path not in parts]
    return sorted(found, key=lambda path: path.parts)


def find_t1w(folder: str | Path) -> list[Path]:
    """Find the T1w of a BIDS data set or, if there are none, all `*_T1w.nii[.gz]` below a folder, or all NIfTI files in it."""
    for pattern in ("sub-*/**/*_T1w.nii*", "**/*_T1w.nii*", "*.nii*"):
        if found := find_files(folder, pattern):
            return found
    raise FileNotFoundError(f"{folder}: no *_T1w.nii.gz below it and no *.nii.gz in it")


def find_in_anat(folder: str | Path, suffix: str) -> list[Path]:
    """Find the images `sub-X/[ses-Y/]anat/sub-*_T1w.nii[.gz]` (or .mgz) of a BIDS data set, with T1w or another suffix.

    Other images with this suffix in the folders of participants are left out with a warning. Several versions of one T1w, such
    as whole and without skull (`desc-preproc`, `desc-brain`), get a warning.
    """
    found = find_files(folder, f"sub-*/**/*_{suffix}.*", IMAGES)
    place = re.compile(r"sub-[^/]+/(ses-[^/]+/)?anat/sub-[^/]+")
    kept = [path for path in found if place.fullmatch(path.relative_to(folder).as_posix())]
    if others := sorted(set(found) - set(kept)):
        warnings.warn(
            f"{len(others)} images in {folder}, such as {others[0].relative_to(folder)}, are left out, because their place or "
            f"name is not sub-X/[ses-Y/]anat/sub-X_*_{suffix}.nii[.gz]",
            stacklevel=2,
        )
    versions = defaultdict(list)
    for path in kept if suffix == "T1w" else ():
        versions[VERSION.sub("", os.fspath(path))].append(path)
    if several := [those for those in versions.values() if len(those) > 1]:
        names = " and ".join(path.name for path in several[0][:2])
        warnings.warn(
            f"{len(several)} scans in {folder} occur in several versions, such as {names}, "
            f"which count as several scans. Remove all but one version",
            stacklevel=2,
        )
    return kept


def refuse_twice(paths: Iterable[Path], folder: Path) -> None:
    """Refuse an image with two endings, and names that differ only in case, because many disks cannot hold both."""
    first, problems, seen = {}, {}, set()
    start = len(os.fspath(folder / "x")) - 1
    for path in sorted(map(os.fspath, paths)):  # text, because 100,000 paths take seconds so, and minutes as `Path`
        own = path[start:]
        key = ENDING.sub("", own).lower()
        while own not in seen:
            seen.add(own)
            if (other := first.setdefault(key, own)) != own:
                problems[key] = f"{folder / other} and {folder / own} differ only in ending or case. Keep one, or rename it"
            own = os.path.dirname(own)
            key = own.lower()
    above = {key: set(map(str, Path(key).parents)) for key in problems}
    refuse([problem for key, problem in problems.items() if not problems.keys() & above[key]])


def packed(path: str | Path) -> str:
    """Return the path of an image with the ending .nii.gz: an image that was unpacked or converted is the same image."""
    return ENDING.sub(".nii.gz", os.fspath(path))


def _files(
    folder: str, patterns: Iterable[tuple[str, ...]], skipped: Container[str], above: tuple[str, ...] = ()
) -> Iterator[str]:
    """Yield the files below a folder that match a pattern, split at "/". A link to a folder `above` is not followed."""
    for entry in _entries(folder):
        if entry.name in skipped:
            continue
        is_folder, found, deeper_patterns = entry.is_dir(), False, set()
        for pattern in patterns:
            any_depth = pattern[0] == "**"
            name, *deeper = pattern[any_depth:]
            matches = fnmatchcase(entry.name, name)
            if not matches and fnmatchcase(entry.name.lower(), name.lower()):
                raise ValueError(
                    f"{entry.path}: differs from the name {name} in case only. Rename it, so that it is not overlooked"
                )
            found = found or matches and not (is_folder or deeper)
            deeper_patterns |= {pattern} if any_depth else set()
            deeper_patterns |= {tuple(deeper)} if matches and deeper else set()
        if found:
            yield entry.path
        if is_folder and deeper_patterns:
            here = (*above, folder)
            if not (entry.is_symlink() and any(os.path.samefile(entry.path, one) for one in here)):
                yield from _files(entry.path, deeper_patterns, skipped, here)


def _entries(folder: str) -> list[os.DirEntry]:
    """Return the sorted content of a folder without hidden files."""
    try:
        with os.scandir(folder) as content:
            entries = sorted((entry for entry in content if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{folder}: no such folder") from error
    except OSError as error:
        raise type(error)(
            f"{folder}: this folder cannot be read ({error.strerror}). Give access to it, or remove it"
        ) from error
    for entry in entries:
        if entry.is_symlink() and re.fullmatch(r"(sub|ses)-[^.]*|anat", entry.name) and not os.path.exists(entry.path):
            target = os.readlink(entry.path)
            raise FileNotFoundError(f"{entry.path}: this is a link to {target}, which does not exist. Mend or remove the link")
    return entries
