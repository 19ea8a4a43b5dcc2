"""A datalist says which pairs there are and how they are split; its faults are named by entry."""

import json

import numpy as np
import pytest
from tiny_pairs import (
    LABELS,
    MAP,
    MAP_5,
    entry,
    names,
    read,
    refusal,
    save,
)


@pytest.fixture
def datalist(cohort):
    def write(**splits):
        path = cohort / "datalist.json"
        path.write_text(json.dumps(splits))
        return path

    return write


def test_a_datalist_says_pairs_and_splits(cohort, datalist):
    path = datalist(training=[entry(1), entry(5)], fusion=[entry(6)], validation=[entry(7)], test=[entry(8)])
    shares = read(cohort, datalist=path)
    assert [item["participant_id"] for item in shares["training"]] == ["sub-01", "sub-05"]
    assert names(shares["fusion"]) == {"sub-06"} and names(shares["test"]) == {"sub-08"}
    assert shares["validation"][0]["label"] == str(cohort / LABELS / "sub-07" / "anat" / "sub-07_dseg.nii.gz")


def test_a_datalist_without_validation_is_split(cohort, datalist):
    path = datalist(training=[entry(n) for n in (1, 5, 6, 7)], fusion=[entry(9)], test=[entry(8)])
    shares = read(cohort, datalist=path)
    assert [len(shares[split]) for split in ("training", "fusion", "validation", "test")] == [3, 1, 1, 1]
    assert names(shares["fusion"]) == {"sub-09"} and names(shares["test"]) == {"sub-08"}


def test_ids_of_a_datalist_keep_a_participant_together(cohort, datalist):
    rows = [entry(n, participant_id=f"twin{n // 7}") for n in (1, 5, 6, 7, 8, 9)]
    shares = read(cohort, datalist=datalist(training=rows), fusion_fraction=0)
    assert names(shares["training"]) | names(shares["validation"]) == {"sub-twin0", "sub-twin1"}
    assert len(shares["training"]) == len(shares["validation"]) == 3


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"training": [entry(1), entry(1)], "validation": [entry(1)]}, "validation[0]: sub-01 is also in training. Keep"),
        ({"training": [entry(1), entry(1)]}, "datalist.json training[0]. Give each pair once"),
        ({"training": [entry(1), {"image": "a.nii"}]}, 'training[1]: expected {"image": path, "label": path}, got {\'image\''),
        ({"training": [entry(1), entry(5), entry(1)]}, "sub-01_T1w.nii.gz is also in training[0]. Keep one"),
        ({"training": [entry(1)], "val": [entry(5)]}, "unknown split 'val'. Name it training, fusion, validation or test"),
        ({"training": [entry(1, label="lost_dseg.nii")]}, "lost_dseg.nii: No such file"),
        ({"training": [entry(1, image="lost_T1w.nii")]}, "lost_T1w.nii: No such file"),
        ({"training": []}, 'expected {"training": [{"image": path, "label": path}]'),
    ],
)
def test_faults_of_a_datalist_are_named_by_entry(cohort, datalist, splits, message):
    assert message in refusal(cohort, datalist=datalist(**splits))


def test_a_label_map_in_place_of_its_scan_is_refused(cohort, datalist):
    save(cohort / MAP_5, np.where(MAP > 60, 0, MAP))
    path = datalist(training=[entry(5, image=entry(5)["label"])])
    message = refusal(cohort, datalist=path, partial_maps=True)
    assert "sub-05_dseg.nii.gz: has the same voxels as its label map" in message


def test_a_datalist_alone_has_paths_relative_to_its_folder(cohort, datalist):
    path = datalist(training=[entry(1)])
    assert read(None, datalist=path) == read(cohort, datalist=path)
    with pytest.raises(ValueError, match="no data set was given. Add --dataset_dir"):
        read(None)


def test_a_datalist_that_is_missing_or_not_json_is_refused(cohort):
    with pytest.raises(FileNotFoundError, match="lost.json: no such file"):
        read(cohort, datalist=cohort / "lost.json")
    (cohort / "half.json").write_text('{"training": [')
    assert "half.json: this is not JSON" in refusal(cohort, datalist=cohort / "half.json")
    (cohort / "list.json").write_text("[]")
    expected = 'list.json: expected {"training": [{"image": path, "label": path}], "validation": [...]}, got list'
    assert expected in refusal(cohort, datalist=cohort / "list.json")


def test_a_missing_datalist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^datalist {tmp_path / 'a' / 'list.json'}: no such file"):
        read(None, datalist=tmp_path / "a" / "list.json")
