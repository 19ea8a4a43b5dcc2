"""Every published layout of weights loads exactly, everything else is refused by name, and no file is left half written."""

import argparse
import json
import os
import pickle
import sys

import pytest
import tiny
import torch

from brain_ldm_bundle.scripts.model.networks import Autoencoder, DiffusionUNet
from brain_ldm_bundle.scripts.shared.files import save_weights, sha256
from brain_ldm_bundle.scripts.shared.weights import load_weights, network_of, read_recipe

UNET = {"num_covariates": 2, "channels": [8, 8], "num_head_channels": [0, 8], "num_res_blocks": 1, "norm_num_groups": 4}
BEYOND_PUBLISHED = ("scale_factor", "_extra_state")
RECIPE = {"prediction_type": "v_prediction", "spacing_mm": 2.0, "covariates": [{"name": "age", "range": [44, 82]}]}


def old_layout(state):
    """The names of monai-generative 0.2."""
    renamed = {key.replace(".postconv.", ".conv.").replace(".out_proj.", ".to_out.0."): value for key, value in state.items()}
    assert renamed.keys() != state.keys()
    return renamed


def published(state):
    return {key: value for key, value in state.items() if key not in BEYOND_PUBLISHED}


def blank(network):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    return network


def assert_same_weights(found, wanted):
    found, wanted = found.state_dict(), wanted.state_dict()
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pt"


LAYOUTS = {
    "as MONAI 1.6": lambda state: state,
    "as monai-generative 0.2": lambda state: old_layout(published(state)),
    "with the prefix of DDP": lambda state: {f"module.{key}": value for key, value in state.items()},
    "inside 'model'": lambda state: {"model": state, "epoch": 3},
    "inside 'state_dict', with the prefix": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "inside 'network', old": lambda state: {"network": old_layout(published(state))},
    "of torch.compile": lambda state: {f"_orig_mod.{key}": value for key, value in state.items()},
    "of torch.compile in DDP": lambda state: {f"module._orig_mod.{key}": value for key, value in state.items()},
    "of Lightning": lambda state: {
        "state_dict": {f"network.{k}": v for k, v in state.items()},
        "hyper_parameters": {"lr": 1e-3},
    },
    "an average of PyTorch": lambda state: {"n_averaged": torch.tensor(3)} | {f"module.{k}": v for k, v in state.items()},
    "inside 'ema'": lambda state: {"ema": state, "metrics": {"ssim": torch.tensor(torch.inf)}},
    "inside 'unet_state_dict'": lambda state: {"unet_state_dict": state, "num_train_timesteps": 1000},
    "two levels deep": lambda state: {"model": {"state_dict": state}, "optimizer": {"state": {}, "param_groups": []}},
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("make", [tiny.autoencoder, tiny.unet])
def test_every_layout_gives_every_weight_back(path, layout, make):
    torch.save(layout(make().state_dict()), path)
    assert_same_weights(load_weights(blank(make()), path), make())


# What is refused


def test_another_architecture_names_the_first_keys_and_both_shapes(path):
    torch.save(tiny.autoencoder().state_dict(), path)
    wider = Autoencoder(channels=[8, 16], num_res_blocks=1, norm_num_groups=4)
    expected = r"weights\.pt: weights of another architecture.*encoder\.blocks\.3\.conv1\.conv\.weight \(8, 8, 3, 3, 3\) "
    with pytest.raises(ValueError, match=expected + r"instead of \(16, 8, 3, 3, 3\)"):
        load_weights(wider, path)


def test_a_key_missing_and_a_key_too_many_are_both_named(path):
    state = tiny.autoencoder().state_dict()
    state["decoder.surplus"] = state.pop("quant_conv_mu.conv.bias")
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"1 keys missing, first: quant_conv_mu\.conv\.bias.*first: decoder\.surplus"):
        load_weights(tiny.autoencoder(), path)


@pytest.mark.parametrize("key", ["encoder.blocks.9.conv.weight", "epoch"])
def test_one_key_too_many_is_enough(path, key):
    torch.save(tiny.autoencoder().state_dict() | {key: torch.ones(1)}, path)
    with pytest.raises(ValueError, match=f"1 keys not of this network, first: {key}"):
        load_weights(tiny.autoencoder(), path)


def test_a_network_is_untouched_by_weights_that_do_not_fit(path):
    state = {key: torch.zeros_like(value) for key, value in tiny.autoencoder().state_dict().items()}
    del state["quant_conv_mu.conv.bias"]
    torch.save(state, path)
    network = tiny.autoencoder()
    with pytest.raises(ValueError):
        load_weights(network, path)
    assert_same_weights(network, tiny.autoencoder())


@pytest.mark.parametrize("lacking", BEYOND_PUBLISHED)
def test_half_of_what_goes_beyond_the_published_weights_is_refused(path, lacking):
    torch.save({key: value for key, value in tiny.unet().state_dict().items() if key != lacking}, path)
    with pytest.raises(ValueError, match=f"1 keys missing, first: {lacking}"):
        load_weights(tiny.unet(), path)


def test_a_missing_file_names_the_command_that_makes_it(path):
    with pytest.raises(FileNotFoundError, match=r"weights\.pt: no such weights file\. Make it with: run training_x"):
        load_weights(tiny.autoencoder(), path, made_by="run training_x")


GARBAGE = {
    "empty": b"",
    "a web page": b"<!DOCTYPE html><title>404</title>",
    "a text": b"404: Not Found",
    "a pointer of Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345\n",
    "zeros": bytes(1000),
    "read by pickle as a pop from an empty stack": b"0\n",
    "read by pickle as half a float": b"GG",
    "a damaged legacy file": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02",
}


@pytest.mark.parametrize("content", GARBAGE.values(), ids=GARBAGE)
def test_garbage_is_refused_by_file_name(path, content):
    path.write_bytes(content)
    reason = r"weights\.pt: not a file of PyTorch weights, (because it begins with b'|or damaged \(.+\))"
    for read in (lambda: load_weights(tiny.autoencoder(), path), lambda: read_recipe(path)):
        with pytest.raises(ValueError, match=reason):
            read()


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_a_truncated_file_is_refused(path, kept):
    torch.save(tiny.autoencoder().state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="damaged"):
        load_weights(tiny.autoencoder(), path)


def test_a_pickle_that_would_run_a_command_is_refused_and_does_not_run(path):
    class Harmful:
        def __reduce__(self):
            return os.mkdir, (str(path.with_name("harm")),)

    path.write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(ValueError, match="not a file of PyTorch weights"):
        load_weights(tiny.autoencoder(), path)
    assert not path.with_name("harm").exists()


LAYER = torch.nn.Linear(2, 3)
MIXED = {
    "found list": [1, 2],
    "found epoch": {"epoch": 3},
    "found model": {"model": {"a": 1}},
    "found several: model, ema": {"model": LAYER.state_dict(), "ema": LAYER.state_dict()},
    "found the state of an optimizer": torch.optim.Adam(LAYER.parameters()).state_dict(),
    "this is the state of an interrupted training": {"network": LAYER.state_dict(), "epoch_length": 3, "settings": {}},
}


@pytest.mark.parametrize("found", MIXED)
def test_a_file_of_something_else_than_tensors_says_what_it_holds(path, found):
    torch.save(MIXED[found], path)
    for read in (lambda: load_weights(tiny.autoencoder(), path), lambda: read_recipe(path)):
        with pytest.raises(ValueError, match=rf"weights\.pt: .*{found}"):
            read()


def write_torchscript(path):
    torch.jit.script(LAYER).save(path)


OTHER_FILES = {
    "but a TorchScript file": write_torchscript,
    "because it begins with b'<!DOCTYPE html>": lambda path: path.write_text("<!DOCTYPE html><html>Quota exceeded</html>"),
    "because it begins with b'version https://git-lfs": lambda path: path.write_text("version https://git-lfs.github.com/spec"),
    "because it holds a pickled torch.nn.modules.linear.Linear": lambda path: torch.save(LAYER, path),
    "because it holds a pickled argparse.Namespace": lambda path: torch.save({"args": argparse.Namespace(a=1)}, path),
}


@pytest.mark.parametrize("what", OTHER_FILES)
def test_another_kind_of_file_is_named_with_its_remedy(path, what):
    OTHER_FILES[what](path)
    with pytest.raises(ValueError, match=f"weights.pt: not a file of PyTorch weights, {what}"):
        load_weights(tiny.autoencoder(), path)


def test_safetensors_give_the_same_network_and_recipe(path):
    safetensors = pytest.importorskip("safetensors.torch", reason="pip install safetensors")
    network = tiny.autoencoder()
    network.recipe = {"spacing_mm": 4.0}
    safetensors.save_file(network.state_dict(), path)
    loaded = load_weights(tiny.autoencoder(), path)
    assert read_recipe(path) == network.recipe
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in loaded.state_dict().items())
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"weights.pt: a damaged file of safetensors .*Fetch or save it again"):
        load_weights(tiny.autoencoder(), path)


def test_safetensors_without_their_package_name_the_command_that_installs_it(path, monkeypatch):
    header = b'{"weight":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(ValueError, match="weights.pt: a file of safetensors, which needs a package: pip install safetensors"):
        load_weights(tiny.autoencoder(), path)


def test_one_flipped_bit_is_refused_although_pytorch_reads_it(path):
    save_weights(tiny.autoencoder().state_dict(), path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    torch.load(path, weights_only=True)
    with pytest.raises(ValueError, match="weights.pt: .* does not have its checksum. Fetch"):
        load_weights(tiny.autoencoder(), path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("make", [tiny.autoencoder, tiny.unet])
def test_weights_that_are_not_finite_are_refused_with_the_first_tensor(path, make, value):
    state = make().state_dict()
    name = [key for key in state if state[key].ndim > 1][1]
    state[name].flatten()[-1] = value
    torch.save(state, path)
    with pytest.raises(ValueError, match=rf"weights\.pt: {name} holds NaN or infinity"):
        load_weights(make(), path)


def test_no_network_is_made_of_weights_that_are_not_finite(path):
    """MONAI's `load` reads the file itself and gave back a network of NaN."""
    network = tiny.unet()
    network.recipe = {"unet": UNET} | NEEDED
    state = network.state_dict()
    next(value for value in state.values() if torch.is_tensor(value) and value.ndim > 1).fill_(torch.nan)
    torch.save(state, path)
    with pytest.raises(ValueError, match="holds NaN or infinity"):
        network_of(DiffusionUNet, "unet", path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_another_precision_are_loaded(path, dtype):
    state = tiny.autoencoder().state_dict()
    torch.save({key: value.to(dtype) if value.is_floating_point() else value for key, value in state.items()}, path)
    loaded = load_weights(blank(tiny.autoencoder()), path).state_dict()
    for key, value in state.items():
        torch.testing.assert_close(loaded[key], value, rtol=1e-2, atol=1e-4)


def test_whole_numbers_are_no_weights(path):
    state = tiny.autoencoder().state_dict()
    torch.save({key: value.to(torch.uint8) for key, value in state.items()}, path)
    with pytest.raises(ValueError, match="keys of another type, first: encoder.* torch.uint8 instead of torch.float32"):
        load_weights(tiny.autoencoder(), path)


def test_the_other_network_is_named(path):
    torch.save(tiny.unet().state_dict(), path)
    with pytest.raises(ValueError, match=r"another architecture \(a diffusion model, not an autoencoder\)"):
        load_weights(tiny.autoencoder(), path, expected_sha256="0" * 64)
    with pytest.raises(ValueError, match="a diffusion model, not an autoencoder"):
        network_of(Autoencoder, "autoencoder", path)


def test_a_network_with_a_prefix_of_its_own_keeps_it(path):
    network = torch.nn.ModuleDict({"model": torch.nn.Linear(2, 3)})
    torch.save({f"module.{key}": value for key, value in network.state_dict().items()}, path)
    loaded = load_weights(torch.nn.ModuleDict({"model": torch.nn.Linear(2, 3)}), path)
    assert torch.equal(loaded["model"].weight, network["model"].weight)


def test_another_autoencoder_than_the_models_own_is_refused(path):
    save_weights(tiny.autoencoder().state_dict(), path)
    load_weights(tiny.autoencoder(), path, expected_sha256=sha256(path))
    with pytest.raises(ValueError, match="Use the two files that were trained together"):
        load_weights(tiny.autoencoder(), path, expected_sha256="0" * 64)


# What travels with the weights


def test_recipe_and_scale_factor_survive_a_file(path):
    network = tiny.unet()
    network.recipe = RECIPE
    network.scale_factor.fill_(0.37)
    save_weights(network.state_dict(), path)
    loaded = load_weights(tiny.unet(), path)
    assert loaded.recipe == RECIPE == read_recipe(path)
    assert loaded.scale_factor.item() == pytest.approx(0.37)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_recipe_is_read_from_every_layout_that_loads(path, layout):
    network = tiny.unet()
    network.recipe = RECIPE
    torch.save(LAYOUTS[layout](network.state_dict()), path)
    assert read_recipe(path) == ({} if "old" in layout or "0.2" in layout else RECIPE)


@pytest.mark.parametrize("factor", [0.0, -0.9])
def test_an_impossible_scale_factor_is_refused(path, factor):
    """Latents were divided by it, and the volumes were noise or inverted."""
    network = tiny.unet()
    network.scale_factor.fill_(factor)
    torch.save(network.state_dict(), path)
    with pytest.raises(ValueError, match=f"{path}: the scale factor of the latents is {factor:g}, but must be above 0"):
        load_weights(tiny.unet(), path)


def test_published_weights_have_no_recipe_and_unscaled_latents(path):
    torch.save(old_layout(published(tiny.unet().state_dict())), path)
    assert read_recipe(path) == {}
    loaded = load_weights(tiny.unet(), path)
    assert loaded.recipe == {} and loaded.scale_factor.item() == 1


def test_the_recipe_of_a_file_that_is_not_there_yet_is_empty(path):
    assert read_recipe(path) == {}


# The network that weights belong to


NEEDED = {"spacing_mm": 2.0, "prediction_type": "epsilon", "covariates": {}}


def write_unet(path, **changes):
    network = tiny.unet()
    network.recipe = {"unet": UNET} | NEEDED | changes
    save_weights(network.state_dict(), path)


@pytest.mark.parametrize("layout", [name for name in LAYOUTS if "old" not in name and "0.2" not in name])
def test_the_network_of_a_file_has_its_sizes_and_its_recipe(path, layout):
    network = tiny.unet()
    network.recipe = {"unet": UNET} | NEEDED
    torch.save(LAYOUTS[layout](network.state_dict()), path)
    found = network_of(DiffusionUNet, "unet", path)
    assert found.recipe == network.recipe
    assert_same_weights(load_weights(found, path), network)


IMPOSSIBLE = [
    {"channels": [10**9, 8]},
    {"channels": [], "num_head_channels": []},
    {"num_res_blocks": 10**9},
    {"norm_num_groups": 3},
    {"norm_num_groups": 0},
    {"num_covariates": 3},
    {"num_head_channels": [0, 8, 8]},
    {"dropout": 1},
]


@pytest.mark.parametrize("sizes", IMPOSSIBLE, ids=str)
def test_a_recipe_that_does_not_describe_the_tensors_is_refused_before_memory_is_taken(path, sizes):
    write_unet(path, unet=UNET | sizes)
    with pytest.raises(ValueError, match=r"weights\.pt: .*(do not fit a DiffusionUNet|another architecture)"):
        network_of(DiffusionUNet, "unet", path)


@pytest.mark.parametrize("name", NEEDED)
def test_a_recipe_without_an_entry_whose_default_would_give_wrong_images_is_refused(path, name):
    write_unet(path)
    state = torch.load(path)
    recipe = {key: value for key, value in read_recipe(path).items() if key != name}
    torch.save(state | {"_extra_state": torch.tensor(list(json.dumps(recipe).encode()), dtype=torch.uint8)}, path)
    with pytest.raises(ValueError, match=f"weights.pt: the recipe in the weights lacks {name}. Fetch"):
        network_of(DiffusionUNet, "unet", path)


@pytest.mark.parametrize("change", [lambda tensor: tensor.to("meta"), lambda tensor: tensor.to_sparse()])
def test_tensors_that_do_not_hold_all_values_are_refused(path, change):
    state = tiny.autoencoder().state_dict()
    torch.save({key: change(tensor) if tensor.is_floating_point() else tensor for key, tensor in state.items()}, path)
    with pytest.raises(ValueError, match=r"keys of another type, first: .* (without values|torch.sparse_coo) instead of"):
        load_weights(tiny.autoencoder(), path)


def test_weights_without_a_recipe_that_have_other_than_the_default_sizes_are_refused(path):
    torch.save(published(tiny.unet().state_dict()), path)
    with pytest.raises(ValueError, match="diffusion model do not fit a DiffusionUNet with its default sizes"):
        network_of(DiffusionUNet, "unet", path)


def test_settings_that_contradict_the_recipe_are_refused_and_equal_ones_are_not(path):
    write_unet(path, spacing_mm=8.0)
    used = {"unet": UNET} | NEEDED | {"spacing_mm": 8}
    load_weights(tiny.unet(), path, settings=used | {"another setting": 1})
    with pytest.raises(ValueError, match=r"spacing_mm is 4.0, but .*weights.pt was trained with 8.0.* leave it out"):
        load_weights(tiny.unet(), path, settings=used | {"spacing_mm": 4.0})
    with pytest.raises(ValueError, match="unet is {}, but"):
        load_weights(tiny.unet(), path, settings=used | {"unet": {}})
    with pytest.raises(ValueError, match="spacing_mm is nothing"):
        load_weights(tiny.unet(), path, settings={name: used[name] for name in used.keys() - {"spacing_mm"}})


def test_published_weights_are_of_1_mm(path):
    torch.save(published(tiny.unet().state_dict()), path)
    load_weights(tiny.unet(), path, settings={"spacing_mm": 1.0})
    with pytest.raises(ValueError, match="spacing_mm is 2.0, but .* was trained with 1.0"):
        load_weights(tiny.unet(), path, settings={"spacing_mm": 2.0})
