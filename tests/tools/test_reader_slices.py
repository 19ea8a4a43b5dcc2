"""What readers see: sides follow the affine, and neither storage, scale nor air tells the two kinds apart."""

import base64
import io

import numpy as np
import pytest
from PIL import Image
from reader_studies.make import make_study
from reader_studies.slices import common_view, find_volumes, picture, read_windowed
from sklearn.metrics import roc_auc_score
from tiny_study import (
    SHAPE,
    head,
    read_study,
    save,
    save_cohorts,
)


@pytest.fixture
def cohorts(tmp_path):
    return save_cohorts(tmp_path)


def test_bit_depth_does_not_show_in_the_histogram(tmp_path):
    """Windowing stretches 8-bit volumes, which would leave gaps between grey levels."""
    values = np.random.default_rng(0).random((30, 30, 30))
    missing = []
    for stored in (values, np.round(values * 0.75 * 255) / 255):
        stretched = stored / stored.max()
        png = picture(stretched, 2, 15, np.random.default_rng(1))
        histogram = np.bincount(np.asarray(Image.open(io.BytesIO(png))).ravel(), minlength=256)[5:250]
        missing.append(int((histogram == 0).sum()))
    assert missing[1] < missing[0] + 10  # 63 against 9 without the dither


def skull_and_noise(seed, air):
    """A head with noise in its skull, of one of three sizes; air is noisy, as in a scan, or 0, also in a hole, as of SPADE."""
    rng = np.random.default_rng(seed)
    values = head(seed)
    for axis, size in enumerate((16, 24, 21)):
        edge = values.take(np.arange(size + 2 - seed % 3, values.shape[axis]), axis)
        values[(slice(None),) * axis + (slice(values.shape[axis] - edge.shape[axis], None),)] = 0
    values[4:15, 5:22, 3:6] = 0.02
    values[4:8, 6:12, 12:16] = 0
    noise = np.abs(rng.normal(0, 0.03, values.shape))
    return np.round(255 * (values + (noise if air == "noisy" else noise * (values > 0)))) / 255


def test_empty_air_does_not_reveal_volumes_of_spade(tmp_path):
    """SPADE writes 0 where a map has no label; scans have noise there. The share of black told them apart without an error."""
    for i in range(6):
        save(tmp_path / "scans" / f"sub-{i}_T1w.nii.gz", skull_and_noise(i, "noisy"))
        save(tmp_path / "made" / f"sub-{i}_T1w.nii.gz", skull_and_noise(100 + i, "zero"))
    items, key = read_study(*make_study([tmp_path / "scans"], [tmp_path / "made"], tmp_path / "study", slices=120, repeats=0))
    pictures = [np.asarray(Image.open(io.BytesIO(base64.b64decode(item["image"])))) for item in items]
    for name, clue in {
        "zeros": lambda grey: (grey == 0).mean(),
        "black": lambda grey: (grey < 3).mean(),
        "grey levels": lambda grey: len(np.unique(grey)),
        "mean": np.mean,
    }.items():
        for direction in ("sagittal", "coronal", "axial"):
            own = (key["direction"] == direction).to_numpy()
            told = roc_auc_score(key["kind"][own] == "synthetic", [clue(grey) for grey, of in zip(pictures, own) if of])
            assert 0.2 < told < 0.8, (name, direction, told)


def volume_of(path):
    return find_volumes([path], "real")[0]


def shown(path, view=SHAPE):
    return read_windowed(volume_of(path), view)


def test_the_subjects_left_is_at_the_pictures_right(tmp_path):
    values = shown(save(tmp_path / "a.nii.gz", head(0)))
    axial = np.asarray(Image.open(io.BytesIO(picture(values, 2, 9, np.random.default_rng(0)))), float)
    assert axial.shape == (28, 20)
    row, column = np.unravel_index(axial.argmax(), axial.shape)
    assert column > 14  # the mark at low x, the left in RAS
    assert axial[:14, 4:16].mean() > axial[14:, 4:14].mean()  # the brighter front is on top
    sagittal = np.asarray(Image.open(io.BytesIO(picture(values, 0, 10, np.random.default_rng(0)))), float)
    assert sagittal.shape == (24, 28)
    assert sagittal[5:, 3:13].mean() > sagittal[5:, 15:25].mean()  # the front at the left
    assert sagittal[0].mean() < 20 < sagittal[-1].mean()  # the neck runs out at the bottom


@pytest.mark.parametrize("codes", ["LPS", "PIR"])
def test_storage_order_does_not_show(tmp_path, codes):
    ras, other = (shown(save(tmp_path / f"{name}.nii.gz", head(0), codes=name)) for name in ("RAS", codes))
    np.testing.assert_array_equal(ras, other)


def test_intensity_scale_and_offset_do_not_show(tmp_path):
    plain = shown(save(tmp_path / "a.nii.gz", head(0)))
    scaled = shown(save(tmp_path / "b.nii.gz", 730 * head(0) + 50))
    np.testing.assert_allclose(plain, scaled, atol=1e-4)


def test_a_larger_field_of_view_is_cut_around_the_head_and_never_filled_up(tmp_path):
    small = shown(save(tmp_path / "a.nii.gz", head(0)))
    large = np.pad(head(0), ((5, 1), (2, 4), (0, 6)))
    volumes = [volume_of(save(tmp_path / "b.nii.gz", large)), volume_of(tmp_path / "a.nii.gz")]
    assert common_view(volumes) == SHAPE
    np.testing.assert_allclose(shown(tmp_path / "b.nii.gz")[2:18, 2:26, :21], small[2:18, 2:26, :21], atol=1e-6)


def test_slices_run_through_the_head(tmp_path, cohorts):
    _, key = read_study(*make_study(*cohorts, tmp_path / "study", slices=60, repeats=0))
    ranges = key.groupby("direction")["slice"].agg(["min", "max"])
    for direction, (first, last) in {"sagittal": (2, 17), "coronal": (2, 25), "axial": (0, 20)}.items():
        assert first <= ranges.loc[direction, "min"] and ranges.loc[direction, "max"] <= last
