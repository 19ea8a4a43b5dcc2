"""Images that cannot be used are refused by name, and sound ones are read once."""

import gzip
import json
import os
import re
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from tiny_images import NOISE, SPACING_MM, VOLUME, rotated, save, shifted, with_voxel

from brain_ldm_bundle.scripts.data import image_checks as images
from brain_ldm_bundle.scripts.shared import mni_box, nifti


@pytest.fixture
def paths(tmp_path):
    """Three sound images."""
    return [str(save(tmp_path / f"sub-{number}_T1w.nii.gz")) for number in range(3)]


def problems(paths, **options):
    return images.check_images(paths, **{"spacing_mm": SPACING_MM} | options)[0]


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"volume": np.stack([VOLUME, VOLUME], -1)}, "has 4 dimensions (20, 28, 20, 2); three are needed"),
        ({"affine": mni_box.affine(SPACING_MM) * [[1.02], [1], [1], [1]]}, "has voxels of (8.16, 8, 8) mm, not 8 mm"),
        ({"code": 0}, "has neither a qform nor an sform"),
        ({"affine": rotated(2)}, "has axes oblique by 2.0 degrees: not in MNI space."),
        ({"affine": shifted(z=40)}, "reaches from (-79.02, -126, -21.05) mm to (80.98, 98.02, 138.9) mm"),
        ({"volume": VOLUME[:, :20]}, "reaches from (-79.02, -126, -61.05) mm to (80.98, 34.02, 98.95) mm"),
        ({"volume": with_voxel(np.nan)}, "has 1 voxels that are NaN or infinite"),
        ({"volume": with_voxel(-np.inf)}, "has 1 voxels that are NaN or infinite"),
        ({"volume": np.zeros_like(VOLUME)}, "is 0 everywhere"),
        ({"volume": np.full_like(VOLUME, 7)}, "is 7 everywhere"),
        ({"volume": VOLUME.astype(np.complex64)}, "has voxels of type complex64"),
    ],
)
def test_an_image_that_cannot_be_used_is_named_with_its_fault(paths, tmp_path, image, message):
    path = save(tmp_path / "sub-1_T1w.nii.gz", **image)
    (problem,) = problems(paths)
    assert problem.startswith(f"{path}: {message}")


@pytest.mark.parametrize("lost_bytes", [4, 2000])
def test_a_truncated_image_is_refused(tmp_path, lost_bytes):
    """Four bytes are missing after the last voxel: nibabel alone reads such a file without an error."""
    path = save(tmp_path / "sub-1_T1w.nii.gz")
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    no_nifti = tmp_path / "sub-2_T1w.nii"
    no_nifti.write_bytes(gzip.compress(b"no"))
    short, other = problems([str(path), str(no_nifti)])
    assert f"{path}: cannot be read to its end" in short
    assert "is not a NIfTI image that can be read" in other


@pytest.mark.parametrize("affine", [shifted(x=6, y=-9, z=4), shifted(z=9)], ids=["moved", "lower end cut"])
def test_an_image_a_little_off_the_grid_is_taken(tmp_path, affine):
    assert not problems([str(save(tmp_path / "sub-1_T1w.nii.gz", affine=affine))])


def test_an_axis_of_one_after_the_third_changes_nothing(paths):
    _, plain = images.check_images(paths[:1], SPACING_MM)
    save(Path(paths[1]), VOLUME[..., None])
    faults, found = images.check_images(paths[1:2], SPACING_MM)
    assert not faults and list(found.values()) == list(plain.values())


def test_images_with_the_scanners_code_are_taken_with_one_warning(paths):
    for path in paths[1:]:
        save(Path(path), code=1)
    with pytest.warns(UserWarning, match="2 images, such as .*sub-1_T1w.nii.gz, have the NIfTI code 1") as caught:
        assert not problems(paths)
    assert len(caught) == 1


def test_a_hot_voxel_is_warned_about_and_a_very_hot_one_is_refused(paths):
    """Scaling from the lowest to the highest voxel would leave the brain a fraction of the grey values."""
    save(Path(paths[0]), with_voxel(3))
    with pytest.warns(UserWarning, match="1 images, such as .*sub-0_T1w.nii.gz, have a few voxels that are more than twice"):
        assert not problems(paths)
    for value in (100, -5, 1e30):
        save(Path(paths[0]), with_voxel(value))
        (problem,) = problems(paths)
        assert problem.startswith(f"{paths[0]}: has intensities from")


def test_an_inverted_scan_gets_a_warning(paths, tmp_path):
    x, y, z = np.indices(VOLUME.shape) - np.array(VOLUME.shape).reshape(3, 1, 1, 1) / 2
    head = (x**2 + y**2 + z**2 < 80) * 100.0 + VOLUME
    for name, volume in (("upright", head), ("inverted", 200 - head)):
        paths.append(str(save(tmp_path / f"sub-{name}_T1w.nii.gz", volume=volume)))
    with pytest.warns(UserWarning, match="1 images, such as .*inverted_T1w.nii.gz, are brighter in the corners"):
        assert problems(paths[3:]) == []


@pytest.mark.parametrize("ventricles", [0.2, 1.0])
def test_bright_ventricles_get_a_warning_with_both_intensities_in_each_run(paths, tmp_path, ventricles):
    """White matter has 0.5. A T2w that is named T1w would be learnt as a T1w."""
    affine, cache = mni_box.affine(SPACING_MM, "RAS"), tmp_path / "checked.json"
    x, y, z = np.moveaxis(nib.affines.apply_affine(affine, np.indices(VOLUME.shape).transpose(1, 2, 3, 0)), 3, 0)
    head = 0.5 * ((x / 65) ** 2 + ((y + 15) / 85) ** 2 + ((z - 12) / 60) ** 2 < 1)
    head[(np.abs(x) < 16) & (np.abs(y + 10) < 30) & (np.abs(z - 18) < 10)] = ventricles
    path = save(tmp_path / "sub-fluid_T1w.nii.gz", head + 1e-4 * VOLUME, affine)
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert not problems([str(path)], cache_file=cache)
        found = [str(one.message) for one in caught]
        assert len(found) == (ventricles == 1.0)
        assert not found or f"{path} (ventricles 1, white matter 0.5)" in found[0]


def test_a_head_upside_down_gets_a_warning(paths, tmp_path):
    z = np.indices(VOLUME.shape)[2]
    for name, volume in (("upright", VOLUME * (z < 15)), ("turned", VOLUME * (z >= 5))):
        paths.append(str(save(tmp_path / f"sub-{name}_T1w.nii.gz", volume + 0.001 * VOLUME)))
    with pytest.warns(UserWarning, match="1 images, such as .*sub-turned_T1w.nii.gz, show more above the head than below"):
        assert not problems(paths[3:])


def test_noise_gets_a_warning(paths):
    save(Path(paths[1]), NOISE)
    with pytest.warns(UserWarning, match="1 images, such as .*sub-1_T1w.nii.gz, are noise"):
        assert not problems(paths)


@pytest.mark.parametrize("off_mm", [(0, 0, 0), (8, -8, 8), (0, 32, 0), (-32, 0, 0)])
def test_a_head_far_from_its_place_gets_a_warning_with_the_distance(tmp_path, off_mm):
    """Such a head was not registered, although its header says MNI space."""
    affine = mni_box.affine(SPACING_MM, "RAS")
    places_mm = nib.affines.apply_affine(affine, np.indices(VOLUME.shape).transpose(1, 2, 3, 0))
    head = (((places_mm - [0, -18, 6] - off_mm) / [68, 88, 80]) ** 2).sum(axis=-1) < 1
    path = save(tmp_path / "sub-1_T1w.nii.gz", head + 0.2 * VOLUME, affine)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not problems([str(path)])
    found = [str(one.message) for one in caught]
    assert len(found) == (max(np.abs(off_mm)) == 32)
    assert not found or re.match(rf"1 images, such as {path} \(by \(.*\) mm .*\), show a head whose centre is far", found[0])


@pytest.mark.parametrize("stripped", [1, 3])
def test_scans_without_skull_among_others_get_a_warning(paths, stripped):
    """The volumes fill the field of view, 5.7 litres. A brain fills less than 2."""
    brain = VOLUME + 0.1
    brain[:3], brain[-3:], brain[:, :5], brain[:, -5:], brain[:, :, -5:] = 0, 0, 0, 0, 0
    for path in paths[:stripped]:
        save(Path(path), brain)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert not problems(paths)
    expected = [f"1 images, such as {paths[0]}, show no skull, and the others do"] if stripped == 1 else []
    assert [str(one.message).split(". ")[0] for one in caught] == expected


@pytest.mark.parametrize("plane", [np.s_[:, :, 10:], np.s_[12:], np.s_[:, 11]])
def test_a_scan_that_lacks_a_part_of_the_brain_gets_a_warning(paths, tmp_path, plane):
    cut = VOLUME.copy()
    cut[plane] = 0
    paths.append(str(save(tmp_path / "sub-cut_T1w.nii.gz", volume=cut)))
    with pytest.warns(UserWarning, match="1 images, such as .*sub-cut_T1w.nii.gz, have planes of one value in the middle"):
        assert problems(paths) == []


def test_a_scan_is_identified_by_its_voxels_alone(tmp_path):
    """A scan used to be identified by name and size. Compressed again it was forgotten, and a foreign scan could pass as it."""
    volume = np.round(255 * VOLUME).astype(np.uint8)
    scan = save(tmp_path / "sub-1_T1w.nii.gz", volume)
    plain = save(tmp_path / "other name.nii", volume.astype(np.float64))
    turned = tmp_path / "turned.nii.gz"
    nib.save(nib.load(scan).as_reoriented([[1, 1], [2, -1], [0, 1]]), turned)
    mirrored = save(tmp_path / "mirrored" / "sub-1_T1w.nii.gz", volume[::-1])
    faults, contents = images.check_images([str(path) for path in (scan, plain, turned, mirrored)], SPACING_MM)
    assert not faults and contents[str(scan)] == contents[str(plain)] == contents[str(turned)]
    assert contents[str(scan)].voxels_sha256 != contents[str(mirrored)].voxels_sha256
    assert contents[str(scan)][1:] == contents[str(mirrored)][1:] == (volume.min(), volume.max(), {})


# The cache


def test_sound_images_are_read_once(paths, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "checked.json"
    path = save(tmp_path / "sub-1_T1w.nii.gz", with_voxel(np.nan))
    whole, read = nifti.read_whole, []
    monkeypatch.setattr(nifti, "read_whole", lambda path: (read.append(path), whole(path))[1])
    assert "NaN" in problems(paths, cache_file=cache)[0]
    assert sorted(read) == paths
    read.clear()
    assert "NaN" in problems(paths, cache_file=cache)[0]
    assert read == [str(path)]
    read.clear()
    save(path)
    assert not problems(paths, cache_file=cache)
    assert read == [str(path)]
    assert [file.name for file in cache.parent.iterdir()] == ["checked.json"]
    assert images.check_images(paths, SPACING_MM, cache_file=cache) == images.check_images(paths, SPACING_MM)
    read.clear()
    save(path, with_voxel(np.inf))  # of a sound image
    assert f"{path}: has 1 voxels" in problems(paths, cache_file=cache)[0]


def test_images_that_an_earlier_version_remembered_are_read_once_more(paths, tmp_path):
    """It kept no hash of their voxels, or no range."""
    cache = tmp_path / "checked.json"
    file = {path: [os.stat(path).st_size, os.stat(path).st_mtime_ns, SPACING_MM] for path in paths}
    cache.write_text(json.dumps({paths[0]: file[paths[0]]} | {path: [*file[path], "0123456789abcdef"] for path in paths[1:]}))
    assert images.check_images(paths, SPACING_MM, cache_file=cache) == images.check_images(paths, SPACING_MM)


def test_a_damaged_cache_only_costs_time(paths, tmp_path):
    cache = tmp_path / "checked.json"
    cache.write_text('{"half')
    assert not problems(paths, cache_file=cache)
    assert sorted(json.loads(cache.read_text())) == paths


def test_another_spacing_is_refused_in_spite_of_the_cache(paths, tmp_path):
    assert not problems(paths, cache_file=tmp_path / "checked.json")
    found = problems(paths, cache_file=tmp_path / "checked.json", spacing_mm=4)
    assert len(found) == 3 and all("not 4 mm (spacing_mm)" in problem for problem in found)
