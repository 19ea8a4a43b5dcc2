"""The rows of make_requests.py resemble the cohort, stay in its range, and are the same for the same seed."""

import argparse
import json
import subprocess
import sys

import make_requests
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.generation.requests import read_requests

SEX = {"name": "sex", "levels": {"F": 0, "M": 1}}


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


def test_a_row_of_means_is_no_subject(participants, tmp_path):
    participants.write_text(participants.read_text() + "Mean\t62\tF\t55\t1380\ttrain\n")
    with pytest.raises(ValueError, match="row 42: Mean sums up other rows. Remove the row"):
        make(participants, tmp_path / "out.tsv")
    assert not (tmp_path / "out.tsv").exists()


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
    schema = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")
    assert len(schema.read_table(tmp_path / "out.tsv")) == 10


def test_a_sweep_changes_one_quantity_and_holds_the_rest(participants, tmp_path):
    sweep = ["--sweep", "ventricles_ml", 10, 120, "--rows", 12, "--base", "age=65,sex=M"]
    requests = make(participants, tmp_path / "out.tsv", *sweep)
    assert list(requests["ventricles_ml"]) == list(range(10, 121, 10))
    assert set(requests["age"]) == {65} and set(requests["sex"]) == {"M"}
    training = pd.read_csv(participants, sep="\t").query("split == 'train'")
    assert requests["brain_normalised_ml"].unique() == pytest.approx(training["brain_normalised_ml"].median(), rel=1e-5)


def test_several_sweeps_share_base_and_noise_and_are_repeated_for_each_noise(participants, tmp_path):
    sweeps = ["--sweep", "ventricles_ml", 20, 100, "--sweep", "age", 50, 80, "--rows", 5, "--noises", 3]
    requests = make(participants, tmp_path / "out.tsv", *sweeps)
    assert list(requests["noise"]) == [1] * 10 + [2] * 10 + [3] * 10
    first, second = requests[:10], requests[10:20]
    columns = ["age", "sex", "ventricles_ml", "brain_normalised_ml"]
    assert first[columns].to_numpy().tolist() == second[columns].to_numpy().tolist()
    assert list(first["ventricles_ml"][:5]) == [20, 40, 60, 80, 100] and first["age"][:5].nunique() == 1
    assert list(first["age"][5:]) == [50, 57.5, 65, 72.5, 80] and first["ventricles_ml"][5:].nunique() == 1


def test_equal_rows_of_two_sweeps_are_requested_once(participants, tmp_path):
    twice = ["--sweep", "age", 50, 80, "--sweep", "age", 50, 80, "--rows", 4]
    assert len(make(participants, tmp_path / "out.tsv", *twice)) == 4


def test_drawn_rows_have_noise_of_their_own(participants, tmp_path):
    assert "noise" not in make(participants, tmp_path / "out.tsv")


def test_extrapolation_asks_for_the_papers_scaled_values(participants, tmp_path):
    requests = make(participants, tmp_path / "out.tsv", "--extrapolate", "--base", "age=60,ventricles_ml=40")
    low, high = 6.99568, 171.375  # UK Biobank's, of the bundle's covariates.json
    asked = [low + scaled * (high - low) for scaled in (-0.5, -0.3, -0.1, 0, 0.5, 1, 1.5, 1.9)]
    assert list(requests["ventricles_ml"]) == pytest.approx([*asked, 40, 40, 40, 40], rel=1e-5)
    brains = [1144.24 + scaled * (1793.91 - 1144.24) for scaled in (-0.5, 0, 0.5, 1)]
    assert list(requests["brain_normalised_ml"][8:]) == pytest.approx(brains, rel=1e-5)
    assert set(requests["noise"]) == {1} and set(requests["age"]) == {60}


def test_extrapolation_follows_the_models_own_ranges(participants, tmp_path):
    schema = {"covariates": [SEX, {"name": "ventricles_ml", "range": [10, 1000], "scale": "log"}]}
    (tmp_path / "covariates.json").write_text(json.dumps(schema))
    of_model = ["--covariates_file", tmp_path / "covariates.json"]
    requests = make(participants, tmp_path / "out.tsv", "--extrapolate", *of_model)
    asked = (-0.5, -0.3, -0.1, 0, 0.5, 1, 1.5, 1.9)  # and, to compare with, the ends and the middle of the range
    assert sorted(requests["ventricles_ml"]) == pytest.approx([10 * 100**scaled for scaled in asked], rel=1e-5)


def test_the_bundle_accepts_sweeps_and_extrapolation_and_reads_the_noise(participants, tmp_path):
    make(participants, tmp_path / "out.tsv", "--sweep", "age", 45, 80, "--rows", 3, "--noises", 2, "--extrapolate")
    schema = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")
    with pytest.warns(UserWarning, match="lies outside of"):
        rows = read_requests(schema, tmp_path / "out.tsv", {})
    assert [row.noise for row in rows] == ["1"] * 15 + ["2"] * 15


def test_coded_categories_are_not_moved(participants, tmp_path):
    """The model's schema says that 0 and 1 are categories."""
    table = pd.read_csv(participants, sep="\t")
    table["sex"] = table["sex"].map({"F": 0, "M": 1})
    table.to_csv(participants, sep="\t", index=False)
    schema = {"covariates": [{"name": "sex", "levels": {"0": 0, "1": 1}}, {"name": "age", "range": [40, 90]}]}
    (tmp_path / "covariates.json").write_text(json.dumps(schema))
    requests = make(participants, tmp_path / "out.tsv", "--covariates_file", tmp_path / "covariates.json")
    assert set(requests["sex"]) == {0, 1} and set(requests) == {"participant_id", "sex", "age"}


def changed(participants, row, column, cell):
    """Change one cell of the table; row 2 is the first below the header."""
    lines = [line.split("\t") for line in participants.read_text().splitlines()]
    lines[row - 1][lines[0].index(column)] = cell
    participants.write_text("\n".join(map("\t".join, lines)) + "\n")


@pytest.mark.parametrize("word", ["n/a", "NA", "NaN", "N/A", "", "none", " "])
def test_one_missing_value_changes_nothing_for_the_others(participants, tmp_path, word, capsys):
    """It made the column text, so that ages were drawn, but never moved."""
    changed(participants, 2, "age", word)
    requests = make(participants, tmp_path / "out.tsv", "--rows", 30)
    assert requests["age"].nunique() > 25 and requests["age"].min() > 45.5
    assert "1 of 30 training rows lack a value and are left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("column", "cell", "message"),
    [
        ("age", "89+", "age in years must be a number, decimals after a point, got '89.'"),
        ("age", "50,5", "must be a number, decimals after a point, got '50,5'"),
        ("age", "inf", "must be a number"),
        ("age", "1e400", "must be a number"),
        ("age", "5O", "must be a number"),
        ("age", "720", "age is 720, which looks like months"),
        ("age", "-60", "age is -60, outside of the plausible"),
        ("sex", "f", "sex must be 'F' or 'M', got 'f'"),
        ("ventricles_ml", "0", "ventricles_ml is 0, outside of the plausible"),
        ("brain_normalised_ml", "78", "which looks like percent of the head"),
        ("participant_id", "sub-0001", "participant_id sub-0001 is also in row 3"),
    ],
)
def test_a_bad_cell_is_refused_and_never_drawn(participants, tmp_path, column, cell, message):
    changed(participants, 5, column, cell)
    with pytest.raises(ValueError, match=f"participants.tsv row 5: .*{message}"):
        make_requests.main([str(participants), str(tmp_path / "out.tsv")])
    assert not (tmp_path / "out.tsv").exists()


def test_a_column_without_values_is_named(participants, tmp_path):
    for row in range(2, 32):
        changed(participants, row, "age", "n/a")
    with pytest.raises(ValueError, match="no training row has age. Fill them in, or choose others with --columns"):
        make_requests.main([str(participants), str(tmp_path / "out.tsv")])
    assert "age" not in make(participants, tmp_path / "out.tsv", "--columns", "sex", "ventricles_ml")


def test_a_cohort_with_other_names_of_splits_is_refused(participants, tmp_path):
    participants.write_text(participants.read_text().replace("\ttrain", "\tdevelopment"))
    with pytest.raises(ValueError, match="no row has the split 'train', only development, test"):
        make_requests.main([str(participants), str(tmp_path / "out.tsv")])


def test_the_table_of_the_cohort_is_not_overwritten(participants):
    with pytest.raises(ValueError, match="this output is also an input"):
        make_requests.main([str(participants), str(participants)])


def test_sessions_are_drawn_with_their_own_values(participants, tmp_path):
    sessions = "session_id\tage\tventricles_ml\tbrain_normalised_ml\n1\t50\t40\t1440\n2\t55\t44\t1400\n"
    (tmp_path / "sub-0000").mkdir()
    (tmp_path / "sub-0000" / "sub-0000_sessions.tsv").write_text(sessions)
    participants.write_text("\n".join(participants.read_text().splitlines()[:2]) + "\n")
    requests = make(participants, tmp_path / "out.tsv", "--spread", 0)
    columns = ["age", "ventricles_ml", "brain_normalised_ml"]
    assert {tuple(row) for row in requests[columns].to_numpy()} == {(50, 40, 1440), (55, 44, 1400)}
    (tmp_path / "sub-0000" / "sub-0000_sessions.tsv").write_text("session_id\tage\n1\t50\n2\t55\n")
    with pytest.raises(ValueError, match="sub-0000 has 2 sessions .*but ventricles_ml, brain_normalised_ml only once"):
        make_requests.main([str(participants), str(tmp_path / "out.tsv")])


def test_incomplete_rows_are_not_drawn(participants, tmp_path):
    table = pd.read_csv(participants, sep="\t")
    table.loc[1:, "age"] = None
    table.to_csv(participants, sep="\t", index=False, na_rep="n/a")
    requests = make(participants, tmp_path / "out.tsv", "--rows", 5)
    assert set(requests["age"]) == {45.0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--columns", "age", "weight"], "no covariate is called 'weight'; the model's covariates are sex, age, ventricles_ml"),
        (["--sweep", "age", "nan", "60"], "--sweep age: age needs a value, got 'nan'"),
        (["--sweep", "age", "50", "inf"], "--sweep age: age in years must be a number.*got 'inf'"),
        (["--sweep", "age", "60", "50"], "--sweep age: LOW must be less than HIGH, got 60 and 50"),
        (["--sweep", "age", "60", "60"], "--sweep age: LOW must be less than HIGH"),
        (["--sweep", "age", "50", "600"], "--sweep age: age is 600, which looks like months"),
        (["--sweep", "ventricles_ml", "-500", "60"], "--sweep ventricles_ml: ventricles_ml is -500, outside of the plausible"),
        (["--sweep", "age", "50", "60", "--base", "age=nan"], "--base: age needs a value, got 'nan'"),
        (["--sweep", "age", "50", "60", "--base", "ventricles_ml=1e9"], "--base: ventricles_ml is 1e.09, outside"),
        (["--sweep", "age", "50", "60", "--base", "age=55"], "--base: age is the only one that is swept"),
        (["--columns", "age", "age"], "--columns age age: a name appears twice"),
        (["--sweep", "height", "1", "2"], "no covariate is called 'height'"),
        (["--sweep", "sex", "0", "1"], "sex is a category"),
        (["--sweep", "age", "young", "80"], "--sweep age: age in years must be a number, decimals after a point, got 'young'"),
        (
            ["--columns", "age", "sex", "--extrapolate"],
            "--extrapolate has values only for ventricles_ml, brain_normalised_ml",
        ),
        (["--extrapolate", "--covariates_file", "none.json"], "none.json: no such file. Name the model's covariates.json"),
        (["--sweep", "age", "50", "60", "--base", "sex=X"], "sex must be 'F' or 'M', got 'X'"),
        (
            ["--sweep", "age", "50", "60", "--base", "ventricles_ml=big"],
            "ventricles_ml in mL must be a number, decimals after a point, got 'big'",
        ),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(participants, tmp_path, arguments, message):
    output = tmp_path / "out" / "requests.tsv"
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_requests.main([str(participants), str(output), *arguments])
    assert not output.parent.exists()


@pytest.mark.parametrize("arguments", [["--noises", "2"], ["--base", "age=65"]])
def test_what_belongs_to_sweeps_is_refused_without_one(participants, tmp_path, capsys, arguments):
    with pytest.raises(SystemExit):
        make_requests.main([str(participants), str(tmp_path / "out.tsv"), *arguments])
    assert "--base and --noises need --sweep or --extrapolate" in capsys.readouterr().err


def test_a_spread_without_drawn_rows_is_refused(participants, tmp_path, capsys):
    with pytest.raises(SystemExit):
        make(participants, tmp_path / "out.tsv", "--sweep", "age", 45, 80, "--spread", 0.5)
    assert "--spread moves drawn rows, and has no effect beside --sweep" in capsys.readouterr().err


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.tsv: no such table"):
        make_requests.main([str(tmp_path / "nowhere.tsv"), str(tmp_path / "out.tsv")])


@pytest.mark.parametrize("word", ["Train", "training", "n/a"])
def test_rows_of_the_training_split_count_however_it_is_written(participants, tmp_path, word):
    """Rows with "Train" or without a split were left out without a word."""
    plain = make(participants, tmp_path / "plain.tsv")
    participants.write_text(participants.read_text().replace("\ttrain", f"\t{word}", 3))
    assert make(participants, tmp_path / "out.tsv").equals(plain)


def test_a_table_of_sessions_without_content_is_refused(participants, tmp_path):
    """A link that git-annex had not filled was ignored, so a session got the values of the baseline."""
    (tmp_path / "sub-0000").mkdir()
    (tmp_path / "sub-0000" / "sub-0000_sessions.tsv").symlink_to("../annex")
    with pytest.raises(FileNotFoundError, match="sub-0000_sessions.tsv: is a link to ../annex, which does not exist"):
        make_requests.main([str(participants), str(tmp_path / "out.tsv")])


def test_a_base_with_one_name_twice_is_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="a name appears twice"):
        make_requests.parse_base("sex=F,sex=M")


def test_a_name_that_no_disk_can_hold_is_refused(participants, tmp_path):
    """The volume was sampled, and could not be written."""
    participants.write_text(participants.read_text().replace("sub-0000\t", f"sub-{'a' * 300}\t"))
    with pytest.raises(ValueError, match="row 2: sub-aaaaaaaaaa... has 300 letters and digits, at most 100"):
        make_requests.main([str(participants), str(tmp_path / "out.tsv")])


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        *(("age", unit) for unit in ("weeks", "months of life", "Days", "d", "mo.", "wk")),
        *(("ventricles_ml", unit) for unit in ("uL", "\u03bcl", "mm3", "L", "dl", "fraction of TIV", "z-score")),
    ],
)
def test_another_unit_in_the_description_of_the_table_is_refused(participants, tmp_path, name, unit):
    participants.with_suffix(".json").write_text(json.dumps({name: {"Units": unit}}))
    with pytest.raises(ValueError, match=f"participants.json: {name} is in '{unit}', but .* are expected"):
        make(participants, tmp_path / "requests.tsv")
    assert not (tmp_path / "requests.tsv").exists()


@pytest.mark.parametrize(
    ("age", "volume", "normalised"),
    [
        ("years (to the nearest month)", "cm^3", "millilitres"),
        ("yrs", "cc", "mL"),
        ("n/a", " ml", "cubic centimeter"),
        ("", "", "Milliliter"),
    ],
)
def test_the_same_unit_may_be_spelt_in_many_ways(participants, tmp_path, age, volume, normalised):
    units = {"age": age, "ventricles_ml": volume, "brain_normalised_ml": normalised, "sex": "F/M"}
    participants.with_suffix(".json").write_text(json.dumps({name: {"Units": unit} for name, unit in units.items()}))
    make(participants, tmp_path / "requests.tsv", "--rows", "2")
    assert (tmp_path / "requests.tsv").exists()


def test_more_rows_than_memory_holds_are_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        make_requests.parse(["participants.tsv", "out.tsv", "--rows", "99999999999999"])
    assert "argument --rows: must be at most 10000000, got '99999999999999'" in capsys.readouterr().err


def test_a_table_on_stdout_is_the_table_alone_and_follows_what_was_there(participants, tmp_path):
    """The status line replaced the header, and `>>` emptied the file."""
    make(participants, tmp_path / "table.tsv", "--rows", 2)
    before, redirected = "# two rows\n", tmp_path / "redirected.tsv"
    redirected.write_text(before)
    with open(redirected, "ab") as stdout:
        command = [sys.executable, ROOT / "scripts" / "make_requests.py", participants, "/dev/stdout", "--rows", "2"]
        run = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, check=True)
    assert redirected.read_text() == before + (tmp_path / "table.tsv").read_text()
    assert "/dev/stdout: 2 volumes requested" in run.stderr
