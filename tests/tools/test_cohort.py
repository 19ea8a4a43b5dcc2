"""Tables of measurements belong to the scans that they name."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from cohorts import cohort as report_cohort
from tiny_report import (
    AFFINE,
    give_sessions,
    make_cohort,
    phantom,
    saved,
)

SESSIONS = ["sub-1_ses-1", "sub-1_ses-2", "sub-2_ses-1", "sub-3"]


@pytest.fixture
def sessions(tmp_path):
    """A folder whose first participant has two scans, the second one in a session; and a table of it, a row per scan."""
    folder = tmp_path / "study"
    rows = []
    for number, scan in enumerate(SESSIONS):
        participant, *session = scan.split("_")
        path = folder.joinpath(participant, *session, "anat", f"{scan}_T1w.nii.gz")
        path.parent.mkdir(parents=True)
        nib.save(phantom(), path)
        rows.append({"participant_id": participant, "file": str(path), "ventricles_ml": 10.0 + number})
    participants = pd.DataFrame({"participant_id": ["sub-1", "sub-2", "sub-3"], "ventricles_ml": [10.0, 20.0, 30.0]})
    participants.to_csv(folder / "participants.tsv", sep="\t", index=False)
    give_sessions(folder, "sub-1", session_id=["ses-1", "2"], Ventricles_ML=[10.0, 10.5])
    return folder, pd.DataFrame(rows)


def test_a_row_is_the_scan_that_its_file_names(sessions, tmp_path):
    """The tools write a row per scan, which the page refused as a participant who appears twice."""
    folder, table = sessions
    cohort = report_cohort.read_cohort(folder, [saved(table[::-1], tmp_path / "v.tsv")])
    assert cohort.measured["ventricles_ml"].to_dict() == {
        "sub-1_ses-1": 10.0,
        "sub-1_ses-2": 11.0,
        "sub-2": 12.0,
        "sub-3": 13.0,
    }
    assert cohort.expected["ventricles_ml"].tolist() == [10.0, 10.5, 20.0, 30.0]
    with pytest.raises(ValueError, match="v.tsv: sub-1 has several volumes in .*study. Name the volume in a column file"):
        report_cohort.read_cohort(folder, [saved(table.drop(columns="file"), tmp_path / "v.tsv")])
    with pytest.raises(ValueError, match="v.tsv: sub-1_ses-2 appears twice"):
        report_cohort.read_cohort(folder, [saved(table.iloc[[0, 1, 1]], tmp_path / "v.tsv")])


def test_a_table_of_another_folder_is_refused_but_a_moved_folder_is_accepted(sessions, tmp_path, monkeypatch):
    """Generated cohorts all have a sub-syn0001: the table of another one passed, and its numbers stood on the page."""
    folder, table = sessions
    measured = saved(table, tmp_path / "v.tsv")
    other = tmp_path / "other" / "study"
    shutil.copytree(folder, other)
    report_cohort.read_cohort(other, [measured])  # equal files: a copy
    nib.save(nib.Nifti1Image(phantom().get_fdata() * 0.9, AFFINE), other / "sub-3" / "anat" / "sub-3_T1w.nii.gz")
    with pytest.raises(ValueError, match="sub-3 was measured in .*tmp.*/study/sub-3/.*, which is not .*other/study/sub-3/anat"):
        report_cohort.read_cohort(other, [measured])
    moved = folder.rename(tmp_path / "moved")  # now the files of the table are not there
    report_cohort.read_cohort(other, [measured])
    with pytest.raises(ValueError, match="Measure .*moved itself; if only .* has changed, correct the column file"):
        report_cohort.read_cohort(moved, [measured])
    monkeypatch.chdir(moved)
    inside = table.assign(file=table["file"].str.removeprefix(f"{folder}/"))
    report_cohort.read_cohort(Path(), [saved(inside, tmp_path / "v.tsv")])


def test_tables_of_one_tool_are_parts_of_one_measurement(sessions, tmp_path):
    folder, table = sessions
    table["tool"] = "a tool"
    parts = [saved(table[:2], tmp_path / "a.tsv"), saved(table[2:], tmp_path / "b.tsv")]
    cohort = report_cohort.read_cohort(folder, parts)
    assert list(cohort.tables) == ["a tool"] and cohort.measured["ventricles_ml"].tolist() == [10.0, 11.0, 12.0, 13.0]


def test_two_values_of_one_tool_for_a_volume_are_refused(sessions, tmp_path):
    """The second table had no effect."""
    folder, table = sessions
    table["tool"] = "a tool"
    larger = table.assign(ventricles_ml=table["ventricles_ml"] + 30)
    tables = [saved(table, tmp_path / "a.tsv"), saved(larger, tmp_path / "b.tsv")]
    with pytest.raises(ValueError, match=r"b.tsv: ventricles_ml of \S+ is 40, but 10 in an earlier table by a tool. Give one"):
        report_cohort.read_cohort(folder, tables)


def test_a_tool_that_also_made_the_expected_values_gets_a_warning(sessions, tmp_path, recwarn):
    """Its agreement with itself, r 1.00, passed for the accuracy of the tool on scans."""
    folder, table = sessions
    participants = pd.read_csv(folder / "participants.tsv", sep="\t")
    for tool in ("SynthSeg", "measure_volumes.py"):
        participants.assign(tool=tool).to_csv(folder / "participants.tsv", sep="\t", index=False)
        report_cohort.read_cohort(folder, [saved(table.assign(tool="measure_volumes.py"), tmp_path / "v.tsv")])
    (warning,) = [str(warning.message) for warning in recwarn]
    assert "participants.tsv: is by measure_volumes.py, too, so its agreement with" in warning


def test_volumes_without_a_row_are_named(sessions, capsys):
    folder, _ = sessions
    rows = (folder / "participants.tsv").read_text().splitlines(keepends=True)
    (folder / "participants.tsv").write_text("".join(rows[:-1]))
    report_cohort.read_cohort(folder)
    assert f"without a row in participants.tsv: 1 folder with T1w, such as {rows[-1].split()[0]}" in capsys.readouterr().err


def test_each_scan_of_the_cohort_is_shown_once(tmp_path):
    volumes_ml = [10.0, 20.0, 90.0]
    cohort = report_cohort.read_cohort(make_cohort(tmp_path / "real", ["sub-1", "sub-2", "sub-3"], volumes_ml, volumes_ml)[0])
    assert report_cohort.nearest(cohort, "ventricles_ml", [11.0, 16.0]) == ["sub-1", "sub-2"]
    assert report_cohort.nearest(cohort, "ventricles_ml", [9.0, 21.0, 50.0, 80.0]) == ["sub-1", "sub-2", None, "sub-3"]


@pytest.mark.parametrize(("requested", "measured"), [(1000, 1), (1, 0.001)])
def test_requests_and_measurements_are_in_one_unit(tmp_path, requested, measured):
    """Requests in mm3 or measurements in L were called close to each other. Plausible brains hid the unit of ventricles."""
    volumes_ml, brains_ml = np.array([10.0, 20.0, 30.0, 45.0]), np.array([1200.0, 1100.0, 1150.0, 1050.0])
    names = [f"sub-{n}" for n in range(1, 5)]
    folder, table = make_cohort(tmp_path / "made", names, volumes_ml * requested, volumes_ml * measured, brain_ml=brains_ml)
    saved(pd.read_csv(table, sep="\t").assign(brain_ml=brains_ml), table)
    with pytest.raises(ValueError, match="participants.tsv: ventricles_ml .* median .*, and .* Give both in mL|looks like mm3"):
        report_cohort.read_cohort(folder, [table])


def test_a_model_without_ventricles_is_no_other_unit(tmp_path):
    names = [f"sub-{n}" for n in range(1, 5)]
    made = make_cohort(tmp_path / "made", names, [10.0, 20.0, 30.0, 45.0], [0.02, 0.024, 0.02, 0.026])
    saved(pd.read_csv(made[1], sep="\t").assign(brain_ml=1200.0), made[1])
    assert report_cohort.read_cohort(made[0], [made[1]]).measured["ventricles_ml"].max() == 0.026
