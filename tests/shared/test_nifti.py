"""Images are read completely and checked in threads. Valid images are not checked twice."""

import gzip

import nibabel as nib
import numpy as np
import pytest

from brain_ldm_bundle.scripts.shared.nifti import check_files, open_image, read_grey_values, read_whole, write_nifti

VALUES = np.arange(60, dtype=np.float32).reshape(3, 4, 5)
AFFINE = np.diag([-2.0, 2, 2, 1])


def image(values=VALUES, affine=AFFINE, code=4):
    made = nib.Nifti1Image(values, affine)
    made.set_sform(affine, code)
    made.set_qform(affine, code)
    return made


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new folder" / "image.nii.gz"


def test_an_image_comes_back_as_it_was_written_and_equal_images_are_equal_files(path):
    write_nifti(path, image())
    np.testing.assert_array_equal(read_whole(path).dataobj, VALUES)
    other = path.with_name("other.nii.gz")
    write_nifti(other, image())
    assert other.read_bytes() == path.read_bytes() and path.read_bytes()[3:8] == bytes(5)  # gzip's flags and time


def test_grey_values_come_from_left_to_right(path):
    write_nifti(path, image())
    np.testing.assert_array_equal(read_grey_values(path), VALUES[::-1])


@pytest.mark.parametrize("lost_bytes", [4, 60])
def test_a_file_without_its_end_is_refused(path, lost_bytes):
    """Four bytes are lost after the last voxel: nibabel alone reads such a file without an error."""
    write_nifti(path, image())
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    with pytest.raises(ValueError, match="Compressed file ended before"):
        read_whole(path)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.where(VALUES == 7, np.nan, VALUES), "has 1 voxels that are NaN or infinite"),
        (np.full_like(VALUES, 2), "is 2 everywhere"),
        (VALUES.astype(np.complex64), "has voxels of type complex64"),
    ],
)
def test_values_that_are_no_scan_are_refused(path, values, message):
    write_nifti(path, image(values))
    with pytest.raises(ValueError, match=message):
        read_grey_values(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"code": 0}, "has neither a qform nor an sform, so left and right are unknown. Ask the scanner"),
        ({"affine": np.diag([1.0, 1, 0, 1])}, "has an affine that cannot be inverted"),
    ],
)
def test_an_image_without_a_place_in_space_is_refused(path, options, message):
    made = nib.Nifti1Image(VALUES, None)
    made.header.set_sform(options.get("affine", AFFINE), options.get("code", 1))
    made.header["qform_code"] = 0
    path.parent.mkdir()
    path.write_bytes(gzip.compress(made.to_bytes()))
    with pytest.raises(ValueError, match=message):
        open_image(path, "Ask the scanner")


def test_files_are_checked_again_when_they_or_the_settings_changed(tmp_path):
    files = [str(tmp_path / name) for name in "abc"]
    for file in files[:2]:
        (tmp_path / file).write_text("sound")
    checked = []

    def check(file):
        checked.append(file)
        if (tmp_path / file).read_text() != "sound":
            raise ValueError(f"{file}: one\n{file}: two")
        return [len(checked)]

    def answer(setting=1):
        checked.clear()
        return check_files([[file] for file in files], check, [setting], 1, tmp_path / "cache.json")

    missing = f"{files[2]}: No such file or directory"
    assert answer() == ([missing], [[1], [2], None]) and checked == files[:2]
    assert answer() == ([missing], [[1], [2], None]) and not checked
    assert answer(setting=2)[1] == [[1], [2], None] and checked == files[:2]
    (tmp_path / files[0]).write_text("damaged")
    assert answer(setting=2) == ([f"{files[0]}: one", f"{files[0]}: two", missing], [None, [2], None])
    assert checked == files[:1]
