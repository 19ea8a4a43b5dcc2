"""Score a measured set against real scans."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from cohorts.row_matching import QUANTITIES
from ldm.data.volumes import TEMPLATE_ICV_ML
from ldm.evaluation.feature_space import FeatureSpace
from ldm.evaluation.fid import frechet_distance
from ldm.evaluation.grey_values import histogram_distance
from ldm.evaluation.jackknife import jackknife
from ldm.evaluation.mmd_coverage import NEIGHBOURS, density_coverage
from ldm.evaluation.nearest_scan import Neighbours
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from scoreboard import FEWEST
from scoreboard.measures import Measured

assert FEWEST == NEIGHBOURS + 2
STRUCTURES = ("csf", "grey", "white", "ventricles")
PENALTIES = np.logspace(0, 4, 9)  # chosen: of the ridge regression, which takes the best of them


@dataclass(frozen=True)
class Kind:
    """A score, and what a set is called whose score is lower or higher than halves of real scans give ("" is no defect)."""

    title: str
    low: str = ""
    high: str = ""


KINDS = {
    "fid_uncorrected": Kind("FID"),
    "fid": Kind("FID, corrected for n", high="far from the scans"),
    "squared_mmd": Kind("MMD² x 1000", high="far from the scans"),
    "density": Kind("density", low="far from the scans"),
    "coverage": Kind("coverage", low="does not cover the scans"),
    "ms_ssim": Kind("MS-SSIM of pairs", high="too alike"),
    "variety": Kind("variety of anatomies, % of scans", low="collapsed"),
    "grey_values": Kind("distance of grey values", high="other grey values"),
    "structures": Kind("Frechet distance of structures / ICV", high="other structures"),
    "size": Kind("size of the head, % of scans", low="scaled, too small", high="scaled, too large"),
    "sharpness": Kind("sharpness, % of scans", low="blurred", high="too sharp"),
    "noise": Kind("noise, % of scans", low="too little noise", high="noisy"),
    "shift": Kind("distance of the centre, mm", high="shifted"),
    "axes": Kind("wrong axes, % of volumes", high="wrong affine"),
    "sides": Kind("left and right as in scans, r", low="mirrored"),
    "faults": Kind("faulty files, %", high="faulty files"),
    "copies": Kind("copies of scans, % of volumes", high="copied"),
    "twins": Kind("repeated volumes, %", high="repeats itself"),
    "age_bias": Kind("looks older than requested, years", low="younger than requested", high="older than requested"),
    "sex": Kind("requested sex is visible, AUC", low="sex swapped"),
    "age_utility": Kind("brain age learnt from it, error on scans, years", high="no use for brain age"),
} | {f"r_{name}": Kind(f"requested against measured {QUANTITIES[name][0]}, r", low="ignores requests") for name in QUANTITIES}

Score = tuple[float, float]  # value and standard error, NaN if it is not computed
Space = Callable[[np.ndarray], FeatureSpace]
Statistic = Callable[[np.ndarray, np.ndarray], float]  # of numbers of rows of the set and of the scans


def scores(
    given: Measured, real: Measured, space: Space, copied_below: float, known: Measured | None = None, errors: bool = False
) -> dict[str, Score]:
    """Return the scores of a set, by the keys of `KINDS`. Scores that its input does not allow are left out.

    Args:
        given: the set.
        real: the reference.
        space: makes the space of features in which FID and other distances are measured, from the features of the reference.
        copied_below: relative distance to the nearest scan below which a volume is a copy, see nearest_scan.py.
        known: scans among which copies are searched; None for the reference.
        errors: whether to compute standard errors. The floor needs none, except that of FID, which comes with its value.
    """
    found = {"faults": (100 * len(given.faults) / given.files, math.nan)}
    if len(given) < FEWEST:
        return found
    compared = space(real.features)
    distances = compared.compare(given.features, real.features)
    found["fid_uncorrected"] = distances["fid"], math.nan
    found["fid"] = distances["fid_corrected"], distances["fid_standard_error"]
    found["squared_mmd"] = 1000 * distances["squared_mmd"], 1000 * distances["squared_mmd_standard_error"]

    def add(name: str, statistic: Statistic, corrected: bool = False, alone: bool = False) -> None:
        rows = np.arange(len(given)), np.arange(len(real))
        value, error = statistic(*rows), math.nan
        if errors or corrected:
            one = [np.array([0])] if alone else [rows[1]]  # a score of the set alone has nothing else to leave out
            estimate, error = jackknife(statistic, rows[0], *one)
            value = estimate if corrected else value
        found[name] = float(value), float(error)

    a, b = compared.scaled(given.features), compared.scaled(real.features)
    add("density", lambda i, j: density_coverage(b[j], a[i])[0])
    add("coverage", lambda i, j: density_coverage(b[j], a[i])[1])
    if np.isfinite(given.similarity[np.triu_indices(len(given), 1)]).any():  # a small subset may have no pair
        add("ms_ssim", lambda i, j: np.nanmean(given.similarity[np.ix_(i, i)][np.triu_indices(len(i), 1)]), alone=True)
    u, v = (of.anatomies[:, 0] for of in (given, real))
    add("variety", lambda i, j: 100 * np.sqrt(u[i].var(0, ddof=1).sum() / v[j].var(0, ddof=1).sum()))
    add("grey_values", lambda i, j: histogram_distance(given.histograms[i].mean(0), real.histograms[j].mean(0)))
    if set(STRUCTURES) <= set(real.numbers):
        shares = [of.numbers[[*STRUCTURES]].div(of.numbers[[*STRUCTURES]].sum(axis=1), axis=0) for of in (given, real)]
        x, y = (of.to_numpy() / shares[1].std().to_numpy() for of in shares)
        add("structures", lambda i, j: frechet_distance(x[i], y[j]), corrected=True)
    # The network's masks of very small heads are too large. So heads are compared by their outlines, unless skulls are missing.
    size = "outline_ml" if given.is_bare() == real.is_bare() else "mask_ml"
    for name, column in (("size", size), ("sharpness", "sharpness"), ("noise", "noise")):
        pair = [of.numbers[column].to_numpy() for of in (given, real)]
        add(name, lambda i, j, pair=pair: 100 * pair[0][i].mean() / pair[1][j].mean())
    centres = [of.numbers[["x_mm", "y_mm", "z_mm"]].to_numpy() for of in (given, real)]
    add("shift", lambda i, j: np.linalg.norm(centres[0][i] - centres[1][j].mean(0), axis=1).mean())
    turned, side = orientation(given.cubes, real.cubes)
    add("axes", lambda i, j: 100 * turned[i].mean(), alone=True)
    add("sides", lambda i, j: side[i].mean(), alone=True)
    copied = relative_distances(given, known or real) < copied_below
    add("copies", lambda i, j: 100 * copied[i].mean(), alone=True)
    voxels = [one.tobytes() for one in given.levels]
    repeated = np.array([voxels.index(one) < row for row, one in enumerate(voxels)])
    add("twins", lambda i, j: 100 * repeated[i].mean(), alone=True)
    for name, statistic in _of_table(given, real).items():
        add(name, statistic)
    return found


def relative_distances(given: Measured, known: Measured) -> np.ndarray:
    """Return the relative distance of each volume to the scan that it resembles most."""
    scans = Neighbours(torch.from_numpy(known.anatomies[:, 0]).clone(), list(map(str, range(len(known)))))
    views = [""] * given.anatomies.shape[1]
    return np.array([scans.match(torch.from_numpy(one), views).relative_distance for one in given.anatomies])


def orientation(cubes: np.ndarray, real: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return for each head whether its axes are wrong, and how far its left and right differ as in scans.

    Each cube (RAS) is compared with the mean scan in all 24 rotations by right angles. The mean scan is made symmetric, so that
    the best rotation does not depend on the sides. The second result is the correlation of the difference between both sides
    with that of the mean scan, after the rotation: about 0 where sides do not differ, below 0 if they are exchanged.
    """
    mean = real.mean(axis=0)
    symmetric, sided = mean + mean[::-1], (mean - mean[::-1]).ravel()
    rotations = list(_rotations())
    templates = np.stack([inverse(symmetric).ravel() for _, inverse in rotations])
    best = (cubes.reshape(len(cubes), -1) @ templates.T).argmax(axis=1)
    upright = np.stack([rotations[k][0](one) for k, one in zip(best, cubes, strict=True)])
    differences = (upright - upright[:, ::-1]).reshape(len(cubes), -1)
    lengths = np.linalg.norm(differences, axis=1) * np.linalg.norm(sided)
    return best > 0, differences @ sided / np.maximum(lengths, 1e-12)


def _rotations():
    """Yield the 24 rotations of a cube by right angles with their inverses. The first one changes nothing."""
    for axes in itertools.permutations(range(3)):
        for flips in itertools.product((1, -1), repeat=3):
            if np.linalg.det(np.eye(3)[list(axes)]) * math.prod(flips) > 0:
                steps = tuple(slice(None, None, flip) for flip in flips)
                back = tuple(np.argsort(axes))
                yield lambda x, a=axes, s=steps: x.transpose(a)[s], lambda x, b=back, s=steps: x[s].transpose(b)


def _of_table(given: Measured, real: Measured) -> dict[str, Statistic]:
    """Return the scores of covariates that the table of the set and, if it must be predicted, that of the scans have."""
    found: dict[str, Statistic] = {}
    asked, known = (pd.to_numeric(of.table.get("age", pd.Series(dtype=float)), errors="coerce") for of in (given, real))
    if _enough(asked) and _enough(known):
        older = _learn(real, known).predict(given.features) - asked.to_numpy()
        found["age_bias"] = lambda i, j: np.nanmean(older[i])
        error = np.abs(_learn(given, asked).predict(real.features) - known.to_numpy())
        found["age_utility"] = lambda i, j: np.nanmean(error[j])
    sexes = [of.table.get("sex", pd.Series(dtype=object)) for of in (given, real)]
    asked, known = (of.map({"F": 0.0, "M": 1.0}).astype(float) for of in sexes)
    if _enough(asked) and _enough(known):
        male, sex = _learn(real, known).predict(given.features), asked.to_numpy()
        found["sex"] = lambda i, j: _auc(sex[i], male[i])
    if set(STRUCTURES) <= set(given.numbers):
        measured = given.numbers.rename(columns={"ventricles": "ventricles_ml"})
        measured["brain_ml"] = measured["grey"] + measured["white"]
        measured["icv_ml"] = measured["brain_ml"] + measured["csf"] + measured["ventricles_ml"]
        measured["brain_normalised_ml"] = measured["brain_ml"] * TEMPLATE_ICV_ML / measured["icv_ml"]
        for name in [name for name in QUANTITIES if name in measured and name in given.table]:
            asked = pd.to_numeric(given.table[name], errors="coerce")
            if _enough(asked):
                pair = pd.DataFrame({"asked": asked, "measured": measured[name]})
                found[f"r_{name}"] = lambda i, j, pair=pair: pair.iloc[i].corr()["asked"]["measured"]
    return found


def _auc(sex: np.ndarray, male: np.ndarray) -> float:
    """Return the area under the curve; without one of the sexes among the rows, as in the jackknife of a small set, chance."""
    rows = np.isfinite(sex)
    return float(roc_auc_score(sex[rows], male[rows])) if len(np.unique(sex[rows])) == 2 else 0.5


def _enough(values: pd.Series) -> bool:
    return values.notna().sum() >= FEWEST and values.nunique() > 1


def _learn(of: Measured, values: pd.Series) -> Pipeline:
    rows = values.notna().to_numpy()
    return make_pipeline(StandardScaler(), RidgeCV(PENALTIES)).fit(of.features[rows], values[rows])
