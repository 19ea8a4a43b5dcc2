"""Each label map gives one image on its own grid. Bad maps are refused before work starts."""

import importlib
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from monai.bundle import ConfigParser
from monai.data import MetaTensor
from phantom_maps import GRIDS, TABLE, grid, phantom, save_map

from spade_fusion_bundle.scripts.data.labels import table_of
from spade_fusion_bundle.scripts.generation import patch_merging, synthesis
from spade_fusion_bundle.scripts.model.networks import SpadeFusion
from spade_fusion_bundle.scripts.shared.files import save_weights

BUNDLE = ROOT / "spade_fusion_bundle"
LABELS_FILE = BUNDLE / "configs" / "labels.json"
SIZES = {"num_labels": TABLE.num_classes, "ngf": 2, "hidden": 8, "fusion_channels": 4, "fusion_layers": 3}


class Painter(torch.nn.Module):
    """Paints each voxel with its class: the result shows exactly which voxel it comes from."""

    def __init__(self):
        super().__init__()
        self.fusion = Mean()

    def slice_volumes(self, labels):
        return (labels.float() / 16).expand(-1, 3, -1, -1, -1)


class Mean(torch.nn.Module):
    radius = 0

    def forward(self, volumes):
        return volumes.mean(dim=1, keepdim=True)


@pytest.fixture(scope="module")
def models_dir(tmp_path_factory):
    """A small model with random weights, on voxels of 2 mm."""
    torch.manual_seed(0)
    network = SpadeFusion(**SIZES)
    for parameter in network.parameters():  # so that classes differ from the start
        parameter.data = 0.3 * torch.randn_like(parameter)
    network.recipe = {"labels": TABLE.to_dict(), "spacing_mm": 2.0, "network": SIZES}
    folder = tmp_path_factory.mktemp("models")
    save_weights(network.state_dict(), folder / "model.pt")
    return folder


@pytest.fixture(scope="module")
def scripts():
    """The bundle's `scripts`, imported once for this file, and no other's."""

    def forget():
        for name in [name for name in sys.modules if name.split(".")[0] == "scripts"]:
            del sys.modules[name]

    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BUNDLE)
        yield importlib.import_module("scripts.generation.synthesis")
    forget()


@pytest.fixture
def config(tmp_path, scripts, models_dir):
    """inference.json with what a test sets, as `monai.bundle run` would read it."""

    def parse(**settings):
        content = ConfigParser.load_config_file(BUNDLE / "configs" / "inference.json")
        defaults = {"output_dir": str(tmp_path / "out"), "models_dir": str(models_dir), "use_device": "cpu"}
        return ConfigParser({**content, **defaults, **settings})

    return parse


def run(config, label_maps, **settings):
    parser = config(label_maps=str(label_maps), **settings)
    parser.get_parsed_content("run")
    return parser


def refusal(config, label_maps, **settings):
    """The message of the user's error, which MONAI wraps in one about the config's expression."""
    with pytest.raises(Exception) as caught:  # noqa: B017
        run(config, label_maps, **settings)
    error = caught.value
    while isinstance(error, RuntimeError) and error.__cause__:
        error = error.__cause__
    assert isinstance(error, (ValueError, FileNotFoundError))
    return str(error)


def painted(config, path, spacing_mm=1.0, **settings):
    """The T1w of one map that `Painter` makes, as nibabel reads it."""
    run(config, path, network=Painter(), spacing_mm=spacing_mm, output_dtype="float32", **settings)
    (file,) = (path.parent / "out").glob("sub-*/anat/*_T1w.nii.gz")
    return nib.load(file)


# Geometry


@pytest.mark.parametrize("name", [name for name in GRIDS if name != "LAS"])  # 61x47x53 is also LAS
def test_every_voxel_returns_to_its_own_place(name, config, tmp_path):
    affine, shape = grid(name)
    labels = phantom(shape)
    path = save_map(tmp_path / "map.nii.gz", labels, affine, code=2)
    image, source = painted(config, path), nib.load(path)
    np.testing.assert_allclose(image.get_fdata(), TABLE.classes(labels, "") / 16, atol=1e-6)
    np.testing.assert_array_equal(image.affine, source.affine)
    for key in ("pixdim", "sform_code", "qform_code", "quatern_b", "qoffset_x", "srow_x"):
        np.testing.assert_array_equal(image.header[key], source.header[key])


@pytest.mark.parametrize("name", ["LIA", "oblique LIA"])
def test_thick_slices_of_whole_millimetres_return_exactly(name, config, tmp_path):
    affine, _ = grid(name, (1, 1, 3))
    labels = phantom((37, 29, 15))
    image = painted(config, save_map(tmp_path / "map.nii.gz", labels, affine))
    np.testing.assert_allclose(image.get_fdata(), TABLE.classes(labels, "") / 16, atol=1e-4)
    np.testing.assert_allclose(image.affine, affine, atol=1e-5)


@pytest.mark.parametrize("spacing_mm, model_mm", [((0.7, 0.7, 0.7), 1.0), ((1, 1, 1), 1.5), ((0.9, 1.2, 3), 2.0)])
def test_tissue_borders_stay_within_half_a_model_voxel(spacing_mm, model_mm, config, tmp_path):
    affine, shape = grid("oblique LIA", spacing_mm)
    borders = [n // 2 + 1 for n in shape]
    octants = sum(2**axis * (np.indices(shape)[axis] >= border) for axis, border in enumerate(borders))
    labels = np.array([1, 2, 4, 6, 8, 9, 11, 13], np.uint8)[octants]  # values of the classes 1 to 8
    image = painted(config, save_map(tmp_path / "map.nii.gz", labels, affine), spacing_mm=model_mm)
    for axis, border in enumerate(borders):
        others = tuple(n // 4 for i, n in enumerate(shape) if i != axis)  # far from the other borders
        profile = np.moveaxis(image.get_fdata(), axis, 0)[(slice(None), *others)] * 16
        behind = (profile - 1) / 2**axis - 0.5  # -0.5 before the border, 0.5 behind it
        distance_mm = (np.arange(len(behind)) - (border - 0.5)) * spacing_mm[axis]
        wrong = np.sign(behind) != np.sign(distance_mm)
        assert np.abs(distance_mm[wrong]).max(initial=0) <= model_mm / 2 + 1e-3
        np.testing.assert_allclose(np.abs(behind[np.abs(distance_mm) > 1.5 * model_mm]), 0.5, atol=1e-3)


def test_resampled_images_are_linear_between_model_voxels(config, tmp_path):
    """Labels are resampled by nearest neighbour. An image that was resampled so would have steps."""
    labels = np.full((40, 36, 33), 4, np.uint8)
    labels[20:] = 15
    image = painted(config, save_map(tmp_path / "map.nii.gz", labels, np.eye(4)), spacing_mm=2.0, partial_maps=True)
    assert len(np.unique(np.round(image.get_fdata()[:, 9, 9], 4))) > 2


def test_background_is_exactly_zero_and_nothing_else_is(config, tmp_path):
    affine, shape = grid("oblique LIA", (0.8, 1, 1.3))
    labels = phantom(shape)
    image = painted(config, save_map(tmp_path / "map.nii.gz", labels, affine), spacing_mm=1.0).get_fdata()
    assert (image[labels == 0] == 0).all()
    assert (image[labels > 0] > 0).mean() > 0.99


def test_a_small_head_in_a_large_field_of_view_keeps_the_field_of_view(config, tmp_path):
    labels = np.zeros((70, 40, 90), np.uint8)
    labels[50:60, 5:9, 70:89] = 3
    seen = []
    painter = Painter()
    painter.slice_volumes = lambda labels: seen.append(labels.shape) or Painter.slice_volumes(painter, labels)
    path = save_map(tmp_path / "map.nii.gz", labels, np.eye(4))
    run(config, path, network=painter, spacing_mm=1.0, partial_maps=True)
    image = nib.load(tmp_path / "out" / "sub-map" / "anat" / "sub-map_T1w.nii.gz")
    assert seen == [(1, 1, 32, 32, 32)]  # the network sees the head alone
    assert image.shape == labels.shape
    np.testing.assert_array_equal(image.get_fdata() > 0, labels > 0)


def test_a_trailing_axis_of_one_is_ignored(config, tmp_path):
    """Some tools write such an axis, and training accepts it."""
    affine, shape = grid("LIA", (2, 2, 2))
    labels = phantom(shape)
    path = save_map(tmp_path / "map.nii.gz", labels[..., None], affine)
    image = painted(config, path, spacing_mm=2.0)
    np.testing.assert_allclose(image.get_fdata(), TABLE.classes(labels, "") / 16, atol=1e-6)
    made = image.get_filename()
    before = Path(made).stat().st_mtime_ns
    painted(config, path, spacing_mm=2.0)
    assert Path(made).stat().st_mtime_ns == before  # it counts as made


# The path that MONAI Label and the zoo take


def test_monai_label_may_put_the_path_beside_the_map(config, tmp_path):
    affine, shape = grid("LIA", (1.3, 1.3, 1.3))
    path = save_map(tmp_path / "map.nii.gz", phantom(shape), affine)
    parser = config()
    preprocessing, inferer, network, postprocessing = (
        parser.get_parsed_content(key) for key in ("preprocessing", "inferer", "network", "postprocessing")
    )
    data = preprocessing({"image": str(path), "image_path": str(path)})
    data["pred"] = inferer(data["image"][None], network)[0]
    data = postprocessing(data)
    assert data["pred"].shape == (1, *shape)
    np.testing.assert_allclose(data["pred"].affine, affine, atol=1e-5)
    assert data["image_path"] == str(path)


def test_the_transforms_of_monai_label_refuse_a_mask(config, tmp_path):
    path = save_map(tmp_path / "map.nii.gz", np.full((9, 7, 8), 15, np.uint8), np.eye(4))
    with pytest.raises(RuntimeError) as caught:  # of MONAI's Compose; our app answers with its cause
        config().get_parsed_content("preprocessing")({"image": str(path)})
    assert "its values 15 (504 voxels) mean brain stem" in str(caught.value.__cause__)
    assert config(partial_maps=True).get_parsed_content("preprocessing")({"image": str(path)})["dseg"].max() == 15


# The synthesiser


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    network = SpadeFusion(**SIZES).eval()
    for parameter in network.generators.parameters():
        parameter.data = 0.3 * torch.randn_like(parameter)
    torch.nn.init.normal_(network.fusion.convs[-1].weight, std=0.1)  # it starts at 0
    return network


@pytest.fixture(scope="module")
def classes():
    torch.manual_seed(0)
    coarse = torch.randint(0, TABLE.num_classes, (1, 1, 8, 16, 8), dtype=torch.uint8)
    return coarse.repeat_interleave(4, 2).repeat_interleave(4, 3).repeat_interleave(4, 4)  # (1, 1, 32, 64, 32)


@pytest.fixture(scope="module")
@torch.no_grad()
def expected(network, classes):
    return network(classes)


@pytest.mark.parametrize("block", [13, 200])
def test_blocks_give_what_one_pass_gives(block, network, classes, expected):
    assert expected.std() > 0.05
    image = synthesis.Synthesiser("whole", block)(classes, network)
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)


def test_every_voxel_of_the_margin_is_needed(network):
    fusion, volumes = network.fusion, torch.rand((1, 3, 24, 20, 17), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, enough, less = fusion(volumes), *(patch_merging.in_blocks(fusion, volumes, 8, fusion.radius - i) for i in (0, 1))
    assert (whole - enough).abs().max() < 1e-6
    assert (whole - less).abs().max() > 1e-4


def test_nothing_is_computed_far_from_the_labels_and_nothing_lost(network, classes):
    small = torch.zeros_like(classes)
    small[..., 9:14, 30:41, 5:8] = classes[..., 9:14, 30:41, 5:8]
    with torch.no_grad():
        expected = network(small)
    sizes = []
    hook = network.fusion.register_forward_pre_hook(lambda module, inputs: sizes.append(tuple(inputs[0].shape[2:])))
    image = synthesis.Synthesiser()(small, network)
    hook.remove()
    torch.testing.assert_close(image, expected, rtol=0, atol=1e-5)
    inside = small[0, 0].nonzero()
    box = inside.amax(0) - inside.amin(0) + 1 + 2 * network.fusion.radius
    assert sizes == [tuple(box.tolist())] and expected.std() > 0.001


def test_a_map_of_background_becomes_an_empty_image(network):
    assert not synthesis.Synthesiser()(torch.zeros(1, 1, 32, 64, 32), network).any()


def test_patches_differ_from_one_pass_at_their_borders_alone(network, classes, expected):
    patches = synthesis.Synthesiser("patches")(classes, network)
    difference = (expected - patches).abs()
    assert 0 < difference.mean() < 0.01
    assert difference[..., 28:36, :].max() < 0.1  # weighted: no seam between patches
    assert (patches[classes == 0] == 0).all()


def test_the_result_carries_the_maps_affine(network, classes):
    affine = np.diag([2.0, 2, 2, 1])
    image = synthesis.Synthesiser()(MetaTensor(classes, affine=affine), network)
    assert isinstance(image, MetaTensor) and image.dtype == torch.float32
    np.testing.assert_allclose(image.affine, affine)


def test_another_merge_is_refused():
    with pytest.raises(ValueError, match="merge must be whole or patches, got 'mean'"):
        synthesis.Synthesiser("mean")


# The whole command


def test_a_folder_of_maps_becomes_a_data_set_once(config, tmp_path):
    affine, shape = grid("LIA", (2, 2, 2))[0], (20, 17, 19)
    for number in (1, 2):
        save_map(tmp_path / "maps" / f"seg_{number}.nii.gz", phantom(shape), affine)
    out = tmp_path / "out"
    run(config, tmp_path / "maps", variants=2)
    images = {path.name: path.stat().st_mtime_ns for path in out.glob("sub-*/anat/*.nii.gz")}
    names = ("sub-seg1", "sub-seg1v01", "sub-seg2", "sub-seg2v01")
    assert set(images) == {f"{name}_{suffix}.nii.gz" for name in names for suffix in ("T1w", "dseg")}
    assert all((out / name / "anat" / f"{name}_T1w.json").is_file() for name in names)

    run(config, tmp_path / "maps", variants=2)
    assert images == {path.name: path.stat().st_mtime_ns for path in out.glob("sub-*/anat/*.nii.gz")}

    (out / "sub-seg2v01" / "anat" / "sub-seg2v01_T1w.json").unlink()
    first = (out / "sub-seg2v01" / "anat" / "sub-seg2v01_T1w.nii.gz").read_bytes()
    run(config, tmp_path / "maps", variants=2)
    changed = {path.name for path in out.glob("sub-*/anat/*.nii.gz") if path.stat().st_mtime_ns != images[path.name]}
    assert changed == {"sub-seg2v01_T1w.nii.gz", "sub-seg2v01_dseg.nii.gz"}
    assert (out / "sub-seg2v01" / "anat" / "sub-seg2v01_T1w.nii.gz").read_bytes() == first


def test_variants_are_different_anatomies_beside_their_images(config, tmp_path):
    affine, shape = grid("oblique LIA", (2, 2, 2))[0], (30, 26, 28)
    labels = phantom(shape)
    path = save_map(tmp_path / "sub-7_ses-a_dseg.nii.gz", labels, affine)
    run(config, path, variants=3, seed=5)
    images, maps = (
        [
            nib.load(tmp_path / "out" / f"sub-7{variant}" / "ses-a" / "anat" / f"sub-7{variant}_ses-a_{suffix}.nii.gz")
            for variant in ("", "v01", "v02")
        ]
        for suffix in ("T1w", "dseg")
    )
    values = [np.asarray(image.dataobj) for image in maps]
    np.testing.assert_array_equal(values[0], labels)
    assert all(0.02 < (values[i] != values[j]).mean() < 0.6 for i, j in ((0, 1), (0, 2), (1, 2)))
    for image, label_map in zip(images, maps):
        np.testing.assert_array_equal(image.affine, label_map.affine)
        assert image.shape == label_map.shape == shape
        assert label_map.get_data_dtype() == np.uint8
        assert (image.get_fdata()[np.asarray(label_map.dataobj) == 0] == 0).all()


def test_pad_to_multiple_of_one_leaves_the_map_as_it_is(config, tmp_path):
    path = save_map(tmp_path / "map.nii.gz", phantom((32, 32, 32)), np.diag([2, 2, 2, 1]))
    run(config, path, pad_to_multiple=1)
    other = save_map(tmp_path / "odd.nii.gz", phantom((32, 29, 32)), np.diag([2, 2, 2, 1]))
    message = refusal(config, other, pad_to_multiple=1)
    assert "slices of 32 x 29" in message and "multiples of 32" in message


def save_bad_map(kind, path):
    labels = np.arange(1, 505, dtype=np.uint8).reshape(9, 7, 8) % 8
    if kind == "mask":
        labels = np.full((9, 7, 8), 15, np.uint8)
    if kind == "BraTS":
        labels = np.where(labels == 1, 1, labels // 2 * 2 % 6).astype(np.uint8)
    if kind == "names":
        path.with_name("names_dseg.tsv").write_text("index\tname\n2\tedema\n")
    if kind == "unknown":
        labels[0, 0, :5] = 77
    if kind == "empty":
        labels[:] = 0
    if kind == "interpolated":
        labels = labels.astype(np.float32)
        labels[2, 2, 2:6] = 2.5
    save_map(path, labels, np.eye(4))
    if kind == "damaged":
        save_map(path, np.random.default_rng(0).integers(0, 17, (20, 22, 24), np.uint8), np.eye(4))
        path.write_bytes(path.read_bytes()[:-20])


BAD_MAPS = {
    "unknown": r"77 (5 voxels)",
    "empty": "the label map is empty",
    "interpolated": "4 of 504 voxels are not integers, such as 2.5",
    "damaged": "cannot be read to its end",
    "mask": "its values 15 (504 voxels) mean brain stem in the label table 'demo', but a head has at least 4 of its 8",
    "BraTS": "mean sulcal CSF, cerebral cortex, cerebral white matter in the label table 'demo'",
    "names": "contradicts the label table 'demo': 2 is 'edema' there and 'left cerebral cortex' in the table",
}


def test_bad_maps_are_refused_before_any_image_is_made(config, tmp_path):
    save_map(tmp_path / "maps" / "good.nii.gz", phantom((20, 18, 16)), np.eye(4))
    for kind in BAD_MAPS:
        save_bad_map(kind, tmp_path / "maps" / f"{kind}.nii.gz")
    first, *lines = refusal(config, tmp_path / "maps").split("\n")
    assert first == "7 of 8 label maps cannot be used:"
    for kind, words in BAD_MAPS.items():
        (line,) = (line for line in lines if line.startswith(f"{tmp_path}/maps/{kind}.nii.gz: "))
        assert words in line
    assert not list((tmp_path / "out").glob("sub-*"))


def test_one_image_that_is_not_finite_does_not_stop_the_others(config, tmp_path):
    class Broken(Painter):
        def slice_volumes(self, labels):
            return super().slice_volumes(labels) * (torch.nan if labels.max() == 5 else 1)

    for name, value in (("a", 3), ("b", 8), ("c", 15)):
        save_map(tmp_path / "maps" / f"{name}.nii.gz", np.full((9, 7, 8), value, np.uint8), np.eye(4))
    with pytest.raises(RuntimeError) as caught:
        run(config, tmp_path / "maps", network=Broken(), partial_maps=True)
    assert "1 volumes were not written, all others were:\nsub-b_T1w.nii.gz" in str(caught.value.__cause__ or caught.value)
    written = {path.name for path in tmp_path.glob("out/sub-*/anat/*_T1w.nii.gz")}
    assert written == {"sub-a_T1w.nii.gz", "sub-c_T1w.nii.gz"}


# Weights and tables


def test_missing_weights_name_the_command_that_makes_them(config, tmp_path):
    path = save_map(tmp_path / "map.nii.gz", phantom((20, 18, 16)), np.eye(4))
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "model.pt: no such weights file. Make it with: python -m monai.bundle run training --config_file" in refusal(
        config, path, models_dir=str(empty)
    )
    for plane in ("axial", "coronal"):
        (empty / f"spade_{plane}.pt").touch()
    message = refusal(config, path, models_dir=str(empty))
    assert "Still to train: sagittal, fusion. Make it" in message and "run training_spade --plane sagittal --config" in message
    assert "--plane axial" not in message and "run training_fusion" in message
    (empty / "spade_sagittal.pt").touch()
    message = refusal(config, path, models_dir=str(empty))
    assert "Still to train: fusion" in message and "run training_fusion" in message and "training_spade" not in message


def test_the_table_in_the_weights_comes_before_that_of_the_file(tmp_path):
    recipe = {"labels": TABLE.to_dict()}
    assert table_of(recipe, LABELS_FILE).name == "demo"
    assert table_of({}, LABELS_FILE).name == "freesurfer"
    with pytest.raises(ValueError, match="'freesurfer' has other classes than the model's table 'demo', from class 1"):
        table_of(recipe, LABELS_FILE, "freesurfer")
    own = {
        "mine": [
            {**entry, "midline": [entry["class"]]}
            for entry in ({k: e[k] for k in ("class", "name", "brain")} for e in recipe["labels"]["classes"])
        ]
    }
    (tmp_path / "own.json").write_text(json.dumps(own))
    assert table_of(recipe, tmp_path / "own.json", "mine").name == "mine"
    with pytest.raises(ValueError, match="no label table 'demo'"):  # a file that is given is not ignored
        table_of(recipe, tmp_path / "own.json")

    # As many classes, but two of them change places.
    own["mine"][3]["name"], own["mine"][10]["name"] = own["mine"][10]["name"], own["mine"][3]["name"]
    (tmp_path / "own.json").write_text(json.dumps(own))
    with pytest.raises(ValueError, match="'mine' has other classes than the model's table 'demo', from class 3 on"):
        table_of(recipe, tmp_path / "own.json", "mine")
