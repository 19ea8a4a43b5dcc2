"""Score a reader study: ratings of real and synthetic slices, agreement between readers, and guesses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats
from shared.problems import refuse
from shared.tables import NUMBER, is_missing, read_numbered
from sklearn import config_context
from sklearn.metrics import cohen_kappa_score

from reader_studies.make import KEY_COLUMNS
from reader_studies.slices import DIRECTIONS, KINDS

RATINGS = {1: "very good", 2: "good", 3: "fair", 4: "poor", 5: "very poor"}  # after Ayaz et al. 2022, Figure 4C
COLUMNS = ["study", "reader", "item", "rating", "guess", "seconds"]
RESAMPLES = 2000
COMPUTED = " (computed)"  # the name of each computed reader ends with this, see rate.py


def read_key(path: Path) -> pd.DataFrame:
    """Read the key that `make` wrote, with one row per item."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such key. `reader_study.py make` wrote it as key/key.tsv")
    header, rows, problems = read_numbered(path, KEY_COLUMNS, empty=True)
    key = pd.DataFrame(list(rows.values()), columns=header)
    if header == KEY_COLUMNS[:-1]:  # a key that was made before there was the last column
        key["simulated"] = "no"
    if list(key.columns) != KEY_COLUMNS or problems or key["study"].nunique() != 1:
        raise ValueError(f"{path}: not the key of a reader study, expected columns {', '.join(KEY_COLUMNS)}")
    sound = key["position"].str.fullmatch("[0-9]+") & key["kind"].isin(KINDS) & key["direction"].isin(list(DIRECTIONS))
    if wrong := [item for item, good, twice in zip(key["item"], sound, key["item"].duplicated()) if twice or not good]:
        raise ValueError(
            f"{path}: item {wrong[0]} is there twice, or its position, kind or direction is wrong. Restore the key"
        )
    return key.set_index("item")


def read_results(path: Path, key: pd.DataFrame, partial: bool = False) -> pd.DataFrame:
    """Read the results of one reader, with columns reader, item, rating, guess and seconds.

    Args:
        path: TSV file that the page saved.
        key: key of the study, as `read_key` returns it.
        partial: True accepts a file with unanswered items and leaves them out. False refuses it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file belongs to another study, or a row is wrong; the message names file and row.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of results. Give the TSV files that the page saved")
    # The page does not quote, so a quotation mark belongs to the name.
    header, rows, problems = read_numbered(path, COLUMNS, quotes=False, empty=True)
    if header != COLUMNS:
        raise ValueError(f"{path}: expected columns {', '.join(COLUMNS)}, got {', '.join(header)}")
    refuse(problems)
    table = pd.DataFrame(list(rows.values()), columns=COLUMNS)
    answers = ["rating", "guess", "seconds"]
    table[answers] = table[answers].mask(table[answers].map(is_missing), "n/a")  # pandas writes an empty cell
    table["rating"] = table["rating"].str.replace(r"^([1-5])\.0*$", r"\1", regex=True)  # as spreadsheets and pandas write 5
    study, row_of = key["study"].iloc[0], {}
    for number, row in zip(rows, table.itertuples(index=False)):
        problem = None
        if row.study != study:
            problem = f"results of the study {row.study!r}, but the key is of {study!r}"
        elif row.reader != table["reader"].iloc[0] or not row.reader.strip():
            problem = f"reader {row.reader!r}, expected one reader in a file, {table['reader'].iloc[0]!r}"
        elif row.item not in key.index:
            problem = f"unknown item {row.item!r}"
        elif row.item in row_of:
            problem = f"item {row.item} was answered in row {row_of[row.item]} already"
        elif row.rating not in ("n/a", *map(str, RATINGS)):
            problem = f"the rating of item {row.item} must be 1 (very good) to 5 (very poor), got {row.rating!r}"
        elif row.guess not in ("n/a", *KINDS):
            problem = f"the guess on item {row.item} must be real or synthetic, got {row.guess!r}"
        elif row.seconds != "n/a" and not (NUMBER.fullmatch(row.seconds) and 0 <= float(row.seconds) < math.inf):
            problem = f"the seconds of item {row.item} must be a number from 0 or n/a, got {row.seconds!r}"
        if problem:
            raise ValueError(f"{path} row {number}: {problem}")
        row_of[row.item] = number
    done = table[(table["rating"] != "n/a") & (table["guess"] != "n/a")]
    missing = key.index[~key.index.isin(done["item"])]
    if len(missing) and not partial:
        raise ValueError(
            f"{path}: {len(missing)} of {len(key)} items are not answered, such as {', '.join(missing[:5])}. "
            "Let the reader finish, or add --partial"
        )
    if done.empty:
        raise ValueError(f"{path}: no answers in it")
    seconds, reader = pd.to_numeric(done["seconds"], errors="coerce"), done["reader"].iloc[0]
    if reader.endswith(COMPUTED) and seconds.notna().any():
        raise ValueError(
            f"{path}: {reader!r} is the name of a computed reader, but took seconds, as people do. Give this person a name "
            f"that does not end in{COMPUTED}"
        )
    return done.assign(rating=done["rating"].astype(int), seconds=seconds).drop(columns="study")


def unblind(key: pd.DataFrame, results: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join all answers with the key, sorted by reader and position."""
    readers = [result["reader"].iloc[0] for result in results]
    if twice := sorted({reader for reader in readers if readers.count(reader) > 1}):
        raise ValueError(f"two files are by the reader {twice[0]!r}. Give each reader's results once")
    answers = pd.concat(results).join(key, on="item")
    answers["position"] = answers["position"].astype(int)
    answers["correct"] = (answers["guess"] == answers["kind"]).astype(float)
    return answers.sort_values(["reader", "position"]).reset_index(drop=True)


def kappa(first: np.ndarray, second: np.ndarray) -> float:
    """Return the quadratically weighted kappa (Cohen 1968) of two lists of ratings, over the items that both rated.

    Kappa is NaN where it is undefined: if no item was rated twice, or if all ratings are equal.
    """
    both = np.isfinite(first) & np.isfinite(second)
    cells = (first[both] - 1) * len(RATINGS) + second[both] - 1
    return _kappa_of_counts(tuple(np.bincount(cells.astype(int), minlength=len(RATINGS) ** 2)))


@cache  # many resamples give the same counts, and scikit-learn takes a millisecond for each
def _kappa_of_counts(counts: tuple[int, ...]) -> float:
    """Return kappa of a 5 x 5 table, flattened row by row, which counts how often each pair of ratings was given."""
    table = np.reshape(counts, (len(RATINGS), len(RATINGS)))
    first, second = np.nonzero(table)
    if len({*first, *second}) < 2:
        return math.nan
    labels, numbers = np.arange(len(RATINGS)), table[first, second]
    with config_context(assume_finite=True, skip_parameter_validation=True):
        return float(cohen_kappa_score(first, second, labels=labels, weights="quadratic", sample_weight=numbers))


def estimate(statistic: Callable, items: pd.DataFrame, rng: np.random.Generator) -> dict[str, float]:
    """Return `statistic(rows)` over all rows, with its 95 % percentile bootstrap interval.

    The bootstrap draws whole volumes, because slices of one volume resemble each other. It draws real and synthetic volumes
    separately. The interval is NaN where the statistic is undefined in most draws.
    """
    files = items["file"].to_numpy()
    rows_of_volumes = [
        [np.flatnonzero(files == file) for file in sorted(set(of_kind["file"]))] for _, of_kind in items.groupby("kind")
    ]
    values = []
    for _ in range(RESAMPLES):
        drawn = [volumes[i] for volumes in rows_of_volumes for i in rng.integers(len(volumes), size=len(volumes))]
        values.append(statistic(np.concatenate(drawn)))
    values = np.array(values)[np.isfinite(values)]
    low, high = np.percentile(values, [2.5, 97.5]) if len(values) >= RESAMPLES / 2 else (math.nan, math.nan)
    return {"value": float(statistic(np.arange(len(items)))), "low": float(low), "high": float(high)}


def score(key: pd.DataFrame, answers: pd.DataFrame, seed: int = 0) -> dict:
    """Compute all numbers of the study. Computed readers never change the numbers of people.

    Returns:
        The result of `score_readers` for all people together, with two more entries. "computed" has the same numbers for each
        computed reader alone, by name. "agreement_with_computed" has kappa of each pair with a computed reader.
    """
    rng = np.random.default_rng(seed)
    is_computed = answers["reader"].str.endswith(COMPUTED)
    numbers = {"study": key["study"].iloc[0], "seed": seed, "simulated": bool((key["simulated"] == "yes").any())}
    numbers |= score_readers(key, answers[~is_computed], rng)
    numbers["computed"] = {name: score_readers(key, own, rng) for name, own in answers[is_computed].groupby("reader")}
    readers = [*sorted(answers["reader"][~is_computed].unique()), *numbers["computed"]]
    pairs = [pair for pair in itertools.combinations(readers, 2) if pair[1] in numbers["computed"]]
    numbers["agreement_with_computed"] = compare_ratings(key, answers, pairs, rng)
    return numbers


def shown_once(key: pd.DataFrame, answers: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the answers to slices that were shown for the first time, and their rows of the key."""
    once = answers[answers["repeat_of"] == ""]
    return once, key[(key["repeat_of"] == "") & key.index.isin(once["item"])]


def by_reader(answers: pd.DataFrame, column: str, items: Iterable[str], readers: Sequence[str]) -> np.ndarray:
    """Return one column of the answers as an array (items, readers), with NaN where there is no answer."""
    table = answers.pivot(index="item", columns="reader", values=column)
    return table.reindex(index=items, columns=readers).to_numpy(float)


def compare_ratings(
    key: pd.DataFrame, answers: pd.DataFrame, pairs: Iterable[Sequence[str]], rng: np.random.Generator
) -> list[dict]:
    """Return kappa of each pair of readers, with its interval and the number of items that both rated."""
    once, items = shown_once(key, answers)
    return [{"readers": list(pair)} | _agreement(by_reader(once, "rating", items.index, pair), items, rng) for pair in pairs]


def _agreement(ratings: np.ndarray, items: pd.DataFrame, rng: np.random.Generator) -> dict:
    known = ratings[np.isfinite(ratings).all(axis=1)]
    value = estimate(lambda rows: kappa(*ratings[rows].T), items, rng)
    return {"n": len(known), "equal": int((known[:, 0] == known[:, 1]).sum()), "kappa": value}


def score_readers(key: pd.DataFrame, answers: pd.DataFrame, rng: np.random.Generator) -> dict:
    """Compute the numbers of some readers. Repeated items count only for a reader's agreement with themselves.

    Returns:
        A dict with these entries. "ratings" has the number of answers, the mean rating of each kind and their difference, with
        intervals, for all directions together and for each one. "frequencies" has the number of answers by direction, kind and
        rating. "inter_reader" has kappa of each pair of readers. "intra_reader" has kappa and the number of equal ratings of
        each reader on repeats. "guesses" has the result of `guesses` for each reader. "accuracy_of_all" is the share of right
        guesses of all readers together, or None without readers.
    """
    readers = sorted(answers["reader"].unique())
    once, items = shown_once(key, answers)
    rated, correct = (by_reader(once, column, items.index, readers) for column in ("rating", "correct"))
    n_volumes = {kind: int(items["file"][items["kind"] == kind].nunique()) for kind in KINDS}
    numbers = {"n_items": len(items), "n_readers": len(readers), "n_volumes": n_volumes}

    numbers["ratings"], numbers["frequencies"] = {}, {}
    for direction in ("all", *DIRECTIONS):
        shown = np.isin(items["direction"], list(DIRECTIONS) if direction == "all" else direction)
        part, values, kinds = items[shown], rated[shown], items["kind"].to_numpy()[shown]
        numbers["frequencies"][direction] = {
            kind: {rating: int((values[kinds == kind] == rating).sum()) for rating in RATINGS} for kind in KINDS
        }
        if set(kinds) == set(KINDS):
            numbers["ratings"][direction] = _mean_ratings(part, values, kinds, rng)

    numbers["inter_reader"] = compare_ratings(key, answers, itertools.combinations(readers, 2), rng)

    again = key[key["repeat_of"] != ""]
    first_time = by_reader(once, "rating", again["repeat_of"], readers)
    second_time = by_reader(answers[answers["repeat_of"] != ""], "rating", again.index, readers)
    numbers["intra_reader"], numbers["guesses"] = [], []
    for reader, twice in zip(readers, np.stack([first_time, second_time], axis=-1).swapaxes(0, 1)):
        if len(again):
            numbers["intra_reader"].append({"reader": reader} | _agreement(twice, again, rng))
        numbers["guesses"].append({"reader": reader} | guesses(once[once["reader"] == reader], rng))
    numbers["accuracy_of_all"] = estimate(lambda rows: float(np.nanmean(correct[rows])), items, rng) if readers else None
    return numbers


def _mean_ratings(items: pd.DataFrame, values: np.ndarray, kinds: np.ndarray, rng: np.random.Generator) -> dict:
    def mean(rows: np.ndarray, kind: str) -> float:
        return float(np.nanmean(values[rows][kinds[rows] == kind]))

    return {
        "n": {kind: int(np.isfinite(values[kinds == kind]).sum()) for kind in KINDS},
        **{kind: estimate(lambda rows, kind=kind: mean(rows, kind), items, rng) for kind in KINDS},
        "difference": estimate(lambda rows: mean(rows, "synthetic") - mean(rows, "real"), items, rng),
    }


def guesses(answers: pd.DataFrame, rng: np.random.Generator) -> dict:
    """Compute how often one reader guessed right.

    "accuracy" has the exact interval of Clopper and Pearson 1934, and "p" tests it against one half. Both treat slices as
    independent, although slices of one volume are alike. "by_volumes" has the bootstrap interval over volumes. That interval is
    too narrow for few volumes, and it has no width if all guesses are right or all are wrong. Therefore both are given.
    """
    correct = answers["correct"].to_numpy()
    right, n = int(correct.sum()), len(correct)
    test = stats.binomtest(right, n, 0.5)
    exact = test.proportion_ci(0.95, method="exact")
    by_kind = {kind: correct[answers["kind"] == kind] for kind in KINDS}
    return {
        "n": n,
        "right": right,
        "accuracy": {"value": right / n, "low": float(exact.low), "high": float(exact.high)},
        "by_volumes": estimate(lambda rows: correct[rows].mean(), answers, rng),
        "p": float(test.pvalue),
        "right_of": {kind: [int(own.sum()), len(own)] for kind, own in by_kind.items()},
        "trivial": float(answers["kind"].value_counts(normalize=True).max()),
        "median_seconds": float(answers["seconds"].median()),
    }
