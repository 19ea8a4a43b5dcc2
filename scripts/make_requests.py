"""Make a table of volumes to generate, one row each, from the participants.tsv of a real or simulated cohort.

    python scripts/make_requests.py participants.tsv requests.tsv --rows 100000 --seed 0
    python scripts/make_requests.py participants.tsv sweep.tsv --rows 8 --sweep ventricles_ml 10 150 --sweep age 45 80
        --base "sex=F" --noises 3 --extrapolate

Rows are drawn from the cohort's training rows with replacement, so that covariates go together as they do there, and each
quantity is moved by a small random share of its standard deviation. A sweep changes one quantity and holds the others, and the
noise too: the column `noise` names it, and rows with the same entry begin from the same noise. --extrapolate adds the values
that Pinaya et al. 2022 asked for beyond the range of their training data (Figure 4), and the range's ends and middle.
scripts/sweep_figure.py draws the result.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

COLUMNS = ("sex", "age", "ventricles_ml", "brain_normalised_ml")
COVARIATES_FILE = Path(__file__).resolve().parents[1] / "brain_ldm_bundle" / "configs" / "covariates.json"

# Scaled values beyond 0 to 1 that Pinaya et al. 2022 show, and the ends and the middle of the range to compare them with.
EXTRAPOLATED = {
    "ventricles_ml": (-0.5, -0.3, -0.1, 0.0, 0.5, 1.0, 1.5, 1.9),
    "brain_normalised_ml": (-0.5, 0.0, 0.5, 1.0),
}


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


def base_row(cohort: pd.DataFrame, base: Mapping[str, str]) -> dict[str, float | str]:
    """The covariates that a sweep holds: as in `base`, or the cohort's median or commonest level.

    Raises:
        ValueError: a name that the cohort lacks, a value that is none of the cohort's kind.
    """
    _refuse_unknown(cohort, base)
    quantities = set(cohort.select_dtypes("number"))
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
    return fixed


def sweep(cohort: pd.DataFrame, name: str, values: Sequence[float], base: Mapping[str, str]) -> pd.DataFrame:
    """One row for each of `values` of the quantity `name`, the others as in `base_row`.

    Raises:
        ValueError: a name that the cohort lacks, a category to sweep, or as `base_row`.
    """
    _refuse_unknown(cohort, [name])
    quantities = set(cohort.select_dtypes("number"))
    if name not in quantities:
        raise ValueError(f"{name} is a category, only a quantity can be swept: {', '.join(sorted(quantities))}")
    return pd.DataFrame({**base_row(cohort, base), name: np.asarray(values, float)}, columns=cohort.columns)


def _refuse_unknown(cohort: pd.DataFrame, names: Iterable[str]) -> None:
    if unknown := [name for name in names if name not in cohort]:
        raise ValueError(f"no covariate is called {unknown[0]!r}; there are {', '.join(cohort)}")


def physical(covariates_file: Path, name: str, scaled: Sequence[float]) -> np.ndarray:
    """Values in the covariate's unit of scaled ones; 0 and 1 are the ends of its range in a model's covariates.json.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it has no range for this covariate.
    """
    if not covariates_file.is_file():
        raise FileNotFoundError(f"{covariates_file}: no such file. Name the model's covariates.json with --covariates_file")
    entries = {entry["name"]: entry for entry in json.loads(covariates_file.read_text(encoding="utf-8"))["covariates"]}
    if "range" not in entries.get(name, {}):
        raise ValueError(f"{covariates_file}: no range of {name}, beyond which to extrapolate")
    log = entries[name].get("scale") == "log"
    low, high = np.log(entries[name]["range"]) if log else entries[name]["range"]
    values = low + np.asarray(scaled) * (high - low)
    return np.exp(values) if log else values


def with_noises(table: pd.DataFrame, noises: int) -> pd.DataFrame:
    """The rows once for each noise, named 1, 2, ...; rows that would be equal are there once."""
    return pd.concat([table.drop_duplicates().assign(noise=str(number)) for number in range(1, noises + 1)], ignore_index=True)


def write_requests(table: pd.DataFrame, path: Path) -> None:
    """Write the rows with participant_id sub-syn0001 and so on, in one piece."""
    digits = max(4, len(str(len(table))))
    ids = [f"sub-syn{number:0{digits}d}" for number in range(1, len(table) + 1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    table.assign(participant_id=ids)[["participant_id", *table]].to_csv(partial, sep="\t", index=False, float_format="%.6g")
    os.replace(partial, path)


def extrapolation(cohort: pd.DataFrame, covariates_file: Path, base: Mapping[str, str]) -> list[pd.DataFrame]:
    """A sweep of each covariate of `EXTRAPOLATED` that the cohort has.

    Raises:
        ValueError: it has none of them.
    """
    names = [name for name in EXTRAPOLATED if name in cohort]
    if not names:
        raise ValueError(f"--extrapolate knows values of {', '.join(EXTRAPOLATED)} alone, and the columns have none of them")
    return [sweep(cohort, name, physical(covariates_file, name, EXTRAPOLATED[name]), base) for name in names]


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"--sweep {name}: its ends must be numbers, got {text!r}") from None


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
    parser.add_argument(
        "--sweep",
        nargs=3,
        action="append",
        default=[],
        metavar=("NAME", "LOW", "HIGH"),
        help="vary this quantity alone, evenly, in --rows steps; may be given several times",
    )
    parser.add_argument("--extrapolate", action="store_true", help="add the paper's values beyond the training range")
    parser.add_argument("--noises", type=int, default=1, help="repeat sweeps and extrapolation with so many noises (default 1)")
    parser.add_argument("--base", type=parse_base, default={}, help="what the covariates not swept are: age=65,sex=F")
    parser.add_argument(
        "--covariates_file", type=Path, default=COVARIATES_FILE, help="with --extrapolate, the model's ranges (the bundle's)"
    )
    options = parser.parse_args(arguments)
    if options.rows < 1:
        parser.error(f"--rows must be at least 1, got {options.rows}")
    if not 0 <= options.spread <= 1:
        parser.error(f"--spread must be 0 to 1 standard deviations, got {options.spread}")
    if options.noises < 1:
        parser.error(f"--noises must be at least 1, got {options.noises}")
    sweeps = bool(options.sweep or options.extrapolate)
    if (options.base or options.noises > 1) and not sweeps:
        parser.error("--base and --noises go with --sweep or --extrapolate")
    try:
        ranges = [(name, _number(name, low), _number(name, high)) for name, low, high in options.sweep]
        cohort = read_cohort(options.participants, options.columns)
        if sweeps:
            parts = [sweep(cohort, name, np.linspace(low, high, options.rows), options.base) for name, low, high in ranges]
            if options.extrapolate:
                parts += extrapolation(cohort, options.covariates_file, options.base)
            table = with_noises(pd.concat(parts, ignore_index=True), options.noises)
        else:
            table = draw(cohort, options.rows, options.seed, options.spread)
        write_requests(table, options.output)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{options.output}: {len(table)} volumes requested, from {len(cohort)} subjects of {options.participants}")


if __name__ == "__main__":
    main()
