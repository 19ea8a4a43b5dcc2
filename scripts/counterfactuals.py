"""Edit simulated heads whose true counterfactuals are known, and compare the edits with the truth.

    python scripts/make_demo_data.py PAIRS --subjects 20 --seed 905 --change ventricles_ml 30
    python scripts/counterfactuals.py PAIRS OUT

Each head is edited by both methods of the run id `editing`, "noise" and "inversion". The command prints what Monteiro et al.
2023 define, as means over the heads, beside those of the unchanged head and of the autoencoder alone:

    composition     difference to the head after an edit that changes no covariate
    reversibility   difference to the head after an edit and the edit back
    outside         difference of the edit to the true counterfactual outside of the structures that change
    inside          the same inside of these structures
    effectiveness   absolute difference of measured and requested covariates

With a model of label maps, label maps are edited, differences are shares of voxels, and volumes are counted. Edits that exist
are not made again. Age is measured by the regressor of the bundle: run `predicting` with --predict_dir PAIRS and OUT, then this
command again with --ages. Give PAIRS another seed than the training data. The command is for research, not for clinical use.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from command_line import Parser
from whole_numbers import at_least

MOST_GUIDANCE = 1000  # chosen: far beyond any use


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("pairs", type=Path, metavar="PAIRS", help="folder that make_demo_data.py --change wrote")
    add("out", type=Path, metavar="OUT", help="folder of the edits and of counterfactuals.json and .tsv")
    add("--models_dir", type=Path, help="folder of model.pt and autoencoder.pt (default: the shipped weights of 4 mm)")
    read = "tables of the regressor (run id predicting) for PAIRS and OUT; without them, age is not measured"
    add("--ages", type=Path, nargs="+", default=[], metavar="TABLE_TSV", help=read)
    add("--strength", type=float, default=0.6, help="strength of the method noise (default 0.6)")
    add("--inversion_strength", type=float, default=1.0, help="strength of the method inversion (default 1)")
    add("--steps", type=at_least(2, 1000), default=50, help="steps of the method inversion (default 50)")
    add("--guidance_scale", type=float, default=1.0, help="guidance of both methods (default 1)")
    add("--seed", type=at_least(0), default=0, help="seed of the method noise (default 0)")
    add("--use_device", default="auto", help="auto (a GPU if there is one; the default), cpu, cuda or cuda:1")
    parser.add_quiet()
    options = parser.parse_args(arguments)
    for name, most in {"strength": 1, "inversion_strength": 1, "guidance_scale": MOST_GUIDANCE}.items():
        if not 0 <= (value := getattr(options, name)) <= most:
            parser.error(f"--{name} must be a number from 0 to {most:g}, got {value:g}")
    options.out = options.out.absolute()  # because the bundle runs in its own folder
    if options.models_dir is not None:
        options.models_dir = options.models_dir.absolute()
    return options


if __name__ == "__main__":
    parse_arguments()  # answers --help and wrong options before the imports below, which take seconds

import nibabel as nib
import numpy as np
import pandas as pd
from ldm.data.volumes import TEMPLATE_ICV_ML
from make_demo_data import CHANGED, ORIGINAL, participant_id, subject_files
from measure_volumes import measure
from scipy import stats
from shared import refusals
from shared.device import choose
from shared.files import atomic, read_json, refuse_unwritable, write_json
from shared.intervals import with_interval
from shared.label_table import LabelTable
from shared.nifti import read_volume
from shared.tables import print_table, read_number, read_table, write_table
from shared.weights import read_recipe, refuse_missing
from simulation.subject import VOLUMES, measure_ml

LDM = Path(__file__).resolve().parents[1] / "brain_ldm_bundle"
TRAIN = f"python -m monai.bundle run training --config_file {LDM.name}/configs/train.json --dataset_dir DIR"
COVARIATES = ("age", "sex", "ventricles_ml", "brain_normalised_ml")
UNITS = {"ventricles_ml": "mL", "brain_normalised_ml": "mL", "age": "years"}
AUTOENCODER, METHODS = "autoencoder", ("noise", "inversion")
DIFFERENCES = ("composition", "reversibility", "outside", "inside")


@dataclass
class Pair:
    """A head and its true counterfactual, each with the files of its T1w and label map, and its covariates."""

    name: str
    images: tuple[Path, Path]
    maps: tuple[Path, Path]
    rows: tuple[Mapping[str, str], Mapping[str, str]]


def read_pairs(folder: Path) -> tuple[list[Pair], dict]:
    """Return the pairs of a folder of `make_demo_data.py --change`, and the settings of the changed heads."""
    cohorts = folder / ORIGINAL, folder / CHANGED
    made_by = f"Make it with: python scripts/make_demo_data.py {folder} --change ventricles_ml 30"
    try:
        settings = read_json(cohorts[1] / "dataset_description.json")["DemoSettings"]
        settings["changed"]
        tables = [{row["participant_id"]: row for row in read_table(cohort / "participants.tsv")} for cohort in cohorts]
    except (FileNotFoundError, KeyError) as error:
        raise ValueError(f"{folder}: holds no pairs of heads ({error}). {made_by}") from error
    pairs = []
    for number in range(1, 1 + len(tables[0])):
        files = [subject_files(cohort, number)[:2] for cohort in cohorts]
        name = participant_id(number)
        if not all(name in table for table in tables) or not all(file.is_file() for own in files for file in own):
            raise ValueError(f"{folder}: {name} is no complete pair. {made_by}")
        pairs.append(Pair(name, *(tuple(kind) for kind in zip(*files)), tuple(table[name] for table in tables)))
    return pairs, settings


def edited(folder: Path, name: str, suffix: str) -> Path:
    return folder / name / "anat" / f"{name}_{suffix}.nii.gz"


def write_edits(table: Path, folder: Path, pairs: Sequence[Pair], suffix: str) -> None:
    """Write the edits of a method: without a change, with the change, and back. They go to a folder.

    The autoencoder has no covariates, so it reconstructs the true counterfactual instead of an edit, and its way back begins
    at its own reconstruction.
    """
    alone = folder.name == AUTOENCODER
    lines = [["participant_id", "image", *COVARIATES, *(f"source_{name}" for name in COVARIATES)]]
    for pair in pairs:
        given, (own, other) = pair.images if suffix == "T1w" else pair.maps, pair.rows
        first = edited(folder, f"{pair.name}{'same' if alone else 'changed'}", suffix)
        edits = ("same", given[0], own, own), ("changed", given[alone], other, own), ("back", first, own, other)
        for kind, image, requested, source in edits:
            cells = (row[name] for row in (requested, source) for name in COVARIATES)
            lines.append([f"{pair.name}{kind}", str(image.absolute()), *cells])
    width = len(lines[0]) if folder.name == METHODS[1] else 2 + len(COVARIATES)
    write_table(table, [line[:width] for line in lines])


def command(method: str, options: argparse.Namespace) -> list[str]:
    """Return the command that makes the edits of a method."""
    settings = {"requests": options.out / f"{method}.tsv", "output_dir": options.out / method, "acquisition": False}
    settings |= {"seed": options.seed, "use_device": options.use_device}
    if method == METHODS[1]:
        settings |= {"method": method, "sampler_name": "ddim", "steps": options.steps, "strength": options.inversion_strength}
        settings["guidance_scale"] = options.guidance_scale
    elif method == METHODS[0]:
        settings |= {"strength": options.strength, "guidance_scale": options.guidance_scale}
    else:
        settings["strength"] = 0
    configs = "['configs/inference.json','configs/shipped.json']"
    if options.models_dir:
        configs, settings["models_dir"] = "configs/inference.json", options.models_dir
    words = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    return [sys.executable, "-m", "monai.bundle", "run", "editing", "--config_file", configs, *words]


def read_values(path: Path, table: LabelTable | None) -> np.ndarray:
    """Read intensities, or the first label value of each voxel's class if there is a table, in RAS order."""
    values = np.asarray(nib.as_closest_canonical(read_volume(path)).dataobj)
    return values.astype(np.float32) if table is None else table.first_values()[table.classes(values, str(path))]


def difference(one: np.ndarray, other: np.ndarray, mask: np.ndarray, of_maps: bool) -> float:
    """Return the mean absolute difference of intensities, or the share of voxels whose labels differ, in a mask."""
    return float((one != other)[mask].mean() if of_maps else np.abs(one - other)[mask].mean())


def differences(pair: Pair, folder: Path | None, table: LabelTable | None) -> dict[str, float]:
    """Compare the edits in a folder, or for None the unchanged head, with a head and its counterfactual."""
    of_maps = table is not None
    labels = [np.asarray(read_volume(path).dataobj) for path in pair.maps]
    head = (labels[0] > 0) | (labels[1] > 0)
    structures = (labels[0] != labels[1]) | np.isin(labels[0], VOLUMES["ventricles_ml"])
    own, truth = (read_values(path, table) for path in (pair.maps if of_maps else pair.images))
    files = [None] * 3
    if folder is not None:
        files = [edited(folder, f"{pair.name}{kind}", "dseg" if of_maps else "T1w") for kind in ("same", "changed", "back")]
    same, changed, back = (own if file is None else read_values(file, table) for file in files)
    if changed.shape != own.shape:
        raise ValueError(
            f"{files[1]}: has {changed.shape} voxels, but {pair.maps[0]} has {own.shape}. Use models of its spacing"
        )
    compared = (own, same, head), (own, back, head), (truth, changed, head & ~structures), (truth, changed, head & structures)
    return {name: difference(*both, of_maps) for name, both in zip(DIFFERENCES, compared)}


def read_ages(tables: Sequence[Path], folders: Sequence[Path]) -> dict[Path, float]:
    """Read the age of each file from tables of the regressor, as the run id `predicting` writes them.

    Tables without a file in the folders are refused, because their ages would be of other heads.
    """
    ages, folders = {}, [folder.resolve() for folder in folders]
    for table in tables:
        for row in read_table(table, ["file", "age"]):
            if not {"file", "age"} <= row.keys():
                raise ValueError(f"{table}: has no columns file and age. Give tables of the run id predicting")
            ages[Path(row["file"]).resolve()] = read_number(row["age"])
    if ages and not any(folder in file.parents for file in ages for folder in folders):
        raise ValueError(
            f"{tables[0]}: names no file in {' or '.join(map(str, folders))}, but for instance {next(iter(ages))}. Predict the "
            f"ages of these folders, or start the command in the folder where `predicting` was started"
        )
    return ages


def measured(images: Sequence[Path], of_maps: bool, spacing_mm: float, ages: Mapping[Path, float], device: str) -> list[dict]:
    """Return the ventricles and the brain in each image, and its age if it is known."""
    if not of_maps:
        return [row | {"age": ages.get(path.resolve(), np.nan)} for path, row in zip(images, measure(images, device=device))]
    counted = [measure_ml(np.asarray(read_volume(path).dataobj), spacing_mm, VOLUMES) for path in images]
    return [row | {"brain_normalised_ml": row["brain_ml"] * TEMPLATE_ICV_ML / row["icv_ml"]} for row in counted]


def compare(
    pairs: Sequence[Pair], settings: Mapping, table: LabelTable | None, ages: Mapping[Path, float], options: argparse.Namespace
) -> pd.DataFrame:
    """Return a row for each pair and each answer, with the differences and the measured and requested covariates."""
    suffix, which = ("dseg", "maps") if table else ("T1w", "images")
    answers = {"no change": None, AUTOENCODER: options.out / AUTOENCODER}
    answers |= {method: options.out / method for method in METHODS}
    rows = []
    for pair in pairs:
        for answer, folder in answers.items():
            own = getattr(pair, which)[0] if folder is None else edited(folder, f"{pair.name}changed", suffix)
            rows.append({"participant_id": pair.name, "answer": answer, "file": own} | differences(pair, folder, table))
        rows.append({"participant_id": pair.name, "answer": "truth", "file": getattr(pair, which)[1]})
    files = [row["file"] for row in rows]
    found = measured(files, table is not None, settings["spacing_mm"], ages, options.use_device)
    by_name = {pair.name: pair for pair in pairs}
    for row, own in zip(rows, found, strict=True):
        if own.get("error"):
            warnings.warn(f"left out: {own['error']}", stacklevel=2)
        for name in UNITS:
            original, requested = (float(cells[name]) for cells in by_name[row["participant_id"]].rows)
            row |= {f"{name}_original": original, f"{name}_requested": requested, f"{name}_measured": own.get(name, np.nan)}
    return pd.DataFrame(rows)


def summary(rows: pd.DataFrame, changed: str) -> dict:
    """Return by answer the mean and the 95 % t interval of each difference, of each error, and of the share of the change."""
    unchanged = rows[rows["answer"] == "no change"].set_index("participant_id")[f"{changed}_measured"]
    requested = rows[f"{changed}_requested"] - rows[f"{changed}_original"]
    rows = rows.assign(share=(rows[f"{changed}_measured"] - rows["participant_id"].map(unchanged)) / requested)
    for name in UNITS:
        rows[f"{name}_error"] = (rows[f"{name}_measured"] - rows[f"{name}_requested"]).abs()
    numbers = {}
    for answer, own in rows.groupby("answer", sort=False):
        numbers[answer] = {}
        for column in (*DIFFERENCES, *(f"{name}_error" for name in UNITS), "share"):
            values = own[column].dropna()
            if len(values):
                ends = (
                    stats.t.interval(0.95, len(values) - 1, values.mean(), values.sem())
                    if values.std() > 0
                    else [values.mean()] * 2
                )
                numbers[answer][column] = {
                    "n": len(values),
                    "mean": float(values.mean()),
                    "interval": [float(end) for end in ends],
                }
    return numbers


def printed(numbers: Mapping, changed: str, of_maps: bool) -> dict:
    """Return the numbers as a table of text."""
    titles = {name: f"{name}, {'share' if of_maps else '0 to 1'}" for name in DIFFERENCES}
    titles |= {f"{name}_error": f"{name.removesuffix('_ml')} error, {unit}" for name, unit in UNITS.items()}
    titles["share"] = f"share of the change of {changed.removesuffix('_ml')}"
    shown = [column for column in titles if any(column in own for own in numbers.values())]

    def cell(own, column):
        return with_interval(own[column]["mean"], *own[column]["interval"]) if column in own else "—"

    rows = [[answer, *(cell(own, column) for column in shown)] for answer, own in numbers.items()]
    return {"header": ["", *(titles[column] for column in shown)], "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse_arguments(arguments)
    refuse_unwritable(options.out / "counterfactuals.json")
    pairs, settings = read_pairs(options.pairs)
    model = options.models_dir / "model.pt" if options.models_dir else LDM / "models" / "demo_model.pt"
    refuse_missing(model, TRAIN)
    recipe = read_recipe(model)
    if recipe.get("spacing_mm") != settings["spacing_mm"]:
        raise ValueError(
            f"{model} is of {recipe.get('spacing_mm', 1):g} mm, but {options.pairs} of {settings['spacing_mm']:g} mm. Make "
            f"pairs of the model's spacing"
        )
    if options.guidance_scale != 1 and not recipe.get("condition_dropout"):
        raise ValueError(f"{model} was trained without condition dropout, so it cannot be guided. Leave out --guidance_scale")
    choose(options.use_device)
    table = LabelTable.from_dict(recipe["labels"], str(model)) if recipe.get("labels") else None
    ages = read_ages(options.ages, [options.pairs, options.out])
    for method in (AUTOENCODER, *METHODS):
        write_edits(options.out / f"{method}.tsv", options.out / method, pairs, "dseg" if table else "T1w")
        if status := subprocess.run(command(method, options), cwd=LDM, stdout=sys.stderr).returncode:
            return status  # the bundle's last line says why
    rows = compare(pairs, settings, table, ages, options)
    [changed] = settings["changed"]
    numbers = summary(rows, changed)
    with atomic(options.out / "counterfactuals.tsv") as file:
        rows.to_csv(file, sep="\t", index=False, float_format="%.6g", na_rep="n/a")
    write_json(options.out / "counterfactuals.json", {"changed": settings["changed"], "answers": numbers})
    print(f"{len(pairs)} heads, {changed} changed by {settings['changed'][changed]:g}: mean [95 %]")
    print_table(printed(numbers, changed, table is not None))
    return 0


if __name__ == "__main__":
    refusals.run(main)
