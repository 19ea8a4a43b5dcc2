"""Each planted defect ranks worst on its own score and is named; halves of scans and other scans are not."""

import json
import shutil
from dataclasses import replace

import benchmark_generators
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from make_demo_data import VERSION, make_cohort, save_image
from scoreboard.board import HALF
from scoreboard.conforming import conform, read
from scoreboard.controls import DEFECTS
from scoreboard.measures import cube
from scoreboard.scores import KINDS, _rotations, orientation, scores
from scoreboard.sets import find_volumes, read_table
from shared import mni_box
from shared.head_mask import head_mask
from shared.image_files import find_t1w
from simulation import subject
from simulation.atlas import load_atlas
from simulation.subject import Person, make_subject

SPACING_MM, N = 4, 8


def person(number):
    """A person whose age and sex are easy to see: brains shrink with age, and men have large heads."""
    rng = np.random.default_rng(number)
    age, sex = rng.uniform(46, 80), "FM"[number % 2]
    icv_ml = rng.normal(1550 if sex == "M" else 1200, 30)
    return Person(age, sex, icv_ml, 0.86 - 0.006 * (age - 46), 12 + 2.5 * (age - 46))


def write_study(folder, numbers, codes="RAS", stored=np.float32, scale=1.0):
    """Write simulated heads of one scanner, and their participants.tsv."""
    atlas, rows = load_atlas(SPACING_MM), []
    for number in numbers:
        who = person(number)
        values, _ = make_subject(who, atlas, number, "one")
        image = nib.Nifti1Image(values * scale, mni_box.affine(SPACING_MM, "RAS"))
        target = nib.orientations.axcodes2ornt(codes)
        image = image.as_reoriented(nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), target))
        save_image(image.get_fdata(), image.affine, folder / f"sub-{number:03d}_T1w.nii.gz", stored)
        rows.append({"participant_id": f"sub-{number:03d}", "age": round(who.age_years, 1), "sex": who.sex})
    pd.DataFrame(rows).to_csv(folder / "participants.tsv", sep="\t", index=False)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return write_study(tmp_path_factory.mktemp("study"), range(2 * N))


@pytest.fixture(scope="module")
def board(study, tmp_path_factory):
    """The scoreboard of other people, whose scans have other axes and units. Its files are in the folder."""
    folder = tmp_path_factory.mktemp("board")
    others = write_study(tmp_path_factory.mktemp("others"), range(100, 100 + N), "LPI", np.int16, 900)
    command = [str(others), "--real", str(study), "--output", str(folder), "--mask", "head", "--pairs", "30"]
    return benchmark_generators.benchmark(benchmark_generators.parse(command)), folder, others


@pytest.mark.slow
@pytest.mark.parametrize("name", DEFECTS)
def test_a_planted_defect_is_worst_on_its_own_score_and_named(board, name):
    board, defect = board[0], DEFECTS[name]
    assert board.worst(defect.score, defect.end) == f"control: {name}"
    assert defect.score in board.named(f"control: {name}")


@pytest.mark.slow
def test_halves_of_scans_and_scans_with_other_axes_and_units_are_not_named(board):
    board, _, others = board
    assert board.named(HALF) == {} == board.named(others.name)


@pytest.mark.slow
def test_the_files_hold_every_score_with_its_floor(board):
    board, folder, others = board
    table = pd.read_csv(folder / "scoreboard.tsv", sep="\t").set_index(["set", "score"])
    content = json.loads((folder / "scoreboard.json").read_text())
    assert set(table.index.levels[0]) == {others.name, HALF, *board.controls}
    fid = table.loc[(others.name, "fid")]
    assert fid["low_95"] < fid["value"] < fid["high_95"] and fid["lowest_of_halves"] < fid["value"] < fid["highest_of_halves"]
    assert content["n"] == N and "demo_regressor.pt" in content["extractor"]
    assert "copied" in content["named"]["control: copied"] and content["named"][HALF] == []
    page = (folder / "scoreboard.html").read_text()
    assert "simulated" not in page and page.count("<figure>") == 2 and others.name in page


def test_wrong_axes_and_exchanged_sides_are_told_apart():
    rng = np.random.default_rng(0)
    x, y, z = np.meshgrid(*[np.linspace(-1, 1, 24)] * 3, indexing="ij")
    head = np.exp(-4 * (x**2 + (y - 0.2) ** 2 + 2 * (z - 0.1 * y) ** 2)) + 0.2 * np.exp(-20 * ((x - 0.4) ** 2 + y**2 + z**2))
    real = np.stack([head + 0.01 * rng.normal(size=head.shape) for _ in range(6)])
    for turn, _ in list(_rotations())[1:]:
        wrong, side = orientation(np.stack([turn(head), turn(head[::-1])]), real)
        assert wrong.all() and side[0] > 0.5 > -0.5 > side[1]
    assert not orientation(head[None, ::-1], real)[0].any()


def test_a_head_is_conformed_alike_from_any_convention(study, tmp_path):
    values, affine = read(study / "sub-000_T1w.nii.gz")
    one = conform(values, affine, SPACING_MM, None)
    assert one.image.shape == mni_box.size(SPACING_MM) and one.image.max() == 1 and not one.image[~one.mask].any()
    masked = np.where(head_mask(values), (values - values.mean()) / values.std(), 0)  # z-scored, air 0, other axes
    path = tmp_path / "z.nii.gz"
    save_image(masked[:, ::-1], affine @ nib.affines.from_matvec(np.diag([1, -1, 1]), [0, 55, 0]), path, np.float32)
    other = conform(*read(path), SPACING_MM, None)
    assert np.corrcoef(one.image.flatten(), other.image.flatten())[0, 1] > 0.98
    middle = np.array(one.image.shape) / 2
    assert np.allclose(cube(one.image.numpy(), middle, SPACING_MM), cube(other.image.numpy(), middle, SPACING_MM), atol=0.02)


def test_too_few_volumes_are_refused_before_anything_is_read(study, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    (few / "a_T1w.nii.gz").write_bytes(b"no image")
    options = benchmark_generators.parse([str(few), "--real", str(study), "--output", str(tmp_path / "out")])
    with pytest.raises(ValueError, match="few: 1.*at least 7 of each set and 14 scans"):
        benchmark_generators.benchmark(options)
    assert not (tmp_path / "out").exists()


def test_the_covariates_of_a_set_are_checked_and_missing_ones_named(study, tmp_path):
    paths = find_volumes(study, 0)
    assert read_table(study, paths)["age"].notna().all()
    other = tmp_path / "other"
    shutil.copytree(study, other)
    paths, table = [other / path.name for path in paths], pd.read_csv(other / "participants.tsv", sep="\t")
    table.assign(age=table["age"] * 12).to_csv(other / "participants.tsv", sep="\t", index=False)
    with pytest.raises(ValueError, match="participants.tsv: the median of age is .*, but only 0 to 120 years are possible"):
        read_table(other, paths)
    table.assign(participant_id=range(len(table))).to_csv(other / "participants.tsv", sep="\t", index=False)
    with pytest.warns(UserWarning, match="16 of 16 volumes count without covariates, because there is no row for sub-"):
        assert read_table(other, paths)["age"].isna().all()
    (other / "participants.tsv").rename(other / "participants.csv")
    with pytest.raises(ValueError, match="participants.csv: would be ignored"):
        read_table(other, paths)


def test_one_synthetic_volume_among_the_scans_is_refused(study, tmp_path):
    mixed = shutil.copytree(study, tmp_path / "mixed")
    last = find_volumes(mixed, 0)[-1]
    last.with_name(last.name.replace(".nii.gz", ".json")).write_text(json.dumps({"Synthetic": True}))
    options = benchmark_generators.parse([str(study), "--real", str(mixed), "--output", str(tmp_path / "out")])
    with pytest.raises(ValueError, match=f"{last.name}: is synthetic"):
        benchmark_generators.benchmark(options)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_pairs_that_leave_a_half_without_any_are_refused_before_work(study, board, tmp_path):
    few = ["--n", "8", "--pairs", "1", "--output", str(tmp_path / "out")]
    options = benchmark_generators.parse([str(board[2]), "--real", str(study), *few])
    with pytest.raises(ValueError, match="--pairs 1: a half of 16 scans has no pair. Give more"):
        benchmark_generators.benchmark(options)
    assert not (tmp_path / "out").exists()
    reference, space = board[0].reference, board[0].space
    lost = replace(reference, similarity=np.full_like(reference.similarity, np.nan))  # as in a small subset
    found = scores(lost, reference, lambda features: space, 0)
    assert "ms_ssim" not in found and np.isfinite(found["density"][0])


def test_a_hash_without_its_file_is_refused(capsys):
    with pytest.raises(SystemExit):
        benchmark_generators.parse(["a", "--real", "b", "--output", "c", "--extractor_sha256", "abc"])
    assert "--extractor_sha256 is the hash of --extractor_file, which is missing" in capsys.readouterr().err


@pytest.mark.slow
def test_the_full_form_finds_every_defect_inside_of_the_skull(tmp_path):
    """The demo's cohorts, with structures. The set has other people's scans without skull, z-scored, in other axes."""
    settings = {"version": VERSION, "spacing_mm": SPACING_MM, "protocol": "one", "covariates": "wide"}
    for name, count, seed in (("study", 40, 0), ("others", 20, 1)):
        make_cohort(tmp_path / name, count, settings | {"seed": seed})
    bare = tmp_path / "bare"
    for path in find_t1w(tmp_path / "others"):
        person, (values, affine) = path.name.split("_")[0], read(path)
        labels = tmp_path / "others" / "derivatives" / "labels" / person / "anat" / f"{person}_dseg.nii.gz"
        inside = np.isin(np.asarray(nib.load(labels).dataobj), subject.VOLUMES["icv_ml"])
        values = np.where(inside, (values - values[inside].mean()) / values[inside].std(), 0)
        image = nib.Nifti1Image(values, affine).as_reoriented([[1, -1], [0, 1], [2, -1]])
        save_image(np.asarray(image.dataobj), image.affine, bare / f"{person}_T1w.nii.gz", np.float32)
    shutil.copy(tmp_path / "others" / "participants.tsv", bare)
    command = [str(bare), "--real", str(tmp_path / "study"), "--output", str(tmp_path / "out")]
    board = benchmark_generators.benchmark(benchmark_generators.parse(command))
    missed = [name for name in DEFECTS if not board.finds(f"control: {name}")]
    assert missed == [] and board.named(HALF) == {}
    # Without skull, the mask differs by a little. So the set is not quite like the scans, but has none of the defects.
    ends = {getattr(KINDS[defect.score], defect.end) for defect in DEFECTS.values()} - {KINDS["shift"].high}
    assert not ends & set(board.named("bare").values())
    for score in ("fid", "structures"):
        assert board.found["bare"][score][0] < board.found["control: blurred"][score][0] / 3
    assert board.found["bare"]["r_ventricles_ml"][0] > 0.9
