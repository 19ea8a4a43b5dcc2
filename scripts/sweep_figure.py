"""Figures 2 and 4 of Pinaya et al. 2022 for a generated folder: one covariate changes, the noise stays.

    python scripts/make_requests.py participants.tsv sweep.tsv --rows 8 --sweep ventricles_ml 10 150 --sweep age 45 80
        --noises 2 --extrapolate
    (generate GENERATED_DIR for sweep.tsv and measure it)
    python scripts/sweep_figure.py GENERATED_DIR --sweep ventricles_ml --sweep age --measured volumes.tsv ages.tsv --output DIR

writes into DIR

    figure2.png  figure2.section.json  a row of volumes for each covariate and noise, within the range of the model
    figure4.png  figure4.section.json  the same beyond that range, and what was measured there

The range is the one that the model's covariates.json scales to 0 to 1: that of its training data, or what was declared for
them. The sections are for scripts/report.py --evaluation DIR. For research, not for clinical use.
"""

from __future__ import annotations

import argparse
import io
import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from agreement import agreement
from matplotlib.figure import Figure
from report_cohort import Cohort, evenly, read_cohort
from scipy import stats
from section import write_section, write_whole
from three_planes import POINT_MM, cut, read_canonical, white_level

COLUMNS = 8  # pictures in a row
INSIDE, OUTSIDE = "#2b6cb0", "#c05621"
NOTICE = "All volumes are synthetic. For research, not for clinical use."
ORIENTATION = "Axial and coronal plane; the subject's left is at the picture's right."


@dataclass
class Sweep:
    """Volumes of one noise whose requests differ in one covariate alone.

    Attributes:
        name: the covariate.
        rows: by volume, in the order of `requested`: requested, scaled (0 to 1 is the range), measured
            (NaN where it was not), white (the intensity drawn white).
    """

    name: str
    rows: pd.DataFrame

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
    sweeps = []
    for _, group in groups:
        rows = pd.DataFrame({"requested": group["value", name], "scaled": group["scaled", name]}).astype(float)
        rows["measured"] = cohort.measured[name].reindex(rows.index) if name in cohort.measured else np.nan
        rows = rows.sort_values("requested", kind="stable")
        if rows["requested"].nunique() >= 3:
            sweeps.append(Sweep(name, rows))
    if not sweeps:
        raise ValueError(
            f"{cohort.folder}: no three volumes of one noise that differ in {name} alone. Request them with: "
            f"python scripts/make_requests.py PARTICIPANTS_TSV OUT_TSV --sweep {name} LOW HIGH"
        )
    return sweeps


# --- Pictures ------------------------------------------------------------------------------------------------------


def two_planes(path: Path, white: float) -> np.ndarray:
    """Axial and coronal plane side by side, (rows, columns) in 0 to 1, as of `three_planes`; `white` is drawn white."""
    volume, affine = read_canonical(path)
    spacing_mm = nib.affines.voxel_sizes(affine)
    width = round(volume.shape[0] * spacing_mm[0] / spacing_mm.min()) + 2
    return (cut(volume, affine, POINT_MM)[:, : 2 * width] / white).clip(0, 1)


def draw_row(axes: Sequence, cohort: Cohort, sweep: Sweep, volumes: Sequence[str]) -> None:
    """The volumes of a sweep in one brightness, below each what was asked for and measured; beyond the range in colour."""
    white = float(np.median([white_level(read_canonical(cohort.images[volume])[0]) for volume in volumes]))
    for place in axes:
        place.set_axis_off()
    for place, volume in zip(axes, volumes):
        row = sweep.rows.loc[volume]
        place.imshow(two_planes(cohort.images[volume], white), cmap="gray", vmin=0, vmax=1, interpolation="bilinear")
        text = cohort.value(sweep.name, row["requested"], 0)
        if not np.isnan(row["measured"]):
            text += f"\nmeasured {row['measured']:.0f}"
        colour = INSIDE if volume in sweep.inside.index else OUTSIDE
        place.text(0.5, -0.04, text, transform=place.transAxes, ha="center", va="top", fontsize=8, color=colour)


def name_row(axes, title: str) -> None:
    """The covariate at the left of its row, in lines that are no longer than a picture is high."""
    text = textwrap.fill(title, 16)
    axes.text(
        -0.05, 0.5, text, transform=axes.transAxes, rotation=90, ha="right", va="center", multialignment="center", fontsize=9
    )


def figure2(cohort: Cohort, sweeps: Sequence[Sweep]) -> bytes:
    """One row for each covariate and noise, values within the range from left to right."""
    shown = [evenly(list(sweep.inside.index), COLUMNS) for sweep in sweeps]
    columns = max(map(len, shown))
    figure = Figure(figsize=(2.0 * columns + 0.6, 1.65 * len(sweeps) + 0.4), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(h_pad=0.03, w_pad=0.02)
    for row, sweep, volumes in zip(figure.subplots(len(sweeps), columns, squeeze=False), sweeps, shown):
        draw_row(row, cohort, sweep, volumes)
        name_row(row[0], cohort.title(sweep.name))
    figure.supxlabel(f"{ORIENTATION} One noise a row; below: requested, measured. {NOTICE}", fontsize=8)
    return png(figure)


def figure4(cohort: Cohort, sweeps: Sequence[Sweep]) -> bytes:
    """Values beyond the range beside those at its ends and middle; at the right, measured against requested."""
    shown = [sorted({*sweep.outside.index, *evenly(list(sweep.inside.index), 3)}, key=list(sweep.rows.index).index)
             for sweep in sweeps]  # fmt: skip
    columns = max(map(len, shown))
    names = list(dict.fromkeys(sweep.name for sweep in sweeps))
    height = max(1.65 * len(sweeps), 3.4 * len(names))
    figure = Figure(figsize=(1.8 * columns + 5.2, height + 0.4), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(h_pad=0.03, w_pad=0.02)
    pictures, plots = figure.subfigures(1, 2, width_ratios=(1.8 * columns + 0.6, 4.6))
    for row, sweep, volumes in zip(pictures.subplots(len(sweeps), columns, squeeze=False), sweeps, shown):
        draw_row(row, cohort, sweep, volumes)
        name_row(row[0], cohort.title(sweep.name))
    for axes, name in zip(plots.subplots(len(names), 1, squeeze=False)[:, 0], names):
        draw_plot(axes, cohort, [sweep for sweep in sweeps if sweep.name == name])
    figure.supxlabel(f"{ORIENTATION} Blue: within the range, orange: beyond it. One noise a row. {NOTICE}", fontsize=8)
    return png(figure)


def draw_plot(axes, cohort: Cohort, sweeps: Sequence[Sweep]) -> None:
    """Measured against requested values of one covariate, a line for each noise; the range is shaded."""
    name = sweeps[0].name
    low, high = model_range(sweeps)
    axes.axvspan(low, high, color=INSIDE, alpha=0.1, linewidth=0, label="range, scaled to 0 to 1")
    ends = [min(s.rows["requested"].min() for s in sweeps), max(s.rows["requested"].max() for s in sweeps)]
    axes.plot(ends, ends, color="#333333", linewidth=0.8, label="equal")
    for sweep in sweeps:
        axes.plot(sweep.rows["requested"], sweep.rows["measured"], color="#999999", linewidth=0.8)
        for part, colour in ((sweep.inside, INSIDE), (sweep.outside, OUTSIDE)):
            axes.plot(part["requested"], part["measured"], "o", color=colour, markersize=4)
    unit = cohort.unit(name)
    axes.set_xlabel(f"requested {cohort.title(name)} ({unit})" if unit else f"requested {cohort.title(name)}")
    axes.set_ylabel(f"measured ({unit})" if unit else "measured")
    if all(sweep.rows["measured"].isna().all() for sweep in sweeps):
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center")
    axes.legend(frameon=False, fontsize=8)


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


# --- Tables --------------------------------------------------------------------------------------------------------


def model_range(sweeps: Sequence[Sweep]) -> tuple[float, float]:
    """Values of the covariate that are scaled to 0 and 1; exact for a linear scale, by interpolation for a logarithmic one."""
    rows = pd.concat([sweep.rows for sweep in sweeps]).drop_duplicates("requested").sort_values("scaled")
    positive = (rows["requested"] > 0).all()
    straight = abs(stats.pearsonr(rows["scaled"], rows["requested"]).statistic) > 1 - 1e-9
    requested = rows["requested"] if straight or not positive else np.log(rows["requested"])
    line = stats.linregress(rows["scaled"], requested)
    ends = line.intercept, line.intercept + line.slope
    return ends if straight or not positive else tuple(np.exp(ends))


def slope_cell(rows: pd.DataFrame) -> str:
    """Least-squares slope of measured on requested values with its 95 % t interval, or why there is none."""
    rows = rows.dropna()
    if len(rows) < 3 or rows["requested"].nunique() < 2:
        return f"— (n = {len(rows)})"
    line = stats.linregress(rows["requested"], rows["measured"])
    margin = stats.t.ppf(0.975, len(rows) - 2) * line.stderr
    return f"{line.slope:.2f} [{line.slope - margin:.2f}, {line.slope + margin:.2f}]"


SWEEP_HEADER = ["covariate", "noises", "n", "Pearson r [95 %]", "slope [95 %]", "bias", "mean absolute error", "… of the mean"]


def sweep_rows(cohort: Cohort, sweeps: Sequence[Sweep]) -> list[list[str]]:
    """For each covariate the agreement within the range, over all noises; last, the error of always answering the mean."""
    rows = []
    for name in dict.fromkeys(sweep.name for sweep in sweeps):
        own = [sweep for sweep in sweeps if sweep.name == name]
        inside = pd.concat([sweep.inside for sweep in own]).dropna()
        start = [cohort.title(name), str(len(own)), str(len(inside))]
        try:
            a = agreement(inside["requested"], inside["measured"])
        except ValueError as error:
            rows.append([*start, "not measured" if inside.empty else str(error), *[""] * 4])
            continue
        trivial = (inside["requested"] - inside["requested"].mean()).abs().mean()
        rows.append(
            [
                *start,
                f"{a['r']:.3f} [{a['r_low']:.3f}, {a['r_high']:.3f}]",
                f"{a['slope']:.2f} [{a['slope_low']:.2f}, {a['slope_high']:.2f}]",
                f"{a['bias']:+.1f} {cohort.unit(name)}".strip(),
                f"{a['mae']:.1f} {cohort.unit(name)}".strip(),
                f"{trivial:.1f} {cohort.unit(name)}".strip(),
            ]
        )
    return rows


VALUE_HEADER = ["covariate", "requested", "scaled (range: 0 to 1)", "n", "measured, mean (range)", "nearest end of the range"]


def value_rows(cohort: Cohort, sweeps: Sequence[Sweep]) -> list[list[str]]:
    """Each value beyond the range with what was measured, over all noises, and the end at which a model might stay."""
    rows = []
    for name in dict.fromkeys(sweep.name for sweep in sweeps):
        own = [sweep for sweep in sweeps if sweep.name == name]
        low, high = model_range(own)
        for requested, group in pd.concat([sweep.outside for sweep in own]).groupby("requested"):
            measured, scaled = group["measured"].dropna(), group["scaled"].iloc[0]
            spread = (
                f"{measured.mean():.1f} ({measured.min():.1f} to {measured.max():.1f})" if len(measured) else "not measured"
            )
            end = cohort.value(name, low if scaled < 0 else high, 1)
            value = cohort.value(name, requested, 1)
            rows.append([cohort.title(name), value, f"{scaled:.2f}", str(len(measured)), spread, end])
    return rows


SLOPE_HEADER = ["covariate", "slope below the range [95 %]", "slope within [95 %]", "slope above [95 %]"]


def slope_rows(cohort: Cohort, sweeps: Sequence[Sweep]) -> list[list[str]]:
    """Slopes over all noises. Beyond the range the value nearest to its end, inside, is the first point of the line."""
    rows = []
    for name in dict.fromkeys(sweep.name for sweep in sweeps):
        everything = pd.concat([sweep.rows for sweep in sweeps if sweep.name == name])
        inside = pd.concat([sweep.inside for sweep in sweeps if sweep.name == name])
        parts = []
        for beyond, end in (
            (everything["scaled"] < inside["scaled"].min(), inside["scaled"].min()),
            (everything["scaled"] > inside["scaled"].max(), inside["scaled"].max()),
        ):
            parts.append(everything[beyond | (everything["scaled"] == end)] if beyond.any() else everything[:0])
        rows.append([cohort.title(name), slope_cell(parts[0]), slope_cell(inside), slope_cell(parts[1])])
    return rows


# --- Command -------------------------------------------------------------------------------------------------------


def write_figures(cohort: Cohort, sweeps: Sequence[Sweep], output: Path) -> list[str]:
    """Draw both figures as far as there are volumes for them, and write their sections; the names of the files."""
    tables = ", ".join(dict.fromkeys(path.name for path in cohort.sources.values())) or "nothing"
    within = [sweep for sweep in sweeps if len(sweep.inside) >= 2]
    beyond = [sweep for sweep in sweeps if len(sweep.outside) and len(sweep.inside)]
    pictures = {}
    if within:
        pictures["figure2"] = figure2(cohort, within)
    if beyond:
        pictures["figure4"] = figure4(cohort, beyond)
    if not pictures:
        raise ValueError(f"{cohort.folder}: no sweep has two values within the range of the model")
    output.mkdir(parents=True, exist_ok=True)
    for name, picture in pictures.items():
        write_whole(output / f"{name}.png", picture)
    if within:
        write_section(
            output / "figure2.section.json",
            "One covariate changes, the noise stays (Figure 2)",
            f"Volumes of {cohort.name}. Within a row the noise and all other covariates stay; whatever differs is what the "
            f"model makes of the one covariate. Each row is drawn in one brightness. Measured values are from {tables}.\n\n"
            "The table compares requested and measured values over all noises, within the range of the model. A model "
            "that ignored the covariate would have slope 0 and the error of the last column.",
            [{"header": SWEEP_HEADER, "rows": sweep_rows(cohort, within)}],
            [{"file": "figure2.png", "caption": f"{ORIENTATION} {NOTICE}"}],
        )
    if beyond:
        write_section(
            output / "figure4.section.json",
            "Beyond the range (Figure 4)",
            f"Volumes of {cohort.name}, of one noise a row. The range is what the model's covariates scale to 0 to 1, declared "
            f"for its training data, which need not fill it; Pinaya et al. 2022 asked for -0.5 to 1.9. Values below zero are "
            f"none that a head can have: they show where the model leads. Measured values are from {tables}, whose tool knows "
            f"no such heads either.\n\n"
            "A slope of 1 beyond the range: the model goes on as within; 0: it stays. The lines beyond start at the value "
            "within that is nearest to the end.",
            [
                {"header": SLOPE_HEADER, "rows": slope_rows(cohort, beyond)},
                {"header": VALUE_HEADER, "rows": value_rows(cohort, beyond)},
            ],
            [{"file": "figure4.png", "caption": f"Blue: within the range; orange: beyond. {ORIENTATION} {NOTICE}"}],
        )
    return [f"{name}{ending}" for name in pictures for ending in (".png", ".section.json")]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("generated", type=Path, metavar="GENERATED_DIR", help="what inference wrote for a table of sweeps")
    parser.add_argument("--sweep", action="append", required=True, metavar="NAME", help="covariate; may be given several times")
    parser.add_argument("--measured", type=Path, nargs="+", default=[], metavar="TABLE_TSV", help="what was measured in them")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder for figures and sections")
    options = parser.parse_args(arguments)
    try:
        cohort = read_cohort(options.generated, options.measured)
        sweeps = [sweep for name in dict.fromkeys(options.sweep) for sweep in find_sweeps(cohort, name)]
        written = write_figures(cohort, sweeps, options.output)
    except (ValueError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from None
    print(f"{options.output}: {', '.join(written)}")


if __name__ == "__main__":
    main()
