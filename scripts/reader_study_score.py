"""Results of a reader study, unblinded: ratings of real and synthetic slices, agreement of readers, guesses."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from reader_study_make import DIRECTIONS, KEY_COLUMNS, KINDS
from scipy import stats
from section import write_json, write_section, write_whole

RATINGS = {1: "very good", 2: "good", 3: "fair", 4: "poor", 5: "very poor"}  # after Ayaz et al. 2022, Figure 4C
COLUMNS = ["study", "reader", "item", "rating", "guess", "seconds"]
COLOURS = {"real": "#4a90d9", "synthetic": "#e07b39"}  # as in report.py
RESAMPLES = 2000
MOST_LISTED = 5


# --- Reading -------------------------------------------------------------------------------------------------------


def read_key(path: Path) -> pd.DataFrame:
    """The key of `make`, by item.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such key. `reader_study.py make` wrote it as key/key.tsv")
    key = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False)
    if list(key.columns) != KEY_COLUMNS or key.empty or key["study"].nunique() != 1:
        raise ValueError(f"{path}: not the key of a reader study, expected columns {', '.join(KEY_COLUMNS)}")
    return key.set_index("item")


def read_results(path: Path, key: pd.DataFrame, partial: bool = False) -> pd.DataFrame:
    """One reader's results: item, rating, guess, seconds, reader.

    Args:
        path: TSV that the page saved.
        key: of `read_key`.
        partial: leave out unanswered items instead of refusing them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another study, unknown or doubled items, ratings or guesses that are none, unanswered items: file and row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such results")
    # The page does not quote: a quotation mark is a part of a name.
    table = pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False, encoding="utf-8-sig", quoting=csv.QUOTE_NONE)
    if list(table.columns) != COLUMNS:
        raise ValueError(f"{path}: expected columns {', '.join(COLUMNS)}, got {', '.join(table.columns)}")
    study, row_of = key["study"].iloc[0], {}
    for number, row in enumerate(table.itertuples(index=False), 2):
        where = f"{path} row {number}"
        if row.study != study:
            raise ValueError(f"{where}: results of the study {row.study!r}, but the key is of {study!r}")
        if row.reader != table["reader"].iloc[0] or not row.reader.strip():
            raise ValueError(f"{where}: reader {row.reader!r}, expected one reader in a file, {table['reader'].iloc[0]!r}")
        if row.item not in key.index:
            raise ValueError(f"{where}: unknown item {row.item!r}")
        if row.item in row_of:
            raise ValueError(f"{where}: item {row.item} was answered in row {row_of[row.item]} already")
        row_of[row.item] = number
        if row.rating != "n/a" and row.rating not in map(str, RATINGS):
            raise ValueError(
                f"{where}: the rating of item {row.item} must be 1 (very good) to 5 (very poor), got {row.rating!r}"
            )
        if row.guess != "n/a" and row.guess not in KINDS:
            raise ValueError(f"{where}: the guess on item {row.item} must be real or synthetic, got {row.guess!r}")
    done = table[(table["rating"] != "n/a") & (table["guess"] != "n/a")]
    if len(done) < len(key) and not partial:
        missing = [item for item in key.index if item not in set(done["item"])]
        raise ValueError(
            f"{path}: {len(missing)} of {len(key)} items are not answered, such as {', '.join(missing[:MOST_LISTED])}. "
            "Let the reader finish, or add --partial"
        )
    if done.empty:
        raise ValueError(f"{path}: no answers in it")
    seconds = pd.to_numeric(done["seconds"], errors="coerce")
    return done.assign(rating=done["rating"].astype(int), seconds=seconds).drop(columns="study").reset_index(drop=True)


def unblind(key: pd.DataFrame, results: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All answers with what the items are, in the order of the study.

    Raises:
        ValueError: a reader twice.
    """
    readers = [result["reader"].iloc[0] for result in results]
    if twice := sorted({reader for reader in readers if readers.count(reader) > 1}):
        raise ValueError(f"two files are by the reader {twice[0]!r}. Give each reader's results once")
    answers = pd.concat(results).join(key, on="item")
    answers["position"] = answers["position"].astype(int)
    answers["correct"] = (answers["guess"] == answers["kind"]).astype(float)
    return answers.sort_values(["reader", "position"]).reset_index(drop=True)


# --- Statistics ----------------------------------------------------------------------------------------------------


def kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Quadratically weighted kappa of two lists of ratings (Cohen 1968), of the places where both are known.

    1 - mean squared difference / that of ratings paired at random, which is a sum of variances: the same number as
    scikit-learn's, in a hundredth of the time, and the bootstrap needs it thousands of times.

    NaN where it is undefined: no common items, or both always gave the same rating.
    """
    both = ~(np.isnan(first) | np.isnan(second))
    if not both.any():
        return math.nan
    first, second = first[both], second[both]
    at_random = first.var() + second.var() + (first.mean() - second.mean()) ** 2
    return float(1 - ((first - second) ** 2).mean() / at_random) if at_random > 0 else math.nan


def interval(statistic: Callable, items: pd.DataFrame, rng: np.random.Generator) -> tuple[float, float]:
    """95 % percentile bootstrap of `statistic(rows)`; whole volumes are drawn, real and synthetic apart.

    Slices of a volume resemble each other, so they are drawn together. NaN where the statistic is mostly undefined.
    """
    places = [
        [np.flatnonzero(items["file"].to_numpy() == file) for file in sorted(set(items["file"][items["kind"] == kind]))]
        for kind in sorted(set(items["kind"]))
    ]
    values = []
    for _ in range(RESAMPLES):
        drawn = [volumes[i] for volumes in places for i in rng.integers(len(volumes), size=len(volumes))]
        values.append(statistic(np.concatenate(drawn)))
    values = np.array(values)[np.isfinite(values)]
    if len(values) < RESAMPLES / 2:
        return math.nan, math.nan
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def estimate(statistic: Callable, items: pd.DataFrame, rng: np.random.Generator) -> dict[str, float]:
    low, high = interval(statistic, items, rng)
    return {"value": float(statistic(np.arange(len(items)))), "low": low, "high": high}


def score(key: pd.DataFrame, answers: pd.DataFrame, seed: int = 0) -> dict:
    """All numbers of the study; repeated items count for the agreement of readers with themselves alone.

    Returns:
        "ratings": for all directions and each, n answers by kind, mean rating by kind and their difference, with intervals;
        "frequencies": answers by direction, kind and rating; "inter_reader": kappa of each pair of readers; "intra_reader":
        for each reader kappa and share of equal ratings on repeats; "guesses": for each reader accuracy with its exact
        interval (Clopper and Pearson 1934) and p against chance, both as if slices were independent, and with the interval
        of the bootstrap of volumes; "accuracy_of_all": of all readers together.
    """
    rng = np.random.default_rng(seed)
    readers = sorted(answers["reader"].unique())
    once = answers[answers["repeat_of"] == ""]
    items = key[key["repeat_of"] == ""].loc[lambda table: table.index.isin(once["item"])]

    def matrix(column: str, of: pd.DataFrame = once, rows: pd.Index = items.index) -> np.ndarray:
        return of.pivot(index="item", columns="reader", values=column).reindex(rows)[readers].to_numpy(float)

    rated, correct = matrix("rating"), matrix("correct")
    numbers = {"study": key["study"].iloc[0], "seed": seed, "n_items": len(items), "n_readers": len(readers)}
    numbers |= {"n_volumes": {kind: int(items["file"][items["kind"] == kind].nunique()) for kind in KINDS}}

    numbers["ratings"], numbers["frequencies"] = {}, {}
    for direction in ("all", *DIRECTIONS):
        of_direction = np.full(len(items), True) if direction == "all" else (items["direction"] == direction).to_numpy()
        part, values = items[of_direction], rated[of_direction]
        is_kind = {kind: (part["kind"] == kind).to_numpy() for kind in KINDS}
        numbers["frequencies"][direction] = {
            kind: {rating: int((values[is_kind[kind]] == rating).sum()) for rating in RATINGS} for kind in KINDS
        }
        if not all(is_kind[kind].any() for kind in KINDS):
            continue

        def mean(rows, kind, values=values, is_kind=is_kind):
            return float(np.nanmean(values[rows][is_kind[kind][rows]]))

        def difference(rows, mean=mean):
            return mean(rows, "synthetic") - mean(rows, "real")

        numbers["ratings"][direction] = {
            "n": {kind: int(np.isfinite(values[is_kind[kind]]).sum()) for kind in KINDS},
            **{kind: estimate(lambda rows, kind=kind, mean=mean: mean(rows, kind), part, rng) for kind in KINDS},
            "difference": estimate(difference, part, rng),
        }

    numbers["inter_reader"] = []
    for (i, first), (j, second) in itertools.combinations(enumerate(readers), 2):
        both = np.isfinite(rated[:, i]) & np.isfinite(rated[:, j])
        pair = estimate(lambda rows, i=i, j=j: kappa(rated[rows, i], rated[rows, j]), items, rng)
        numbers["inter_reader"].append({"readers": [first, second], "n": int(both.sum()), "kappa": pair})

    again = key[key["repeat_of"] != ""]
    second_time = matrix("rating", answers[answers["repeat_of"] != ""], again.index) if len(again) else None
    first_time = matrix("rating", once, pd.Index(again["repeat_of"])) if len(again) else None
    numbers["intra_reader"], numbers["guesses"] = [], []
    for i, reader in enumerate(readers):
        if second_time is not None:
            pairs = np.isfinite(first_time[:, i]) & np.isfinite(second_time[:, i])
            equal = (first_time[pairs, i] == second_time[pairs, i]).sum()
            own = estimate(lambda rows, i=i: kappa(first_time[rows, i], second_time[rows, i]), again, rng)
            numbers["intra_reader"].append({"reader": reader, "n": int(pairs.sum()), "equal": int(equal), "kappa": own})
        numbers["guesses"].append({"reader": reader} | guesses(once[once["reader"] == reader], rng))
    numbers["accuracy_of_all"] = estimate(lambda rows: float(np.nanmean(correct[rows])), items, rng)
    return numbers


def guesses(answers: pd.DataFrame, rng: np.random.Generator) -> dict:
    """How often one reader told real from synthetic: exact binomial interval and two-sided p against one half.

    These take slices as independent, while slices of one volume are alike; "by_volumes" has the bootstrap of volumes. That one
    is too narrow with few volumes, and has no width where all guesses are right (or wrong), hence both.
    """
    correct = answers["correct"].to_numpy()
    right, n = int(correct.sum()), len(correct)
    test = stats.binomtest(right, n, 0.5)
    exact = test.proportion_ci(0.95, method="exact")
    by_kind = answers.groupby("kind")["correct"].agg(["sum", "count"])
    return {
        "n": n,
        "right": right,
        "accuracy": {"value": right / n, "low": float(exact.low), "high": float(exact.high)},
        "by_volumes": estimate(lambda rows: correct[rows].mean(), answers, rng),
        "p": float(test.pvalue),
        "right_of": {kind: [int(by_kind["sum"].get(kind, 0)), int(by_kind["count"].get(kind, 0))] for kind in KINDS},
        "trivial": float(answers["kind"].value_counts(normalize=True).max()),
        "median_seconds": float(answers["seconds"].median()),
    }


# --- What is written -----------------------------------------------------------------------------------------------


def draw(numbers: dict) -> bytes:
    """PNG: how often each rating was given, for real and synthetic slices, and how often readers guessed right."""
    figure = Figure(figsize=(11, 5.6), layout="constrained", facecolor="white")
    top, bottom = figure.subfigures(2, 1, height_ratios=(3, 2))
    for axes, (direction, counts) in zip(top.subplots(1, 4, sharey=True), numbers["frequencies"].items()):
        for shift, (kind, count) in zip((-0.2, 0.2), counts.items()):
            total = max(sum(count.values()), 1)
            heights = [100 * n / total for n in count.values()]
            axes.bar([rating + shift for rating in RATINGS], heights, 0.38, color=COLOURS[kind], label=f"{kind}, n = {total}")
        axes.set_title("all directions" if direction == "all" else direction, fontsize=10)
        axes.set_xticks(list(RATINGS), ["1\nvery good", "2", "3", "4", "5\nvery poor"], fontsize=8)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    top.axes[0].set_ylabel("% of the ratings")
    top.axes[0].set_ylim(0, top.axes[0].get_ylim()[1] * 1.25)

    axes = bottom.subplots()
    rows = [(f"{entry['reader']}, n = {entry['n']}", entry["accuracy"]) for entry in numbers["guesses"]]
    for place, (_, accuracy) in enumerate(rows):
        axes.plot([100 * accuracy["low"], 100 * accuracy["high"]], [place] * 2, color="#333333", linewidth=1.5)
        axes.plot(100 * accuracy["value"], place, "o", color="#333333")
    axes.axvline(50, color="#999999", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(rows)), [name for name, _ in rows], fontsize=9, parse_math=False)  # a $ is a $
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("guesses that were right, % with exact 95 % interval (dashed: chance)")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def _with_interval(estimate: dict, digits: int = 2, scale: float = 1) -> str:
    if math.isnan(estimate["value"]):
        return "undefined"
    value, low, high = (f"{round(scale * estimate[name], digits) + 0.0:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if not math.isnan(estimate["low"]) else f"{value} [too few for an interval]"


def tables(numbers: dict) -> list[dict]:
    ratings = [
        [
            "all directions" if direction == "all" else direction,
            f"{row['n']['real']}, {row['n']['synthetic']}",
            *(_with_interval(row[name]) for name in (*KINDS, "difference")),
        ]
        for direction, row in numbers["ratings"].items()
    ]
    told = []
    for row in numbers["guesses"]:
        of = [f"{right} of {n}" for right, n in row["right_of"].values()]
        exact, by_volumes = (_with_interval(row[name], 0, 100) for name in ("accuracy", "by_volumes"))
        told.append(
            [
                row["reader"],
                str(row["n"]),
                exact,
                by_volumes.partition(" ")[2],
                *of,
                "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}",
                f"{100 * row['trivial']:.0f}",
            ]
        )
    if numbers["n_readers"] > 1:
        everyone = sum(row["n"] for row in numbers["guesses"])
        all_right = _with_interval(numbers["accuracy_of_all"], 0, 100)
        told.append(["all", str(everyone), *all_right.split(" ", 1), "", "", "", ""])
    agreeing = [
        [" and ".join(row["readers"]), str(row["n"]), _with_interval(row["kappa"]), ""] for row in numbers["inter_reader"]
    ]
    agreeing += [
        [f"{row['reader']} with themselves", str(row["n"]), _with_interval(row["kappa"]), f"{row['equal']} of {row['n']}"]
        for row in numbers["intra_reader"]
    ]
    return [
        {"header": ["mean rating (1 very good to 5 very poor) [95 %]", "n ratings real, synthetic", "real", "synthetic",
                    "synthetic - real"], "rows": ratings},
        {"header": ["guesses by", "n", "right, % [95 %, exact]", "[95 %, volumes drawn]", "real called real",
                    "synthetic called synthetic", "p against 50 %", "trivial: always one answer, %"], "rows": told},
        {"header": ["agreement of ratings", "n items", "weighted kappa [95 %] (chance: 0)", "equal ratings"],
         "rows": agreeing},
    ]  # fmt: skip


def explain(numbers: dict, partial: bool) -> str:
    volumes = numbers["n_volumes"]
    plural = "" if numbers["n_readers"] == 1 else "s"
    unfinished = "Some did not finish; their answers so far are counted. " if partial else ""
    return f"""\
{numbers["n_readers"]} reader{plural} rated {numbers["n_items"]} slices of {volumes["real"]} real and {volumes["synthetic"]} \
synthetic volumes, shuffled, in sagittal, coronal and axial direction, and guessed whether each is real, without knowing \
which is which (study {numbers["study"]}). Air was drawn black in both kinds: it is not judged. {unfinished}Some slices came \
twice; the second time counts for the agreement of readers with themselves alone.

Ratings: mean with 95 % percentile bootstrap, {RESAMPLES} times, drawing whole volumes, since slices of one are alike. The \
readers are taken as they are: the intervals say nothing about other readers. The yardstick of the synthetic slices is the \
rating of the real ones. Guesses: share that was right, with two intervals, beside the trivial 50 %. The exact binomial one \
(Clopper-Pearson) and p take slices as independent, though slices of one volume are alike: they may be too sure. The bootstrap \
that draws whole volumes allows for that, but is too narrow with few volumes, and has no width where all guesses are right: \
believe the wider one. Agreement: quadratically weighted kappa (0: chance, 1: equal), undefined where both always gave the \
same rating.

The frequency chart follows Figure 4C of Ayaz et al. 2022. Research data about synthetic images; not for clinical use."""


def write_scores(numbers: dict, answers: pd.DataFrame, output: Path, partial: bool = False) -> None:
    """Write ratings.tsv, reader_study.json, reader_study.png and reader_study.section.json into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    columns = ["reader", "position", "item", "kind", "direction", "file", "slice", "repeat_of", "rating", "guess", "seconds"]
    write_whole(output / "ratings.tsv", answers[columns].to_csv(sep="\t", index=False, na_rep="n/a").encode())
    write_json(output / "reader_study.json", _plain(numbers | {"partial": partial}))
    write_whole(output / "reader_study.png", draw(numbers))
    caption = (
        "Ratings of real and synthetic slices, and guesses that were right. Synthetic images; research, not for clinical use."
    )
    figures = [{"file": "reader_study.png", "caption": caption}]
    write_section(output / "reader_study.section.json", "Reader study", explain(numbers, partial), tables(numbers), figures)


def _plain(value):
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
