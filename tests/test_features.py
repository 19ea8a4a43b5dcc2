import numpy as np
import pytest
import torch
from monai.networks.nets import resnet10, resnet50

from brain_ldm_bundle.scripts.features import MedicalNet, load_extractor
from brain_ldm_bundle.scripts.files import save_weights, sha256
from brain_ldm_bundle.scripts.networks import Regressor

CPU = torch.device("cpu")
SIZE = (20, 28, 20)
MM = 8.0


def write_regressor(path):
    torch.manual_seed(0)
    sizes = {"image_size": SIZE, "num_outputs": 4, "channels": [4, 8], "num_features": 6, "norm_num_groups": 2}
    network = Regressor(**sizes)
    network.recipe = {"spacing_mm": MM, "covariates": {}, "regressor": sizes}
    save_weights(network.state_dict(), path)
    return network.eval()


def write_medicalnet(path, resnet):
    """As the MedicalNet project stores its files."""
    torch.manual_seed(0)
    network = resnet(spatial_dims=3, n_input_channels=1, feed_forward=False, bias_downsample=False, shortcut_type="B")
    torch.save({"state_dict": {f"module.{key}": value for key, value in network.state_dict().items()}}, path)
    return network.eval()


def test_without_a_file_of_medicalnet_the_levels_of_the_regressor_are_the_features(tmp_path):
    regressor, volume = write_regressor(tmp_path / "regressor.pt"), torch.rand(1, *SIZE)
    extractor = load_extractor(None, None, tmp_path / "regressor.pt", MM, CPU)
    with torch.inference_mode():
        first = regressor.net[0](volume[None])
        second = regressor.net[1](first)
    channels = [[channel.numpy() for channel in level[0]] for level in (first, second)]
    expected = [statistic(channel) for level in channels for statistic in (np.mean, np.std) for channel in level]
    assert extractor(volume) == pytest.approx(expected, abs=1e-5)
    assert extractor.standardise
    assert sha256(tmp_path / "regressor.pt")[:12] in extractor.name and "regressor" in extractor.name


def test_the_features_of_the_regressor_see_a_blur(tmp_path):
    write_regressor(tmp_path / "regressor.pt")
    extractor = load_extractor(None, None, tmp_path / "regressor.pt", MM, CPU)
    torch.manual_seed(1)
    sharp = [torch.rand(1, *SIZE) for _ in range(4)]
    features = np.stack([extractor(volume) for volume in sharp])
    blurred = np.stack([extractor(torch.nn.functional.avg_pool3d(volume, 3, stride=1, padding=1)) for volume in sharp])
    assert (np.abs(blurred.mean(axis=0) - features.mean(axis=0)) > 5 * features.std(axis=0)).mean() > 0.5


def test_medicalnet_gives_the_mean_of_its_last_layer_whatever_the_brightness(tmp_path):
    network, volume = write_medicalnet(tmp_path / "resnet_10_23dataset.pth", resnet10), torch.rand(1, 32, 40, 36)
    extractor = load_extractor(tmp_path / "resnet_10_23dataset.pth", None, tmp_path / "none.pt", MM, CPU)
    x = (volume - volume.mean()) / volume.std()
    x = network.maxpool(network.act(network.bn1(network.conv1(x[None]))))
    x = network.layer4(network.layer3(network.layer2(network.layer1(x))))
    assert extractor(volume).shape == (512,) and not extractor.standardise
    assert extractor(volume) == pytest.approx(x.mean(dim=(2, 3, 4))[0].detach().double().numpy(), rel=1e-4, abs=1e-6)
    assert extractor(0.5 * volume + 0.2) == pytest.approx(extractor(volume), rel=1e-3, abs=1e-5)
    assert extractor.name.startswith("MedicalNet ResNet-10, resnet_10_23dataset.pth (sha256 ")


@pytest.mark.slow
def test_the_deeper_medicalnet_is_recognised_by_its_weights(tmp_path):
    write_medicalnet(tmp_path / "any.pth", resnet50)
    network = MedicalNet(tmp_path / "any.pth", sha256(tmp_path / "any.pth"))
    assert network.depth == 50
    assert network(torch.rand(1, 1, 32, 32, 32)).shape == (1, 2048)


def test_a_file_that_is_not_the_one_expected_is_refused(tmp_path):
    write_regressor(tmp_path / "regressor.pt")
    with pytest.raises(FileNotFoundError, match="none.pth: no such file. Download resnet_50_23dataset.pth"):
        MedicalNet(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=r"regressor.pt: sha256 \w+, expected 0123"):
        MedicalNet(tmp_path / "regressor.pt", "0123")
    with pytest.raises(ValueError, match="weights of another architecture"):
        MedicalNet(tmp_path / "regressor.pt")
    with pytest.raises(FileNotFoundError, match="no such regressor. Train it first"):
        load_extractor(None, None, tmp_path / "none.pt", MM, CPU)
