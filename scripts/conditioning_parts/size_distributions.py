"""Compare the distributions of ventricle, brain and head sizes in generated and real volumes, by distances in mL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from cohorts.row_matching import QUANTITIES, refuse_other_unit
from ldm.data.volumes import VOLUMES, check_median, check_volumes
from matplotlib.figure import Figure
from measurement.output_table import NORMALISED
from scipy import stats
from shared.holm import holm
from shared.intervals import with_spread

from conditioning_parts.report_section import NOTICE, ReportSection
from conditioning_parts.requested_against_measured import GENERATED, SCANS, THROUGH

SIZES = {name: QUANTITIES[name][0] for name in (*VOLUMES, NORMALISED)}
REAL = "real scans"  # what tables and figures call `SCANS`
COLOURS = {REAL: "#4a90d9", THROUGH: "#3b8686", GENERATED: "#e07b39"}  # as on the report page
FEWEST = 4  # smallest number of volumes of a kind; with fewer, half a sample is a single volume
RESAMPLES = 2000
SPLITS = 500
VALUES_AT_ONCE = 2**24  # of all resamples in memory, 128 MB: up to 8000 volumes are resampled 2000 times at once


class ImpossibleSize(ValueError):
    """A table has a size that no head has. It is refused, whereas sizes that cannot be compared are only left out."""


def sizes_of(table: pd.DataFrame, where: str) -> pd.DataFrame:
    """Check a table of measured volumes and return it. Error messages call the table `where`."""
    found = [name for name in SIZES if name in table]
    if not found:
        raise ValueError(f"{where}: expected some of the columns {', '.join(SIZES)}, got {', '.join(table)}")
    if table.empty:
        raise ValueError(f"{where}: the table has no rows, so nothing was measured")
    if (twice := table.index.duplicated()).any():
        raise ValueError(
            f"{where}: {table.index[twice][0]} has several rows. Scans of one participant are not independent samples: keep "
            "one row of each participant, such as the first session's"
        )
    for name in found:
        if (bad := table[name] < 0).any():
            who = bad.idxmax()
            raise ImpossibleSize(f"{where}, {who}: {name} must be a volume in mL, got {table.loc[who, name]}")
    try:
        refuse_other_unit(table, where)
    except ValueError as error:
        raise ImpossibleSize(error) from None
    return table


def refuse_impossible(scans: pd.DataFrame, where: str) -> None:
    """Refuse volumes that no head has, and ventricles in percent. Only a model may give such heads, not a scan."""
    try:
        for participant, row in scans.iterrows():
            check_volumes({name: row[name] for name in VOLUMES if name in scans}, f"{where}, {participant}")
        if "ventricles_ml" in scans:
            check_median(scans["ventricles_ml"].dropna().tolist(), where)
    except ValueError as error:
        raise ImpossibleSize(error) from None


def volume_distance(real: np.ndarray, generated: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Compute the Wasserstein-1 distance of two samples in their unit, and the numbers to compare it with.

    Returns:
        A dict with size, mean and SD of both samples, and these entries. distance has the percentile bootstrap interval
        distance_low to distance_high (95 %, both samples are resampled). floor is the mean distance between random halves of
        the real sample, and 95 % of these distances lie between floor_low and floor_high. trivial is the distance between the
        real sample and its mean. p is from a one-sided permutation test that both samples come from one population.
    """
    real, generated = np.asarray(real, float), np.asarray(generated, float)
    for name, values in (("real", real), ("generated", generated)):
        if len(values) < FEWEST:
            raise ValueError(f"a distance needs at least {FEWEST} {name} volumes, got {len(values)}")
    if np.ptp(real) == 0:
        raise ValueError(f"all {len(real)} volumes to compare with are {real[0]:g}")

    rng = np.random.default_rng(seed)
    distance, samples = stats.wasserstein_distance, (real, generated)
    options = {"vectorized": False, "rng": rng, "batch": max(1, VALUES_AT_ONCE // (len(real) + len(generated)))}
    interval = stats.bootstrap(samples, distance, n_resamples=RESAMPLES, method="percentile", **options).confidence_interval
    test = stats.permutation_test(samples, distance, n_resamples=RESAMPLES - 1, alternative="greater", **options)
    shuffled = (rng.permutation(real) for _ in range(SPLITS))
    floors = [distance(half[: len(real) // 2], half[len(real) // 2 :]) for half in shuffled]
    found = {
        "real_mean": real.mean(),
        "real_sd": real.std(ddof=1),
        "generated_mean": generated.mean(),
        "generated_sd": generated.std(ddof=1),
        "distance": distance(real, generated),
        "distance_low": interval.low,
        "distance_high": interval.high,
        "floor": np.mean(floors),
        "floor_low": np.percentile(floors, 2.5),
        "floor_high": np.percentile(floors, 97.5),
        "trivial": distance(real, [real.mean()]),
        "p": test.pvalue,
    }
    return {"n_real": len(real), "n_generated": len(generated)} | {name: float(value) for name, value in found.items()}


def compare(tables: Mapping[str, pd.DataFrame], seed: int = 0) -> tuple[pd.DataFrame, list[str]]:
    """Compute `volume_distance` for each size that all tables have, between all pairs of tables.

    Returns:
        A table with one row per size and pair, and a list of the reasons for missing distances. The columns are volume, first
        and second (the kinds), the numbers of `volume_distance`, and p_holm, which is corrected for all tests of the table.
        Scans and scans through the autoencoder show the same heads, so this pair has no test. A distance is missing, for
        example, if an autoencoder gives all heads the same volume.
    """
    common = [name for name in SIZES if all(name in table and table[name].notna().any() for table in tables.values())]
    if not common:
        raise ValueError(f"the tables have no size in common; expected some of {', '.join(SIZES)}")
    pairs = [(REAL, GENERATED), (THROUGH, GENERATED), (REAL, THROUGH)]
    rows, without = [], []
    for first, second in [pair for pair in pairs if set(pair) <= set(tables)]:
        values = {name: [tables[kind][name].dropna() for kind in (first, second)] for name in common}
        if all(a.tolist() == b.tolist() for a, b in values.values()):
            raise ValueError(f"{first} and {second}: all volumes are the same. Was one table given twice?")
        for name, samples in values.items():
            try:
                numbers = volume_distance(*samples, seed)
            except ValueError as error:
                if THROUGH not in (first, second):
                    raise ValueError(f"{name}: {error}") from error
                without.append(f"{SIZES[name]}, {second} from {first}: {error}")
                continue
            if GENERATED not in (first, second):
                numbers |= dict.fromkeys(("distance_low", "distance_high", "p"), np.nan)
            rows.append({"volume": name, "first": first, "second": second} | numbers)
    corrected = holm([None if np.isnan(row["p"]) else row["p"] for row in rows])
    return pd.DataFrame(rows).assign(p_holm=np.array(corrected, float)), without


def draw_histograms(tables: Mapping[str, pd.DataFrame], distances: pd.DataFrame) -> Figure:
    """Draw a panel per size with histograms of all kinds in common bins, as a percentage of each kind."""
    names = list(dict.fromkeys(distances["volume"]))
    figure = Figure(figsize=(3.6 * len(names), 3.6), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
        values = {kind: tables[kind][name].dropna() for kind in COLOURS if kind in tables}
        edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins=12)
        for kind, sample in values.items():
            look = {"histtype": "stepfilled", "facecolor": (COLOURS[kind], 0.25), "edgecolor": COLOURS[kind]}
            percent = np.full(len(sample), 100 / len(sample))
            axes.hist(sample, edges, weights=percent, label=f"{kind}, n = {len(sample)}", **look)
        axes.set(title=SIZES[name], xlabel="mL")
        axes.legend(frameon=False, fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    figure.axes[0].set_ylabel("% of the volumes")
    return figure


def section_tables(tables: Mapping[str, pd.DataFrame], distances: pd.DataFrame) -> list[dict]:
    """Return a table with mean and SD of each kind, and a table of the distances between kinds."""
    kinds = [kind for kind in COLOURS if kind in tables]
    sizes = [
        [SIZES[name], *(with_spread(tables[kind][name].mean(), tables[kind][name].std(), 1) for kind in kinds)]
        for name in dict.fromkeys(distances["volume"])
    ]
    rows = []
    for row in distances.itertuples():
        interval = f" [{row.distance_low:.1f}, {row.distance_high:.1f}]" if row.distance_low >= 0 else ""
        floor = f"{row.floor:.1f} [{row.floor_low:.1f}, {row.floor_high:.1f}]"
        p_values = ["—" if np.isnan(p) else f"{p:.3f}" if p >= 0.001 else "< 0.001" for p in (row.p, row.p_holm)]
        title, n = f"{SIZES[row.volume]}: {row.second} from {row.first}", f"{row.n_generated}, {row.n_real}"
        rows.append([title, n, f"{row.distance:.1f}{interval}", floor, f"{row.trivial:.1f}", *p_values])
    header = ["", "n", "distance, mL [95 %]", "floor, mL [95 % of halves]", "always the mean, mL", "p", "p (Holm)"]
    return [{"header": ["mean ± SD, mL", *kinds], "rows": sizes}, {"header": header, "rows": rows}]


def explain(tables: Mapping[str, pd.DataFrame], tool: str, tests: int, seed: int) -> str:
    counts = ", ".join(f"{len(table)} {kind}{' volumes' * (kind == GENERATED)}" for kind, table in tables.items())
    flags = {kind: int(table["flags"].notna().sum()) if "flags" in table else 0 for kind, table in tables.items()}
    flagged = ", ".join(f"{count} {kind}" for kind, count in flags.items())
    through = "Before you attribute a distance to the model, add the scans through the autoencoder (--reconstructed)."
    if THROUGH in tables:
        through = (
            "The same scans through the autoencoder are as smooth. Their distance from the generated volumes is due to the "
            "diffusion model. Their distance from the scans, which show the same heads, is due to the tool and "
            "the autoencoder."
        )
    return f"""\
{tool} measured {counts}. Rows that the tool flagged as unusual are included: {flagged}.

Generated volumes are smoother than scans, and the tool may measure the same head differently when it is smooth. {through}

The Wasserstein-1 distance is the mean distance in mL by which volumes would have to move to turn one histogram into \
the other. Its interval is a percentile bootstrap of both samples ({RESAMPLES} resamples). The interval never reaches \
0, because two small samples of one population are never at distance 0. Compare the distance with the floor and with \
the trivial answer. The floor is the mean distance between halves ({SPLITS} random splits) of the kind named after \
'from'; halves have fewer volumes, so they tend to lie farther apart. The trivial answer is a generator that gives \
every head the mean. p is from a one-sided permutation test that both samples come from one population, for these sample \
sizes. Holm's correction is for all {tests} tests.

A small distance means that the sizes are distributed alike. It does not mean that each head has the volumes that were \
requested, and it means little unless the requests were distributed as the real heads are. The seed of the resampling \
is {seed}. For research, not for clinical use."""


def size_distributions(
    measured: Mapping[str, Mapping[str, pd.DataFrame]], files: Mapping[str, Sequence[Path]], seed: int
) -> ReportSection:
    """Compare the sizes that the first tool measured in every kind of volumes.

    Args:
        measured: tables by kind and tool. The kinds are `SCANS`, `GENERATED` and, where given, `THROUGH`.
        files: files of these tables by kind, for error messages.
        seed: seed of the resampling.
    """
    measured, files = ({REAL if kind == SCANS else kind: of for kind, of in given.items()} for given in (measured, files))
    common = [tool for tool in measured[GENERATED] if all(tool in tables for tables in measured.values())]
    if not common:
        found = ", ".join(f"{kind} by {' and '.join(tables)}" for kind, tables in measured.items())
        raise ValueError(f"{found}: a distance would compare the tools, not the heads. Measure all with one tool")
    with_sizes = (tool for tool in common if all(set(SIZES) & set(tables[tool]) for tables in measured.values()))
    tool = next(with_sizes, common[0])
    names = {kind: " and ".join(map(str, files[kind])) for kind in measured}
    tables = {kind: sizes_of(of_kind[tool], names[kind]) for kind, of_kind in measured.items()}
    refuse_impossible(tables[REAL], names[REAL])
    if THROUGH in tables:
        same = tables[THROUGH].index
        if len(others := same.difference(tables[REAL].index)):
            raise ValueError(f"{names[THROUGH]}: {others[0]} is not in {names[REAL]}. Measure the same scans")
        tables[REAL] = tables[REAL].loc[same]
    distances, without = compare(tables, seed)
    rows = [{name: value for name, value in row.items() if not pd.isna(value)} for row in distances.to_dict("records")]
    settings = {"unit": "mL", "tool": tool, "seed": seed, "resamples": RESAMPLES, "splits": SPLITS, "files": names}
    text = explain(tables, tool, int(distances["p"].notna().sum()), seed)
    return ReportSection(
        "volumes",
        "Sizes of ventricles, brain and head",
        text + "".join(f"\n\nThere is no distance for {reason}." for reason in without),
        section_tables(tables, distances),
        {"volumes.png": (draw_histograms(tables, distances), f"Volumes of real and generated heads. {NOTICE}")},
        {"volumes.tsv": distances, "volumes.json": settings | {"volumes": rows, "without": without}},
    )
