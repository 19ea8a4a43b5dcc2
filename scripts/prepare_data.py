"""Bring raw T1-weighted scans to the space that the brain models are trained in.

    python scripts/prepare_data.py BIDS_DIR OUT_DIR
    python scripts/prepare_data.py scan_a.nii.gz scan_b.nii.gz OUT_DIR --spacing_mm 2 --workers 4

Each scan is registered to the ICBM152 template (MNI152NLin2009aSym) with six degrees of freedom, so the head keeps its size. It
is resampled to a box of 160 x 224 x 160 mm, and its intensities are scaled to [0, 1]. OUT_DIR becomes a BIDS data set: images
in RAS order, `participants.tsv`, `registration.tsv` with measures of each registration, and `registration.png`, the contact
sheet: look at it before you train. Scans that failed or look suspicious are not in `participants.tsv`; `failures.tsv` gives the
reasons, and the exit status is 1. Suspicious scans lie in OUT_DIR/suspicious, and `--keep_suspicious` brings them back. If you
run the command again, it skips the scans that are done, and prepares a scan again that was replaced since. Each run writes
`participants.tsv` from the source, so correct values there. Columns and rows that you added, and that the source lacks, stay.
So does what `participants.json` says about them.
"""

from __future__ import annotations

import argparse
import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

from command_line import Parser
from whole_numbers import at_least

PATTERN = "sub-*/**/anat/*_T1w.nii*"
INTENSITIES = ("white_matter", "brightest")


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
    parser.add_argument(
        "--intensity",
        choices=INTENSITIES,
        default=INTENSITIES[0],
        help="white_matter: white matter has the value 0.8 in each scan (default). brightest: the 99.8th percentile of all "
        "that is not background becomes 1; use it for the weights published for UK Biobank",
    )
    parser.add_argument("--deface", action="store_true", help="set eyes, nose, mouth and cheeks to 0: no model learns the face")
    parser.add_argument("--keep_suspicious", action="store_true", help="use the scans that look suspicious, too")
    parser.add_argument("--pattern", default=PATTERN, help="which files of a BIDS folder are scans (default: %(default)s)")
    parser.add_argument("--workers", type=at_least(1), default=1, help="parallel scans, about 1 GB of memory each (default: 1)")
    parser.add_argument("--quiet", action="store_true", help="do not list the scans that are done")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

import nibabel as nib
import numpy as np
import pandas as pd

try:
    import SimpleITK as sitk
except ImportError:
    raise SystemExit("error: prepare_data.py needs SimpleITK. Install it: pip install SimpleITK") from None
from preparation import contact_sheet, defacing
from preparation.inputs import find_scans, sources
from preparation.intensities import correct_bias, intensity_of_one
from preparation.reading import read_mask, read_scan
from preparation.users_entries import DESCRIPTIONS, source_entries, with_users_entries
from registration.assessment import MEASURES, assess
from registration.rigid import register
from registration.template import ras_matrix, to_sitk
from shared import mni_box, refusals
from shared.files import read_json, refuse_unwritable, sha256, write_json, write_text
from shared.image_files import NIFTI
from shared.nifti import coarse, write_nifti
from shared.problems import count
from shared.simulated import is_simulated

NEW = "there is no image yet"
SUSPICIOUS = "suspicious"  # folder of OUT_DIR for the scans that are left out
README = """T1-weighted scans in MNI space, rigidly registered by prepare_data.py. Each head keeps its own size.

The sidecar of each scan states its source, the registration and the intensity that became 1.
registration.tsv has measures of each registration, and registration.png shows the scans. failures.tsv says which scans failed
or are suspicious, and why.
"""


def box(spacing_mm: float) -> sitk.Image:
    """Return an empty image on the models' grid, in RAS voxel order."""
    origin_mm = mni_box.affine(spacing_mm, "RAS")[:3, 3]
    return to_sitk(np.zeros(mni_box.size(spacing_mm)), [spacing_mm] * 3, np.eye(3), origin_mm)


def resample(image: sitk.Image, grid: sitk.Image, rigid: sitk.AffineTransform, interpolator) -> np.ndarray:
    """Resample an image to a grid, and return an array (X, Y, Z). Axes on which the grid is coarser are smoothed first."""
    for axis, (size, wanted) in enumerate(zip(image.GetSpacing(), grid.GetSpacing(), strict=True)):
        if wanted > 1.2 * size:  # full widths at half maximum add in squares
            image = sitk.RecursiveGaussian(image, float(np.sqrt(wanted**2 - size**2) / 2.355), direction=axis)
    return sitk.GetArrayFromImage(sitk.Resample(image, grid, rigid, interpolator, 0.0)).transpose(2, 1, 0)


def prepare(scan_path: Path, subject: str, out_dir: Path, settings: dict) -> None:
    """Write `sub-X/anat/sub-X_T1w.nii.gz` and its sidecar. The sidecar comes last: it marks the subject as done.

    A suspicious scan is written into its own folder, so that a run which is stopped leaves it out, too.
    """
    for path in reversed(outputs(out_dir, subject)):  # a scan that fails now must not leave the image of an earlier one
        path.unlink(missing_ok=True)
    scan = read_scan(scan_path)
    mask = None
    if settings["mask_suffix"]:
        mask = read_mask(sources(scan_path, settings)[1], scan)
    if settings["n4"]:
        scan = correct_bias(scan)
    rigid, full_affine = register(scan * mask if mask else scan)
    to_template = np.linalg.inv(ras_matrix(full_affine)) @ ras_matrix(rigid)
    grid, affine = box(settings["spacing_mm"]), mni_box.affine(settings["spacing_mm"], "RAS")
    volume = resample(scan, grid, rigid, sitk.sitkBSpline)
    if mask:
        volume = volume * (resample(mask, grid, rigid, sitk.sitkLinear) > 0.5)
    one = intensity_of_one(settings["intensity"], volume, scan, full_affine)
    volume = np.clip(volume / one, 0, 1)
    if settings["deface"]:
        volume = defacing.deface(volume, affine, to_template)

    measures = assess(scan, full_affine)
    image_path, sidecar_path = paths_in(out_dir / SUSPICIOUS if measures["suspicious"] else out_dir, subject)
    sidecar = {
        "Description": "T1w scan, registered rigidly to MNI space",
        "Simulated": is_simulated(scan_path),
        "Sources": [path.name for path in sources(scan_path, settings)],
        "SourcesSHA256": [sha256(path) for path in sources(scan_path, settings)],
        "SourceSpacingMm": [round(size, 3) for size in scan.GetSpacing()],
        "SpatialReference": "MNI152NLin2009aSym",
        "SkullStripped": bool(settings["mask_suffix"]),
        "Defaced": settings["deface"],
        "IntensityOfOne": one,
        "ScanToMniRasMm": np.linalg.inv(ras_matrix(rigid)).round(6).tolist(),
        "MniToTemplateRasMm": to_template.round(6).tolist(),
        "Registration": measures,
        "Settings": settings,
    }
    image = nib.Nifti1Image(volume, affine)
    image.set_data_dtype(np.uint16)  # half the size of float32; nibabel stores the slope
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    image.header.set_xyzt_units("mm")
    write_nifti(image_path, image)
    write_json(sidecar_path, sidecar | {"ImageSHA256": sha256(image_path)})


def paths_in(folder: Path, subject: str) -> tuple[Path, Path]:
    """Return the paths of image and sidecar of a subject in a data set."""
    return tuple(folder / subject / "anat" / f"{subject}_T1w{ending}" for ending in (".nii.gz", ".json"))


def outputs(out_dir: Path, subject: str) -> tuple[Path, Path]:
    """Return the paths of image and sidecar, in the folder of suspicious scans if they lie there."""
    aside = paths_in(out_dir / SUSPICIOUS, subject)
    return aside if aside[1].exists() else paths_in(out_dir, subject)


def place(out_dir: Path, subject: str, keep_suspicious: bool) -> str:
    """Move the files of a subject to where they belong, and return why they are left out, or ""."""
    paths = outputs(out_dir, subject)
    reason = "" if keep_suspicious else read_json(paths[1])["Registration"]["suspicious"]
    wanted = paths_in(out_dir / SUSPICIOUS if reason else out_dir, subject)
    if wanted != paths:
        wanted[0].parent.mkdir(parents=True, exist_ok=True)
        for path, new_path in zip(paths, wanted, strict=True):
            path.replace(new_path)
        with suppress(OSError):  # files of the user stay, and so do their folders
            os.removedirs(paths[0].parent)
    return reason


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
    intensity: str = INTENSITIES[0],
    deface: bool = False,
    keep_suspicious: bool = False,
) -> dict[str, str]:
    """Prepare every scan that is not done yet; `main` describes the arguments.

    Returns:
        A dict from the participant_id of each subject that failed or is suspicious to the reason. They have no row in
        participants.tsv.

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
    settings = {
        "spacing_mm": float(spacing_mm),
        "n4": n4,
        "mask_suffix": mask_suffix,
        "intensity": intensity,
        "deface": deface,
    }
    scans, failures, table = find_scans(inputs, pattern)
    descriptions = read_json(inputs[0] / DESCRIPTIONS) if (inputs[0] / DESCRIPTIONS).is_file() else {}
    of_source = source_entries(table, descriptions)
    table, descriptions = with_users_entries(table, descriptions, out_dir)
    sidecars = [path for folder in (out_dir, out_dir / SUSPICIOUS) for path in folder.glob("sub-*/anat/*_T1w.json")]
    earlier = {path.parts[-3] for path in sidecars} - scans.keys() - failures.keys()
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
                elif reason := place(out_dir, subject, keep_suspicious):
                    failures[subject] = f"suspicious: {reason}"
                if subject in failures or not quiet:
                    print(f"[{number}/{len(jobs)}] {subject}: {failures.get(subject, 'done')}", flush=True)
        except (KeyboardInterrupt, OSError):
            pool.shutdown(cancel_futures=True)
            raise

    prepared = [subject for subject in table["participant_id"] if outputs(out_dir, subject)[1].exists()]
    for subject in prepared:
        if reason := place(out_dir, subject, keep_suspicious):
            failures[subject] = f"suspicious: {reason}"
    write_tables(out_dir, table, prepared, failures, descriptions, of_source)
    return failures


def worker_pool(workers: int) -> ThreadPoolExecutor | ProcessPoolExecutor:
    """Return a pool of one thread, or of processes that divide the cores. ITK's threads do not survive a fork, so it spawns."""
    if workers == 1:
        return ThreadPoolExecutor(1)
    threads = max(1, (os.cpu_count() or 1) // workers)
    set_threads = sitk.ProcessObject.SetGlobalDefaultNumberOfThreads
    return ProcessPoolExecutor(workers, get_context("spawn"), set_threads, (threads,))


def write_tables(
    out_dir: Path,
    table: pd.DataFrame,
    prepared: list[str],
    left_out: dict[str, str],
    descriptions: dict[str, dict],
    of_source: dict,
) -> None:
    """Write the contact sheet and the tables of the data set: participants, registrations, and reasons of those left out."""
    sidecars = {subject: read_json(outputs(out_dir, subject)[1]) for subject in prepared}
    rows = [{"participant_id": subject, **sidecar["Registration"]} for subject, sidecar in sidecars.items()]
    tables = {
        "participants": table[~table["participant_id"].isin(left_out)],
        "registration": pd.DataFrame(rows, columns=["participant_id", *MEASURES]),
        "failures": pd.DataFrame(sorted(left_out.items()), columns=["participant_id", "reason"]),
    }
    for name, content in tables.items():
        path = out_dir / f"{name}.tsv"
        if content.empty and name != "failures":  # a table without rows is no data set
            path.unlink(missing_ok=True)
        else:
            write_text(path, content.replace("", "n/a").to_csv(sep="\t", index=False))
    if prepared:
        contact_sheet.draw(out_dir / "registration.png", {outputs(out_dir, name)[0]: sidecars[name] for name in prepared})
    if descriptions:
        write_json(out_dir / DESCRIPTIONS, descriptions)
    else:
        (out_dir / DESCRIPTIONS).unlink(missing_ok=True)
    description = {
        "Name": "T1-weighted scans in MNI space, rigidly registered",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "prepare_data.py"}],
        "Simulated": bool(prepared) and all(is_simulated(outputs(out_dir, subject)[0]) for subject in prepared),
        **of_source,
    }
    write_json(out_dir / "dataset_description.json", description)
    write_text(out_dir / ".bidsignore", f"registration.*\nfailures.tsv\n{SUSPICIOUS}\n")
    write_text(out_dir / "README", README)

    print(f"\n{len(tables['participants'])} in participants.tsv, {len(left_out)} left out. {out_dir}")
    if left_out:
        print("\nLeft out:", *(f"  {subject}: {reason}" for subject, reason in sorted(left_out.items())), sep="\n")
    if any(reason.startswith("suspicious") for reason in left_out.values()):
        print(f"Suspicious scans lie in {out_dir / SUSPICIOUS}. To use them all, run the command again with --keep_suspicious.")
    sides = {name: coarse(each["SourceSpacingMm"], each["Settings"]["spacing_mm"]) for name, each in sidecars.items()}
    if blurred := ", ".join(f"{name} ({side})" for name, side in sides.items() if side):
        print(f"These scans have much longer voxels than the result: {blurred}. Leave them out, or give a larger --spacing_mm.")
    if prepared:
        print(f"Look at {out_dir / 'registration.png'} before you train.")


def main(arguments: list[str] | None = None) -> int:
    options = vars(parse(arguments))
    return 1 if prepare_all(**options) else 0


if __name__ == "__main__":
    refusals.run(main)
