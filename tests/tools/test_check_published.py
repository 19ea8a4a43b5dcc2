"""The conventions of published samples are told from volumes and their table, whichever they are."""

import re

import check_published
import nibabel as nib
import numpy as np
import pytest
from shared.mni_box import affine

SPACING_MM = 8


def head(size, ventricles, rng):
    """A T1w (20, 28, 20) in LAS order: bright scalp, dark skull, brain and dark ventricles, from 0 to 1."""
    where = affine(SPACING_MM)
    x, y, z = np.moveaxis(nib.affines.apply_affine(where, np.indices((20, 28, 20)).transpose(1, 2, 3, 0)), 3, 0)
    distance = np.sqrt((x / 80) ** 2 + ((y + 17) / 98) ** 2 + ((z - 10) / 81) ** 2) / size
    image = np.where(distance < 1, 0.6, 0.0)
    image[distance * size < 0.5 * ventricles] = 0.05
    return np.where(distance < 1, image + rng.normal(0, 0.02, image.shape), 0).clip(0, 1)


def write(folder, male="1", years=False, unit_mm3=False, own_range=False, moved_mm=(0, 0, 0), number=24):
    """Samples in one convention: the code of men, age in years or scaled, volumes in mm3 or scaled, intensities, affine."""
    rng = np.random.default_rng(0)
    rows = ["image_id,gender,age,ventricular_vol,brain_vol"]
    where = affine(SPACING_MM)
    where[:3, 3] += moved_mm
    (folder / "samples").mkdir(parents=True)
    for index in range(number):
        is_male, age, brain = index % 2, rng.random(), rng.random()
        ventricles = np.clip(0.5 * age + 0.5 * rng.random(), 0, 1)
        image = head((1.0 if is_male else 0.9) + rng.normal(0, 0.02), 0.3 + ventricles, rng)
        if own_range:  # a decoder that undershoots, scaled by its own minimum and maximum
            image = image + rng.normal(0, 0.02, image.shape)
            image = (image - image.min()) / (image.max() - image.min())
        stored = nib.Nifti1Image(np.round(255 * image).astype(np.uint8), where)
        nib.save(stored, folder / "samples" / f"sample_{index:03d}.nii.gz")
        code = male if is_male else {"1": "0", "0": "1", "M": "F"}[male]
        age = 44 + 38 * age if years else age
        if unit_mm3:
            ventricles, brain = 6995.68 + ventricles * 164379, 1144240 + brain * 649670
        rows.append(f"sample_{index:03d},{code},{age:.4f},{ventricles:.4f},{brain:.4f}")
    (folder / "samples.csv").write_text("\n".join(rows) + "\n")
    return folder


def verdicts(folder, capsys):
    check_published.main([str(folder)])
    lines = capsys.readouterr().out.splitlines()
    return dict(line.split(": ", 1) for line in lines[1:])


@pytest.mark.parametrize("male", ["1", "0"])
def test_the_code_with_the_larger_heads_is_male(tmp_path, capsys, male):
    says = verdicts(write(tmp_path / "a", male), capsys)["sex"]
    expected = "as in configs/covariates.json" if male == "1" else "give 'levels' the other codes"
    assert says.startswith(f"{male} is male") and expected in says
    assert "n 12" in says and "AUC 1.00" in says.replace("AUC 0.00", "AUC 1.00")


def test_words_for_the_sexes_are_checked_too(tmp_path, capsys):
    assert verdicts(write(tmp_path / "a", "M"), capsys)["sex"].startswith("M is male, as in")


def test_codes_of_equal_heads_decide_nothing(tmp_path, capsys):
    folder = write(tmp_path / "a")
    table = (folder / "samples.csv").read_text().splitlines()
    cells = [line.split(",") for line in table]
    for number, row in enumerate(cells[1:]):
        row[1] = str(number // 2 % 2)
    (folder / "samples.csv").write_text("\n".join(map(",".join, cells)))
    assert verdicts(folder, capsys)["sex"].startswith("not decided")


def test_scaled_and_physical_values_are_told_apart(tmp_path, capsys):
    scaled = verdicts(write(tmp_path / "a"), capsys)
    assert scaled["age"].startswith("scaled; as we read it, these are 4") and "The fluid rises with it" in scaled["age"]
    assert scaled["ventricles_ml"].startswith("scaled") and "The fluid rises with it" in scaled["ventricles_ml"]
    physical = verdicts(write(tmp_path / "b", years=True, unit_mm3=True), capsys)
    assert physical["age"].startswith("in years, 100% of them from 44 to 82, as we read it")
    assert physical["ventricles_ml"].startswith("in mm3; within the range") and "in mm3" in physical["brain_normalised_ml"]


def test_years_by_a_hundred_are_not_taken_for_our_scale():
    ages, fluid = np.linspace(0.44, 0.82, 30), np.linspace(0, 1, 30)
    assert check_published.judge_age(ages, fluid).startswith("not decided: years / 100 (44 to 82 years)")


def test_a_reversed_age_shows_in_the_fluid():
    assert "The fluid falls with it" in check_published.judge_age(np.linspace(0, 1, 30), np.linspace(1, 0, 30))


def test_a_displaced_affine_is_seen_and_ours_fits(tmp_path, capsys):
    assert verdicts(write(tmp_path / "a"), capsys)["affine"].startswith("the files are in their place, and our affine fits")
    moved = verdicts(write(tmp_path / "b", moved_mm=(16, -16, -96)), capsys)["affine"]  # as the published bundle writes them
    assert moved.startswith("the files are in the wrong place, and our affine puts them right")


def test_our_affine_of_the_cropped_volumes_is_the_derived_one():
    where = check_published.our_affine((150, 214, 145), (1, 1, 1))  # in RAS order
    assert where[:3, 3] + where[:3, :3] @ [149, 0, 0] == pytest.approx([75.481, -120.477, -60.554])
    assert check_published.our_affine((100, 100, 100), (1, 1, 1)) is None


def test_volumes_with_a_range_of_their_own_have_a_grey_background(tmp_path, capsys):
    clipped = verdicts(write(tmp_path / "a"), capsys)["intensities"]
    assert clipped.startswith("clipped below, with a black background") and "the background is at 0.0%" in clipped
    own = verdicts(write(tmp_path / "b", own_range=True), capsys)["intensities"]
    assert own.startswith(
        "not clipped: each volume has its own minimum and maximum. uint8, lowest 0, highest 255 to 255 in all"
    )
    assert float(re.search("background is at ([0-9.]+)%", own)[1]) > 3


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: (f / "samples.csv").unlink(), "0 tables .* one is needed. Give --table FILE"),
        (lambda f: (f / "samples.csv").write_text("image_id,age\nsample_000,1\n"), "samples.csv: no column for sex or gender"),
        (lambda f: (f / "samples.csv").write_text("image_id,sex\nsample_000,1\n"), "cannot be found in the table:"),
        (lambda f: (f / "samples" / "sample_003.nii.gz").write_bytes(b"x"), "sample_003.nii.gz"),
        (lambda f: [path.unlink() for path in (f / "samples").iterdir()], "no .*.nii.gz below it"),
    ],
)
def test_a_folder_that_cannot_be_judged_is_refused(tmp_path, spoil, message):
    folder = write(tmp_path / "a", number=4)
    spoil(folder)
    with pytest.raises((ValueError, OSError), match=message):
        check_published.main([str(folder)])


def change(folder, edit):
    """Rewrite the cells of the table."""
    rows = [line.split(",") for line in (folder / "samples.csv").read_text().splitlines()]
    (folder / "samples.csv").write_text("\n".join(",".join(edit(row, number)) for number, row in enumerate(rows)))


def test_codes_that_are_not_ours_are_not_called_ours(tmp_path, capsys):
    folder = write(tmp_path / "a")
    change(folder, lambda row, number: row if number == 0 else [row[0], f"{int(row[1]) + 1}.0", *row[2:]])
    assert verdicts(folder, capsys)["sex"].startswith("2.0 is male; configs/covariates.json has other codes, F = 0 and M = 1")


def test_months_and_years_of_birth_are_no_years_of_age():
    fluid = np.linspace(0, 1, 30)
    for ages in (np.linspace(600, 950, 30), np.linspace(1940, 1963, 30)):
        assert check_published.judge_age(ages, fluid).startswith("in no unit that we know")


def test_a_cell_that_is_no_number_is_named_with_its_volume(tmp_path):
    folder = write(tmp_path / "a")
    change(folder, lambda row, number: [*row[:2], "n/a", *row[3:]] if number == 3 else row)
    with pytest.raises(ValueError, match=r"1 cells of age cannot be read:\nsample_002.nii.gz: must be a number"):
        check_published.main([str(folder)])


def test_a_hot_voxel_is_refused_with_its_volume(tmp_path):
    folder = write(tmp_path / "a")
    path = folder / "samples" / "sample_003.nii.gz"
    values = np.asarray(nib.load(path).dataobj).astype(np.float32)
    values[3, 3, 3] = 1e5
    nib.save(nib.Nifti1Image(values, affine(SPACING_MM)), path)
    with pytest.raises(ValueError, match="sample_003.nii.gz: has intensities from 0 to 100000"):
        check_published.main([str(folder)])


def test_a_site_names_no_volume(tmp_path, capsys):
    folder = write(tmp_path / "a")
    change(folder, lambda row, number: [*row, "sample_000" if number % 2 else "sample_001"] if number else [*row, "site"])
    assert verdicts(folder, capsys)["sex"].startswith("1 is male")


def test_too_few_of_a_sex_are_refused(tmp_path):
    with pytest.raises(ValueError, match="sex has the values 0: 2, 1: 2; two are needed, with 5 volumes or more of each"):
        check_published.main([str(write(tmp_path / "a", number=4))])
