import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import resnet10, resnet50

from brain_ldm_bundle.scripts.model.medicalnet import MedicalNet

BLOCKS = {10: [1, 1, 1, 1], 50: [3, 4, 6, 3]}


def with_statistics(state):
    """Random weights whose batch norms, and biases, do something."""
    for key, tensor in state.items():
        if tensor.ndim == 1 and key.endswith(("running_mean", "bias")):
            torch.nn.init.normal_(tensor, std=0.1)
        elif tensor.ndim == 1:
            torch.nn.init.uniform_(tensor, 0.5, 1.5)
    return state


def medicalnet_file(path, depth=10):
    """As the MedicalNet project stores its files; the real ones cannot be fetched by a test."""
    torch.manual_seed(0)
    resnet = {10: resnet10, 50: resnet50}[depth]
    network = resnet(spatial_dims=3, n_input_channels=1, feed_forward=False, bias_downsample=False, shortcut_type="B")
    torch.save({"state_dict": {f"module.{key}": value for key, value in with_statistics(network.state_dict()).items()}}, path)
    return path


def slow_resnet(x, state, blocks, strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), stride_in=1, epsilon=1e-5):
    """He et al. 2016, from the operations alone. `stride_in`: which convolution of a block has the stride."""
    spatial = x.ndim - 2
    convolve, pool = (F.conv2d, F.max_pool2d) if spatial == 2 else (F.conv3d, F.max_pool3d)
    state = {key: value.to(x.dtype) for key, value in state.items()}

    def unit(x, convolution, norm, stride=1, dilation=1):
        weight, bias = state[f"{convolution}.weight"], state.get(f"{convolution}.bias")
        x = convolve(x, weight, bias, stride, dilation * (weight.shape[-1] // 2), dilation)
        mean, variance, gain, shift = (
            state[f"{norm}.{name}"].view(1, -1, *[1] * spatial) for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + epsilon).sqrt() * gain + shift

    x = pool(unit(x, "conv1", "bn1", stride=2).relu(), 3, 2, 1)
    for layer, (count, layer_stride, dilation) in enumerate(zip(blocks, strides, dilations, strict=True), start=1):
        for number in range(count):
            block = f"layer{layer}.{number}"
            stride = layer_stride if number == 0 else 1
            depth = 3 if f"{block}.conv3.weight" in state else 2
            y = x
            for i in range(depth):
                kernel = state[f"{block}.conv{i + 1}.weight"].shape[-1]
                y = unit(
                    y,
                    f"{block}.conv{i + 1}",
                    f"{block}.bn{i + 1}",
                    stride if i == stride_in else 1,
                    dilation if kernel > 1 else 1,
                )
                y = y.relu() if i < depth - 1 else y
            if f"{block}.downsample.0.weight" in state:
                x = unit(x, f"{block}.downsample.0", f"{block}.downsample.1", stride)
            x = (x + y).relu()
    return x


@pytest.mark.parametrize("depth", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_features_are_the_mean_of_the_last_layer_of_the_dilated_network(depth, tmp_path):
    """A network that halves the resolution five times, as MONAI's does, is another one with the same tensors."""
    path = medicalnet_file(tmp_path / "any.pth", depth)
    state = {key.removeprefix("module."): value for key, value in torch.load(path)["state_dict"].items()}
    volume = torch.rand(2, 1, 16, 32, 24, dtype=torch.float64)
    x = torch.stack([(one - one.mean()) / one.std() for one in volume])
    expected = slow_resnet(x, state, BLOCKS[depth], (1, 2, 1, 1), (1, 1, 2, 4), stride_in=0 if depth == 10 else 1)
    assert expected.shape == (2, {10: 512, 50: 2048}[depth], 2, 4, 3)
    network = MedicalNet(path).double()
    assert network.name == f"MedicalNet ResNet-{depth}"
    torch.testing.assert_close(network(volume), expected.mean(dim=(2, 3, 4)), rtol=1e-9, atol=1e-9)


def test_brightness_and_contrast_do_not_matter(tmp_path):
    network = MedicalNet(medicalnet_file(tmp_path / "resnet_10_23dataset.pth")).double()
    volume = torch.rand(1, 1, 24, 32, 28, dtype=torch.float64)
    torch.testing.assert_close(network(0.5 * volume + 0.2), network(volume))


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(64, 1, 7, 7, 7)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: weights of another architecture"):
        MedicalNet(tmp_path / "other.pth")
