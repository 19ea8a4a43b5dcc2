"""Do generated heads have brains and ventricles of the sizes that real ones have? Distances between distributions of volumes.

    python scripts/compare_volumes.py REAL.tsv GENERATED.tsv --output DIR

Both tables come from one tool: measure_volumes.py, or read_volumes.py with the volumes of SynthSeg or FreeSurfer. For each
volume that both have, the Wasserstein-1 distance in mL: the mean distance that volumes would have to be moved for the one
histogram to become the other. It writes into DIR

  volumes.tsv           one row per volume: n, distance with interval, floor, trivial answer, p
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
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats
from section import write_json, write_section, write_whole
from volume_table import NORMALISED

TITLES = {
    "ventricles_ml": "lateral ventricles",
    "brain_ml": "brain",
    "icv_ml": "intracranial volume",
    NORMALISED: "brain, normalised for head size",
}
COLOURS = {"real": "#4a90d9", "generated": "#e07b39"}  # as in report.py
FEWEST = 4  # volumes of a kind; the halves of fewer say nothing
RESAMPLES = 2000
SPLITS = 500
MEASURED_BY_US = "measure_volumes.py"


def read_volumes(path: Path) -> pd.DataFrame:
    """A table of measure_volumes.py or read_volumes.py by participant_id, with the column tool.

    Raises:
        FileNotFoundError: no such table.
        ValueError: no participant_id or volumes, a participant twice, volumes that are no numbers.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such table. Write it with scripts/measure_volumes.py")
    table = pd.read_csv(path, sep="\t", dtype={"participant_id": str}, encoding="utf-8-sig")
    found = [name for name in TITLES if name in table]
    if "participant_id" not in table or not found:
        raise ValueError(f"{path}: expected columns participant_id and some of {', '.join(TITLES)}, got {list(table.columns)}")
    if table["participant_id"].duplicated().any():
        raise ValueError(f"{path}: {table['participant_id'][table['participant_id'].duplicated()].iloc[0]} is there twice")
    for name in found:
        numbers = pd.to_numeric(table[name], errors="coerce")
        if (bad := numbers.isna() & table[name].notna()).any() or (bad := np.isinf(numbers) | (numbers < 0)).any():
            row = int(np.argmax(bad))
            raise ValueError(f"{path} row {row + 2}: {name} must be a volume in mL, got {table[name].iloc[row]}")
        table[name] = numbers
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
        raise ValueError(f"all {len(real)} real volumes are {real[0]:g}: nothing to compare with")

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


def compare(real: pd.DataFrame, generated: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """`volume_distance` for each volume that both tables have; rows without a value are left out and not counted in n.

    Raises:
        ValueError: volumes measured by different tools, none in common, or too few.
    """
    tools = [sorted(set(table["tool"].astype(str))) for table in (real, generated)]
    if tools[0] != tools[1] or len(tools[0]) > 1:
        raise ValueError(
            f"the real volumes are by {', '.join(tools[0])}, the generated ones by {', '.join(tools[1])}: the distance would "
            "be that of the tools. Measure both with one"
        )
    common = [name for name in TITLES if name in real and name in generated]
    common = [name for name in common if real[name].notna().any() and generated[name].notna().any()]
    if not common:
        raise ValueError(f"the tables have no volume in common; expected some of {', '.join(TITLES)}")
    rows = []
    for name in common:
        try:
            rows.append({"volume": name} | volume_distance(real[name].dropna(), generated[name].dropna(), seed))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    return pd.DataFrame(rows)


def draw_histograms(real: pd.DataFrame, generated: pd.DataFrame, distances: pd.DataFrame) -> bytes:
    """PNG with a panel for each volume: both histograms, as shares of their kind, with common bins."""
    figure = Figure(figsize=(3.6 * len(distances), 3.2), layout="constrained", facecolor="white")
    for axes, row in zip(figure.subplots(1, len(distances), squeeze=False)[0], distances.itertuples()):
        values = {"real": real[row.volume].dropna(), "generated": generated[row.volume].dropna()}
        edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=12)
        for kind, sample in values.items():
            share = np.full(len(sample), 100 / len(sample))
            look = {"color": COLOURS[kind], "label": f"{kind}, n = {len(sample)}"}
            axes.hist(sample, edges, weights=share, histtype="stepfilled", alpha=0.25, color=look["color"])
            axes.hist(sample, edges, weights=share, histtype="step", linewidth=1.6, **look)
        axes.set_title(f"{TITLES[row.volume]}\ndistance {row.distance:.1f} mL, floor {row.floor:.1f} mL", fontsize=10)
        axes.set_xlabel("mL")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("% of the volumes")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def section_rows(distances: pd.DataFrame) -> list[list[str]]:
    return [
        [
            TITLES[row.volume],
            f"{row.n_real}, {row.n_generated}",
            f"{row.real_mean:.1f} ± {row.real_sd:.1f}",
            f"{row.generated_mean:.1f} ± {row.generated_sd:.1f}",
            f"{row.distance:.1f} [{row.distance_low:.1f}, {row.distance_high:.1f}]",
            f"{row.floor:.1f} [{row.floor_low:.1f}, {row.floor_high:.1f}]",
            f"{row.trivial:.1f}",
            f"{row.p:.3f}" if row.p >= 0.001 else "< 0.001",
        ]
        for row in distances.itertuples()
    ]


HEADER = [
    "volume",
    "n real, generated",
    "real, mean ± SD (mL)",
    "generated",
    "distance [95 %] (mL)",
    "floor [95 % of halves]",
    "trivial",
    "p",
]


def explain(real: pd.DataFrame, generated: pd.DataFrame, real_file: Path, generated_file: Path, seed: int) -> str:
    flagged = [int(table["flags"].notna().sum()) if "flags" in table else 0 for table in (real, generated)]
    return f"""\
Volumes of {len(real)} real heads ({real_file.name}) and {len(generated)} generated ones ({generated_file.name}), both by \
{real["tool"].iloc[0]}, whose own errors are in both. {flagged[0]} and {flagged[1]} rows carry a flag of the tool and are \
counted all the same.

The Wasserstein-1 distance is the mean distance in mL that volumes would have to be moved for one histogram to become the \
other. Interval: percentile bootstrap of both samples, {RESAMPLES} times; it does not reach 0, since two small samples of one \
population are never at distance 0. Compare with the floor, the mean over {SPLITS} splits of the real volumes into halves, \
which have fewer volumes and are therefore rather further apart, and with the trivial answer, a generator that gives everyone \
the mean of the real volumes. p: permutation test of both being of one population, with the sizes of these samples, one-sided.

A small distance says that sizes are distributed alike, not that each head has the volumes it was asked for; and it means \
something only if the requests were distributed as the real heads are. Seed {seed}. For research, not for clinical use."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", type=Path, metavar="REAL.tsv", help="volumes of real scans, best of some it was not trained on")
    parser.add_argument("generated", type=Path, metavar="GENERATED.tsv", help="volumes of generated ones, by the same tool")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--seed", type=int, default=0, help="of resampling")
    arguments = parser.parse_args()

    real, generated = read_volumes(arguments.real), read_volumes(arguments.generated)
    distances = compare(real, generated, arguments.seed)
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    write_whole(output / "volumes.tsv", distances.to_csv(sep="\t", index=False, float_format="%.4g").encode())
    settings = {"unit": "mL", "tool": real["tool"].iloc[0], "seed": arguments.seed, "resamples": RESAMPLES, "splits": SPLITS}
    files = {"real": str(arguments.real), "generated": str(arguments.generated)}
    write_json(output / "volumes.json", settings | files | {"volumes": distances.to_dict("records")})
    write_whole(output / "volumes.png", draw_histograms(real, generated, distances))
    write_section(
        output / "volumes.section.json",
        "Sizes of ventricles, brain and head",
        explain(real, generated, arguments.real, arguments.generated, arguments.seed),
        [{"header": HEADER, "rows": section_rows(distances)}],
        [{"file": "volumes.png", "caption": "Volumes of real and generated heads. Generated heads are synthetic."}],
    )
    print(distances[["volume", "n_real", "n_generated", "distance", "floor", "trivial", "p"]].round(3).to_string(index=False))
    print(f"{output}: volumes.tsv, volumes.json, volumes.png and volumes.section.json")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
