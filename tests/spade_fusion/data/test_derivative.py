"""The data set on disk is a BIDS derivative, marked as synthetic, on the grids of the label maps, without incomplete files."""

import json
import os
import pathlib

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT

from spade_fusion_bundle.scripts.data.derivative import Derivative, map_identity, name_of
from spade_fusion_bundle.scripts.shared.label_table import LabelTable

TABLE = LabelTable.from_file(ROOT / "spade_fusion_bundle" / "configs" / "labels.json", "freesurfer")
SHAPE = (7, 9, 8)
AFFINE = nib.affines.from_matvec(nib.eulerangles.euler2mat(0.3, -0.2, 0.15) @ np.diag([-1.1, 0.9, 3]), (20, -30.5, 4))
PROVENANCE = {
    "LabelMap": "map.nii.gz",
    "LabelMapSHA256": "cd" * 32,
    "Variant": 1,
    "DeformationMm": 5.0,
    "Seed": 17,
    "WeightsSHA256": "ab" * 32,
}


@pytest.fixture
def labels():
    return np.random.default_rng(0).choice([0, 2, 41, 1035], SHAPE)


@pytest.fixture
def row(tmp_path, labels):
    image = nib.Nifti1Image(labels.astype(np.float32), AFFINE)
    image.set_sform(AFFINE, 4)
    image.set_qform(AFFINE, 1)
    image.header["descrip"], image.header["aux_file"] = "a patient's name", "and another"
    nib.save(image, tmp_path / "map.nii.gz")
    return {
        "participant_id": "sub-1v01",
        "session_id": "ses-a",
        "source_participant_id": "sub-1",
        "image": str(tmp_path / "map.nii.gz"),
        "provenance": PROVENANCE,
    }


@pytest.fixture
def volume():
    return np.random.default_rng(1).uniform(0, 1, SHAPE).astype(np.float32)


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_image_label_map_and_sidecar_lie_side_by_side(row, volume, labels, out):
    derivative = Derivative(out, TABLE)
    path = derivative.write(row, volume, labels)
    assert path == out / "sub-1v01" / "ses-a" / "anat" / "sub-1v01_ses-a_T1w.nii.gz" == derivative.image_file(row)
    assert {file.name for file in path.parent.iterdir()} == {
        f"sub-1v01_ses-a_{ending}" for ending in ("T1w.nii.gz", "T1w.json", "dseg.nii.gz")
    }
    assert name_of(row) == "sub-1v01_ses-a"
    assert name_of({**row, "session_id": None}) == "sub-1v01"


def test_both_are_on_the_label_maps_grid_bit_for_bit(row, volume, labels, out):
    path = Derivative(out, TABLE).write(row, volume, labels)
    source = nib.load(row["image"])
    for image in (nib.load(path), nib.load(str(path).replace("T1w", "dseg"))):
        np.testing.assert_array_equal(image.affine, source.affine)
        for key in ("pixdim", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d", "qoffset_x"):
            np.testing.assert_array_equal(image.header[key], source.header[key])
        assert (image.header["sform_code"], image.header["qform_code"]) == (4, 1)
        assert bytes(image.header["descrip"].item()) == b"Synthetic, not for clinical use"
        assert not image.header["aux_file"].item()


def test_values_come_back(row, volume, labels, out):
    path = Derivative(out, TABLE).write(row, volume, labels.astype(np.float32))
    image, label_map = nib.load(path), nib.load(str(path).replace("T1w", "dseg"))
    assert image.get_data_dtype() == np.uint8
    np.testing.assert_allclose(image.get_fdata(), volume, atol=0.5 / 255 + 1e-6)
    assert label_map.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asanyarray(label_map.dataobj), labels)


def test_float32_keeps_the_models_values(row, volume, labels, out):
    path = Derivative(out, TABLE, dtype="float32").write(row, volume, labels)
    np.testing.assert_array_equal(nib.load(path).get_fdata(dtype=np.float32), volume)


def test_zero_is_zero_and_one_is_not_above_one_in_eight_bits(row, labels, out):
    path = Derivative(out, TABLE).write(row, (labels > 0) * 1.5, labels)  # beyond 1 is clipped
    values = nib.load(path).get_fdata()
    assert (values[labels == 0] == 0).all()
    assert 1 - 1e-6 < values[labels > 0].min() and values.max() <= 1


@pytest.mark.parametrize("highest, dtype", [(255, np.uint8), (14175, np.int16), (40000, np.int32)])
def test_label_values_keep_an_integer_type_that_holds_them(highest, dtype, row, volume, labels, out):
    labels[0, 0, 0] = highest
    labels[labels == 1035] = 3
    values = {"class": 1, "name": "all", "midline": [2, 3, 41, highest], "brain": True}
    table = LabelTable("mine", [{"class": 0, "name": "background", "midline": [0], "brain": False}, values])
    path = Derivative(out, table).write(row, volume, labels)
    label_map = nib.load(str(path).replace("T1w", "dseg"))
    assert label_map.get_data_dtype() == dtype
    assert label_map.get_fdata().max() == highest


def test_the_sidecar_says_that_it_is_synthetic_and_where_it_came_from(row, volume, labels, out):
    path = Derivative(out, TABLE).write(row, volume, labels)
    sidecar = json.loads((path.parent / "sub-1v01_ses-a_T1w.json").read_text())
    assert sidecar["Synthetic"] is True
    assert "not for clinical use" in sidecar["Description"]
    assert PROVENANCE.items() <= sidecar.items()
    assert (sidecar["SourceParticipant"], sidecar["LabelTable"]) == ("sub-1", "freesurfer")
    for software in ("torch", "monai", "python", "spade_fusion_bundle"):
        assert f"{software} " in sidecar["SoftwareVersions"]
    with pytest.raises(ValueError, match="provenance lacks Seed, WeightsSHA256"):
        partial = {key: value for key, value in PROVENANCE.items() if key not in ("Seed", "WeightsSHA256")}
        Derivative(out, TABLE).write({**row, "provenance": partial}, volume, labels)


@pytest.mark.parametrize("outside, stripped", [(24, True), (515, False)])
def test_the_sidecar_says_whether_the_map_holds_more_than_the_brain(row, volume, out, outside, stripped):
    """CSF around the brain belongs to a stripped map as well; skull does not."""
    labels = np.full(SHAPE, 2)
    labels[: SHAPE[0] * (1 if stripped else 2) // 4] = outside
    path = Derivative(out, TABLE).write(row, volume, labels)
    assert json.loads((path.parent / "sub-1v01_ses-a_T1w.json").read_text())["SkullStripped"] is stripped


def test_the_data_set_names_its_maker_and_its_labels(out, row, volume):
    Derivative(out, TABLE).write(row, volume, np.full(SHAPE, 2))
    description = json.loads((out / "dataset_description.json").read_text())
    assert description["DatasetType"] == "derivative"
    assert description["GeneratedBy"][0]["Name"] == "spade_fusion_bundle"
    assert "not for clinical use" in (out / "README").read_text()
    names = dict(line.split("\t") for line in (out / "dseg.tsv").read_text().splitlines())
    assert names["index"] == "name" and names["0"] == "background"
    assert (names["11"], names["50"], names["1035"], names["16"]) == (
        "left caudate",
        "right caudate",
        "left cerebral cortex",
        "brain stem",
    )


def test_the_table_of_participants_tells_whose_maps_were_used(row, volume, labels, out):
    derivative = Derivative(out, TABLE)
    other = {**row, "participant_id": "sub-0", "session_id": None, "source_participant_id": "sub-0"}
    derivative.write(row, volume, labels)
    assert derivative.finish([row, other]) == ["sub-0"]
    derivative.write({**other, "provenance": {**PROVENANCE, "Variant": 0}}, volume, labels)
    assert derivative.finish([row, other]) == []
    assert (out / "participants.tsv").read_text().splitlines() == [
        "participant_id\tsource_participant_id\tvariant",
        "sub-0\tsub-0\t0",
        "sub-1v01\tsub-1\t1",
    ]
    table = out / "participants.tsv"
    lines = zip(table.read_text().splitlines(), ("qc", "good", "bad"))
    table.write_text("".join(f"{line}\t{cell}\n" for line, cell in lines))
    derivative.finish([row])
    assert [line.split("\t")[-1] for line in table.read_text().splitlines()] == ["qc", "good", "bad"]


def test_equal_images_are_equal_files(row, volume, labels, tmp_path):
    first, second = (Derivative(tmp_path / name, TABLE).write(row, volume, labels) for name in "ab")
    assert first.read_bytes() == second.read_bytes()
    assert first.read_bytes()[3:8] == b"\0\0\0\0\0"  # no name, no time


def test_an_image_counts_as_made_when_all_of_it_is_there(row, volume, labels, out):
    derivative = Derivative(out, TABLE)
    assert not derivative.is_complete(row)
    path = derivative.write(row, volume, labels)
    assert derivative.is_complete(row)
    assert not derivative.is_complete({**row, "provenance": {**PROVENANCE, "Seed": 18}})
    assert not Derivative(out, TABLE, dtype="float32").is_complete(row)
    for ending in ("T1w.nii.gz", "dseg.nii.gz", "T1w.json"):
        file = path.with_name(f"sub-1v01_ses-a_{ending}")
        content = file.read_bytes()
        file.unlink()
        assert not derivative.is_complete(row)
        file.write_bytes(content[:-9])
        assert not derivative.is_complete(row)
        file.write_bytes(content)
    assert derivative.is_complete(row)


def test_an_image_of_an_earlier_version_counts_as_made(row, volume, labels, out):
    derivative = Derivative(out, TABLE)
    sidecar = derivative.write(row, volume, labels).with_name("sub-1v01_ses-a_T1w.json")
    earlier = {"IntensityScaling": "The model's 0 to 1", "SoftwareVersions": {"spade_fusion_bundle": "0.0.1"}}
    sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | earlier))
    assert derivative.is_complete(row)


def test_a_grid_that_changed_under_the_image_makes_it_unmade(row, volume, labels, out):
    def current():
        return {**row, "provenance": {**row["provenance"], **map_identity(row["image"])}}

    derivative = Derivative(out, TABLE)
    derivative.write(current(), volume, labels)
    assert derivative.is_complete(current()) and derivative.recorded_identity(row) == map_identity(row["image"])
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), AFFINE @ np.diag([1, 1, 1.5, 1])), row["image"])
    assert not derivative.is_complete(current()) and derivative.recorded_identity(row) is None


def test_another_map_with_the_size_and_date_of_the_map_is_found(row, volume, labels, out):
    """The image of the old map stayed: files in archives may have one date."""
    path = pathlib.Path(row["image"])
    os.utime(path, (1, 1))
    current = {**row, "provenance": {**row["provenance"], **map_identity(row["image"])}}
    derivative = Derivative(out, TABLE)
    derivative.write(current, volume, labels)
    assert derivative.recorded_identity(row) == map_identity(row["image"])
    assert Derivative(out, TABLE, verify=True).recorded_identity(row) is None
    path.write_bytes(bytes(reversed(path.read_bytes())))
    os.utime(path, (1, 1))
    assert derivative.recorded_identity(row) is None


def test_what_cannot_be_written_leaves_nothing_that_looks_made(row, volume, labels, out):
    derivative = Derivative(out, TABLE)
    volume[1, 2, 3] = np.nan
    with pytest.raises(ValueError, match="1 of 504 voxels are NaN or infinite.*--amp False"):
        derivative.write(row, volume, labels)
    with pytest.raises(ValueError, match=r"image \(7, 9, 7\) and labels \(7, 9, 8\) are not on the grid"):
        derivative.write(row, volume[..., 1:], labels)
    assert not list(out.glob("sub-*"))


@pytest.mark.parametrize("folder", ["sub-1", "ses-1", "anat"])
def test_folders_of_others_and_other_types_are_refused(out, folder):
    (out / folder).mkdir(parents=True)
    with pytest.raises(ValueError, match="holds a data set that spade_fusion_bundle did not make"):
        Derivative(out, TABLE)
    with pytest.raises(ValueError, match="output_dtype must be uint8 or float32, got 'int8'"):
        Derivative(out / "new", TABLE, dtype="int8")
    assert Derivative(out / "new", TABLE).dtype == "uint8"
    Derivative(out / "new", TABLE)  # a second run


@pytest.mark.parametrize("image_class, dtype", [(nib.Nifti2Image, np.int16), (nib.Nifti1Image, ">i2")])
def test_maps_in_nifti_2_or_of_big_endian_give_plain_nifti_1(image_class, dtype, row, volume, labels, out, tmp_path):
    header = image_class.header_class(endianness=">" if dtype == ">i2" else "<")
    nib.save(image_class(labels.astype(dtype), AFFINE, header), tmp_path / "other.nii")
    row = {**row, "image": str(tmp_path / "other.nii")}
    derivative = Derivative(out, TABLE)
    written = nib.load(derivative.write(row, volume, labels))
    assert type(written) is nib.Nifti1Image and written.header.endianness == "<"
    np.testing.assert_allclose(written.affine, AFFINE, atol=1e-5)
    assert derivative.is_complete(row)
