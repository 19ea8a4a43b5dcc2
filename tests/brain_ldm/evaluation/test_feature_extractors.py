import numpy as np
import pytest
import torch
from brain_ldm.evaluation.test_radimagenet import FILES, radimagenet_file
from brain_ldm.model.test_medicalnet import medicalnet_file
from monai.bundle import ConfigParser

from brain_ldm_bundle.scripts.evaluation.feature_extractors import load_extractor
from brain_ldm_bundle.scripts.model.regressor_network import Regressor
from brain_ldm_bundle.scripts.shared.files import save_weights, sha256

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


def test_a_file_of_medicalnet_is_known_by_its_tensors(tmp_path):
    path = medicalnet_file(tmp_path / "any.pth")
    extractor = load_extractor(path, sha256(path), tmp_path / "none.pt", MM, CPU)
    assert extractor.name == f"MedicalNet ResNet-10, any.pth (sha256 {sha256(path)[:12]})"
    assert extractor(torch.rand(1, *SIZE)).shape == (512,) and not extractor.standardise


@pytest.mark.parametrize("kind", FILES)
def test_a_file_of_radimagenet_is_known_by_its_tensors(kind, tmp_path):
    path = radimagenet_file(tmp_path / "any.pth", kind)
    extractor = load_extractor(path, sha256(path), tmp_path / "none.pt", 1.0, CPU)
    assert extractor.name == f"RadImageNet ResNet-50, slices averaged per plane, any.pth (sha256 {sha256(path)[:12]})"
    assert extractor(torch.rand(1, 4, 6, 5)).shape == (3 * 2048,) and not extractor.standardise


def test_a_file_that_is_not_the_one_expected_is_refused(tmp_path):
    write_regressor(tmp_path / "regressor.pt")
    imagenet = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}
    torch.save(imagenet, tmp_path / "resnet50-0676ba61.pth")

    def load(name, expected_sha256=None):
        return load_extractor(tmp_path / name, expected_sha256, tmp_path / "none.pt", MM, CPU)

    with pytest.raises(FileNotFoundError, match="none.pth: no such file. Download MedicalNet's resnet_50_23dataset.pth"):
        load("none.pth")
    with pytest.raises(ValueError, match=r"regressor.pt: sha256 \w+, expected 0123. Fetch the file again"):
        load("regressor.pt", "0123")
    with pytest.raises(ValueError, match=r"regressor.pt: weights of another architecture \(.*\). Expected MedicalNet's"):
        load("regressor.pt")
    with pytest.raises(
        ValueError, match=r"\(conv1.weight \(64, 3, 7, 7\), fc.bias \(1000,\)\). Expected MedicalNet's .* RadImage"
    ):
        load("resnet50-0676ba61.pth")
    with pytest.raises(FileNotFoundError, match="no such regressor. Train it first"):
        load_extractor(None, None, tmp_path / "none.pt", MM, CPU)
    with pytest.raises(ValueError, match="extractor_sha256 is given, but not the file"):
        load_extractor(None, "abc", tmp_path / "none.pt", MM, CPU)


def test_the_config_takes_the_file_and_its_hash(bundle, tmp_path):
    path = medicalnet_file(tmp_path / "resnet_10_23dataset.pth")
    parser = ConfigParser(ConfigParser.load_config_file(bundle / "configs" / "evaluate.json"))
    parser.update({"extractor_file": str(path), "extractor_sha256": "0123", "use_device": "cpu"})
    with pytest.raises(ValueError, match=r"resnet_10_23dataset.pth: sha256 \w+, expected 0123"):
        parser.get_parsed_content("extractor")()
    parser.update({"extractor_sha256": sha256(path)})
    parser.parse(reset=True)
    assert parser.get_parsed_content("extractor")().name.startswith("MedicalNet ResNet-10, resnet_10_23dataset.pth")
