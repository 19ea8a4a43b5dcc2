"""Images are read completely and checked in threads. Valid images are not checked twice."""

import gzip
import os

import nibabel as nib
import numpy as np
import pytest

from brain_ldm_bundle.scripts.shared import nifti
from brain_ldm_bundle.scripts.shared.nifti import (
    check_files,
    open_image,
    read_grey_values,
    read_volume,
    read_whole,
    refuse_damaged,
    write_nifti,
)

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


def test_a_missing_file_is_no_unreadable_one(tmp_path):
    """A brain mask that was never made should have been given as .nii, .nii.gz or .mgz."""
    for read in (open_image, read_whole, read_volume, read_grey_values):
        with pytest.raises(ValueError, match="is missing. Make this file, or correct the path or ending that names it$"):
            read(tmp_path / "sub-2_mask.nii.gz")


def test_a_link_to_a_missing_file_is_named_with_its_target(path):
    path.parent.mkdir()
    path.symlink_to("../.git/annex/objects/scan.nii.gz")
    for read in (open_image, read_whole):
        with pytest.raises(ValueError, match=r"is a link to \.\./\.git/annex/objects/scan.nii.gz, which does not exist"):
            read(path)
    assert check_files([[str(path)]], lambda path: [])[0][0].startswith(f"{path}: is a link to ../.git/annex")


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


def flipped(content, place):
    changed = bytearray(content)
    changed[place] ^= 16
    return bytes(changed)


def with_dim(content, *sides):
    return content[:40] + np.array([3, *sides, 1, 1, 1, 1], "<i2").tobytes() + content[56:]


NOISE = np.random.default_rng(0).integers(0, 900, (12, 13, 14)).astype(np.int16)
PLAIN = image(NOISE).to_bytes()
ZIPPED = gzip.compress(PLAIN)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.nii.gz", ZIPPED[:-1], "Compressed file ended"),
        ("a.nii.gz", ZIPPED[: len(ZIPPED) // 2], "Compressed file ended"),
        ("a.nii.gz", flipped(ZIPPED, -6), "CRC check failed"),
        ("a.nii.gz", ZIPPED + b"garbage", "Not a gzipped file"),
        ("a.nii.gz", gzip.compress(PLAIN + b"more"), "has more"),
        ("a.nii.gz", gzip.compress(PLAIN[:-3]), f"describes {len(PLAIN)} bytes, it has {len(PLAIN) - 3}"),
        ("a.nii.gz", PLAIN, "not compressed by gzip"),
        ("a.nii.gz", b"version https://git-lfs.github.com/spec/v1", "not compressed by gzip"),
        ("a.nii.gz", b"", "it is empty"),
        ("a.nii", ZIPPED, "it is compressed by gzip"),
        ("a.nii", PLAIN[:-3], f"describes {len(PLAIN)} bytes, it has {len(PLAIN) - 3}"),
        ("a.nii", PLAIN + b"more", "has more"),
        ("a.nii", b"no image" * 100, "is not a NIfTI image that can be read"),
        # A false header could ask for 50 TB, or hide most of the voxels.
        ("a.nii", with_dim(PLAIN, 30000, 30000, 30000), "describes 54000000000352 bytes"),
        ("a.nii.gz", gzip.compress(with_dim(PLAIN, 30000, 30000, 30000)), "describes 54000000000352 bytes"),
        ("a.nii.gz", gzip.compress(with_dim(PLAIN, 12, 13, 7)), "has more"),
        ("a.nii.gz", gzip.compress(PLAIN[:70] + b"\xff\x7f" + PLAIN[72:]), "has voxels of an unknown type .datatype 32767"),
        ("a.mgz", gzip.compress(nib.MGHImage(NOISE, AFFINE).to_bytes())[:-2000], "Compressed file ended"),
        ("a.mgz", gzip.compress(nib.MGHImage(NOISE, AFFINE).to_bytes()[:-4000]), "cannot be read to its end"),
    ],
)
def test_a_damaged_file_is_refused_with_its_fault(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"^{tmp_path / name}: .*{message}"):
        read_volume(tmp_path / name)


def test_no_flipped_bit_of_a_compressed_image_changes_a_voxel(tmp_path):
    """Outside the bundles, 40 of 60 such copies used to be read."""
    rng, path, refused = np.random.default_rng(0), tmp_path / "a.nii.gz", 0
    for place in rng.integers(10, len(ZIPPED), 60):  # after the header of gzip, which no checksum protects
        path.write_bytes(flipped(ZIPPED, place))
        try:
            np.testing.assert_array_equal(read_volume(path).dataobj, NOISE)
        except ValueError:
            refused += 1
    assert refused == 60


def test_sound_files_in_unusual_forms_are_read(tmp_path):
    half = len(PLAIN) // 2
    forms = {
        "two members.nii.gz": gzip.compress(PLAIN[:half]) + gzip.compress(PLAIN[half:]),
        "zeros at the end.nii.gz": ZIPPED + bytes(512),
        "UPPER.NII.GZ": ZIPPED,
        "plain.nii": PLAIN,
        "big endian.nii": nib.Nifti1Image(NOISE, AFFINE, nib.Nifti1Header(endianness=">")).to_bytes(),
        "version 2.nii": nib.Nifti2Image(NOISE, AFFINE).to_bytes(),
        "trailing axis.nii": nib.Nifti1Image(NOISE[..., None], AFFINE).to_bytes(),
        "trailing axes.nii": nib.Nifti1Image(NOISE[..., None, None], AFFINE).to_bytes(),
        "freesurfer.mgz": gzip.compress(nib.MGHImage(NOISE, AFFINE).to_bytes()),
    }
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        noted = kind(NOISE, AFFINE)
        noted.header.extensions.append(nib.nifti1.Nifti1Extension(4, b"<AFNI_attributes/>" * 500))  # as AFNI writes it
        forms[f"extension {kind.__name__}.nii.gz"] = gzip.compress(noted.to_bytes())
    canonical = nib.as_closest_canonical(nib.Nifti1Image(NOISE, AFFINE)).dataobj
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        found = read_volume(tmp_path / name)
        np.testing.assert_array_equal(found.dataobj, NOISE, err_msg=name)
        np.testing.assert_allclose(found.affine, AFFINE, err_msg=name)
        np.testing.assert_array_equal(read_grey_values(tmp_path / name), canonical, err_msg=name)


HEAD = np.random.default_rng(1).uniform(0, 1, (20, 28, 20))


def with_voxel(value, scale=1.0):
    values = scale * HEAD
    values[3, 4, 5] = value
    return values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (with_voxel(30.0), "has intensities from .* to 30, but nearly all of its voxels lie in 0.00.* to 0.99"),
        (with_voxel(-3.0), "has intensities from -3 to"),
        (np.where(np.indices(HEAD.shape)[0] < 2, -2000, 254 * HEAD), "has intensities from -2000 to 25"),  # padding, 10 %
        (np.where(np.indices(HEAD.shape)[0] < 2, 32767, 254 * HEAD), " to 32767, but nearly all of its voxels lie in"),
        (with_voxel(1e30), "the others would take its contrast away. Clip it to"),
        (with_voxel(1e300), "which float32 cannot hold"),
        (with_voxel(-1e300), "which float32 cannot hold"),
        (HEAD * 1e-300, "which float32 cannot hold"),
        (HEAD + 1e6, "which float32 cannot hold"),  # 16 grey values would be left
        ((HEAD * 1000).astype(np.int64) + 2**62, "which float32 cannot hold"),
    ],
)
def test_intensities_that_scaling_would_lose_are_refused(path, values, message):
    path = path.with_name("scan.nii")
    path.parent.mkdir()
    path.write_bytes(nib.Nifti1Image(values, AFFINE, dtype=values.dtype).to_bytes())
    with pytest.raises(ValueError, match=message):
        read_grey_values(path)


def labelled(most, noise=0.0):
    """Cubes of 4 voxels with labels 0 to `most`, in any order, and noise in whole numbers."""
    rng = np.random.default_rng(2)
    cubes = rng.integers(0, most + 1, (10, 12, 11)).repeat(4, 0).repeat(4, 1).repeat(4, 2)
    return (cubes + rng.normal(0, noise, cubes.shape).round()).clip(0).astype(np.int16)


@pytest.mark.parametrize("most", [1, 40, 200])
def test_a_mask_or_label_map_is_no_scan(path, most):
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(labelled(most), AFFINE), path)
    with pytest.raises(ValueError, match="few different values, .* as in a label map or a mask. Give the scan"):
        read_grey_values(path)
    assert read_grey_values(path, is_mask=True).max() == most
    if most == 1:  # two values are no scan at 8 mm either
        nib.save(nib.Nifti1Image(labelled(most)[::4, ::4, ::4], AFFINE), path)
        with pytest.raises(ValueError, match="few different values, 2, as in a label map or a mask"):
            read_grey_values(path)
    if most > 1:  # a map of large voxels, in which half of the neighbours are equal
        nib.save(nib.Nifti1Image(labelled(most)[::2, ::2, ::2], AFFINE), path)
        with pytest.raises(ValueError, match="few different values, and [56].% of neighbouring voxels are equal"):
            read_grey_values(path)
    nib.save(nib.Nifti1Image(labelled(most, noise=3.0), AFFINE), path)  # a simulated scan of 8 bits without much contrast
    assert read_grey_values(path).max() > most


@pytest.mark.parametrize("levels", [32, 64, 256])
def test_a_scan_of_large_voxels_and_few_grey_levels_is_no_label_map(path, levels):
    """Half of it is air, and the head has smooth regions."""
    radius = np.linalg.norm(np.indices((20, 28, 20)) - np.array([[[[9.5]]], [[[13.5]]], [[[9.5]]]]), axis=0)
    grey = np.select([radius < 4, radius < 8, radius < 10], [0.2, 0.8, 0.5], 0.02)
    grey = np.rint((levels - 1) * np.abs(grey + np.random.default_rng(0).normal(0, 0.04, grey.shape)).clip(0, 1))
    path.parent.mkdir()
    nib.save(nib.Nifti1Image(grey.astype(np.uint8), AFFINE), path)
    assert len(np.unique(read_grey_values(path))) > levels / 2


@pytest.mark.parametrize(
    "values",
    [
        with_voxel(3.0),  # bright, but not out of all proportion
        with_voxel(-0.5),  # ringing of an interpolation
        HEAD * 1e30,
        HEAD * 1e-30,
        (HEAD * 1e12).astype(np.int64),
        np.where(HEAD > 0.9, HEAD, 0),  # mostly air
        np.where(HEAD > 0.3, HEAD, -0.1),  # zero mean
    ],
)
def test_sound_intensities_are_read(path, values):
    values = values * 1 if values.dtype != bool else values.astype(np.uint8)
    path = path.with_name("scan.nii")
    path.parent.mkdir()
    path.write_bytes(nib.Nifti1Image(values, np.diag([2.0, 2, 2, 1]), dtype=values.dtype).to_bytes())
    np.testing.assert_array_equal(read_grey_values(path), values)


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
        # Lengths in metres and micrometres, without their unit. Resampling asked for 125 TB, or left no voxel.
        ({"affine": AFFINE @ np.diag([1e-3, 1e-3, 1e-3, 1])}, "so its unit is another. Convert the affine to mm"),
        ({"affine": AFFINE @ np.diag([1e3, 1e3, 1e3, 1])}, "so its unit is another. Convert the affine to mm"),
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
    date = os.stat(files[0]).st_mtime_ns
    (tmp_path / files[0]).write_text("wrong")  # of the same size and date
    os.utime(files[0], ns=(date, date))
    assert answer(setting=2) == ([f"{files[0]}: one", f"{files[0]}: two", missing], [None, [2], None])
    assert checked == files[:1]


def test_one_damaged_file_hides_no_other_fault(tmp_path):
    """A false header raised MemoryError, and the faults of all other files were not told."""
    files = {"sound": ZIPPED, "huge": gzip.compress(with_dim(PLAIN, 30000, 30000, 30000)), "cut": ZIPPED[:-9], "empty": b""}
    paths = [tmp_path / f"{name}.nii.gz" for name in files]
    for path, content in zip(paths, files.values()):
        path.write_bytes(content)
    with pytest.raises(ValueError, match="^4 of 5 images cannot be used:") as refused:
        refuse_damaged([*paths, paths[0], tmp_path / "image of nobody.nii.gz", paths[0]])
    lines = str(refused.value).split("\n")[1:]
    assert [line.split(":")[0] for line in lines] == [*map(str, paths[1:]), str(tmp_path / "image of nobody.nii.gz")]


def test_an_error_that_no_one_foresaw_names_its_file_and_hides_no_other_fault(tmp_path):
    paths = [str(tmp_path / name) for name in "abc"]
    for path in paths:
        (tmp_path / path).touch()

    def check(path):
        if path == paths[0]:
            return np.zeros(2**50).tolist()  # as much memory as no computer has
        raise ValueError(f"{path}: is damaged")

    problems, _ = check_files([[path] for path in paths], check)
    assert problems[0].startswith(f"{paths[0]}: could not be checked (") and "allocate" in problems[0]
    assert problems[1:] == [f"{path}: is damaged" for path in paths[1:]]


def test_zlib_writes_the_same_voxels_where_isal_is_missing(tmp_path, monkeypatch):
    pytest.importorskip("isal")
    image = nib.Nifti1Image(np.random.default_rng(0).integers(0, 255, (20, 22, 24), np.uint8), np.eye(4))
    nifti.write_nifti(tmp_path / "isal.nii.gz", image)
    monkeypatch.setattr(nifti, "GzipFile", gzip.GzipFile)
    nifti.write_nifti(tmp_path / "zlib.nii.gz", image)
    by_isal, by_zlib = ((tmp_path / f"{name}.nii.gz").read_bytes() for name in ("isal", "zlib"))
    assert by_isal != by_zlib and gzip.decompress(by_isal) == gzip.decompress(by_zlib)
    assert by_isal[4:8] == bytes(4)  # no time in the header, so that equal images are equal files


def test_a_file_without_permission_is_not_called_damaged():
    with pytest.raises(ValueError, match="cannot be read, because you lack the permission"), nifti._unreadable():
        raise PermissionError(13, "Permission denied")
