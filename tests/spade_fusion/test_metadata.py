"""metadata.json of the SPADE bundle describes the networks correctly."""

import json

import pytest
import torch
from conftest import ROOT

from spade_fusion_bundle.scripts.model.networks import FusionCNN, SpadeFusion, SpadeGenerator
from spade_fusion_bundle.scripts.shared.label_table import LabelTable

CONFIGS = ROOT / "spade_fusion_bundle" / "configs"


@pytest.fixture(scope="module")
def metadata():
    return json.loads((CONFIGS / "metadata.json").read_text())


@pytest.mark.parametrize(
    ("data_format", "network"),
    [
        ("network_data_format", lambda labels: SpadeFusion(labels, ngf=2, hidden=4, fusion_channels=2)),
        ("generator_data_format", lambda labels: SpadeGenerator(labels, ngf=2, hidden=4).eval()),
        ("fusion_data_format", lambda labels: FusionCNN(channels=2)),
    ],
)
def test_each_network_takes_and_gives_what_is_described(metadata, data_format, network):
    """The networks are tested at the smallest sizes that the patterns allow, with the classes of the first table."""
    described = metadata[data_format]
    image, pred = described["inputs"]["image"], described["outputs"]["pred"]
    assert list(described["inputs"]) == ["image"] and list(described["outputs"]) == ["pred"]
    labels = LabelTable.from_file(CONFIGS / "labels.json", "freesurfer").num_classes
    if image["format"] == "segmentation":
        assert image["value_range"] == [0, labels - 1]
    factor = int(image["spatial_shape"][0].removesuffix("n").removesuffix("*") or 8)
    sides = [factor * n for n in (1, 2, 3)][: len(image["spatial_shape"])]
    high = image["value_range"][1]
    inputs = torch.randint(high + 1, (1, image["num_channels"], *sides)).float()
    with torch.no_grad():
        output = network(labels).eval()(inputs)
    assert output.shape == (1, pred["num_channels"], *sides)
    if data_format != "fusion_data_format":
        assert pred["value_range"][0] <= output.min() and output.max() <= pred["value_range"][1]


def test_the_docs_name_every_label_table():
    readme = (ROOT / "spade_fusion_bundle" / "docs" / "README.md").read_text()
    tables = json.loads((CONFIGS / "labels.json").read_text())
    for name in (name for name in tables if not name.startswith("_")):
        assert f"| `{name}` |" in readme
