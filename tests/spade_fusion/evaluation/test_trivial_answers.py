import logging

import pytest
import torch
from monai.data import MetaTensor

from spade_fusion_bundle.scripts.evaluation.trivial_answers import mean_intensity, paint

CLASSES = torch.tensor([0, 1, 1, 2, 2, 2], dtype=torch.uint8).reshape(1, 1, 2, 3)
OTHER = torch.tensor([1, 0, 0, 0, 0, 2], dtype=torch.uint8).reshape(1, 1, 2, 3)
SCANS = {
    "a": {"image": torch.tensor([0.9, 0.1, 0.3, 0.5, 0.6, 0.7]).reshape(1, 1, 2, 3), "label": CLASSES},
    "b": {"image": torch.tensor([0.8, 0.0, 0.0, 0.0, 0.0, 1.0]).reshape(1, 1, 2, 3), "label": OTHER},
}


def items(*names):
    return [{"image": name, "label": f"{name}_dseg", "participant_id": f"sub-{name}"} for name in names]


def load(item):
    return {key: MetaTensor(volume) for key, volume in SCANS[item["image"]].items()}


def test_the_mean_is_taken_over_the_voxels_of_all_scans_and_background_is_black():
    means = mean_intensity(items("a", "b"), load, num_classes=3)
    assert type(means) is torch.Tensor and means.dtype == torch.float32
    # class 1: 0.1, 0.3 and 0.8; class 2: 0.5, 0.6, 0.7 and 1.0. A mean of the scans' means would be 0.5 and 0.8.
    torch.testing.assert_close(means, torch.tensor([0.0, 0.4, 0.7]))


def test_a_class_that_no_scan_has_gets_the_mean_of_the_foreground_and_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        means = mean_intensity(items("a"), load, num_classes=5)
    torch.testing.assert_close(means, torch.tensor([0.0, 0.2, 0.6, 0.44, 0.44]))
    assert "classes 3, 4 are in none of the 1 training scans" in caplog.text


def test_a_class_volume_is_painted_with_its_intensities():
    painted = paint(CLASSES[None], torch.tensor([0.0, 0.4, 0.7]))
    assert painted.shape == (1, 1, 1, 2, 3)
    torch.testing.assert_close(painted.flatten(), torch.tensor([0.0, 0.4, 0.4, 0.7, 0.7, 0.7]))


def test_no_scans_are_refused():
    with pytest.raises(ValueError, match="no training scans to learn the mean intensity"):
        mean_intensity([], load, num_classes=3)
