"""What a reader sees of a comparison of generated sets: Table 1, further distances, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from .mmd_coverage import NEIGHBOURS
from .provenance import describe

__all__ = ["FLOOR", "SPLITS", "further_distances", "origins", "table_1", "text"]

FLOOR = "real, half against half"
SPLITS = 10  # of the reference into two halves, whose mean is the floor
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
    digits = max(0, 2 - math.floor(math.log10(max(abs(value), error, 1e-6))))
    low, high = value - Z95 * error, value + Z95 * error
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def text(result: dict, space: str) -> str:
    """What the tables' numbers are and were computed on; `space` says in which features."""
    reference, held_out = result["reference"], result["held_out"]
    control = "The row of held-out scans is what new scans of the same cohort get: the control of all corrections."
    if not held_out["compared"]:
        control = (
            f"There is no row of held-out scans, the control of all corrections: {held_out['n']} scans of other participants "
            f"are too few for {result['features']['dimensions']} components."
        )
    paragraphs = (
        f"Reference: {reference['n']} real scans (split {reference['split']}) at {result['spacing_mm']:g} mm. {space} Numbers "
        "of another extractor, spacing or number of dimensions must not be compared with these.",
        "First table. FID: lower is closer to the reference. It is too large by an amount that shrinks with the number of "
        "volumes; the corrected one is extrapolated to infinitely many (jackknife). For equal distributions it "
        "scatters about 0 where a few directions hold most of the features' variance; where they hold little, it stays too "
        f"large, and its interval misses 0. The floor is the mean over {SPLITS} splits of the reference's participants into "
        "halves, with the interval of a single split; its pairs, background, corners and clipped voxels are those "
        f"of all scans of the reference. {control}",
        f"MS-SSIM ({result['scales']} scales, window of 7 voxels) and 4-G-R-SSIM compare pairs of participants within a set. "
        "Real scans have the numbers to reach. Higher: less diverse, or smoother; compare with the blurred row. Lower: often "
        "noise. Their intervals count participants, not pairs.",
        "Trivial answers that the numbers must see through: the reference blurred, the same people without details, and its "
        "mean repeated, without any diversity.",
        "Second table. MMD\u00b2: unbiased, Gaussian kernel of the median distance of real features, about 0 for equal "
        f"distributions. Density (about 1) and coverage (near 1): with {NEIGHBOURS} neighbours. Grey values: Wasserstein "
        "distance to those of the reference within the head, in intensity 0 to 1. Background: mean intensity farther than "
        "8 mm from the head. Corners: voxels above 0 in the eight corners. Clipped: voxels of the head at the largest value.",
        "Third table. What was compared; no folder holds volumes of two models, samplers or weights. Models that were trained "
        "on other scans, or longer, differ by that, too. 'Training scans' are those of this data set.",
    )
    return "\n\n".join(paragraphs)
