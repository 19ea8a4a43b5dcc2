"""Make a table of volumes to generate, with one row per volume, from the participants.tsv of a cohort.

    python scripts/make_requests.py participants.tsv requests.tsv --rows 100000 --seed 0
    python scripts/make_requests.py participants.tsv sweep.tsv --rows 8 --sweep ventricles_ml 10 150 --sweep age 45 80
        --base "sex=F" --noises 3 --extrapolate

Covariates and their ranges come from the model's covariates.json. Several sessions of a participant have their own values, in
sub-X/sub-X_sessions.tsv or in rows with a column session_id. A cell that is no plausible value is refused.

Rows are drawn from the cohort's training rows with replacement, so that covariates are combined as in the cohort. Each quantity
then moves by a small random fraction of its standard deviation.

A sweep changes one quantity and keeps the other covariates and the noise. Rows with the same entry in the column `noise` start
from the same noise. --extrapolate adds the values that Pinaya et al. 2022 requested beyond the range of their training data
(Figure 4), and the ends and the middle of the range. scripts/conditioning.py --sweeps draws the result.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from command_line import Parser
from whole_numbers import at_least

SPREAD = 0.1  # standard deviations
MOST_ROWS = 10_000_000  # chosen; such a table takes about 1 GB of memory
COVARIATES_FILE = Path(__file__).resolve().parents[1] / "brain_ldm_bundle" / "configs" / "covariates.json"


def parse_base(text: str) -> dict[str, str]:
    """Parse "age=65,sex=F" to {"age": "65", "sex": "F"}."""
    pairs = [[part.strip() for part in pair.partition("=")] for pair in text.split(",") if pair.strip()]
    if wrong := [name for name, equals, value in pairs if not (name and equals and value)]:
        raise argparse.ArgumentTypeError(f"expected name=value pairs such as age=65,sex=F, got {wrong[0]!r}")
    values = {name: value for name, _, value in pairs}
    if len(values) < len(pairs):
        raise argparse.ArgumentTypeError(f"a name appears twice in {text!r}. Remove one")
    return values


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("participants", type=Path, metavar="PARTICIPANTS_TSV", help="a cohort's table")
    add("output", type=Path, metavar="OUT_TSV", help="the table of requests to write")
    add("--rows", type=at_least(1, MOST_ROWS), default=64, help="number of volumes, or of values in a sweep (default 64)")
    add("--seed", type=at_least(0), default=0, help="the same seed gives the same rows (default 0)")
    add("--columns", nargs="+", metavar="NAME", help="use only these covariates of the model")
    add("--spread", type=float, help=f"standard deviations by which quantities move (default {SPREAD})")
    varied = "vary this quantity alone, in --rows even steps; may be given several times"
    add("--sweep", nargs=3, action="append", default=[], metavar=("NAME", "LOW", "HIGH"), help=varied)
    add("--extrapolate", action="store_true", help="add the paper's values beyond the training range")
    add("--noises", type=at_least(1, MOST_ROWS), default=1, help="noises that repeat sweeps and extrapolation (default 1)")
    add("--base", type=parse_base, default={}, help="values of the covariates that are not swept, such as age=65,sex=F")
    ranges = "the model's covariates.json, which says what is a quantity and which values are plausible (default: the bundle's)"
    add("--covariates_file", type=Path, default=COVARIATES_FILE, help=ranges)
    options = parser.parse_args(arguments)
    if options.spread is not None and (options.sweep or options.extrapolate):
        parser.error("--spread moves drawn rows, and has no effect beside --sweep or --extrapolate. Leave it out")
    options.spread = SPREAD if options.spread is None else options.spread
    if not 0 <= options.spread <= 1:
        parser.error(f"--spread must be 0 to 1 standard deviations, got {options.spread}")
    if (options.base or options.noises > 1) and not (options.sweep or options.extrapolate):
        parser.error("--base and --noises need --sweep or --extrapolate")
    return options


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

import numpy as np
import pandas as pd
from ldm.data.covariates import Covariate, CovariateSchema
from ldm.data.measured_rows import measured_values, read_rows
from shared import refusals
from shared.files import atomic, is_device, refuse_unwritable
from shared.participants import refuse_summary
from shared.problems import count, refuse
from shared.tables import is_missing, separator_of

TRAINING = "train"  # name of the training split in participants.tsv

# Scaled values that Pinaya et al. 2022 show beyond 0 to 1 (Figure 4), and the ends and middle of the range for comparison.
EXTRAPOLATED = {
    "ventricles_ml": (-0.5, -0.3, -0.1, 0.0, 0.5, 1.0, 1.5, 1.9),
    "brain_normalised_ml": (-0.5, 0.0, 0.5, 1.0),
}


def read_schema(path: Path, names: Sequence[str] | None) -> CovariateSchema:
    """Read the model's covariates.json; `names` choose some of its covariates."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Name the model's covariates.json with --covariates_file")
    schema = CovariateSchema.from_file(path)
    if names and len(set(names)) < len(names):
        raise ValueError(f"--columns {' '.join(names)}: a name appears twice. Remove one")
    return CovariateSchema(tuple(covariate_of(schema, name) for name in names or schema.names))


def covariate_of(schema: CovariateSchema, name: str) -> Covariate:
    if name not in schema.names:
        raise ValueError(f"no covariate is called {name!r}; the model's covariates are {', '.join(schema.names)}")
    return schema.covariates[schema.names.index(name)]


def requested(schema: CovariateSchema, name: str, text: str, option: str) -> float | str:
    """Read the value of a covariate in an option as the bundle reads a request, but refuse a missing one."""
    covariate = covariate_of(schema, name)
    try:
        if is_missing(text):
            raise ValueError(f"{name} needs a value, got {text!r}")
        return covariate.value(text, request=True)
    except ValueError as error:
        raise ValueError(f"{option}: {error}") from None


def read_training_rows(path: Path, schema: CovariateSchema) -> pd.DataFrame:
    """Read the training rows of a participants.tsv that have all covariates. Rows without a split count, too.

    Categories are text and quantities are floats. Each session of a participant is a row.
    """
    rows, problems = read_rows(path, schema)
    for row in (row for sessions in rows.values() for row in sessions.values()):
        try:
            refuse_summary(row.cells["participant_id"])
        except ValueError as error:
            problems.append(f"{row.where}: {error}")
    incomplete_too = CovariateSchema(tuple(replace(covariate, missing="allowed") for covariate in schema.covariates))
    values, faults = measured_values(rows, incomplete_too, str(path))
    refuse(problems + faults)
    cells = {key: rows[key[0]][key[1]].cells.get("split") for key in values}
    splits = {key: TRAINING if is_missing(cell) else cell for key, cell in cells.items()}
    table = pd.DataFrame([row for key, row in values.items() if splits[key] == TRAINING], columns=schema.names)
    if table.empty:
        raise ValueError(f"{path}: no row has the split {TRAINING!r}, only {', '.join(sorted(set(splits.values())))}")
    complete = table.dropna()
    if complete.empty:
        empty = [name for name in table if table[name].isna().all()] or list(table)
        raise ValueError(f"{path}: no training row has {', '.join(empty)}. Fill them in, or choose others with --columns")
    if len(complete) < len(table):
        left_out = f"{len(table) - len(complete)} of {len(table)} training rows lack a value and are left out"
        print(f"{path}: {left_out}.", file=sys.stderr)
    return complete


def draw(cohort: pd.DataFrame, rows: int, seed: int, spread: float) -> pd.DataFrame:
    """Draw rows of a cohort, and move each quantity within its range by a normal draw of `spread` standard deviations."""
    rng = np.random.default_rng(seed)
    drawn = cohort.iloc[rng.integers(len(cohort), size=rows)].reset_index(drop=True)
    for column in drawn.select_dtypes("number"):
        values = cohort[column]
        moved = drawn[column] + spread * values.std(ddof=0) * rng.standard_normal(rows)
        drawn[column] = moved.clip(values.min(), values.max())
    return drawn


def base_row(cohort: pd.DataFrame, schema: CovariateSchema, base: Mapping[str, str]) -> dict[str, float | str]:
    """Return the constant covariates of a sweep. Those not in `base` get the cohort's median or most frequent level."""
    kept = {column: values.mode()[0] for column, values in cohort.items()} | dict(cohort.median(numeric_only=True))
    return kept | {name: requested(schema, name, text, "--base") for name, text in base.items()}


def sweep_ends(schema: CovariateSchema, name: str, texts: Sequence[str]) -> tuple[float, float]:
    """Read the first and last value of a sweep."""
    if covariate_of(schema, name).levels is not None:
        quantities = ", ".join(covariate.name for covariate in schema.covariates if covariate.levels is None)
        raise ValueError(f"--sweep: {name} is a category, but only a quantity can be swept: {quantities}")
    low, high = (requested(schema, name, text, f"--sweep {name}") for text in texts)
    if not low < high:
        raise ValueError(f"--sweep {name}: LOW must be less than HIGH, got {low:g} and {high:g}")
    return low, high


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    refuse_unwritable(options.output, [options.participants])
    schema = read_schema(options.covariates_file, options.columns)
    swept = [(name, np.linspace(*sweep_ends(schema, name, ends), options.rows)) for name, *ends in options.sweep]
    if options.extrapolate:
        scaled = {name: EXTRAPOLATED[name] for name in EXTRAPOLATED if name in schema.names}
        if not scaled:
            raise ValueError(f"--extrapolate has values only for {', '.join(EXTRAPOLATED)}, and no column is one of them")
        swept += [(name, list(map(covariate_of(schema, name).unscaled, values))) for name, values in scaled.items()]
    cohort = read_training_rows(options.participants, schema)
    constant = base_row(cohort, schema, options.base)
    varied = {name for name, _ in swept}
    if len(varied) == 1 and (unused := options.base.keys() & varied):
        raise ValueError(f"--base: {unused.pop()} is the only one that is swept, so it is not constant. Remove it from --base")
    parts = [pd.DataFrame({**constant, name: values}, columns=schema.names) for name, values in swept]
    if parts:
        rows = pd.concat(parts).drop_duplicates()
        noises = [rows.assign(noise=str(number)) for number in range(1, options.noises + 1)]
        table = pd.concat(noises, ignore_index=True)
    else:
        table = draw(cohort, options.rows, options.seed, options.spread)
    digits = max(4, len(str(len(table))))
    table.insert(0, "participant_id", [f"sub-syn{number:0{digits}d}" for number in range(1, len(table) + 1)])
    with atomic(options.output) as file:
        table.to_csv(file, sep=separator_of(options.output), index=False, float_format="%.6g")
    status = f"{options.output}: {count(table, 'volume')} requested, from {count(cohort, 'subject')} of {options.participants}"
    print(status, file=sys.stderr if is_device(options.output) else sys.stdout)


if __name__ == "__main__":
    refusals.run(main)
