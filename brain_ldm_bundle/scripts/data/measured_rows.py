"""Read the covariates of a cohort's participants and sessions, and check them as measured values."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..shared.participants import Row, Rows, other_units, read_participants, refuse_given_once
from ..shared.tables import is_missing, read_number
from .covariates import CovariateSchema
from .volumes import FEWEST, VOLUMES, check_median, check_volumes


def read_rows(table: Path, schema: CovariateSchema) -> tuple[Rows, list[str]]:
    """Read participants.tsv, and the tables of sessions beside it, which must have the columns of the schema.

    Returns:
        the rows with their text, and one line for each problem.
    """
    header, rows, problems = read_participants(table, [*schema.names, "split", *VOLUMES])
    schema.refuse_absent(table, header)
    return rows, problems + other_units(table, {covariate.name: covariate.unit for covariate in schema.covariates})


def measured_values(
    rows: Mapping[str, Mapping[str | None, Row]], schema: CovariateSchema, where: str
) -> tuple[dict[tuple[str, str | None], dict], list[str]]:
    """Read the physical values of the sessions that are used; see `CovariateSchema.values`.

    Args:
        rows: row of each session of each participant.
        schema: covariates of the scans.
        where: name of the table in the warning about values outside of their range.

    Returns:
        the values by participant and session, and one line for each problem.
    """
    quantities = [covariate.name for covariate in schema.covariates if covariate.levels is None]
    values, problems = {}, []
    for participant, sessions in rows.items():
        try:
            refuse_given_once(participant, sessions, quantities)
        except ValueError as error:
            problems.append(str(error))
            continue
        for session, row in sessions.items():
            try:
                values[participant, session] = schema.values(row.cells, row.where)
                check_volumes(volumes_in(row), row.where)
            except ValueError as error:
                problems += str(error).split("\n")
    if not problems:
        problems += column_problems(list(values.values()), schema, where)
    return values, problems


def column_problems(values: Sequence[Mapping], schema: CovariateSchema, where: str) -> list[str]:
    """Return a line if the volumes of a cohort look like percent.

    Warn about values outside of their range, about none, about one alone, and about a highest value that looks like a code.
    """
    schema.warn_extrapolation(values, where)
    if empty := [name for name in schema.names if values and all(row[name] is None for row in values)]:
        warnings.warn(f"{where}: no row has a value of {', '.join(empty)}. Is the column's name right?", stacklevel=3)
    for covariate in schema.covariates:
        rows_of = Counter(row[covariate.name] for row in values if row[covariate.name] is not None)
        if len(rows_of) == 1 and rows_of.total() >= FEWEST:
            (only,) = rows_of
            warnings.warn(f"{where}: {covariate.name} is {only} in every row, so a model cannot learn its effect", stacklevel=3)
        elif len(rows_of) > 1 and covariate.levels is None:
            second, highest = sorted(rows_of)[-2:]
            if rows_of[highest] >= FEWEST and rows_of[highest] > 2 * rows_of[second]:
                warnings.warn(
                    f"{where}: {covariate.name} is {highest:g}, its highest value, in {rows_of[highest]} rows. If this stands "
                    f"for a missing value, or for all higher ones, write n/a",
                    stacklevel=3,
                )
    try:
        check_median([row["ventricles_ml"] for row in values if row.get("ventricles_ml") is not None], where)
    except ValueError as error:
        return [str(error)]
    return []


def volumes_in(row: Row) -> dict[str, float]:
    """Return the volumes of `VOLUMES` that a row has, in mL."""
    volumes = {}
    for name in VOLUMES:
        if not is_missing(cell := row.cells.get(name)):
            try:
                volumes[name] = read_number(cell)
            except ValueError as error:
                raise ValueError(f"{row.where}: {name} {error}") from None
    return volumes
