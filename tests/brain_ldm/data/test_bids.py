"""Scans are found, split and checked, and each problem is named."""

import hashlib
import json
import re
import shutil
import warnings

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from tiny_images import SPACING_MM, VOLUME, rotated, save, with_voxel
from torch.utils.data import default_collate

from brain_ldm_bundle.scripts.data import bids
from brain_ldm_bundle.scripts.data.covariates import Covariate, CovariateSchema
from brain_ldm_bundle.scripts.data.measured_rows import column_problems

SCHEMA = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")


def write_cohort(folder, participants):
    """The second participant has two sessions, the third two runs."""
    lines = ["participant_id\tage\tsex\tventricles_ml\tbrain_normalised_ml\thandedness"]
    for number in range(1, participants + 1):
        name = f"sub-{number:02}"
        lines.append(f"{name}\t{50 + number}\t{'FM'[number % 2]}\t{30 + number}\t1500\tright")
        for file in {
            2: ["ses-1/anat/sub-02_ses-1_T1w.nii.gz", "ses-2/anat/sub-02_ses-2_T1w.nii"],
            3: ["anat/sub-03_run-1_T1w.nii.gz", "anat/sub-03_run-2_T1w.nii.gz"],
        }.get(number, [f"anat/{name}_T1w.nii.gz"]):
            save(folder / name / file, VOLUME + number)
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    sessions = "session_id\tage\tventricles_ml\tbrain_normalised_ml\nses-1\t52\t32\t1500\nses-2\t57.5\t41\t1450\n"
    (folder / "sub-02" / "sub-02_sessions.tsv").write_text(sessions)
    save(folder / "derivatives" / "sub-01" / "anat" / "sub-01_desc-other_T1w.nii.gz")
    save(folder / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    return folder


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return write_cohort(tmp_path_factory.mktemp("sound") / "cohort", 12)


@pytest.fixture
def dataset(sound, tmp_path):
    """Twelve participants."""
    return shutil.copytree(sound, tmp_path / "cohort")


@pytest.fixture
def few(tmp_path):
    """Three participants, for tests of sessions and tables."""
    return write_cohort(tmp_path / "few", 3)


def read(dataset, **options):
    return bids.read_dataset(dataset, SCHEMA, **{"spacing_mm": SPACING_MM, **options})


def refusal(dataset, **options):
    with pytest.raises(ValueError) as error:
        read(dataset, **options)
    return str(error.value)


def names(items):
    return {item["participant_id"] for item in items}


# What is found


def test_every_run_and_session_is_an_item_and_nothing_else_is(dataset):
    shares = read(dataset)
    images = sorted(item["image"] for share in shares.values() for item in share)
    assert len(images) == 14 and len(set(images)) == 14
    assert not any("derivatives" in image or "T2w" in image for image in images)


def test_items_carry_scaled_covariates_in_the_schemas_order(dataset):
    item = next(item for share in read(dataset).values() for item in share if item["participant_id"] == "sub-07")
    assert set(item) == {"image", "participant_id", "covariates", "voxels_sha256"}
    expected = [1, (57 - 44) / 38, (37 - 6.99568) / (171.375 - 6.99568), (1500 - 1144.24) / (1793.91 - 1144.24)]
    assert item["covariates"] == pytest.approx(expected)


def test_no_participant_is_in_two_splits(dataset, tmp_path):
    for seed in range(5):
        shares = read(dataset, seed=seed, cache_file=tmp_path / "checked.json", validation_fraction=0.5)
        assert not names(shares["training"]) & names(shares["validation"])
        assert len(names(shares["validation"])) == 6


def test_the_split_depends_on_the_seed_and_the_ids_alone(dataset, tmp_path):
    def validation(seed=0):
        return names(read(dataset, validation_fraction=0.3, seed=seed, cache_file=tmp_path / "checked.json")["validation"])

    first = validation()
    assert validation() == first
    assert any(validation(seed) != first for seed in (1, 2))
    table = dataset / "participants.tsv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *rows[::-1]]) + "\n")
    assert validation() == first


def test_a_split_column_is_honoured(dataset):
    table = dataset / "participants.tsv"
    header, *rows = table.read_text().splitlines()
    splits = ["validation", "validation", "test"] + ["train"] * 9
    rows = [f"{row}\t{split}" for row, split in zip(rows, splits, strict=True)]
    table.write_text("\n".join([f"{header}\tsplit", *rows]) + "\n")
    shares = read(dataset)
    assert names(shares["validation"]) == {"sub-01", "sub-02"} and names(shares["test"]) == {"sub-03"}
    table.write_text(table.read_text().replace("\ttest", "\tval"))
    assert "sub-03: split must be train, validation or test, got 'val'" in refusal(dataset)


def test_participants_without_image_and_images_without_row_are_listed(dataset):
    shutil.rmtree(dataset / "sub-05")
    save(dataset / "sub-99" / "anat" / "sub-99_T1w.nii.gz")
    message = refusal(dataset)
    assert "1 participants in" in message and ": sub-05. Add or remove" in message
    assert "1 folders with images but without a row" in message and ": sub-99." in message


def test_a_file_named_for_another_participant_is_refused(dataset):
    save(dataset / "sub-05" / "anat" / "sub-06_T1w.nii.gz")
    assert "begin with sub-05_" in refusal(dataset)


def test_a_copy_of_a_training_scan_is_not_held_out(dataset):
    """Under another participant's name it passed as one that the model never saw."""
    original, copied = (dataset / name / "anat" / f"{name}_T1w.nii.gz" for name in ("sub-01", "sub-04"))
    save(copied, nib.load(original).get_fdata())
    table = dataset / "participants.tsv"
    header, *rows = table.read_text().splitlines()
    splits = ["train"] * 3 + ["test"] * 3 + ["validation"] * 6
    table.write_text("\n".join([f"{header}\tsplit", *(f"{row}\t{split}" for row, split in zip(rows, splits))]) + "\n")
    message = refusal(dataset)
    assert f"(1 scans in two splits):\n{copied} (test) is a copy of {original} (training). Remove one of them" in message
    table.write_text(table.read_text().replace("\ttest", "\ttrain"))
    assert len(read(dataset)["training"]) == 8


@pytest.mark.parametrize("maker", ["brain_ldm_bundle", "spade_fusion_bundle"])
def test_volumes_that_a_bundle_made_are_no_data_set_of_scans(few, maker):
    (few / "dataset_description.json").write_text(json.dumps({"Name": "x", "GeneratedBy": [{"Name": maker}]}))
    with pytest.raises(ValueError, match=f"few: holds synthetic volumes, which {maker} made. Give a data set of scans"):
        read(few)


def test_a_synthetic_volume_among_scans_is_refused_but_simulated_scans_are_not(few):
    (few / "sub-01" / "anat" / "sub-01_T1w.json").write_text('{"Simulated": true, "Synthetic": true}')
    assert len(read(few)["training"]) > 0
    (few / "sub-01" / "anat" / "sub-01_T1w.json").write_text('{"Synthetic": true}')
    with pytest.raises(ValueError, match="sub-01_T1w.nii.gz: is synthetic, as sub-01_T1w.json says, one of 1 such"):
        read(few)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        read(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="participants.tsv: no such table"):
        read(tmp_path)


# Datalists


@pytest.fixture
def datalist(dataset):
    values = {"age": 60, "sex": "F", "ventricles_ml": 30, "brain_normalised_ml": 1500}

    def write(**splits):
        path = dataset / "datalist.json"
        content = {key: [{"image": image, **values, **more} for image, more in rows] for key, rows in splits.items()}
        path.write_text(json.dumps(content))
        return path

    return write


IMAGE_1, IMAGE_4, IMAGE_5 = (f"sub-{n}/anat/sub-{n}_T1w.nii.gz" for n in ("01", "04", "05"))


def test_a_datalist_says_images_covariates_and_splits(dataset, datalist):
    path = datalist(training=[(IMAGE_1, {}), (IMAGE_4, {"age": 63})], validation=[(IMAGE_5, {})])
    shares = read(dataset, datalist=path)
    assert read(None, datalist=path) == shares  # its paths are relative to its folder
    assert [item["participant_id"] for item in shares["training"]] == ["sub-01", "sub-04"]
    assert names(shares["validation"]) == {"sub-05"}
    assert shares["training"][1]["covariates"][1] == pytest.approx(0.5)


def test_a_datalist_without_validation_is_split(dataset, datalist):
    shares = read(dataset, datalist=datalist(training=[(IMAGE_1, {}), (IMAGE_4, {})], test=[(IMAGE_5, {})]))
    assert len(shares["training"]) == len(shares["validation"]) == 1 and names(shares["test"]) == {"sub-05"}


def test_faults_of_a_datalist_are_named_by_entry(dataset, datalist):
    path = datalist(training=[(IMAGE_1, {"sex": "x"}), (IMAGE_4, {})], validation=[(IMAGE_4, {})])
    message = refusal(dataset, datalist=path)
    assert "datalist.json training[0]: sex must be 'F' or 'M', got 'x'" in message
    assert "datalist.json validation[0]: sub-04 is also in training" in message
    assert "unknown split 'val'" in refusal(dataset, datalist=datalist(training=[(IMAGE_1, {})], val=[(IMAGE_4, {})]))
    twice = refusal(dataset, datalist=datalist(training=[(IMAGE_1, {}), (IMAGE_1, {"age": 70})]))
    assert "training[1]: " in twice and f"{IMAGE_1} has other covariates in " in twice
    with pytest.warns(UserWarning, match=f"datalist.json: .*{IMAGE_1} is listed several times"):
        thrice = read(dataset, datalist=datalist(training=[(IMAGE_1, {})] * 3, validation=[(IMAGE_4, {})]))
    assert len(thrice["training"]) == 3
    with pytest.warns(UserWarning, match="datalist.json: 'fold' of its entries has no effect. Put the scans of one fold"):
        read(dataset, datalist=datalist(training=[(IMAGE_1, {"fold": 0}), (IMAGE_4, {"fold": 1})]))
    path = datalist(training=[("sub-01/lost.nii.gz", {})])
    assert "lost.nii.gz: No such file" in refusal(dataset, datalist=path)
    path.write_text("[]")
    expected = 'datalist.json: expected {"training": [{"image": path, covariates}], "validation": [...]}, got list'
    assert expected in refusal(dataset, datalist=path)


# Sessions


def of_second(dataset):
    """Age and ventricles of the two sessions of sub-02, by session."""
    items = [item for share in read(dataset).values() for item in share if item["participant_id"] == "sub-02"]
    covariates = {item["image"].split("_")[-2]: item["covariates"] for item in items}
    return {session: (44 + 38 * scaled[1], 6.99568 + 164.37932 * scaled[2]) for session, scaled in covariates.items()}


def test_a_session_has_its_own_values(few):
    """A follow-up five years later got the age of the baseline."""
    found = of_second(few)
    assert found["ses-1"] == pytest.approx((52, 32)) and found["ses-2"] == pytest.approx((57.5, 41))


def test_a_row_for_each_session_in_participants_tsv_is_read(few):
    (few / "sub-02" / "sub-02_sessions.tsv").unlink()
    table = few / "participants.tsv"
    header, first, second, *rows = table.read_text().splitlines()
    assert second == "sub-02\t52\tF\t32\t1500\tright"
    rows = [f"{header}\tsession_id", *(f"{row}\tn/a" for row in (first, *rows))]
    table.write_text("\n".join([*rows, "sub-02\t52\tF\t32\t1500\tright\t1", "sub-02\t57.5\tF\t41\t1450\tright\tses-2"]))
    assert of_second(few)["ses-2"] == pytest.approx((57.5, 41))


@pytest.mark.parametrize(
    ("sessions", "message"),
    [
        (None, r"sub-02 has 2 sessions \(ses-1, ses-2\), but age, ventricles_ml, .* only once.*sub-02/sub-02_sessions.tsv"),
        ("session_id\tacq_time\nses-1\tx\nses-2\ty\n", r"sub-02 has 2 sessions"),
        (
            "session_id\tage\n1\t52\n2\t57\n",
            r"2 sessions .*but ventricles_ml, brain_normalised_ml only once, in .*sessions.tsv",
        ),
        ("session_id\tage\n1\t52\n2\tn/a\n", r"2 sessions .*but ventricles_ml"),
        (
            "session_id\tage\tventricles_ml\tbrain_normalised_ml\n1\t52\t30\t1500\n",
            "no row for sub-02 ses-2, only rows for ses-1",
        ),
        ("session_id\tage\n1\t52\n1\t57\n", r"sessions.tsv row 3: session_id ses-1 is also in row 2"),
        ("session_id\tage\n../1\t52\n", r"sessions.tsv row 2: session_id must be 'ses-' and letters or digits"),
        ("age\n52\n", r"sessions.tsv: no column 'session_id'"),
        ("participant_id\tsession_id\tage\n03\t1\t52\n", r"sessions.tsv row 2: participant_id is 03, but .* of sub-02"),
        ("participant_id\tsession_id\tage\nsub-03\t1\t52\n", r"sessions.tsv row 2: participant_id is sub-03, but .* of sub-02"),
        (
            'Session_ID , AGE,ventricles_ml,brain_normalised_ml\n1,52,30,1500\n2,"57,5",40,1450\n',
            r"sessions.tsv row 3, .*participants.tsv row 3: age in years must be a number, decimals after a point, got '57,5'",
        ),
        (
            "session_id\tage\tventricles_ml\tbrain_normalised_ml\n1\t52\t30\t1500\n2\tNA\t40\t1450\n",
            r"sessions.tsv row 3, .*: age is missing \('NA'\)",
        ),
    ],
)
def test_sessions_without_their_own_values_are_refused(few, sessions, message):
    path = few / "sub-02" / "sub-02_sessions.tsv"
    path.unlink() if sessions is None else path.write_text(sessions)
    assert re.search(message, refusal(few))


def test_a_single_session_has_the_values_of_its_participant(few):
    (few / "sub-02" / "sub-02_sessions.tsv").write_text("session_id\tage\nses-2\tn/a\n")
    shutil.rmtree(few / "sub-02" / "ses-1")
    assert of_second(few)["ses-2"] == pytest.approx((52, 32))
    (few / "sub-02" / "sub-02_sessions.tsv").unlink()
    assert of_second(few)["ses-2"] == pytest.approx((52, 32))


def test_a_participant_is_in_one_split(few):
    table = few / "participants.tsv"
    table.write_text(
        "participant_id\tsession_id\tage\tsex\tventricles_ml\tbrain_normalised_ml\tsplit\n"
        "sub-02\tses-1\t52\tF\t32\t1500\ttrain\nsub-02\tses-2\t57\tF\t41\t1450\ttest\n"
    )
    assert "sub-02: its sessions have the splits test, train. Keep one" in refusal(few)


def test_a_scan_in_the_folder_of_another_session_is_refused(few):
    folder = few / "sub-02" / "ses-2" / "anat"
    (folder / "sub-02_ses-2_T1w.nii").rename(folder / "sub-02_ses-3_T1w.nii")
    assert "sub-02_ses-3_T1w.nii: the file's name is another session's. It should hold ses-2" in refusal(few)


# Volumes


@pytest.mark.parametrize(
    ("volumes", "message"),
    [
        ("40\t1200\t1230", r"row 2: brain_ml and ventricles_ml are 1240 mL together, more than icv_ml, 1230 mL"),
        ("40\t1200000\t1500", r"row 2: brain_ml would be 1.2e\+06 mL.*looks like mm3"),
        ("40\t1200\t1.5", r"row 2: icv_ml would be 1.5 mL.*like L for mL"),
        ("40\tn/a\t1,5", r"row 2: icv_ml must be a number, decimals after a point, got '1,5'"),
    ],
)
def test_volumes_that_no_head_has_are_refused(few, volumes, message):
    shutil.rmtree(few / "derivatives")
    for path in [path for path in few.glob("sub-*") if path.name != "sub-01"]:
        shutil.rmtree(path)
    header = "participant_id\tage\tsex\tbrain_normalised_ml\tventricles_ml\tbrain_ml\ticv_ml\n"
    (few / "participants.tsv").write_text(f"{header}sub-01\t50\tF\t1500\t{volumes}\n")
    assert re.search(message, refusal(few))


def test_ventricles_in_percent_of_the_head_are_refused(dataset):
    table = dataset / "participants.tsv"
    table.write_text(re.sub(r"\t(\d\d)\t1500", lambda match: f"\t{int(match[1]) / 15:.2f}\t1500", table.read_text()))
    (dataset / "sub-02" / "sub-02_sessions.tsv").unlink()
    shutil.rmtree(dataset / "sub-02" / "ses-1")
    assert re.search(r"participants.tsv: the median of ventricles_ml is 2.\d+, which looks like percent", refusal(dataset))


# Faults of images


def test_all_faults_are_reported_at_once_and_counted(dataset):
    for path in dataset.glob("sub-*/anat/*_T1w.nii.gz"):
        save(path, with_voxel(np.nan))
    save(dataset / "sub-04" / "anat" / "sub-04_T1w.nii.gz", affine=rotated(9))
    shutil.rmtree(dataset / "sub-06")
    message = refusal(dataset)
    assert "(12 problems)" in message
    assert message.count("NaN") == 10 and message.count("oblique") == 1 and "sub-06" in message


def test_at_most_twenty_faults_are_listed(few):
    for run in range(30):
        save(few / "sub-01" / "anat" / f"sub-01_run-{run}_T1w.nii", with_voxel(np.nan))
    message = refusal(few)
    assert "(30 problems)" in message and len(message.split("\n")) == 22 and "and 10 more" in message


def test_training_without_scans_to_validate_with_is_refused():
    data = {"training": [{}, {}], "validation": [], "test": []}
    with pytest.raises(ValueError, match="0 scans in the split validation, at least 1 needed. Mark some in the column split"):
        bids.refuse_empty(data)
    bids.refuse_empty({**data, "validation": [{}]})
    with pytest.raises(ValueError, match="1 scan in the split validation, at least 2 needed"):
        bids.refuse_empty({**data, "validation": [{}]}, world_size=2)


def test_the_fingerprint_is_of_the_data_and_not_of_their_place():
    def of(folder="a", age=0.5, split="training", name="sub-1_T1w.nii.gz"):
        items = [{"image": f"/{folder}/{name}", "covariates": [age]}]
        return bids.fingerprint({"training": [], "validation": [], split: items})

    assert of() == of(folder="b") == of(name="sub-1_T1w.nii") == of(name="sub-1_T1w.mgz")  # unpacked or converted
    assert len({of(), of(age=0.6), of(split="validation"), of(name="sub-1_ce-GAD_T1w.nii")}) == 4
    rows = [["training", "sub-1_T1w.nii.gz", [0.5]]]
    assert of() == hashlib.sha256(json.dumps(rows).encode()).hexdigest()  # as in states of earlier versions


def test_the_volumes_of_a_folder_need_no_table(dataset):
    (dataset / "participants.tsv").unlink()
    found = bids.find_volumes(dataset, SPACING_MM)
    assert [item["participant_id"] for item in found] == [f"sub-{n:02}" for n in (1, 2, 2, 3, 3, *range(4, 13))]
    assert all("derivatives" not in item["image"] and item["image"].endswith(("_T1w.nii", "_T1w.nii.gz")) for item in found)


def test_volumes_of_several_folders_are_found_above_them(dataset, tmp_path):
    (tmp_path / "several").mkdir()
    shutil.move(dataset, tmp_path / "several" / "first")
    assert len(bids.find_volumes(tmp_path / "several", SPACING_MM)) == 14


def test_volumes_form_a_batch_if_only_the_first_has_a_remark(dataset):
    path = dataset / "sub-01" / "anat" / "sub-01_T1w.nii.gz"
    image = nib.Nifti1Image(nib.load(path).get_fdata(), nib.load(path).affine)
    image.set_sform(image.affine, code="scanner")
    nib.save(image, path)
    with pytest.warns(UserWarning, match="1 images, such as .*sub-01_T1w.nii.gz, have the NIfTI code 1"):
        found = bids.find_volumes(dataset, SPACING_MM)
    assert default_collate(found)["image"] == [item["image"] for item in found]


def test_a_folder_without_volumes_or_with_damaged_ones_is_refused(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        bids.find_volumes(tmp_path / "absent", SPACING_MM)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no sub-"):
        bids.find_volumes(tmp_path / "empty", SPACING_MM)
    damaged = dataset / "sub-05" / "anat" / "sub-05_T1w.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"1 problem\):\n.*sub-05_T1w.nii.gz"):
        bids.find_volumes(dataset, SPACING_MM)


def test_a_covariate_without_any_value_is_named():
    """The column had a misspelt name, and the model was trained without the covariate."""
    schema = CovariateSchema.from_dict({"covariates": [{"name": "tbv", "range": [1000, 2000], "missing": "allowed"}]})
    with pytest.warns(UserWarning, match="participants.tsv: no row has a value of tbv. Is the column's name right"):
        column_problems([{"tbv": None}, {"tbv": None}], schema, "participants.tsv")


@pytest.mark.parametrize(
    ("ages", "message"),
    [
        ([99.0] * 5 + [61.0, 64.0, 64.0], "p.tsv: age is 99, its highest value, in 5 rows. If this stands for a missing value"),
        ([65.0] * 5, "p.tsv: age is 65.0 in every row, so a model cannot learn its effect"),
        ([60.0, 61.0, 62.0, 63.0, 63.0, 63.0], ""),
        ([65.0] * 3, ""),  # too few to say
        ([64.0, 64.0, 65.0, 65.0, 65.0, 65.0], ""),
    ],
)
def test_ages_that_look_like_a_code_or_do_not_vary_get_a_warning(ages, message):
    schema = CovariateSchema((Covariate("age", "years", range=(44, 82), limits=(18, 120)),))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        column_problems([{"age": age} for age in ages], schema, "p.tsv")
    found = [str(one.message) for one in caught if "lies outside" not in str(one.message)]
    assert len(found) == bool(message) and "".join(found).startswith(message)


def test_units_of_a_table_of_sessions_are_checked(dataset):
    (dataset / "sub-02" / "sub-02_sessions.json").write_text('{"age": {"Units": "months"}}')
    assert "sub-02_sessions.json: age is in 'months', but years are expected" in refusal(dataset)
    (dataset / "sub-02" / "sub-02_sessions.json").rename(dataset / "sessions.json")
    assert "sessions.json: age is in 'months', but years are expected" in refusal(dataset)


def test_a_table_of_sessions_with_another_ending_is_not_ignored(dataset):
    table = dataset / "sub-02" / "sub-02_sessions.tsv"
    table.rename(table.with_suffix(".csv"))
    assert "sub-02_sessions.csv: would be ignored. Save it as sub-02_sessions.tsv" in refusal(dataset)


def test_a_path_of_a_datalist_may_begin_at_the_home_folder(dataset, datalist, monkeypatch):
    monkeypatch.setenv("HOME", str(dataset))
    path = datalist(training=[(f"~/{IMAGE_1}", {}), (IMAGE_4, {})], validation=[(IMAGE_5, {})])
    assert read(None, datalist=path)["training"][0]["image"] == str(dataset / IMAGE_1)


def test_a_missing_datalist_is_named(dataset):
    missing = dataset / "nowhere" / "list.json"
    with pytest.raises(FileNotFoundError, match=f"^datalist {missing}: no such file"):
        read(None, datalist=missing)
