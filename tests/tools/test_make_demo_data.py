"""The demo cohort has the right volumes, sides and grid, is reproducible, and leaves other data in folders alone."""

import json
import os
import shutil

import bids_validator
import make_demo_data
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from simulation import subject as demo_subject
from simulation.atlas import load_atlas
from simulation.subject import Person, make_subject, measure_ml

SPACING_MM = 4
SETTINGS = {"version": make_demo_data.VERSION, "seed": 5, "spacing_mm": SPACING_MM, "protocol": "many", "covariates": "wide"}


@pytest.fixture(scope="module")
def atlas():
    torch.set_num_threads(1)
    return load_atlas(SPACING_MM)


@pytest.fixture(scope="module")
def head(atlas):
    """One subject: T1w, labels."""
    return make_subject(Person(65.0, "F", 1300.0, 0.74, 40.0), atlas, seed=3)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cohort")
    make_demo_data.make_cohort(folder, 3, SETTINGS)
    return folder


def image_paths(folder):
    return sorted(path.relative_to(folder) for path in folder.rglob("sub-*.nii.gz"))


def draws(count=2000):
    people = [make_demo_data.draw_person(np.random.default_rng([1, k])) for k in range(count)]
    return pd.DataFrame([vars(person) for person in people]).assign(male=lambda table: (table["sex"] == "M") * 1.0)


def test_volumes_are_voxel_counts_times_voxel_volume_in_millilitres():
    labels = np.zeros((5, 6, 7), np.uint8)
    labels[0, :, 0] = 6  # 6 voxels of lateral ventricle
    labels[1, :, 0] = 3  # 6 of cortex
    labels[2, :, 0] = 8  # third ventricle: neither lateral nor brain
    labels[3, :, 0] = 16  # skull: outside
    volumes = measure_ml(labels, spacing_mm=2)
    assert volumes == pytest.approx({"ventricles_ml": 0.048, "brain_ml": 0.048, "icv_ml": 0.144})


@pytest.mark.parametrize(("ventricles_ml", "fraction"), [(9.0, 0.84), (60.0, 0.63), (140.0, 0.70)])
def test_requested_volumes_are_realised_on_the_label_map(atlas, ventricles_ml, fraction):
    _, labels = make_subject(Person(60.0, "M", 1450.0, fraction, ventricles_ml), atlas, seed=11)
    volumes = measure_ml(labels, SPACING_MM)
    assert volumes["ventricles_ml"] == pytest.approx(ventricles_ml, abs=0.1)
    assert volumes["icv_ml"] == pytest.approx(1450, rel=0.01)
    assert volumes["brain_ml"] / volumes["icv_ml"] == pytest.approx(fraction, abs=0.003)


def test_larger_ventricles_show_in_the_image_as_a_larger_dark_centre(atlas):
    dark = []
    for ventricles_ml in (15.0, 45.0, 135.0):
        image, _ = make_subject(Person(60.0, "M", 1450.0, 0.72, ventricles_ml), atlas, seed=11)
        centre = image[14:26, 20:40, 16:26]  # round the lateral ventricles
        dark.append((centre < 0.3).sum() * SPACING_MM**3 / 1000)
    assert dark[0] + 10 < dark[1] < dark[2] - 40


def test_contrast_is_that_of_t1w(head):
    image, labels = head
    groups = {"ventricle": (6, 7), "csf": (1,), "cortex": (2, 3), "white": (4, 5), "air": (0,)}
    mean = {name: image[np.isin(labels, values)].mean() for name, values in groups.items()}
    assert mean["air"] < mean["ventricle"] < mean["csf"] < mean["cortex"] < mean["white"] - 0.15
    assert image.min() >= 0 and image.max() == 1


def test_left_labels_lie_left_and_the_cerebellum_behind_and_below(head):
    _, labels = head
    affine = make_demo_data.mni_box.affine(SPACING_MM, "RAS")
    centre = {v: nib.affines.apply_affine(affine, np.argwhere(labels == v).mean(0)) for v in np.unique(labels)}
    for left in (2, 4, 6, 9, 11, 13):
        assert centre[left][0] < -5 and centre[left + 1][0] > 5, demo_subject.LABELS[left]
    cerebrum, cerebellum, brain_stem = centre[2], centre[11], centre[15]
    assert cerebellum[1] < cerebrum[1] - 20 and cerebellum[2] < cerebrum[2] - 20
    assert abs(brain_stem[0]) < 6 and brain_stem[2] < centre[6][2] - 30


def test_skull_and_scalp_enclose_the_brain(head):
    _, labels = head
    for axis in range(3):
        first, second = np.moveaxis(labels, axis, 0)[:-1], np.moveaxis(labels, axis, 0)[1:]
        for one, neighbour in ((first, second), (second, first)):
            intracranial = (one > 0) & (one < 16)
            assert not (intracranial & (neighbour == 0)).any()


def test_images_fill_the_projects_box_in_mni_space(cohort):
    for path in image_paths(cohort):
        image = nib.load(cohort / path)
        assert image.shape == (40, 56, 40)
        assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
        assert image.affine[:3, 3] == pytest.approx([-77.019, -123.977, -59.054], abs=1e-3)
        assert image.affine[:3, :3] == pytest.approx(SPACING_MM * np.eye(3))
        assert image.header["sform_code"] == image.header["qform_code"] == 4
        assert image.get_data_dtype() == np.uint8
    assert make_demo_data.mni_box.affine(1, "RAS")[:3, 3] == pytest.approx([-78.519, -125.477, -60.554])


def test_table_holds_what_the_label_maps_hold(cohort):
    table = pd.read_csv(cohort / "participants.tsv", sep="\t", index_col="participant_id")
    assert list(table.index) == ["sub-0001", "sub-0002", "sub-0003"]
    for name, row in table.iterrows():
        labels = nib.load(cohort / f"derivatives/labels/{name}/anat/{name}_dseg.nii.gz")
        voxel_ml = np.prod(labels.header.get_zooms()) / 1000
        values = np.asarray(labels.dataobj)
        brain_ml = np.isin(values, [2, 3, 4, 5, 9, 10, 11, 12, 13, 14, 15]).sum() * voxel_ml
        icv_ml = ((values >= 1) & (values <= 15)).sum() * voxel_ml
        assert row["ventricles_ml"] == pytest.approx(np.isin(values, [6, 7]).sum() * voxel_ml, abs=1e-3)
        assert row["brain_ml"] == pytest.approx(brain_ml, abs=1e-3)
        assert row["icv_ml"] == pytest.approx(icv_ml, abs=1e-3)
        assert row["brain_normalised_ml"] == pytest.approx(brain_ml * 1902 / icv_ml, abs=1e-3)
        names = pd.read_csv(cohort / "derivatives/labels/dseg.tsv", sep="\t")
        assert set(np.unique(values)) <= set(names["index"])


def test_every_column_is_described_and_every_image_says_it_is_synthetic(cohort):
    columns = pd.read_csv(cohort / "participants.tsv", sep="\t").columns
    described = json.loads((cohort / "participants.json").read_text())
    assert set(columns) == {"participant_id", *described}
    assert all(described[name]["Units"] == "mL" for name in columns if name.endswith("_ml"))
    sidecar = json.loads((cohort / "sub-0001/anat/sub-0001_T1w.json").read_text())
    assert sidecar["Synthetic"] is True and sidecar["DemoSettings"] == SETTINGS


def test_template_volume_in_the_table_is_the_atlas_volume(atlas):
    assert make_demo_data.TEMPLATE_ICV_ML == pytest.approx(atlas.icv_ml, abs=0.5)


def test_a_subject_is_the_same_whatever_the_number_of_subjects_and_workers(cohort, tmp_path):
    """The worker process begins with the second subject, because the first is made already: one process is enough."""
    make_demo_data.make_cohort(tmp_path, 1, SETTINGS)
    make_demo_data.make_cohort(tmp_path, 2, SETTINGS, workers=2)
    paths = image_paths(tmp_path)
    assert len(paths) == 4
    for path in paths:
        assert (tmp_path / path).read_bytes() == (cohort / path).read_bytes()


def test_subjects_differ_from_each_other_and_with_the_seed():
    first = make_demo_data.draw_person(np.random.default_rng([0, 1]))
    assert first == make_demo_data.draw_person(np.random.default_rng([0, 1]))
    assert first != make_demo_data.draw_person(np.random.default_rng([0, 2]))
    assert first != make_demo_data.draw_person(np.random.default_rng([1, 1]))


def test_running_again_makes_only_what_is_missing(cohort):
    kept = cohort / "sub-0001/anat/sub-0001_T1w.nii.gz"
    lost = cohort / "sub-0002/anat/sub-0002_T1w.nii.gz"
    before, table = lost.read_bytes(), (cohort / "participants.tsv").read_text()
    os.utime(kept, (1, 1))
    lost.unlink()
    (cohort / "sub-0002/anat/sub-0002_T1w.json").unlink()
    make_demo_data.make_cohort(cohort, 3, SETTINGS)
    assert kept.stat().st_mtime == 1
    assert lost.read_bytes() == before and (cohort / "participants.tsv").read_text() == table


@pytest.mark.parametrize("harmed", ["sub-0002/anat/sub-0002_T1w.json", "derivatives/labels/sub-0002/anat/sub-0002_dseg.nii.gz"])
def test_a_subject_with_a_file_that_was_cut_short_is_made_again(cohort, harmed):
    before = (cohort / harmed).read_bytes()
    (cohort / harmed).write_bytes(before[:-10])
    make_demo_data.make_cohort(cohort, 3, SETTINGS)
    assert (cohort / harmed).read_bytes() == before


def test_an_atlas_in_the_cache_that_was_cut_short_is_built_again(atlas, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    template = {name: values.numpy() for name, values in vars(atlas).items() if torch.is_tensor(values)}
    monkeypatch.setattr("simulation.atlas._build", lambda: None)  # which takes half a minute
    monkeypatch.setattr("simulation.atlas._resample", lambda built, spacing_mm: template | {"icv_ml": atlas.icv_ml})
    load_atlas(SPACING_MM)
    (path,) = (path for path in tmp_path.rglob("*") if path.is_file())
    whole = path.read_bytes()
    for kept in (0, 3, 1000, -1):
        path.write_bytes(whole[:kept])
        assert load_atlas(SPACING_MM).icv_ml == atlas.icv_ml, kept
        assert path.stat().st_size == len(whole), kept


def test_a_failed_write_leaves_no_image_and_no_table(tmp_path, monkeypatch):
    def full_disk(image):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_bytes", full_disk)
    with pytest.raises(OSError, match="No space left on device while writing .*sub-0001_dseg.nii.gz"):
        make_demo_data.make_cohort(tmp_path, 1, SETTINGS)
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"README", "dataset_description.json", "dseg.json", "dseg.tsv"}


def test_a_cohort_made_with_other_settings_is_refused_by_name(cohort):
    with pytest.raises(ValueError, match="seed 5 instead of 6, protocol 'many' instead of 'one'.*--fresh"):
        make_demo_data.make_cohort(cohort, 3, SETTINGS | {"seed": 6, "protocol": "one"})


def test_the_protocol_is_recorded_and_changes_the_image_but_not_the_anatomy(tmp_path):
    for protocol in ("one", "many"):
        folder = tmp_path / protocol
        make_demo_data.main(f"{folder} --subjects 1 --spacing_mm 8 --workers 1 --protocol {protocol}".split())
        assert json.loads((folder / "dataset_description.json").read_text())["DemoSettings"]["protocol"] == protocol
    dseg, t1w = "derivatives/labels/sub-0001/anat/sub-0001_dseg.nii.gz", "sub-0001/anat/sub-0001_T1w.nii.gz"
    assert (tmp_path / "one" / dseg).read_bytes() == (tmp_path / "many" / dseg).read_bytes()
    assert (tmp_path / "one" / t1w).read_bytes() != (tmp_path / "many" / t1w).read_bytes()


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_with_other_data_is_refused_and_left_alone(tmp_path, fresh):
    real = tmp_path / "sub-0001" / "anat" / "sub-0001_T1w.nii.gz"
    real.parent.mkdir(parents=True)
    real.write_bytes(b"a real scan")
    (tmp_path / "dataset_description.json").write_text('{"Name": "Real"}')
    with pytest.raises(ValueError, match="was not made by make_demo_data"):
        make_demo_data.make_cohort(tmp_path, 1, SETTINGS, fresh=fresh)
    assert real.read_bytes() == b"a real scan"


def test_fresh_deletes_only_what_the_command_made(tmp_path):
    make_demo_data.make_cohort(tmp_path, 2, SETTINGS)
    shutil.rmtree(tmp_path / "derivatives")
    added = [tmp_path / "sub-0001" / "anat" / "sub-0001_FLAIR.nii.gz", tmp_path / "sub-pilot" / "anat" / "sub-pilot_T1w.json"]
    added[1].parent.mkdir(parents=True)
    for path in added:
        path.write_text("{}")
    table = make_demo_data.make_cohort(tmp_path, 1, SETTINGS | {"seed": 6}, fresh=True)
    assert list(table["participant_id"]) == ["sub-0001"] and all(path.is_file() for path in added)
    assert not (tmp_path / "sub-0002").exists()


@pytest.mark.parametrize("fresh", [False, True])
def test_columns_and_rows_that_were_added_to_the_table_stay(tmp_path, fresh):
    make_demo_data.make_cohort(tmp_path, 2, SETTINGS)
    path = tmp_path / "participants.tsv"
    table = pd.read_csv(path, sep="\t").assign(site=["A", "B"])
    (tmp_path / "sub-pilot").mkdir()
    others = pd.DataFrame({"participant_id": ["sub-pilot", "sub-gone"], "age": [50, 60], "site": ["C", "D"]})
    pd.concat([table, others]).to_csv(path, sep="\t", index=False, na_rep="n/a")
    description = json.loads((tmp_path / "participants.json").read_text())
    (tmp_path / "participants.json").write_text(json.dumps(description | {"site": {"Description": "where"}}))
    make_demo_data.make_cohort(tmp_path, 1, SETTINGS | ({"seed": 6} if fresh else {}), fresh=fresh)
    after = pd.read_csv(path, sep="\t", keep_default_na=False, dtype=str).set_index("participant_id")
    assert list(after.columns) == [*table.columns[1:]]
    own = {"sub-0001": "n/a"} if fresh else {"sub-0001": "A", "sub-0002": "B"}
    assert dict(after["site"]) == own | {"sub-pilot": "C"} and after.loc["sub-pilot", "sex"] == "n/a"
    assert json.loads((tmp_path / "participants.json").read_text()) == description | {"site": {"Description": "where"}}


def test_fresh_replaces_a_cohort_of_other_settings(tmp_path):
    make_demo_data.make_cohort(tmp_path, 2, SETTINGS)
    before = (tmp_path / "sub-0001/anat/sub-0001_T1w.nii.gz").read_bytes()
    notes = tmp_path / "sub-real" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("not demo data")
    table = make_demo_data.make_cohort(tmp_path, 1, SETTINGS | {"seed": 6}, fresh=True)
    assert list(table["participant_id"]) == ["sub-0001"] and len(image_paths(tmp_path)) == 2
    assert (tmp_path / "sub-0001/anat/sub-0001_T1w.nii.gz").read_bytes() != before and notes.exists()


def test_wide_covariates_are_spread_and_the_two_volumes_are_independent():
    table = draws()
    log_ventricles = np.log(table["ventricles_ml"])
    assert abs(np.corrcoef(log_ventricles, table["brain_fraction"])[0, 1]) < 0.1
    assert table["ventricles_ml"].quantile([0, 0.5, 1]).tolist() == pytest.approx([8, 34.6, 150], rel=0.1)
    assert table["brain_fraction"].between(1144 / 1902, 1794 / 1902).mean() > 0.97
    correlation = table.drop(columns="sex").corr()
    assert correlation.loc["age_years", "ventricles_ml"] > 0.2
    assert correlation.loc["age_years", "brain_fraction"] < -0.2
    assert correlation.loc["male", "icv_ml"] > 0.5 and correlation.loc["male", "ventricles_ml"] > 0.05


@pytest.mark.parametrize("arguments", [["--spacing_mm", "3"], ["--subjects", "0"], ["--workers", "0"], ["--seed", "-1"]])
def test_impossible_options_are_refused_before_anything_is_written(tmp_path, arguments, capsys):
    with pytest.raises(SystemExit):
        make_demo_data.main([str(tmp_path / "new"), *arguments])
    assert arguments[0] in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_bids_validator_accepts_the_cohort(cohort):
    assert bids_validator.problems(cohort) == []


# The same head with another covariate


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Folders of `--change` by the covariate that changes."""
    folders = {}
    for name, amount in (("ventricles_ml", "30"), ("age", "15")):
        folders[name] = tmp_path_factory.mktemp(name)
        make_demo_data.main([str(folders[name]), "--subjects", "3", "--seed", "5", "--workers", "1", "--change", name, amount])
    return folders


def both(folder, pattern):
    files = [sorted((folder / cohort).glob(pattern)) for cohort in ("original", "changed")]
    return [[np.asarray(nib.load(file).dataobj) for file in own] for own in files]


@pytest.mark.parametrize(("name", "amount", "tolerance"), [("ventricles_ml", 30, 0.1), ("age", 15, 1e-6)])
def test_only_the_named_covariate_changes(pairs, name, amount, tolerance):
    original, changed = (pd.read_csv(pairs[name] / cohort / "participants.tsv", sep="\t") for cohort in ("original", "changed"))
    others = [column for column in original if column != name]
    pd.testing.assert_frame_equal(original[others], changed[others], atol=0.5, rtol=0)
    assert (changed[name] - original[name]).abs().to_numpy() == pytest.approx(amount, abs=tolerance)


def test_pairs_of_another_change_stay_as_they_are(pairs):
    """The original was extended before the changed cohort refused."""
    folder, before = pairs["age"], len(list(pairs["age"].rglob("*.nii.gz")))
    again = [str(folder), "--subjects", "9", "--seed", "5", "--workers", "1"]
    with pytest.raises(ValueError, match="changed holds a demo cohort made with changed .* instead of .*Name another folder"):
        make_demo_data.main([*again, "--change", "age", "3"])
    with pytest.raises(ValueError, match=f"{folder} holds pairs of --change original and changed"):
        make_demo_data.main(again)
    assert len(list(folder.rglob("*.nii.gz"))) == before


def test_the_original_is_the_head_of_an_ordinary_cohort_and_the_noise_of_the_changed_head_is_the_same(pairs, tmp_path):
    make_demo_data.make_cohort(tmp_path, 1, SETTINGS)
    usual = next(tmp_path.glob("sub-*/anat/*_T1w.nii.gz"))
    assert usual.read_bytes() == (pairs["age"] / "original" / usual.relative_to(tmp_path)).read_bytes()
    labels = both(pairs["ventricles_ml"], "derivatives/labels/*/anat/*_dseg.nii.gz")
    for before, after, *own in zip(*both(pairs["ventricles_ml"], "*/anat/*_T1w.nii.gz"), *labels):
        air = (own[0] == 0) & (own[1] == 0)
        assert np.corrcoef(before[air], after[air])[0, 1] > 0.99  # of noise, which is all that air has
        white = (own[0] == own[1]) & np.isin(own[0], (4, 5))
        assert np.abs(before - after)[white].mean() < 0.04 < np.abs(before - after)[own[0] != own[1]].mean()


def test_age_changes_the_signs_of_age_but_hardly_the_labels(pairs):
    labels = zip(*both(pairs["age"], "derivatives/labels/*/anat/*_dseg.nii.gz"))
    assert all(0 < (before != after).mean() < 0.02 for before, after in labels)
    for before, after in zip(*both(pairs["age"], "*/anat/*_T1w.nii.gz")):
        assert np.abs(before - after).max() > 0.1


def test_a_change_goes_down_where_no_head_may_be_larger():
    old = Person(80.0, "F", 1300.0, 0.7, 140.0)
    assert make_demo_data.change(old, "age", 10).age_years == 70
    assert make_demo_data.change(old, "ventricles_ml", 30).ventricles_ml == 110
    assert make_demo_data.change(old, "brain_normalised_ml", 95.1).brain_fraction == pytest.approx(0.75)
    narrow = Person(60.0, "F", 1000.0, 0.86, 60.0)
    assert make_demo_data.change(narrow, "ventricles_ml", 30).ventricles_ml == 90
    assert make_demo_data.change(narrow, "ventricles_ml", 45).ventricles_ml == 15  # larger ones leave no room for other CSF
    with pytest.raises(ValueError, match="--change ventricles_ml 80 takes some heads out of the range"):
        make_demo_data.change(narrow, "ventricles_ml", 80)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["sex", "1"], "--change takes age, ventricles_ml, brain_normalised_ml, got 'sex'"),
        (["age", "-5"], "--change age needs a number above 0, got '-5'"),
        (["age", "old"], "--change age needs a number above 0, got 'old'"),
        (["ventricles_ml", "200"], "takes some heads out of the range that is simulated"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        make_demo_data.main([str(tmp_path / "out"), "--subjects", "3", "--change", *change])
    assert not (tmp_path / "out").exists()
