"""Stored scans are the scans, rounded, and follow them when they change."""

import numpy as np
import pytest
import tiny
import torch
from monai.transforms import Compose

from brain_ldm_bundle.scripts.data.preprocessing import preprocessing
from brain_ldm_bundle.scripts.data.scan_cache import LEVELS, scans


def plain_transform():
    return preprocessing(tiny.SPACING_MM)


@pytest.fixture
def items(tmp_path):
    dataset = tiny.write_dataset(tmp_path / "dataset", training=2, validation=1)
    return [{"image": str(path), "covariates": [0.1, 0.2]} for path in sorted(dataset.glob("sub-*/anat/*_T1w.nii.gz"))]


@pytest.mark.parametrize("dtype", LEVELS)
def test_stored_scans_are_those_of_the_training_within_half_a_level(items, dtype, tmp_path):
    plain = scans(items, plain_transform())
    stored = scans(items, plain_transform(), stored_as=dtype, cache_dir=tmp_path / "cache")
    for first, second, again in zip(plain, stored, list(stored)):
        assert first.keys() == second.keys() and first["file"] == second["file"]
        assert second["image"].dtype == torch.float32 and second["image"].shape == first["image"].shape
        torch.testing.assert_close(second["image"], torch.as_tensor(first["image"]), atol=0.5 / LEVELS[dtype] + 1e-6, rtol=0)
        torch.testing.assert_close(second["covariates"], first["covariates"])
        assert torch.equal(second["image"], again["image"])
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == len(items) and {np.load(file).dtype for file in files} == {np.dtype(dtype)}


def test_a_scan_is_read_once_and_again_after_it_changed_or_its_array_was_damaged(items, tmp_path):
    data = scans(items[:1], plain_transform(), stored_as="uint8", cache_dir=tmp_path / "cache")
    first, read = data[0]["image"], []
    data.transform = Compose([lambda item: read.append(item["image"]) or item, *data.transform.transforms])
    assert torch.equal(data[0]["image"], first) and not read
    file = data.file(0)
    file.write_bytes(file.read_bytes()[:-5])
    assert torch.equal(data[0]["image"], first) and len(read) == 1
    with open(items[1]["image"], "rb") as other, open(items[0]["image"], "wb") as scan:
        scan.write(other.read())
    assert not torch.equal(data[0]["image"], first) and len(read) == 2


def test_half_of_the_stored_scans_are_mirrored_and_the_array_is_not(items, tmp_path):
    kept = {"stored_as": "uint8", "cache_dir": tmp_path / "cache"}
    data = scans(items[:1], preprocessing(tiny.SPACING_MM, mirror_probability=0.5), **kept)
    plain = scans(items[:1], plain_transform(), **kept)[0]["image"]
    data.augmentation.set_random_state(0)
    drawn = [data[0]["image"] for _ in range(20)]
    mirrored = [torch.equal(image, plain.flip(1)) for image in drawn]
    assert 4 < sum(mirrored) < 16 and all(torch.equal(image, plain) for image, flip in zip(drawn, mirrored) if not flip)
