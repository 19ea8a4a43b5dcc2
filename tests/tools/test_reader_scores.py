"""The numbers of a reader study are right by hand, and wrong results are refused by row."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from reader_studies import score as reader_study_score
from reader_studies.make import KEY_COLUMNS
from reader_studies.score import kappa, read_key, read_results, score, unblind
from reader_studies.score_report import write_scores
from tiny_study import (
    key_of,
    results_of,
    save_results,
)


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(reader_study_score, "RESAMPLES", 50)


KINDS = ["real", "synthetic"] * 4


def test_kappa_by_hand():
    # Ratings 1 1 2 3 against 1 2 2 5: sum of squared differences 5; expected over all pairs of one with the other: 4 x 4 pairs,
    # squared differences 0 1 1 16, 0 1 1 16, 1 0 0 9, 4 1 1 4 = 56, divided by 4 = 14. kappa = 1 - 5 / 14.
    assert kappa(np.array([1, 1, 2, 3.0]), np.array([1, 2, 2, 5.0])) == pytest.approx(1 - 5 / 14)
    assert kappa(np.array([1, np.nan, 1, 2, 3]), np.array([1, 4, 2, 2, 5])) == pytest.approx(1 - 5 / 14)


def test_kappa_is_undefined_when_both_always_rate_the_same():
    assert math.isnan(kappa(np.array([3.0, 3, 3]), np.array([3.0, 3, 3])))
    assert kappa(np.array([3.0, 3, 3]), np.array([3.0, 4, 3])) == pytest.approx(0)


def test_mean_ratings_and_difference_by_hand(few_resamples):
    key = key_of(KINDS)
    answers = unblind(key, [results_of(key, [1, 3, 2, 4, 1, 5, 2, 5]), results_of(key, [1, 3, 1, 3, 1, 3, 1, 3], reader="Ben")])
    ratings = score(key, answers)["ratings"]["all"]
    assert ratings["n"] == {"real": 8, "synthetic": 8}
    assert ratings["real"]["value"] == pytest.approx((1 + 2 + 1 + 2 + 4) / 8)
    assert ratings["synthetic"]["value"] == pytest.approx((3 + 4 + 5 + 5 + 12) / 8)
    assert ratings["difference"]["value"] == pytest.approx((29 - 10) / 8)
    assert ratings["difference"]["low"] < 19 / 8 < ratings["difference"]["high"]


def test_frequencies_count_each_rating(few_resamples):
    key = key_of(KINDS)
    numbers = score(key, unblind(key, [results_of(key, [1, 3, 2, 4, 1, 5, 2, 5])]))
    assert numbers["frequencies"]["all"]["real"] == {1: 2, 2: 2, 3: 0, 4: 0, 5: 0}
    assert numbers["frequencies"]["axial"]["synthetic"] == {1: 0, 2: 0, 3: 1, 4: 1, 5: 2}
    assert "coronal" not in numbers["ratings"]  # nothing was shown there


def test_accuracy_of_guesses_has_the_interval_of_clopper_and_pearson(few_resamples):
    key = key_of(["real", "synthetic"] * 5)
    told = ["real", "synthetic"] * 4 + ["synthetic", "real"]  # 8 of 10 right
    [guessed] = score(key, unblind(key, [results_of(key, [3] * 9 + [4], told)]))["guesses"]
    assert (guessed["right"], guessed["n"]) == (8, 10)
    assert guessed["accuracy"]["low"] == pytest.approx(0.4439, abs=1e-4)  # of published tables
    assert guessed["accuracy"]["high"] == pytest.approx(0.9748, abs=1e-4)
    assert guessed["p"] == pytest.approx(2 * (45 + 10 + 1) / 1024)
    assert guessed["right_of"] == {"real": [4, 5], "synthetic": [4, 5]}
    assert guessed["trivial"] == 0.5


def test_guesses_on_slices_of_few_volumes_are_less_sure_than_the_exact_interval_says(monkeypatch):
    """Two volumes of each kind, one always told, one never: forty guesses, but four volumes."""
    monkeypatch.setattr(reader_study_score, "RESAMPLES", 200)  # one draw in sixteen has the lowest share
    kinds = ["real", "synthetic"] * 20
    told = ["real", "synthetic"] * 10 + ["synthetic", "real"] * 10
    key = key_of(kinds, [f"{kind}{n // 20}" for n, kind in enumerate(kinds)])
    [guessed] = score(key, unblind(key, [results_of(key, [3, 4] * 20, told)]))["guesses"]
    assert guessed["accuracy"]["low"] > 0.3
    assert guessed["by_volumes"] == {"value": 0.5, "low": 0, "high": 1}


def test_repeats_count_for_the_agreement_of_a_reader_alone(few_resamples):
    key = key_of(KINDS, repeats=[0, 1, 2])
    ratings = [1, 5, 2, 5, 1, 5, 1, 5, 1, 4, 2]
    numbers = score(key, unblind(key, [results_of(key, ratings)]))
    assert numbers["ratings"]["all"]["n"] == {"real": 4, "synthetic": 4}
    assert numbers["guesses"][0]["n"] == 8
    [own] = numbers["intra_reader"]
    assert (own["n"], own["equal"]) == (3, 2)
    assert own["kappa"]["value"] == pytest.approx(kappa(np.array([1.0, 5, 2]), np.array([1.0, 4, 2])))


def test_all_pairs_of_readers_are_compared(few_resamples):
    key = key_of(KINDS)
    first, second = [1, 3, 2, 4, 1, 5, 2, 5], [2, 3, 2, 4, 1, 4, 2, 5]
    readers = {"Anna": first, "Ben": second, "Chris": [6 - rating for rating in first]}
    numbers = score(key, unblind(key, [results_of(key, ratings, reader=name) for name, ratings in readers.items()]))
    pairs = {tuple(row["readers"]): row["kappa"] for row in numbers["inter_reader"]}
    assert set(pairs) == {("Anna", "Ben"), ("Anna", "Chris"), ("Ben", "Chris")}
    assert pairs["Anna", "Ben"]["value"] == pytest.approx(kappa(np.array(first, float), np.array(second, float)))
    assert pairs["Anna", "Ben"]["low"] <= pairs["Anna", "Ben"]["value"] <= pairs["Anna", "Ben"]["high"]
    assert pairs["Anna", "Chris"]["value"] < 0


def test_slices_of_one_volume_are_drawn_together(few_resamples):
    """Forty slices of two volumes say as much as two volumes do, so the interval is wider."""
    kinds, ratings = ["real", "synthetic"] * 40, [1, 2] * 20 + [3, 4] * 20
    widths = []
    for files in ([f"{kind}{n // 40}" for n, kind in enumerate(kinds)], None):
        key = key_of(kinds, files)
        difference = score(key, unblind(key, [results_of(key, ratings)]))["ratings"]["all"]["real"]
        widths.append(difference["high"] - difference["low"])
    assert widths[0] == pytest.approx(2) and widths[1] < 1


def test_ratings_that_a_spreadsheet_wrote_as_decimals_are_read(tmp_path):
    key = key_of(["real", "synthetic"])
    items = list(key.index)
    rows = [f"{key['study'].iloc[0]} Anna {items[0]} 5.0 real 3", f"{key['study'].iloc[0]} Anna {items[1]} 2.5 real 3"]
    path = save_results(tmp_path, rows[:1])
    assert list(read_results(path, key, partial=True)["rating"].astype(float)) == [5]
    with pytest.raises(ValueError, match="row 3: the rating of item .* must be 1 .very good. to 5 .very poor., got '2.5'"):
        read_results(save_results(tmp_path, rows), key)


@pytest.mark.parametrize("name", ['"Al', "cost $x^{$"])
def test_a_name_is_taken_as_it_is_written(tmp_path, name, few_resamples):
    """The page writes no quotes; a $ starts a formula in matplotlib, which cannot always be read."""
    key = key_of(KINDS)
    path = tmp_path / "a.tsv"
    rows = ["\t".join(["s", name, item, str(1 + n % 3), "real", "2.0"]) for n, item in enumerate(key.index)]
    path.write_text("\n".join(["study\treader\titem\trating\tguess\tseconds", *rows]) + "\n")
    answers = unblind(key, [read_results(path, key)])
    write_scores(score(key, answers), answers, tmp_path / "scores")
    section = json.loads((tmp_path / "scores" / "reader_study.section.json").read_text())
    assert section["tables"][1]["rows"][0][0] == name
    assert section["verdict"].startswith(f"One person guesses right for {section['tables'][1]['rows'][0][2]} % of the slices.")
    assert set(pd.read_csv(tmp_path / "scores" / "ratings.tsv", sep="\t")["reader"]) == {name}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("other Anna i1 2 real 3.5", "anna.tsv row 3: results of the study 'other', but the key is of 's'"),
        ("s Ben i1 2 real 3.5", "row 3: reader 'Ben', expected one reader in a file, 'Anna'"),
        ("s Anna i7 2 real 3.5", "row 3: unknown item 'i7'"),
        ("s Anna i0 2 real 3.5", "row 3: item i0 was answered in row 2 already"),
        ("s Anna i1 6 real 3.5", "row 3: the rating of item i1 must be 1 .* got '6'"),
        ("s Anna i1 2 real 3,5", "row 3: the seconds of item i1 must be a number from 0 or n/a, got '3,5'"),
        ("s Anna i1 2 real -4", "row 3: the seconds of item i1 must be a number from 0 or n/a, got '-4'"),
        ("s Anna i1 2 real 1e400", "row 3: the seconds of item i1 must be a number from 0 or n/a, got '1e400'"),
        ("s Anna i1 2.5 real 3.5", "row 3: the rating of item i1 must be 1 .* got .2.5."),
        ("s Anna i1 2 maybe 3.5", "row 3: the guess on item i1 must be real or synthetic, got 'maybe'"),
        ("s Anna i1 2 n/a 3.5", "anna.tsv: 1 of 2 items are not answered, such as i1. .* --partial"),
    ],
)
def test_wrong_results_are_refused_by_name_and_row(tmp_path, row, message):
    path = save_results(tmp_path, ["s Anna i0 1 real 3.5", row])
    with pytest.raises(ValueError, match=message):
        read_results(path, key_of(["real", "synthetic"]))


def test_partial_results_are_read_when_asked_for(tmp_path):
    path = save_results(tmp_path, ["s Anna i0 1 real 3.5", "s Anna i1 2 n/a 3.5"])
    assert read_results(path, key_of(["real", "synthetic"]), partial=True)["item"].tolist() == ["i0"]
    path.write_text(path.read_text().replace("n/a", ""))  # as pandas writes the table again
    assert read_results(path, key_of(["real", "synthetic"]), partial=True)["item"].tolist() == ["i0"]
    nothing = save_results(tmp_path, [], name="nothing.tsv")
    with pytest.raises(ValueError, match="nothing.tsv: no answers"):
        read_results(nothing, key_of(["real", "synthetic"]), partial=True)


def test_a_reader_twice_and_other_files_are_refused(tmp_path):
    key = key_of(KINDS)
    with pytest.raises(ValueError, match="two files are by the reader 'Anna'"):
        unblind(key, [results_of(key, [3] * 8)] * 2)
    path = save_results(tmp_path, [], header="a\tb")
    with pytest.raises(ValueError, match="expected columns study, reader, item"):
        read_results(path, key)
    with pytest.raises(ValueError, match="not the key of a reader study"):
        read_key(path)
    with pytest.raises(FileNotFoundError, match="no such key"):
        read_key(tmp_path / "absent.tsv")


def test_what_is_undefined_is_called_so_and_is_null_in_json(tmp_path, few_resamples):
    key = key_of(KINDS, repeats=[0, 1])
    answers = unblind(key, [results_of(key, [3] * 10, reader=name) for name in ("Anna", "<b>Ben</b>")])
    write_scores(score(key, answers), answers, tmp_path)
    content = json.loads((tmp_path / "reader_study.json").read_text())
    assert content["inter_reader"][0]["kappa"] == {"value": None, "low": None, "high": None}
    section = json.loads((tmp_path / "reader_study.section.json").read_text())
    assert [row[2] for row in section["tables"][2]["rows"]] == ["undefined"] * 3
    assert "one p for each reader, 2 in all, without a correction" in section["text"]


@pytest.mark.parametrize(("column", "cell"), [("position", "one"), ("kind", "Real"), ("direction", "up"), ("item", "i1")])
def test_a_key_that_was_edited_is_refused(tmp_path, column, cell):
    key = key_of(["real", "synthetic"]).reset_index().astype(str)
    key.loc[0, column] = cell
    key.reindex(columns=KEY_COLUMNS).to_csv(tmp_path / "key.tsv", sep="\t", index=False)
    with pytest.raises(ValueError, match="key.tsv: item i. is there twice, or its position"):
        read_key(tmp_path / "key.tsv")
