"""Label maps are found or refused, and each process makes its share of the missing images."""

import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny_spade
from phantom_maps import TABLE, grid, phantom, save_map

from spade_fusion_bundle.scripts.data.derivative import Derivative, map_identity
from spade_fusion_bundle.scripts.generation import label_maps


def names(path):
    return [(item["participant_id"], item["session_id"]) for item in label_maps.find_maps(path)]


def test_maps_are_found_in_files_folders_patterns_and_bids(tmp_path):
    def touch(*parts):
        return save_map(tmp_path.joinpath(*parts), np.ones((2, 3, 4), np.uint8), np.eye(4))

    one = touch("flat", "training_seg_02.nii.gz")
    touch("flat", "training_seg_01.nii")
    assert names(one) == [("sub-trainingseg02", None)]
    assert names(tmp_path / "flat") == [("sub-trainingseg01", None), ("sub-trainingseg02", None)]
    touch("bids", "derivatives", "labels", "sub-1", "anat", "sub-1_dseg.nii.gz")
    touch("bids", "sub-2", "ses-b", "anat", "sub-2_ses-b_space-T1w_dseg.nii.gz")
    touch("bids", "sub-1", "anat", "sub-1_T1w.nii.gz")
    assert names(tmp_path / "bids") == [("sub-1", None), ("sub-2", "ses-b")]
    assert names(f"{tmp_path}/**/*space-T1w_dseg.nii.gz") == [("sub-2", "ses-b")]


def test_maps_of_freesurfer_have_the_name_of_the_subject(tmp_path):
    for subject in ("bert", "sub-02_ses-1"):
        path = tmp_path / subject / "mri" / "aparc+aseg.mgz"
        path.parent.mkdir(parents=True)
        nib.save(nib.MGHImage(np.ones((2, 3, 4), np.int32), np.eye(4)), path)
    assert names(f"{tmp_path}/*/mri/aparc+aseg.mgz") == [("sub-bert", None), ("sub-02", "ses-1")]
    assert names(tmp_path / "bert" / "mri") == [("sub-bert", None)]


def test_images_may_go_into_the_data_set_of_the_maps_but_not_over_it(tmp_path):
    path = tmp_path / "derivatives" / "labels" / "sub-1" / "anat" / "sub-1_dseg.nii.gz"
    path.parent.mkdir(parents=True)
    save_map(path, np.full((4, 5, 6), 3, np.uint8), np.eye(4))
    maps = label_maps.find_maps(tmp_path)
    shutil.copytree(tmp_path / "derivatives" / "labels", tmp_path / "derivatives" / "synthetic")
    description = tmp_path / "derivatives" / "synthetic" / "dataset_description.json"
    description.write_text('{"Name": "x", "GeneratedBy": [{"Name": "spade_fusion_bundle"}]}')
    assert label_maps.find_maps(tmp_path) == maps
    with pytest.raises(ValueError, match="label_maps and output_dir are one folder"):
        label_maps.find_maps(tmp_path, tmp_path / "derivatives" / "..")


def test_two_maps_of_one_name_are_refused(tmp_path):
    for name in ("sub-1_desc-aseg_dseg", "sub-1_dseg"):
        save_map(tmp_path / "sub-1" / "anat" / f"{name}.nii.gz", np.ones((2, 3, 4), np.uint8), np.eye(4))
    with pytest.raises(ValueError, match="sub-1_dseg.nii.gz: would be written as sub-1, and so would .*desc-aseg.*pattern"):
        label_maps.find_maps(tmp_path)


def test_runs_and_acquisitions_of_one_participant_become_images_of_their_own(tmp_path):
    """They were refused, because each would have been written as sub-1."""
    entities = ["run-1", "run-2", "acq-fast_run-1", "acq-fast_rec-x_run-2", "ses-b_run-1"]
    for name in entities:
        folder = tmp_path / "sub-1" / ("ses-b" if name.startswith("ses") else "") / "anat"
        save_map(folder / f"sub-1_{name}_dseg.nii.gz", np.ones((2, 3, 4), np.uint8), np.eye(4))
    rows = label_maps.rows(label_maps.find_maps(tmp_path), variants=2)
    files = [Derivative(tmp_path / "made", TABLE).image_file(row).relative_to(tmp_path / "made").as_posix() for row in rows]
    expected = [f"sub-1{v}/anat/sub-1{v}_{name}_T1w.nii.gz" for name in entities[:3] for v in ("", "v01")]
    expected += [f"sub-1{v}/anat/sub-1{v}_acq-fast_run-2_T1w.nii.gz" for v in ("", "v01")]
    expected += [f"sub-1{v}/ses-b/anat/sub-1{v}_ses-b_run-1_T1w.nii.gz" for v in ("", "v01")]
    assert sorted(files) == sorted(expected) and len({row["seed"] for row in rows}) == 10


def test_a_variant_that_is_named_like_another_map_is_refused():
    maps = [{"image": f"{name}.nii", "participant_id": name, "session_id": None} for name in ("sub-a", "sub-av01")]
    assert len(label_maps.rows(maps)) == 2
    with pytest.raises(ValueError, match="sub-av01.nii: would be written as sub-av01"):
        label_maps.rows(maps, variants=2)


def test_no_maps_are_a_clear_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no label maps there. Give a NIfTI file"):
        label_maps.find_maps(tmp_path)
    with pytest.raises(ValueError, match="Add --label_maps"):
        label_maps.find_maps(None)
    (tmp_path / "A.NII.GZ").touch()
    with pytest.raises(ValueError, match=r"A.NII.GZ: the name must end in .nii, .nii.gz, .mgz, .mgh .lower case"):
        label_maps.find_maps(tmp_path / "A.NII.GZ")


def test_bad_headers_are_refused_together(tmp_path, derivative):
    ones = np.ones((4, 5, 6), np.uint8)
    save_map(tmp_path / "good.nii.gz", ones, np.eye(4))
    save_map(tmp_path / "four.nii.gz", np.ones((4, 5, 6, 2), np.uint8), np.eye(4))
    save_map(tmp_path / "nowhere.nii.gz", ones, np.eye(4), code=0)
    (tmp_path / "text.nii.gz").write_text("no NIfTI")
    rows = label_maps.rows(label_maps.find_maps(tmp_path, tmp_path / "out"))
    with pytest.raises(ValueError, match="3 of 4 label maps cannot be used") as caught:
        label_maps.pending(rows, derivative, TABLE, {"WeightsSHA256": "ab"}, partial_maps=True)
    for words in (
        r"four.nii.gz: has 4 dimensions",
        "nowhere.nii.gz: has neither a qform nor an sform",
        "text.nii.gz: is not a NIfTI",
    ):
        assert words in str(caught.value)


def write_cohort(folder):
    """Three participants with a map each, in two splits."""
    affine, shape = grid("LIA", (2, 2, 2))
    for name in ("sub-1", "sub-2", "sub-3"):
        save_map(folder / "derivatives" / "fs" / name / "anat" / f"{name}_dseg.nii.gz", phantom(shape), affine)
    (folder / "participants.tsv").write_text("participant_id\tsplit\nsub-1\ttrain\nsub-2\ttest\nsub-3\ttrain\n")
    return folder


def test_only_maps_of_a_split_are_taken(tmp_path):
    maps = label_maps.find_maps(write_cohort(tmp_path), split="train")
    assert [item["participant_id"] for item in maps] == ["sub-1", "sub-3"]
    assert len(label_maps.find_maps(tmp_path)) == 3


def test_capitals_of_a_split_do_not_matter_and_other_words_are_no_split(tmp_path, caplog):
    """Maps with the split Train were left out without a word."""
    table = write_cohort(tmp_path) / "participants.tsv"
    table.write_text("participant_id\tsplit\nsub-1\tTrain\nsub-2\tn/a\nsub-3\ttrain\n")
    assert [item["participant_id"] for item in label_maps.find_maps(tmp_path, split="train")] == ["sub-1", "sub-3"]
    assert "1 label maps, such as" in caplog.text and "sub-2_dseg.nii.gz, have no split" in caplog.text


def test_a_split_that_nobody_is_in_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is in the split 'validation'. There are: test, train"):
        label_maps.find_maps(write_cohort(tmp_path), split="validation")
    (tmp_path / "participants.tsv").unlink()
    with pytest.raises(ValueError, match=r"split 'train': no participants.tsv with a column split is in a folder above"):
        label_maps.find_maps(tmp_path, split="train")


def test_an_empty_split_is_not_listed_among_those_that_there_are(tmp_path):
    """None and "train" could not be sorted."""
    write_cohort(tmp_path).joinpath("participants.tsv").write_text("participant_id\tsplit\nsub-1\ttrain\nsub-2\tn/a\n")
    with pytest.raises(FileNotFoundError, match="is in the split 'test'. There are: train$"):
        label_maps.find_maps(tmp_path, split="test")


def test_a_pattern_chooses_among_the_maps_of_a_split(tmp_path, caplog):
    """fMRIPrep writes two maps for each participant. Its own folder may have a participants.tsv without splits."""
    write_cohort(tmp_path)
    for path in sorted(tmp_path.glob("derivatives/*/*/anat/*.nii.gz")):
        for entity in ("aseg", "aparcaseg"):
            shutil.copy(path, path.with_name(path.name.replace("_dseg", f"_desc-{entity}_dseg")))
        path.unlink()
    (tmp_path / "derivatives" / "fs" / "participants.tsv").write_text("participant_id\nsub-1\n")
    pattern = f"{tmp_path}/derivatives/*/sub-*/anat/*_desc-aseg_dseg.nii.gz"
    one = tmp_path / "derivatives" / "fs" / "sub-1" / "anat" / "sub-1_desc-aseg_dseg.nii.gz"
    for some in (pattern, one):
        found = label_maps.find_maps(some, split="train")
        assert found[0]["participant_id"] == "sub-1" and all("desc-aseg" in item["image"] for item in found)
    assert len(label_maps.find_maps(pattern, split="train")) == 2 and not caplog.records
    (tmp_path / "participants.tsv").write_text("participant_id\tsplit\nsub-1\ttrain\n")
    assert len(label_maps.find_maps(pattern, split="train")) == 1
    assert "2 label maps, such as" in caplog.text and "have no split (train, fusion, validation, test) in" in caplog.text


def test_another_table_of_names_makes_the_images_again(maps, derivative):
    def left():
        rows = label_maps.pending(label_maps.rows(maps), derivative, TABLE, {"WeightsSHA256": "ab"}, partial_maps=True)
        for row in rows:
            derivative.write(row, np.full((4, 5, 6), 0.5), np.full((4, 5, 6), 3))
        return len(rows)

    assert (left(), left()) == (3, 0)
    names = Path(maps[0]["image"]).with_name("dseg.tsv")
    names.write_text("index\tname\n3\tright cerebral cortex\n")
    assert (left(), left()) == (3, 0)
    names.unlink()
    assert left() == 3


# Which images


@pytest.fixture
def maps(tmp_path):
    for number in range(3):
        save_map(tmp_path / "maps" / f"m{number}.nii.gz", np.full((4, 5, 6), 3 + number, np.uint8), np.eye(4))
    return label_maps.find_maps(tmp_path / "maps")


@pytest.fixture
def derivative(tmp_path):
    return Derivative(tmp_path / "out", TABLE)


def test_shards_share_the_rows_and_make_each_once(maps, derivative):
    rows, given = label_maps.rows(maps, variants=3), (derivative, TABLE, {"WeightsSHA256": "ab"})
    alone = label_maps.pending(rows, *given, partial_maps=True)
    shards = [label_maps.pending(rows, *given, shard=shard, partial_maps=True) for shard in ("1/2", "2/2")]
    assert [len(shard) for shard in shards] == [5, 4]
    assert sorted(map(str, [*shards[0], *shards[1]])) == sorted(map(str, alone))


def test_a_map_is_not_read_again_for_a_finished_image_unless_it_changed(maps, derivative, monkeypatch):
    def left():
        pending = label_maps.pending(label_maps.rows(maps), derivative, TABLE, {"WeightsSHA256": "ab"}, partial_maps=True)
        return [row["participant_id"] for row in pending]

    for row in label_maps.pending(label_maps.rows(maps), derivative, TABLE, {"WeightsSHA256": "ab"}, partial_maps=True):
        derivative.write(row, np.full((4, 5, 6), 0.5), np.full((4, 5, 6), 3))
    read = []
    monkeypatch.setattr(label_maps, "map_identity", lambda path: read.append(path) or map_identity(path))
    assert left() == [] and not read
    content = Path(maps[1]["image"]).read_bytes()
    Path(maps[1]["image"]).write_bytes(content)  # another date, the same content
    assert left() == [] and read == [maps[1]["image"]]
    save_map(Path(maps[2]["image"]), np.full((4, 5, 6), 9, np.uint8), np.eye(4))
    assert left() == ["sub-m2"]


def test_finished_rows_are_left_out_until_something_about_them_changes(maps, derivative, caplog):
    def left(weights="ab", **settings):
        rows = label_maps.rows(maps, 2, **settings)
        pending = label_maps.pending(rows, derivative, TABLE, {"WeightsSHA256": weights}, partial_maps=True)
        return [row["participant_id"] for row in pending]

    everything = ["sub-m0", "sub-m0v01", "sub-m1", "sub-m1v01", "sub-m2", "sub-m2v01"]
    pending = label_maps.pending(label_maps.rows(maps, 2), derivative, TABLE, {"WeightsSHA256": "ab"}, partial_maps=True)
    for row in list(pending)[1:4]:
        derivative.write(row, np.full((4, 5, 6), 0.5), np.full((4, 5, 6), 3))
    assert left() == ["sub-m0", "sub-m2", "sub-m2v01"]
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    assert left(seed=1) == left(deformation_mm=4.0) == ["sub-m0", "sub-m0v01", "sub-m1v01", "sub-m2", "sub-m2v01"]
    assert left("cd") == everything
    assert "such as" in caplog.text and "sub-m0v01_T1w.nii.gz" in caplog.text
    save_map(Path(maps[1]["image"]), np.full((4, 5, 6), 9, np.uint8), np.eye(4))
    assert left() == ["sub-m0", "sub-m1", "sub-m1v01", "sub-m2", "sub-m2v01"]


def test_seeds_depend_on_name_variant_and_base_seed_alone(maps):
    def seeds(rows):
        return {row["participant_id"]: row["provenance"]["Seed"] for row in rows}

    few, many = seeds(label_maps.rows(maps[1:], variants=2)), seeds(label_maps.rows(maps, variants=4))
    assert few.items() <= many.items()
    assert many["sub-m0"] is None
    assert len(set(many.values())) == 1 + 9
    assert not set(seeds(label_maps.rows(maps, 4, seed=1)).values()) & set(many.values()) - {None}
    assert None not in seeds(label_maps.rows(maps, deform_all=True)).values()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"variants": 2, "deformation_mm": 0}, "would be copies of one image"),
        ({"variants": 0}, "variants must be at least 1"),
        ({"deformation_mm": 30}, "from 0 to half of the scale"),
    ],
)
def test_variants_that_are_none_are_refused(settings, words, maps):
    with pytest.raises(ValueError, match=words):
        label_maps.rows(maps, **settings)


def test_the_table_of_participants_limits_the_maps_of_the_spade_bundle(tmp_path):
    folder = tiny_spade.write_dataset(tmp_path / "data", ("train", "train", "validation"))
    table = tmp_path / "some.tsv"
    table.write_text("participant_id\nsub-03\n01\n")
    assert [item["participant_id"] for item in label_maps.find_maps(folder, participants=table)] == ["sub-01", "sub-03"]
    table.write_text("participant_id\nsub-03\nsub-09\n")
    with pytest.raises(FileNotFoundError, match="1 of 2 participants, such as sub-09, have no label map in"):
        label_maps.find_maps(folder, participants=table)
    table.write_text("subject\nsub-03\n")
    with pytest.raises(ValueError, match="no column 'participant_id'"):
        label_maps.find_maps(folder, participants=table)


def test_a_deformation_without_deformed_maps_is_named(monkeypatch, caplog):
    monkeypatch.setattr(label_maps, "changed", lambda config: {"deformation_mm": 10, "seed": 1})
    label_maps.warn_without_effect(variants=2, deform_all=False)
    label_maps.warn_without_effect(variants=1, deform_all=True)
    assert not caplog.records
    label_maps.warn_without_effect(variants=1, deform_all=False)
    assert [record.message.split(":")[0] for record in caplog.records] == ["deformation_mm is 10, but has no effect here"]
