"""Pairs are shared out by participants, and too few for a stage are refused."""

import pytest
from tiny_pairs import add, names, read, refusal, write_table

from spade_fusion_bundle.scripts.data.splits import fingerprint, refuse_too_few


def test_no_participant_is_in_two_splits(cohort, tmp_path):
    for seed in range(5):
        shares = read(cohort, seed=seed, cache_file=tmp_path / "checked.json", validation_fraction=0.25, fusion_fraction=0.3)
        found = [names(shares[split]) for split in ("training", "fusion", "validation")]
        assert [len(participants) for participants in found] == [6, 3, 3]
        assert len(set.union(*found)) == 12
        assert not shares["test"]


def test_a_small_fraction_is_one_participant_and_none_is_none(cohort):
    shares = read(cohort, validation_fraction=0.01, fusion_fraction=0.01)
    assert len(names(shares["validation"])) == len(names(shares["fusion"])) == 1
    shares = read(cohort, validation_fraction=0, fusion_fraction=0)
    assert not shares["validation"] and not shares["fusion"] and len(shares["training"]) == 14


def test_the_shares_depend_on_the_seed_and_the_ids_alone(cohort, tmp_path):
    def split(**options):
        shares = read(cohort, validation_fraction=0.3, cache_file=tmp_path / "checked.json", **options)
        return {name: names(items) for name, items in shares.items()}

    first = split()
    assert split() == first
    assert any(split(seed=seed) != first for seed in (1, 2))
    for path in (cohort / "sub-01" / "anat").iterdir():  # files touched, dates changed: the same participants
        path.touch()
    assert split() == first


def test_a_split_column_is_honoured(cohort):
    write_table(cohort, {1: "validation", 2: "validation", 3: "test", 4: "fusion", 5: "fusion"}, newline="\r\n")
    shares = read(cohort)
    assert names(shares["validation"]) == {"sub-01", "sub-02"} and len(shares["validation"]) == 3
    assert names(shares["test"]) == {"sub-03"} and names(shares["fusion"]) == {"sub-04", "sub-05"}
    assert len(names(shares["training"])) == 7


def test_a_split_column_without_fusion_has_it_taken_from_training(cohort):
    write_table(cohort, {1: "validation", 2: "test"})
    shares = read(cohort, fusion_fraction=0.3)
    assert names(shares["validation"]) == {"sub-01"} and names(shares["test"]) == {"sub-02"}
    assert len(names(shares["fusion"])) == 3 and len(names(shares["training"])) == 7


def test_a_table_without_a_split_column_changes_nothing(cohort):
    shares = read(cohort)
    write_table(cohort, {}, header="participant_id\tage\tgroup")
    assert read(cohort) == shares


@pytest.mark.parametrize(
    ("cells", "header", "message"),
    [
        ({3: "val"}, "participant_id\tage\tsplit", "sub-03: split must be train, fusion, validation, test, got 'val'"),
        ({}, "subject\tage\tsplit", "no column 'participant_id'. It has: subject, age, split"),
        ({12: "train\nsub-12\t60\ttrain"}, "participant_id\tage\tsplit", "row 3: participant_id sub-12 is also in row 2"),
    ],
)
def test_faults_of_the_split_column_are_named(cohort, cells, header, message):
    write_table(cohort, cells, header)
    assert message in refusal(cohort)


def test_a_participant_without_a_row_is_refused_where_rows_say_the_split(cohort):
    add(cohort, "sub-99/anat/sub-99")
    write_table(cohort, {})
    assert "participants.tsv sub-99: split must be train, fusion, validation, test, got no row" in refusal(cohort)


def test_a_table_that_is_no_text_is_refused(cohort):
    (cohort / "participants.tsv").write_text("participant_id\tsplit\nsub-01\ttrain", encoding="utf-16-le")
    assert "participants.tsv: not encoded in UTF-8" in refusal(cohort)


def test_rows_of_another_length_matter_only_in_a_table_that_names_the_split(cohort):
    """Nothing else is read from the table. Rows that end before their last tabs kept a data set from training."""
    path = cohort / "participants.tsv"
    path.write_text("participant_id\tage\thand\nsub-01\t60\n")
    assert read(cohort)["training"]
    path.write_text("participant_id\tsplit\thand\n\nsub-01\ttrain\n")
    assert "participants.tsv row 3: 2 cells for 3 columns" in refusal(cohort)


def test_folds_are_balanced_over_participants_and_nobody_is_set_aside(cohort):
    shares = read(cohort, folds=3, validation_fraction=0.1)
    assert not shares["fusion"] and len(names(shares["validation"])) == 1
    fold_of = {}
    for item in shares["training"]:
        fold_of.setdefault(item["participant_id"], set()).add(item["fold"])
    assert all(len(folds) == 1 for folds in fold_of.values())  # both sessions, both runs
    sizes = [sum(folds == {fold} for folds in fold_of.values()) for fold in range(3)]
    assert sum(sizes) == 11 and max(sizes) - min(sizes) <= 1
    assert not any("fold" in item for item in shares["validation"])


def test_with_folds_those_named_for_fusion_are_shared_too(cohort):
    write_table(cohort, {1: "validation", 4: "fusion"})
    shares = read(cohort, folds=2)
    assert not shares["fusion"] and "sub-04" in names(shares["training"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_fraction": 1}, "validation_fraction must be at least 0 and below 1, got 1"),
        ({"fusion_fraction": -0.1}, "fusion_fraction must be at least 0 and below 1, got -0.1"),
        ({"folds": -1}, "folds must be 0 .* or at least 2, got -1"),
    ],
)
def test_fractions_and_folds_out_of_range_are_refused(cohort, options, message):
    with pytest.raises(ValueError, match=message):
        read(cohort, **options)


def data(training=4, fusion=1, validation=1, folds=0):
    def items(split, number):
        return [{"image": f"{split}{n}", "label": f"{split}{n}", "participant_id": f"sub-{split}{n}"} for n in range(number)]

    shares = {"training": items("a", training), "fusion": items("b", fusion), "validation": items("c", validation), "test": []}
    for number, item in enumerate(shares["training"] if folds else []):
        item["fold"] = number % folds
    return shares


@pytest.mark.parametrize(
    ("shares", "options", "message"),
    [
        (data(training=0), {}, "0 scans in the split training, at least 1 needed. Mark some in the column split"),
        (data(validation=0), {}, "0 scans in the split validation, at least 1 needed.*change --validation_fraction"),
        (data(fusion=0), {}, "0 scans in the split fusion, at least 1 needed.*change --fusion_fraction .or --folds"),
        (data(training=3), {"world_size": 4}, "3 scans in the split training, at least 4 needed"),
        (data(validation=1), {"world_size": 2}, "1 scan in the split validation, at least 2 needed"),
        (data(fusion=1, validation=2), {"world_size": 2}, "1 scan in the split fusion, at least 2 needed"),
        (data(folds=1), {"folds": 1}, "--folds 1 would leave no scans to train the GANs on"),
        (data(training=2, fusion=0, folds=3), {"folds": 3}, "2 participants in the split training for 3 folds. Lower"),
        (
            data(training=3, fusion=0, validation=2, folds=2),
            {"folds": 2, "world_size": 2},
            "1 scans inside or outside of fold 0 for 2 ranks",
        ),
    ],
)
def test_too_few_scans_for_a_stage_are_refused(shares, options, message):
    with pytest.raises(ValueError, match=message):
        refuse_too_few(shares, **options)


def test_enough_scans_are_accepted():
    refuse_too_few(data())
    refuse_too_few(data(fusion=0, folds=4), folds=4)
    refuse_too_few(data(fusion=2, validation=2), world_size=2)


def test_sessions_do_not_count_as_participants_of_the_folds():
    shares = data(training=4, fusion=0, folds=4)
    for item in shares["training"]:
        item["participant_id"] = "sub-same"
    with pytest.raises(ValueError, match="1 participant in the split training for 4 folds"):
        refuse_too_few(shares, folds=4)


def test_the_fingerprint_is_of_the_data_and_not_of_their_place():
    def of(folder="a", label="sub-1_dseg", split="training", ending=".nii.gz", **more):
        item = {"image": f"/{folder}/sub-1_T1w{ending}", "label": f"/{folder}/{label}{ending}"}
        item |= {"voxels_sha256": "0", "map_sha256": "0", **more}
        return fingerprint({"training": [], "fusion": [], split: [item]})

    assert of() == of(folder="b") == of(ending=".nii") == of(ending=".mgz")  # unpacked or converted
    assert len({of(), of(label="sub-1_desc-aseg_dseg"), of(split="fusion"), of(fold=0), of(fold=1)}) == 5
    assert of() != of(map_sha256="1")  # a corrected map; its scan is the same
    assert of() != of(voxels_sha256="1")  # a scan that was prepared again


def test_participants_without_a_split_are_split_by_the_seed(cohort):
    write_table(cohort, dict.fromkeys(range(3, 13), "n/a") | {1: "test", 2: "test"})
    shares = read(cohort)
    assert names(shares["test"]) == {"sub-01", "sub-02"}
    assert shares["training"] and shares["validation"] and shares["fusion"]
