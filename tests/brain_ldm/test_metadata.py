"""metadata.json follows the model zoo's schema and describes the networks correctly."""

import json

import pytest
import torch
from conftest import ROOT

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.model.networks import Autoencoder, DiffusionUNet

CONFIGS = ROOT / "brain_ldm_bundle" / "configs"
SCHEMA = ROOT.parent / "shared" / "reference" / "meta_schema_20240725.json"


@pytest.fixture(scope="module")
def metadata():
    return json.loads((CONFIGS / "metadata.json").read_text())


@pytest.fixture(params=["brain_ldm_bundle", "spade_fusion_bundle"])
def each_metadata(request):
    return json.loads((ROOT / request.param / "configs" / "metadata.json").read_text())


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"no copy of the schema at {SCHEMA}")
def test_metadata_follows_its_schema(each_metadata):
    jsonschema = pytest.importorskip("jsonschema")
    assert each_metadata["schema"].endswith(SCHEMA.name)
    jsonschema.validate(each_metadata, json.loads(SCHEMA.read_text()))


def test_this_version_is_in_the_changelog(each_metadata):
    assert each_metadata["version"] in each_metadata["changelog"]


def described(tensors):
    return {name: (tensor["num_channels"], *tensor["spatial_shape"]) for name, tensor in tensors.items()}


def test_the_diffusion_network_takes_and_gives_what_is_described(metadata):
    """The meta device gives the shapes at the published size without computing anything."""
    data_format = metadata["network_data_format"]
    inputs = described(data_format["inputs"])
    with torch.device("meta"):
        output = DiffusionUNet()(
            torch.zeros(2, *inputs["image"]), torch.zeros(2, dtype=torch.long), torch.zeros(2, *inputs["context"])
        )
    assert tuple(output.shape) == (2, *described(data_format["outputs"])["pred"])
    assert next(iter(data_format["inputs"])) == "image" and next(iter(data_format["outputs"])) == "pred"


def test_the_autoencoder_takes_and_gives_what_is_described(metadata):
    data_format = metadata["autoencoder_data_format"]
    channels = data_format["inputs"]["image"]["num_channels"]
    network = Autoencoder(channels=(4, 4, 4, 4), norm_num_groups=2)  # 4 levels, as published: sides of 8*n
    assert set(data_format["inputs"]["image"]["spatial_shape"]) == {f"{network.factor}*n"}
    outputs = network(torch.zeros(1, channels, 16, 24, 32))
    assert list(data_format["outputs"]) == ["pred", "z_mu", "z_sigma"]
    for tensor, (name, described_as) in zip(outputs, data_format["outputs"].items(), strict=True):
        assert tensor.shape[1] == described_as["num_channels"], name
        factor = 8 if described_as["spatial_shape"][0] == "8*n" else 1
        assert tensor.shape[2:] == (2 * factor, 3 * factor, 4 * factor), name


def test_the_context_lists_the_covariates_in_order(metadata):
    schema = CovariateSchema.from_file(CONFIGS / "covariates.json")
    context = metadata["network_data_format"]["inputs"]["context"]
    assert context["spatial_shape"] == [len(schema.names)]
    assert context["channel_def"]["0"].startswith(", ".join(schema.names) + ":")


def test_the_docs_state_the_ranges_of_the_schema():
    readme = (ROOT / "brain_ldm_bundle" / "docs" / "README.md").read_text()
    for covariate in CovariateSchema.from_file(CONFIGS / "covariates.json").covariates:
        row = next(line for line in readme.splitlines() if line.startswith(f"| `{covariate.name}` |"))
        if covariate.range:
            assert f"{covariate.range[0]:g} to {covariate.range[1]:g}" in row
        else:
            assert all(f"{level} {code:g}" in row for level, code in covariate.levels.items())
