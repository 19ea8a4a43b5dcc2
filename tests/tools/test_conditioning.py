"""Test Figure 3 of conditioning.py: requested against measured values in their units, and the trivial answer."""

import json
import shutil

import conditioning
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cohorts.agreement import partial_correlation
from shared.agreement import agreement


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


def run(tmp_path, *tables, further=()):
    arguments = [tmp_path / "generated", "--measured", *tables, "--output", tmp_path / "out", *further]
    conditioning.main([str(argument) for argument in arguments])
    readings = json.loads((tmp_path / "out" / "conditioning.json").read_text())["readings"]
    return {(reading["quantity"], reading["tool"]): reading for reading in readings}


def section(tmp_path):
    return json.loads((tmp_path / "out" / "conditioning.section.json").read_text())


def save(table, path):
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    return path


def test_volumes_and_ages_of_two_tables_are_compared_in_their_units(generated, tmp_path):
    volumes = save(
        generated.assign(ventricles_ml=0.5 * generated["ventricles_ml"] + 20).drop(columns="age"), tmp_path / "v.tsv"
    )
    ages = save(generated[["participant_id"]].assign(age=generated["age"] - 4), tmp_path / "a.tsv")
    found = run(tmp_path, volumes, ages)
    assert list(found) == [("ventricles_ml", "v.tsv"), ("age", "a.tsv")]
    ventricles, age = found.values()
    assert ventricles["unit"] == "mL" and ventricles["generated"]["slope"] == pytest.approx(0.5)
    assert age["unit"] == "years" and age["generated"]["bias"] == pytest.approx(-4)
    assert age["generated"]["mae"] == pytest.approx(4)
    requested = generated["ventricles_ml"]
    assert ventricles["generated"]["mae_of_the_mean"] == pytest.approx((requested - requested.mean()).abs().mean())
    cells = [row[0] for row in section(tmp_path)["tables"][0]["rows"]]
    assert cells[0] == "lateral ventricles by v.tsv" and cells[2] == "age by a.tsv"
    assert cells[1] == cells[3] == "— always answering the mean"
    assert (tmp_path / "out" / "figure3.png").stat().st_size > 10_000


def test_the_requests_are_no_measurements(generated, tmp_path):
    """They agreed with themselves: r 1.00, slope 1.00."""
    with pytest.raises(ValueError, match="participants.tsv: holds what was requested. Measure the volumes: "):
        run(tmp_path, tmp_path / "generated" / "participants.tsv")


def test_two_tools_are_both_shown_each_with_the_same_tool_on_scans(generated, tmp_path):
    """The second table's column was dropped: a model was judged by the worse tool, whose slope on scans nobody saw."""
    cohorts = {"generated": tmp_path / "generated"}
    for name in ("real", "through"):
        cohorts[name] = shutil.copytree(tmp_path / "generated", tmp_path / name)
    participants = generated.assign(split=["train"] * 2 + ["test"] * 10)
    save(participants, cohorts["real"] / "participants.tsv")
    tables = {}
    for kind, slopes in {"generated": (0.1, 0.3), "real": (0.2, 0.7), "through": (0.1, 0.5)}.items():
        for tool, slope in zip("ab", slopes, strict=True):
            measured = generated.assign(ventricles_ml=slope * generated["ventricles_ml"], tool=f"tool {tool}")
            tables[kind, tool] = save(measured.drop(columns="age"), tmp_path / f"{kind}_{tool}.tsv")
    further = []
    for kind, option in {"real": "--real", "through": "--reconstructed"}.items():
        further += [option, cohorts[kind], f"{option}_measured", tables[kind, "a"], tables[kind, "b"]]
    found = run(tmp_path, tables["generated", "a"], tables["generated", "b"], further=further)
    slopes = {
        tool: [reading[kind]["slope"] for kind in ("generated", "scans", "scans through the autoencoder")]
        for (_, tool), reading in found.items()
    }
    assert slopes["tool a"] == pytest.approx([0.1, 0.2, 0.1]) and slopes["tool b"] == pytest.approx([0.3, 0.7, 0.5])
    assert found["ventricles_ml", "tool a"]["scans"]["n"] == 10  # without the training split
    rows = section(tmp_path)["tables"][0]["rows"]
    assert [float(row[4].split()[0]) for row in rows] == [0.1, 0, 0.2, 0.1, 0.3, 0, 0.7, 0.5]
    assert rows[7][0] == "— the tool on scans through the autoencoder"
    assert "measured 10 scans and 12 scans through the autoencoder" in section(tmp_path)["text"]


def test_what_follows_from_another_request_has_no_partial_correlation(generated, tmp_path):
    """Covariates are correlated in requests: a tool that reads ventricles alone had a good r of age."""
    generated["age"] = 50 + generated["ventricles_ml"] / 4 + np.random.default_rng(1).normal(0, 2, 12)
    save(generated, tmp_path / "generated" / "participants.tsv")
    noise = np.random.default_rng(5).normal(0, 1, 12)
    by_ventricles = save(generated.assign(age=50 + generated["ventricles_ml"] / 4 + noise), tmp_path / "v.tsv")
    age = run(tmp_path, by_ventricles)["age", "v.tsv"]["generated"]
    assert age["r"] > 0.9 and age["held"] == 1
    assert age["partial_r_low"] < 0 < age["partial_r_high"]


def test_volumes_whose_other_requests_are_unknown_are_left_out_of_the_partial_correlation(generated, tmp_path):
    """A missing sex counted as female."""
    generated["sex"] = ["F", "M", "M"] * 4
    generated.loc[3, "sex"] = np.nan
    save(generated, tmp_path / "generated" / "participants.tsv")
    measured = generated.assign(age=generated["age"] + np.arange(12) % 5)
    found = run(tmp_path, save(measured[["participant_id", "age"]], tmp_path / "v.tsv"))["age", "v.tsv"]["generated"]
    rest = generated.drop(index=3)
    others = np.column_stack([rest["ventricles_ml"], rest["sex"] == "M"])
    expected = partial_correlation(rest["age"], measured["age"].drop(index=3), others)
    assert found["n"] == 12 and found["held"] == 2
    assert found["partial_r"] == pytest.approx(expected["partial_r"], abs=1e-9)


def test_several_volumes_of_a_participant_are_named_as_no_independent_ones(generated, tmp_path):
    table = save(generated, tmp_path / "v.tsv")
    second = tmp_path / "generated" / "sub-00" / "anat" / "sub-00_run-2_T1w.nii.gz"
    run(tmp_path, table)
    assert "have several volumes" not in section(tmp_path)["text"]
    shutil.copy(tmp_path / "generated" / "sub-00" / "anat" / "sub-00_T1w.nii.gz", second)
    run(tmp_path, table)
    said = "Some participants have several volumes (generated). This makes the intervals too narrow"
    assert said in section(tmp_path)["text"]


def test_a_folder_to_compare_with_needs_tables_of_the_same_tool(generated, tmp_path):
    table = save(generated, tmp_path / "v.tsv")
    scans = shutil.copytree(tmp_path / "generated", tmp_path / "scans")
    with pytest.raises(ValueError, match="scans: give both the folder and the tables"):
        run(tmp_path, table, further=["--real", scans])
    other = save(generated.assign(tool="another"), tmp_path / "w.tsv")
    with pytest.raises(ValueError, match="generated was measured by v.tsv, .*scans by another. Measure both with one tool"):
        run(tmp_path, table, further=["--real", scans, "--real_measured", other])
    assert not (tmp_path / "out").exists()


def test_what_could_not_be_measured_is_counted(generated, tmp_path):
    measured = generated.assign(ventricles_ml=generated["ventricles_ml"] + np.arange(12) % 3).drop(columns="age")
    measured.loc[[2, 5], "ventricles_ml"] = np.nan
    found = run(tmp_path, save(measured.drop(index=7), tmp_path / "v.tsv"))["ventricles_ml", "v.tsv"]["generated"]
    kept = measured.drop(index=[2, 5, 7])
    expected = agreement(generated["ventricles_ml"].loc[kept.index], kept["ventricles_ml"])
    assert found["n"] == 9 and found["unmeasured"] == 3
    assert found["r"] == pytest.approx(expected["r"], abs=1e-6)
    assert "do not count below: 3 of lateral ventricles by v.tsv." in section(tmp_path)["text"]


def test_a_constant_quantity_does_not_stop_the_others(generated, tmp_path):
    """All requests of one age: the figure of the ventricles was not made either."""
    measured = generated.assign(age=61.0, ventricles_ml=generated["ventricles_ml"] + np.arange(12) % 3)
    found = run(tmp_path, save(measured, tmp_path / "v.tsv"))
    assert list(found) == [("ventricles_ml", "v.tsv")]
    without = json.loads((tmp_path / "out" / "conditioning.json").read_text())["without"]
    assert without == {"age by v.tsv": "measured values are all 61: a correlation needs values that differ"}
    assert "There are no numbers for age by v.tsv: measured values are all 61" in section(tmp_path)["text"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.head(3), "lateral ventricles by v.tsv: agreement needs at least 4 pairs"),
        (lambda table: table.assign(ventricles_ml=30.0), "lateral ventricles by v.tsv: measured values are all 30"),
        (lambda table: table.drop(columns="ventricles_ml").assign(other=1.0), "nothing to compare"),
    ],
)
def test_degenerate_tables_are_refused_and_nothing_is_written(generated, tmp_path, change, message):
    table = save(change(generated.drop(columns="age")), tmp_path / "v.tsv")
    with pytest.raises(ValueError, match=message):
        run(tmp_path, table)
    assert not (tmp_path / "out").exists()


def test_one_run_gives_all_answers_of_the_same_tables(generated, tmp_path, capsys):
    measured = save(generated.assign(ventricles_ml=generated["ventricles_ml"] + 3 + np.arange(12) % 4), tmp_path / "v.tsv")
    scans = shutil.copytree(tmp_path / "generated", tmp_path / "real")
    scanned = save(
        generated.assign(tool="v.tsv", ventricles_ml=generated["ventricles_ml"] + np.arange(12) % 3), tmp_path / "r.tsv"
    )
    swept = tmp_path / "sweeps"
    for number, age in enumerate((50, 60, 70)):
        image = swept / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz"
        image.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(np.ones((4, 5, 6), np.uint8), np.eye(4)), image)
        sidecar = {"Seed": 1, "Covariates": {"age": {"Value": age, "Scaled": (age - 50) / 20}}}
        image.with_name(f"sub-{number}_T1w.json").write_text(json.dumps(sidecar))
    save(pd.DataFrame({"participant_id": ["sub-0", "sub-1", "sub-2"], "age": [50, 60, 70]}), swept / "participants.tsv")
    run(tmp_path, measured, further=["--real", scans, "--real_measured", scanned, "--sweeps", swept, "--sweep", "age"])
    sections = {path.name.split(".")[0] for path in (tmp_path / "out").glob("*.section.json")}
    assert sections == {"conditioning", "figure2", "volumes"}
    assert "Left out" not in (printed := capsys.readouterr().out)
    assert "mean absolute error" in printed and "distance, mL [95 %]" in printed


def test_each_section_says_that_volumes_are_edits_of_scans(generated, tmp_path):
    image = next((tmp_path / "generated").rglob("*.nii.gz"))
    image.with_name(image.name.replace(".nii.gz", ".json")).write_text(json.dumps({"EditedImage": "a.nii.gz", "Strength": 0.5}))
    run(tmp_path, save(generated.assign(ventricles_ml=generated["ventricles_ml"] + np.arange(12) % 4), tmp_path / "v.tsv"))
    assert "1 of 12 generated volumes is an edit of a scan, and may identify persons." in section(tmp_path)["text"]


def test_sizes_that_cannot_be_compared_are_left_out_with_the_reason_and_an_old_section_goes(generated, tmp_path, capsys):
    """Figure 3 does not need independent participants, but the distributions of sizes do."""
    scans = shutil.copytree(tmp_path / "generated", tmp_path / "real")
    again = scans / "sub-00" / "anat" / "sub-00_run-2_T1w.nii.gz"
    shutil.copy(scans / "sub-00" / "anat" / "sub-00_T1w.nii.gz", again)
    both = pd.concat([generated, generated[:1].assign(participant_id="sub-00_run-2")])
    measured = save(
        generated.assign(tool="a", ventricles_ml=generated["ventricles_ml"] + 3 + np.arange(12) % 4), tmp_path / "v.tsv"
    )
    old = tmp_path / "out" / "volumes.section.json"
    old.parent.mkdir()
    old.write_text("{}")
    run(tmp_path, measured, further=["--real", scans, "--real_measured", save(both.assign(tool="a"), tmp_path / "r.tsv")])
    assert "Left out: distributions of sizes. " in (printed := capsys.readouterr().out)
    assert "r.tsv: sub-00 has several rows" in printed and not old.exists()
    assert (tmp_path / "out" / "figure3.png").is_file()


def test_sizes_in_another_unit_are_refused_and_nothing_is_written(generated, tmp_path):
    scans = shutil.copytree(tmp_path / "generated", tmp_path / "real")
    rows = generated.assign(tool="a", ventricles_ml=generated["ventricles_ml"] + np.arange(12) % 4, brain_ml=1.1e6)
    scanned = save(rows.assign(brain_ml=1100), tmp_path / "r.tsv")
    with pytest.raises(ValueError, match="v.tsv, its median: brain_ml would be 1.1e.06 mL, .* looks like mm3"):
        run(tmp_path, save(rows, tmp_path / "v.tsv"), further=["--real", scans, "--real_measured", scanned])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("name", "factor"), [("brain_normalised_ml", 0.05), ("age", 12)])
def test_percent_and_months_are_refused(generated, tmp_path, name, factor):
    """The figure had ages of 780 years."""
    generated = generated.assign(brain_normalised_ml=1400 + np.arange(12))
    save(generated, tmp_path / "generated" / "participants.tsv")
    with pytest.raises(ValueError, match=f"v.tsv: the median of {name} is .* are possible"):
        run(tmp_path, save(generated.assign(**{name: factor * generated[name]}), tmp_path / "v.tsv"))
    assert not (tmp_path / "out").exists()


def test_one_folder_is_not_compared_with_itself(generated, tmp_path):
    table = save(generated, tmp_path / "v.tsv")
    (tmp_path / "scans").symlink_to(tmp_path / "generated")
    with pytest.raises(ValueError, match="scans and .*generated are one folder"):
        run(tmp_path, table, further=["--real", tmp_path / "scans", "--real_measured", table])


def test_without_any_input_the_command_says_what_to_give(tmp_path):
    with pytest.raises(ValueError, match="give GENERATED_DIR and --measured; sweeps: give --sweeps and --sweep; distributions"):
        conditioning.main(["--output", str(tmp_path / "out")])


def test_one_measurement_in_litres_is_named(generated, tmp_path):
    measured = generated.drop(columns="age")
    measured.loc[3, "ventricles_ml"] /= 1000
    with pytest.warns(UserWarning, match="v.tsv: ventricles_ml of sub-03 is 0.0.* If it is in litres, give it in mL"):
        run(tmp_path, save(measured, tmp_path / "v.tsv"))


def test_one_measurement_in_mm3_is_refused(generated, tmp_path):
    """It was drawn in the figure, and decided the slope."""
    measured = generated.drop(columns="age")
    measured.loc[3, "ventricles_ml"] *= 1000
    with pytest.raises(ValueError, match="v.tsv: ventricles_ml of sub-03 is .* looks like mm3"):
        run(tmp_path, save(measured, tmp_path / "v.tsv"))
    assert not (tmp_path / "out").exists()


def test_measurements_without_sub_in_their_names_are_matched(generated, tmp_path):
    measured = generated.drop(columns="age").assign(
        participant_id=[name.removeprefix("sub-") for name in generated["participant_id"]]
    )
    assert run(tmp_path, save(measured, tmp_path / "v.tsv"))["ventricles_ml", "v.tsv"]["generated"]["n"] == 12
