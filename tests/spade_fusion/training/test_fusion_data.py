"""The fusion learns from volumes that the generators make for other subjects, of a folder or of the lists of MONAI Label."""

import json
from functools import partial
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import tiny
import tiny_spade
import torch
from conftest import ROOT
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser
from monai.transforms import Compose

from spade_fusion_bundle.scripts.data.planes import PLANES
from spade_fusion_bundle.scripts.data.scans_and_maps import read_dataset
from spade_fusion_bundle.scripts.model.networks import SpadeFusion, SpadeGenerator
from spade_fusion_bundle.scripts.model.plane_weights import generator_file
from spade_fusion_bundle.scripts.shared.handlers import BestWeights
from spade_fusion_bundle.scripts.shared.label_table import LabelTable
from spade_fusion_bundle.scripts.training.fusion_data import FusionDataset, FusionStart, prepare, with_contrast_of

TRAINING, VALIDATION = "train#dataset#data", "validate#dataset#data"


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    return tiny_spade.write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def pairs(dataset_dir):
    """Pairs of six heads, as MONAI Label lists them."""
    images = sorted(dataset_dir.glob("sub-*/anat/*_T1w.nii.gz"))
    labels = sorted(dataset_dir.glob("derivatives/*/*/anat/*_dseg.nii.gz"))
    return [{"image": str(image), "label": str(label)} for image, label in zip(images, labels)]


@pytest.fixture
def parsed(spade_bundle, tmp_path):
    """The training config with lists in place of a folder."""

    def parse(**settings):
        parser = ConfigParser(ConfigParser.load_config_file("configs/train.json"))
        parser.update(tiny_spade.SETTINGS | {"cache_dir": str(tmp_path / "cache"), "models_dir": str(tmp_path)} | settings)
        return parser

    return parse


def names(items):
    return {item["image"].split("/")[-1][:6] for item in items}


def test_lists_are_split_as_a_folder_is(parsed, pairs):
    parser = parsed(**{TRAINING: pairs[:4], VALIDATION: pairs[4:], "device": "cpu"})
    data = parser.get_parsed_content("data")
    assert names(data["validation"]) == {"sub-05", "sub-06"} and data["test"] == []
    assert len(data["fusion"]) == 1 and len(data["training"]) == 3
    assert names(data["fusion"]) | names(data["training"]) == {"sub-01", "sub-02", "sub-03", "sub-04"}
    # The fusion learns from the one that no GAN sees, although the list of its data set holds all.
    assert names(parser.get_parsed_content("train#dataset").items) == names(data["fusion"])
    assert names(parser.get_parsed_content("validate#dataset").items) == names(data["validation"])
    assert parser.get_parsed_content("spade_stage").device == torch.device("cpu")


def test_without_a_list_to_validate_with_a_share_of_the_other_is_kept(parsed, pairs):
    data = parsed(**{TRAINING: pairs}).get_parsed_content("data")
    assert [len(data[split]) for split in ("training", "fusion", "validation")] == [4, 1, 1]


def test_with_folds_every_listed_head_is_learnt_from_by_all(parsed, pairs):
    parser = parsed(**{TRAINING: pairs[:4], VALIDATION: pairs[4:], "folds": 2})
    items = parser.get_parsed_content("train#dataset").items
    assert len(items) == 4 and sorted(item["fold"] for item in items) == [0, 0, 1, 1]


def test_a_folder_gives_what_it_gave_and_its_lists(parsed, dataset_dir):
    parser = parsed(dataset_dir=str(dataset_dir))
    data = parser.get_parsed_content("data")
    assert names(parser.get_parsed_content(TRAINING)) == names(data["training"]) | names(data["fusion"])
    assert names(parser.get_parsed_content(VALIDATION)) == names(data["validation"]) == {"sub-06"}
    assert names(parser.get_parsed_content("train#dataset").items) == {"sub-04", "sub-05"}


def test_neither_folder_nor_lists_is_refused(parsed):
    with pytest.raises(RuntimeError) as caught:  # MONAI's, around ours
        parsed().get_parsed_content("data")
    assert "there is nothing to train on. Give --dataset_dir" in str(caught.value.__cause__)


def test_listed_pairs_are_checked(parsed, pairs, tmp_path):
    label = nib.load(pairs[0]["label"])
    values = np.asarray(label.dataobj).copy()
    values[0, 0, :3] = 99
    nib.save(nib.Nifti1Image(values, label.affine), tmp_path / "odd.nii.gz")
    faulty = [{"image": pairs[0]["image"], "label": str(tmp_path / "odd.nii.gz")}, *pairs[1:]]
    with pytest.raises(RuntimeError) as caught:
        parsed(**{TRAINING: faulty, VALIDATION: []}).get_parsed_content("data")
    assert "odd.nii.gz: label values 99 (3 voxels) are not in the label table 'demo'" in str(caught.value.__cause__)
    twice = {TRAINING: pairs[:3], VALIDATION: pairs[2:4]}
    with pytest.raises(RuntimeError) as caught:
        parsed(**twice).get_parsed_content("data")
    assert "sub-03 is also in training" in str(caught.value.__cause__)


def test_other_generators_than_the_final_ones_do_not_stay_in_the_network(tmp_path):
    """MONAI Label loads the model that it serves before the first step; the fusion would keep other generators."""
    sizes = {"num_labels": 3, "ngf": 2, "hidden": 4}
    recipe = {"labels": {"name": "x"}, "spacing_mm": 4.0, "data": "ab"}
    for seed, plane in enumerate(PLANES):
        generator = tiny.perturbed(SpadeGenerator(**sizes), seed)
        generator.recipe = recipe | {"plane": plane}
        torch.save(generator.state_dict(), generator_file(tmp_path, plane))
    network = SpadeFusion(**sizes, fusion_channels=4, fusion_layers=2)
    served = tiny.perturbed(SpadeFusion(**sizes, fusion_channels=4, fusion_layers=2), seed=9)
    served.recipe = {"generators_sha256": "of others"}

    trainer = Engine(lambda engine, batch: None)
    trainer.add_event_handler(Events.STARTED, lambda: network.load_state_dict(served.state_dict()))
    files = {"generator": lambda: SpadeGenerator(**sizes), "models_dir": tmp_path, "recipe": recipe}
    validated = []
    validator = SimpleNamespace(run=lambda epoch: validated.append((epoch, dict(network.recipe))))
    best = BestWeights(tmp_path / "model.pt", network, "val_psnr")
    FusionStart(validator, best, prepare=partial(prepare, network, **files)).attach(trainer)
    trainer.add_event_handler(Events.STARTED, lambda: network.load_state_dict(served.state_dict()))  # attached later
    trainer.run([0], max_epochs=2)

    expected = prepare(SpadeFusion(**sizes, fusion_channels=4, fusion_layers=2), **files)
    assert validated == [(0, expected.recipe)]  # once, with the generators in place
    for found, wanted, other in zip(*(model.generators.parameters() for model in (network, expected, served))):
        assert torch.equal(found, wanted) and not torch.equal(found, other)
    for ours, theirs in zip(network.fusion.parameters(), served.fusion.parameters()):
        assert torch.equal(ours, theirs)
    assert network.recipe["generators_sha256"].keys() == set(PLANES)
    json.dumps(network.recipe)


def test_the_fusion_learns_from_what_generators_of_other_folds_make(dataset_dir, tmp_path):
    torch.manual_seed(0)
    table = LabelTable.from_file(ROOT / "spade_fusion_bundle" / "configs" / "labels.json", "demo")
    recipe = {"labels": table.to_dict(), "spacing_mm": 4.0}
    generators, models = {}, tmp_path / "models"
    models.mkdir()
    for fold in (None, 0, 1):
        for plane in PLANES:
            generator = SpadeGenerator(12, ngf=2, hidden=4)
            torch.nn.init.constant_(generator.to_image.bias, 0.3 * len(generators) - 1)  # another grey for each
            generator.recipe = recipe | {"plane": plane}
            generators[plane, fold] = generator.eval()
            torch.save(generator.state_dict(), generator_file(models, plane, fold))
    labels = torch.zeros(1, 32, 64, 32, dtype=torch.uint8)
    labels[:, 4:20, 8:40, 6:30] = 3
    pair = {"image": torch.rand(1, 32, 64, 32), "label": labels}
    item = {key: read_dataset(dataset_dir, table)["training"][0][key] for key in ("image", "label")}
    dataset = FusionDataset(
        [item | {"fold": 0}, item | {"fold": 1}, item],
        preprocessing=Compose([lambda item: pair]),
        network=lambda: SpadeFusion(12, ngf=2, hidden=4, fusion_channels=4, fusion_layers=2),
        generator=lambda: SpadeGenerator(12, ngf=2, hidden=4),
        models_dir=models,
        recipe=recipe,
        cache_dir=tmp_path / "cache",
    )
    dataset.synthesise()
    for number, fold in enumerate((0, 1, None)):
        found = dataset[number]
        with torch.no_grad():
            axial = generators["axial", fold](labels.movedim(3, 0)).movedim(0, 3) / 2 + 0.5  # (1, X, Y, Z)
        torch.testing.assert_close(found["volumes"][:1], axial * (labels > 0), atol=2e-3, rtol=0)
        torch.testing.assert_close(found["image"], pair["image"], atol=1e-3, rtol=0)
        assert torch.equal(found["label"], (labels > 0).float())
    assert (dataset[0]["volumes"] - dataset[1]["volumes"]).abs().max() > 0.1

    # Nothing is made twice.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    dataset.synthesise()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before

    (models / "spade_coronal_fold1.pt").unlink()
    with pytest.raises(FileNotFoundError, match="spade_coronal_fold1.pt.*training_spade --plane coronal --fold 1 --folds K"):
        dataset.synthesise()


def test_a_scan_is_given_the_contrast_of_the_synthetic_volumes_and_keeps_its_structure():
    """Computed by hand: class 1 is 0.2 too dark, class 2 is right on average, background stays."""
    classes = torch.tensor([[[[0, 0, 1, 1, 2, 2]]]], dtype=torch.uint8)[0]
    image = torch.tensor([[[0.0, 0.3, 0.1, 0.3, 0.5, 0.9]]])
    reference = torch.tensor([[[0.0, 0.0, 0.4, 0.4, 0.7, 0.7]]])
    found = with_contrast_of(reference, image, classes)
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0.3, 0.3, 0.5, 0.5, 0.9]]]))
    assert found.shape == image.shape and found.dtype == image.dtype


@pytest.mark.parametrize("match_contrast", [False, True])
def test_the_fusion_is_shown_the_contrast_that_it_is_told_to(tmp_path, match_contrast):
    labels = torch.zeros(1, 32, 64, 32, dtype=torch.uint8)
    labels[:, 4:20, 8:40, 6:30] = 3
    image = 0.5 + 0.2 * torch.rand(1, 32, 64, 32)
    torch.manual_seed(0)
    models, recipe = tmp_path / "models", {"labels": {}, "spacing_mm": 4.0}
    models.mkdir()
    for plane in PLANES:
        generator = SpadeGenerator(12, ngf=2, hidden=4)
        generator.recipe = recipe | {"plane": plane}
        torch.save(generator.state_dict(), generator_file(models, plane))
    for key in ("image", "label"):
        (tmp_path / key).touch()
    dataset = FusionDataset(
        [{key: str(tmp_path / key) for key in ("image", "label")}],
        preprocessing=Compose([lambda item: {"image": image, "label": labels}]),
        network=lambda: SpadeFusion(12, ngf=2, hidden=4, fusion_channels=4, fusion_layers=2),
        generator=lambda: SpadeGenerator(12, ngf=2, hidden=4),
        models_dir=models,
        recipe=recipe,
        cache_dir=tmp_path / "cache",
        match_contrast=match_contrast,
    )
    dataset.synthesise()
    item, inside = dataset[0], labels == 3
    contrast = item["volumes"].mean(0, keepdim=True)[inside].mean()
    assert (abs(item["image"][inside].mean() - contrast) < 1e-3) == match_contrast
    torch.testing.assert_close(item["image"][~inside], image[~inside], atol=1e-3, rtol=0)


def test_each_rank_makes_its_share_whatever_others_have_made_meanwhile(tmp_path):
    """An early rank once wrote before another looked, and nobody made some of the volumes."""
    items = [{"image": f"{n}", "label": f"{n}"} for n in range(5)]
    made = []

    class Recorder(FusionDataset):
        def file(self, item):
            return tmp_path / f"{item['image']}.npy"

    recipe = {"labels": {}, "spacing_mm": 1.0}
    for plane in PLANES:
        generator = SpadeGenerator(2, ngf=1, hidden=1)
        generator.recipe = recipe | {"plane": plane}
        torch.save(generator.state_dict(), tmp_path / f"spade_{plane}.pt")

    def preprocessing(item):
        made.append(item["image"])
        return {"image": torch.zeros(1, 32, 32, 32), "label": torch.zeros(1, 32, 32, 32, dtype=torch.uint8)}

    network = {"num_labels": 2, "ngf": 1, "hidden": 1, "fusion_channels": 1}
    dataset = Recorder(
        items,
        preprocessing,
        network=lambda: SpadeFusion(**network),
        generator=lambda: SpadeGenerator(2, ngf=1, hidden=1),
        models_dir=tmp_path,
        recipe=recipe,
        cache_dir=tmp_path,
    )
    dataset.synthesise(rank=0, world_size=2)
    assert made == ["0", "2", "4"]
    dataset.synthesise(rank=1, world_size=2)
    assert made == ["0", "2", "4", "1", "3"]
