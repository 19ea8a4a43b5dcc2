"""Training writes what synthesis needs, continues after a stop, and refuses what cannot work."""

import json
import re
import shutil
from contextlib import redirect_stdout

import nibabel as nib
import numpy as np
import pytest
import tiny_spade
import torch
from conftest import ROOT, entered_bundle
from monai.bundle import ConfigParser
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from spade_fusion_bundle.scripts.data.planes import PLANES, collate_slices, to_slices
from spade_fusion_bundle.scripts.data.scans_and_maps import read_dataset
from spade_fusion_bundle.scripts.model.networks import SpadeFusion, SpadeGenerator, without_spectral_norm
from spade_fusion_bundle.scripts.model.plane_weights import load_generators
from spade_fusion_bundle.scripts.shared.label_table import LabelTable
from spade_fusion_bundle.scripts.shared.weights import load_weights, read_recipe

RESUME_FILES = {"fusion.pt", *(f"spade_{plane}.pt" for plane in PLANES)}


def load(path):
    return torch.load(path, weights_only=True)


def assert_equal(found, wanted, where=""):
    """Compare every number of nested states."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys(), where
        for key in wanted:
            assert_equal(found[key], wanted[key], f"{where}/{key}")
    elif isinstance(wanted, torch.Tensor):
        assert torch.equal(found, wanted), where
    else:
        assert found == wanted, where


def chain(error):
    """Messages of an error and of its causes: MONAI wraps what an expression of a config raises."""
    here, messages = error.value, []
    while here is not None:
        messages.append(str(here))
        here = here.__cause__ or here.__context__
    return "\n".join(messages)


def parsed(dataset_dir, **settings):
    """The training config with tiny settings, to take parts from; in the bundle's folder."""
    parser = ConfigParser(ConfigParser.load_config_file("configs/train.json"))
    parser.update(tiny_spade.SETTINGS | {"dataset_dir": str(dataset_dir)} | settings)
    return parser


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    return tiny_spade.write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def trained(dataset_dir, tmp_path_factory):
    """All stages in one go."""
    folder = tmp_path_factory.mktemp("trained")
    with entered_bundle(tiny_spade.BUNDLE), open(folder / "log.txt", "w") as log, redirect_stdout(log):
        tiny_spade.train(dataset_dir, folder, spade_visits=2, panel_interval=1)
    return folder


@pytest.fixture
def copied(trained, tmp_path):
    """A folder with the trained generators only, without resume files and fusion."""
    (tmp_path / "models").mkdir()
    for plane in PLANES:
        shutil.copy(trained / "models" / f"spade_{plane}.pt", tmp_path / "models")
    return tmp_path


def test_training_leaves_the_weights_of_each_stage_and_what_it_resumes_from(trained):
    models = trained / "models"
    assert {path.name for path in models.glob("*.pt")} == {"model.pt", *(f"spade_{plane}.pt" for plane in PLANES)}
    assert {path.name for path in (models / "resume").iterdir()} == RESUME_FILES
    assert len(list((trained / "cache" / "planes").iterdir())) == 3  # two for the fusion, one to validate
    assert not list(trained.rglob("*.tmp")) and not list(trained.rglob("*.partial"))


def test_the_weights_fit_exactly_a_network_of_their_recipe(trained):
    path = trained / "models" / "model.pt"
    recipe = read_recipe(path)
    network = load_weights(SpadeFusion(**recipe["network"]), path)
    table = LabelTable.from_dict(recipe["labels"], str(path))
    assert recipe["acquisition"]["scans"] == 4  # one of validation, three of the GANs
    assert (table.name, table.num_classes, recipe["spacing_mm"]) == ("demo", 12, tiny_spade.SPACING_MM)
    for plane in PLANES:
        generator = SpadeGenerator(12, ngf=2, hidden=4)
        load_weights(generator, trained / "models" / f"spade_{plane}.pt")
        assert generator.recipe["plane"] == plane
        for key, value in without_spectral_norm(generator).items():
            assert torch.equal(network.generators[plane].state_dict()[key], value), f"{plane}: {key}"
    assert recipe["generators_sha256"].keys() == set(PLANES)


def test_one_warning_says_that_there_is_no_vgg_loss(trained):
    assert (trained / "log.txt").read_text().count("train without the VGG loss") == 1


def logged(folder, stage):
    """The last value of each scalar, and the names of images."""
    scalars, images = {}, set()
    for path in (folder / "output" / "tensorboard" / stage).iterdir():
        events = EventAccumulator(str(path)).Reload()
        images |= set(events.Tags()["images"])
        scalars |= {tag: events.Scalars(tag)[-1].value for tag in events.Tags()["scalars"]}
    return scalars, images


def test_tensorboard_shows_losses_scores_and_the_three_planes(trained):
    for stage, losses in (("fusion", {"loss"}), *((f"spade_{plane}", {"features", "discriminator"}) for plane in PLANES)):
        scalars, images = logged(trained, stage)
        assert any("scan" in tag for tag in images), stage
        assert losses | {"val_psnr", "val_ssim"} <= scalars.keys(), stage
        assert ("val_psnr_of_the_mean" in scalars) == (stage == "fusion")


def test_the_scores_of_validation_are_those_of_the_weights_that_were_kept(trained, spade_bundle, dataset_dir):
    """The scores are compared for each plane, cut along its own axis, and for the whole path from labels to fused volume."""
    pair = parsed(dataset_dir).get_parsed_content("preprocessing")(
        read_dataset(dataset_dir, LabelTable.from_file("configs/labels.json", "demo"))["validation"][0]
    )
    labels, image = pair["label"][None], pair["image"][None]
    path = trained / "models" / "model.pt"
    network = load_weights(SpadeFusion(**read_recipe(path)["network"]), path).eval()
    with torch.no_grad():
        made = dict(zip((f"spade_{plane}" for plane in PLANES), network.slice_volumes(labels).split(1, dim=1)))
        made["fusion"] = network(labels)
    for stage, volume in made.items():
        psnr = -10 * ((volume - image) ** 2).mean().log10()
        assert logged(trained, stage)[0]["val_psnr"] == pytest.approx(psnr.item(), abs=0.01), stage


@pytest.mark.parametrize("plane", PLANES)
def test_each_plane_is_trained_on_slices_of_its_own(spade_bundle, dataset_dir, tmp_path, plane):
    """Slices are identified by the sums of their classes, which padding in a batch does not change."""
    parser = parsed(dataset_dir, models_dir=str(tmp_path), output_dir=str(tmp_path), cache_dir=str(tmp_path))
    stage = parser.get_parsed_content("spade_stage")
    volumes = [item["label"][None].long() for item in stage.volumes]
    sums = {name: {int(piece.sum()) for labels in volumes for piece in to_slices(labels, name)} for name in PLANES}
    drawn = [
        int(piece.sum()) for _ in range(3) for batch in stage.trainer(plane).data_loader for piece in batch["label"].long()
    ]
    assert len(drawn) == 3 * 4 and set(drawn) <= sums[plane]
    assert not any(set(drawn) <= sums[other] for other in PLANES if other != plane)


def test_the_generators_of_a_run_have_measured_batch_statistics(trained):
    """They count two batches, as the setting asks; in training each step counts twice."""
    state = load(trained / "models" / "spade_axial.pt")
    tracked = {int(value) for key, value in state.items() if key.endswith("num_batches_tracked")}
    assert tracked == {tiny_spade.SETTINGS["batch_norm_batches"]}


def test_training_sees_every_head_upright_in_its_place_whatever_the_files_order(spade_bundle, dataset_dir):
    """The files are LIA, LAS and RAS. Deep grey matter is larger on the right, and lies to the front and top."""
    parser = parsed(dataset_dir)
    preprocessing = parser.get_parsed_content("preprocessing")
    table = parser.get_parsed_content("table")
    items = read_dataset(dataset_dir, table)["training"]
    assert {"".join(nib.aff2axcodes(nib.load(item["image"]).affine)) for item in items} == {"LIA", "LAS", "RAS"}
    for item in items:
        pair = preprocessing(item)
        image, classes = pair["image"][0], pair["label"][0]
        assert image.shape == classes.shape and all(side % 32 == 0 for side in classes.shape)
        assert image.dtype == torch.float32 and classes.dtype == torch.uint8
        assert 0 <= image.min() and image.max() == 1 and (image[classes == 0] == 0).all()

        where = (classes > 0).nonzero().float()
        centre = (where.amin(0) + where.amax(0)) / 2
        deep_grey = (classes == table.names.index("deep grey matter")).nonzero() - centre
        assert (deep_grey.mean(0) > 1).all(), "right, front, top"
        assert (deep_grey[:, 0] > 0).sum() > (deep_grey[:, 0] < 0).sum() > 0
        white, fluid = (image[classes == table.names.index(name)] for name in ("cerebral white matter", "lateral ventricle"))
        assert white.min() > 0.6 > 0.25 > fluid.max(), "the scan lies elsewhere than its map"


@pytest.mark.parametrize(("outside", "lowest"), [(0, 0), (-1000, 0), (5000, 0), (0, -300)])
def test_intensities_are_scaled_by_what_the_map_covers(spade_bundle, dataset_dir, tmp_path, outside, lowest):
    """Padding of a scanner, a skull that the map leaves out, or a scan with negative values change nothing inside."""
    parser = parsed(dataset_dir)
    item = read_dataset(dataset_dir, parser.get_parsed_content("table"))["training"][0]
    scan, label = (nib.load(item[key]) for key in ("image", "label"))
    inside = np.asarray(label.dataobj) > 0
    values = np.linspace(0, 800, inside.sum())
    volume = np.full(inside.shape, outside, np.float32)
    volume[inside] = values + lowest
    nib.save(nib.Nifti1Image(volume, scan.affine), tmp_path / "scan.nii.gz")
    pair = parser.get_parsed_content("preprocessing")(item | {"image": str(tmp_path / "scan.nii.gz")})
    found = np.sort(pair["image"][pair["label"] > 0].numpy())
    # Voxels around the head, 0 like the lowest, shift the percentile a little.
    np.testing.assert_allclose(found, np.clip(values / np.percentile(values, 99.8), 0, 1), atol=0.005)
    assert (pair["image"][pair["label"] == 0] == 0).all()


def test_slices_of_different_sizes_make_a_batch_with_background_around():
    small = {"image": torch.full((1, 32, 64), 0.5), "label": torch.full((1, 32, 64), 3, dtype=torch.uint8)}
    large = {"image": torch.full((1, 64, 96), 0.7), "label": torch.full((1, 64, 96), 4, dtype=torch.uint8)}
    batch = collate_slices([[small, small], [large]])
    assert batch["image"].shape == batch["label"].shape == (3, 1, 64, 96)
    assert batch["label"].dtype == torch.uint8
    inside = batch["label"] > 0
    assert inside.sum((1, 2, 3)).tolist() == [32 * 64, 32 * 64, 64 * 96]
    assert torch.equal(batch["image"] > 0, inside)
    assert type(batch["label"]) is type(batch["image"]) is torch.Tensor, "MetaTensors are slow, and so are their gradients"
    batch = collate_slices([[large], [large]])
    assert batch["image"].shape == (2, 1, 64, 96)


@pytest.mark.slow
def test_a_plane_trained_in_two_goes_equals_one_trained_in_one(spade_bundle, dataset_dir, tmp_path):
    """Slices, mirroring and empty slices are drawn again in each epoch; the learning rate follows the longer run.

    Validation measures batch statistics, so both must validate in the same epochs.
    """
    settings = {"run_id": "training_spade", "plane": "coronal", "val_interval": 1, "spade_decay_epochs": 1}
    settings |= {"mirror_probability": 0.5, "empty_fraction": 0.3}
    one = tiny_spade.train(dataset_dir, tmp_path / "one", spade_epochs=3, **settings)
    two = tiny_spade.train(dataset_dir, tmp_path / "two", spade_epochs=1, **settings)
    first = load(two / "resume" / "spade_coronal.pt")
    tiny_spade.train(dataset_dir, tmp_path / "two", spade_epochs=3, **settings)
    for name in ("resume/spade_coronal.pt", "spade_coronal.pt"):
        assert_equal(load(two / name), load(one / name))
    last = load(two / "resume" / "spade_coronal.pt")
    assert (first["epoch"], last["epoch"]) == (1, 3)
    for part in ("generator", "discriminator"):
        assert any(not torch.equal(last[part][key], value) for key, value in first[part].items()), f"{part} did not train"


@pytest.mark.slow
def test_a_fusion_trained_in_two_goes_equals_one_trained_in_one(spade_bundle, dataset_dir, copied, tmp_path_factory):
    one, two = tmp_path_factory.mktemp("one"), copied
    shutil.copytree(copied / "models", one / "models")
    settings = {"run_id": "training_fusion", "fusion_visits": 2}
    tiny_spade.train(dataset_dir, one, fusion_epochs=3, **settings)
    tiny_spade.train(dataset_dir, two, fusion_epochs=1, **settings)
    tiny_spade.train(dataset_dir, two, fusion_epochs=3, **settings)
    for name in ("resume/fusion.pt", "model.pt"):
        assert_equal(load(two / "models" / name), load(one / "models" / name))

    # A run that is complete changes nothing.
    before = {path: path.stat().st_mtime_ns for path in two.rglob("*.pt")}
    tiny_spade.train(dataset_dir, two, fusion_epochs=3, **settings)
    assert {path: path.stat().st_mtime_ns for path in two.rglob("*.pt")} == before

    # The fusion belongs to its generators: with others it is refused.
    state = load(two / "models" / "spade_axial.pt")
    state["stem.bias"] += 0.1
    torch.save(state, two / "models" / "spade_axial.pt")
    with pytest.raises(Exception) as error:
        tiny_spade.train(dataset_dir, two, fusion_epochs=4, **settings)
    assert "fusion.pt was made by a run with other settings (generators_sha256: " in chain(error)


def test_a_missing_plane_is_named_with_the_command_that_makes_it(spade_bundle, dataset_dir, copied):
    (copied / "models" / "spade_coronal.pt").unlink()
    with pytest.raises(Exception) as error:
        tiny_spade.train(dataset_dir, copied, "training_fusion")
    assert "spade_coronal.pt: no such weights file" in chain(error)
    assert "Make it with: python -m monai.bundle run training_spade --plane coronal --config_file" in chain(error)
    assert not (copied / "models" / "model.pt").exists() and not (copied / "cache" / "planes").exists()


def test_generators_of_another_spacing_are_refused(spade_bundle, dataset_dir, copied):
    with pytest.raises(Exception) as error:
        tiny_spade.train(dataset_dir, copied, "training_fusion", spacing_mm=5.0)
    assert "spade_axial.pt: trained with other spacing_mm (4.0), now 5.0. Use those again, or train the plane" in chain(error)


def test_generators_of_another_split_are_refused(spade_bundle, dataset_dir, copied):
    """Otherwise the fusion would learn from subjects that the generators have seen."""
    shutil.copytree(dataset_dir, copied / "dataset")
    table = copied / "dataset" / "participants.tsv"
    swapped = {"train": "fusion", "fusion": "train"}
    rows = re.sub(r"\t(train|fusion)$", lambda cell: "\t" + swapped[cell[1]], table.read_text(), flags=re.MULTILINE)
    table.write_text(rows)
    with pytest.raises(Exception) as error:
        tiny_spade.train(copied / "dataset", copied, "training_fusion")
    assert "spade_axial.pt: trained with other scans, maps, splits or folds, or by an earlier" in chain(error)


def test_generators_of_another_label_table_are_refused(spade_bundle, dataset_dir, copied):
    """The other table has as many classes, so all shapes fit."""
    tables = json.loads((ROOT / "spade_fusion_bundle" / "configs" / "labels.json").read_text())
    rows = tables["demo"]
    rows[2]["left"], rows[3]["left"] = rows[3]["left"], rows[2]["left"]
    rows[2]["right"], rows[3]["right"] = rows[3]["right"], rows[2]["right"]
    (copied / "labels.json").write_text(json.dumps({"swapped": rows}))
    with pytest.raises(Exception) as error:
        tiny_spade.train(dataset_dir, copied, "training_fusion", labels_file=str(copied / "labels.json"), label_table="swapped")
    assert "spade_axial.pt: trained with other labels ({'name': 'demo'" in chain(error)


def test_generators_of_another_width_are_refused(spade_bundle, dataset_dir, copied):
    with pytest.raises(Exception) as error:
        tiny_spade.train(dataset_dir, copied, "training_fusion", ngf=4)
    assert "spade_axial.pt: weights of another architecture" in chain(error)


def test_the_generator_of_another_plane_is_refused(trained, copied):
    """A file that was copied under the wrong name after three machines trained."""
    shutil.copy(trained / "models" / "spade_sagittal.pt", copied / "models" / "spade_axial.pt")
    recipe = read_recipe(trained / "models" / "model.pt")
    network = SpadeFusion(**recipe["network"])
    with pytest.raises(ValueError, match=r"spade_axial.pt: trained with other plane \(sagittal\), now axial"):
        load_generators(network, lambda: SpadeGenerator(12, ngf=2, hidden=4), copied / "models", recipe)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"spade_batch_size": 1, "slices_per_volume": 1}, "spade_batch_size 1: batch norm needs several slices"),
        ({"spade_batch_size": 5}, "spade_batch_size is 5 and slices_per_volume is 2"),
        ({"plane": "axial"}, "plane is 'axial' and fold is None, but the run id training trains all planes"),
        ({"run_id": "training_spade"}, "no plane is called None. Give --plane axial"),
        ({"run_id": "training_spade", "plane": "axial", "fold": 1}, "--fold 1: there is no such fold. Set --folds K"),
        ({"run_id": "training_spade", "plane": "axial", "fold": 2, "folds": 2}, "--fold 2: there is no such fold"),
        ({"vgg_file": "missing.pth"}, "missing.pth: no such file"),
        ({"label_table": "freesurfer"}, "are not in the label table 'freesurfer'"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_what_cannot_work_is_refused_before_anything_is_written(spade_bundle, dataset_dir, tmp_path, settings, message):
    with pytest.raises(Exception) as error:
        tiny_spade.train(dataset_dir, tmp_path, **settings)
    assert message in chain(error)
    assert not list(tmp_path.rglob("*.pt"))


def test_one_slice_of_one_scan_is_refused_although_the_batch_should_have_been_larger(spade_bundle, tmp_path):
    """Few scans make the batch smaller. Batch norm of a single slice once failed without a clear message."""
    dataset_dir = tiny_spade.write_dataset(tmp_path / "dataset", ("train", "fusion", "validation"))
    with pytest.raises(Exception) as error:
        tiny_spade.train(dataset_dir, tmp_path, "training_spade", plane="coronal", spade_batch_size=4, slices_per_volume=1)
    assert "1 scans for 1 processes with slices_per_volume 1 make batches of one slice" in chain(error)


def test_too_few_scans_are_refused_with_how_to_get_more(spade_bundle, tmp_path):
    dataset_dir = tiny_spade.write_dataset(tmp_path / "dataset", ("train", "validation"))
    with pytest.raises(Exception) as error:
        tiny_spade.train(dataset_dir, tmp_path)
    assert "0 scans in the split fusion, at least 1 needed" in chain(error)
    assert not (tmp_path / "models").exists()


def classes_learnt(path):
    """The classes that a generator was ever shown, by the second moments of Adam: a channel of zeros has no gradient."""
    state = load(path)
    names = [key for key in state["generator"] if not key.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    names = [key for key in names if not key.endswith(("_u", "_v", "_extra_state"))]
    index = names.index("blocks.6.norm1.embed.weight")
    moments = state["optimizer"]["state"][index]["exp_avg_sq"]  # (hidden, classes, 3, 3)
    return set(moments.amax((0, 2, 3)).nonzero()[:, 0].tolist())


@pytest.mark.slow
def test_the_generator_of_a_fold_never_sees_its_participants(spade_bundle, dataset_dir, tmp_path):
    """Each head holds one class that no other has; its channel gets a gradient only where that head was seen."""
    settings = {"plane": "axial", "folds": 2, "spade_visits": 3, "slices_per_volume": 4, "hidden": 8}
    for fold in (0, 1):
        tiny_spade.train(dataset_dir, tmp_path, "training_spade", fold=fold, **settings)
    table = LabelTable.from_file(ROOT / "spade_fusion_bundle" / "configs" / "labels.json", "demo")
    data = read_dataset(dataset_dir, table, folds=2)
    assert len(data["training"]) == 5 and not data["fusion"]
    marks = dict(zip((f"sub-{n + 1:02d}" for n in range(6)), table.classes(np.array(tiny_spade.MARKS), "marks").tolist()))
    for fold in (0, 1):
        seen = classes_learnt(tmp_path / "models" / "resume" / f"spade_axial_fold{fold}.pt")
        for item in data["training"]:
            assert (marks[item["participant_id"]] in seen) == (item["fold"] != fold), (fold, item["participant_id"])
        assert marks["sub-06"] not in seen, "the validation's"
