"""Covariates: a schema reads them from tables and requests in physical values (years, mL, F/M) and scales them."""

from __future__ import annotations

import difflib
import json
import math
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from ..shared.files import read_json
from ..shared.problems import refuse
from ..shared.tables import read_numbered

# The scaled value of a missing covariate. Guidance gives it to all covariates, which means "no condition".
# A schema whose limits reach this far is refused, so that no real value is taken for it.
NULL = -1.0

# Scaled values that Pinaya et al. 2022 asked of their model. A request may go as far, even to values that nobody can have:
# ventricles of -0.5 are -75 mL.
EXTRAPOLATION = (-0.5, 1.9)

SCHEMA = '{"covariates": [one entry or more]}'
MISSING_CELLS = {"", "n/a", "na", "nan", "none", "null"}
SLIPS = {  # unit: (value in our unit if the slip was made, what it looks like, remedy)
    "mL": ((1e-3, "mm3", "divide by 1000"), (1e3, "litres or a ratio", "give mL")),
    "years": ((1 / 12, "months", "divide by 12"), (1 / 365.25, "days", "divide by 365.25")),
}


@dataclass(frozen=True)
class Covariate:
    """One entry of the schema: a quantity with a range, or a category with levels."""

    name: str  # column of the table
    unit: str = ""  # physical unit of the values, such as "mL"
    description: str = ""  # meaning, for the table that goes with generated volumes
    source: str = ""  # where the range comes from
    range: Sequence[float] | None = None  # lowest and highest value of the training data, which are scaled to 0 and 1
    levels: Mapping[str, float] | None = None  # scaled value of each category; instead of `range`
    limits: Sequence[float] | None = None  # lowest and highest plausible value; None: as far as `EXTRAPOLATION` of the range
    scale: str = "linear"  # or "log", to scale the logarithm
    missing: str = "refused"  # or "allowed": then a missing value is scaled to `NULL`

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isidentifier()) or self.name in ("participant_id", "split"):
            raise ValueError(f"the name {self.name!r} cannot be a covariate's. Use letters, digits and underscores")
        if (self.range is None) == (self.levels is None):
            raise ValueError(f"{self.name} needs either a 'range' (a quantity) or 'levels' (categories)")
        for key, choices in (("scale", ("linear", "log")), ("missing", ("refused", "allowed"))):
            if getattr(self, key) not in choices:
                raise ValueError(f"{self.name}: {key!r} must be {' or '.join(choices)}, got {getattr(self, key)!r}")
        if self.levels is not None:
            codes = list(self.levels.values()) if isinstance(self.levels, Mapping) else []
            if len(set(codes)) < 2 or len(set(codes)) < len(codes) or NULL in codes or not all(map(_is_number, codes)):
                raise ValueError(
                    f"{self.name}: 'levels' must give two or more categories a number each, all different and none "
                    f"{NULL:g} (it means 'missing'), got {self.levels!r}"
                )
            return
        for key, pair in (("range", self.range), ("limits", self.limits)):
            if pair is not None and not (len(pair) == 2 and all(map(_is_number, pair)) and pair[0] < pair[1]):
                raise ValueError(f"{self.name}: {key!r} must be [lowest, highest], got {pair!r}")
        if self.scale == "log" and min(self.range[0], *(self.limits or self.range)) <= 0:
            raise ValueError(f"{self.name}: 'scale': 'log' needs 'range' and 'limits' above 0")
        if self.limits is not None:
            if self.limits[0] > self.range[0] or self.limits[1] < self.range[1]:
                raise ValueError(f"{self.name}: 'limits' {self.limits} must enclose 'range' {self.range}")
            if self.scaled(self.limits[0]) <= NULL:
                raise ValueError(
                    f"{self.name}: the lower limit {self.limits[0]} is scaled to {self.scaled(self.limits[0]):.3g}; "
                    f"{NULL:g} means 'missing'. Raise it above {self.unscaled(NULL):.5g}, or widen the range"
                )

    def scaled(self, value: float | str | None) -> float:
        """The model's input for a physical value; `NULL` where it is missing."""
        if value is None:
            return NULL
        if self.levels is not None:
            return float(self.levels[value])
        low, high, value = (math.log(x) if self.scale == "log" else x for x in (*self.range, value))
        return (value - low) / (high - low)

    def unscaled(self, scaled: float) -> float:
        """The physical value of a quantity, from the model's input."""
        low, high = (math.log(x) if self.scale == "log" else x for x in self.range)
        value = low + scaled * (high - low)
        return math.exp(value) if self.scale == "log" else value

    def physical(self, scaled: float) -> float | str | None:
        """The physical value of a model's input: a number, the level whose code is nearest, or None for `NULL`."""
        if scaled == NULL:
            return None
        if self.levels is not None:
            return min(self.levels, key=lambda level: abs(self.levels[level] - scaled))
        return float(f"{self.unscaled(scaled):.12g}")  # 80 years come back as 80, not as a hair above the limit

    def value(self, raw: object, request: bool = False) -> float | str | None:
        """Read the physical value in a table's cell or an argument; None where it is missing.

        A `request` may be as extreme as the paper's requests; a measured value may not.

        Raises:
            ValueError: the value is missing, no number, no level or not plausible.
        """
        if raw is None or str(raw).strip().lower() in MISSING_CELLS:
            if self.missing == "allowed":
                return None
            raise ValueError(
                f'{self.name} is missing ({raw!r}). Fill it in, leave this row out, or set "missing": "allowed" in '
                f"covariates.json"
            )
        if self.levels is not None:
            level = f"{raw:g}" if _is_number(raw) else str(raw)
            if level not in self.levels:
                levels = " or ".join(map(repr, self.levels))
                raise ValueError(f"{self.name} must be {levels}, got {raw!r}")
            return level
        try:
            value = float(raw)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value):
            raise ValueError(f"{self.name} must be a number{self._in_unit()}, decimals after a point, got {raw!r}")
        low, high = self._bounds(request)
        rounding = 1e-5 * (high - low) if request else 0.0  # tables are written with six digits
        if not low - rounding <= value <= high + rounding:
            raise ValueError(f"{self.name} is {value:g}, {self._slip(value)}")
        return value

    def extrapolates(self, value: float | str | None) -> bool:
        """Whether a value lies outside of the range of the training data."""
        return self.range is not None and value is not None and not self.range[0] <= value <= self.range[1]

    def _bounds(self, request: bool) -> tuple[float, float]:
        low, high = map(self.unscaled, EXTRAPOLATION)
        if self.limits is None:
            return low, high
        return (min(low, self.limits[0]), max(high, self.limits[1])) if request else tuple(self.limits)

    def _slip(self, value: float) -> str:
        low, high = self._bounds(request=False)
        for factor, unit, remedy in SLIPS.get(self.unit, ()):
            if low <= value * factor <= high:
                return f"which looks like {unit}; the column is in {self.unit}: {remedy}"
        return f"outside of the plausible {low:g} to {high:g}{self._in_unit()} ('limits' in covariates.json)"

    def _in_unit(self) -> str:
        return f" in {self.unit}" if self.unit else ""


@dataclass(frozen=True)
class Request:
    """One volume to make. `CovariateSchema.request` makes it from a row that was checked."""

    participant_id: str  # "sub-" and a BIDS label
    values: Mapping[str, float | str | None]  # physical value of each covariate; None where it is missing
    scaled: tuple[float, ...]  # inputs of the model, in the schema's order
    noise: str | None = None  # name of the noise that the volume begins from; None: a noise of its own


@dataclass(frozen=True)
class CovariateSchema:
    """The covariates of a model, in the order of its input channels."""

    covariates: tuple[Covariate, ...]

    @classmethod
    def from_file(cls, path: str | Path) -> CovariateSchema:
        """Read `configs/covariates.json`, or a user's own file."""
        return cls.from_dict(read_json(path, SCHEMA), where=str(path))

    @classmethod
    def from_dict(cls, content: Mapping, where: str = "schema of covariates") -> CovariateSchema:
        """Read {"covariates": one entry for each `Covariate`}, the content of a file or what weights carry (`to_dict`).

        Raises:
            ValueError: an entry lacks its range or levels, contradicts itself, or has an unknown key.
        """
        entries = content.get("covariates") if isinstance(content, Mapping) else None
        if not isinstance(entries, Sequence) or not entries or not all(isinstance(entry, Mapping) for entry in entries):
            raise ValueError(f"{where}: expected {SCHEMA}")
        known = [field.name for field in fields(Covariate)]
        covariates = []
        for number, entry in enumerate(entries, start=1):
            for key in entry:
                if key not in known:
                    raise ValueError(f"{where} entry {number}: unknown key {key!r}{_nearest(key, known)}")
            try:
                covariates.append(Covariate(**{"name": None, **entry}))
            except ValueError as error:
                raise ValueError(f"{where} entry {number}: {error}") from error
        names = [covariate.name for covariate in covariates]
        if len(set(names)) < len(names):
            raise ValueError(f"{where}: a name appears twice in {names}")
        return cls(tuple(covariates))

    def to_dict(self) -> dict:
        """The schema in plain lists, strings and numbers, as in the file, so that weights can carry it."""
        entries = [{key: value for key, value in asdict(c).items() if value not in (None, "")} for c in self.covariates]
        return json.loads(json.dumps({"covariates": entries}))

    @property
    def names(self) -> list[str]:
        """The columns of a table, in the order of the model's input channels."""
        return [covariate.name for covariate in self.covariates]

    def values(self, row: Mapping, where: str = "", request: bool = False) -> dict[str, float | str | None]:
        """Check a row and give the physical value of each covariate, as `Covariate.value` reads it.

        Raises:
            ValueError: all that is wrong with the row, one problem a line that begins with `where`.
        """
        values, problems = {}, []
        for covariate in self.covariates:
            try:
                values[covariate.name] = covariate.value(row.get(covariate.name), request)
            except ValueError as error:
                problems.append(f"{where}: {error}" if where else str(error))
        refuse(problems)
        return values

    def scale(self, values: Mapping) -> list[float]:
        """The model's inputs for checked physical values: 0 to 1 within the ranges, `NULL` where missing."""
        return [covariate.scaled(values[covariate.name]) for covariate in self.covariates]

    def request(self, row: Mapping) -> Request:
        """Make a request from a row of `read_table`, or from a `single_request` with a participant_id."""
        participant_id = f"sub-{participant_label(row['participant_id'])}"
        values = {name: row[name] for name in self.names}
        return Request(participant_id, values, tuple(self.scale(values)), row.get("noise"))

    def read_table(self, path: str | Path, optional: Collection[str] = (), cohort: bool = False) -> list[dict]:
        """Read a tab-separated table: "participant_id" (sub-X) and the covariates in physical values.

        Plausible values outside of the range are taken, with one warning for each column.

        Args:
            path: BIDS' participants.tsv, or a table of requests.
            optional: names of other columns to keep, as text; None where a cell is empty.
            cohort: True for a table of measured data, whose other columns are ignored. In a table of requests they are
                refused, because a misspelt covariate must not go unnoticed.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: what is wrong with the table, by row (the header is row 1) and column.
        """
        path = Path(path)
        header, numbered, problems = read_numbered(path)
        wanted = ["participant_id", *self.names, *optional]
        if not cohort and (unknown := [column for column in header if column not in wanted]):
            raise ValueError(
                f"{path}: unknown column {unknown[0]!r}{_nearest(unknown[0], wanted)}. Known: {', '.join(wanted)}. "
                f"Rename or remove it"
            )
        for column in ["participant_id", *(c.name for c in self.covariates if c.missing == "refused")]:
            if column not in header:
                raise ValueError(f"{path}: no column {column!r}{_nearest(column, header)}. It has: {', '.join(header)}")
        rows, first_row = [], {}
        for number, cells in numbered.items():
            try:
                participant = f"sub-{participant_label(cells['participant_id'])}"
                if first_row.setdefault(participant, number) != number:
                    raise ValueError(f"participant_id {participant} is also in row {first_row[participant]}")
                row = {"participant_id": participant, **self.values(cells, request=not cohort)}
            except ValueError as error:
                problems += [f"{path} row {number}: {problem}" for problem in str(error).split("\n")]
                continue
            for column in optional:
                if column in header:
                    row[column] = None if cells[column].strip().lower() in MISSING_CELLS else cells[column]
            rows.append(row)
        refuse(problems)
        self.warn_extrapolation(rows, str(path))
        return rows

    def warn_extrapolation(self, rows: Sequence[Mapping], where: str) -> None:
        """Warn once for each covariate that lies outside of its range in some rows."""
        for covariate in self.covariates:
            outside = [row[covariate.name] for row in rows if covariate.extrapolates(row[covariate.name])]
            if outside:
                low, high = covariate.range
                warnings.warn(
                    f"{where}: {covariate.name} lies outside of {low:g} to {high:g}{covariate._in_unit()} in "
                    f"{len(outside)} of {len(rows)} rows ({min(outside):g} to {max(outside):g}). There the model "
                    f"extrapolates; Pinaya et al. 2022 tried {EXTRAPOLATION[0]} to {EXTRAPOLATION[1]} of the range.",
                    stacklevel=3,
                )


def single_request(schema: CovariateSchema, values: Mapping) -> dict:
    """Check one request, such as {"age": 70, "sex": "F"}, and give it as a row of `read_table`, maybe without participant_id.

    Raises:
        ValueError: a name is unknown, or a table would be refused for a value.
    """
    known = ["participant_id", *schema.names]
    for name in values:
        if name not in known:
            raise ValueError(f"request: unknown covariate {name!r}{_nearest(name, known)}. Known: {known[1:]}")
    row = schema.values(values, "request", request=True)
    schema.warn_extrapolation([row], "request")
    given = values.get("participant_id")
    return row if given is None else {"participant_id": f"sub-{participant_label(given)}", **row}


def participant_label(participant_id: object) -> str:
    """The label of a BIDS participant without its prefix "sub-". It has letters, digits and + only, so it is no path."""
    match = re.fullmatch(r"(?:sub-)?([0-9A-Za-z+]+)", str(participant_id))
    if participant_id is None or match is None:
        raise ValueError(f"participant_id must be 'sub-' and letters or digits, as BIDS asks, got {participant_id!r}")
    return match[1]


def _nearest(name: str, names: Collection[str]) -> str:
    lower = {other.strip().lower(): other for other in names}
    close = difflib.get_close_matches(str(name).strip().lower(), lower, n=1, cutoff=0.5)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
