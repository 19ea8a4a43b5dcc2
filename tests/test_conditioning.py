"""conditioning.py: requested against measured, each quantity in its unit, the trivial answer beside it."""

import json

import conditioning
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from agreement import agreement


@pytest.fixture
def generated(tmp_path):
    """12 volumes with requested ventricles and ages."""
    rng = np.random.default_rng(0)
    names = [f"sub-{i:02d}" for i in range(12)]
    table = pd.DataFrame({"participant_id": names, "age": rng.uniform(45, 80, 12), "ventricles_ml": rng.uniform(10, 120, 12)})
    for name in names:
        path = tmp_path / "generated" / name / "anat" / f"{name}_T1w.nii.gz"
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4)), path)
    table.to_csv(tmp_path / "generated" / "participants.tsv", sep="\t", index=False)
    return table


def run(tmp_path, *tables):
    arguments = [tmp_path / "generated", "--measured", *tables, "--output", tmp_path / "out"]
    conditioning.main([str(argument) for argument in arguments])
    return json.loads((tmp_path / "out" / "conditioning.json").read_text())["quantities"]


def save(table, path):
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    return path


def test_volumes_and_ages_of_two_tables_are_compared_in_their_units(generated, tmp_path):
    volumes = save(
        generated.assign(ventricles_ml=0.5 * generated["ventricles_ml"] + 20).drop(columns="age"), tmp_path / "v.tsv"
    )
    ages = save(generated[["participant_id"]].assign(age=generated["age"] - 4), tmp_path / "a.tsv")
    found = run(tmp_path, volumes, ages)
    assert list(found) == ["ventricles_ml", "age"]
    assert found["ventricles_ml"]["unit"] == "mL" and found["ventricles_ml"]["slope"] == pytest.approx(0.5)
    assert (
        found["age"]["unit"] == "years"
        and found["age"]["bias"] == pytest.approx(-4)
        and found["age"]["mae"] == pytest.approx(4)
    )
    requested = generated["ventricles_ml"]
    assert found["ventricles_ml"]["mae_of_the_mean"] == pytest.approx((requested - requested.mean()).abs().mean())
    section = json.loads((tmp_path / "out" / "conditioning.section.json").read_text())
    cells = [row[0] for row in section["tables"][0]["rows"]]
    assert cells[0].endswith("lateral ventricles") and cells[2].endswith("age")
    assert cells[1] == cells[3] == "— always answering the mean"
    assert "lateral ventricles: v.tsv; age: a.tsv" in section["text"]
    assert (tmp_path / "out" / "figure3.png").stat().st_size > 10_000


def test_what_could_not_be_measured_is_counted(generated, tmp_path):
    measured = generated.assign(ventricles_ml=generated["ventricles_ml"] + np.arange(12) % 3).drop(columns="age")
    measured.loc[[2, 5], "ventricles_ml"] = np.nan
    found = run(tmp_path, save(measured.drop(index=7), tmp_path / "v.tsv"))["ventricles_ml"]
    kept = measured.drop(index=[2, 5, 7])
    expected = agreement(generated["ventricles_ml"].loc[kept.index], kept["ventricles_ml"])
    assert found["n"] == 9 and found["unmeasured"] == 3
    assert found["r"] == pytest.approx(expected["r"], abs=1e-6)
    assert "in no number below: 3 of lateral ventricles" in (tmp_path / "out" / "conditioning.section.json").read_text()


def test_a_constant_quantity_does_not_stop_the_others(generated, tmp_path):
    """All requests of one age: the figure of the ventricles was not made either."""
    measured = generated.assign(age=61.0, ventricles_ml=generated["ventricles_ml"] + np.arange(12) % 3)
    found = run(tmp_path, save(measured, tmp_path / "v.tsv"))
    assert list(found) == ["ventricles_ml"]
    without = json.loads((tmp_path / "out" / "conditioning.json").read_text())["without"]
    assert without == {"age": "measured values are all 61: a correlation needs values that differ"}
    rows = json.loads((tmp_path / "out" / "conditioning.section.json").read_text())["tables"][0]["rows"]
    assert [row[2] for row in rows if row[0].endswith("age")] == list(without.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.head(3), "ventricles_ml: agreement needs at least 4 pairs"),
        (lambda table: table.assign(ventricles_ml=30.0), "ventricles_ml: measured values are all 30"),
        (lambda table: table.drop(columns="ventricles_ml").assign(other=1.0), "nothing to compare"),
    ],
)
def test_degenerate_tables_are_refused_and_nothing_is_written(generated, tmp_path, change, message):
    table = save(change(generated.drop(columns="age")), tmp_path / "v.tsv")
    with pytest.raises(SystemExit, match=message):
        run(tmp_path, table)
    assert not (tmp_path / "out").exists()
