"""Tell from samples of the published UK Biobank model which conventions it has: coding of sex, age, affine and intensities.

    python scripts/check_published.py FOLDER [--table TABLE]

FOLDER holds T1w volumes (.nii.gz, in any folders) and a table of what was requested for each: a column that names the volume,
and columns for sex or gender, age, and the volumes of ventricles and brain, if there are any. The names may be longer, such as
ventricular_vol. Such a folder is the public set of 1,000 samples, or one that you made with configs/published.json.

It prints a verdict and its numbers for each of these questions:

  sex          Which code is male? Men have larger heads on average, so the code with the larger heads is. The head is all that
               is brighter than the background, with its holes filled.
  age          Are the values years, or scaled as configs/covariates.json scales them (44 to 82 years become 0 to 1)? Does the
               fluid, the dark share of the inner head, rise with age?
  volumes      Are they in mL or mm3, or scaled by the ranges of configs/covariates.json, and do they rise with the fluid?
  affine       Does the affine of the files place the head where MNI space has it, or does ours?
  intensities  Was each volume scaled by its own minimum and maximum, or was it clipped?

The limits of the verdicts are chosen. The command is for research, not for clinical use.
"""

from __future__ import annotations

import argparse
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from command_line import Parser


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of volumes of the published model")
    parser.add_argument("--table", type=Path, help="table of what was requested (default: participants.tsv, or the only table)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

import nibabel as nib
import numpy as np
from scipy import ndimage, stats
from shared import refusals
from shared.files import read_json
from shared.head_mask import head_mask
from shared.image_files import find_files
from shared.mni_box import BRAIN_MM, FIELD_OF_VIEW_MM, LOWER_CORNER_MM
from shared.nifti import named, read_volume, refuse_outliers
from shared.problems import of_each, refuse
from shared.tables import read_number, read_table

WORDS = {"sex": ("sex", "gender"), "age": ("age",), "ventricles_ml": ("ventric",), "brain_normalised_ml": ("brain",)}
COVARIATES = Path(__file__).resolve().parents[1] / "brain_ldm_bundle" / "configs" / "covariates.json"
RANGES = {entry["name"]: entry.get("range") for entry in read_json(COVARIATES)["covariates"]}
FEWEST = 5  # volumes of each sex
CROPPED_MM = ((5, 5, 0), (5, 5, 15))  # what the published bundle cuts off at the lower and the upper side of each axis
SCALP_MM = 8.0  # of skull and scalp around the brain, chosen
FITS_MM = 10.0  # largest mean distance of the head's edges from their places
INNER_MM = 25.0  # distance from the surface below which there is hardly any fluid but the ventricles
OLDEST = 120  # years
CLIPPED = 0.1  # share of voxels with the lowest value, above which the background was cut off there


@dataclass(frozen=True)
class Sample:
    """What was measured in one volume."""

    path: Path
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    stored_type: str
    head_ml: float
    fluid: float  # dark share of the inner head
    edges_mm: tuple[float, ...]  # lowest x, highest x, lowest y and highest z of the head, by the file's affine
    edges_ours_mm: tuple[float, ...]  # the same by our affine, NaN for another field of view
    lowest: float
    highest: float
    lowest_share: float  # of the voxels
    background: float  # median of the upper corners, as a share of the range


def measure(path: Path) -> Sample:
    """Measure one volume. Errors name its file."""
    image = read_volume(path)
    stored = image.get_data_dtype().name
    image = nib.as_closest_canonical(image)
    values = np.asarray(image.dataobj, dtype=np.float32)
    low, high = float(values.min()), float(values.max())
    with named(path):
        if not np.isfinite(values).all():
            raise ValueError("has voxels that are NaN or infinite. Make it again, or remove it")
        if not low < high:
            raise ValueError(f"is {low:g} everywhere. Make it again, or remove it")
        refuse_outliers(values)
    spacing_mm = tuple(map(float, nib.affines.voxel_sizes(image.affine)))
    head = head_mask(values)
    depth_mm = ndimage.distance_transform_edt(np.pad(head, 1), spacing_mm)[1:-1, 1:-1, 1:-1]
    inner = values[depth_mm > INNER_MM]
    side = tuple(max(1, n // 20) for n in values.shape)
    corners = [values[x, y, -side[2] :] for x in _ends(side[0]) for y in _ends(side[1])]
    ours = our_affine(values.shape, spacing_mm)
    return Sample(
        path=path,
        shape=values.shape,
        spacing_mm=spacing_mm,
        stored_type=stored,
        head_ml=float(head.sum() * np.prod(spacing_mm) / 1000),
        fluid=float((inner < (low + np.median(inner)) / 2).mean()) if inner.size else math.nan,
        edges_mm=_edges(head, image.affine),
        edges_ours_mm=_edges(head, ours) if ours is not None else (math.nan,) * 4,
        lowest=low,
        highest=high,
        lowest_share=float((values == low).mean()),
        background=float((np.median(np.concatenate([corner.ravel() for corner in corners])) - low) / (high - low)),
    )


def _ends(side: int) -> tuple[slice, slice]:
    return slice(None, side), slice(-side, None)


def _edges(head: np.ndarray, affine: np.ndarray) -> tuple[float, ...]:
    """Return the lowest x, the highest x, the lowest y and the highest z of a mask in mm; its axes are in RAS order."""
    spans = []
    for axis in range(3):
        inside = np.flatnonzero(head.any(axis=tuple({0, 1, 2} - {axis})))
        spans.append(affine[axis, 3] + affine[axis, axis] * np.array([inside[0] - 0.5, inside[-1] + 0.5]))
    return float(spans[0][0]), float(spans[0][1]), float(spans[1][0]), float(spans[2][1])


def our_affine(shape: Sequence[int], spacing_mm: Sequence[float]) -> np.ndarray | None:
    """Return our affine, in RAS order, of a volume with the model's field of view or the cropped one, else None."""
    size_mm = np.multiply(shape, spacing_mm)
    for lower_mm, upper_mm in (((0, 0, 0), (0, 0, 0)), CROPPED_MM):
        if np.allclose(size_mm, np.array(FIELD_OF_VIEW_MM) - lower_mm - upper_mm, atol=0.5):
            affine = np.diag([*spacing_mm, 1.0])
            affine[:3, 3] = np.array(LOWER_CORNER_MM) + lower_mm + np.divide(spacing_mm, 2)
            return affine
    return None


def covariate_columns(header: Sequence[str]) -> dict[str, str]:
    """Return the column of each covariate that the table has. Refuse a table without sex, and several columns for one."""
    found = {}
    for name, words in WORDS.items():
        columns = [column for column in header if any(word in column.lower() for word in words)]
        if name == "age":  # but not "image"
            columns = [column for column in columns if column.lower().split("_")[0] == "age"]
        columns = [column for column in columns if column.lower() == name] or columns
        if len(columns) > 1:
            raise ValueError(f"several columns could be {name}: {', '.join(columns)}. Remove all but one")
        if columns:
            found[name] = columns[0]
    if "sex" not in found:
        raise ValueError(f"no column for sex or gender among {', '.join(header)}. Add it")
    return found


def rows_of_files(rows: Sequence[Mapping], files: Sequence[Path], folder: Path, covariates: Sequence[str]) -> list[Mapping]:
    """Return the row of each file: a cell is a part of its path, without ending, or the beginning of one up to "_".

    A cell that other rows have in its column, such as a site, names no file.
    """
    keys: dict[str, list[Mapping]] = {}
    for column in rows[0].keys() - set(covariates):
        often = Counter(_stem(row[column]) for row in rows)
        for row in rows:
            if row[column] and often[name := _stem(row[column])] == 1:
                keys.setdefault(name, []).append(row)
    found, problems = [], []
    for file in files:
        parts = [_stem(part) for part in file.relative_to(folder).parts]
        names = {name for part in parts for name in (part, part.split("_")[0])}
        matches = [row for name in names for row in keys.get(name, [])]
        matches = list({id(row): row for row in matches}.values())
        if len(matches) == 1:
            found.append(matches[0])
        else:
            problems.append(f"{file}: {len(matches)} rows of the table name it, one is needed")
    refuse(problems, f"{len(problems)} of {len(files)} volumes cannot be found in the table:")
    return found


def _stem(name: str) -> str:
    return Path(name).name.removesuffix(".gz").removesuffix(".nii")


def _number(file: Path, cell: str) -> float:
    with named(file.name):
        return read_number(cell)


def judge_sex(codes: Sequence[str], samples: Sequence[Sample]) -> str:
    """Say which of two codes is male, by the size of the heads."""
    kinds = sorted(set(codes))
    if len(kinds) != 2 or min(map(codes.count, kinds)) < FEWEST:
        counts = ", ".join(f"{kind}: {codes.count(kind)}" for kind in kinds)
        raise ValueError(f"sex has the values {counts}; two are needed, with {FEWEST} volumes or more of each")
    sizes = [[s.head_ml for code, s in zip(codes, samples, strict=True) if code == kind] for kind in kinds]
    test = stats.ttest_ind(sizes[1], sizes[0], equal_var=False)
    low, high = test.confidence_interval()
    auc = stats.mannwhitneyu(sizes[1], sizes[0]).statistic / (len(sizes[0]) * len(sizes[1]))
    numbers = "; ".join(
        f"{kind}: {np.mean(ml):.0f} mL (SD {np.std(ml, ddof=1):.0f}, n {len(ml)})" for kind, ml in zip(kinds, sizes)
    )
    numbers += f"; difference {np.mean(sizes[1]) - np.mean(sizes[0]):.0f} mL [{low:.0f}, {high:.0f}], AUC {auc:.2f}"
    if low <= 0 <= high:
        return f"not decided: the heads of both codes have the same size. {numbers}"
    male = kinds[1] if low > 0 else kinds[0]
    says = _as_ours(male, kinds)
    return f"{male} is male{says}. {numbers}"


def _as_ours(male: str, kinds: Sequence[str]) -> str:
    """Compare with configs/covariates.json, F = 0 and M = 1, if the codes are these words or numbers."""
    try:
        ours = next((kind for kind in kinds if float(kind) == 1), "") if {float(kind) for kind in kinds} == {0, 1} else ""
    except ValueError:
        ours = next((kind for kind in kinds if kind.lower().startswith("m")), "")
    if not ours:
        return "; configs/covariates.json has other codes, F = 0 and M = 1"
    return ", as in configs/covariates.json" if male == ours else ": give 'levels' the other codes in configs/covariates.json"


def judge_age(ages: Sequence[float], fluid: Sequence[float]) -> str:
    """Say how age is scaled, and whether older heads have more fluid."""
    low, high = min(ages), max(ages)
    first, last = RANGES["age"]
    numbers = f"{low:g} to {high:g}, mean {np.mean(ages):.3g}, SD {np.std(ages, ddof=1):.2g}"
    if high > OLDEST:
        verdict = "in no unit that we know, such as years or our scale"
    elif high > 1.9:
        inside = np.mean([first <= age <= last for age in ages])
        verdict = f"in years, {inside:.0%} of them from {first} to {last}"
        verdict += ", as we read it" if inside > 0.95 else ": not only the range that we scale by"
    elif low < first / 100 - 0.1 or high > last / 100 + 0.1:
        verdict = (
            f"scaled; as we read it, these are {first + low * (last - first):.0f} to {first + high * (last - first):.0f} years"
        )
    else:
        verdict = f"not decided: years / 100 ({100 * low:.0f} to {100 * high:.0f} years) are as likely as our scale"
    return f"{verdict}. {numbers}. {_rises(ages, fluid)}"


def judge_volume(name: str, values: Sequence[float], fluid: Sequence[float]) -> str:
    """Say in which unit a volume is, and whether it rises with the fluid; that of the brain falls."""
    low, high = RANGES[name]
    for unit, factor in (("mm3", 1000.0), ("mL", 1.0)):
        if low * factor / 4 <= np.median(values) <= high * factor * 2:
            verdict = f"in {unit}; " + (
                "within" if min(values) >= low * factor and max(values) <= high * factor else "not all within"
            )
            verdict += f" the range that we scale by, {low * factor:g} to {high * factor:g}"
            break
    else:
        scaled = -0.5 <= min(values) and max(values) <= 1.9
        verdict = f"scaled; as we read it, {low + min(values) * (high - low):.0f} to {low + max(values) * (high - low):.0f} mL"
        verdict = verdict if scaled else "in no unit that we know"
    return f"{verdict}. {min(values):g} to {max(values):g}. {_rises(values, fluid)}"


def _rises(values: Sequence[float], fluid: Sequence[float]) -> str:
    result = stats.spearmanr(values, fluid)
    says = "rises" if result.statistic > 0 else "falls"
    certain = f"The fluid {says} with it" if result.pvalue < 0.05 else "Whether the fluid rises with it is not decided"
    return f"{certain} (rank correlation {result.statistic:.2f}, p {result.pvalue:.2g}, n {len(values)})"


def judge_affine(samples: Sequence[Sample]) -> str:
    """Say whose affine places the heads where MNI space has them."""
    (x_low, y_low, _), (x_high, _, z_high) = BRAIN_MM
    wanted = np.array([x_low - SCALP_MM, x_high + SCALP_MM, y_low - SCALP_MM, z_high + SCALP_MM])
    off = {
        who: np.median([edges(sample) for sample in samples], axis=0) - wanted
        for who, edges in (("theirs", lambda s: s.edges_mm), ("ours", lambda s: s.edges_ours_mm))
    }
    error = {who: float(np.abs(distance).mean()) for who, distance in off.items()}
    shapes = sorted({f"{'x'.join(map(str, s.shape))} of {'x'.join(f'{mm:g}' for mm in s.spacing_mm)} mm" for s in samples})
    numbers = "; ".join(f"{who}: {error[who]:.0f} mm off on average" for who in off if math.isfinite(error[who]))
    moved = [(off["theirs"][0] + off["theirs"][1]) / 2, off["theirs"][2], off["theirs"][3]]
    numbers += f"; the files place the head {', '.join(f'{mm:+.0f}' for mm in moved)} mm to the right, front and top"
    fits = {who for who, mm in error.items() if mm <= FITS_MM}
    verdicts = {
        frozenset({"theirs", "ours"}): "the files are in their place, and our affine fits too",
        frozenset({"theirs"}): "the files are in their place; our affine is not theirs",
        frozenset({"ours"}): "the files are in the wrong place, and our affine puts them right",
    }
    return f"{verdicts.get(frozenset(fits), 'neither their affine nor ours fits')}. {numbers}. {', '.join(shapes)}"


def judge_intensities(samples: Sequence[Sample]) -> str:
    """Say whether volumes were scaled by their own minimum and maximum, or clipped."""
    at_lowest, background = (float(np.median([getattr(s, key) for s in samples])) for key in ("lowest_share", "background"))
    clipped = at_lowest >= CLIPPED
    verdict = (
        "clipped below, with a black background" if clipped else "not clipped: each volume has its own minimum and maximum"
    )
    same = len({(s.lowest, s.highest) for s in samples}) == 1
    numbers = f"{', '.join(sorted({s.stored_type for s in samples}))}, lowest {min(s.lowest for s in samples):g}, highest "
    numbers += f"{min(s.highest for s in samples):g} to {max(s.highest for s in samples):g}{' in all' if same else ''}"
    numbers += f"; {at_lowest:.1%} of voxels have the lowest value; the background is at {background:.1%} of the range"
    return f"{verdict}. {numbers}"


def find_table(folder: Path) -> Path:
    """Return participants.tsv, or the only table in the folder."""
    tables = [path for path in sorted(folder.iterdir()) if path.suffix in (".tsv", ".csv")]
    if (chosen := folder / "participants.tsv") in tables or len(tables) == 1:
        return chosen if chosen in tables else tables[0]
    raise ValueError(f"{folder}: {len(tables)} tables (.tsv, .csv) in it, one is needed. Give --table FILE")


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    if not options.folder.is_dir():
        raise FileNotFoundError(f"{options.folder}: no such folder. Give the folder of the volumes")
    files = find_files(options.folder, "**/*.nii*")
    if not files:
        raise FileNotFoundError(f"{options.folder}: no *.nii.gz below it. Give the folder of the volumes")
    table = options.table or find_table(options.folder)
    rows = read_table(table)
    with named(table):
        columns = covariate_columns(list(rows[0]))
    chosen = rows_of_files(rows, files, options.folder, list(columns.values()))
    given = {}
    for name, column in columns.items():
        cells = [row[column] for row in chosen]
        with named(table):
            if name != "sex":
                cells = of_each(
                    lambda pair: _number(*pair), zip(files, cells, strict=True), f"cells of {column} cannot be read:"
                )
            given[name] = cells
    samples = of_each(measure, files, f"of {len(files)} volumes cannot be read:")
    fluid = [sample.fluid for sample in samples]
    verdicts = {"sex": judge_sex(given["sex"], samples)}
    if "age" in given:
        verdicts["age"] = judge_age(given["age"], fluid)
    verdicts |= {
        name: judge_volume(name, given[name], fluid) for name in ("ventricles_ml", "brain_normalised_ml") if name in given
    }
    verdicts |= {"affine": judge_affine(samples), "intensities": judge_intensities(samples)}
    print(f"{len(files)} volumes in {options.folder}, columns {', '.join(columns.values())} of {table.name}")
    for name, verdict in verdicts.items():
        print(f"{name}: {verdict}")


if __name__ == "__main__":
    refusals.run(main)
