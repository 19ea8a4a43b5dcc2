"""SPADE fusion trains from lists of pairs, which MONAI Label puts into its configuration, as from a BIDS data set."""

import json
from functools import partial
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import tiny
import tiny_spade
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser

from spade_fusion_bundle.scripts.data.planes import PLANES
from spade_fusion_bundle.scripts.model.networks import SpadeFusion, SpadeGenerator
from spade_fusion_bundle.scripts.model.plane_weights import generator_file
from spade_fusion_bundle.scripts.training.fusion_data import FusionStart, prepare

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
    FusionStart(partial(prepare, network, **files), validator).attach(trainer)
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
