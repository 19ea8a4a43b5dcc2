"""The recipe in weights is checked when it is read, and MONAI's partial copies of weights are refused."""

import json

import pytest
import tiny
import torch
from monai.networks import copy_model_state

from brain_ldm_bundle.scripts.model.networks import DiffusionUNet
from brain_ldm_bundle.scripts.shared.recipe import decode
from brain_ldm_bundle.scripts.shared.weights import load_weights, read_recipe


def encoded(text):
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


SOUND = {
    "spacing_mm": 0.7,
    "prediction_type": "v_prediction",
    "condition_dropout": 0,
    "unet": {"channels": [8, 8], "num_res_blocks": 1},
    "seen_voxels": ["0123456789abcdef"],
    "seen_unknown": False,
    "an entry of a later version": [1, None],
}
WRONG = [
    *({"spacing_mm": value} for value in (float("nan"), float("inf"), 0, -1, 1e9, "1", True, None, [1, 1, 1])),
    *({"prediction_type": value} for value in ("foo", "sample", None, 1, ["epsilon"])),
    *({"condition_dropout": value} for value in (2, -0.1, "0.1")),
    *({"unet": value} for value in (5, "wide", [8], {"channels": "8"}, {"channels": [[8]]}, {"channels": [8.5]})),
    *({"unet": {"num_res_blocks": value}} for value in (-1, None, True)),
    {"unet": {"channels": [8] * 21}},
    {"regressor": {"image_size": [20, 28, 10**6]}},
    {"seen_voxels": "all"},
    {"seen_voxels": [1]},
    {"seen_unknown": "no"},
    {"autoencoder_sha256": 7},
]


def test_a_sound_recipe_is_read_as_it_was_written():
    assert decode(encoded(json.dumps(SOUND)), "model.pt") == SOUND


@pytest.mark.parametrize("wrong", WRONG, ids=str)
def test_an_entry_of_a_wrong_type_or_range_is_named_with_file_and_value(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^model.pt: '{name}' in the recipe of the weights must be .*, got .* again$"):
        decode(encoded(json.dumps(SOUND | wrong)), "model.pt")


@pytest.mark.parametrize(
    "state",
    [
        encoded("{"),
        encoded(""),
        encoded("[1]"),
        encoded("null"),
        torch.tensor([0.5]),
        torch.tensor([300]),
        torch.tensor([[1]]),
        torch.tensor(10**15),
        encoded("[" * 100_000),
        "{}",
    ],
    ids=str,
)
def test_a_damaged_recipe_is_refused(state, tmp_path):
    with pytest.raises(ValueError, match="^model.pt: the recipe in the weights is (damaged|no JSON object)"):
        decode(state, "model.pt")


def test_a_damaged_recipe_is_refused_by_everything_that_reads_weights(tmp_path):
    path, state = tmp_path / "model.pt", tiny.unet().state_dict() | {"_extra_state": encoded('{"spacing_mm": NaN}')}
    torch.save(state, path)
    for read in (
        lambda: read_recipe(path),
        lambda: load_weights(tiny.unet(), path),
        lambda: tiny.unet().load_state_dict(state),
    ):
        with pytest.raises(ValueError, match="'spacing_mm' in the recipe of the weights must be a voxel size"):
            read()


# MONAI's copy_model_state, which monai.bundle.load uses


def wider():
    return DiffusionUNet(num_covariates=2, channels=[8, 16], num_head_channels=[0, 16], num_res_blocks=1, norm_num_groups=4)


def without(state, *names):
    return {key: value for key, value in state.items() if key not in names}


def test_a_copy_that_leaves_tensors_untrained_is_refused():
    state = tiny.unet().state_dict()
    expected = r"these weights lack \d+ of the \d+ tensors of this DiffusionUNet, first: .*net_override"
    for network, given in ((wider(), state), (tiny.unet(), without(state, "conv_in.conv.bias")), (tiny.unet(), {})):
        with pytest.raises(ValueError, match=expected):
            copy_model_state(network, given)


def test_a_copy_that_drops_the_recipe_is_refused():
    trained = tiny.unet()
    trained.recipe = {"prediction_type": "v_prediction"}
    with pytest.raises(ValueError, match="lack 1 of .* first: _extra_state"):
        copy_model_state(tiny.unet(), trained.state_dict())


def test_a_complete_copy_is_accepted_and_carries_the_recipe():
    trained, network = tiny.unet(), tiny.unet()
    trained.recipe, network.recipe = {"spacing_mm": 8.0}, {"spacing_mm": 4.0}  # as long as JSON
    with torch.no_grad():
        trained.scale_factor.fill_(0.5)
    copy_model_state(network, trained.state_dict())
    assert network.recipe == trained.recipe and network.scale_factor == 0.5
    network.load_state_dict({key: value.clone() for key, value in network.state_dict().items()})
