"""make_requests.py: rows that look like the cohort's, within its range, the same for the same seed."""

import json
from pathlib import Path

import make_requests
import numpy as np
import pandas as pd
import pytest

from brain_ldm_bundle.scripts.covariates import CovariateSchema


@pytest.fixture
def participants(tmp_path):
    """40 subjects whose brain shrinks as their ventricles grow; the last 10 are test subjects with far larger ventricles."""
    ventricles_ml = np.linspace(10, 100, 40)
    table = pd.DataFrame(
        {
            "participant_id": [f"sub-{i:04d}" for i in range(40)],
            "age": np.linspace(45, 80, 40).round(1),
            "sex": ["F", "M"] * 20,
            "ventricles_ml": ventricles_ml,
            "brain_normalised_ml": 1600 - 4 * ventricles_ml,
            "split": ["train"] * 30 + ["test"] * 10,
        }
    )
    path = tmp_path / "participants.tsv"
    table.to_csv(path, sep="\t", index=False)
    return path


def make(*arguments):
    make_requests.main([str(argument) for argument in arguments])
    return pd.read_csv(arguments[1], sep="\t")


def test_quantities_stay_in_the_range_of_the_training_rows(participants, tmp_path):
    requests = make(participants, tmp_path / "out.tsv", "--rows", 2000, "--spread", 1)
    training = pd.read_csv(participants, sep="\t").query("split == 'train'")
    for column in ("age", "ventricles_ml", "brain_normalised_ml"):
        assert requests[column].min() == pytest.approx(training[column].min(), rel=1e-5)
        assert requests[column].max() == pytest.approx(training[column].max(), rel=1e-5)
    assert set(requests["sex"]) == {"F", "M"}


def test_covariates_go_together_as_in_the_cohort(participants, tmp_path):
    requests = make(participants, tmp_path / "out.tsv", "--rows", 500)
    assert requests["ventricles_ml"].corr(requests["brain_normalised_ml"]) < -0.97


def test_quantities_move_by_the_spread(participants, tmp_path):
    copied = make(participants, tmp_path / "a.tsv", "--rows", 500, "--spread", 0)
    moved = make(participants, tmp_path / "b.tsv", "--rows", 500, "--spread", 0.1)
    known = pd.read_csv(participants, sep="\t")["ventricles_ml"].to_numpy()
    assert all(np.abs(known - value).min() < 1e-3 for value in copied["ventricles_ml"])
    deviation = known[:30].std()
    assert (moved["ventricles_ml"] - copied["ventricles_ml"]).std() == pytest.approx(0.1 * deviation, rel=0.15)


def test_the_seed_decides_the_rows(participants, tmp_path):
    first = make(participants, tmp_path / "a.tsv", "--seed", 3)
    pd.testing.assert_frame_equal(first, make(participants, tmp_path / "b.tsv", "--seed", 3))
    assert not first.equals(make(participants, tmp_path / "c.tsv", "--seed", 4))


def test_ids_are_unique_and_sort_by_number_however_many_there_are(participants, tmp_path):
    few = make(participants, tmp_path / "few.tsv", "--rows", 3)
    assert list(few["participant_id"]) == ["sub-syn0001", "sub-syn0002", "sub-syn0003"]
    many = make(participants, tmp_path / "many.tsv", "--rows", 100_000)
    assert many["participant_id"].is_unique and many["participant_id"].is_monotonic_increasing


def test_the_bundle_accepts_the_table(participants, tmp_path):
    make(participants, tmp_path / "out.tsv", "--rows", 10)
    schema = CovariateSchema.from_file(Path(__file__).parents[1] / "brain_ldm_bundle" / "configs" / "covariates.json")
    assert len(schema.read_table(tmp_path / "out.tsv")) == 10


def test_a_sweep_changes_one_quantity_and_holds_the_rest(participants, tmp_path):
    sweep = ["--sweep", "ventricles_ml", 10, 120, "--rows", 12, "--base", "age=65,sex=M"]
    requests = make(participants, tmp_path / "out.tsv", *sweep)
    assert list(requests["ventricles_ml"]) == list(range(10, 121, 10))
    assert set(requests["age"]) == {65} and set(requests["sex"]) == {"M"}
    training = pd.read_csv(participants, sep="\t").query("split == 'train'")
    assert requests["brain_normalised_ml"].unique() == pytest.approx(training["brain_normalised_ml"].median(), rel=1e-5)


def test_coded_categories_are_not_moved(participants, tmp_path):
    table = pd.read_csv(participants, sep="\t")
    table["sex"] = table["sex"].map({"F": 0, "M": 1})
    table.to_csv(participants, sep="\t", index=False)
    participants.with_suffix(".json").write_text(json.dumps({"sex": {"Levels": {"0": "female", "1": "male"}}}))
    assert set(make(participants, tmp_path / "out.tsv")["sex"]) == {0, 1}


def test_incomplete_rows_are_not_drawn(participants, tmp_path):
    table = pd.read_csv(participants, sep="\t")
    table.loc[1:, "age"] = None
    table.to_csv(participants, sep="\t", index=False, na_rep="n/a")
    requests = make(participants, tmp_path / "out.tsv", "--rows", 5)
    assert set(requests["age"]) == {45.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns", "age", "weight"], "no column weight.*--columns.*ventricles_ml"),
        (["--sweep", "height", "1", "2"], "no covariate is called 'height'"),
        (["--sweep", "sex", "0", "1"], "sex is a category"),
        (["--sweep", "age", "50", "60", "--base", "sex=X"], "sex must be one of F, M, got 'X'"),
        (["--sweep", "age", "50", "60", "--base", "ventricles_ml=big"], "ventricles_ml must be a number, got 'big'"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(participants, tmp_path, arguments, message):
    output = tmp_path / "out" / "requests.tsv"
    with pytest.raises(SystemExit, match=message):
        make_requests.main([str(participants), str(output), *arguments])
    assert not output.parent.exists()


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(SystemExit, match="nowhere.tsv: no such table"):
        make_requests.main([str(tmp_path / "nowhere.tsv"), str(tmp_path / "out.tsv")])
