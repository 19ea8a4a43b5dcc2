"""The images of a folder are found completely, and nothing else is taken for an image."""

import os
import warnings

import pytest

from brain_ldm_bundle.scripts.shared.image_files import find_files, find_in_anat

SCANS = "sub-*/**/*_T1w.nii*"


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def found(folder, pattern=SCANS, **options):
    return [path.relative_to(folder).as_posix() for path in find_files(folder, pattern, **options)]


def test_scans_are_found_at_any_depth_in_order(tmp_path):
    names = ["sub-a/anat/sub-a_T1w.nii", "sub-b/ses-1/anat/sub-b_ses-1_run-1_T1w.nii.gz", "sub-c/sub-c_T1w.nii.gz"]
    touch(tmp_path, *reversed(names))
    assert found(tmp_path) == names


@pytest.mark.parametrize(
    "other",
    [
        "sub-a/anat/._sub-a_T1w.nii.gz",  # macOS writes these on other disks
        "sub-a/anat/.sub-a_T1w.nii.gz.0123.tmp",  # left by a killed run
        "sub-a/anat/sub-a_T1w.nii.gz.md5",
        "sub-a/anat/sub-a_T1w.nii.gz.part",
        "sub-a/anat/sub-a_T1w.nii.gz~",
        "sub-a/.trash/sub-a_T1w.nii.gz",
        ".heudiconv/sub-b/anat/sub-b_T1w.nii.gz",
        "sourcedata/sub-b/anat/sub-b_T1w.nii.gz",
        "code/sub-b/anat/sub-b_T1w.nii.gz",
        "derivatives/other/sub-b/anat/sub-b_T1w.nii.gz",
        "sub-a/derivatives/sub-a_desc-preproc_T1w.nii.gz",
    ],
)
def test_other_files_are_no_scans(tmp_path, other):
    touch(tmp_path, "sub-a/anat/sub-a_T1w.nii.gz", other)
    for pattern in (SCANS, "**/*_T1w.nii*"):
        assert found(tmp_path, pattern) == ["sub-a/anat/sub-a_T1w.nii.gz"]


def test_a_phase_image_is_no_scan(tmp_path):
    touch(tmp_path, *(f"sub-a/anat/sub-a_{part}T1w.nii.gz" for part in ("", "part-mag_", "part-phase_", "part-imag_")))
    with pytest.warns(UserWarning, match="2 images, such as .*part-imag_T1w.nii.gz, are left out: they show no magnitude"):
        assert found(tmp_path) == ["sub-a/anat/sub-a_T1w.nii.gz", "sub-a/anat/sub-a_part-mag_T1w.nii.gz"]


def test_a_derivative_that_is_given_itself_is_searched(tmp_path):
    touch(tmp_path, "derivatives/one/sub-a/anat/sub-a_T1w.nii.gz")
    assert found(tmp_path / "derivatives" / "one") == ["sub-a/anat/sub-a_T1w.nii.gz"]


def test_links_to_participants_sessions_and_files_are_followed(tmp_path):
    """measure_volumes.py left out a participant whose folder was a link."""
    touch(tmp_path / "kept", "sub-a/anat/sub-a_T1w.nii.gz", "ses-1/anat/sub-b_ses-1_T1w.nii.gz", "scan.nii.gz")
    study = tmp_path / "study"
    (study / "sub-b").mkdir(parents=True)
    (study / "sub-c" / "anat").mkdir(parents=True)
    (study / "sub-a").symlink_to(tmp_path / "kept" / "sub-a")
    (study / "sub-b" / "ses-1").symlink_to(tmp_path / "kept" / "ses-1")
    (study / "sub-c" / "anat" / "sub-c_T1w.nii.gz").symlink_to(tmp_path / "kept" / "scan.nii.gz")
    assert len(found(study)) == len(found(study, "**/*_T1w.nii*")) == 3


def test_a_loop_of_links_ends(tmp_path):
    touch(tmp_path, "sub-a/anat/sub-a_T1w.nii.gz")
    (tmp_path / "sub-a" / "all").symlink_to(tmp_path)
    (tmp_path / "sub-a" / "anat" / "self").symlink_to(tmp_path / "sub-a" / "anat")
    assert found(tmp_path) == ["sub-a/anat/sub-a_T1w.nii.gz"]


def test_a_link_to_nothing_is_named(tmp_path):
    touch(tmp_path, "sub-a/anat/sub-a_T1w.nii.gz")
    (tmp_path / "sub-a" / "anat" / "sub-a_run-2_T1w.nii.gz").symlink_to("gone.nii.gz")
    assert len(found(tmp_path)) == 2  # the reader of images refuses it
    (tmp_path / "sub-b").symlink_to("gone")
    with pytest.raises(FileNotFoundError, match=r"sub-b: this is a link to gone, which does not exist"):
        find_files(tmp_path, SCANS)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["sub-a/sub-a_T1w.nii", "sub-a/sub-a_T1w.nii.gz"], r"sub-a_T1w.nii and .*sub-a_T1w.nii.gz differ only in ending"),
        (["sub-a/sub-a_T1w.nii", "sub-A/sub-A_T1w.nii"], r"^\S*sub-A and \S*sub-a differ only in ending or case.*it$"),
        (["sub-a/ses-1/x_T1w.nii", "sub-a/ses-2/y_T1w.nii", "sub-A/ses-2/z_T1w.nii"], r"^\S*sub-[aA] and \S*sub-[aA] differ"),
    ],
)
def test_one_scan_twice_is_refused_by_name(tmp_path, names, message):
    touch(tmp_path, *names)
    if len(os.listdir(tmp_path)) == len({name.split("/")[0] for name in names}):  # a disk that tells a from A
        with pytest.raises(ValueError, match=message):
            find_files(tmp_path, SCANS)


@pytest.mark.parametrize("name", ["sub-a/anat/sub-a_T1w.NII.GZ", "Sub-a/anat/sub-a_T1w.nii", "sub-a/anat/sub-a_t1w.nii.gz"])
def test_a_scan_whose_name_differs_in_case_is_not_overlooked(tmp_path, name):
    touch(tmp_path, name, "sub-b/anat/sub-b_T1w.nii.gz")
    with pytest.raises(ValueError, match="differs from the name .* in case only. Rename it"):
        find_files(tmp_path, SCANS)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^{tmp_path}/gone: no such folder"):
        find_files(tmp_path / "gone", SCANS)


def test_patterns_mean_what_they_mean_in_a_shell(tmp_path):
    touch(tmp_path, "sub-1/anat/a_T1w.nii", "sub-2/anat/b_T1w.nii.gz", "sub-30/ses-1/anat/c_T1w.nii", "d_T1w.nii", "maps/e.mgz")
    assert found(tmp_path, "sub-?/anat/*_T1w.nii") == ["sub-1/anat/a_T1w.nii"]
    assert found(tmp_path, "sub-[!1]*/**/anat/*") == ["sub-2/anat/b_T1w.nii.gz", "sub-30/ses-1/anat/c_T1w.nii"]
    assert found(tmp_path, "*.nii*") == ["d_T1w.nii"]
    assert found(tmp_path, "*/*.mgz", endings=(".mgz",)) == ["maps/e.mgz"]
    assert found(tmp_path, "sub-*/anat/*", skipped=["sub-2"]) == ["sub-1/anat/a_T1w.nii"]


def test_training_takes_the_places_of_bids_and_names_what_it_leaves_out(tmp_path):
    touch(tmp_path, "sub-a/anat/sub-a_T1w.nii.gz", "sub-a/ses-1/anat/sub-a_ses-1_T1w.nii")
    assert len(find_in_anat(tmp_path, "T1w")) == 2
    touch(tmp_path, "sub-a/anat/rejected/sub-a_run-2_T1w.nii.gz")
    with pytest.warns(UserWarning, match="1 images in .*, such as sub-a/anat/rejected/sub-a_run-2_T1w.nii.gz, are left out"):
        assert len(find_in_anat(tmp_path, "T1w")) == 2


def test_versions_of_one_scan_get_a_warning(tmp_path):
    entities = ("acq-x_desc-brain", "acq-x_desc-preproc", "acq-y", "run-1")
    names = [f"sub-a/anat/sub-a_{those}_T1w.nii.gz" for those in entities]
    touch(tmp_path, *names)
    with pytest.warns(UserWarning, match="1 scans in .* such as sub-a_acq-x_desc-brain_T1w.nii.gz and sub-a_acq-x_d"):
        assert len(find_in_anat(tmp_path, "T1w")) == 4
    (tmp_path / names[0]).unlink()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(find_in_anat(tmp_path, "T1w")) == 3
