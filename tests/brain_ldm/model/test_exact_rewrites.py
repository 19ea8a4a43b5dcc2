"""Rewritten networks compute the same from the same weights, with the operations and the memory that are promised."""

import copy
import weakref
from functools import cache
from typing import NamedTuple

import pytest
import tiny
import torch
from monai.networks.nets.diffusion_model_unet import DiffusionUNetTransformerBlock
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from brain_ldm_bundle.scripts.model import exact_rewrites
from brain_ldm_bundle.scripts.model.exact_rewrites import REWRITTEN, rewrite
from brain_ldm_bundle.scripts.model.networks import Autoencoder, DiffusionUNet

GIB = 2**30


class Work(NamedTuple):
    tflop: float
    operations: int
    moved: float  # GB read and written
    gib: float  # held at once


class Counter(TorchDispatchMode):
    """Counts operations, bytes read and written, and the largest number of bytes that tensors made meanwhile held at once."""

    def __init__(self):
        super().__init__()
        self.operations = self.moved = self.held = self.most_held = 0
        self.users = {}  # of a storage, by its address: how many tensors

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        given = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, torch.Tensor)}
        result = function(*args, **kwargs or {})
        if not function.is_view:
            self.operations += 1
            read = [tensor for name, part in (kwargs or {}).items() if name != "out" for tensor in tree_leaves(part)]
            both = tree_leaves(args) + read + tree_leaves(result)
            made = "empty" in str(function)
            self.moved += sum(t.numel() * t.element_size() for t in both if isinstance(t, torch.Tensor) and not made)
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                key, size = storage._cdata, storage.nbytes()
                if key in self.users or key not in given:  # else it is the input of the network, or a weight
                    self.held += size * (key not in self.users)
                    self.users[key] = self.users.get(key, 0) + 1
                    weakref.finalize(tensor, self.release, key, size)
        self.most_held = max(self.most_held, self.held)
        return result

    def release(self, key, size):
        self.users[key] -= 1
        if not self.users[key]:
            del self.users[key]
            self.held -= size


def counted(function, *inputs):
    """Count the work of a call on the meta device."""
    with torch.inference_mode(), FlopCounterMode(display=False) as flops, Counter() as counter:
        function(*inputs)
    return Work(flops.get_total_flops() / 1e12, counter.operations, counter.moved / 1e9, counter.most_held / GIB)


def relative_error(found, wanted):
    return ((found - wanted).norm() / wanted.norm()).item()


def u_net():
    """Three levels, so that it downsamples and upsamples twice, with and without attention."""
    torch.manual_seed(0)
    sizes = {"channels": [8, 16, 24], "num_head_channels": [0, 16, 24], "num_res_blocks": 2, "norm_num_groups": 4}
    return tiny.perturbed(DiffusionUNet(num_covariates=2, **sizes))


def autoencoder(channels=(8, 16, 24)):
    torch.manual_seed(0)
    return tiny.perturbed(Autoencoder(channels, num_res_blocks=2, norm_num_groups=4))


LATENT = torch.randn(2, 3, 8, 12, 4, generator=torch.Generator().manual_seed(1))
TIMES, CONTEXT = torch.tensor([3, 700]), torch.tensor([[[0.1, 0.9]], [[-1.0, 0.2]]])


@torch.inference_mode()
def test_the_u_net_predicts_the_same():
    network = u_net()
    rewritten = rewrite(copy.deepcopy(network))
    assert relative_error(rewritten(LATENT, TIMES, CONTEXT), network(LATENT, TIMES, CONTEXT)) < 1e-5
    assert rewrite(network, wanted=False) is network and type(network.down_blocks[0].resnets[0]) not in REWRITTEN.values()


@pytest.mark.parametrize("slabs", [1, 2, 3, 7, 64])
@torch.inference_mode()
def test_the_decoder_makes_the_same_image_in_any_number_of_slabs(slabs):
    """The image is 28 voxels along the axis that is cut, so 64 slabs are one voxel each before the last upsampling."""
    network, latent = autoencoder(), LATENT[:, :, :5, :7]
    found, wanted = rewrite(copy.deepcopy(network), slabs=slabs).decode(latent), network.decode(latent)
    assert relative_error(found, wanted) < 1e-5
    assert (found - wanted).abs().max() < 1e-4 * wanted.std()


@torch.inference_mode()
def test_group_norm_over_slabs_holds_for_a_mean_that_is_large_beside_the_spread():
    norm = torch.nn.GroupNorm(2, 4)
    x = 1000 + torch.randn(2, 4, 3, 9, 5)
    slabs = list(x.clone().tensor_split(4, dim=3))
    exact_rewrites._normalise(slabs, norm, activate=False)
    torch.testing.assert_close(
        torch.cat([slab[:, :, :, 1:-1] for slab in slabs], dim=3), norm.double()(x.double()).float(), rtol=0, atol=2e-3
    )


@torch.inference_mode()
def test_an_autoencoder_of_one_level_has_no_last_stage():
    network = autoencoder([8])
    assert torch.equal(rewrite(copy.deepcopy(network), slabs=4).decode(LATENT), network.decode(LATENT))


def test_the_decoder_has_the_same_gradients():
    network, latent = autoencoder(), LATENT[:1, :, :3, :4].requires_grad_()
    gradients = [
        torch.autograd.grad(one.decode(latent).sum(), latent)[0] for one in (network, rewrite(copy.deepcopy(network), slabs=4))
    ]
    assert relative_error(gradients[1], gradients[0]) < 1e-5


@torch.inference_mode()
def test_two_tokens_go_through_the_attention():
    transformer = next(module for module in u_net().modules() if type(module) is DiffusionUNetTransformerBlock)
    x, context = torch.randn(1, 6, transformer.norm1.normalized_shape[0]), torch.randn(1, 2, 2)
    assert relative_error(rewrite(copy.deepcopy(transformer))(x, context), transformer(x, context)) < 1e-5


@torch.no_grad()
def test_weights_keep_their_names_and_new_weights_count_at_once():
    """MONAI Label loads weights into a network that has sampled before."""
    network, other = u_net(), tiny.perturbed(u_net(), seed=1)
    rewritten = rewrite(copy.deepcopy(network))
    before = rewritten(LATENT, TIMES, CONTEXT)
    assert list(rewritten.state_dict()) == list(network.state_dict())
    rewritten.load_state_dict(other.state_dict())
    after = rewritten(LATENT, TIMES, CONTEXT)
    assert relative_error(after, other(LATENT, TIMES, CONTEXT)) < 1e-5 < relative_error(after, before)


def test_gradients_reach_the_weights_of_the_upsampled_convolutions():
    conv, x = torch.nn.Conv3d(2, 3, 3, padding=1), torch.randn(1, 2, 3, 4, 5)
    wanted = torch.autograd.grad(conv(torch.nn.Upsample(scale_factor=2)(x)).square().sum(), conv.weight)[0]
    for _ in range(2):
        found = torch.autograd.grad(exact_rewrites.upsampled(conv, x).square().sum(), conv.weight)[0]
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slabs", [1, 3])
@torch.inference_mode()
def test_a_decoder_with_weights_of_bfloat16_is_as_near_as_autocast(slabs):
    network, latent = autoencoder(), LATENT[:, :, :5, :7]
    wanted = network.decode(latent)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        by_autocast = network.decode(latent)
    found = rewrite(copy.deepcopy(network), slabs=slabs, bfloat16=True).decode(latent)
    assert found.dtype == torch.bfloat16
    assert relative_error(found.float(), wanted) < 1.5 * relative_error(by_autocast.float(), wanted)


@torch.inference_mode()
def test_a_u_net_with_weights_of_bfloat16_is_as_near_as_autocast():
    network = u_net()
    network.scale_factor.fill_(1.0009765625)  # bfloat16 would round it to 1
    wanted = network(LATENT, TIMES, CONTEXT)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        by_autocast = network(LATENT, TIMES, CONTEXT)
    rewritten = rewrite(copy.deepcopy(network), bfloat16=True)
    found = rewritten(LATENT, TIMES, CONTEXT)
    assert {parameter.dtype for parameter in rewritten.parameters()} == {found.dtype} == {torch.bfloat16}
    assert relative_error(found.float(), wanted) < 1.5 * relative_error(by_autocast.float(), wanted)
    assert torch.equal(rewritten.scale_factor, network.scale_factor)


def test_the_encoder_takes_images_of_float32_to_weights_of_bfloat16():
    image = torch.rand(1, 1, 8, 12, 16)
    with torch.inference_mode():
        wanted = autoencoder().encode(image)[0]
        found = rewrite(autoencoder(), bfloat16=True).encode(image)[0]
    assert relative_error(found.float(), wanted) < 0.03


@pytest.mark.slow
@torch.inference_mode()
def test_compiled_networks_are_one_graph_and_compute_the_same(monkeypatch):
    """The compiler's front end records the graph; what compiles it for the processor is left out, because it takes a minute."""
    compiled = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, mode: compiled(module, backend="eager", fullgraph=True))
    network, decoder = u_net(), autoencoder()
    rewritten = rewrite(copy.deepcopy(network), compiled=True)
    assert rewritten.conv_in.conv.weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert relative_error(rewritten(LATENT, TIMES, CONTEXT), network(LATENT, TIMES, CONTEXT)) < 1e-5
    for slabs in (1, 3):
        found = rewrite(copy.deepcopy(decoder), slabs=slabs, compiled=True).decode(LATENT[:, :, :5, :7])
        assert relative_error(found, decoder.decode(LATENT[:, :, :5, :7])) < 1e-5
    with pytest.raises(ValueError, match="exact_rewrites"):
        rewrite(u_net(), wanted=False, compiled=True)


@pytest.mark.slow
@torch.inference_mode()
def test_compiled_for_this_processor():
    network, decoder = u_net(), autoencoder()
    found = rewrite(copy.deepcopy(network), compiled=True)(LATENT, TIMES, CONTEXT)
    assert relative_error(found, network(LATENT, TIMES, CONTEXT)) < 1e-5
    latent = LATENT[:, :, :5, :7]
    assert relative_error(rewrite(copy.deepcopy(decoder), compiled=True).decode(latent), decoder.decode(latent)) < 1e-5


# What it costs at the published sizes


@cache
@torch.inference_mode()
def published_u_net(wanted, **how):
    with torch.device("meta"):
        network = rewrite(DiffusionUNet().eval(), wanted, **how)
        inputs = torch.empty(1, 3, 20, 28, 20), torch.zeros(1, dtype=torch.long), torch.empty(1, 1, 4)
    network(*inputs)  # the first step also derives weights
    return counted(network, *inputs)


@pytest.mark.parametrize(("wanted", "tflop", "operations"), [(False, 1.4516, 660), (True, 1.30, 520)])
def test_a_step_of_the_published_u_net(wanted, tflop, operations):
    found = published_u_net(wanted)
    assert 0.98 * tflop < found.tflop < 1.0001 * tflop and found.operations <= operations, found


def test_a_step_in_bfloat16_moves_half_of_the_bytes():
    found, wanted = published_u_net(True, bfloat16=True), published_u_net(True)
    assert found.operations <= 520 and found.moved < 0.52 * wanted.moved, found


@pytest.mark.parametrize(
    ("wanted", "slabs", "tflop", "gib", "moved"),
    [(False, 1, 15.14, 4.2, 42), (True, 1, 11.1, 4.2, 39), (True, 4, 11.2, 2.7, 50)],
)
def test_a_decoding_at_the_published_size(wanted, slabs, tflop, gib, moved):
    """By autocast, MONAI's decoder moves 92.6 GB on a GPU."""
    with torch.device("meta"):
        network = rewrite(Autoencoder().to(torch.bfloat16).eval(), wanted, slabs=slabs)
        latent = torch.empty(1, 3, 20, 28, 20, dtype=torch.bfloat16)
    with torch.inference_mode():
        network.decode(latent)
    found = counted(network.decode, latent)
    assert 0.98 * tflop < found.tflop < tflop and 0.9 * gib < found.gib < gib and 0.9 * moved < found.moved < moved, found
