"""Label tables have the right classes and sides, bad tables and maps are refused, and two transforms use the tables."""

import copy
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from monai.data import MetaTensor
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, Orientationd

from spade_fusion_bundle.scripts.shared.label_names import meaning
from spade_fusion_bundle.scripts.shared.label_table import LabelTable
from spade_fusion_bundle.scripts.shared.label_transforms import RandMirrord, ToClassesd

TABLES = ROOT / "spade_fusion_bundle" / "configs" / "labels.json"
FREESURFER = LabelTable.from_file(TABLES, "freesurfer")
DEMO = LabelTable.from_file(TABLES, "demo")
ANATOMY = ROOT.parent / "shared" / "anatomy"

SIDED = LabelTable.from_dict(
    {
        "name": "sided",
        "classes": [
            {"class": 0, "name": "background", "midline": [0], "brain": False},
            {"class": 1, "name": "cortex", "left": [3, "1000-1002"], "brain": True},
            {"class": 2, "name": "brain stem", "midline": [16], "brain": True},
            {"class": 3, "name": "cortex", "right": [42, "2000-2002"], "brain": True},
            {"class": 4, "name": "skull", "midline": [515], "brain": False},
        ],
    },
    "weights.pt",
)


def entries(**changes):
    """Entries of a sound table, one of them by class changed: c1={"left": [5]}; a key with None is taken away."""
    result = copy.deepcopy(SIDED.to_dict()["classes"])
    for number, change in changes.items():
        entry = result[int(number[1:])]
        entry.update(change)
        for key in [key for key, value in entry.items() if value is None]:
            del entry[key]
    return result


# The tables that come with the bundle


def test_values_and_ranges_become_their_classes():
    values = np.array([0, 4, 43, 44, 3, 42, 1000, 1035, 2017, 251, 255, 77, 515, 12175])
    names = [FREESURFER.names[number] for number in FREESURFER.classes(values, "map")]
    ventricle, cortex, white = "lateral ventricle", "cerebral cortex", "cerebral white matter"
    expected = ["background", *[ventricle] * 3, *[cortex] * 5, white, white, "lesion", "skull", cortex]
    assert names == expected


def test_the_table_knows_all_values_of_aseg_and_of_synthseg():
    aseg = [0, 2, 3, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18, 24, 26, 28, 30, 31, 41, 42, 43, 44, 46, 47, 49, 50, 51]
    aseg += [52, 53, 54, 58, 60, 62, 63, 72, 77, 78, 79, 85, 251, 252, 253, 254, 255]
    assert set(FREESURFER.classes(np.array(aseg), "map")) == set(range(21))


def test_substantia_nigra_is_ventral_diencephalon_and_undetermined_tissue_is_refused():
    assert {FREESURFER.names[number] for number in FREESURFER.classes(np.array([27, 28, 59, 60]), "map")} == {
        "ventral diencephalon"
    }
    with pytest.raises(ValueError, match=r"label values 29 \(1 voxels\), 61 \(2 voxels\) are not in the label table"):
        FREESURFER.classes(np.array([29, 61, 61, 2]), "map")


def test_structures_of_equal_sides_share_a_class_in_every_map_of_real_anatomy():
    path = ANATOMY / "generation_labels.npy"
    if not path.is_file():
        pytest.skip(f"{path} is not here")
    values = np.load(path)
    classes = FREESURFER.classes(values, "map")
    assert len(values) == 54 and set(classes) == set(range(FREESURFER.num_classes))
    assert (classes[18:36] == classes[36:]).all()  # the file lists midline, left, right


UNEST_NAMES = {  # some of channel_def of the zoo's wholeBrainSeg_Large_UNEST_segmentation
    **{1: "3rd-Ventricle", 3: "Right-Accumbens-Area", 7: "Brain-Stem", 9: "Left-Caudate", 10: "Right-Cerebellum-Exterior"},
    **{
        13: "Left-Cerebellum-White-Matter",
        14: "Right-Cerebral-White-Matter",
        18: "Right-Inf-Lat-Vent",
        33: "Left-Basal-Forebrain",
    },
    **{27: "Left-Thalamus-Proper", 28: "Right-Ventral-DC", 35: "Right-ACgG--anterior-cingulate-gyrus"},
    132: "Left-TTG---transverse-temporal-gyrus",
}


def test_unest_has_133_values_with_the_sides_of_the_zoo():
    names = LabelTable.from_file(TABLES, "unest").value_names()
    assert sorted(names) == list(range(133))
    for value, zoo in UNEST_NAMES.items():
        side = meaning(zoo).side
        assert names[value].startswith(side) and (side or names[value].split()[0] not in ("left", "right")), value
    assert (
        names[132] == "left cerebral cortex" and names[33] == "left basal forebrain" and names[18] == "right lateral ventricle"
    )


@pytest.mark.parametrize("name", ["samseg", "unest", "meshnet18"])
def test_names_of_structures_are_those_of_the_other_tables(name):
    """Volumes are summed by names, so a new spelling would leave a structure out."""
    known = {*FREESURFER.names, *DEMO.names, "basal forebrain"}
    assert set(LabelTable.from_file(TABLES, name).names) <= known


def test_samseg_gives_the_values_of_aseg_the_same_meaning():
    ours, aseg = LabelTable.from_file(TABLES, "samseg").value_names(), FREESURFER.value_names()
    assert {value: name for value, name in ours.items() if value not in (99, 165, 258, 259)}.items() <= aseg.items()
    assert [ours[value] for value in (99, 165, 258, 259)] == ["lesion", "skull", "scalp and face", "eye"]


def test_the_tissues_of_a_class_have_the_same_simulated_contrast():
    """The simulation of T1w and this table group the values in the same way."""
    from simulation.labelled_subject import LABELS

    tissues = {}
    for value, tissue in LABELS.items():
        name = FREESURFER.names[FREESURFER.classes(np.array([value, 2]), "map")[0]]
        tissues.setdefault(name, set()).add(tissue)
    assert {name: found for name, found in tissues.items() if len(found) > 1} == {}


def test_the_demo_table_says_what_the_demo_cohort_means():
    from simulation.subject import LABELS, VOLUMES

    values = np.array(list(LABELS))
    classes = DEMO.classes(values, "map")
    assert [DEMO.names[number] for number in classes] == [
        name.removeprefix("left ").removeprefix("right ") for name in LABELS.values()
    ]
    brain = set(values[np.isin(classes, DEMO.brain)])
    assert brain == {*VOLUMES["brain_ml"], *VOLUMES["ventricles_ml"], 8}


def test_brain_classes_leave_out_what_lies_around_the_brain():
    outside = {FREESURFER.names[number] for number in range(21) if number not in FREESURFER.brain}
    assert outside == {"background", "CSF", "vessel"}
    assert max(FREESURFER.brain) < 21


# Values


def test_classes_keep_the_shape_and_are_uint8():
    values = np.zeros((1, 3, 4, 5), np.int16)
    values[0, 1, 2, 3] = 2001
    classes = SIDED.classes(values, "map")
    assert classes.dtype == np.uint8 and classes.shape == (1, 3, 4, 5)
    assert classes[0, 1, 2, 3] == 3 and classes.sum() == 3


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64", "uint64", "float32", "float64"])
def test_the_number_type_of_a_map_does_not_matter(dtype):
    assert SIDED.classes(np.array([0, 3, 16, 42], dtype), "map").tolist() == [0, 1, 2, 3]


def test_floats_near_integers_are_rounded():
    assert SIDED.classes(np.array([0.004, 2.995, 41.9999, 515.001], np.float32), "map").tolist() == [0, 1, 3, 4]


def test_an_interpolated_map_is_refused():
    with pytest.raises(ValueError, match=r"sub-1_dseg.nii: 2 of 4 voxels are not integers, such as 1.5: .*interpolated"):
        SIDED.classes(np.array([0, 1.5, 3, 41.9]), "sub-1_dseg.nii")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused(value):
    with pytest.raises(ValueError, match="map.nii: 1 voxels are NaN or infinite"):
        SIDED.classes(np.array([0, value, 3]), "map.nii")


def test_unknown_values_are_refused_with_their_counts():
    values = np.array([[0, 3, 99], [99, -1, 70000]])
    with pytest.raises(ValueError) as error:
        SIDED.classes(values, "sub-1_dseg.nii")
    message = str(error.value)
    assert message.startswith("sub-1_dseg.nii: label values -1 (1 voxels), 99 (2 voxels), 70000 (1 voxels) are not in")
    assert "label table 'sided'" in message and "add the values" in message


def test_of_many_unknown_values_ten_are_listed():
    with pytest.raises(ValueError, match=r"29 \(1 voxels\) and 7 more values are not"):
        SIDED.classes(np.arange(20, 37), "map")


def test_a_huge_float_is_an_unknown_value():
    with pytest.raises(ValueError, match="not in the label table"):
        SIDED.classes(np.array([1e20, 3]), "map")


def test_an_empty_map_is_refused():
    with pytest.raises(ValueError, match="map.nii: the label map is empty, all 60 voxels are background"):
        SIDED.classes(np.zeros((3, 4, 5)), "map.nii")


# Sides


def test_names_and_mirror_of_sided_classes():
    assert SIDED.names == ["background", "left cortex", "brain stem", "right cortex", "skull"]
    assert SIDED.mirror.tolist() == [0, 3, 2, 1, 4] and SIDED.mirror.dtype == np.uint8
    assert SIDED.brain == (1, 2, 3)
    assert FREESURFER.mirror.tolist() == list(range(32))


def test_a_table_survives_its_journey_in_the_weights():
    content = json.loads(json.dumps(SIDED.to_dict()))
    again = LabelTable.from_dict(content, "weights.pt")
    assert again.to_dict() == SIDED.to_dict()
    assert (again.name, again.names, again.brain) == (SIDED.name, SIDED.names, SIDED.brain)
    values = np.array([0, 3, 1001, 2002, 16, 515])
    assert (again.classes(values, "map") == SIDED.classes(values, "map")).all()


def test_a_change_of_the_exported_table_does_not_reach_the_table():
    SIDED.to_dict()["classes"][1]["left"].append(7)
    with pytest.raises(ValueError, match=r"7 \(1 voxels\)"):
        SIDED.classes(np.array([7]), "map")


# Tables that are refused


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"c2": {"class": 7}}, r"classes must be 0 to 4, each once, got \[0, 1, 3, 4, 7\]"),
        ({"c2": {"class": 1}}, r"classes must be 0 to 4, each once, got \[0, 1, 1, 3, 4\]"),
        ({"c4": {"midline": [515, 1001]}}, r"value 1001 is in class 1 \(cortex\) and in class 4 \(skull\)"),
        ({"c4": {"midline": [515, 515]}}, r"value 515 is in class 4 .* or twice in one"),
        ({"c3": {"name": "bark"}}, r"class 1 \(cortex\) has \['left'\] values, but not the other side's"),
        ({"c2": {"midline": None, "right": [16]}}, r"class 2 \(brain stem\) has \['right'\] values, but not"),
        ({"c4": {"name": "brain stem"}}, r"name 'brain stem' is given to classes \[2, 4\]"),
        ({"c1": {"midline": [5]}}, r"name 'cortex' is given to classes \[1, 3\].*'left' alone"),
        ({"c4": {"name": "cortex"}}, r"name 'cortex' is given to classes \[1, 3, 4\]"),
        ({"c3": {"brain": False}}, "left and the right cortex differ in 'brain'"),
        ({"c0": {"midline": [9]}}, "class 0 must be the background, with the value 0"),
        ({"c0": {"brain": True}}, "class 0 must be the background"),
        ({"c2": {"midline": None}}, r"entry 2 \(brain stem\): no values"),
        ({"c2": {"midline": 16}}, r"entry 2 \(brain stem\): 'midline' must list integers or ranges .* got 16"),
        ({"c2": {"midline": [16.5]}}, r"'midline' must list integers or ranges .* got \[16.5\]"),
        ({"c2": {"midline": ["20-16"]}}, r"'midline' must list integers or ranges .* got \['20-16'\]"),
        ({"c2": {"midline": ["all"]}}, r"'midline' must list integers or ranges .* got \['all'\]"),
        ({"c2": {"midline": [2**24 + 1]}}, r"integers or ranges .* up to 16777216, got \[16777217\]"),
        ({"c2": {"midline": ["16-99999999999"]}}, r"integers or ranges .* got \['16-99999999999'\]"),
        ({"c2": {"brain": "yes"}}, "entry 2: 'brain' must be of type bool, got 'yes'"),
        ({"c2": {"name": None}}, "entry 2: 'name' must be of type str, got None"),
        ({"c2": {"class": "2"}}, "entry 2: 'class' must be of type int, got '2'"),
        ({"c2": {"middle": [16]}}, "entry 2: unknown key 'middle'. Possible are class, name, left"),
    ],
)
def test_faults_of_a_table_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        LabelTable("own", entries(**changed))


@pytest.mark.parametrize("content", [{}, [], [{"class": 0, "name": "background", "midline": [0], "brain": False}], "abc", 5])
def test_what_is_no_list_of_classes_is_refused(content):
    with pytest.raises(ValueError, match="label table 'own': expected"):
        LabelTable("own", content)


def test_an_entry_that_is_no_object_is_refused():
    with pytest.raises(ValueError, match="entry 1: expected .* got 5"):
        LabelTable("own", [SIDED.to_dict()["classes"][0], 5])


def test_more_classes_than_uint8_can_hold_are_refused():
    many = [{"class": n, "name": f"region {n}", "midline": [n], "brain": n > 0} for n in range(256)]
    assert LabelTable("atlas", many[:255]).num_classes == 255
    with pytest.raises(ValueError, match="256 classes, at most 255"):
        LabelTable("atlas", many)


def test_an_unknown_table_is_answered_with_the_nearest_name():
    with pytest.raises(ValueError, match="no label table 'freesurfr'. Did you mean 'freesurfer'"):
        LabelTable.from_file(TABLES, "freesurfr")
    with pytest.raises(ValueError, match="no label table 'x'. There are: freesurfer, demo"):
        LabelTable.from_file(TABLES, "x")
    with pytest.raises(ValueError, match="no label table '_desc_'"):
        LabelTable.from_file(TABLES, "_desc_")


def test_a_missing_file_and_one_that_is_not_json_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="own.json: no such file"):
        LabelTable.from_file(tmp_path / "own.json", "own")
    (tmp_path / "own.json").write_text('{"own": [}')
    with pytest.raises(ValueError, match="own.json: this is not JSON"):
        LabelTable.from_file(tmp_path / "own.json", "own")
    for text in ("[1, 2]", "{}"):
        (tmp_path / "own.json").write_text(text)
        with pytest.raises(ValueError, match='own.json: expected named tables, {"freesurfer": '):
            LabelTable.from_file(tmp_path / "own.json", "own")


def test_faults_of_a_table_in_a_file_name_the_file(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"own": entries(c2={"class": 7})}))
    with pytest.raises(ValueError, match=r"own.json table 'own': the classes must be 0 to 4"):
        LabelTable.from_file(tmp_path / "own.json", "own")


def test_a_table_without_the_brain_is_refused(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"own": [entry | {"brain": False} for entry in entries()]}))
    with pytest.raises(ValueError, match=r"own.json table 'own': has no class with \"brain\": true. Mark the classes"):
        LabelTable.from_file(tmp_path / "own.json", "own")


def test_sides_that_only_the_names_tell_are_named(tmp_path, recwarn):
    """Mirroring left "left wm" on the right side of the head."""

    def read(one, other):
        classes = [
            {"class": 0, "name": "background", "midline": [0], "brain": False},
            {"class": 1, "name": one, "midline": [2], "brain": True},
            {"class": 2, "name": other, "midline": [41], "brain": True},
        ]
        (tmp_path / "own.json").write_text(json.dumps({"own": classes}))
        LabelTable.from_file(tmp_path / "own.json", "own")

    for name in ("freesurfer", "demo"):
        LabelTable.from_file(TABLES, name)
    read("left wm", "right gm")
    read("cleft", "cright")
    assert not recwarn.list
    for names in (("left wm", "right wm"), ("Right-WM", "Left-WM"), ("wm_left", "wm_right")):
        with pytest.warns(UserWarning, match="are midline, so a mirrored head keeps the name of the wrong side"):
            read(*names)


@pytest.mark.parametrize("content", [None, [], {"name": "own"}])
def test_what_is_no_exported_table_is_refused(content):
    with pytest.raises(ValueError, match="weights.pt: expected a label table"):
        LabelTable.from_dict(content, "weights.pt")


# Transforms

AFFINE = np.array([[-2.0, 0, 0, 5], [0, 0, 3, 6], [0, -4, 0, 7], [0, 0, 0, 1]])  # LIA, anisotropic


def phantom():
    """Values (3, 4, 5) of SIDED: the left cortex in a corner, a bigger right one, one voxel of skull."""
    values = np.zeros((3, 4, 5), np.float32)
    values[0, 0, 0], values[2, 1:, 3], values[1, 2, 4] = 1001, 42, 515
    return values


def test_a_map_from_a_file_becomes_classes_on_its_own_grid(tmp_path):
    path = tmp_path / "sub-1_dseg.nii.gz"
    nib.save(nib.Nifti1Image(phantom(), AFFINE), path)
    load = [LoadImaged("label"), EnsureChannelFirstd("label"), ToClassesd("label", SIDED)]
    label = Compose(load)({"label": path})["label"]
    assert isinstance(label, MetaTensor) and label.dtype == torch.uint8 and label.shape == (1, 3, 4, 5)
    assert np.allclose(label.affine, AFFINE)
    assert label[0, 0, 0, 0] == 1 and (label[0, 2, 1:, 3] == 3).all() and label[0, 1, 2, 4] == 4


def test_classes_turn_with_the_map(tmp_path):
    path = tmp_path / "sub-1_dseg.nii.gz"
    nib.save(nib.Nifti1Image(phantom(), AFFINE), path)
    load, turn = [LoadImaged("label"), EnsureChannelFirstd("label")], Orientationd("label", axcodes="RAS", labels=None)
    before = Compose([*load, ToClassesd("label", SIDED), turn])({"label": path})["label"]
    after = Compose([*load, turn, ToClassesd("label", SIDED)])({"label": path})["label"]
    assert before.shape == (1, 3, 5, 4) and (before == after).all() and np.allclose(before.affine, after.affine)


def test_refusals_name_the_file(tmp_path):
    path = tmp_path / "sub-1_dseg.nii.gz"
    nib.save(nib.Nifti1Image(phantom() + 1, AFFINE), path)
    load = Compose([LoadImaged("label"), EnsureChannelFirstd("label")])
    with pytest.raises(ValueError, match=r"sub-1_dseg.nii.gz: label values 1 \(55 voxels\), 43 "):
        ToClassesd("label", SIDED)(load({"label": path}))


def test_a_map_without_a_file_is_named_by_its_key():
    with pytest.raises(ValueError, match="label map 'label': label values 9 "):
        ToClassesd("label", SIDED)({"label": torch.full((1, 2, 2, 2), 9)})


def pair():
    classes = MetaTensor(torch.from_numpy(SIDED.classes(phantom(), "phantom"))[None], affine=torch.from_numpy(AFFINE))
    image = MetaTensor(torch.rand(1, 3, 4, 5, generator=torch.Generator().manual_seed(0)), affine=torch.from_numpy(AFFINE))
    return {"image": image, "label": classes}


def test_a_mirrored_head_has_its_sides_swapped():
    data = pair()
    mirrored = RandMirrord(["image", "label"], "label", SIDED, prob=1)(data)
    assert torch.equal(mirrored["image"][0, 0], data["image"][0, 2])  # the first axis is right
    label = mirrored["label"]
    assert label[0, 2, 0, 0] == 3 and (label[0, 0, 1:, 3] == 1).all() and label[0, 1, 2, 4] == 4
    assert label.dtype == torch.uint8 and (label > 0).sum() == (data["label"] > 0).sum()


def test_mirroring_keeps_the_grid_and_the_original():
    data = pair()
    before = {key: value.clone() for key, value in data.items()}
    mirrored = RandMirrord(["image", "label"], "label", SIDED, prob=1)(data)
    for key in data:
        assert torch.equal(data[key], before[key])
        assert np.allclose(mirrored[key].affine, AFFINE)


def test_mirroring_twice_is_no_change():
    mirror, data = RandMirrord(["image", "label"], "label", SIDED, prob=1), pair()
    again = mirror(mirror(data))
    assert all(torch.equal(again[key], data[key]) for key in data)


def test_the_probability_and_the_seed_of_mirroring_are_respected():
    def draws(seed, prob):
        mirror = RandMirrord(["image", "label"], "label", SIDED, prob)
        mirror.set_random_state(seed)
        data = pair()
        return [not torch.equal(mirror(data)["image"], data["image"]) for _ in range(60)]

    assert draws(1, 0.3) == draws(1, 0.3) and draws(1, 0.3) != draws(2, 0.3)
    assert 5 < sum(draws(1, 0.3)) < 35
    assert not any(draws(1, 0)) and all(draws(1, 1))
