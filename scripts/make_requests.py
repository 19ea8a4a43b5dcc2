"""Make a table of volumes to generate, with one row per volume, from the participants.tsv of a cohort.

    python scripts/make_requests.py participants.tsv requests.tsv --rows 100000 --seed 0
    python scripts/make_requests.py participants.tsv sweep.tsv --rows 8 --sweep ventricles_ml 10 150 --sweep age 45 80
        --base "sex=F" --noises 3 --extrapolate

Rows are drawn from the cohort's training rows with replacement, so that covariates are combined as in the cohort. Each quantity
then moves by a small random fraction of its standard deviation.

A sweep changes one quantity and keeps the other covariates and the noise. Rows with the same entry in the column `noise` start
from the same noise. --extrapolate adds the values that Pinaya et al. 2022 requested beyond the range of their training data
(Figure 4), and the ends and the middle of the range. scripts/conditioning.py --sweeps draws the result.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from shared.files import atomic, read_json, refuse_unwritable
from shared.tables import read_table

COLUMNS = ("sex", "age", "ventricles_ml", "brain_normalised_ml")
COVARIATES_FILE = Path(__file__).resolve().parents[1] / "brain_ldm_bundle" / "configs" / "covariates.json"

# Scaled values that Pinaya et al. 2022 show beyond 0 to 1 (Figure 4), and the ends and middle of the range for comparison.
EXTRAPOLATED = {
    "ventricles_ml": (-0.5, -0.3, -0.1, 0.0, 0.5, 1.0, 1.5, 1.9),
    "brain_normalised_ml": (-0.5, 0.0, 0.5, 1.0),
}


def read_training_rows(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read the training rows of a participants.tsv that have all covariates. Without a column `split`, all rows count.

    Categories are text and quantities are floats. Numbers are categories if participants.json gives them `Levels`.
    """
    table = pd.DataFrame(read_table(path)).replace(["", "n/a"], np.nan)
    if absent := [column for column in columns if column not in table]:
        raise ValueError(f"{path}: no column {', '.join(absent)}. Name the covariates with --columns, of {', '.join(table)}")
    if "split" in table:
        table = table[table["split"] == "train"]
    table = table[list(columns)].dropna()
    if table.empty:
        raise ValueError(f"{path}: no training row has all of {', '.join(columns)}")
    sidecar = path.with_suffix(".json")
    described = read_json(sidecar) if sidecar.is_file() else {}
    for column in columns:
        numbers = pd.to_numeric(table[column], errors="coerce")
        if numbers.notna().all() and "Levels" not in described.get(column, {}):
            table[column] = numbers.astype(float)
    return table


def draw(cohort: pd.DataFrame, rows: int, seed: int, spread: float) -> pd.DataFrame:
    """Draw rows of a cohort, and move each quantity within its range by a normal draw of `spread` standard deviations."""
    rng = np.random.default_rng(seed)
    drawn = cohort.iloc[rng.integers(len(cohort), size=rows)].reset_index(drop=True)
    for column in drawn.select_dtypes("number"):
        values = cohort[column]
        moved = drawn[column] + spread * values.std(ddof=0) * rng.standard_normal(rows)
        drawn[column] = moved.clip(values.min(), values.max())
    return drawn


def base_row(cohort: pd.DataFrame, base: Mapping[str, str]) -> dict[str, float | str]:
    """Return the constant covariates of a sweep. Those not in `base` get the cohort's median or most frequent level."""
    _refuse_unknown(cohort, base)
    kept = {column: values.mode()[0] for column, values in cohort.items()} | dict(cohort.median(numeric_only=True))
    for column, text in base.items():
        if pd.api.types.is_numeric_dtype(cohort[column]):
            kept[column] = _number(text, f"--base: {column}")
        elif text in set(cohort[column]):
            kept[column] = text
        else:
            raise ValueError(f"--base: {column} must be one of {', '.join(sorted(set(cohort[column])))}, got {text!r}")
    return kept


def sweep(cohort: pd.DataFrame, name: str, values: Sequence[float], base: Mapping[str, str]) -> pd.DataFrame:
    """Return one row for each value of the quantity `name`, with the other covariates of `base_row`."""
    _refuse_unknown(cohort, [name])
    quantities = sorted(cohort.select_dtypes("number"))
    if name not in quantities:
        raise ValueError(f"{name} is a category, but only a quantity can be swept: {', '.join(quantities)}")
    return pd.DataFrame({**base_row(cohort, base), name: np.asarray(values, float)}, columns=cohort.columns)


def unscaled(covariates_file: Path, name: str, scaled: Sequence[float]) -> np.ndarray:
    """Convert scaled values to the covariate's unit. 0 and 1 are the ends of its range in the model's covariates.json."""
    if not covariates_file.is_file():
        raise FileNotFoundError(f"{covariates_file}: no such file. Name the model's covariates.json with --covariates_file")
    entry = next((entry for entry in read_json(covariates_file)["covariates"] if entry["name"] == name), {})
    if "range" not in entry:
        raise ValueError(f"{covariates_file}: {name} has no range, so it cannot be extrapolated")
    log = entry.get("scale") == "log"
    low, high = np.log(entry["range"]) if log else entry["range"]
    values = low + np.asarray(scaled) * (high - low)
    return np.exp(values) if log else values


def _refuse_unknown(cohort: pd.DataFrame, names: Iterable[str]) -> None:
    if unknown := [name for name in names if name not in cohort]:
        raise ValueError(f"no covariate is called {unknown[0]!r}; the covariates are {', '.join(cohort)}")


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{what} must be a number, got {text!r}") from None


def parse_base(text: str) -> dict[str, str]:
    """Parse "age=65,sex=F" to {"age": "65", "sex": "F"}."""
    pairs = [[part.strip() for part in pair.partition("=")] for pair in text.split(",") if pair.strip()]
    if wrong := [name for name, equals, value in pairs if not (name and equals and value)]:
        raise argparse.ArgumentTypeError(f"expected name=value pairs such as age=65,sex=F, got {wrong[0]!r}")
    return {name: value for name, _, value in pairs}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("participants", type=Path, metavar="PARTICIPANTS_TSV", help="a cohort's table")
    add("output", type=Path, metavar="OUT_TSV", help="the table of requests to write")
    add("--rows", type=int, default=64, help="number of volumes to request, or of values in a sweep (default 64)")
    add("--seed", type=int, default=0, help="the same seed gives the same rows (default 0)")
    add("--columns", nargs="+", default=COLUMNS, help=f"the model's covariates (default: {' '.join(COLUMNS)})")
    add("--spread", type=float, default=0.1, help="standard deviations by which quantities move (default 0.1)")
    varied = "vary this quantity alone, in --rows even steps; may be given several times"
    add("--sweep", nargs=3, action="append", default=[], metavar=("NAME", "LOW", "HIGH"), help=varied)
    add("--extrapolate", action="store_true", help="add the paper's values beyond the training range")
    add("--noises", type=int, default=1, help="number of noises that repeat sweeps and extrapolation (default 1)")
    add("--base", type=parse_base, default={}, help="values of the covariates that are not swept, such as age=65,sex=F")
    ranges = "the model's covariates.json, for --extrapolate (default: the bundle's)"
    add("--covariates_file", type=Path, default=COVARIATES_FILE, help=ranges)
    options = parser.parse_args(arguments)
    for name in ("rows", "noises"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    if not 0 <= options.spread <= 1:
        parser.error(f"--spread must be 0 to 1 standard deviations, got {options.spread}")
    if (options.base or options.noises > 1) and not (options.sweep or options.extrapolate):
        parser.error("--base and --noises need --sweep or --extrapolate")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        refuse_unwritable(options.output, [options.participants])
        ends = [(name, *(_number(end, f"--sweep {name}: each end") for end in pair)) for name, *pair in options.sweep]
        cohort = read_training_rows(options.participants, options.columns)
        parts = [sweep(cohort, name, np.linspace(low, high, options.rows), options.base) for name, low, high in ends]
        if options.extrapolate:
            names = [name for name in EXTRAPOLATED if name in cohort]
            if not names:
                raise ValueError(f"--extrapolate has values only for {', '.join(EXTRAPOLATED)}, and no column is one of them")
            for name in names:
                parts.append(sweep(cohort, name, unscaled(options.covariates_file, name, EXTRAPOLATED[name]), options.base))
        if parts:
            rows = pd.concat(parts).drop_duplicates()
            noises = [rows.assign(noise=str(number)) for number in range(1, options.noises + 1)]
            table = pd.concat(noises, ignore_index=True)
        else:
            table = draw(cohort, options.rows, options.seed, options.spread)
        digits = max(4, len(str(len(table))))
        table.insert(0, "participant_id", [f"sub-syn{number:0{digits}d}" for number in range(1, len(table) + 1)])
        with atomic(options.output) as file:
            table.to_csv(file, sep="\t", index=False, float_format="%.6g")
    except (ValueError, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{options.output}: {len(table)} volumes requested, from {len(cohort)} subjects of {options.participants}")


if __name__ == "__main__":
    main()
