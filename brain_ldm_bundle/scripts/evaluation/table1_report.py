"""Report Table 1 as three tables, and explain their numbers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..shared.intervals import with_interval
from .compared_sets import BLUR_MM
from .mmd_coverage import NEIGHBOURS
from .provenance import describe

FLOOR = "real, half against half"
BLUR = f"real, blurred by {BLUR_MM:g} mm"
SPLITS = 10  # splits of the reference into two halves; the floor is their mean
Z95 = 1.96


def table_1(rows: Mapping[str, dict]) -> dict:
    header = ["", "volumes", "FID", "FID, corrected for n [95 %]", "pairs", "MS-SSIM [95 %]", "4-G-R-SSIM [95 %]"]
    lines = []
    for name, row in rows.items():
        n = f"{row['n'] // 2} + {row['n'] - row['n'] // 2}" if name == FLOOR else str(row["n"])
        if row["participants"] < row["n"]:
            n += f" of {row['participants']} participants"
        fid = _interval(row["fid_corrected"], row["fid_standard_error"])
        scores = [_interval(row[key]["mean"], row[key]["standard_error"]) for key in ("ms_ssim", "gradient_ssim")]
        lines.append([name, n, f"{row['fid']:.3g}", fid, str(row["pairs"]), *scores])
    return {"header": header, "rows": lines}


def further_distances(rows: Mapping[str, dict]) -> dict:
    header = ["", "MMD\u00b2 x 1000 [95 %]", "density", "coverage", "grey values", "background", "corners", "clipped"]
    lines = []
    for name, row in rows.items():
        numbers = [f"{row[key]:.2f}" for key in ("density", "coverage")]
        numbers += [f"{row[key]:.4f}" for key in ("histogram_distance", "background")]
        numbers += [f"{100 * row[key]:.2f} %" for key in ("corners", "clipped")]
        lines.append([name, _interval(1000 * row["squared_mmd"], 1000 * row["squared_mmd_standard_error"]), *numbers])
    return {"header": header, "rows": lines}


def origins(samples: Mapping[str, dict]) -> dict:
    header = ["", "volumes", "made by, as their sidecars say", "its model was trained on", "folder"]
    lines = [
        [name, str(one["n"]), describe(one["provenance"]), one["trained_on"], Path(one["folder"]).name]
        for name, one in samples.items()
    ]
    return {"header": header, "rows": lines}


def _interval(value: float, error: float | None) -> str:
    if error is None:
        return f"{value:.3g}"
    return with_interval(value, value - Z95 * error, value + Z95 * error)


def _of(reference: Mapping) -> str:
    """Say how many scans of the reference are blurred."""
    if reference["blurred"] == reference["n"]:
        return "the same people"
    return f"{reference['blurred']} of its {reference['n']} scans, drawn by the seed,"


def verdict(result: Mapping) -> str:
    """Say how far the generated sets are from the reference, and how much alike their heads are, beside real scans."""
    rows = result["sets"]

    def fid(name: str) -> str:
        return _interval(rows[name]["fid_corrected"], rows[name]["fid_standard_error"])

    def likeness(name: str) -> str:
        return _interval(rows[name]["ms_ssim"]["mean"], rows[name]["ms_ssim"]["standard_error"])

    distances = ", ".join(f"{fid(name)} for {name}" for name in result["samples"])
    pairs = ", ".join(f"{likeness(name)} for {name}" for name in result["samples"])
    return (
        f"The distance to the scans (FID) is {distances}; it is {fid(FLOOR)} between halves of the scans, and {fid(BLUR)} for "
        f"blurred scans. Two heads are as alike (MS-SSIM) as {pairs}; two scans as {likeness(FLOOR)}."
    )


def text(result: dict, space: str) -> str:
    """Explain the tables; `space` describes the features."""
    reference, held_out = result["reference"], result["held_out"]
    control = "The row of held-out scans, new scans of the same cohort, is the control of all corrections."
    if not held_out["compared"]:
        control = (
            f"There is no row of held-out scans, the control of all corrections: {held_out['n']} scans of other participants "
            f"are too few for {result['features']['dimensions']} components."
        )
    return (
        f"The reference is {reference['n']} real scans (split {reference['split']}) at {result['spacing_mm']:g} mm. {space} Do "
        f"not compare these numbers with numbers of another extractor, spacing or number of dimensions.\n\n"
        f"First table. A lower FID is closer to the reference. FID is too large by an amount that shrinks with the number of "
        f"volumes; the corrected FID is extrapolated to infinitely many volumes (jackknife). For equal distributions it "
        f"scatters about 0 if a few directions hold most of the features' variance. Otherwise it remains too large, "
        f"and its interval does not contain 0. The floor is the mean over {SPLITS} splits of the reference's participants into "
        f"halves, with the interval of a single split; its pairs, background, corners and clipped voxels come from all scans "
        f"of the reference. {control}\n\n"
        f"MS-SSIM ({result['scales']} scales, window of 7 voxels) and 4-G-R-SSIM compare pairs of participants within a set. "
        f"Generated sets should reach the scores of real scans. A higher score means that a set is less diverse, or smoother: "
        f"compare it with the blurred row. A lower score often means noise. The intervals count participants, not pairs.\n\n"
        f"Two trivial answers show defects that the scores must detect: the blurred reference "
        f"({_of(reference)} without details), and the repeated mean of the reference (no diversity).\n\n"
        f"Second table. MMD\u00b2 is unbiased, with a Gaussian kernel as wide as the median distance of real features; it is "
        f"about 0 for equal distributions. Density (about 1) and coverage (near 1) use {NEIGHBOURS} neighbours. Grey values: "
        f"Wasserstein distance to the grey values of the reference within the head, in intensity 0 to 1. Background: mean "
        f"intensity farther than 8 mm from the head. Corners: share of voxels above 0 in the eight corners. Clipped: share of "
        f"the head's voxels at the largest value.\n\n"
        f"Third table. It lists the compared folders; none holds volumes of two models, samplers or weights. Models may also "
        f"differ because they were trained on other scans, or for longer. 'Training scans' are the training scans of this data "
        f"set."
    )
