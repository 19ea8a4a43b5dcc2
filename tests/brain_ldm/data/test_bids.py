"""Scans are found, split and checked, and each problem is named."""

import json
import shutil

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from tiny_images import SPACING_MM, VOLUME, rotated, save, with_voxel

from brain_ldm_bundle.scripts.data import bids
from brain_ldm_bundle.scripts.data.covariates import CovariateSchema

SCHEMA = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")


@pytest.fixture
def dataset(tmp_path):
    """Twelve participants, the second with two sessions and the third with two runs."""
    folder = tmp_path / "cohort"
    lines = ["participant_id\tage\tsex\tventricles_ml\tbrain_normalised_ml\thandedness"]
    for number in range(1, 13):
        name = f"sub-{number:02}"
        lines.append(f"{name}\t{50 + number}\t{'FM'[number % 2]}\t{30 + number}\t1500\tright")
        for file in {
            2: ["ses-1/anat/sub-02_ses-1_T1w.nii.gz", "ses-2/anat/sub-02_ses-2_T1w.nii"],
            3: ["anat/sub-03_run-1_T1w.nii.gz", "anat/sub-03_run-2_T1w.nii.gz"],
        }.get(number, [f"anat/{name}_T1w.nii.gz"]):
            save(folder / name / file, VOLUME + number)
    (folder / "participants.tsv").write_text("\n".join(lines) + "\n")
    save(folder / "derivatives" / "sub-01" / "anat" / "sub-01_desc-other_T1w.nii.gz")
    save(folder / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    return folder


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


def test_no_participant_is_in_two_splits(dataset):
    for seed in range(5):
        shares = read(dataset, seed=seed, validation_fraction=0.5)
        assert not names(shares["training"]) & names(shares["validation"])
        assert len(names(shares["validation"])) == 6


def test_the_split_depends_on_the_seed_and_the_ids_alone(dataset):
    validation = names(read(dataset, validation_fraction=0.3)["validation"])
    assert names(read(dataset, validation_fraction=0.3)["validation"]) == validation
    assert any(names(read(dataset, validation_fraction=0.3, seed=seed)["validation"]) != validation for seed in (1, 2))
    table = dataset / "participants.tsv"
    header, *rows = table.read_text().splitlines()
    table.write_text("\n".join([header, *rows[::-1]]) + "\n")
    assert names(read(dataset, validation_fraction=0.3)["validation"]) == validation


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
    path = datalist(training=[("sub-01/lost.nii.gz", {})])
    assert "lost.nii.gz: No such file" in refusal(dataset, datalist=path)
    path.write_text("[]")
    expected = 'datalist.json: expected {"training": [{"image": path, covariates}], "validation": [...]}, got list'
    assert expected in refusal(dataset, datalist=path)


# Faults of images


def test_all_faults_are_reported_at_once_and_counted(dataset):
    for path in dataset.glob("sub-*/anat/*_T1w.nii.gz"):
        save(path, with_voxel(np.nan))
    save(dataset / "sub-04" / "anat" / "sub-04_T1w.nii.gz", affine=rotated(9))
    shutil.rmtree(dataset / "sub-06")
    message = refusal(dataset)
    assert "(12 problems)" in message
    assert message.count("NaN") == 10 and message.count("oblique") == 1 and "sub-06" in message


def test_at_most_twenty_faults_are_listed(dataset):
    for run in range(30):
        save(dataset / "sub-01" / "anat" / f"sub-01_run-{run}_T1w.nii", with_voxel(np.nan))
    message = refusal(dataset)
    assert "(30 problems)" in message and len(message.split("\n")) == 22 and "and 10 more" in message


def test_training_without_scans_to_validate_with_is_refused():
    data = {"training": [{}, {}], "validation": [], "test": []}
    with pytest.raises(ValueError, match="0 scans in the split validation, at least 1 needed. Mark some in the column split"):
        bids.refuse_empty(data)
    bids.refuse_empty({**data, "validation": [{}]})
    with pytest.raises(ValueError, match="1 scans in the split validation, at least 2 needed"):
        bids.refuse_empty({**data, "validation": [{}]}, world_size=2)


def test_the_fingerprint_is_of_the_data_and_not_of_their_place():
    def of(folder="a", age=0.5, split="training"):
        items = [{"image": f"/{folder}/sub-1_T1w.nii.gz", "covariates": [age]}]
        return bids.fingerprint({"training": [], "validation": [], split: items})

    assert of() == of(folder="b")
    assert len({of(), of(age=0.6), of(split="validation")}) == 3


def test_the_volumes_of_a_folder_need_no_table(dataset):
    (dataset / "participants.tsv").unlink()
    found = bids.find_volumes(dataset, SPACING_MM)
    assert [item["participant_id"] for item in found] == [f"sub-{n:02}" for n in (1, 2, 2, 3, 3, *range(4, 13))]
    assert all("derivatives" not in item["image"] and item["image"].endswith(("_T1w.nii", "_T1w.nii.gz")) for item in found)


def test_a_folder_without_volumes_or_with_damaged_ones_is_refused(dataset, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        bids.find_volumes(tmp_path / "absent", SPACING_MM)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no sub-"):
        bids.find_volumes(tmp_path / "empty", SPACING_MM)
    damaged = dataset / "sub-05" / "anat" / "sub-05_T1w.nii.gz"
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"1 problems\):\n.*sub-05_T1w.nii.gz"):
        bids.find_volumes(dataset, SPACING_MM)
