"""Sweeps in a generated folder: volumes of one noise, whose requests differ in one covariate alone."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from cohorts.cohort import Cohort


@dataclass
class Sweep:
    """Volumes of one noise whose requests differ in one covariate alone.

    Attributes:
        name: the covariate.
        rows: by volume, in the order of `requested`: requested, scaled (0 to 1 is the range), and what each tool measured
            (NaN where it could not).
        tools: that measured the covariate, columns of `rows`.
    """

    name: str
    rows: pd.DataFrame
    tools: tuple[str, ...]

    @property
    def inside(self) -> pd.DataFrame:
        return self.rows[self.rows["scaled"].between(-1e-6, 1 + 1e-6)]

    @property
    def outside(self) -> pd.DataFrame:
        return self.rows.drop(self.inside.index)


def read_requested(cohort: Cohort) -> pd.DataFrame:
    """What the sidecars say, by volume: seed, and the value and the scaled value of each covariate.

    Raises:
        ValueError: a sidecar is missing or not one of generation.
    """
    rows = {}
    for volume, image in cohort.images.items():
        path = image.with_name(f"{image.name.split('.nii')[0]}.json")
        try:
            sidecar = json.loads(path.read_text(encoding="utf-8"))
            covariates = sidecar["Covariates"]
            values = {("value", name): entry["Value"] for name, entry in covariates.items()}
            scaled = {("scaled", name): entry["Scaled"] for name, entry in covariates.items()}
            rows[volume] = {("", "seed"): sidecar["Seed"], **values, **scaled}
        except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path}: not the sidecar of a generated volume ({type(error).__name__}: {error})") from error
    return pd.DataFrame.from_dict(rows, orient="index")


def find_sweeps(cohort: Cohort, name: str) -> list[Sweep]:
    """The sweeps of a covariate: volumes of one seed, equal in all other covariates, with three or more values of this one.

    Raises:
        ValueError: no such covariate, a category, or no such volumes.
    """
    requested = read_requested(cohort)
    names = list(requested["value"])
    if name not in names:
        raise ValueError(f"{cohort.folder}: no covariate is called {name!r}; there are {', '.join(names)}")
    if not pd.api.types.is_numeric_dtype(requested["value", name]):
        raise ValueError(f"{name} is a category, only a quantity can be swept")
    others = [("", "seed"), *(("value", other) for other in names if other != name)]
    groups = requested.groupby(others, dropna=False, sort=True)
    measured = {tool: by_tool.measured[name] for of, tool, by_tool in cohort.readings() if of == name}
    sweeps = []
    for _, group in groups:
        rows = pd.DataFrame({"requested": group["value", name], "scaled": group["scaled", name]}).astype(float)
        rows = rows.assign(**{tool: values.reindex(rows.index) for tool, values in measured.items()})
        rows = rows.sort_values("requested", kind="stable")
        if rows["requested"].nunique() >= 3:
            sweeps.append(Sweep(name, rows, tuple(measured)))
    if not sweeps:
        raise ValueError(
            f"{cohort.folder}: no three volumes of one noise that differ in {name} alone. Request them with: "
            f"python scripts/make_requests.py PARTICIPANTS_TSV OUT_TSV --sweep {name} LOW HIGH"
        )
    return sweeps


def by_tool(sweeps: Sequence[Sweep]) -> Iterator[tuple[str, str | None, list[Sweep]]]:
    """Each covariate and each tool that measured it (None where none did), with the covariate's sweeps."""
    for name in dict.fromkeys(sweep.name for sweep in sweeps):
        own = [sweep for sweep in sweeps if sweep.name == name]
        for tool in own[0].tools or (None,):
            yield name, tool, own


def model_range(sweeps: Sequence[Sweep]) -> tuple[float, float]:
    """Values of the covariate that are scaled to 0 and 1; exact for a linear scale, by interpolation for a logarithmic one."""
    rows = pd.concat([sweep.rows for sweep in sweeps]).drop_duplicates("requested").sort_values("scaled")
    positive = (rows["requested"] > 0).all()
    straight = abs(stats.pearsonr(rows["scaled"], rows["requested"]).statistic) > 1 - 1e-9
    requested = rows["requested"] if straight or not positive else np.log(rows["requested"])
    line = stats.linregress(rows["scaled"], requested)
    ends = line.intercept, line.intercept + line.slope
    return ends if straight or not positive else tuple(np.exp(ends))


def scan_pairs(scans: Cohort | None, name: str, tool: str | None) -> pd.DataFrame | None:
    """True and measured values of the scans that this tool measured; None where there are none."""
    found = [by.pairs(name) for of, by_this, by in scans.readings() if (of, by_this) == (name, tool)] if scans else []
    return found[0] if found and len(found[0]) else None
