"""Read covariates from tables and requests in physical values (years, mL, F/M), and scale them for the model."""

from __future__ import annotations

import difflib
import json
import math
import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from ..shared.files import read_json
from ..shared.participants import entity, refuse_summary
from ..shared.problems import refuse
from ..shared.tables import NUMBER, SYNONYMS, is_missing, read_number, read_numbered
from .volumes import check_fit

# Scaled value of a missing covariate. For guidance, all covariates have this value, which means "no condition".
# A schema whose limits reach this value is refused, so that it cannot be confused with a real value.
NULL = -1.0
LARGEST_CODE = 3  # of a level; chosen: codes such as 1, 2, 3 pass

# Range of scaled values that Pinaya et al. 2022 requested from their model. Our requests may use the same range, although it
# includes impossible values: scaled ventricles of -0.5 are -75 mL.
EXTRAPOLATION = (-0.5, 1.9)

# Columns of tables, entries of datalists and settings of `editing`, which would be confused with covariates of these names.
RESERVED = ("participant_id", "session_id", "split", "noise", "image", "strength", "seed")
SCHEMA = '{"covariates": [one entry or more]}'
SLIPS = {  # unit: (value in our unit if the slip was made, what it looks like, remedy)
    "mL": ((1e-3, "mm3", "divide by 1000"), (1e3, "litres or a ratio", "give mL"), (15, "percent of the head", "give mL")),
    "years": ((1 / 12, "months", "divide by 12"), (1 / 365.25, "days", "divide by 365.25")),
}


@dataclass(frozen=True)
class Covariate:
    """One entry of the schema: a quantity with a range, or a category with levels."""

    name: str  # column of the table
    unit: str = ""  # physical unit of the values, such as "mL"
    description: str = ""  # meaning of the covariate, written to participants.json of generated volumes
    source: str = ""  # reference for the range
    range: Sequence[float] | None = None  # lowest and highest value of the training data, which are scaled to 0 and 1
    levels: Mapping[str, float] | None = None  # scaled value of each category; replaces `range`
    limits: Sequence[float] | None = None  # lowest and highest plausible value; None derives them from `EXTRAPOLATION`
    scale: str = "linear"  # or "log" to scale the logarithm
    missing: str = "refused"  # or "allowed" to scale a missing value to `NULL`
    unseen: Sequence[str] = ()  # levels that no training scan had; only weights hold it

    def __post_init__(self) -> None:
        if not (isinstance(self.name, str) and self.name.isidentifier()) or self.name.lower() in RESERVED:
            raise ValueError(
                f"the name {self.name!r} cannot be a covariate's. Use letters, digits and underscores, and none of "
                f"{', '.join(RESERVED)}"
            )
        for key in ("unit", "description", "source"):
            if not isinstance(getattr(self, key), str | None):
                raise ValueError(f"{self.name}: {key!r} must be text, got {getattr(self, key)!r}")
        if (self.range is None) == (self.levels is None):
            raise ValueError(f"{self.name} needs either a 'range' (a quantity) or 'levels' (categories)")
        for key, choices in (("scale", ("linear", "log")), ("missing", ("refused", "allowed"))):
            if getattr(self, key) not in choices:
                raise ValueError(f"{self.name}: {key!r} must be {' or '.join(choices)}, got {getattr(self, key)!r}")
        levels = self.levels if isinstance(self.levels, Mapping) else {}
        if not (isinstance(self.unseen, (list, tuple)) and all(isinstance(one, str) and one in levels for one in self.unseen)):
            raise ValueError(f"{self.name}: 'unseen' must be a list of some of its levels, got {self.unseen!r}")
        if self.levels is not None:
            codes = list(self.levels.values()) if isinstance(self.levels, Mapping) else []
            if len(set(codes)) < 2 or len(set(codes)) < len(codes) or NULL in codes or not all(map(_is_number, codes)):
                raise ValueError(
                    f"{self.name}: 'levels' must give two or more categories a number each, all different and none "
                    f"{NULL:g} (it means 'missing'), got {self.levels!r}"
                )
            if any(abs(code) > LARGEST_CODE for code in codes):
                raise ValueError(
                    f"{self.name}: codes of 'levels' go into the network as they are, beside quantities of 0 to 1. Give "
                    f"numbers from {-LARGEST_CODE} to {LARGEST_CODE}, got {self.levels!r}"
                )
            if words := list(filter(is_missing, self.levels)):
                raise ValueError(f"{self.name}: the level {words[0]!r} is a word for a missing value. Rename it, such as 'no'")
            return
        for key, pair in (("range", self.range), ("limits", self.limits)):
            is_pair = isinstance(pair, (list, tuple)) and len(pair) == 2 and all(map(_is_number, pair))
            if pair is not None and not (is_pair and pair[0] < pair[1]):
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
        """Scale a physical value to the model's input; a missing value gives `NULL`."""
        if value is None:
            return NULL
        if self.levels is not None:
            return float(self.levels[value])
        low, high, value = (math.log(x) if self.scale == "log" else x for x in (*self.range, value))
        return (value - low) / (high - low)

    def unscaled(self, scaled: float) -> float:
        """Convert the model's input to the physical value of a quantity."""
        low, high = (math.log(x) if self.scale == "log" else x for x in self.range)
        value = low + scaled * (high - low)
        return math.exp(value) if self.scale == "log" else value

    def physical(self, scaled: float) -> float | str | None:
        """Convert the model's input to a physical value: a number, the level with the nearest code, or None for `NULL`."""
        if scaled == NULL:
            return None
        if self.levels is not None:
            return min(self.levels, key=lambda level: abs(self.levels[level] - scaled))
        return float(f"{self.unscaled(scaled):.12g}")  # so that 80 years give 80 again, not slightly more than the limit

    def value(self, raw: object, request: bool = False) -> float | str | None:
        """Read a physical value from a table's cell or an argument; a missing value gives None.

        A `request` may be as extreme as the paper's requests; a measured value may not.

        Raises:
            ValueError: the value is missing, not a number, not one of the levels, or not plausible.
        """
        if is_missing(raw):
            if self.missing == "allowed":
                return None
            raise ValueError(
                f'{self.name} is missing ({raw!r}). Fill it in, leave this row out, or set "missing": "allowed" in '
                f"covariates.json"
            )
        if self.levels is not None:
            level = str(raw).strip()
            if level not in self.levels and NUMBER.fullmatch(level):
                level = f"{float(level):g}"  # pandas writes 1 as 1.0 if the column has missing values
            if level not in self.levels:
                levels = " or ".join(map(repr, self.levels))
                raise ValueError(f"{self.name} must be {levels}, got {raw!r}")
            return level
        try:
            value = read_number(raw)
        except ValueError as error:
            raise ValueError(f"{self.name}{self._in_unit()} {error}") from None
        low, high = self._bounds(request)
        rounding = 1e-5 * (high - low) if request else 0.0  # tables are written with six digits
        if not low - rounding <= value <= high + rounding:
            raise ValueError(f"{self.name} is {value:g}, {self._slip(value)}")
        return value

    def extrapolates(self, value: float | str | None) -> bool:
        """Check whether a value lies outside of the range of the training data."""
        return self.range is not None and value is not None and not self.range[0] <= value <= self.range[1]

    def _bounds(self, request: bool) -> tuple[float, float]:
        low, high = map(self.unscaled, EXTRAPOLATION)
        if self.limits is None:
            return low, high
        return (min(low, self.limits[0]), max(high, self.limits[1])) if request else tuple(self.limits)

    def _slip(self, value: float) -> str:
        low, high = self._bounds(request=False)
        if re.fullmatch("-?9+", f"{value:g}"):
            return f"outside of {low:g} to {high:g}{self._in_unit()}. If it stands for a missing value, write n/a"
        for factor, unit, remedy in SLIPS.get(self.unit, ()):
            if low <= value * factor <= high:
                return f"which looks like {unit}; the column is in {self.unit}: {remedy}"
        return f"outside of the plausible {low:g} to {high:g}{self._in_unit()} ('limits' in covariates.json)"

    def _in_unit(self) -> str:
        return f" in {self.unit}" if self.unit else ""


@dataclass(frozen=True)
class Request:
    """A request for one volume. `CovariateSchema.request` creates it from a checked row."""

    participant_id: str  # "sub-" and a BIDS label
    values: Mapping[str, float | str | None]  # physical value of each covariate; None for a missing one
    scaled: tuple[float, ...]  # inputs of the model, in the schema's order
    noise: str | None = None  # name of the initial noise, shared by requests of this name; None gives it its own noise


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
        """Read {"covariates": one entry for each `Covariate`}, from a file or from the recipe of weights (`to_dict`).

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
        if len({name.lower() for name in names}) < len(names):  # tables may write a name in either case
            raise ValueError(f"{where}: a name appears twice in {names}")
        return cls(tuple(covariates))

    def to_dict(self) -> dict:
        """Convert the schema to plain lists, strings and numbers, as in the file, so that it can be stored with weights."""
        entries = [{key: value for key, value in asdict(c).items() if value not in (None, "", (), [])} for c in self.covariates]
        return json.loads(json.dumps({"covariates": entries}))

    def trained_on(self, items: Sequence[Mapping]) -> CovariateSchema:
        """Return the schema with the levels that no training scan has, items of `bids.read_dataset`."""
        covariates = []
        for position, covariate in enumerate(self.covariates):
            seen = {item["covariates"][position] for item in items}
            unseen = [level for level, code in (covariate.levels or {}).items() if code not in seen]
            covariates.append(replace(covariate, unseen=unseen))
        return CovariateSchema(tuple(covariates))

    @property
    def names(self) -> list[str]:
        """Names of the covariates, in the order of the model's input channels."""
        return [covariate.name for covariate in self.covariates]

    @property
    def inputs(self) -> list[tuple]:
        """Name, range, codes and scale of each input of the model. Models with equal ones understand each other's values."""
        return [(c.name, c.range and list(map(float, c.range)), c.levels and dict(c.levels), c.scale) for c in self.covariates]

    def values(self, row: Mapping, where: str = "", request: bool = False) -> dict[str, float | str | None]:
        """Check a row and return the physical value of each covariate, as `Covariate.value` reads it.

        Raises:
            ValueError: the row has problems. The message has one line for each, which begins with `where`.
        """
        values, problems = {}, []
        for covariate in self.covariates:
            try:
                values[covariate.name] = covariate.value(row.get(covariate.name), request)
            except ValueError as error:
                problems.append(f"{where}: {error}" if where else str(error))
        try:
            check_fit({c.name: values.get(c.name) for c in self.covariates if c.unit == "mL"})
        except ValueError as error:
            problems.append(f"{where}: {error}" if where else str(error))
        refuse(problems)
        return values

    def scale(self, values: Mapping) -> list[float]:
        """Scale checked physical values to the model's inputs: 0 to 1 within the ranges, `NULL` for missing values."""
        return [covariate.scaled(values[covariate.name]) for covariate in self.covariates]

    def request(self, row: Mapping) -> Request:
        """Make a request from a row of `read_table`, or from a `single_request` with a participant_id."""
        values = {name: row[name] for name in self.names}
        return Request(entity("sub", row["participant_id"]), values, tuple(self.scale(values)), row.get("noise"))

    def read_table(self, path: str | Path, optional: Collection[str] = ()) -> list[dict]:
        """Read a table of requests: "participant_id" (sub-X) and the covariates in physical values.

        Plausible values outside of the range are accepted, with one warning for each column. Other columns are refused,
        because a misspelt covariate must not go unnoticed. `measured_rows` reads the table of a cohort.

        Args:
            path: table with a row for each request, see `read_numbered`.
            optional: names of further columns to read as text; an empty cell gives None.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the table has problems. The message names their rows (the header is row 1) and columns.
        """
        path, wanted = Path(path), ["participant_id", *self.names, *optional]
        header, numbered, problems = read_numbered(path, wanted)
        if unknown := [column for column in header if column not in wanted]:
            raise ValueError(
                f"{path}: unknown column {unknown[0]!r}{_nearest(unknown[0], wanted)}. Known: {', '.join(wanted)}. "
                f"Rename or remove it"
            )
        self.refuse_absent(path, header)
        rows, first_row = [], {}
        for number, cells in numbered.items():
            try:
                refuse_summary(cells["participant_id"])
                participant = entity("sub", cells["participant_id"])
                if first_row.setdefault(participant, number) != number:
                    raise ValueError(f"participant_id {participant} is also in row {first_row[participant]}")
                row = {"participant_id": participant, **self.values(cells, request=True)}
            except ValueError as error:
                problems += [f"{path} row {number}: {problem}" for problem in str(error).split("\n")]
                continue
            for column in optional:
                if column in header:
                    row[column] = None if is_missing(cells[column]) else cells[column]
            rows.append(row)
        refuse(problems)
        self.warn_extrapolation(rows, str(path))
        return rows

    def refuse_absent(self, path: str | Path, header: Collection[str]) -> None:
        """Refuse a table without a column for participants or for a covariate that may not be missing."""
        for column in ["participant_id", *(c.name for c in self.covariates if c.missing == "refused")]:
            if column not in header:
                raise ValueError(f"{path}: no column {column!r}{_nearest(column, header)}. It has: {', '.join(header)}")

    def warn_extrapolation(self, rows: Sequence[Mapping], where: str) -> None:
        """Warn once for each covariate with values outside of its range, or with levels that no training scan had."""
        for covariate in self.covariates:
            if new := sorted({row[covariate.name] for row in rows} & set(covariate.unseen)):
                levels = " or ".join(map(repr, new))
                warnings.warn(f"{where}: {covariate.name} is {levels}, which no training scan of the model had", stacklevel=3)
            outside = [row[covariate.name] for row in rows if covariate.extrapolates(row[covariate.name])]
            if outside:
                low, high = covariate.range
                warnings.warn(
                    f"{where}: {covariate.name} lies outside of {low:g} to {high:g}{covariate._in_unit()} in "
                    f"{len(outside)} of {len(rows)} rows ({min(outside):g} to {max(outside):g}). There the model "
                    f"extrapolates; Pinaya et al. 2022 tried {EXTRAPOLATION[0]} to {EXTRAPOLATION[1]} of the range.",
                    stacklevel=3,
                )


def single_request(schema: CovariateSchema, values: Mapping, where: str = "request") -> dict:
    """Check one request, such as {"age": 70, "sex": "F"}, and return it as a row of `read_table`; the id is optional.

    Error messages begin with `where`.

    Raises:
        ValueError: a name is unknown, or a value is missing or not plausible.
    """
    known = ["participant_id", *schema.names]
    for name in values:
        if name not in known:
            if name in RESERVED:
                raise ValueError(f"{where}: {name!r} is no covariate. Known: {known[1:]}. Give it in a table of --requests")
            raise ValueError(f"{where}: unknown covariate {name!r}{_nearest(name, known)}. Known: {known[1:]}")
    row = schema.values(values, where, request=True)
    schema.warn_extrapolation([row], where)
    given = values.get("participant_id")
    return row if given is None else {"participant_id": entity("sub", given), **row}


def _nearest(name: str, names: Collection[str]) -> str:
    lower = {other.strip().lower(): other for other in names}
    name = str(name).strip().lower()
    close = [other for other in lower if other == SYNONYMS.get(name)] or difflib.get_close_matches(name, lower, n=1, cutoff=0.6)
    return f" (did you mean {lower[close[0]]!r}?)" if close else ""


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
