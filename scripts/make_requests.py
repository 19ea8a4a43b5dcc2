"""Make a table of volumes to generate, one row each, from the participants.tsv of a real or simulated cohort.

    python scripts/make_requests.py participants.tsv requests.tsv --rows 100000 --seed 0
    python scripts/make_requests.py participants.tsv requests.tsv --rows 12 --sweep ventricles_ml 10 120 --base "age=65,sex=F"

Rows are drawn from the cohort's training rows with replacement, so that covariates go together as they do there, and each
quantity is moved by a small random share of its standard deviation. A sweep changes one quantity and holds the others.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = ("sex", "age", "ventricles_ml", "brain_normalised_ml")


def read_cohort(path: Path, columns: Sequence[str] = COLUMNS) -> pd.DataFrame:
    """The training rows of a participants.tsv (all rows without a `split` column) that lack none of `columns`.

    Categories come as text, quantities as floats. A column is a category if it holds text, or if participants.json beside
    the table gives it `Levels`.

    Raises:
        FileNotFoundError: no such table.
        ValueError: a column is missing, or no row is left.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table. Give the participants.tsv of a cohort")
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, na_values=["", "n/a"], encoding="utf-8-sig")
    if absent := [column for column in columns if column not in table]:
        raise ValueError(f"{path}: no column {', '.join(absent)}. Name the covariates with --columns, of {', '.join(table)}")
    if "split" in table:
        table = table[table["split"] == "train"]
    table = table[list(columns)].dropna()
    if table.empty:
        raise ValueError(f"{path}: no training row has all of {', '.join(columns)}")

    sidecar = path.with_suffix(".json")
    described = json.loads(sidecar.read_text(encoding="utf-8")) if sidecar.is_file() else {}
    for column in columns:
        numbers = pd.to_numeric(table[column], errors="coerce")
        if numbers.notna().all() and "Levels" not in described.get(column, {}):
            table[column] = numbers.astype(float)
    return table


def draw(cohort: pd.DataFrame, rows: int, seed: int, spread: float = 0.1) -> pd.DataFrame:
    """`rows` rows of `cohort`, each quantity moved by a normal draw of `spread` standard deviations, within its range."""
    rng = np.random.default_rng(seed)
    drawn = cohort.iloc[rng.integers(len(cohort), size=rows)].reset_index(drop=True)
    for column in drawn.select_dtypes("number"):
        values = cohort[column]
        moved = drawn[column] + spread * values.std(ddof=0) * rng.standard_normal(rows)
        drawn[column] = moved.clip(values.min(), values.max())
    return drawn


def sweep(cohort: pd.DataFrame, name: str, low: float, high: float, rows: int, base: Mapping[str, str]) -> pd.DataFrame:
    """`rows` rows with `name` evenly from `low` to `high`; the rest as in `base`, or the cohort's median or commonest level.

    Raises:
        ValueError: a name that the cohort lacks, a category to sweep, a base value that is none of the cohort's kind.
    """
    if unknown := [key for key in (name, *base) if key not in cohort]:
        raise ValueError(f"no covariate is called {unknown[0]!r}; there are {', '.join(cohort)}")
    quantities = set(cohort.select_dtypes("number"))
    if name not in quantities:
        raise ValueError(f"{name} is a category, only a quantity can be swept: {', '.join(sorted(quantities))}")
    fixed = {}
    for column, values in cohort.items():
        if column not in base:
            fixed[column] = values.median() if column in quantities else values.mode()[0]
        elif column in quantities:
            try:
                fixed[column] = float(base[column])
            except ValueError:
                raise ValueError(f"--base: {column} must be a number, got {base[column]!r}") from None
        elif base[column] in set(values):
            fixed[column] = base[column]
        else:
            raise ValueError(f"--base: {column} must be one of {', '.join(sorted(set(values)))}, got {base[column]!r}")
    return pd.DataFrame({**fixed, name: np.linspace(low, high, rows)}, columns=cohort.columns)


def write_requests(table: pd.DataFrame, path: Path) -> None:
    """Write the rows with participant_id sub-syn0001 and so on, in one piece."""
    digits = max(4, len(str(len(table))))
    ids = [f"sub-syn{number:0{digits}d}" for number in range(1, len(table) + 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    table.assign(participant_id=ids)[["participant_id", *table]].to_csv(partial, sep="\t", index=False, float_format="%.6g")
    os.replace(partial, path)


def parse_base(text: str) -> dict[str, str]:
    """{"age": "65", "sex": "F"} of "age=65,sex=F"."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    if wrong := [name for name, equals, value in pairs if not (name.strip() and equals and value.strip())]:
        raise argparse.ArgumentTypeError(f"expected name=value pairs such as age=65,sex=F, got {wrong[0]!r}")
    return {name.strip(): value.strip() for name, _, value in pairs}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("participants", type=Path, metavar="PARTICIPANTS_TSV", help="a cohort's table")
    parser.add_argument("output", type=Path, metavar="OUT_TSV", help="the table of requests to write")
    parser.add_argument("--rows", type=int, default=64, help="volumes to request (default 64)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same rows (default 0)")
    parser.add_argument("--columns", nargs="+", default=COLUMNS, help=f"the model's covariates (default: {' '.join(COLUMNS)})")
    parser.add_argument("--spread", type=float, default=0.1, help="standard deviations by which quantities move (default 0.1)")
    parser.add_argument("--sweep", nargs=3, metavar=("NAME", "LOW", "HIGH"), help="vary this quantity alone, evenly")
    parser.add_argument("--base", type=parse_base, default={}, help="with --sweep, what the others are: age=65,sex=F")
    options = parser.parse_args(arguments)
    if options.rows < 1:
        parser.error(f"--rows must be at least 1, got {options.rows}")
    if not 0 <= options.spread <= 1:
        parser.error(f"--spread must be 0 to 1 standard deviations, got {options.spread}")
    if options.base and not options.sweep:
        parser.error("--base goes with --sweep")
    try:
        cohort = read_cohort(options.participants, options.columns)
        if options.sweep:
            name, low, high = options.sweep[0], *map(float, options.sweep[1:])
            table = sweep(cohort, name, low, high, options.rows, options.base)
        else:
            table = draw(cohort, options.rows, options.seed, options.spread)
        write_requests(table, options.output)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{options.output}: {len(table)} volumes requested, from {len(cohort)} subjects of {options.participants}")


if __name__ == "__main__":
    main()
