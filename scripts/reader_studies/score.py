"""Results of a reader study, unblinded: ratings of real and synthetic slices, agreement of readers, guesses."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from reader_studies.make import DIRECTIONS, KEY_COLUMNS, KINDS

RATINGS = {1: "very good", 2: "good", 3: "fair", 4: "poor", 5: "very poor"}  # after Ayaz et al. 2022, Figure 4C
COLUMNS = ["study", "reader", "item", "rating", "guess", "seconds"]
RESAMPLES = 2000
MOST_LISTED = 5
COMPUTED = " (computed)"  # ends the name of a reader who is a rule, see reader_study_rate.py


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
    if done["reader"].iloc[0].endswith(COMPUTED) and seconds.notna().any():
        raise ValueError(
            f"{path}: {done['reader'].iloc[0]!r} is the name of a computed reader, but took seconds, as people do. People are "
            f"not to be called{COMPUTED}: rename the reader"
        )
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
    """All numbers of the study: of people, and apart from them those of computed readers.

    Returns:
        what `score_readers` gives of all people together, nothing counted where there are none; "computed": the same of each
        computed reader alone, by name; "agreement_with_computed": kappa of each pair of readers of whom one or both are
        computed, as in "inter_reader". The numbers of people are the same with and without computed readers.
    """
    rng = np.random.default_rng(seed)
    computed = answers["reader"].str.endswith(COMPUTED)
    numbers = {"study": key["study"].iloc[0], "seed": seed} | score_readers(key, answers[~computed], rng)
    numbers["computed"] = {name: score_readers(key, own, rng) for name, own in answers[computed].groupby("reader")}
    readers = [*sorted(answers["reader"][~computed].unique()), *numbers["computed"]]
    pairs = [pair for pair in itertools.combinations(readers, 2) if pair[1] in numbers["computed"]]
    numbers["agreement_with_computed"] = compare_ratings(key, answers, pairs, rng)
    return numbers


def shown_once(key: pd.DataFrame, answers: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The answers to slices when they came first, and the rows of the key that these are about."""
    once = answers[answers["repeat_of"] == ""]
    return once, key[(key["repeat_of"] == "") & key.index.isin(once["item"])]


def by_reader(answers: pd.DataFrame, column: str, items: pd.Index, readers: Sequence[str]) -> np.ndarray:
    """A column of the answers, (items, readers), NaN where there is no answer."""
    table = answers.pivot(index="item", columns="reader", values=column)
    return table.reindex(index=items, columns=readers).to_numpy(float)


def compare_ratings(
    key: pd.DataFrame, answers: pd.DataFrame, pairs: Iterable[Sequence[str]], rng: np.random.Generator
) -> list[dict]:
    """Kappa of each pair of readers, with its interval and the items that both rated."""
    once, items = shown_once(key, answers)
    compared = []
    for pair in pairs:
        first, second = by_reader(once, "rating", items.index, pair).T
        both = np.isfinite(first) & np.isfinite(second)
        value = estimate(lambda rows, first=first, second=second: kappa(first[rows], second[rows]), items, rng)
        compared.append({"readers": list(pair), "n": int(both.sum()), "kappa": value})
    return compared


def score_readers(key: pd.DataFrame, answers: pd.DataFrame, rng: np.random.Generator) -> dict:
    """All numbers of some readers; repeated items count for the agreement of readers with themselves alone.

    Returns:
        "ratings": for all directions and each, n answers by kind, mean rating by kind and their difference, with intervals;
        "frequencies": answers by direction, kind and rating; "inter_reader": kappa of each pair of readers; "intra_reader":
        for each reader kappa and share of equal ratings on repeats; "guesses": for each reader accuracy with its exact
        interval (Clopper and Pearson 1934) and p against chance, both as if slices were independent, and with the interval
        of the bootstrap of volumes; "accuracy_of_all": of all readers together, None where there are none.
    """
    readers = sorted(answers["reader"].unique())
    once, items = shown_once(key, answers)
    rated, correct = (by_reader(once, column, items.index, readers) for column in ("rating", "correct"))
    numbers = {"n_items": len(items), "n_readers": len(readers)}
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

    numbers["inter_reader"] = compare_ratings(key, answers, itertools.combinations(readers, 2), rng)

    again = key[key["repeat_of"] != ""]
    first_time = by_reader(once, "rating", again["repeat_of"], readers)
    second_time = by_reader(answers[answers["repeat_of"] != ""], "rating", again.index, readers)
    numbers["intra_reader"], numbers["guesses"] = [], []
    for i, reader in enumerate(readers):
        if len(again):
            pairs = np.isfinite(first_time[:, i]) & np.isfinite(second_time[:, i])
            equal = (first_time[pairs, i] == second_time[pairs, i]).sum()
            own = estimate(lambda rows, i=i: kappa(first_time[rows, i], second_time[rows, i]), again, rng)
            numbers["intra_reader"].append({"reader": reader, "n": int(pairs.sum()), "equal": int(equal), "kappa": own})
        numbers["guesses"].append({"reader": reader} | guesses(once[once["reader"] == reader], rng))
    numbers["accuracy_of_all"] = estimate(lambda rows: float(np.nanmean(correct[rows])), items, rng) if readers else None
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
