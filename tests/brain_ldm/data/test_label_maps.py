"""Label maps of a study are found, checked and brought to the model's grid with their sides, and their volumes are counted."""

import shutil

import nibabel as nib
import numpy as np
import pytest
import tiny
import tiny_labels
import torch
from conftest import ROOT
from measurement.label_values import read_volume_labels
from measurement.output_table import TEMPLATE_ICV_ML
from simulation.subject import measure_ml
from tiny_labels import SUMS, TABLE, TABLES

from brain_ldm_bundle.scripts.data import volumes
from brain_ldm_bundle.scripts.data.bids import read_dataset
from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.data.label_maps import CountedClasses, chosen_table
from brain_ldm_bundle.scripts.data.preprocessing import preprocessing

SCHEMA = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")


def read(folder, table=TABLE, **options):
    return read_dataset(folder, SCHEMA, tiny.SPACING_MM, table=table, **options)


def test_both_bundles_have_the_same_tables():
    assert TABLES.read_bytes() == (ROOT / "spade_fusion_bundle" / "configs" / "labels.json").read_bytes()


def test_maps_are_found_in_derivatives_and_next_to_scans(tmp_path):
    folder = tiny_labels.write_dataset(tmp_path, training=3, validation=1)
    shutil.move(folder / "derivatives" / "blobs" / "sub-0002", folder / "sub-0002")
    data = read(folder)
    assert [item["participant_id"] for item in data["training"]] == ["sub-0002", "sub-0001", "sub-0003"]
    assert len(data["validation"]) == 1 and data["test"] == []
    row = (folder / "participants.tsv").read_text().splitlines()[1].split("\t")
    item = next(item for item in data["training"] if item["participant_id"] == "sub-0001")
    assert SCHEMA.covariates[2].physical(item["covariates"][2]) == pytest.approx(float(row[3]))


@pytest.mark.parametrize("orientation", ["LIA", "LAS", "PSR"])
def test_classes_come_to_the_grid_with_their_sides(tmp_path, orientation):
    folder = tiny_labels.write_dataset(tmp_path, 1, 1, orientation)
    (item,) = read(folder)["training"]
    classes = preprocessing(tiny.SPACING_MM, table=TABLE)(item)["image"]
    assert classes.dtype == torch.uint8 and classes.shape == (1, 20, 28, 20)
    image = nib.as_closest_canonical(nib.load(item["image"]))
    expected = TABLE.classes(np.asarray(image.dataobj), "map")[::-1]  # from right to left, LAS
    assert np.array_equal(classes[0].numpy(), expected)
    left = np.argwhere(classes[0].numpy() == TABLE.names.index("left lateral ventricle"))
    assert left[:, 0].min() >= 10 and not np.array_equal(expected, expected[::-1])


def test_a_mirrored_map_has_its_sides_swapped(tmp_path):
    (item,) = read(tiny_labels.write_dataset(tmp_path, 1, 1))["training"]
    classes, mirrored = (preprocessing(tiny.SPACING_MM, table=TABLE, mirror_probability=p)(item)["image"] for p in (0.0, 1.0))
    assert np.array_equal(mirrored.numpy(), TABLE.mirror[classes.numpy()[:, ::-1]])
    left, right = (TABLE.names.index(f"{side} lateral ventricle") for side in ("left", "right"))
    assert (classes == left).sum() == (mirrored == right).sum() != (mirrored == left).sum()


def changed(folder, change):
    """Change the values of the first map; its path comes back."""
    path = sorted(folder.glob("derivatives/*/sub-0001/anat/*_dseg.nii.gz"))[0]
    image = nib.load(path)
    values, affine = change(np.asarray(image.dataobj).astype(np.float32), image.affine.copy())
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (
            lambda values, affine: (np.where(values == 4, 99, values), affine),
            r"label values 99 .* not in the label table 'demo'",
        ),
        (lambda values, affine: (values * 0.7, affine), "not integers"),
        (lambda values, affine: (values * 0, affine), "is empty"),
        (lambda values, affine: (values * (values == 17), affine), "mean scalp and face in the label table 'demo'"),
        (lambda values, affine: (values, affine @ np.diag([0.5, 0.5, 0.5, 1])), "has voxels of .4, 4, 4. mm, not 8 mm"),
    ],
)
def test_a_map_that_is_none_of_the_table_is_refused_by_name(tmp_path, change, fault):
    path = changed(tiny_labels.write_dataset(tmp_path, 2, 1), change)
    with pytest.raises(ValueError, match=fault) as refused:
        read(tmp_path)
    assert str(path) in str(refused.value)


def test_maps_of_another_table_are_refused(tmp_path):
    with pytest.raises(ValueError, match="not in the label table 'freesurfer'|in the label table 'freesurfer'"):
        read(tiny_labels.write_dataset(tmp_path, 2, 1), chosen_table(TABLES, "freesurfer"))


def test_two_maps_of_one_scan_are_refused(tmp_path):
    folder = tiny_labels.write_dataset(tmp_path, 2, 1)
    shutil.copytree(folder / "derivatives" / "blobs" / "sub-0001", folder / "derivatives" / "other" / "sub-0001")
    with pytest.raises(ValueError, match="2 label maps belong to one scan"):
        read(folder)


def test_synthetic_maps_in_derivatives_are_left_out(tmp_path):
    folder = tiny_labels.write_dataset(tmp_path, 2, 1)
    made = folder / "derivatives" / "made"
    shutil.copytree(folder / "derivatives" / "blobs", made)
    (made / "dataset_description.json").write_text('{"GeneratedBy": [{"Name": "brain_ldm_bundle"}]}')
    assert all("blobs" in item["image"] for item in read(folder)["training"])


def test_a_participant_without_a_map_is_named(tmp_path):
    folder = tiny_labels.write_dataset(tmp_path, 2, 1)
    shutil.rmtree(folder / "derivatives" / "blobs" / "sub-0002")
    with pytest.raises(ValueError, match="1 participants in .* without a label map .*: sub-0002"):
        read(folder)


def test_a_study_of_maps_is_none_of_scans(tmp_path):
    with pytest.raises(ValueError, match="without an image sub-X"):
        read(tiny_labels.write_dataset(tmp_path, 2, 1), table=None)


def test_volumes_are_counted_as_in_the_simulation():
    values = tiny_labels.head()
    expected, found = measure_ml(values, tiny.SPACING_MM), tiny_labels.volumes_of(values)
    assert found["brain_normalised_ml"] == pytest.approx(expected["brain_ml"] * TEMPLATE_ICV_ML / expected["icv_ml"])
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert volumes.TEMPLATE_ICV_ML == TEMPLATE_ICV_ML


def test_volumes_of_freesurfer_maps_are_those_that_the_tools_sum():
    table = chosen_table(TABLES, "freesurfer")
    counted = CountedClasses.of(table, SUMS)
    inside = set(range(table.num_classes)) - set(counted.outside)
    for classes, name in ((counted.ventricles, "ventricles_ml"), (counted.brain, "brain_ml"), (inside, "icv_ml")):
        values = {value for value in table.value_names() if table.classes(np.array([value, 2]), "")[0] in classes}
        assert values == read_volume_labels()[name], name
    assert [table.names[number] for number in counted.sulcal_csf] == ["CSF"]
