import hashlib
import logging

import pytest
import torch
from monai.networks.nets import resnet10

from brain_ldm_bundle.scripts.model.perceptual import PerceptualLoss, perceptual_loss


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights in the layout of MedicalNet's files; the real ones cannot be fetched by a test."""
    network = resnet10(spatial_dims=3, n_input_channels=1, feed_forward=False, bias_downsample=False, shortcut_type="B")
    path = tmp_path_factory.mktemp("medicalnet") / "resnet_10_23dataset.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, path)
    return path


def test_equal_images_are_at_no_distance_and_blurred_ones_at_some(weights):
    loss = PerceptualLoss(weights)
    image = torch.rand(1, 1, 32, 48, 40)
    blurred = torch.nn.functional.avg_pool3d(image, 3, stride=1, padding=1)
    assert loss(image, image) == 0
    assert loss(blurred, image) > 0


def test_features_have_an_eighth_of_the_resolution_as_in_medicalnet(weights):
    assert PerceptualLoss(weights)._features(torch.rand(2, 1, 32, 48, 40)).shape == (2, 512, 4, 6, 5)


def test_gradients_reach_the_image_and_not_the_network(weights):
    loss = PerceptualLoss(weights)
    image = torch.rand(1, 1, 32, 32, 32, requires_grad=True)
    loss(image, torch.rand(1, 1, 32, 32, 32)).backward()
    assert image.grad.abs().max() > 0
    assert not any(p.requires_grad for p in loss.parameters())


def test_its_batch_norm_stays_as_trained(weights):
    loss = PerceptualLoss(weights).train()
    before = loss.network.bn1.running_mean.clone()
    loss(torch.rand(1, 1, 32, 32, 32), torch.rand(1, 1, 32, 32, 32))
    assert torch.equal(loss.network.bn1.running_mean, before)


def test_a_file_with_another_hash_is_refused(weights):
    right = hashlib.sha256(weights.read_bytes()).hexdigest()
    PerceptualLoss(weights, right)
    with pytest.raises(ValueError, match=f"sha256 {right}, expected 0000"):
        PerceptualLoss(weights, "0000")


def test_weights_of_another_network_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(64, 1, 7, 7, 7)}}, path)
    with pytest.raises(ValueError, match="weights of another architecture"):
        PerceptualLoss(path)


def test_without_a_file_it_is_off_with_one_warning(caplog):
    with caplog.at_level(logging.WARNING):
        assert perceptual_loss(None, None, torch.device("cpu")) is None
    assert ["without its perceptual loss" in record.message for record in caplog.records] == [True]
    with pytest.raises(ValueError, match="perceptual_sha256 is given, but not the file"):
        perceptual_loss(None, "abc", torch.device("cpu"))
