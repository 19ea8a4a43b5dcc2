"""The VGG loss follows the specification and accepts only the right file."""

import hashlib
import logging

import pytest
import torch
import torch.nn.functional as F

from spade_fusion_bundle.scripts.model.perceptual import VGGLoss, vgg_loss

# torchvision's vgg19: number of each convolution in `features`, and its widths; those up to relu5_1, and then the rest.
CONVOLUTIONS = {
    0: (3, 64), 2: (64, 64), 5: (64, 128), 7: (128, 128), 10: (128, 256), 12: (256, 256), 14: (256, 256), 16: (256, 256),
    19: (256, 512), 21: (512, 512), 23: (512, 512), 25: (512, 512), 28: (512, 512),
}  # fmt: skip
POOLINGS = (4, 9, 18, 27)
# After which convolution the features are compared, and their weight.
CUTS = {0: 1 / 32, 5: 1 / 16, 10: 1 / 8, 19: 1 / 4, 28: 1.0}


@pytest.fixture(scope="module")
def state():
    """Random weights in the layout of torchvision's file, with some of what follows; the real ones are half a gigabyte."""
    torch.manual_seed(0)
    state = {}
    for number, (before, after) in CONVOLUTIONS.items():
        state[f"features.{number}.weight"] = torch.randn(after, before, 3, 3) * (2 / (9 * before)) ** 0.5
        state[f"features.{number}.bias"] = 0.1 * torch.randn(after)
    state["classifier.6.bias"] = torch.zeros(1000)
    return state


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def loss(weights):
    return VGGLoss(weights, expected_sha256=None)


def features(state, image):
    """Features of an image (N, 1, H, W) at the five cuts, computed with functions only."""
    x, found = image.repeat(1, 3, 1, 1), {}
    for number in sorted([*CONVOLUTIONS, *POOLINGS]):
        if number in POOLINGS:
            x = F.max_pool2d(x, kernel_size=2, stride=2)
        else:
            x = F.conv2d(x, state[f"features.{number}.weight"], state[f"features.{number}.bias"], padding=1).clamp(min=0)
            found[number] = x
    return [found[cut] for cut in CUTS]


def test_it_is_the_weighted_sum_over_five_cuts_without_imagenets_scaling(loss, state):
    fake, real = torch.rand(2, 1, 32, 48) * 2 - 1, torch.rand(2, 1, 32, 48) * 2 - 1
    pairs = zip(features(state, fake), features(state, real), CUTS.values())
    wanted = sum(weight * (one - two).abs().mean() for one, two, weight in pairs)
    assert loss(fake, real).item() == pytest.approx(wanted.item(), rel=1e-4)
    assert loss(fake, fake) == 0


def test_it_has_the_size_of_vgg19_up_to_relu5_1(loss):
    assert round(sum(p.numel() for p in loss.parameters()) / 1e6, 2) == 12.94


def test_gradients_reach_the_fake_alone(loss):
    fake, real = (torch.rand(1, 1, 32, 32).requires_grad_() for _ in range(2))
    loss(fake, real).backward()
    assert fake.grad.abs().max() > 0
    assert real.grad is None
    assert not any(p.requires_grad for p in loss.parameters())


def test_a_missing_file_is_refused_with_where_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="vgg19.pth: no such file. Download vgg19-dcbb9e9d.pth from https://.*vgg_file"):
        VGGLoss(tmp_path / "vgg19.pth")


def test_a_file_with_another_hash_is_refused(weights):
    right = hashlib.sha256(weights.read_bytes()).hexdigest()
    VGGLoss(weights, right[:8])
    with pytest.raises(ValueError, match=f"sha256 {right}, expected dcbb9e9d"):
        VGGLoss(weights)
    with pytest.raises(ValueError, match=f"sha256 {right}, expected dcbb9e9d"):
        vgg_loss(weights, "dcbb9e9d", torch.device("cpu"))


@pytest.mark.parametrize(
    "change",
    [
        {"features.28.weight": None},  # vgg16 is shorter
        {"features.10.weight": torch.zeros(128, 128, 3, 3)},
        {"features.0.weight": torch.zeros(64, 1, 3, 3)},
    ],
    ids=["shorter", "narrower", "grey"],
)
def test_weights_of_another_network_are_refused(state, change, tmp_path):
    changed = {key: value for key, value in (state | change).items() if value is not None}
    torch.save(changed, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: not the weights of torchvision's vgg19"):
        VGGLoss(tmp_path / "other.pth", None)


@pytest.mark.parametrize("content", [[torch.zeros(3)], torch.zeros(3)], ids=["list", "tensor"])
def test_a_file_of_something_else_is_refused(content, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="other.pth: not the weights of torchvision's vgg19"):
        VGGLoss(tmp_path / "other.pth", None)


def test_a_damaged_file_is_refused(tmp_path):
    (tmp_path / "vgg19.pth").write_bytes(b"<html>404</html>")
    with pytest.raises(ValueError, match="vgg19.pth: not a file of PyTorch weights, because it begins with b'<html>404"):
        VGGLoss(tmp_path / "vgg19.pth", None)


def test_without_a_file_it_is_off_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert vgg_loss(None, "dcbb9e9d", torch.device("cpu")) is None
    assert ["without the VGG loss" in record.message for record in caplog.records] == [True]


def test_with_a_file_there_is_no_warning(weights, caplog):
    with caplog.at_level(logging.WARNING):
        assert isinstance(vgg_loss(weights, None, torch.device("cpu")), VGGLoss)
    assert not caplog.records
