"""Label maps are read with the table's values, whatever stores them; masks and maps of other tools are refused."""

import re
import warnings

import nibabel as nib
import numpy as np
import pytest
from conftest import ROOT
from monai.transforms import LoadImaged

from spade_fusion_bundle.scripts.shared.label_table import LabelTable
from spade_fusion_bundle.scripts.shared.map_reader import MapReader, read_map

TABLES = ROOT / "spade_fusion_bundle" / "configs" / "labels.json"
FREESURFER = LabelTable.from_file(TABLES, "freesurfer")
DEMO = LabelTable.from_file(TABLES, "demo")
ANATOMY = ROOT.parent / "shared" / "anatomy"
SYNTHSEG = [2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28]
SYNTHSEG += [41, 42, 43, 44, 46, 47, 49, 50, 51, 52, 53, 54, 58, 60]


def head(values=SYNTHSEG, shape=(6, 7, 8)):
    """Each value in some voxels, the left ones in the left half."""
    labels = np.zeros(shape, np.int32)
    labels.flat[10 : 10 + len(values)] = values
    labels.flat[200 : 200 + len(values)] = values
    return labels


def mask(value):
    return np.where(head() > 0, np.int32(value), np.int32(0))


def save(path, labels, dtype=None, image_class=nib.Nifti1Image):
    image = image_class(labels if dtype is None else labels.astype(float), np.diag([-2.0, 2, 2, 1]))
    image.header.set_data_dtype(dtype or labels.dtype)
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def values(path, table=FREESURFER, **options):
    """The values by the check's function, which MONAI's transform must give too."""
    by_check = np.asarray(read_map(path, table, **options).dataobj)
    loaded = LoadImaged("label", reader=MapReader(table, **options))({"label": path})["label"]
    np.testing.assert_array_equal(loaded.numpy(), by_check)
    np.testing.assert_allclose(loaded.affine, nib.load(path).affine)
    return by_check


def refusal(path, table=FREESURFER):
    with pytest.raises(ValueError) as by_check:
        read_map(path, table)
    with pytest.raises(ValueError) as by_transform:
        LoadImaged("label", reader=MapReader(table))({"label": path})
    assert str(by_check.value) == str(by_transform.value) and str(by_check.value).startswith(str(path))
    return str(by_check.value)


# Numbers


@pytest.mark.parametrize(("dtype", "added"), [("int16", [1011, 2035]), ("int16", [11101, 12175]), ("uint8", []), ("int32", [])])
def test_labels_under_a_header_that_scales_integers_are_read(tmp_path, dtype, added):
    labels = head(SYNTHSEG + added)
    path = save(tmp_path / "map.nii.gz", labels, np.dtype(dtype))
    if added:
        assert np.abs(nib.load(path).get_fdata() - labels).max() > 0.01
    np.testing.assert_array_equal(values(path), labels)


def test_a_header_that_loses_labels_is_refused(tmp_path):
    path = save(tmp_path / "map.nii.gz", head([*SYNTHSEG, 2040]), np.dtype("uint8"))
    assert "scales integers by 8, so labels between are lost" in refusal(path)


def test_fractions_beyond_the_header_s_rounding_are_refused(tmp_path):
    labels = head([*SYNTHSEG, 2035]).astype(float)
    labels[3, 3, 3] = 2.5
    refused = refusal(save(tmp_path / "map.nii.gz", labels, np.dtype("int16")))
    assert re.search(r"1 of 336 voxels are not integers, such as 2\.[45]", refused)


def test_noise_of_a_float_map_is_rounded(tmp_path):
    noise = np.random.default_rng(0).uniform(-1e-6, 1e-6, head().shape)
    np.testing.assert_array_equal(values(save(tmp_path / "map.nii.gz", head() + noise)), head())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((6, 7, 8), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "has voxels of type RGB"),
        (head().astype(np.complex64), "has voxels of type complex64; one real number per voxel is needed"),
        (np.stack([head(), head()], -1), r"has 4 dimensions (6, 7, 8, 2); three are needed"),
        (np.where(head() > 0, 0.7, 0), "64 of 336 voxels are not integers, such as 0.7"),
        (np.where(head() == 2, 99, head()), "label values 99 (2 voxels) are not in the label table 'freesurfer'"),
    ],
)
def test_what_is_no_label_map_is_named_in_one_sentence(tmp_path, labels, message):
    assert f": {message}" in refusal(save(tmp_path / "map.nii.gz", labels))


@pytest.mark.parametrize("name", ["aseg.mgz", "aseg.mgh"])
def test_maps_of_freesurfer_are_read(tmp_path, name):
    np.testing.assert_array_equal(values(save(tmp_path / name, head(), image_class=nib.MGHImage)), head())


# Meaning


@pytest.mark.parametrize(
    ("table", "labels", "message"),
    [
        (FREESURFER, mask(255), "its values 255 (64 voxels) mean cerebral white matter in the label table"),
        (FREESURFER, mask(1), "label values 1 (64 voxels) are not in the label table"),
        (FREESURFER, head([2, 4]), "its values 2 (2 voxels), 4 (2 voxels) mean lateral ventricle, cerebral white matter in"),
        (FREESURFER, head([2, 3]), "a head has at least 9 of its 18 brain structures"),
        (FREESURFER, head([10, 11, 12, 13, 16, 17, 18, 26, 49, 50]), "If the map shows a part of a head, add --partial_maps"),
        (DEMO, head([1, 2, 4]), "mean sulcal CSF, cerebral cortex, cerebral white matter in the label table 'demo', but"),
        (DEMO, mask(1), "its values 1 (64 voxels) mean sulcal CSF"),
    ],
    ids=["mask 255", "mask 1", "BraTS 2, 4", "tissues", "deep grey alone", "BraTS as demo", "mask as demo"],
)
def test_a_map_with_another_meaning_is_refused(tmp_path, table, labels, message):
    assert message in refusal(save(tmp_path / "map.nii.gz", labels), table)


def test_partial_maps_insists(tmp_path):
    path = save(tmp_path / "map.nii.gz", head([2, 3]))
    np.testing.assert_array_equal(values(path, partial_maps=True), head([2, 3]))


@pytest.mark.parametrize("part", ["whole", "half", "cropped", "stripped", "coarse"])
def test_usual_maps_of_heads_pass(part):
    """A real head, its left half, a box of it, the brain alone, every 8th voxel."""
    path = ANATOMY / "training_seg_12.nii.gz"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    whole = np.asarray(nib.as_closest_canonical(nib.load(path)).dataobj)[::4, ::4, ::4].round().astype(int)
    half = np.where(np.arange(whole.shape[0])[:, None, None] < whole.shape[0] // 2, whole, 0)
    made = {"half": half, "cropped": whole[16:48, 16:48, 16:48], "stripped": np.where(whole < 500, whole, 0)}
    FREESURFER.refuse_other_meaning({"whole": whole, "coarse": whole[::2, ::2, ::2], **made}[part], "map")


def test_structures_with_two_sides_count_once():
    left = head([value for value in SYNTHSEG if value < 40])
    for table in (FREESURFER, FREESURFER.sided()):
        table.refuse_other_meaning(left, "left half")


# Names


def test_a_table_of_names_is_found_beside_the_map_and_above_it(tmp_path):
    name = "sub-1_space-T1w_desc-aseg_dseg"
    path = save(tmp_path / "sub-1" / "ses-1" / "anat" / f"{name}.nii.gz", head())
    (tmp_path / "dseg.tsv").write_text("index\tname\n2\tedema\n")
    assert f"{tmp_path}/dseg.tsv contradicts the label table 'freesurfer': 2 is 'edema'" in refusal(path)
    (tmp_path / "desc-aseg_dseg.tsv").write_text("index\tname\n2\tLeft-Cerebral-White-Matter\n")  # names more entities
    (tmp_path / "desc-aparcaseg_dseg.tsv").write_text("index\tname\n2\tedema\n")  # another map's
    np.testing.assert_array_equal(values(path), head())
    path.with_name(f"{name}.tsv").write_text("index\tname\n4\tedema\n")  # nearer
    assert "4 is 'edema'" in refusal(path)


def test_a_table_above_the_data_set_is_another_data_set_s(tmp_path):
    path = save(tmp_path / "derivatives" / "fs" / "sub-1" / "anat" / "sub-1_dseg.nii.gz", head())
    (tmp_path / "dseg.tsv").write_text("index\tname\n2\tedema\n")
    np.testing.assert_array_equal(values(path), head())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("value\tname\n2\tx\n", "expected columns index and name, got value, name"),
        ("index\tname\ntwo\tx\n", "index must be a whole number, got 'two'"),
        ("index\tname\n2\tx\n2\ty\n", "index 2 is 'x' and 'y'. Keep one"),
    ],
)
def test_faults_of_a_table_of_names_are_named(tmp_path, text, message):
    path = save(tmp_path / "map.nii.gz", head())
    (tmp_path / "dseg.tsv").write_text(text)
    assert f"{tmp_path / 'dseg.tsv'}: {message}" in refusal(path)


def test_a_link_to_a_missing_table_of_names_is_not_ignored(tmp_path):
    path = save(tmp_path / "map.nii.gz", head())
    (tmp_path / "dseg.tsv").symlink_to("gone.tsv")
    with pytest.raises(FileNotFoundError, match="dseg.tsv: is a link to gone.tsv, which does not exist"):
        values(path)


def test_two_tables_of_names_are_refused(tmp_path):
    path = save(tmp_path / "sub-1_space-T1w_desc-aseg_dseg.nii.gz", head())
    for entity in ("desc-aseg", "space-T1w"):
        (tmp_path / f"{entity}_dseg.tsv").write_text("index\tname\n2\tx\n")
    assert "desc-aseg_dseg.tsv and " in refusal(path)


def test_a_map_in_other_numbers_is_read_by_its_names(tmp_path):
    numbers = {number: value for number, value in enumerate(SYNTHSEG, 1)}
    labels = np.zeros_like(head())
    for number, value in numbers.items():
        labels[head() == value] = number
    path = save(tmp_path / "map.nii.gz", labels)
    names = FREESURFER.value_names()
    rows = "".join(f"{number}\t{names[value]}\n" for number, value in numbers.items())
    (tmp_path / "map_dseg.tsv").write_text(f"index\tname\n{rows}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read = values(path)
    np.testing.assert_array_equal(FREESURFER.classes(read, "map"), FREESURFER.classes(head(), "map"))
    np.testing.assert_array_equal(read >= 40, head() >= 40)  # sides are kept
