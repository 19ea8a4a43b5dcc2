"""Bring raw T1-weighted scans to the space that the brain models are trained in.

    python scripts/prepare_data.py BIDS_DIR OUT_DIR
    python scripts/prepare_data.py scan_a.nii.gz scan_b.nii.gz OUT_DIR --spacing_mm 2 --workers 4

Each scan is registered to the ICBM152 template (MNI152NLin2009aSym) with six degrees of freedom, so the head keeps its size. It
is resampled to a box of 160 x 224 x 160 mm, and its intensities are scaled to [0, 1]. OUT_DIR becomes a BIDS data set: images
in RAS order, `participants.tsv` without the subjects that failed, `failures.tsv` with the reasons, and `registration.tsv` with
a quality measure of each registration. Look at the scans that are called suspicious before you train. If you run the command
again, it skips the scans that are done, and prepares a scan again that was replaced since.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path

from command_line import Parser
from whole_numbers import at_least

PATTERN = "sub-*/**/anat/*_T1w.nii*"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("inputs", nargs="+", type=Path, help="a BIDS folder, or files (NIfTI, .mgz)")
    parser.add_argument("out_dir", type=Path, help="folder of the new data set")
    parser.add_argument("--spacing_mm", type=float, default=1.0, help="voxel size of the result (default: 1)")
    parser.add_argument("--n4", action="store_true", help="correct the bias field first")
    parser.add_argument(
        "--mask_suffix",
        default="",
        help="keep only the brain: X<mask_suffix> is the brain mask (from HD-BET, SynthStrip, ...) in the folder of each "
        "X.nii.gz, for instance _mask.nii.gz (default: keep the skull)",
    )
    parser.add_argument("--pattern", default=PATTERN, help="which files of a BIDS folder are scans (default: %(default)s)")
    parser.add_argument("--workers", type=at_least(1), default=1, help="parallel scans, about 1 GB of memory each (default: 1)")
    parser.add_argument("--quiet", action="store_true", help="do not list the scans that are done")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

import nibabel as nib
import numpy as np
import pandas as pd
from cohorts.row_matching import QUANTITIES

try:
    import SimpleITK as sitk
except ImportError:
    raise SystemExit("error: prepare_data.py needs SimpleITK. Install it: pip install SimpleITK") from None
from registration.rigid import LPS_TO_RAS, MEASURES, assess, register, to_sitk
from scipy.linalg import polar
from shared import mni_box, refusals
from shared.files import atomic, read_json, refuse_unwritable, sha256, write_json, write_text
from shared.image_files import IMAGES, NIFTI, find_files
from shared.nifti import open_image, read_grey_values, three_sides, write_nifti
from shared.participants import OTHER_TABLES, find_row, read_participants, refuse_given_once, session_of
from shared.problems import count, refuse
from shared.simulated import is_simulated

INTENSITY_PERCENTILE = 99.8
COARSEST_SPACING_MM = 3.0
NEW = "there is no image yet"
README = """T1-weighted scans in MNI space, rigidly registered by prepare_data.py. Each head keeps its own size.

The sidecar of each scan states its source, the registration and the intensity that became 1.
registration.tsv has a quality measure of each registration. failures.tsv says which scans failed, and why.
"""
TABLES = (".tsv", *OTHER_TABLES)


def read_scan(path: Path, is_mask: bool = False) -> sitk.Image:
    """Read a scan, or a brain mask, in RAS voxel order as float32, with its geometry."""
    image = open_image(path)
    shape = three_sides(image.shape)
    data = read_grey_values(path, is_mask)
    affine = image.affine @ nib.orientations.inv_ornt_aff(nib.io_orientation(image.affine), shape)
    spacing_mm = nib.affines.voxel_sizes(affine)
    if spacing_mm.min() < 0.1 or spacing_mm.max() > COARSEST_SPACING_MM:
        sides = " x ".join(f"{size:.2f}" for size in spacing_mm)
        raise ValueError(f"has voxels of {sides} mm; each side must be 0.1 to {COARSEST_SPACING_MM:g} mm long")
    directions, _ = polar(affine[:3, :3] / spacing_mm)
    if np.abs(directions - affine[:3, :3] / spacing_mm).max() > 0.01:
        raise ValueError("has an affine with shear; resample it to a rectangular grid first")
    low, high = np.percentile(data, (1, INTENSITY_PERCENTILE))
    if low < -0.1 * abs(high):
        raise ValueError(f"has a first percentile of {low:.4g}, so it is not a magnitude image; give intensities from 0")
    return to_sitk(data, spacing_mm, directions, affine[:3, 3])


def read_mask(path: Path, scan: sitk.Image) -> sitk.Image:
    """Read a brain mask on the grid of its scan, as float32 values 0 and 1. Probabilities from 0.5 count as brain."""
    try:
        mask = read_scan(path, is_mask=True)
        if not mask.IsSameImageGeometryAs(scan, 0.01, 0.01):
            raise ValueError("has another grid than the scan")
    except ValueError as error:
        raise ValueError(f"brain mask {path}: {error}") from error
    largest = sitk.GetArrayViewFromImage(mask).max()
    mask = sitk.Cast(mask > (0.5 if largest <= 1 else 0), sitk.sitkFloat32)  # probabilities, or labels and intensities
    mask.CopyInformation(scan)
    return mask


def box(spacing_mm: float) -> sitk.Image:
    """Return an empty image on the models' grid, in RAS voxel order."""
    origin_mm = mni_box.affine(spacing_mm, "RAS")[:3, 3]
    return to_sitk(np.zeros(mni_box.size(spacing_mm)), [spacing_mm] * 3, np.eye(3), origin_mm)


def correct_bias(scan: sitk.Image) -> sitk.Image:
    """Correct the bias field with N4 (Tustison et al. 2010), fitted at about 4 mm."""
    small = sitk.BinShrink(scan, [max(1, round(4 / size)) for size in scan.GetSpacing()])
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.Execute(sitk.Clamp(small, lowerBound=0.0), sitk.OtsuThreshold(small, 0, 1))
    return scan / sitk.Exp(n4.GetLogBiasFieldAsImage(scan))


def resample(image: sitk.Image, grid: sitk.Image, rigid: sitk.AffineTransform, interpolator) -> np.ndarray:
    """Resample an image to a grid, and return an array (X, Y, Z). Axes on which the grid is coarser are smoothed first."""
    for axis, (size, wanted) in enumerate(zip(image.GetSpacing(), grid.GetSpacing(), strict=True)):
        if wanted > 1.2 * size:  # full widths at half maximum add in squares
            image = sitk.RecursiveGaussian(image, float(np.sqrt(wanted**2 - size**2) / 2.355), direction=axis)
    return sitk.GetArrayFromImage(sitk.Resample(image, grid, rigid, interpolator, 0.0)).transpose(2, 1, 0)


def scale_intensities(volume: np.ndarray) -> tuple[np.ndarray, float]:
    """Scale a volume to [0, 1], and return the intensity that became 1 (the 99.8th percentile of the foreground)."""
    foreground = volume[volume > 0.1 * np.percentile(volume, 99)]
    if not foreground.size:
        raise ValueError("no part of the scan lies inside the box after registration")
    one = float(np.percentile(foreground, INTENSITY_PERCENTILE))
    return np.clip(volume / one, 0, 1), one


def prepare(scan_path: Path, subject: str, out_dir: Path, settings: dict) -> None:
    """Write `sub-X/anat/sub-X_T1w.nii.gz` and its sidecar. The sidecar comes last: it marks the subject as done."""
    image_path, sidecar_path = outputs(out_dir, subject)
    for path in (sidecar_path, image_path):  # a scan that fails now must not leave the image of an earlier one
        path.unlink(missing_ok=True)
    scan = read_scan(scan_path)
    mask = None
    if settings["mask_suffix"]:
        mask = read_mask(sources(scan_path, settings)[1], scan)
    if settings["n4"]:
        scan = correct_bias(scan)
    rigid, full_affine = register(scan * mask if mask else scan)
    grid = box(settings["spacing_mm"])
    volume = resample(scan, grid, rigid, sitk.sitkBSpline)
    if mask:
        volume = volume * (resample(mask, grid, rigid, sitk.sitkLinear) > 0.5)
    volume, one = scale_intensities(volume)

    mni_to_scan = np.eye(4)
    mni_to_scan[:3, :3] = np.reshape(rigid.GetMatrix(), (3, 3))
    mni_to_scan[:3, 3] = rigid.TransformPoint((0.0, 0.0, 0.0))
    sidecar = {
        "Description": "T1w scan, registered rigidly to MNI space",
        "Simulated": is_simulated(scan_path),
        "Sources": [path.name for path in sources(scan_path, settings)],
        "SourcesSHA256": [sha256(path) for path in sources(scan_path, settings)],
        "SpatialReference": "MNI152NLin2009aSym",
        "SkullStripped": bool(settings["mask_suffix"]),
        "IntensityOfOne": one,
        "IntensityPercentile": INTENSITY_PERCENTILE,
        "ScanToMniRasMm": np.linalg.inv(LPS_TO_RAS @ mni_to_scan @ LPS_TO_RAS).round(6).tolist(),
        "Registration": assess(scan, full_affine),
        "Settings": settings,
    }
    affine = mni_box.affine(settings["spacing_mm"], "RAS")
    image = nib.Nifti1Image(volume, affine)
    image.set_data_dtype(np.uint16)  # half the size of float32; nibabel stores the slope
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    image.header.set_xyzt_units("mm")
    write_nifti(image_path, image)
    write_json(sidecar_path, sidecar | {"ImageSHA256": sha256(image_path)})


def sources(scan_path: Path, settings: dict) -> list[Path]:
    """Return the files that a prepared image is made from: the scan and, if it is used, its brain mask."""
    mask = [scan_path.with_name(stem(scan_path) + settings["mask_suffix"])] if settings["mask_suffix"] else []
    return [scan_path, *mask]


def stem(path: Path) -> str:
    return re.sub(r"(\.nii(\.gz)?|\.mg[zh])$", "", path.name)


def outputs(out_dir: Path, subject: str) -> tuple[Path, Path]:
    path = out_dir / subject / "anat" / f"{subject}_T1w"
    return path.with_name(path.name + ".nii.gz"), path.with_name(path.name + ".json")


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


def reason_to_prepare(scan_path: Path, subject: str, out_dir: Path, settings: dict) -> str:
    """Return why a scan must be prepared, or "" if an earlier run made a complete image of it. Refuse other settings."""
    image_path, sidecar_path = outputs(out_dir, subject)
    if not (image_path.is_file() and sidecar_path.is_file()):
        return NEW
    try:
        before = read_json(sidecar_path)
        earlier, _, hashes, image_hash = (before[key] for key in ("Settings", "Registration", "SourcesSHA256", "ImageSHA256"))
    except ValueError as error:
        return str(error)
    except KeyError as error:
        return f"{sidecar_path} lacks the entry {error}"
    if earlier != settings:
        raise ValueError(f"{sidecar_path}: prepared with {earlier}, now {settings}; choose another OUT_DIR")
    if hashes != [sha256(path) for path in sources(scan_path, settings) if path.is_file()]:
        return f"{scan_path} or its mask has changed"
    return "" if sha256(image_path) == image_hash else f"{image_path} is damaged"


def prepare_all(
    inputs: list[Path],
    out_dir: Path,
    spacing_mm: float = 1.0,
    n4: bool = False,
    mask_suffix: str = "",
    pattern: str = PATTERN,
    workers: int = 1,
    quiet: bool = False,
) -> dict[str, str]:
    """Prepare every scan that is not done yet; `main` describes the arguments.

    Returns:
        A dict from the participant_id of each subject that failed to the reason.

    Raises:
        FileNotFoundError: no scans were found.
        ValueError: a setting is wrong, or it differs from the setting of an earlier run.
    """
    if len(inputs) == 1 and not inputs[0].exists():
        raise FileNotFoundError(f"{inputs[0]}: no such file or folder")
    if inputs[0].resolve() == out_dir.resolve():
        raise ValueError(f"{out_dir}: OUT_DIR must differ from the input")
    if out_dir.is_file() or out_dir.name.endswith(NIFTI):
        raise ValueError(f"{out_dir}: OUT_DIR, the last argument, must be a folder")
    if (out_dir / "participants.tsv").exists() and not (out_dir / "registration.tsv").exists():
        raise ValueError(f"{out_dir}: OUT_DIR holds another data set, whose tables would be lost. Name another folder")
    refuse_unwritable(out_dir / "registration.tsv")
    if mask_suffix in NIFTI or "/" in mask_suffix:
        raise ValueError(f"--mask_suffix {mask_suffix}: give the end of the names of the masks, such as _mask.nii.gz")
    box(spacing_mm)
    settings = {"spacing_mm": float(spacing_mm), "n4": n4, "mask_suffix": mask_suffix}
    scans, failures, table = find_scans(inputs, pattern)
    earlier = {path.parts[-3] for path in out_dir.glob("sub-*/anat/*_T1w.json")} - scans.keys() - failures.keys()
    if earlier:
        raise ValueError(
            f"{out_dir}: OUT_DIR holds {', '.join(sorted(earlier)[:5])} of an earlier call, which would lose their rows in "
            "participants.tsv. Give all scans in one call, name another OUT_DIR, or delete the folders of these subjects"
        )
    with ThreadPoolExecutor() as pool:
        found = pool.map(lambda subject: reason_to_prepare(scans[subject], subject, out_dir, settings), scans)
        waiting = {subject: reason for subject, reason in zip(scans, found, strict=True) if reason}
    print(f"{count(scans, 'scan')}, {len(scans) - len(waiting)} of them done already.", flush=True)
    for subject, reason in waiting.items():
        if reason != NEW:
            print(f"{subject}: prepared again, because {reason}", flush=True)

    with worker_pool(workers) as pool:
        jobs = {pool.submit(prepare, scans[name], name, out_dir, settings): name for name in waiting}
        try:
            for number, job in enumerate(as_completed(jobs), start=1):
                subject = jobs[job]
                # An error of any kind in one subject must not stop the others, except a full disk.
                if error := job.exception():
                    if isinstance(error, OSError):
                        raise error
                    kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
                    failures[subject] = kind + " ".join(str(error).split())
                if subject in failures or not quiet:
                    print(f"[{number}/{len(jobs)}] {subject}: {failures.get(subject, 'done')}", flush=True)
        except (KeyboardInterrupt, OSError):
            pool.shutdown(cancel_futures=True)
            raise

    write_tables(inputs[0], out_dir, table, failures)
    return failures


def worker_pool(workers: int) -> ThreadPoolExecutor | ProcessPoolExecutor:
    """Return a pool of one thread, or of processes that divide the cores. ITK's threads do not survive a fork, so it spawns."""
    if workers == 1:
        return ThreadPoolExecutor(1)
    threads = max(1, (os.cpu_count() or 1) // workers)
    set_threads = sitk.ProcessObject.SetGlobalDefaultNumberOfThreads
    return ProcessPoolExecutor(workers, get_context("spawn"), set_threads, (threads,))


def write_tables(source: Path, out_dir: Path, table: pd.DataFrame, failures: dict[str, str]) -> None:
    """Write the tables of the data set: participants, registrations and failures."""
    table = table[~table["participant_id"].isin(failures)]
    rows = []
    for subject in table["participant_id"]:
        rows.append({"participant_id": subject, **read_json(outputs(out_dir, subject)[1])["Registration"]})
    registrations = pd.DataFrame(rows, columns=["participant_id", *MEASURES])
    reasons = pd.DataFrame(sorted(failures.items()), columns=["participant_id", "reason"])
    for name, content in {"participants": table, "registration": registrations, "failures": reasons}.items():
        path = out_dir / f"{name}.tsv"
        if table.empty and content is not reasons:  # every scan failed, and a table without rows is no data set
            path.unlink(missing_ok=True)
        else:
            write_text(path, content.replace("", "n/a").to_csv(sep="\t", index=False))
    if (source / "participants.json").is_file():
        with atomic(out_dir / "participants.json") as file:
            file.write((source / "participants.json").read_bytes())
    description = {
        "Name": "T1-weighted scans in MNI space, rigidly registered",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "prepare_data.py"}],
        "Simulated": bool(rows) and all(is_simulated(outputs(out_dir, row["participant_id"])[0]) for row in rows),
    }
    write_json(out_dir / "dataset_description.json", description)
    write_text(out_dir / ".bidsignore", "registration.tsv\nfailures.tsv\n")
    write_text(out_dir / "README", README)

    suspicious = registrations[registrations["suspicious"] != ""]
    print(f"\n{len(table)} prepared, {len(suspicious)} suspicious, {len(reasons)} failed. {out_dir}")
    if len(suspicious):
        print(f"\nLook at these registrations before training:\n{suspicious.to_string(index=False)}")
    if len(reasons):
        print(f"\nFailed:\n{reasons.to_string(index=False)}")


def main(arguments: list[str] | None = None) -> int:
    options = vars(parse(arguments))
    return 1 if prepare_all(**options) else 0


if __name__ == "__main__":
    refusals.run(main)
