"""Find sweeps in a generated folder. A sweep is a set of volumes of one noise whose requests differ in one covariate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from cohorts.cohort import Cohort
from scipy import stats
from shared.files import read_json


@dataclass
class Sweep:
    """Volumes of one noise whose requests differ in one covariate alone.

    `rows` has one row per volume, by rising request. The columns are `requested`, `scaled` (the range of the model is 0 to 1),
    and one per tool with its measurements, which are NaN where it could not measure.
    """

    name: str  # covariate that changes
    rows: pd.DataFrame
    tools: tuple[str, ...]

    @property
    def inside(self) -> pd.DataFrame:
        return self.rows[self.rows["scaled"].between(-1e-6, 1 + 1e-6)]

    @property
    def outside(self) -> pd.DataFrame:
        return self.rows.drop(self.inside.index)


def read_requested(cohort: Cohort) -> pd.DataFrame:
    """Read the seed of each volume, and the value and scaled value of each covariate, from the sidecars."""
    rows = {}
    for volume, image in cohort.images.items():
        path = image.with_name(f"{image.name.split('.nii')[0]}.json")
        try:
            sidecar = read_json(path)
            entries = sidecar["Covariates"].items()
            rows[volume] = {("", "seed"): sidecar["Seed"]}
            rows[volume] |= {(kind.lower(), name): entry[kind] for name, entry in entries for kind in ("Value", "Scaled")}
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not the sidecar of a generated volume ({type(error).__name__}: {error})") from error
    return pd.DataFrame.from_dict(rows, orient="index")


def find_sweeps(cohort: Cohort, name: str) -> list[Sweep]:
    """Find the sweeps of a covariate. Their volumes share one seed and all other covariates, and have 3 or more values."""
    requested = read_requested(cohort)
    names = list(requested["value"])
    if name not in names:
        raise ValueError(f"{cohort.folder}: no covariate is called {name!r}; there are {', '.join(names)}")
    if not pd.api.types.is_numeric_dtype(requested["value", name]):
        raise ValueError(f"{name} is a category, but only a quantity can be swept")
    constant = [("", "seed"), *(("value", other) for other in names if other != name)]
    measured = {tool: by_tool.measured[name] for quantity, tool, by_tool in cohort.readings() if quantity == name}
    sweeps = []
    for _, group in requested.groupby(constant, dropna=False, sort=True):
        rows = pd.DataFrame({"requested": group["value", name], "scaled": group["scaled", name]}).astype(float)
        rows = rows.assign(**{tool: values.reindex(rows.index) for tool, values in measured.items()})
        if rows["requested"].nunique() >= 3:
            sweeps.append(Sweep(name, rows.sort_values("requested", kind="stable"), tuple(measured)))
    if not sweeps:
        raise ValueError(
            f"{cohort.folder}: no three volumes of one noise differ in {name} alone. Request them with: "
            f"python scripts/make_requests.py PARTICIPANTS_TSV OUT_TSV --sweep {name} LOW HIGH"
        )
    return sweeps


def by_tool(sweeps: Sequence[Sweep]) -> Iterator[tuple[str, str | None, list[Sweep]]]:
    """Yield each covariate and tool with the covariate's sweeps. The tool is None if no tool measured the covariate."""
    for name in dict.fromkeys(sweep.name for sweep in sweeps):
        own = [sweep for sweep in sweeps if sweep.name == name]
        for tool in own[0].tools or (None,):
            yield name, tool, own


def model_range(sweeps: Sequence[Sweep]) -> tuple[float, float]:
    """Return the values of the covariate that are scaled to 0 and 1. Both linear and logarithmic scales are exact."""
    rows = pd.concat([sweep.rows for sweep in sweeps]).drop_duplicates("requested").sort_values("scaled")
    linear = abs(stats.pearsonr(rows["scaled"], rows["requested"]).statistic) > 1 - 1e-9
    logarithmic = not linear and (rows["requested"] > 0).all()
    line = stats.linregress(rows["scaled"], np.log(rows["requested"]) if logarithmic else rows["requested"])
    ends = line.intercept, line.intercept + line.slope
    return tuple(np.exp(ends)) if logarithmic else ends


def scan_pairs(scans: Cohort | None, name: str, tool: str | None) -> pd.DataFrame | None:
    """Return true and measured values of the scans that this tool measured, or None without such scans."""
    cohort = scans.tools().get(tool) if scans else None
    pairs = cohort.pairs(name) if cohort and name in cohort.quantities() else None
    return None if pairs is None or pairs.empty else pairs
