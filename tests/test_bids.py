"""Training data: what is found, how it is shared out, what is refused; and the way of an image onto the grid."""

import gzip
import json
import shutil
import warnings

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from brain_ldm_bundle.scripts import bids, grid
from brain_ldm_bundle.scripts.covariates import CovariateSchema

SCHEMA = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")
SPACING_MM = 8.0
VOLUME = np.random.default_rng(0).random(grid.size(SPACING_MM), dtype=np.float32)  # (20, 28, 20)


def save(path, volume=VOLUME, affine=None, code=4):
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = grid.affine(SPACING_MM) if affine is None else affine
    image = nib.Nifti1Image(volume, affine)
    image.set_sform(affine, code)
    image.set_qform(affine, code)
    nib.save(image, path)
    return path


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
            save(folder / name / file)
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
    assert set(item) == {"image", "participant_id", "covariates"}
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


def test_a_datalist_without_validation_is_shared_out(dataset, datalist):
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


# Images that are refused


def shifted(**changes):
    affine = grid.affine(SPACING_MM)
    for axis, mm in changes.items():
        affine["xyz".index(axis), 3] += mm
    return affine


def rotated(degrees):
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin, 0, 0], [sin, cos, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ grid.affine(SPACING_MM)


def with_voxel(value):
    volume = VOLUME.copy()
    volume[3, 4, 5] = value
    return volume


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ({"volume": VOLUME[..., None]}, "has 4 dimensions (20, 28, 20, 1); three are needed"),
        ({"affine": grid.affine(SPACING_MM) * [[1.02], [1], [1], [1]]}, "has voxels of (8.16, 8, 8) mm, not 8 mm"),
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
def test_an_image_that_cannot_be_used_is_refused(dataset, image, message):
    path = save(dataset / "sub-04" / "anat" / "sub-04_T1w.nii.gz", **image)
    refused = refusal(dataset)
    assert f"{path}: {message}" in refused and "(1 problems)" in refused


@pytest.mark.parametrize("lost_bytes", [4, 2000])
def test_a_truncated_image_is_refused(dataset, lost_bytes):
    """Four bytes are missing after the last voxel: nibabel alone reads such a file without an error."""
    path = dataset / "sub-04" / "anat" / "sub-04_T1w.nii.gz"
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    assert f"{path}: cannot be read to its end" in refusal(dataset)
    (dataset / "sub-04" / "anat" / "sub-04_T1w.nii").write_bytes(gzip.compress(b"no"))
    assert "is not a NIfTI image that can be read" in refusal(dataset)


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


@pytest.mark.parametrize("affine", [shifted(x=6, y=-9, z=4), shifted(z=9)], ids=["moved", "lower end cut"])
def test_an_image_a_little_off_the_grid_is_taken(dataset, affine):
    save(dataset / "sub-04" / "anat" / "sub-04_T1w.nii.gz", affine=affine)
    assert "sub-04" in names(read(dataset, validation_fraction=0)["training"])


def test_images_with_the_scanners_code_are_taken_with_one_warning(dataset):
    save(dataset / "sub-04" / "anat" / "sub-04_T1w.nii.gz", code=1)
    save(dataset / "sub-05" / "anat" / "sub-05_T1w.nii.gz", code=1)
    with pytest.warns(UserWarning, match="2 images, such as .*sub-04_T1w.nii.gz, have the NIfTI code 1") as caught:
        read(dataset)
    assert len(caught) == 1


# The cache


def test_sound_images_are_read_once(dataset, tmp_path, monkeypatch):
    cache = tmp_path / "cache" / "checked.json"
    path = save(dataset / "sub-04" / "anat" / "sub-04_T1w.nii.gz", with_voxel(np.nan))
    whole, seen = bids.read_whole, []
    monkeypatch.setattr(bids, "read_whole", lambda path: (seen.append(path), whole(path))[1])
    assert "NaN" in refusal(dataset, cache_file=cache)
    assert len(seen) == 14
    seen.clear()
    assert "NaN" in refusal(dataset, cache_file=cache)
    assert seen == [str(path)]
    seen.clear()
    save(path)
    read(dataset, cache_file=cache)
    assert seen == [str(path)]
    assert [file.name for file in cache.parent.iterdir()] == ["checked.json"]
    save(path, with_voxel(np.inf))  # of a sound image
    assert f"{path}: has 1 voxels" in refusal(dataset, cache_file=cache)


def test_a_damaged_cache_only_costs_time(dataset, tmp_path):
    cache = tmp_path / "checked.json"
    cache.write_text('{"half')
    read(dataset, cache_file=cache)
    assert len(json.loads(cache.read_text())) == 14


def test_another_spacing_is_refused_in_spite_of_the_cache(dataset, tmp_path):
    read(dataset, cache_file=tmp_path / "checked.json")
    assert "not 4 mm (spacing_mm)" in refusal(dataset, cache_file=tmp_path / "checked.json", spacing_mm=4)


# The grid


def on_grid(path, mode="bilinear"):
    transform = Compose([LoadImaged("image"), EnsureChannelFirstd("image"), grid.ToGridd("image", SPACING_MM, mode)])
    # MONAI Label puts the path beside the image under this name
    return transform({"image": path, "image_path": str(path)}), transform


def test_the_grid_is_the_published_models():
    assert grid.size(1) == (160, 224, 160)
    published = [[-1, 0, 0, 80.481], [0, 1, 0, -125.477], [0, 0, 1, -60.554], [0, 0, 0, 1]]
    np.testing.assert_allclose(grid.affine(1), published)


@pytest.mark.parametrize("spacing_mm", [0.5, 1, 2, 4, 8])
def test_every_spacing_fills_the_same_box(spacing_mm):
    corners = nib.affines.apply_affine(grid.affine(spacing_mm), [[-0.5] * 3, np.subtract(grid.size(spacing_mm), 0.5)])
    np.testing.assert_allclose(corners, [[80.981, -125.977, -61.054], [-79.019, 98.023, 98.946]])


@pytest.mark.parametrize("spacing_mm", [0, -1, 3, 5, 1.1, 1000, float("nan")])
def test_a_spacing_that_does_not_divide_the_box_is_refused(spacing_mm):
    with pytest.raises(ValueError, match="does not divide"):
        grid.size(spacing_mm)


@pytest.mark.parametrize("codes", ["LAS", "RAS", "LPI", "PIR", "SLA", "ASR"])
def test_an_image_on_the_grid_comes_out_bit_equal_from_any_storage(tmp_path, codes):
    image = nib.Nifti1Image(VOLUME, grid.affine(SPACING_MM))
    stored = image.as_reoriented(ornt_transform(io_orientation(image.affine), axcodes2ornt(codes)))
    nib.save(stored, tmp_path / "image.nii.gz")
    item, transform = on_grid(tmp_path / "image.nii.gz")
    np.testing.assert_array_equal(item["image"][0].numpy(), VOLUME)
    np.testing.assert_allclose(item["image"].affine.numpy(), grid.affine(SPACING_MM), atol=1e-4)
    back = transform.inverse(item)["image"]
    np.testing.assert_array_equal(back[0].numpy(), np.asarray(stored.dataobj))


def test_a_left_sided_mark_stays_on_the_left(tmp_path):
    """x below 0 is the left: beyond the middle of axis 0, which runs from right to left."""
    volume = np.zeros((21, 28, 20), dtype=np.float32)  # RAS
    volume[2, 20, 5] = 1
    affine = np.diag([SPACING_MM, SPACING_MM, SPACING_MM, 1])
    affine[:3, 3] = np.add(grid.LOWER_CORNER_MM, SPACING_MM / 2)
    item, _ = on_grid(save(tmp_path / "image.nii.gz", volume, affine))
    assert np.argwhere(item["image"][0].numpy()).tolist() == [[17, 20, 5]]
    assert (grid.affine(SPACING_MM) @ [17, 20, 5, 1])[0] < 0


def test_whole_voxel_offsets_crop_and_pad_exactly(tmp_path):
    """Two voxels more on the right, three fewer behind, one more above than the grid."""
    affine = shifted(x=2 * SPACING_MM, y=3 * SPACING_MM)
    volume = np.random.default_rng(1).random((22, 25, 21), dtype=np.float32)
    item, transform = on_grid(save(tmp_path / "image.nii.gz", volume, affine))
    expected = np.zeros(grid.size(SPACING_MM), dtype=np.float32)
    expected[:, 3:, :] = volume[2:, :, :20]
    np.testing.assert_array_equal(item["image"][0].numpy(), expected)
    np.testing.assert_allclose(item["image"].affine.numpy(), grid.affine(SPACING_MM), atol=1e-4)
    back = transform.inverse(item)["image"]
    assert back.shape == (1, 22, 25, 21)
    np.testing.assert_array_equal(back[0, 2:, :, :20].numpy(), volume[2:, :, :20])
    np.testing.assert_allclose(back.affine.numpy(), affine, atol=1e-4)


def test_half_voxel_offsets_are_interpolated(tmp_path):
    item, _ = on_grid(save(tmp_path / "image.nii.gz", affine=shifted(y=SPACING_MM / 2)))
    expected = (VOLUME[:, :-1] + VOLUME[:, 1:]) / 2
    np.testing.assert_allclose(item["image"][0, :, 1:].numpy(), expected, atol=1e-5)


def test_labels_keep_their_values_off_the_grid(tmp_path):
    labels = (VOLUME * 18).astype(np.uint8)
    path = save(tmp_path / "image.nii.gz", labels, shifted(x=1.3, y=2.1))
    item, _ = on_grid(path, mode="nearest")
    np.testing.assert_array_equal(item["image"][0, 1:-1, 1:-1].numpy(), labels[1:-1, 1:-1])


def test_an_oblique_image_of_another_spacing_lands_where_its_affine_says(tmp_path):
    """A smooth function of the position in mm, sampled on a foreign grid, is the same function on ours."""

    def field(affine, shape):
        x, y, z = np.moveaxis(nib.affines.apply_affine(affine, np.moveaxis(np.indices(shape), 0, -1)), -1, 0)
        return (1 + 0.004 * x + 0.002 * y - 0.003 * z).astype(np.float32)

    affine = rotated(5) @ np.diag([0.75, 0.75, 0.75, 1])
    affine[:3, 3] = nib.affines.apply_affine(rotated(5), [-1, -1, -1])
    shape = (36, 48, 34)
    item, _ = on_grid(save(tmp_path / "image.nii.gz", field(affine, shape), affine))
    result = item["image"][0].numpy()
    inside = (slice(3, -3),) * 3
    np.testing.assert_allclose(result[inside], field(grid.affine(SPACING_MM), result.shape)[inside], atol=1e-4)


@pytest.mark.parametrize("offset_mm", [-400, 400])
def test_an_image_beside_the_grid_becomes_zeros(tmp_path, offset_mm):
    item, transform = on_grid(save(tmp_path / "image.nii.gz", affine=shifted(x=offset_mm)))
    assert transform.inverse(item)["image"].shape == (1, *VOLUME.shape)
    assert item["image"].shape == (1, *grid.size(SPACING_MM)) and not torch.any(item["image"])


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


def test_scans_are_known_again_wherever_they_lie(dataset, tmp_path):
    data = bids.read_dataset(dataset, SCHEMA, SPACING_MM)
    shutil.copytree(dataset, tmp_path / "moved")
    moved = bids.read_dataset(tmp_path / "moved", SCHEMA, SPACING_MM)
    known = bids.identities(data["training"])
    assert known == bids.identities(moved["training"]) and len(known) == len(data["training"])
    assert set(known).isdisjoint(bids.identities(moved["validation"]))
    assert "sub" not in "".join(known)


def test_a_split_other_than_the_trainings_is_noticed(dataset):
    """Another --seed, and scans that were trained on passed as held out."""
    data = bids.read_dataset(dataset, SCHEMA, SPACING_MM, seed=0)
    recipe = {"seen": bids.identities(data["training"])}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bids.check_split(data, recipe)
    other = bids.read_dataset(dataset, SCHEMA, SPACING_MM, seed=1)
    assert other["validation"] != data["validation"]
    with pytest.raises(ValueError, match="scans in the split 'validation', such as .*, were trained on. Share out as .*--seed"):
        bids.check_split(other, recipe)
    fewer = {"training": [*data["training"], *data["validation"]], "validation": [], "test": []}
    with pytest.warns(UserWarning, match=f"{len(data['validation'])} of .* 'training', such as .*, are not those"):
        bids.check_split(fewer, recipe)
    with pytest.warns(UserWarning, match="the weights do not say which scans they were trained on"):
        bids.check_split(other, {})


def test_what_weights_have_seen_stays_seen_when_they_are_trained_further(dataset, tmp_path):
    data = bids.read_dataset(dataset, SCHEMA, SPACING_MM)
    recipe = {"seen": bids.identities(data["training"][:2])}
    state = {"_extra_state": torch.tensor(list(json.dumps(recipe).encode()), dtype=torch.uint8)}
    torch.save(state, tmp_path / "model.pt")
    further = bids.identities(data["training"][5:], tmp_path / "model.pt")
    assert further == sorted(recipe["seen"] + bids.identities(data["training"][5:]))
