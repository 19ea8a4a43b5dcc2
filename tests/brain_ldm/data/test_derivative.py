"""Generated volumes have the right values, geometry and provenance on disk. Incomplete volumes do not count as complete."""

import gzip
import json
import os
import resource
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT

from brain_ldm_bundle.scripts.data.covariates import NULL, CovariateSchema
from brain_ldm_bundle.scripts.data.derivative import Derivative
from brain_ldm_bundle.scripts.data.preprocessing import preprocessing
from brain_ldm_bundle.scripts.shared import mni_box

SCHEMA = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")
SPACING_MM = 8.0
SHAPE = mni_box.size(SPACING_MM)  # (20, 28, 20)
VOLUME = np.random.default_rng(0).uniform(-0.2, 1.2, SHAPE).astype(np.float32)
ROW = {"participant_id": "sub-A1", "sex": "F", "age": 63.0, "ventricles_ml": 40.0, "brain_normalised_ml": 1500.0}
REQUEST = SCHEMA.request(ROW)
PROVENANCE = {
    "Seed": 2**53 + 1,
    "Sampler": "ddim",
    "Steps": 50,
    "GuidanceScale": 1.0,
    "PredictionType": "epsilon",
    "WeightsSHA256": {"models/model.pt": "ab" * 32},
}


def derivative(folder, dtype="uint8", schema=SCHEMA, shape=SHAPE, spacing_mm=SPACING_MM):
    return Derivative(folder, schema, mni_box.affine(spacing_mm), shape, dtype)


@pytest.fixture
def output(tmp_path):
    return derivative(tmp_path / "synthetic")


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


# The image


def test_uint8_values_read_back_in_0_to_1_within_half_a_step(output):
    values = np.asarray(nib.load(output.write(REQUEST, VOLUME, PROVENANCE)).dataobj)
    assert values.min() == 0 and 0.999999 < values.max() <= 1
    assert np.abs(values - VOLUME.clip(0, 1)).max() <= 0.5 / 255 + 1e-6


def test_intensities_are_not_stretched_per_volume(output):
    """The published saver stretched each volume from its minimum to its maximum."""
    values = np.asarray(nib.load(output.write(REQUEST, np.full(SHAPE, 0.4), PROVENANCE)).dataobj)
    np.testing.assert_allclose(values, 0.4, atol=1e-6)  # 102 / 255


def test_float32_keeps_the_values(tmp_path):
    image = nib.load(derivative(tmp_path, "float32").write(REQUEST, VOLUME, PROVENANCE))
    assert image.get_data_dtype() == np.float32
    np.testing.assert_array_equal(np.asarray(image.dataobj), VOLUME.clip(0, 1))


def test_the_image_lies_in_mni_space_by_both_forms(output):
    path = output.write(REQUEST, VOLUME, PROVENANCE)
    image = nib.load(path)
    assert path == output.output_dir / "sub-A1" / "anat" / "sub-A1_T1w.nii.gz"
    assert image.shape == SHAPE and image.get_data_dtype() == np.uint8
    assert image.header["qform_code"] == image.header["sform_code"] == 4
    np.testing.assert_allclose(image.get_qform(), mni_box.affine(SPACING_MM), atol=1e-4)
    np.testing.assert_allclose(image.get_sform(), mni_box.affine(SPACING_MM), atol=1e-4)
    np.testing.assert_allclose(image.header.get_zooms(), [SPACING_MM] * 3)
    assert image.header.get_xyzt_units()[0] == "mm"


def test_what_was_written_comes_back_through_the_training_transforms(output):
    path = output.write(REQUEST, VOLUME, PROVENANCE)
    image = preprocessing(SPACING_MM, scale_intensities=False)({"image": path})["image"]
    np.testing.assert_allclose(image[0].numpy(), VOLUME.clip(0, 1), atol=0.5 / 255 + 1e-6)


def test_equal_volumes_are_equal_files(tmp_path):
    first, second = (derivative(tmp_path / name).write(REQUEST, VOLUME, PROVENANCE) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[4:8] == bytes(4)  # the time in the gzip header


def test_a_tensor_is_written_as_its_array(output):
    from_array = output.write(REQUEST, VOLUME, PROVENANCE).read_bytes()
    assert output.write(REQUEST, torch.from_numpy(VOLUME), PROVENANCE).read_bytes() == from_array


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_volume_can_be_rounded_on_its_device_before_it_is_written(tmp_path, dtype):
    folder = derivative(tmp_path, dtype)
    stored = folder.stored(REQUEST, torch.from_numpy(VOLUME))
    assert stored.dtype == dtype
    expected = VOLUME.clip(0, 1) if dtype == "float32" else np.round(VOLUME.clip(0, 1) * 255).astype(np.uint8)
    np.testing.assert_array_equal(stored, expected)
    from_stored = folder.write(REQUEST, stored, PROVENANCE).read_bytes()
    assert folder.write(REQUEST, VOLUME, PROVENANCE).read_bytes() == from_stored


@pytest.mark.parametrize("value", [-3.0, 0.5])
def test_a_volume_that_shows_nothing_gets_a_warning(output, value):
    with pytest.warns(UserWarning, match=f"sub-A1_T1w.nii.gz shows nothing: it is {max(value, 0):g} everywhere"):
        output.write(REQUEST, np.full(SHAPE, value, np.float32), PROVENANCE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_volume_that_is_not_finite_is_refused(output, value):
    volume = VOLUME.copy()
    volume[1, 2, 3] = value
    with pytest.raises(ValueError, match="sub-A1_T1w.nii.gz: 1 of 11200 voxels are NaN or infinite"):
        output.write(REQUEST, volume, PROVENANCE)
    assert not list(output.output_dir.glob("sub-*"))


def test_a_volume_of_another_shape_is_refused(output):
    with pytest.raises(ValueError, match=r"expected a volume of \(20, 28, 20\), got \(1, 20, 28, 20\)"):
        output.write(REQUEST, VOLUME[None], PROVENANCE)


# The sidecar


def test_the_sidecar_says_what_made_the_image(output):
    path = output.write(REQUEST, VOLUME, PROVENANCE)
    sidecar = json.loads(path.with_name("sub-A1_T1w.json").read_text())
    assert PROVENANCE.items() <= sidecar.items()
    assert sidecar["Synthetic"] is True and "not for clinical use" in sidecar["Description"]
    assert sidecar["Covariates"]["age"] == {"Value": 63.0, "Scaled": 0.5, "Units": "years"}
    assert sidecar["Covariates"]["sex"] == {"Value": "F", "Scaled": 0.0}
    for software in ("torch", "monai", "python", "brain_ldm_bundle"):
        assert f"{software} " in sidecar["SoftwareVersions"]
    assert "MNI" in sidecar["SpatialReference"] and "255" in sidecar["IntensityScaling"]


@pytest.mark.parametrize("radius_mm, stripped", [(70, True), (85, False)])
def test_the_sidecar_says_whether_the_volume_shows_more_than_the_brain(output, radius_mm, stripped):
    """Spheres of 1.4 and 2.6 litres."""
    distance = np.linalg.norm((np.indices(SHAPE).T - (np.array(SHAPE) - 1) / 2) * SPACING_MM, axis=-1).T
    path = output.write(REQUEST, 0.5 * (distance < radius_mm) + 0.01 * VOLUME, PROVENANCE)
    assert json.loads(path.with_name("sub-A1_T1w.json").read_text())["SkullStripped"] is stripped


def test_incomplete_provenance_is_refused(output):
    with pytest.raises(ValueError, match="provenance lacks Steps"):
        output.write(REQUEST, VOLUME, {key: value for key, value in PROVENANCE.items() if key != "Steps"})


def test_a_path_is_no_participant(output):
    with pytest.raises(ValueError, match="participant_id must be"):
        output.write(SCHEMA.request({**ROW, "participant_id": "../A1"}), VOLUME, PROVENANCE)
    with pytest.raises(ValueError, match="participant_id must be"):
        output.write(SCHEMA.request({**ROW, "participant_id": None}), VOLUME, PROVENANCE)


# What is made is not made again


def test_what_was_written_is_complete_with_or_without_the_prefix(output):
    assert not output.is_complete(REQUEST, PROVENANCE)
    output.write(REQUEST, VOLUME, PROVENANCE)
    assert output.is_complete(REQUEST, PROVENANCE)
    assert output.is_complete(SCHEMA.request({**ROW, "participant_id": "A1"}), PROVENANCE)
    assert not output.is_complete(SCHEMA.request({**ROW, "participant_id": "A2"}), PROVENANCE)


@pytest.mark.parametrize(
    ("request_change", "provenance_change"),
    [
        ({"age": 63.5}, {}),
        ({"sex": "M"}, {}),
        ({}, {"Seed": 2**53}),
        ({}, {"Sampler": "ddpm"}),
        ({}, {"Steps": 25}),
        ({}, {"GuidanceScale": 2.0}),
        ({}, {"PredictionType": "v_prediction"}),
        ({}, {"WeightsSHA256": {"models/model.pt": "cd" * 32}}),
    ],
)
def test_a_volume_of_another_request_is_made_again(output, request_change, provenance_change):
    output.write(REQUEST, VOLUME, PROVENANCE)
    assert not output.is_complete(SCHEMA.request({**ROW, **request_change}), {**PROVENANCE, **provenance_change})


def test_a_volume_of_another_type_or_grid_is_made_again(output):
    output.write(REQUEST, VOLUME, PROVENANCE)
    assert not derivative(output.output_dir, "float32").is_complete(REQUEST, PROVENANCE)
    assert not derivative(output.output_dir, shape=(20, 28, 21)).is_complete(REQUEST, PROVENANCE)
    assert not derivative(output.output_dir, spacing_mm=4).is_complete(REQUEST, PROVENANCE)


def test_other_words_for_what_was_made_are_no_reason_to_make_it_again(output):
    sidecar = output.write(REQUEST, VOLUME, PROVENANCE).with_name("sub-A1_T1w.json")
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"Description": "Synthetic."}))
    assert output.is_complete(REQUEST, PROVENANCE)


def test_volumes_of_two_weights_in_one_folder_get_a_warning(output):
    others = [SCHEMA.request(ROW | {"participant_id": "sub-B2"}), PROVENANCE | {"WeightsSHA256": "cd" * 32}]
    for request, provenance in ((REQUEST, PROVENANCE), others):
        output.write(request, VOLUME, provenance)
    with pytest.warns(UserWarning, match="holds volumes of 2 different weights. Keep each kind in its own folder"):
        output.finish([REQUEST])


@pytest.mark.parametrize("lost_bytes", [4, 1000])
def test_a_truncated_image_is_made_again(output, lost_bytes):
    path = output.write(REQUEST, VOLUME, PROVENANCE)
    path.write_bytes(path.read_bytes()[:-lost_bytes])
    assert not output.is_complete(REQUEST, PROVENANCE)


def test_a_known_volume_is_not_read_again_and_one_that_changed_is(output):
    """To continue 100,000 volumes took an hour of reading them."""
    path = output.write(REQUEST, VOLUME, PROVENANCE)
    content, size = path.read_bytes(), path.stat().st_size
    damaged = content[: size // 2] + bytes([content[size // 2] ^ 1]) + content[size // 2 + 1 :]
    path.write_bytes(damaged)
    os.utime(path, (1, 1))  # as old as when it was written: only the size is compared
    assert output.is_complete(REQUEST, PROVENANCE)
    path.write_bytes(damaged)  # newer than its sidecar
    assert not output.is_complete(REQUEST, PROVENANCE)
    path.write_bytes(content[:-1])
    os.utime(path, (1, 1))
    assert not output.is_complete(REQUEST, PROVENANCE) and output.finish([REQUEST]) == ["sub-A1"]


def test_names_that_differ_only_in_case_are_refused(output):
    output.write(REQUEST, VOLUME, PROVENANCE)
    output.refuse_clashes([REQUEST])
    with pytest.raises(ValueError, match="sub-A1 and .*sub-a1 differ only in ending or case"):
        output.refuse_clashes([SCHEMA.request({**ROW, "participant_id": "sub-a1"})])


def test_an_image_without_a_sound_sidecar_counts_as_not_made(output):
    sidecar = output.write(REQUEST, VOLUME, PROVENANCE).with_name("sub-A1_T1w.json")
    sidecar.write_text(sidecar.read_text()[:100])
    assert not output.is_complete(REQUEST, PROVENANCE) and output.finish([REQUEST]) == ["sub-A1"]
    sidecar.unlink()
    assert not output.is_complete(REQUEST, PROVENANCE) and output.finish([REQUEST]) == ["sub-A1"]


@pytest.mark.parametrize("already_made", [False, True])
def test_a_full_disk_leaves_nothing_that_counts_as_made(output, already_made):
    """The limit on a file's size stands for the disk: the write itself fails, after some of the bytes."""
    if already_made:
        output.write(REQUEST, VOLUME, PROVENANCE)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="while writing .*sub-A1_T1w.nii.gz. Make room or choose another folder"):
            output.write(SCHEMA.request({**ROW, "age": 64}), 1 - VOLUME, PROVENANCE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert files(output.output_dir / "sub-A1") == (["anat/sub-A1_T1w.nii.gz"] if already_made else [])
    for age in (63, 64):
        assert not output.is_complete(SCHEMA.request({**ROW, "age": age}), PROVENANCE)


def test_files_are_readable_for_others_as_the_umask_says(output):
    before = os.umask(0o022)
    try:
        path = output.write(REQUEST, VOLUME, PROVENANCE)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o644


# The data set


def test_the_data_set_is_a_bids_derivative_marked_as_synthetic(output):
    assert not output.output_dir.exists()  # a run that is refused before its first volume leaves nothing
    output.write(REQUEST, VOLUME, PROVENANCE)
    description = json.loads((output.output_dir / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative" and description["GeneratedBy"][0]["Name"] == "brain_ldm_bundle"
    assert "not for clinical use" in (output.output_dir / "README").read_text()
    output.finish([REQUEST])
    assert files(output.output_dir) == [
        "README",
        "dataset_description.json",
        "participants.json",
        "participants.tsv",
        "sub-A1/anat/sub-A1_T1w.json",
        "sub-A1/anat/sub-A1_T1w.nii.gz",
    ]
    assert json.loads((output.output_dir / "participants.json").read_text())["ventricles_ml"]["Units"] == "mL"


def test_no_word_of_a_data_set_denies_that_an_edit_was_made_from_a_persons_scan(output):
    """Edited heads of people were marked "Not a person's", although the sidecar named the scan."""
    output.write(REQUEST, VOLUME, PROVENANCE | {"EditedImage": "sub-0001_T1w.nii.gz"})
    output.finish([REQUEST])
    texts = [path.read_text() for path in output.output_dir.iterdir() if path.is_file()]
    assert len(texts) == 4 and not any("person" in text for text in texts)
    readme = " ".join((output.output_dir / "README").read_text().split())
    assert "If it names an EditedImage, the image was made from that scan and may identify its subject." in readme


def test_the_table_reads_back_as_the_requests(output):
    requests = [REQUEST, SCHEMA.request({**ROW, "participant_id": "sub-B2", "sex": "M", "ventricles_ml": 40.123456789})]
    for request in requests:
        output.write(request, VOLUME, PROVENANCE)
    assert output.finish(requests) == []
    rows = SCHEMA.read_table(output.output_dir / "participants.tsv")
    assert [SCHEMA.request(row) for row in rows] == requests


def test_the_table_holds_what_is_there_and_keeps_earlier_runs(output):
    output.write(REQUEST, VOLUME, PROVENANCE)
    output.finish([REQUEST])
    later = derivative(output.output_dir)
    made, unmade = (SCHEMA.request({**ROW, "participant_id": name}) for name in ("0B", "0C"))
    later.write(made, VOLUME, PROVENANCE)
    assert later.finish([made, unmade]) == ["sub-0C"]
    rows = SCHEMA.read_table(output.output_dir / "participants.tsv")
    assert [row["participant_id"] for row in rows] == ["sub-0B", "sub-A1"]


def test_columns_that_a_user_added_are_kept_and_those_of_replaced_volumes_are_not(output):
    output.write(REQUEST, VOLUME, PROVENANCE)
    output.finish([REQUEST])
    table, said = (output.output_dir / f"participants.{ending}" for ending in ("tsv", "json"))
    header, line = table.read_text().splitlines()
    table.write_text(f'{header}\tqc\tnote\n{line}\tgood\t"a, b"\n')
    said.write_text(json.dumps(json.loads(said.read_text()) | {"qc": {"Description": "by eye"}}))
    other = CovariateSchema.from_dict({"covariates": [{"name": "mmse", "range": [0, 30]}]})
    requests = [other.request({"participant_id": name, "mmse": 20}) for name in ("sub-A1", "sub-B2")]
    later = derivative(output.output_dir, schema=other)
    for request in requests:
        later.write(request, VOLUME, PROVENANCE)
    for _ in range(2):
        later.finish(requests)
        rows = ["participant_id\tmmse\tqc\tnote", "sub-A1\t20\tgood\ta, b", "sub-B2\t20\tn/a\tn/a"]
        assert table.read_text().splitlines() == rows
    assert json.loads(said.read_text())["qc"] == {"Description": "by eye"}
    table.write_text("participant_id\tmmse\tqc\nsub-A1\t20\n")
    with pytest.raises(ValueError, match="row 2: 2 cells for 3 columns.*All volumes are made. Correct .*participants.tsv or"):
        later.finish(requests)
    assert table.read_text().endswith("sub-A1\t20\n")


def test_a_user_may_write_ids_without_sub_but_not_twice_and_not_in_another_column(output):
    output.write(REQUEST, VOLUME, PROVENANCE)
    output.finish([REQUEST])
    table = output.output_dir / "participants.tsv"
    table.write_text("participant_id\tqc\nA1\tgood\n")
    output.finish([REQUEST])
    assert pd.read_csv(table, sep="\t")[["participant_id", "qc"]].values.tolist() == [["sub-A1", "good"]]
    for text, message in [
        ("participant_id\tqc\nsub-A1\tgood\nA1\tbad\n", "row 3: participant_id sub-A1 is also in row 2"),
        ("subject\tqc\nsub-A1\tgood\n", "no column 'participant_id'"),
        ("participant_id\tqc\nSUB-A1\tgood\n", "row 2: participant_id must be 'sub-'"),
    ]:
        table.write_text(text)
        with pytest.raises(ValueError, match=f"{message}.*All volumes are made. Correct .*participants.tsv"):
            output.finish([REQUEST])
        assert table.read_text() == text


def test_rows_that_a_user_added_are_kept_and_named_without_a_volume(output):
    """They were dropped without a word."""
    output.write(REQUEST, VOLUME, PROVENANCE)
    output.finish([REQUEST])
    table = output.output_dir / "participants.tsv"
    header, line = table.read_text().splitlines()
    assert header.startswith("participant_id\tsex\tage")
    cells = "".join(f"{who}\tM\t70" + "\t" * (header.count("\t") - 2) + "\n" for who in ("mine", "sub-scan", "sub-C3"))
    table.write_text(f"{header}\n{line}\n{cells}")
    (output.output_dir / "sub-mine" / "anat").mkdir(parents=True)  # a folder without images is no volume
    (output.output_dir / "sub-scan").mkdir()
    (output.output_dir / "sub-scan" / "own.nii.gz").touch()
    unmade = SCHEMA.request({**ROW, "participant_id": "C3"})
    for _ in range(2):
        with pytest.warns(UserWarning, match="participants.tsv: keeps 1 row without a volume, such as sub-mine"):
            assert output.finish([REQUEST, unmade]) == ["sub-C3"]
        rows = ["sub-mine\tM\t70\tn/a\tn/a", "sub-scan\tM\t70\tn/a\tn/a"]
        assert table.read_text().splitlines() == [header, line, *rows]


def test_missing_values_and_other_schemas_share_a_table(output):
    output.write(REQUEST, VOLUME, PROVENANCE)
    other = CovariateSchema.from_dict({"covariates": [{"name": "mmse", "range": [0, 30], "missing": "allowed"}]})
    request = other.request({"participant_id": "sub-C3", "mmse": None})
    output = derivative(output.output_dir, schema=other)
    path = output.write(request, VOLUME, PROVENANCE)
    assert json.loads(path.with_name("sub-C3_T1w.json").read_text())["Covariates"]["mmse"]["Scaled"] == NULL
    assert output.is_complete(request, PROVENANCE)
    output.finish([request])
    assert (output.output_dir / "participants.tsv").read_text().splitlines() == [
        "participant_id\tmmse\tage\tbrain_normalised_ml\tsex\tventricles_ml",
        "sub-A1\tn/a\t63\t1500\tF\t40",
        "sub-C3\tn/a\tn/a\tn/a\tn/a\tn/a",
    ]


def test_a_folder_of_another_data_set_is_refused(tmp_path):
    (tmp_path / "raw" / "sub-01").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a data set that brain_ldm_bundle did not make"):
        derivative(tmp_path / "raw")
    (tmp_path / "raw" / "dataset_description.json").write_text('{"Name": "mine", "BIDSVersion": "1.9.0"}')
    with pytest.raises(ValueError, match="did not make"):
        derivative(tmp_path / "raw")
    assert files(tmp_path / "raw") == ["dataset_description.json"]
    with pytest.raises(ValueError, match="dtype must be uint8 or float32, got 'int16'"):
        derivative(tmp_path / "new", "int16")
    assert not (tmp_path / "new").exists()


def test_several_writers_share_a_folder(tmp_path):
    def write(number):
        output = derivative(tmp_path)
        request = SCHEMA.request({**ROW, "participant_id": f"{number:02}"})
        output.write(request, VOLUME, PROVENANCE)
        return output.is_complete(request, PROVENANCE)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(write, range(24)))
    assert (
        derivative(tmp_path).finish([SCHEMA.request({**ROW, "participant_id": f"{number:02}"}) for number in range(24)]) == []
    )
    assert not list(tmp_path.rglob("*.tmp"))
    for path in tmp_path.glob("sub-*/anat/*.nii.gz"):
        gzip.decompress(path.read_bytes())
