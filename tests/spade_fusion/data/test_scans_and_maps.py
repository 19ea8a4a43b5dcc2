"""Pairs of scan and label map are found and split, and bad ones are refused before training."""

import json
import shutil
import warnings
import zlib

import nibabel as nib
import numpy as np
import pytest
import tiny_spade
from conftest import ROOT
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged

from spade_fusion_bundle.scripts.data import image_checks
from spade_fusion_bundle.scripts.data.labels import LabelTable, ToClassesd
from spade_fusion_bundle.scripts.data.map_reader import MapReader
from spade_fusion_bundle.scripts.data.prepared_pairs import pair_key
from spade_fusion_bundle.scripts.data.scans_and_maps import read_dataset
from spade_fusion_bundle.scripts.data.splits import fingerprint, refuse_too_few

TABLES = ROOT / "spade_fusion_bundle" / "configs" / "labels.json"
TABLE = LabelTable.from_file(TABLES, "freesurfer")
AFFINE = np.array([[-1.0, 0, 0, 5], [0, 0, 1.2, 6], [0, -0.9, 0, 7], [0, 0, 0, 1]])  # LIA
SCAN = np.random.default_rng(0).random((5, 6, 7), dtype=np.float32)
MAP = np.random.default_rng(1).choice(np.array([0, 2, 3, 41, 42, 515, 4, 7, 8, 10, 11, 12, 16, 17], np.int16), (5, 6, 7))
LABELS = "derivatives/synthseg"


def save(path, volume=SCAN, affine=AFFINE, code=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(volume, affine)
    image.set_sform(affine, code)
    image.set_qform(affine if code else None, code)
    nib.save(image, path)
    return path


def add(folder, name, labels=LABELS):
    """A scan and its map; `name` such as "sub-01/ses-1/anat/sub-01_ses-1"."""
    save(folder / f"{name}_T1w.nii.gz", SCAN + zlib.crc32(name.encode()) % 1000)  # nobody's scan is another's
    save(folder / labels / f"{name}_dseg.nii.gz", MAP)


@pytest.fixture(scope="module")
def sound_cohort(tmp_path_factory):
    """Twelve participants, the second with two sessions, the third with two runs, the fourth's map next to the scan."""
    folder = tmp_path_factory.mktemp("sound") / "cohort"
    for number in range(1, 13):
        name = f"sub-{number:02}"
        for entities in {2: ["ses-1", "ses-2"], 3: ["run-1", "run-2"]}.get(number, [""]):
            session = f"{entities}/" if entities.startswith("ses") else ""
            labels = "." if number == 4 else LABELS
            add(folder, f"{name}/{session}anat/{'_'.join(filter(None, [name, entities]))}", labels)
    save(folder / "sub-01" / "anat" / "sub-01_T2w.nii.gz")
    return folder


@pytest.fixture
def cohort(sound_cohort, tmp_path):
    return shutil.copytree(sound_cohort, tmp_path / "cohort")


@pytest.fixture
def few(sound_cohort, tmp_path):
    """The participants 4, 5 and 6 alone, for tests of a single file."""

    def others(folder, names):
        return [name for name in names if name.startswith("sub-") and name[:6] not in ("sub-04", "sub-05", "sub-06")]

    return shutil.copytree(sound_cohort, tmp_path / "few", ignore=others)


def read(folder, **options):
    return read_dataset(folder, TABLE, **options)


def refusal(folder, **options):
    with pytest.raises(ValueError) as error:
        read(folder, **options)
    return str(error.value)


def names(items):
    return {item["participant_id"] for item in items}


def pairs(shares):
    return {item["image"]: item["label"] for items in shares.values() for item in items}


# What is found


def test_every_scan_is_paired_with_its_own_map(cohort):
    shares = read(cohort)
    assert list(shares) == ["training", "fusion", "validation", "test"]
    found = pairs(shares)
    assert len(found) == 14
    for image, label in found.items():
        own = image.replace("_T1w", "_dseg")
        assert label == (own if "sub-04" in image else own.replace(str(cohort), str(cohort / LABELS)))
    assert set(shares["training"][0]) == {"image", "label", "participant_id", "voxels_sha256", "map_sha256"}


def test_a_map_of_another_space_or_description_name_is_found(cohort):
    """Entities that only derivatives have, such as space and desc, do not separate the map from its scan."""
    old = cohort / LABELS / "sub-03" / "anat" / "sub-03_run-2_dseg.nii.gz"
    new = old.rename(old.with_name("sub-03_run-2_space-orig_desc-aseg_dseg.nii.gz"))
    assert str(new) in pairs(read(cohort)).values()


def test_a_map_of_another_acquisition_is_not_taken(cohort):
    add(cohort, "sub-05/anat/sub-05_acq-fast")
    save(cohort / "sub-13" / "anat" / "sub-13_acq-fast_T1w.nii.gz")
    save(cohort / LABELS / "sub-13" / "anat" / "sub-13_acq-slow_dseg.nii.gz", MAP)
    (cohort / "sub-05" / "anat" / "sub-05_T1w.nii.gz").rename(cohort / "sub-05" / "anat" / "sub-05_acq-slow_T1w.nii.gz")
    plain = cohort / LABELS / "sub-05" / "anat" / "sub-05_dseg.nii.gz"
    plain.rename(plain.with_name("sub-05_acq-slow_dseg.nii.gz"))
    with pytest.warns(UserWarning, match="1 of 16 T1w scans in .*, such as sub-13_acq-fast_T1w.nii.gz, have no label map"):
        found = pairs(read(cohort))
    for speed in ("fast", "slow"):
        image = cohort / "sub-05" / "anat" / f"sub-05_acq-{speed}_T1w.nii.gz"
        assert found[str(image)].endswith(f"sub-05_acq-{speed}_dseg.nii.gz")


def test_two_maps_of_one_scan_are_listed_and_refused(few):
    save(few / "derivatives" / "freesurfer" / "sub-05" / "anat" / "sub-05_dseg.nii.gz", MAP)
    message = refusal(few)
    assert "sub-05_T1w.nii.gz: 2 label maps belong to it: derivatives/freesurfer/sub-05/anat/sub-05_dseg.nii.gz, " in message
    assert f"{LABELS}/sub-05/anat/sub-05_dseg.nii.gz. Say which one in a --datalist" in message and "(1 problem)" in message


def test_what_the_bundle_has_synthesised_there_is_no_training_data(few):
    before = read(few)
    made = few / "derivatives" / "synthetic"
    shutil.copytree(few / LABELS, made)
    with pytest.raises(ValueError, match="2 label maps belong to it"):
        read(few)
    (made / "dataset_description.json").write_text('{"Name": "x", "GeneratedBy": [{"Name": "spade_fusion_bundle"}]}')
    assert read(few) == before


def test_scans_without_a_map_are_left_out_with_one_warning(cohort):
    for number in ("06", "07"):
        shutil.rmtree(cohort / LABELS / f"sub-{number}")
    with pytest.warns(UserWarning, match="2 of 14 T1w scans .* such as sub-06_T1w.nii.gz, have no label map") as caught:
        shares = read(cohort)
    assert len(caught) == 1 and len(pairs(shares)) == 12


def test_a_sound_data_set_gives_no_warning(cohort):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(cohort)


@pytest.mark.parametrize("cached", [True, False])
def test_bright_ventricles_get_a_warning_with_both_means_in_each_run(tmp_path, cached):
    """A T2w that is named T1w would be learnt as a T1w."""
    tiny_spade.write_dataset(tmp_path, ("train", "train", "fusion", "validation"))
    path = tmp_path / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    scan = nib.load(path)
    values, table = scan.get_fdata(), LabelTable.from_file(TABLES, "demo")
    nib.save(nib.Nifti1Image(np.where(values < 60, 250, values), scan.affine, scan.header), path)
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"1 scans, such as {path} .ventricles 250, white matter 150., are brighter"):
            read_dataset(tmp_path, table, cache_file=tmp_path / "checked.json" if cached else None)


def test_volumes_that_the_bundle_made_are_no_data_set_of_scans(few):
    """It said that no scan has a label map, although each has one beside it."""
    (few / "dataset_description.json").write_text('{"Name": "x", "GeneratedBy": [{"Name": "spade_fusion_bundle"}]}')
    assert f"{few}: holds synthetic volumes, which spade_fusion_bundle made. Give a data set of scans" in refusal(few)


def test_a_scan_without_its_brain_is_refused(tmp_path):
    """As if a mask was applied the wrong way round: the skull remains."""
    tiny_spade.write_dataset(tmp_path, ("train", "train", "fusion", "validation"))
    path = tmp_path / "sub-02" / "anat" / "sub-02_T1w.nii.gz"
    scan = nib.load(path)
    labels = np.asarray(nib.load(tmp_path / "derivatives" / "blobs" / "sub-02" / "anat" / "sub-02_dseg.nii.gz").dataobj)
    nib.save(nib.Nifti1Image(np.where((labels > 1) & (labels < 16), 0, scan.get_fdata()), scan.affine, scan.header), path)
    with pytest.raises(ValueError, match=f"{path}: is 0 wherever its label map .* has labels of the brain. Give the scan"):
        read_dataset(tmp_path, LabelTable.from_file(TABLES, "demo"))


def test_a_data_set_without_any_map_is_refused(cohort):
    shutil.rmtree(cohort / "derivatives")
    shutil.rmtree(cohort / "sub-04")
    message = "none of 13 T1w scans has a label map, such as derivatives/ANY_NAME/sub-01/anat/sub-01_dseg.nii.gz"
    assert message in refusal(cohort)


def test_a_folder_without_scans_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such folder"):
        read(tmp_path / "nowhere")
    assert "no T1w scans" in refusal(tmp_path)


def test_a_file_named_for_another_participant_is_refused(few):
    save(few / "sub-05" / "anat" / "sub-06_T1w.nii.gz")
    assert "begin with sub-05_" in refusal(few)


# Shares


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


def write_table(folder, cells, header="participant_id\tage\tsplit", newline="\n"):
    """Cells of the column split by number of participant; the others are in training."""
    rows = [f"sub-{number:02}\t60\t{cells.get(number, 'train')}" for number in range(12, 0, -1)]
    path = folder / "participants.tsv"
    path.write_text(newline.join([header, *rows]) + newline, encoding="utf-8")
    return path


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


# Datalists


def entry(number, **more):
    name = f"sub-{number:02}/anat/sub-{number:02}"
    return {"image": f"{name}_T1w.nii.gz", "label": f"{LABELS}/{name}_dseg.nii.gz", **more}


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


def test_a_scan_without_contrast_inside_its_map_is_refused(cohort):
    label_map = nib.load(cohort / MAP_5)
    labels = np.asanyarray(label_map.dataobj)
    scan = np.where(labels > 0, 0, np.random.default_rng(0).integers(0, 99, labels.shape)).astype(np.float32)
    path = next((cohort / "sub-05").rglob("*_T1w.nii*"))
    nib.save(nib.Nifti1Image(scan, label_map.affine), path)
    assert f"{path}: is 0 wherever its label map " in refusal(cohort)


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


# Files that are refused


def with_voxel(volume, value):
    volume = volume.copy()
    volume[3, 4, 5] = value
    return volume


SCAN_5 = "sub-05/anat/sub-05_T1w.nii.gz"
MAP_5 = f"{LABELS}/sub-05/anat/sub-05_dseg.nii.gz"
MOVED = AFFINE + [[0, 0, 0, 0.01], [0] * 4, [0] * 4, [0] * 4]


@pytest.mark.parametrize(
    ("file", "image", "message"),
    [
        (SCAN_5, {"volume": np.stack([SCAN, SCAN], -1)}, "has 4 dimensions (5, 6, 7, 2); three are needed"),
        (SCAN_5, {"volume": SCAN[0]}, "has 2 dimensions (6, 7); three are needed"),
        (SCAN_5, {"volume": with_voxel(SCAN, np.nan)}, "has 1 voxels that are NaN or infinite"),
        (SCAN_5, {"volume": with_voxel(SCAN, np.inf)}, "has 1 voxels that are NaN or infinite"),
        (SCAN_5, {"volume": np.full_like(SCAN, 7)}, "is 7 everywhere"),
        (SCAN_5, {"volume": SCAN.astype(np.complex64)}, "has voxels of type complex64"),
        (SCAN_5, {"code": 0}, "has neither a qform nor an sform"),
        (MAP_5, {"volume": np.stack([MAP, MAP], -1)}, "has 4 dimensions (5, 6, 7, 2); three are needed"),
        (MAP_5, {"volume": MAP[0]}, "has 2 dimensions (6, 7)"),
        (MAP_5, {"volume": np.zeros_like(MAP)}, "the label map is empty, all 210 voxels are background"),
        (MAP_5, {"volume": with_voxel(MAP, 999)}, "label values 999 (1 voxels) are not in the label table 'freesurfer'"),
        (MAP_5, {"volume": with_voxel(MAP.astype(np.float32), 2.5)}, "1 of 210 voxels are not integers, such as 2.5"),
        (MAP_5, {"volume": with_voxel(MAP.astype(np.float32), np.nan)}, "1 voxels are NaN or infinite"),
        (MAP_5, {"volume": 255 * (MAP > 0).astype(np.uint8)}, "its values 255 ("),
        (MAP_5, {"volume": np.where(MAP > 4, 0, MAP // 2 * 2)}, "its values 2 ("),  # a tumour: 2, 4
        (MAP_5, {"volume": MAP, "code": 0}, "has neither a qform nor an sform"),
        (MAP_5, {"volume": MAP[:, :, :6]}, "has the shape (5, 6, 6), not (5, 6, 7) as the scan "),
        (MAP_5, {"volume": MAP.transpose(2, 1, 0)}, "has the shape (7, 6, 5), not (5, 6, 7) as the scan "),
        (MAP_5, {"volume": MAP, "affine": MOVED}, "has the affine [[-1.0, 0.0, 0.0, 5.01], "),
        (MAP_5, {"volume": MAP, "affine": np.diag([1.0, 1, 1, 1])}, "has the affine [[1.0, 0.0, 0.0, 0.0], "),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(few, file, image, message):
    path = save(few / file, **image)
    refused = refusal(few)
    assert f"{path}: {message}" in refused and "(1 problem)" in refused and refused.count(str(path)) == 1


def test_another_grid_is_answered_with_both_and_the_remedy(few):
    save(few / MAP_5, MAP, MOVED)
    message = refusal(few)
    assert "not [[-1.0, 0.0, 0.0, 5.0], [0.0, 0.0, 1.2, 6.0], [0.0, -0.9, 0.0, 7.0]] as the scan" in message
    assert f"{few / SCAN_5}. Resample the map to the scan with nearest neighbour" in message


@pytest.mark.parametrize("file", [SCAN_5, MAP_5])
def test_an_affine_without_volume_is_refused(few, file):
    image = nib.load(few / file)
    image = nib.Nifti1Image(np.asarray(image.dataobj), None, image.header)
    image.header["srow_z"] = 0
    image.to_filename(few / file)
    assert f"{few / file}: has an affine that cannot be inverted" in refusal(few)


@pytest.mark.parametrize("file", [SCAN_5, MAP_5])
@pytest.mark.parametrize("lost_bytes", [4, 100])
def test_a_truncated_file_is_refused(few, file, lost_bytes):
    """Four bytes are missing after the last voxel: nibabel alone reads such a file without an error."""
    path = save(few / file, np.tile(SCAN if file == SCAN_5 else MAP, (1, 1, 300)))
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    assert f"{path}: cannot be read to its end" in refusal(few)


@pytest.mark.parametrize("file", [SCAN_5, MAP_5])
def test_a_file_that_is_no_nifti_is_refused(few, file):
    (few / file).write_bytes(b"no image")
    assert f"{few / file}: is not a NIfTI image that can be read" in refusal(few)


def test_a_trailing_axis_of_a_map_is_accepted_and_read_as_the_same_classes(few):
    save(few / MAP_5, MAP[..., None])
    save(few / f"{LABELS}/sub-06/anat/sub-06_dseg.nii.gz", MAP.astype(np.float32))
    found = pairs(read(few))
    load = Compose([LoadImaged("label", reader=MapReader(TABLE)), EnsureChannelFirstd("label"), ToClassesd("label", TABLE)])
    for number in ("05", "06"):
        label = load({"label": found[str(few / f"sub-{number}/anat/sub-{number}_T1w.nii.gz")]})["label"]
        np.testing.assert_array_equal(label.numpy(), TABLE.classes(MAP, "map")[None])


def test_an_affine_within_rounding_is_accepted(few):
    save(few / MAP_5, MAP, AFFINE + 0.05 * (MOVED - AFFINE))
    read(few)


def test_all_faults_are_reported_at_once_and_counted(few):
    save(few / SCAN_5, with_voxel(SCAN, np.nan))
    save(few / MAP_5, with_voxel(MAP, 999))
    save(few / "sub-06" / "anat" / "sub-07_T1w.nii.gz")
    message = refusal(few)
    assert "cannot be used for training yet (3 problems):" in message
    assert message.count("NaN") == message.count("999") == message.count("begin with sub-06_") == 1


def test_at_most_twenty_faults_are_listed(few):
    for run in range(3, 33):
        add(few, f"sub-05/anat/sub-05_run-{run}")
        save(few / LABELS / "sub-05" / "anat" / f"sub-05_run-{run}_dseg.nii.gz", with_voxel(MAP, 999))
    message = refusal(few)
    assert "(30 problems)" in message and len(message.split("\n")) == 22 and "... and 10 more of these" in message


def test_a_copy_of_a_training_scan_in_another_split_is_refused(cohort):
    original, copied = (cohort / f"sub-{number}" / "anat" / f"sub-{number}_T1w.nii.gz" for number in ("05", "07"))
    shutil.copy(original, copied)
    write_table(cohort, {1: "validation", 4: "fusion", 7: "test"})
    message = refusal(cohort)
    assert f"(1 scans in two splits):\n{copied} (test) is a copy of {original} (training). Remove one of them" in message


# The cache


def test_sound_pairs_are_read_once(few, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "checked.json"
    path = save(few / MAP_5, with_voxel(MAP, 999))
    whole, seen = image_checks.nifti.read_whole, []
    monkeypatch.setattr(
        image_checks.nifti, "read_whole", lambda path, **options: (seen.append(path), whole(path, **options))[1]
    )
    assert "999" in refusal(few, cache_file=cache)
    assert len(seen) == 6
    for _ in range(2):
        seen.clear()
        assert "999" in refusal(few, cache_file=cache)
        assert set(seen) == {str(path), str(few / SCAN_5)}
    save(path, MAP)
    read(few, cache_file=cache)
    seen.clear()
    read(few, cache_file=cache)
    assert not seen
    assert [file.name for file in cache.parent.iterdir()] == ["checked.json"]
    save(path, with_voxel(MAP, 998))  # of a sound pair
    assert f"{path}: label values 998" in refusal(few, cache_file=cache)


def test_partial_maps_are_accepted_on_request_only_in_spite_of_the_cache(few, tmp_path):
    cache = tmp_path / "cache" / "checked.json"
    save(few / MAP_5, np.where(MAP < 4, MAP, 0))
    assert len(pairs(read(few, cache_file=cache, partial_maps=True))) == 3
    message = refusal(few, cache_file=cache)
    assert "mean cerebral cortex, cerebral white matter in the label table 'freesurfer'" in message
    assert "at least 9 of its 18 brain structures" in message and "add --partial_maps True" in message


def test_names_are_checked_again_in_spite_of_the_cache(few, tmp_path):
    cache = tmp_path / "cache" / "checked.json"
    read(few, cache_file=cache)
    (few / LABELS / "dseg.tsv").write_text("index\tname\n17\tLeft-Amygdala\n")
    message = refusal(few, cache_file=cache)
    assert "(2 problems)" in message and "17 is 'Left-Amygdala' there and 'left hippocampus' in the table" in message


def test_the_prepared_pair_of_other_names_is_another(few):
    (item,) = (item for item in sum(read(few).values(), []) if item["participant_id"] == "sub-05")
    before = pair_key(item, [])
    (few / LABELS / "dseg.tsv").write_text("index\tname\n17\tLeft-Hippocampus\n")
    assert pair_key(item, []) != before


def test_a_data_set_of_freesurfer_files_is_read(few):
    for path in (few / SCAN_5, few / MAP_5):
        image = nib.load(path)
        nib.save(nib.MGHImage(np.asarray(image.dataobj), image.affine), path.with_name(path.name.replace(".nii.gz", ".mgz")))
        path.unlink()
    image, label = ((few / path).with_suffix("").with_suffix(".mgz") for path in (SCAN_5, MAP_5))
    assert pairs(read(few))[str(image)] == str(label)


def test_another_table_is_checked_in_spite_of_the_cache(few, tmp_path):
    read(few, cache_file=tmp_path / "checked.json")
    with pytest.raises(ValueError, match="are not in the label table 'demo'"):
        read_dataset(few, LabelTable.from_file(TABLES, "demo"), cache_file=tmp_path / "checked.json")


def test_a_damaged_cache_only_costs_time(few, tmp_path):
    cache = tmp_path / "checked.json"
    cache.write_text('{"half')
    read(few, cache_file=cache)
    assert len(json.loads(cache.read_text())) == 3


# Too few


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
        (data(validation=1), {"world_size": 2}, "1 scans in the split validation, at least 2 needed"),
        (data(fusion=1, validation=2), {"world_size": 2}, "1 scans in the split fusion, at least 2 needed"),
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
    with pytest.raises(ValueError, match="1 participants in the split training for 4 folds"):
        refuse_too_few(shares, folds=4)


def test_the_fingerprint_is_of_the_data_and_not_of_their_place():
    def of(folder="a", label="sub-1_dseg", split="training", **more):
        item = {"image": f"/{folder}/sub-1_T1w.nii.gz", "label": f"/{folder}/{label}.nii.gz"}
        item |= {"voxels_sha256": "0", "map_sha256": "0", **more}
        return fingerprint({"training": [], "fusion": [], split: [item]})

    assert of() == of(folder="b")
    assert len({of(), of(label="sub-1_desc-aseg_dseg"), of(split="fusion"), of(fold=0), of(fold=1)}) == 5
    assert of() != of(map_sha256="1")  # a corrected map; its scan is the same
    assert of() != of(voxels_sha256="1")  # a scan that was prepared again


def test_participants_without_a_split_are_split_by_the_seed(cohort):
    write_table(cohort, dict.fromkeys(range(3, 13), "n/a") | {1: "test", 2: "test"})
    shares = read(cohort)
    assert names(shares["test"]) == {"sub-01", "sub-02"}
    assert shares["training"] and shares["validation"] and shares["fusion"]


def test_a_missing_datalist_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"^datalist {tmp_path / 'a' / 'list.json'}: no such file"):
        read(None, datalist=tmp_path / "a" / "list.json")


def test_a_table_without_the_brain_is_refused(cohort):
    entries = [{**entry, "brain": False} for entry in TABLE.to_dict()["classes"]]
    with pytest.raises(ValueError, match="the label table 'mine' has no class with \"brain\": true"):
        read_dataset(cohort, LabelTable("mine", entries))
