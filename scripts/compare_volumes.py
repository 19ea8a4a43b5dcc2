"""Do generated heads have brains and ventricles of the sizes that real ones have? Distances between distributions of volumes.

    python scripts/compare_volumes.py REAL.tsv GENERATED.tsv [--reconstructed RECONSTRUCTED.tsv] --output DIR

All tables come from one tool: measure_volumes.py, or read_volumes.py with the volumes of SynthSeg or FreeSurfer. For each
volume that they have, the Wasserstein-1 distance in mL: the mean distance that volumes would have to be moved for the one
histogram to become the other. RECONSTRUCTED are the same real scans through the autoencoder: what the tool reads in them and
not in the scans, it would read in the volumes of a perfect diffusion model. It writes into DIR

  volumes.tsv           one row per volume and comparison: n, distance with interval, floor, trivial answer, p
  volumes.json          the same, with settings
  volumes.png           histograms
  volumes.section.json  for scripts/report.py --evaluation DIR

Two small samples of one population are never at distance 0, therefore the floor: half of the real volumes against the other
half. The trivial answer is the distance of a generator that gives everyone the mean. Research tool, not for clinical use.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from cohorts.section import write_json, write_section, write_whole
from matplotlib.figure import Figure
from measurement.output_table import NORMALISED
from read_volumes import check_unit
from scipy import stats

TITLES = {
    "ventricles_ml": "lateral ventricles",
    "brain_ml": "brain",
    "icv_ml": "intracranial volume",
    NORMALISED: "brain, normalised for head size",
}
REAL, GENERATED, RECONSTRUCTED = "real scans", "generated", "scans through the autoencoder"
COLOURS = {REAL: "#4a90d9", RECONSTRUCTED: "#3b8686", GENERATED: "#e07b39"}  # as in report.py
FEWEST = 4  # volumes of a kind; the halves of fewer say nothing
RESAMPLES = 2000
SPLITS = 500
MEASURED_BY_US = "measure_volumes.py"


def read_volumes(path: Path) -> pd.DataFrame:
    """A table of measure_volumes.py or read_volumes.py by participant_id, with the column tool.

    Raises:
        FileNotFoundError: no such table.
        ValueError: no participant_id or volumes, no rows, a participant twice, volumes that are no numbers or not in mL.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table. Write it with scripts/measure_volumes.py")
    table = pd.read_csv(path, sep="\t", dtype={"participant_id": str}, encoding="utf-8-sig")
    found = [name for name in TITLES if name in table]
    if "participant_id" not in table or not found:
        raise ValueError(f"{path}: expected columns participant_id and some of {', '.join(TITLES)}, got {list(table.columns)}")
    if table.empty:
        raise ValueError(f"{path}: no rows in it, nothing was measured")
    if (twice := table["participant_id"].duplicated()).any():
        raise ValueError(
            f"{path}: {table['participant_id'][twice].iloc[0]} is there twice. Scans of one participant are no independent "
            "samples: leave one row of each, such as that of the first session"
        )
    for name in found:
        numbers = pd.to_numeric(table[name], errors="coerce")
        if (bad := numbers.isna() & table[name].notna()).any() or (bad := np.isinf(numbers) | (numbers < 0)).any():
            row = int(np.argmax(bad))
            raise ValueError(f"{path} row {row + 2}: {name} must be a volume in mL, got {table[name].iloc[row]}")
        table[name] = numbers
    # The unit is that of brain and head: ventricles of a failed model may be as small as in litres.
    for name in [name for name in ("brain_ml", "icv_ml") if name in found] or found:
        check_unit({name: table[name].median()}, f"{path}, its median")
    if "tool" not in table:
        table["tool"] = MEASURED_BY_US
    return table.set_index("participant_id")


def volume_distance(real: np.ndarray, generated: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Wasserstein-1 distance of two samples with what is needed to judge it; all but n and p in the samples' unit.

    Returns:
        n_real, n_generated; real_mean, real_sd, generated_mean, generated_sd; distance with the percentile bootstrap interval
        distance_low, distance_high (95 %, both samples drawn again); floor, the mean distance between random halves of the
        real sample, with the range of 95 % of the halves floor_low, floor_high; trivial, the distance of the real sample from
        its mean; p, the permutation test of both samples being one (one-sided).

    Raises:
        ValueError: fewer than 4 values, values that are not finite, or real values that are all the same.
    """
    real, generated = np.asarray(real, float), np.asarray(generated, float)
    for name, values in (("real", real), ("generated", generated)):
        if values.ndim != 1 or len(values) < FEWEST:
            raise ValueError(f"a distance needs at least {FEWEST} {name} volumes, got {values.size}")
        if not np.isfinite(values).all():
            raise ValueError(f"{name} volumes must be finite, row {int(np.argmin(np.isfinite(values))) + 1} is not")
    if np.ptp(real) == 0:
        raise ValueError(f"all {len(real)} volumes to compare with are {real[0]:g}")

    rng = np.random.default_rng(seed)
    distance = stats.wasserstein_distance
    interval = stats.bootstrap(
        (real, generated), distance, n_resamples=RESAMPLES, vectorized=False, method="percentile", rng=rng
    ).confidence_interval
    test = stats.permutation_test(
        (real, generated), distance, n_resamples=RESAMPLES - 1, vectorized=False, alternative="greater", rng=rng
    )
    shuffled = (rng.permutation(real) for _ in range(SPLITS))
    floors = [distance(half[: len(real) // 2], half[len(real) // 2 :]) for half in shuffled]
    return {
        "n_real": len(real),
        "n_generated": len(generated),
        "real_mean": float(real.mean()),
        "real_sd": float(real.std(ddof=1)),
        "generated_mean": float(generated.mean()),
        "generated_sd": float(generated.std(ddof=1)),
        "distance": float(distance(real, generated)),
        "distance_low": float(interval.low),
        "distance_high": float(interval.high),
        "floor": float(np.mean(floors)),
        "floor_low": float(np.percentile(floors, 2.5)),
        "floor_high": float(np.percentile(floors, 97.5)),
        "trivial": float(distance(real, [real.mean()])),
        "p": float(test.pvalue),
    }


def compare(tables: Mapping[str, pd.DataFrame], seed: int = 0) -> tuple[pd.DataFrame, list[str]]:
    """`volume_distance` of each volume that all tables have, between all pairs of tables; rows without a value do not count.

    Args:
        tables: by kind: `REAL`, `GENERATED` and, if there are any, `RECONSTRUCTED`.
        seed: of resampling.

    Returns:
        volume, first and second (kinds), the numbers of `volume_distance`, and p_holm, corrected for all tests of the table
        (Holm 1979, Scand. J. Stat. 6). Scans and scans through the autoencoder are the same heads: no test of these. And why
        there is no distance from scans through an autoencoder, such as one that gives all of them one volume.

    Raises:
        ValueError: volumes measured by different tools, none in common, or too few; equal tables.
    """
    tools = {kind: sorted(set(table["tool"].astype(str))) for kind, table in tables.items()}
    if len({*map(tuple, tools.values())}) > 1 or len(tools[REAL]) > 1:
        said = ", ".join(f"{kind} by {' and '.join(names)}" for kind, names in tools.items())
        raise ValueError(f"{said}: the distance would be that of the tools. Measure all with one")
    common = [name for name in TITLES if all(name in table and table[name].notna().any() for table in tables.values())]
    if not common:
        raise ValueError(f"the tables have no volume in common; expected some of {', '.join(TITLES)}")
    pairs = [(REAL, GENERATED), (RECONSTRUCTED, GENERATED), (REAL, RECONSTRUCTED)]
    pairs = [pair for pair in pairs if set(pair) <= set(tables)]
    for first, second in pairs:
        if all(tables[first][name].dropna().tolist() == tables[second][name].dropna().tolist() for name in common):
            raise ValueError(f"{first} and {second}: all volumes are the same. Was one table given twice?")
    rows, without = [], []
    for first, second in pairs:
        for name in common:
            try:
                numbers = volume_distance(tables[first][name].dropna(), tables[second][name].dropna(), seed)
            except ValueError as error:
                if RECONSTRUCTED not in (first, second):
                    raise ValueError(f"{name}: {error}") from error
                without.append(f"{TITLES[name]}, {second} from {first}: {error}")
                continue
            if GENERATED not in (first, second):
                numbers |= dict.fromkeys(("distance_low", "distance_high", "p"), np.nan)
            rows.append({"volume": name, "first": first, "second": second} | numbers)
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table["p"])), without


def holm(p: pd.Series) -> pd.Series:
    """p corrected for their number; NaN stays, and counts not."""
    ordered = p.dropna().sort_values()
    return (ordered * np.arange(len(ordered), 0, -1)).cummax().clip(upper=1).reindex(p.index)


def draw_histograms(tables: Mapping[str, pd.DataFrame], distances: pd.DataFrame) -> bytes:
    """PNG with a panel for each volume: histograms of all kinds, as shares of their kind, with common bins."""
    names = list(dict.fromkeys(distances["volume"]))
    figure = Figure(figsize=(3.6 * len(names), 3.6), layout="constrained", facecolor="white")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        values = {kind: tables[kind][name].dropna() for kind in COLOURS if kind in tables}
        edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=12)
        for kind, sample in values.items():
            share = np.full(len(sample), 100 / len(sample))
            look = {"color": COLOURS[kind], "label": f"{kind}, n = {len(sample)}"}
            axes.hist(sample, edges, weights=share, histtype="stepfilled", alpha=0.25, color=look["color"])
            axes.hist(sample, edges, weights=share, histtype="step", linewidth=1.6, **look)
        axes.set_title(TITLES[name], fontsize=10)
        axes.set_xlabel("mL")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    figure.axes[0].set_ylabel("% of the volumes")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def section_tables(tables: Mapping[str, pd.DataFrame], distances: pd.DataFrame) -> list[dict]:
    """Mean and SD of each kind; distances between kinds."""
    kinds = [kind for kind in COLOURS if kind in tables]
    sizes = [
        [TITLES[name], *(f"{tables[kind][name].mean():.1f} ± {tables[kind][name].std():.1f}" for kind in kinds)]
        for name in dict.fromkeys(distances["volume"])
    ]
    rows = [
        [
            f"{TITLES[row.volume]}: {row.second} from {row.first}",
            f"{row.n_generated}, {row.n_real}",
            f"{row.distance:.1f}" + (f" [{row.distance_low:.1f}, {row.distance_high:.1f}]" if row.distance_low >= 0 else ""),
            f"{row.floor:.1f} [{row.floor_low:.1f}, {row.floor_high:.1f}]",
            f"{row.trivial:.1f}",
            p_text(row.p),
            p_text(row.p_holm),
        ]
        for row in distances.itertuples()
    ]
    header = ["", "n", "distance, mL [95 %]", "floor, mL [95 % of halves]", "everyone the mean, mL", "p", "p (Holm)"]
    return [{"header": ["mean ± SD, mL", *kinds], "rows": sizes}, {"header": header, "rows": rows}]


def p_text(p: float) -> str:
    return "—" if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001"


def explain(tables: Mapping[str, pd.DataFrame], files: Mapping[str, Path], distances: pd.DataFrame, seed: int) -> str:
    counts = ", ".join(f"{len(table)} {kind} ({files[kind].name})" for kind, table in tables.items())
    flags = {kind: int(table["flags"].notna().sum()) if "flags" in table else 0 for kind, table in tables.items()}
    flagged = ", ".join(f"{count} of {kind}" for kind, count in flags.items())
    through = (
        "The tool reads generated volumes, which are smooth, otherwise than scans. The same scans through the autoencoder are "
        "as smooth: how far the generated ones are from these is the diffusion model's part; how far these are from the scans, "
        "of the very same heads, is that of tool and autoencoder."
        if RECONSTRUCTED in tables
        else "Generated volumes are smoother than scans, and the tool may read the same head otherwise for that: give the "
        "scans through the autoencoder, too (--reconstructed), before a distance is called the model's."
    )
    return f"""\
Volumes of {counts}, all by {tables[REAL]["tool"].iloc[0]}. Rows that carry a flag of the tool are counted all the same: \
{flagged}.

{through}

The Wasserstein-1 distance is the mean distance in mL that volumes would have to be moved for one histogram to become the \
other. Interval: percentile bootstrap of both samples, {RESAMPLES} times; it does not reach 0, since two small samples of one \
population are never at distance 0. Compare with the floor, the mean over {SPLITS} splits of the kind after 'from' into \
halves, which have fewer volumes and are therefore rather further apart, and with a generator that gives everyone its mean. p: \
permutation test of both being of one population, with the sizes of these samples, one-sided; Holm's correction is for all \
{int(distances["p"].notna().sum())} tests.

A small distance says that sizes are distributed alike, not that each head has the volumes it was asked for; and it means \
something only if the requests were distributed as the real heads are. Seed {seed}. For research, not for clinical use."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, metavar="REAL.tsv", help="volumes of real scans that it was not trained on")
    parser.add_argument("generated", type=Path, metavar="GENERATED.tsv", help="volumes of generated ones, by the same tool")
    through = (
        "volumes of real scans through the autoencoder (--reconstructions_dir of configs/evaluate.json); of REAL only these"
    )
    parser.add_argument("--reconstructed", type=Path, metavar="RECONSTRUCTED.tsv", help=through)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="of resampling")
    arguments = parser.parse_args()

    files = {REAL: arguments.real, GENERATED: arguments.generated, RECONSTRUCTED: arguments.reconstructed}
    files = {kind: file for kind, file in files.items() if file}
    tables = {kind: read_volumes(file) for kind, file in files.items()}
    if RECONSTRUCTED in tables:
        same = tables[RECONSTRUCTED].index
        if len(others := same.difference(tables[REAL].index)):
            raise ValueError(f"{arguments.reconstructed}: {others[0]} is not in {arguments.real}. Measure the same scans")
        tables[REAL] = tables[REAL].loc[same]
    distances, without = compare(tables, arguments.seed)
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "volumes.tsv", distances.to_csv(sep="\t", index=False, float_format="%.4g", na_rep="n/a").encode())
    settings = {"unit": "mL", "tool": tables[REAL]["tool"].iloc[0], "seed": arguments.seed, "resamples": RESAMPLES}
    settings |= {"splits": SPLITS, "files": {kind: str(file) for kind, file in files.items()}}
    rows = [{name: value for name, value in row.items() if not pd.isna(value)} for row in distances.to_dict("records")]
    write_json(output / "volumes.json", settings | {"volumes": rows, "without": without})
    write_whole(output / "volumes.png", draw_histograms(tables, distances))
    write_section(
        output / "volumes.section.json",
        "Sizes of ventricles, brain and head",
        explain(tables, files, distances, arguments.seed) + "".join(f"\n\nNo distance of {reason}." for reason in without),
        section_tables(tables, distances),
        [{"file": "volumes.png", "caption": "Volumes of real and generated heads. Generated heads are synthetic."}],
    )
    print(distances[["volume", "first", "second", "distance", "floor", "trivial", "p_holm"]].round(3).to_string(index=False))
    print(f"{output}: volumes.tsv, volumes.json, volumes.png and volumes.section.json")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
