"""Make a BIDS cohort of simulated brain T1w MRI with known covariates and label maps, without any download.

    python scripts/make_demo_data.py DIR --subjects 120 --spacing_mm 4 --seed 0

Each head is the ICBM152 template (part of the nilearn package), warped to the subject's head size, ventricular volume and brain
volume. Age shows in further signs, see `simulation/ageing.py`. With `--labels MAPS`, heads are your own FreeSurfer or SynthSeg
label maps with simulated T1w contrast. There is one subject per map, and deformed copies if there are more subjects than maps.

With `--change ventricles_ml 30`, DIR holds two cohorts of the same heads, `original` and `changed`. In `changed`, one covariate
is larger by 30, or smaller by 30 if no head may be that large. All else that is drawn stays: anatomy, contrast, coil and noise.

The command is for demonstrations, tests and research, not for clinical use.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

from command_line import Parser
from ldm.data.volumes import TEMPLATE_ICV_ML
from whole_numbers import at_least

SPACINGS_MM = (1, 2, 4, 8)  # these divide the field of view, 160 x 224 x 160 mm
CHANGES = {
    "age": ("age_years", 1),
    "ventricles_ml": ("ventricles_ml", 1),
    "brain_normalised_ml": ("brain_fraction", TEMPLATE_ICV_ML),
}


def parse_arguments(arguments=None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of the cohort")
    parser.add_argument("--subjects", type=at_least(1), help="number of subjects (default 120, or one per label map)")
    parser.add_argument("--spacing_mm", type=int, default=4, choices=SPACINGS_MM, help="voxel size (default 4)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="the same seed gives the same subjects (default 0)")
    parser.add_argument(
        "--protocol",
        choices=("many", "one"),
        default="many",
        help="whether the scans differ as if from many scanners, or as within one study (default many)",
    )
    parser.add_argument("--workers", type=at_least(1), default=os.cpu_count(), help="processes (default one per core)")
    parser.add_argument("--labels", type=Path, metavar="MAPS", help="folder of FreeSurfer or SynthSeg maps, .nii.gz or .mgz")
    changed = "also make the same heads with another covariate; AMOUNT is in its unit"
    parser.add_argument("--change", nargs=2, metavar=("NAME", "AMOUNT"), help=f"{changed}. NAME: {', '.join(CHANGES)}")
    parser.add_argument("--fresh", action="store_true", help="replace a demo cohort with other settings in DIR")
    parser.add_quiet()
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse_arguments()  # answers --help and wrong options before the imports below, which take seconds

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from measurement.label_values import missing_structures
from shared import mni_box, refusals
from shared.files import read_json, refuse_unwritable, sha256, write_json, write_text
from shared.image_files import IMAGES, find_files
from shared.nifti import read_whole, write_nifti
from shared.problems import count, of_each
from shared.tables import NUMBER, read_table
from simulation import labelled_subject, subject
from simulation.atlas import load_atlas
from simulation.subject import Person, measure_ml
from tqdm import tqdm

VERSION = "1.3"
README = """{name}

No person was scanned. make_demo_data.py simulated every image. For demonstrations, tests and research, not for clinical use.

participants.tsv has the age and sex that were drawn, and the volumes that were counted in the label maps.
"""
TEMPLATE = {
    "Acknowledgements": "Made from the ICBM 152 2009a template, (C) McConnell Brain Imaging Centre, MNI",
    "License": "Terms of the ICBM 152 template: use, copy, modify and distribute without fee, with its copyright notice",
    "SourceDatasets": [{"URL": "https://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009"}],
}
ORIGINAL, CHANGED = "original", "changed"  # folders of the two cohorts of --change
SPLIT_BY_LAST_DIGIT = ["train"] * 7 + ["validation"] + ["test"] * 2
AGE_YEARS, VENTRICLES_ML, BRAIN_FRACTION, BRAIN_AND_VENTRICLES = (44, 82), (8, 150), (0.60, 0.86), 0.96


def describe_columns(volumes: dict[str, tuple]) -> dict:
    """Return the content of participants.json. `volumes` has the label values that each volume counts."""
    voxels = {name: f"voxels labelled {_ranges(values)} in the dseg times voxel volume" for name, values in volumes.items()}
    normalised = f"brain_ml * {TEMPLATE_ICV_ML:.0f} / icv_ml, where {TEMPLATE_ICV_ML:.0f} mL is the ICBM152 template's icv"
    return {
        "age": {"Description": "Age drawn for the subject", "Units": "years"},
        "sex": {"Description": "Sex drawn for the subject; affects head size", "Levels": {"F": "female", "M": "male"}},
        "ventricles_ml": {"Description": f"Lateral ventricles: {voxels['ventricles_ml']}", "Units": "mL"},
        "brain_ml": {"Description": f"Brain without ventricles: {voxels['brain_ml']}", "Units": "mL"},
        "icv_ml": {"Description": f"Intracranial volume inside the image: {voxels['icv_ml']}", "Units": "mL"},
        "brain_normalised_ml": {
            "Description": f"Brain volume normalised for head size, as in SIENAX and UK Biobank field 25009: {normalised}",
            "Units": "mL",
        },
        "split": {
            "Description": "Suggested use, by the last digit of the subject's number, or of its label map's number",
            "Levels": {"train": "training, 70 %", "validation": "choosing models, 10 %", "test": "results only, 20 %"},
        },
    }


def _ranges(values) -> str:
    """Format (2, 3, 4, 9) as '2-4, 9'."""
    starts = [value for value in sorted(values) if value - 1 not in values]
    ends = [value for value in sorted(values) if value + 1 not in values]
    return ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in zip(starts, ends, strict=True))


def draw_person(rng: np.random.Generator) -> Person:
    """Draw the covariates of a subject.

    Volumes have a wide spread: ventricles are log-uniform over 8 to 150 mL, and brain / ICV is uniform over 0.60 to 0.86. Both
    are independent, so that a model can learn each of them. Age and sex depend on both volumes, in the same directions as in
    real people.
    """
    ventricle_rank, brain_rank = rng.random(2)
    tendency = ventricle_rank - brain_rank  # -1 looks youngest, 1 looks oldest
    age_years = np.clip(63.6 + 7.5 * (1.2 * tendency + 0.87 * rng.normal()), *AGE_YEARS)
    sex = "M" if rng.random() < 0.47 + 0.25 * tendency else "F"
    icv_ml = np.clip(rng.normal(*((1469, 102) if sex == "M" else (1289, 111))), 1000, 1800)
    ventricles_ml = np.exp(np.log(8) + ventricle_rank * np.log(150 / 8))
    fraction = min(0.60 + 0.26 * brain_rank, BRAIN_AND_VENTRICLES - ventricles_ml / icv_ml)  # leave 4 % for the other CSF
    return Person(round(float(age_years), 1), sex, float(icv_ml), float(fraction), float(ventricles_ml))


def change(person: Person, name: str, amount: float) -> Person:
    """Add `amount` to a covariate of a person, or subtract it if the sum is larger than `draw_person` allows."""
    attribute, per_unit = CHANGES[name]
    for step in (amount / per_unit, -amount / per_unit):
        other = replace(person, **{attribute: getattr(person, attribute) + step})
        drawn = (other.age_years, AGE_YEARS), (other.ventricles_ml, VENTRICLES_ML), (other.brain_fraction, BRAIN_FRACTION)
        if other.brain_fraction + other.ventricles_ml / other.icv_ml <= BRAIN_AND_VENTRICLES:
            if all(low <= value <= high for value, (low, high) in drawn):
                return other
    raise ValueError(f"--change {name} {amount:g} takes some heads out of the range that is simulated. Give a smaller change.")


def person_of(number: int, settings: dict) -> Person:
    """Draw the covariates of a subject, with the change that the settings name."""
    person = draw_person(np.random.default_rng(np.random.SeedSequence([settings["seed"], number]).spawn(2)[0]))
    for name, amount in settings.get("changed", {}).items():
        person = change(person, name, amount)
    return person


def participant_id(number: int) -> str:
    return f"sub-{number:04d}"


def subject_files(folder: Path, number: int) -> tuple[Path, Path, Path]:
    """Return the paths of a subject's T1w, dseg and sidecar."""
    name = participant_id(number)
    image = folder / name / "anat" / f"{name}_T1w.nii.gz"
    dseg = folder / "derivatives" / "labels" / name / "anat" / f"{name}_dseg.nii.gz"
    return image, dseg, image.with_name(f"{name}_T1w.json")


def source_of(number: int, maps: list[Path]) -> dict[str, str]:
    """Return the entries of a sidecar that identify the subject's label map, if there are maps."""
    if not maps:
        return {}
    path = maps[(number - 1) % len(maps)]
    return {"LabelMap": path.name, "LabelMapSHA256": sha256(path)}


def made_before(folder: Path) -> dict[int, dict]:
    """Return the sidecar of each simulated subject by its number. Participants that were added are left out."""
    sidecars = {path: read_json(path) for path in find_files(folder, "sub-*/anat/*_T1w.json", (".json",))}
    return {int(path.name.split("_")[0][4:]): sidecar for path, sidecar in sidecars.items() if "DemoSettings" in sidecar}


def is_made(folder: Path, number: int, maps: list[Path]) -> bool:
    """Return whether an earlier run made complete files of a subject, from the same label map."""
    image, dseg, sidecar = subject_files(folder, number)
    try:
        content = read_json(sidecar)
        read_whole(image)
        read_whole(dseg)
    except (FileNotFoundError, ValueError):
        return False
    return "Participant" in content and source_of(number, maps).items() <= content.items()


def write_subject(folder: Path, number: int, settings: dict, maps: list[Path]) -> None:
    """Write the dseg and the T1w of a subject. The sidecar comes last: it marks the subject as complete."""
    spacing_mm, seed, protocol = settings["spacing_mm"], settings["seed"], settings["protocol"]
    image_seed = int(np.random.SeedSequence([seed, number]).spawn(2)[1].generate_state(1)[0])
    if maps:
        path = maps[(number - 1) % len(maps)]
        row = {"age": None, "sex": None}
        image, labels = labelled_subject.make_subject(path, spacing_mm, image_seed, number > len(maps), protocol)
        volumes = measure_ml(labels, spacing_mm, labelled_subject.VOLUMES)
    else:
        person = person_of(number, settings)
        row = {"age": person.age_years, "sex": person.sex}
        image, labels = subject.make_subject(person, _atlas(spacing_mm), image_seed, protocol)
        volumes = measure_ml(labels, spacing_mm, subject.VOLUMES)
    row |= volumes | {"brain_normalised_ml": volumes["brain_ml"] * TEMPLATE_ICV_ML / volumes["icv_ml"]}

    affine = mni_box.affine(spacing_mm, "RAS")
    image_file, dseg_file, sidecar_file = subject_files(folder, number)
    sidecar_file.unlink(missing_ok=True)  # an interrupted run must not leave the old sidecar with a new image
    save_image(labels, affine, dseg_file, labels.dtype)
    save_image(image, affine, image_file, np.uint8)
    sidecar = {
        "Synthetic": True,
        "Simulated": True,
        "Description": "Simulated T1w MRI, not a scan of a person. Not for clinical use.",
        "Modality": "MR",
        "Units": "arbitrary, the brain's 99.8th percentile is 1",
        "DemoSettings": settings,
        **source_of(number, maps),
        "Participant": {key: round(value, 3) if isinstance(value, float) else value for key, value in row.items()},
    }
    write_json(sidecar_file, sidecar)


@lru_cache(maxsize=1)
def _atlas(spacing_mm):
    torch.set_num_threads(1)  # one thread per process, so that sums do not depend on the number of threads
    return load_atlas(spacing_mm)


def save_image(values: np.ndarray, affine: np.ndarray, path: Path, stored_type) -> None:
    """Write NIfTI with sform and qform in MNI space. Floats that are stored as integers get a scale factor."""
    image = nib.Nifti1Image(values, affine)
    image.set_data_dtype(stored_type)
    image.header.set_xyzt_units("mm", "sec")
    image.set_sform(affine, code="mni")
    image.set_qform(affine, code="mni")
    write_nifti(path, image)


def prepare_folder(folder: Path, settings: dict, label_names: dict[int, str], fresh: bool) -> list[dict]:
    """Write the descriptions of the data set, and refuse a folder that holds anything but this cohort.

    Returns:
        The rows of an earlier participants.tsv, of other subjects only if `fresh` removes the simulated ones.
    """
    found = settings_before(folder, settings, fresh)
    rows = rows_before(folder)
    if found and fresh:
        made = {participant_id(number) for number in made_before(folder)}
        rows = [row for row in rows if row["participant_id"] not in made]
        for number in made_before(folder):
            for path in subject_files(folder, number):  # other files stay, and so do their folders
                path.unlink(missing_ok=True)
                for parent in (path.parent, path.parents[1]):
                    if parent.is_dir() and not any(parent.iterdir()):
                        parent.rmdir()
        (folder / "participants.tsv").unlink(missing_ok=True)

    common = {"BIDSVersion": "1.9.0", "Simulated": True, "DemoSettings": settings}
    if "covariates" in settings:
        common |= TEMPLATE
    common["GeneratedBy"] = [{"Name": "make_demo_data.py", "Version": VERSION}]
    label_folder = folder / "derivatives" / "labels"
    for place, name, kind in (
        (folder, "Simulated brain T1w MRI (not real subjects)", "raw"),
        (label_folder, "Label maps of the simulated subjects", "derivative"),
    ):
        write_json(place / "dataset_description.json", {"Name": name, "DatasetType": kind} | common)
        write_text(place / "README", README.format(name=name))
    text = "Label map that the T1w of this subject was simulated from. dseg.tsv names its values."
    write_json(label_folder / "dseg.json", {"Description": text, "SpatialReference": "MNI152, the grid of the simulated T1w"})
    write_text(label_folder / "dseg.tsv", "index\tname\n" + "".join(f"{v}\t{name}\n" for v, name in label_names.items()))
    return rows


def settings_before(folder: Path, settings: dict, fresh: bool) -> dict | None:
    """Return the settings of the cohort in a folder, None for an empty one. Refuse other settings unless it is made `fresh`."""
    description_path = folder / "dataset_description.json"
    refuse_unwritable(description_path)
    if not (folder.exists() and any(folder.iterdir())):
        return None
    if (folder / CHANGED).is_dir():
        raise ValueError(f"{folder} holds pairs of --change {ORIGINAL} and {CHANGED}. Name another folder.")
    try:
        found = read_json(description_path)["DemoSettings"]
    except (FileNotFoundError, KeyError, ValueError):
        raise ValueError(f"{folder} is not empty and was not made by make_demo_data.py. Name an empty folder.") from None
    if found != settings and not fresh:
        differing = [key for key in settings if found.get(key) != settings[key]]
        changes = ", ".join(f"{key} {found.get(key)!r} instead of {settings[key]!r}" for key in differing)
        raise ValueError(f"{folder} holds a demo cohort made with {changes}. Name another folder, or add --fresh.")
    return found


def rows_before(folder: Path) -> list[dict]:
    """Read the rows of participants.tsv, to which rows and columns may have been added by hand."""
    path = folder / "participants.tsv"
    rows = read_table(path, ["participant_id"]) if path.is_file() else []
    if rows and "participant_id" not in rows[0]:
        raise ValueError(f"{path}: no column 'participant_id'. It would be replaced: mend it, or move it away")
    return rows


def write_participants(folder: Path, volumes: dict[str, tuple], before: Sequence[dict] = ()) -> pd.DataFrame:
    """Write participants.tsv and .json from the sidecars of all complete subjects.

    Columns that only the rows `before` have are kept, and so are their rows of other participants who have a folder.

    Returns:
        The rows of the simulated subjects, without these columns.
    """
    rows = []
    for number, sidecar in made_before(folder).items():
        of_split = number - 1
        if "LabelMap" in sidecar:  # all heads of one map have one anatomy, so they belong to one split
            of_split = sidecar["DemoSettings"]["labels"].index(sidecar["LabelMap"])
        row = {"participant_id": participant_id(number), **sidecar["Participant"]}
        rows.append(row | {"split": SPLIT_BY_LAST_DIGIT[of_split % 10]})
    table = pd.DataFrame(rows)
    known, columns = {row["participant_id"]: row for row in before}, describe_columns(volumes)
    own = [known.pop(row["participant_id"], {}) | row for row in rows]
    others = [row for name, row in known.items() if (folder / name).is_dir()]
    whole = pd.DataFrame(own + others)
    whole = whole[[*table.columns, *whole.columns.difference(table.columns, sort=False)]]
    description = folder / "participants.json"
    write_json(description, (read_json(description) if description.is_file() else {}) | columns)
    write_text(folder / "participants.tsv", whole.to_csv(sep="\t", index=False, na_rep="n/a"))
    return table


def make_cohort(
    folder: Path, subjects: int, settings: dict, maps: list[Path] = (), workers: int = 1, fresh: bool = False
) -> pd.DataFrame:
    """Make subjects 1 to `subjects` from label maps or, without maps, from the template. Complete subjects stay.

    Returns:
        The rows of the simulated subjects in participants.tsv.

    Raises:
        ValueError: a label map cannot be used, or the folder holds something else.
    """
    check = labelled_subject.read_label_map  # bad maps are refused before work starts
    found = of_each(lambda path: np.unique(check(path)[0]), maps, f"of {len(maps)} label maps cannot be used:")
    for path, values in zip(maps, found, strict=True):
        if missing := missing_structures(set(values.tolist())):
            names = ", ".join(missing)
            print(f"{path}: no {names} in it, so its heads have none. Is the map cut, or of the cerebrum?", file=sys.stderr)
    anatomy = labelled_subject if maps else subject
    before = prepare_folder(folder, settings, anatomy.LABELS, fresh)
    missing = [number for number in range(1, subjects + 1) if not is_made(folder, number, maps)]
    if missing and not maps:
        load_atlas(settings["spacing_mm"])  # builds it once, before the workers ask for it
    write = partial(write_subject, folder, settings=settings, maps=maps)
    pool = ThreadPoolExecutor(1) if workers == 1 else ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    with pool, tqdm(total=subjects, initial=subjects - len(missing), unit="subject") as progress:
        try:
            for job in as_completed([pool.submit(write, number) for number in missing]):
                job.result()
                progress.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)  # without this, the pool would make the other subjects first
            raise
    return write_participants(folder, anatomy.VOLUMES, before)


def read_change(name: str, amount: str) -> float:
    if name not in CHANGES:
        raise ValueError(f"--change takes {', '.join(CHANGES)}, got {name!r}")
    if not NUMBER.fullmatch(amount) or not float(amount) > 0:
        raise ValueError(f"--change {name} needs a number above 0, got {amount!r}")
    return float(amount)


def main(arguments=None) -> None:
    options = parse_arguments(arguments)
    if options.change:
        options.change = options.change[0], read_change(*options.change)
    settings = {"version": VERSION, "seed": options.seed, "spacing_mm": options.spacing_mm, "protocol": options.protocol}
    maps = find_files(options.labels, "*", IMAGES) if options.labels and options.labels.is_dir() else []
    if maps:
        settings["labels"] = [path.name for path in maps]  # in the order in which they are used
    elif options.labels:
        raise ValueError(f"no *.nii.gz or *.mgz in {options.labels}. --labels takes a folder of label maps.")
    else:
        settings["covariates"] = "wide"  # as `draw_person` draws them; cohorts made earlier have this entry, too
    subjects = options.subjects or len(maps) or 120
    cohorts = {options.folder: settings}
    if options.change:
        if maps:
            raise ValueError("--change and --labels cannot be combined: a label map fixes the anatomy. Leave one out.")
        changed = settings | {"changed": dict([options.change])}
        cohorts = {options.folder / ORIGINAL: settings, options.folder / CHANGED: changed}
        for number in range(1, subjects + 1):  # a change that is too large is refused before work starts
            person_of(number, changed)
    for folder, own in cohorts.items():
        settings_before(folder, own, options.fresh)  # both before either is made
    for folder, own in cohorts.items():
        table = make_cohort(folder, subjects, own, maps, options.workers, options.fresh)
        low, high = table["ventricles_ml"].min(), table["ventricles_ml"].max()
        print(f"{count(table, 'simulated subject')} in {folder}: lateral ventricles {low:.1f} to {high:.1f} mL")


if __name__ == "__main__":
    refusals.run(main)
