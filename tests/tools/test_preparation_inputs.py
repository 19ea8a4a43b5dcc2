"""Each participant gets one scan and the values of its session. All others have a reason."""

import re

import pytest
from preparation.inputs import find_scans
from prepare_data import PATTERN


@pytest.mark.parametrize(
    ("sessions", "age", "failure"),
    [
        ("session_id\tage\nses-1\t60\nses-2\t65\n", "65", None),
        (None, "60", "sub-1 has 2 sessions .*but age only once"),
        ("session_id\tage\nses-1\t60\n", "60", "no row for sub-1 ses-2"),
    ],
)
def test_a_follow_up_has_the_age_of_its_session(tmp_path, sessions, age, failure):
    """The prepared follow-up had the age at the first scan."""
    for session in ("ses-1", "ses-2"):
        (tmp_path / "sub-1" / session / "anat").mkdir(parents=True)
        (tmp_path / "sub-1" / session / "anat" / f"sub-1_{session}_T1w.nii.gz").touch()
    (tmp_path / "participants.tsv").write_text("participant_id\tage\tsex\nsub-1\t60\tF\n")
    if sessions:
        (tmp_path / "sub-1" / "sub-1_sessions.tsv").write_text(sessions)
    scans, failures, table = find_scans([tmp_path], "sub-*/ses-2/anat/*_T1w.nii.gz")
    assert table.to_dict("records") == [{"participant_id": "sub-1", "age": age, "sex": "F"}]
    assert (list(scans) == ["sub-1"]) == (failure is None)
    assert failure is None or re.search(failure, failures["sub-1"])


@pytest.mark.parametrize(
    ("rows", "age", "failure"),
    [
        ("sub-1\tses-1\t60\nsub-1\tses-2\t62\n", "60", "no row for sub-1, only rows for ses-1, ses-2"),
        ("sub-1\tses-1\t60\n", "60", None),
    ],
)
def test_a_scan_without_a_session_gets_none_of_several_ages(tmp_path, rows, age, failure):
    """It got the age of the first session."""
    (tmp_path / "sub-1" / "anat").mkdir(parents=True)
    (tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii.gz").touch()
    (tmp_path / "participants.tsv").write_text(f"participant_id\tsession_id\tage\n{rows}")
    scans, failures, table = find_scans([tmp_path], PATTERN)
    assert (list(scans) == ["sub-1"]) == (failure is None)
    assert failure is None and table["age"].tolist() == [age] or failure in failures["sub-1"]


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("*.nii.gz", {"sub-IXI002GuysT1", "sub-01"}),
        ("*/T1.nii.gz", {"sub-patient1", "sub-02old"}),
        ("sub-02_old/**", {"sub-02old"}),
    ],
)
def test_participants_of_folders_that_are_not_bids_have_names_of_bids(tmp_path, pattern, names):
    for name in ("IXI002-Guys-T1.nii.gz", "sub-01_T1w.nii.gz", "patient 1/T1.nii.gz", "sub-02_old/T1.nii.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_scans([tmp_path], pattern)[0].keys() == names


def test_a_scan_in_the_folder_of_another_participant_fails(tmp_path):
    """It was prepared with the age of the folder's participant."""
    for name in ("sub-01/anat/sub-01_T1w.nii.gz", "sub-02/anat/sub-1_T1w.nii.gz", "sub-03/ses-1/anat/sub-031_ses-1_T1w.nii"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    scans, failures, _ = find_scans([tmp_path], PATTERN)
    assert list(scans) == ["sub-01"] and failures.keys() == {"sub-02", "sub-03"}
    assert "sub-1_T1w.nii.gz: the file's name is another participant's. It should begin with sub-02_" in failures["sub-02"]


def test_a_participant_without_a_scan_fails_also_without_a_table(tmp_path):
    for name in ("sub-a/anat/sub-a_T1w.nii.gz", "sub-b/anat/sub-b_T1w.nii.gz/sub-b_T1w.nii"):  # as 7-Zip unpacks a scan
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    scans, failures, _ = find_scans([tmp_path], PATTERN)
    assert list(scans) == ["sub-a"] and list(failures) == ["sub-b"] and "no file matches" in failures["sub-b"]


def test_scans_of_freesurfer_are_named_after_the_folders_of_their_subjects(tmp_path):
    """They failed as two scans of sub-T1, and no pattern found them."""
    paths = [tmp_path / subject / "mri" / "T1.mgz" for subject in ("bert", "sub-02")]
    for path in paths:
        path.parent.mkdir(parents=True)
        path.touch()
    for inputs in (paths, [tmp_path]):
        scans, failures, _ = find_scans(inputs, "*/mri/T1.mgz")
        assert scans == dict(zip(("sub-bert", "sub-02"), paths)) and not failures


def test_two_scans_of_a_participant_that_were_named_by_path_need_no_pattern(tmp_path):
    """The advice was --pattern, which has no effect on files."""
    paths = [tmp_path / name / "sub-1_T1w.nii.gz" for name in ("a", "b")]
    for path in paths:
        path.parent.mkdir()
        path.touch()
    _, failures, _ = find_scans(paths, PATTERN)
    assert failures == {"sub-1": f"2 scans ({paths[0]}, {paths[1]}); name one of them"}
