"""Weights are read in the order of TensorFlow.js, sides are split in turned heads, and maps lie on the grid of their scans."""

import hashlib
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import segment_t1w
import torch
from conftest import ROOT
from registration.deep_grey import CENTRES_MM
from scipy.spatial.transform import Rotation
from segmentation import meshnet, sides
from shared.files import read_json

from spade_fusion_bundle.scripts.shared.label_table import LabelTable
from spade_fusion_bundle.scripts.shared.map_reader import find_maps, read_map

REAL = Path(os.environ.get("REAL_SCANS", ROOT.parent / "shared" / "real"))
NUMBERS = 96_408


def number_of(value):
    """The class of one of FreeSurfer's values."""
    return next(k for k, entry in enumerate(meshnet.CLASSES, 1) if value in entry)


def test_weights_are_read_in_the_order_of_tensorflow():
    network = meshnet.from_tensorflow(np.arange(NUMBERS, dtype="<f4"))
    assert network[0].conv.weight[4, 0, 0, 1, 2] == (0 * 9 + 1 * 3 + 2) * 21 + 4
    assert network[0].conv.bias[3] == 27 * 21 + 3
    second = 27 * 21 + 21
    assert network[1].conv.weight[4, 7, 2, 0, 1] == second + ((2 * 9 + 0 * 3 + 1) * 21 + 7) * 21 + 4
    assert network[-1].bias[-1] == NUMBERS - 1


def test_slabs_give_the_classes_of_the_whole_network():
    generator = np.random.default_rng(0)
    network = meshnet.from_tensorflow(generator.normal(0, 0.08, NUMBERS).astype("<f4"))
    head = torch.from_numpy(generator.random((21, 18, 23), np.float32))
    with torch.no_grad():
        logits = network(head[None, None])[0]
    whole = logits.argmax(0)
    top = logits.topk(2, 0).values
    clear = top[0] - top[1] > 1e-4
    assert clear.float().mean() > 0.9 and len(whole.unique()) > 3
    assert torch.equal(meshnet.classify(network, head)[clear].long(), whole[clear])


def test_wrong_weights_are_refused_and_not_kept(tmp_path, monkeypatch):
    content = b"weights"
    (tmp_path / "model.bin").write_bytes(content)
    address, wanted = (tmp_path / "model.bin").as_uri(), tmp_path / "new" / "weights.bin"
    with pytest.raises(ValueError, match="model.bin: has the md5 .*, expected c2c3450c.* by other means, and save it as"):
        meshnet.download(wanted, (address,))
    assert not wanted.parent.exists()
    with pytest.raises(ValueError, match="model.bin: has the md5 .*, but model18cls of brainchop has c2c3450c"):
        meshnet.load_network(tmp_path / "model.bin")
    with pytest.raises(FileNotFoundError, match="Fetch it first: python scripts/segment_t1w.py --download"):
        meshnet.load_network(wanted)
    monkeypatch.setattr(meshnet, "MD5", hashlib.md5(content).hexdigest())
    meshnet.download(wanted, ((tmp_path / "gone").as_uri(), address))
    assert wanted.read_bytes() == content


def deep_grey(turn: Rotation, shape=(150, 170, 140)):
    """Balls at the places of both sides' deep grey structures in a head that was turned, and the right values."""
    affine = nib.affines.from_matvec(np.diag([1.0, 1, 1]), -np.array(shape) / 2)
    true = np.zeros(shape, np.uint8)
    x, y, z = np.ogrid[tuple(slice(size) for size in shape)]
    for values, centre_mm in CENTRES_MM.items():
        for value, side in zip(values, (-1, 1), strict=True):
            a, b, c = turn.apply(np.multiply(centre_mm, (side, 1, 1))) - affine[:3, 3]
            true[(x - a) ** 2 + (y - b) ** 2 + (z - c) ** 2 < 16] = value
    return np.vectorize(lambda value: number_of(value) if value else 0, otypes=[np.uint8])(true), affine, true


@pytest.mark.parametrize("angles_deg", [(0, 0, 0), (30, 0, 0), (-20, 20, 15)])
def test_sides_are_those_of_the_turned_head(angles_deg):
    classes, affine, true = deep_grey(Rotation.from_euler("zyx", angles_deg, degrees=True))
    assert np.array_equal(sides.freesurfer_values(classes, affine), true)
    mirrored = np.diag([-1.0, 1, 1, 1]) @ affine  # the same voxels, stored from right to left
    found = sides.freesurfer_values(classes, mirrored)
    assert np.array_equal(found[true == 10], np.full((true == 10).sum(), 49))


def test_a_map_without_deep_grey_matter_is_refused():
    with pytest.raises(ValueError, match="no deep grey matter"):
        sides.freesurfer_values(np.ones((20, 22, 24), np.uint8), np.eye(4))
    classes, affine, _ = deep_grey(Rotation.identity())
    with pytest.raises(ValueError, match="left and right cannot be told apart, because only . of 14"):
        sides.freesurfer_values(np.where(classes == number_of(10), classes, 0), affine)


LEVELS = np.array([0, 255, 150, 20, *range(60, 130, 5)], float)  # intensity of each class in the scans below


def scan(tmp_path, name="sub-07_T1w.nii.gz", codes="PSR"):
    """A head whose intensities tell the classes: a block of white and grey matter with the deep grey structures in it."""
    classes, affine, _ = deep_grey(Rotation.identity())
    brain = np.zeros_like(classes)
    brain[30:120, 40:140, 20:120] = 2
    brain[35:115, 45:135, 25:115] = 1
    brain[70:80, 60:100, 95:105] = 3
    brain[classes > 0] = classes[classes > 0]
    noise = np.random.default_rng(0).uniform(-1, 1, brain.shape) * (brain > 0)
    values = np.clip(LEVELS[brain] + noise, 0, 255).astype(np.float32)
    values[0, 0, 0], values[75, 90, 30] = 0, 255
    image = nib.Nifti1Image(values, affine)
    turned = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes))
    path = tmp_path / "study" / name.split("_")[0] / "anat" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image.as_reoriented(turned), path)
    return path


@pytest.fixture
def by_level(monkeypatch):
    """Label by intensity instead of the network, and count the scans."""
    seen = []

    def classify(network, head):
        seen.append(head.shape)
        classes = np.abs(head.numpy()[..., None] * 255 - LEVELS).argmin(-1).astype(np.uint8)
        return torch.from_numpy(np.where(head.numpy() > 0, classes, 0).astype(np.uint8))

    monkeypatch.setattr(meshnet, "classify", classify)
    monkeypatch.setattr(meshnet, "load_network", lambda weights: torch.nn.Identity())
    return seen


def run(monkeypatch, *arguments):
    monkeypatch.setenv("TQDM_DISABLE", "1")  # as --quiet does, but until the end of the test
    monkeypatch.setattr("sys.argv", ["segment_t1w.py", *map(str, arguments), "--quiet", "--use_device", "cpu"])
    return segment_t1w.main()


def test_maps_lie_on_the_grid_of_the_scan_and_both_bundles_read_them(tmp_path, monkeypatch, by_level, recwarn):
    path = scan(tmp_path)
    study, output = tmp_path / "study", tmp_path / "study" / "derivatives" / "meshnet"
    assert run(monkeypatch, study, output) == 0
    [(found, _)] = find_maps(study)
    table = LabelTable.from_file(ROOT / "spade_fusion_bundle" / "configs" / "labels.json", "freesurfer")
    labels, image = read_map(found, table), nib.load(path)
    assert not recwarn.list, "the names in dseg.tsv agree with the table"
    assert labels.shape == image.shape and np.allclose(labels.affine, image.affine)
    values = nib.as_closest_canonical(labels).get_fdata()
    assert values[74, 90, 22] == 3 or values[76, 90, 22] == 42
    x_mm = nib.as_closest_canonical(labels).affine[0, 3] + np.arange(values.shape[0])[:, None, None]
    assert (x_mm + 0 * values)[values == 12].max() < 0 < (x_mm + 0 * values)[values == 51].min()
    assert read_json(found.with_name("sub-07_dseg.json"))["SegmentedBy"] == "MeshNet"

    assert run(monkeypatch, study, output) == 0 and len(by_level) == 1, "it was done already"
    scan(tmp_path, codes="LIA")
    assert run(monkeypatch, study, output) == 0 and len(by_level) == 2, "the scan was replaced"


@pytest.mark.slow
def test_a_t2w_is_refused_and_the_rest_is_done(tmp_path, monkeypatch, by_level, capsys):
    scan(tmp_path)
    t2w = nib.load(scan(tmp_path, "sub-08_T1w.nii.gz"))
    values = t2w.get_fdata(dtype=np.float32)
    monkeypatch.setitem(globals(), "LEVELS", np.where(np.arange(18) == 3, 200, LEVELS))  # fluid is brighter than grey matter
    scan(tmp_path, "sub-08_T1w.nii.gz")
    assert values.max() == 255
    assert run(monkeypatch, tmp_path / "study", tmp_path / "maps") == 1
    assert "sub-08_T1w.nii.gz: the order of its tissues" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sub-01_ses-2_run-1_T1w.nii.gz", "sub-01_ses-2_run-1"),
        ("bert/mri/T1.mgz", "sub-bert"),
        ("my scan.nii", "sub-myscan"),
    ],
)
def test_a_map_is_named_after_its_scan(name, expected):
    assert segment_t1w.name_of(Path(name)) == expected


def test_two_scans_of_one_name_and_other_outputs_are_refused(tmp_path, monkeypatch, by_level):
    for name in ("a b.nii", "ab.nii"):
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match="ab.nii and .*a b.nii would have one map, sub-ab/anat/sub-ab_dseg.nii.gz"):
        run(monkeypatch, tmp_path / "a b.nii", tmp_path / "ab.nii", tmp_path / "out")
    with pytest.raises(ValueError, match="OUT_DIR holds files that segment_t1w.py did not make"):
        run(monkeypatch, tmp_path / "a b.nii", tmp_path)
    with pytest.raises(ValueError, match="OUT_DIR, the last argument, must be a folder"):
        run(monkeypatch, tmp_path / "a b.nii", tmp_path / "ab.nii")


@pytest.mark.slow
def test_accuracy_on_a_real_head_is_that_of_the_docs():
    files = [REAL / name for name in ("nv_norm.mgz", "nv_aparc.a2009s+aseg.mgz", "meshnet18/model.bin")]
    if missing := [str(path) for path in files if not path.is_file()]:
        pytest.skip(f"{missing[0]} is not here (REAL_SCANS)")
    found = np.asarray(segment_t1w.segment(files[0], meshnet.load_network(files[2])).dataobj)
    table = LabelTable.from_file(ROOT / "spade_fusion_bundle" / "configs" / "labels.json", "freesurfer")
    true = read_map(files[1], table).get_fdata()
    expected = {"cerebral white matter": 0.87, "cerebral cortex": 0.79, "putamen": 0.81, "thalamus": 0.77, "brain stem": 0.85}
    for name, least in expected.items():
        [number] = table.classes_of([name])
        ours, theirs = table.classes(found, "found") == number, table.classes(true, "true") == number
        assert 2 * (ours & theirs).sum() / (ours.sum() + theirs.sum()) > least, name
    white = np.isin(found, (2, 41)) & np.isin(true, (2, 41))
    assert np.mean(found[white] == true[white]) > 0.99, "sides"
