import base64
import io
import json
import math
import re
import struct

import numpy as np
import pandas as pd
import pytest
import reader_study
from PIL import Image
from reader_studies import score as reader_study_score
from reader_studies import slices as reader_study_slices
from reader_studies.make import KEY_COLUMNS, make_study
from reader_studies.score import kappa, read_key, read_results, score, unblind
from reader_studies.score_report import write_scores
from reader_studies.slices import common_view, find_volumes, picture, read_windowed
from scipy import ndimage, stats
from shared.nifti import read_volume
from sklearn.metrics import roc_auc_score
from tiny_study import SHAPE, head, save, save_cohorts


@pytest.fixture
def cohorts(tmp_path):
    return save_cohorts(tmp_path)


def read_page(page):
    """What the page's script reads."""
    return json.loads(re.search(r'<script type="application/json" id="study">(.*?)</script>', page.read_text(), re.DOTALL)[1])


def read_study(page, key):
    """(items of the page, key) with the key in the page's order."""
    items = read_page(page)["items"]
    return items, pd.read_csv(key, sep="\t", keep_default_na=False).set_index("item").loc[[item["id"] for item in items]]


# --- The page reveals nothing but the pictures


def test_slices_are_balanced_over_kinds_and_directions(tmp_path, cohorts):
    items, key = read_study(*make_study(*cohorts, tmp_path / "study", slices=24, repeats=0.25))
    once = key[key["repeat_of"] == ""]
    assert once.groupby(["kind", "direction"]).size().tolist() == [4] * 6
    assert not once[["file", "direction", "slice"]].duplicated().any()
    assert once.groupby("file").size().tolist() == [4] * 6  # three volumes of each kind, though there are four scans
    assert len(items) == 24 + 6 and key["position"].tolist() == list(range(1, 31))


def test_slices_lie_at_the_same_heights_in_both_kinds(tmp_path, cohorts):
    _, key = read_study(*make_study(*cohorts, tmp_path / "study", slices=60, repeats=0))
    for direction, of_direction in key.groupby("direction"):
        real, synthetic = (sorted(of_direction["slice"][of_direction["kind"] == kind]) for kind in ("real", "synthetic"))
        assert np.abs(np.subtract(real, synthetic)).max() <= 3, direction


def test_repeats_show_each_kind_and_direction_again_and_not_soon(tmp_path, cohorts):
    _, key = read_study(*make_study(*cohorts, tmp_path / "study", slices=60, repeats=0.1))
    again = key[key["repeat_of"] != ""]
    assert again.groupby(["kind", "direction"]).size().tolist() == [1] * 6
    original = key.loc[again["repeat_of"]]
    for column in ("kind", "direction", "file", "slice"):
        assert again[column].tolist() == original[column].tolist()
    assert (again["position"].to_numpy() - original["position"].to_numpy()).min() >= 20


def chunks(png):
    """Names and lengths of a PNG's chunks, and its header."""
    found, at = [], 8
    while at < len(png):
        length = struct.unpack(">I", png[at : at + 4])[0]
        found.append((png[at + 4 : at + 8].decode(), length))
        at += 12 + length
    return found, png[16:33]


def test_pictures_differ_in_their_pixels_alone(tmp_path, cohorts):
    """The real volumes are noisier: compressed, their files would be larger."""
    items, key = read_study(*make_study(*cohorts, tmp_path / "study", slices=24))
    assert set(key["kind"]) == {"real", "synthetic"}
    for direction in ("sagittal", "coronal", "axial"):
        own = [item for item in items if item["direction"] == direction]
        assert len({len(item["image"]) for item in own}) == 1
        forms = [chunks(base64.b64decode(item["image"])) for item in own]
        assert all(form == forms[0] for form in forms)
        assert {name for name, _ in forms[0][0]} == {"IHDR", "IDAT", "IEND"}  # no text, no time


@pytest.mark.parametrize("simulated", [True, False])
def test_page_and_key_say_whether_the_real_volumes_are_simulated(tmp_path, cohorts, simulated):
    (cohorts[0][0] / "dataset_description.json").write_text(json.dumps({"Simulated": simulated}))
    page, key = make_study(*cohorts, tmp_path / "study", slices=12)
    assert ("simulated heads" in page.read_text()) is simulated and "{{" not in page.read_text().partition("<script>")[0]
    found = read_key(key)
    assert set(found["simulated"][found["kind"] == "real"]) == {"yes" if simulated else "no"}
    assert set(found["simulated"][found["kind"] == "synthetic"]) == {"no"}
    key.write_text("\n".join(line.rpartition("\t")[0] for line in key.read_text().splitlines()) + "\n")  # as made before
    assert set(read_key(key)["simulated"]) == {"no"}


def test_the_page_names_no_file_and_no_kind(tmp_path, cohorts):
    page, _ = make_study(*cohorts, tmp_path / "study", slices=12)
    content = read_page(page)
    assert set(content) == {"study", "extent", "items"}
    assert all(set(item) == {"id", "direction", "image"} for item in content["items"])
    text = page.read_text()
    for word in ("/scans", "/made", "sub-", "T1w.nii", str(tmp_path), "repeat_of"):
        assert word not in text, word
    assert "Some of these images are synthetic. For research, not for clinical use." in re.sub(r"\s+", " ", text)
    assert [path.name for path in page.parent.iterdir()] == ["reader_study.html"]  # the key lies elsewhere


def test_ids_and_order_do_not_reveal_the_kind(tmp_path, cohorts):
    """Over many studies neither the place, nor the id as a number, nor the kind before goes with the kind."""
    rows = []
    for seed in range(15):
        _, key = read_study(*make_study(*cohorts, tmp_path / str(seed), slices=24, repeats=0, seed=seed))
        kind = (key["kind"] == "real").to_numpy(float)
        ids = [int(item, 16) for item in key.index]
        rows.append(pd.DataFrame({"kind": kind, "id": ids, "place": range(len(key)), "before": [0.5, *kind[:-1]]}))
    rows = pd.concat(rows)
    for clue in ("id", "place", "before"):
        assert stats.spearmanr(rows["kind"], rows[clue]).pvalue > 0.01, clue


def test_who_knows_the_seed_but_not_the_volumes_learns_nothing(tmp_path, cohorts):
    _, first = read_study(*make_study(*cohorts, tmp_path / "a", slices=24))
    save(tmp_path / "scans" / "sub-9" / "anat" / "sub-9_T1w.nii.gz", head(9))
    _, second = read_study(*make_study(*cohorts, tmp_path / "b", slices=24))
    assert not set(first.index) & set(second.index)
    assert 4 < sum(a != b for a, b in zip(first["kind"], second["kind"])) < 22  # about half


def test_a_study_can_be_made_again_wherever_the_volumes_lie(tmp_path, cohorts):
    page, key = make_study(*cohorts, tmp_path / "a", slices=12)
    (tmp_path / "scans").rename(tmp_path / "moved")
    again, other_key = make_study([tmp_path / "moved"], cohorts[1], tmp_path / "b", slices=12)
    assert page.read_bytes() == again.read_bytes()
    assert make_study([tmp_path / "moved"], cohorts[1], tmp_path / "a", slices=12)[0] == page  # the same study may be redone
    assert other_key.read_text().replace("moved", "scans") == key.read_text().replace("moved", "scans")


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


def test_brains_compared_with_heads_are_refused(tmp_path):
    for i in range(3):
        save(tmp_path / "scans" / f"sub-{i}_T1w.nii.gz", head(i))
        save(tmp_path / "made" / f"sub-{i}_T1w.nii.gz", np.where(ndimage.binary_erosion(head(i) > 0, iterations=3), head(i), 0))
    with pytest.raises(ValueError, match="27 % of the sagittal slices of real volumes are black, but .* of synthetic ones"):
        make_study([tmp_path / "scans"], [tmp_path / "made"], tmp_path / "study", slices=12)
    assert not (tmp_path / "study").exists()


# --- What is seen


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


# --- What cannot be shown is refused


def with_nan(values):
    values[3, 4, 5] = np.nan
    return values


@pytest.mark.parametrize(
    ("name", "image", "message"),
    [
        ("constant", np.full(SHAPE, 3.0), "sub-bad_T1w.nii.gz: is 3 everywhere"),
        ("nan", with_nan(head(5)), "has 1 voxels that are NaN"),
        ("4-D", np.stack([head(5)] * 2, -1), r"has 4 dimensions \(20, 28, 24, 2\)"),
        ("cut", head(5)[:, :, :10], "the common field of view would cut heads"),
        ("one voxel", np.eye(1, math.prod(SHAPE)).reshape(SHAPE), "has few different values, 2"),
    ],
)
def test_volumes_that_cannot_be_shown_are_refused_by_name(tmp_path, cohorts, name, image, message):
    save(tmp_path / "made" / "sub-bad" / "anat" / "sub-bad_T1w.nii.gz", image)
    with pytest.raises(ValueError, match=message):
        make_study(*cohorts, tmp_path / "study", slices=12)
    assert not (tmp_path / "study").exists()


def test_all_damaged_volumes_are_named_at_once(tmp_path, cohorts):
    """Their checksums were not verified, and the first damaged volume hid the others."""
    paths = sorted((tmp_path / "made").rglob("*_T1w.nii.gz"))[:2]
    for path in paths:
        content = bytearray(path.read_bytes())
        content[-6] ^= 1  # the checksum
        path.write_bytes(content)
    with pytest.raises(ValueError, match="^2 of 6 chosen volumes cannot be used:") as refused:
        make_study(*cohorts, tmp_path / "study", slices=12)
    assert [line.split(": ")[0] for line in str(refused.value).split("\n")[1:]] == [str(path) for path in paths]


def test_only_the_volumes_of_the_study_are_opened(tmp_path, cohorts, monkeypatch):
    opened = []

    def read(path):
        opened.append(str(path))
        return read_volume(path)

    monkeypatch.setattr(reader_study_slices, "read_volume", read)
    _, key = read_study(*make_study(*cohorts, tmp_path / "study", slices=6, repeats=0))
    there = len(list(tmp_path.rglob("*_T1w.nii.gz")))
    assert set(opened) == set(key["file"]) and len(set(opened)) == 6 < there


def test_voxels_of_another_size_are_refused(tmp_path, cohorts):
    save(tmp_path / "made" / "sub-fine" / "anat" / "sub-fine_T1w.nii.gz", head(5), spacing_mm=4)
    with pytest.raises(ValueError, match="sub-fine.*voxels of 4 x 4 x 4 mm.*of 8 x 8 x 8 mm.*prepare_data"):
        make_study(*cohorts, tmp_path / "study", slices=12)


def test_a_volume_on_both_sides_is_refused(tmp_path, cohorts):
    with pytest.raises(ValueError, match=r"sub-0_T1w.nii.gz \(synthetic\) is the same as .*sub-0_T1w.nii.gz \(real\)"):
        make_study(cohorts[0], [*cohorts[1], cohorts[0][0] / "sub-0" / "anat" / "sub-0_T1w.nii.gz"], tmp_path / "study")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"slices": 50}, "multiple of 6.*got 50. Take 48"),
        ({"slices": 0}, "multiple of 6.*Take 6"),
        ({"repeats": 0.6}, "0 to 0.5, got 0.6"),
        ({"slices": 6000}, "slice left. Give more volumes or fewer --slices"),
    ],
)
def test_impossible_settings_are_refused(tmp_path, cohorts, settings, message):
    with pytest.raises(ValueError, match=message):
        make_study(*cohorts, tmp_path / "study", **settings)


def test_absent_volumes_are_refused(tmp_path, cohorts):
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: no .*T1w"):
        make_study(cohorts[0], [tmp_path / "empty"], tmp_path / "study")
    with pytest.raises(FileNotFoundError, match="no such file or folder of real volumes"):
        make_study([tmp_path / "absent"], cohorts[1], tmp_path / "study")


def test_a_split_takes_its_participants_alone(tmp_path, cohorts, monkeypatch, capsys):
    folder = cohorts[0][0]
    (folder / "participants.tsv").write_text(
        "participant_id\tsplit\nsub-0\ttrain\nsub-1\ttest\nsub-3\ttest\nsub-9\tvalidation\n"
    )
    _, key = make_study(*cohorts, tmp_path / "study", slices=12, split="test")
    key = pd.read_csv(key, sep="\t")
    assert {name.split("/")[-3] for name in key["file"][key["kind"] == "real"]} == {"sub-1", "sub-3"}
    with pytest.raises(ValueError, match="participants.tsv: no split 'tset', only test, train, validation"):
        make_study(*cohorts, tmp_path / "other", split="tset")
    with pytest.raises(FileNotFoundError, match="no T1w of the split 'validation'"):
        make_study(*cohorts, tmp_path / "other", split="validation")
    with pytest.raises(ValueError, match="--split test takes folders"):
        make_study([folder / "sub-1" / "anat" / "sub-1_T1w.nii.gz"], cohorts[1], tmp_path / "other", split="test")
    command = f"reader_study.py make --real {folder} --synthetic {cohorts[1][0]} --output {tmp_path / 'all'} --slices 6"
    monkeypatch.setattr("sys.argv", command.split())
    assert reader_study.main() == 0
    assert "also the training split. Add --split test" in capsys.readouterr().err
    (folder / "participants.tsv").write_text("participant_id\tage\nsub-0\t50\n")
    with pytest.raises(ValueError, match="participants.tsv: no such table with columns participant_id and split"):
        make_study(*cohorts, tmp_path / "other", split="test")


def test_the_key_of_another_study_is_not_overwritten(tmp_path, cohorts):
    _, key = make_study(*cohorts, tmp_path / "study", slices=12)
    before = key.read_bytes()
    with pytest.raises(ValueError, match="key of another study"):
        make_study(*cohorts, tmp_path / "study", slices=12, seed=1)
    assert key.read_bytes() == before


# --- Results


def key_of(kinds, files=None, repeats=()):
    """A key of axial items i0, i1, ... with repeats (item number) behind them."""
    rows = [
        ["s", n + 1, f"i{n}", kind, "axial", files[n] if files else f"{kind}{n}.nii.gz", 5, ""] for n, kind in enumerate(kinds)
    ]
    rows += [["s", len(rows) + 1 + n, f"r{i}", kinds[i], "axial", rows[i][5], 5, f"i{i}"] for n, i in enumerate(repeats)]
    return pd.DataFrame(rows, columns=KEY_COLUMNS[:-1]).assign(simulated="no").set_index("item")


def results_of(key, ratings, told=None, reader="Anna"):
    told = told or ["real"] * len(ratings)
    return pd.DataFrame({"item": key.index[: len(ratings)], "rating": ratings, "guess": told, "seconds": 2.5, "reader": reader})


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(reader_study_score, "RESAMPLES", 50)


KINDS = ["real", "synthetic"] * 4


def test_kappa_by_hand():
    # Ratings 1 1 2 3 against 1 2 2 5: sum of squared differences 5; expected over all pairs of one with the other: 4 x 4 pairs,
    # squared differences 0 1 1 16, 0 1 1 16, 1 0 0 9, 4 1 1 4 = 56, divided by 4 = 14. kappa = 1 - 5 / 14.
    assert kappa(np.array([1, 1, 2, 3.0]), np.array([1, 2, 2, 5.0])) == pytest.approx(1 - 5 / 14)
    assert kappa(np.array([1, np.nan, 1, 2, 3]), np.array([1, 4, 2, 2, 5])) == pytest.approx(1 - 5 / 14)


def test_kappa_is_undefined_when_both_always_rate_the_same():
    assert math.isnan(kappa(np.array([3.0, 3, 3]), np.array([3.0, 3, 3])))
    assert kappa(np.array([3.0, 3, 3]), np.array([3.0, 4, 3])) == pytest.approx(0)


def test_mean_ratings_and_difference_by_hand(few_resamples):
    key = key_of(KINDS)
    answers = unblind(key, [results_of(key, [1, 3, 2, 4, 1, 5, 2, 5]), results_of(key, [1, 3, 1, 3, 1, 3, 1, 3], reader="Ben")])
    ratings = score(key, answers)["ratings"]["all"]
    assert ratings["n"] == {"real": 8, "synthetic": 8}
    assert ratings["real"]["value"] == pytest.approx((1 + 2 + 1 + 2 + 4) / 8)
    assert ratings["synthetic"]["value"] == pytest.approx((3 + 4 + 5 + 5 + 12) / 8)
    assert ratings["difference"]["value"] == pytest.approx((29 - 10) / 8)
    assert ratings["difference"]["low"] < 19 / 8 < ratings["difference"]["high"]


def test_frequencies_count_each_rating(few_resamples):
    key = key_of(KINDS)
    numbers = score(key, unblind(key, [results_of(key, [1, 3, 2, 4, 1, 5, 2, 5])]))
    assert numbers["frequencies"]["all"]["real"] == {1: 2, 2: 2, 3: 0, 4: 0, 5: 0}
    assert numbers["frequencies"]["axial"]["synthetic"] == {1: 0, 2: 0, 3: 1, 4: 1, 5: 2}
    assert "coronal" not in numbers["ratings"]  # nothing was shown there


def test_accuracy_of_guesses_has_the_interval_of_clopper_and_pearson(few_resamples):
    key = key_of(["real", "synthetic"] * 5)
    told = ["real", "synthetic"] * 4 + ["synthetic", "real"]  # 8 of 10 right
    [guessed] = score(key, unblind(key, [results_of(key, [3] * 9 + [4], told)]))["guesses"]
    assert (guessed["right"], guessed["n"]) == (8, 10)
    assert guessed["accuracy"]["low"] == pytest.approx(0.4439, abs=1e-4)  # of published tables
    assert guessed["accuracy"]["high"] == pytest.approx(0.9748, abs=1e-4)
    assert guessed["p"] == pytest.approx(2 * (45 + 10 + 1) / 1024)
    assert guessed["right_of"] == {"real": [4, 5], "synthetic": [4, 5]}
    assert guessed["trivial"] == 0.5


def test_guesses_on_slices_of_few_volumes_are_less_sure_than_the_exact_interval_says(monkeypatch):
    """Two volumes of each kind, one always told, one never: forty guesses, but four volumes."""
    monkeypatch.setattr(reader_study_score, "RESAMPLES", 200)  # one draw in sixteen has the lowest share
    kinds = ["real", "synthetic"] * 20
    told = ["real", "synthetic"] * 10 + ["synthetic", "real"] * 10
    key = key_of(kinds, [f"{kind}{n // 20}" for n, kind in enumerate(kinds)])
    [guessed] = score(key, unblind(key, [results_of(key, [3, 4] * 20, told)]))["guesses"]
    assert guessed["accuracy"]["low"] > 0.3
    assert guessed["by_volumes"] == {"value": 0.5, "low": 0, "high": 1}


def test_repeats_count_for_the_agreement_of_a_reader_alone(few_resamples):
    key = key_of(KINDS, repeats=[0, 1, 2])
    ratings = [1, 5, 2, 5, 1, 5, 1, 5, 1, 4, 2]
    numbers = score(key, unblind(key, [results_of(key, ratings)]))
    assert numbers["ratings"]["all"]["n"] == {"real": 4, "synthetic": 4}
    assert numbers["guesses"][0]["n"] == 8
    [own] = numbers["intra_reader"]
    assert (own["n"], own["equal"]) == (3, 2)
    assert own["kappa"]["value"] == pytest.approx(kappa(np.array([1.0, 5, 2]), np.array([1.0, 4, 2])))


def test_all_pairs_of_readers_are_compared(few_resamples):
    key = key_of(KINDS)
    first, second = [1, 3, 2, 4, 1, 5, 2, 5], [2, 3, 2, 4, 1, 4, 2, 5]
    readers = {"Anna": first, "Ben": second, "Chris": [6 - rating for rating in first]}
    numbers = score(key, unblind(key, [results_of(key, ratings, reader=name) for name, ratings in readers.items()]))
    pairs = {tuple(row["readers"]): row["kappa"] for row in numbers["inter_reader"]}
    assert set(pairs) == {("Anna", "Ben"), ("Anna", "Chris"), ("Ben", "Chris")}
    assert pairs["Anna", "Ben"]["value"] == pytest.approx(kappa(np.array(first, float), np.array(second, float)))
    assert pairs["Anna", "Ben"]["low"] <= pairs["Anna", "Ben"]["value"] <= pairs["Anna", "Ben"]["high"]
    assert pairs["Anna", "Chris"]["value"] < 0


def test_slices_of_one_volume_are_drawn_together(few_resamples):
    """Forty slices of two volumes say as much as two volumes do, so the interval is wider."""
    kinds, ratings = ["real", "synthetic"] * 40, [1, 2] * 20 + [3, 4] * 20
    widths = []
    for files in ([f"{kind}{n // 40}" for n, kind in enumerate(kinds)], None):
        key = key_of(kinds, files)
        difference = score(key, unblind(key, [results_of(key, ratings)]))["ratings"]["all"]["real"]
        widths.append(difference["high"] - difference["low"])
    assert widths[0] == pytest.approx(2) and widths[1] < 1


def save_results(tmp_path, rows, header="study\treader\titem\trating\tguess\tseconds", name="anna.tsv"):
    path = tmp_path / name
    path.write_text("\n".join([header, *("\t".join(row.split()) for row in rows)]) + "\n")
    return path


def test_ratings_that_a_spreadsheet_wrote_as_decimals_are_read(tmp_path):
    key = key_of(["real", "synthetic"])
    items = list(key.index)
    rows = [f"{key['study'].iloc[0]} Anna {items[0]} 5.0 real 3", f"{key['study'].iloc[0]} Anna {items[1]} 2.5 real 3"]
    path = save_results(tmp_path, rows[:1])
    assert list(read_results(path, key, partial=True)["rating"].astype(float)) == [5]
    with pytest.raises(ValueError, match="row 3: the rating of item .* must be 1 .very good. to 5 .very poor., got '2.5'"):
        read_results(save_results(tmp_path, rows), key)


@pytest.mark.parametrize("name", ['"Al', "cost $x^{$"])
def test_a_name_is_taken_as_it_is_written(tmp_path, name, few_resamples):
    """The page writes no quotes; a $ starts a formula in matplotlib, which cannot always be read."""
    key = key_of(KINDS)
    path = tmp_path / "a.tsv"
    rows = ["\t".join(["s", name, item, str(1 + n % 3), "real", "2.0"]) for n, item in enumerate(key.index)]
    path.write_text("\n".join(["study\treader\titem\trating\tguess\tseconds", *rows]) + "\n")
    answers = unblind(key, [read_results(path, key)])
    write_scores(score(key, answers), answers, tmp_path / "scores")
    section = json.loads((tmp_path / "scores" / "reader_study.section.json").read_text())
    assert section["tables"][1]["rows"][0][0] == name
    assert section["verdict"].startswith(f"One person guesses right for {section['tables'][1]['rows'][0][2]} % of the slices.")
    assert set(pd.read_csv(tmp_path / "scores" / "ratings.tsv", sep="\t")["reader"]) == {name}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("other Anna i1 2 real 3.5", "anna.tsv row 3: results of the study 'other', but the key is of 's'"),
        ("s Ben i1 2 real 3.5", "row 3: reader 'Ben', expected one reader in a file, 'Anna'"),
        ("s Anna i7 2 real 3.5", "row 3: unknown item 'i7'"),
        ("s Anna i0 2 real 3.5", "row 3: item i0 was answered in row 2 already"),
        ("s Anna i1 6 real 3.5", "row 3: the rating of item i1 must be 1 .* got '6'"),
        ("s Anna i1 2 real 3,5", "row 3: the seconds of item i1 must be a number from 0 or n/a, got '3,5'"),
        ("s Anna i1 2 real -4", "row 3: the seconds of item i1 must be a number from 0 or n/a, got '-4'"),
        ("s Anna i1 2 real 1e400", "row 3: the seconds of item i1 must be a number from 0 or n/a, got '1e400'"),
        ("s Anna i1 2.5 real 3.5", "row 3: the rating of item i1 must be 1 .* got .2.5."),
        ("s Anna i1 2 maybe 3.5", "row 3: the guess on item i1 must be real or synthetic, got 'maybe'"),
        ("s Anna i1 2 n/a 3.5", "anna.tsv: 1 of 2 items are not answered, such as i1. .* --partial"),
    ],
)
def test_wrong_results_are_refused_by_name_and_row(tmp_path, row, message):
    path = save_results(tmp_path, ["s Anna i0 1 real 3.5", row])
    with pytest.raises(ValueError, match=message):
        read_results(path, key_of(["real", "synthetic"]))


def test_partial_results_are_read_when_asked_for(tmp_path):
    path = save_results(tmp_path, ["s Anna i0 1 real 3.5", "s Anna i1 2 n/a 3.5"])
    assert read_results(path, key_of(["real", "synthetic"]), partial=True)["item"].tolist() == ["i0"]
    nothing = save_results(tmp_path, [], name="nothing.tsv")
    with pytest.raises(ValueError, match="nothing.tsv: no answers"):
        read_results(nothing, key_of(["real", "synthetic"]), partial=True)


def test_a_reader_twice_and_other_files_are_refused(tmp_path):
    key = key_of(KINDS)
    with pytest.raises(ValueError, match="two files are by the reader 'Anna'"):
        unblind(key, [results_of(key, [3] * 8)] * 2)
    path = save_results(tmp_path, [], header="a\tb")
    with pytest.raises(ValueError, match="expected columns study, reader, item"):
        read_results(path, key)
    with pytest.raises(ValueError, match="not the key of a reader study"):
        read_key(path)
    with pytest.raises(FileNotFoundError, match="no such key"):
        read_key(tmp_path / "absent.tsv")


def test_what_is_undefined_is_called_so_and_is_null_in_json(tmp_path, few_resamples):
    key = key_of(KINDS, repeats=[0, 1])
    answers = unblind(key, [results_of(key, [3] * 10, reader=name) for name in ("Anna", "<b>Ben</b>")])
    write_scores(score(key, answers), answers, tmp_path)
    content = json.loads((tmp_path / "reader_study.json").read_text())
    assert content["inter_reader"][0]["kappa"] == {"value": None, "low": None, "high": None}
    section = json.loads((tmp_path / "reader_study.section.json").read_text())
    assert [row[2] for row in section["tables"][2]["rows"]] == ["undefined"] * 3
    assert "one p for each reader, 2 in all, without a correction" in section["text"]


def test_commands_make_a_study_and_score_it(tmp_path, cohorts, monkeypatch, few_resamples, capsys):
    study, output = tmp_path / "study", tmp_path / "scores" / "new"
    real, synthetic = (str(folder) for [folder] in cohorts)
    command = f"reader_study.py make --real {real} --synthetic {synthetic} --output {study} --slices 12 --repeats 0.5"
    monkeypatch.setattr("sys.argv", command.split())
    assert reader_study.main() == 0
    key = pd.read_csv(study / "key" / "key.tsv", sep="\t", keep_default_na=False)

    def answer(row, reader):
        rating = {"real": 1, "synthetic": 4}[row.kind] + (reader == "Ben") * (row.position % 2)
        return f"{row.study} {reader} {row.item} {rating} {row.kind if reader == 'Anna' else 'real'} 4.0"

    files = [
        str(save_results(tmp_path, [answer(row, reader) for row in key.itertuples()], name=f"{reader}.tsv"))
        for reader in ("Anna", "Ben")
    ]
    monkeypatch.setattr(
        "sys.argv", ["reader_study.py", "score", str(study / "key" / "key.tsv"), *files, "--output", str(output)]
    )
    assert reader_study.main() == 0

    numbers = json.loads((output / "reader_study.json").read_text())
    assert numbers["n_items"] == 12 and numbers["n_readers"] == 2 and numbers["n_volumes"] == {"real": 3, "synthetic": 3}
    assert [row["accuracy"]["value"] for row in numbers["guesses"]] == [1, 0.5]
    assert numbers["ratings"]["axial"]["difference"]["value"] > 2
    assert len(pd.read_csv(output / "ratings.tsv", sep="\t")) == 2 * 18
    section = json.loads((output / "reader_study.section.json").read_text())
    assert all(len(row) == len(table["header"]) for table in section["tables"] for row in table["rows"])
    assert section["tables"][1]["rows"][0] == ["Anna", "12", "100 [74, 100]", "[100, 100]", "6 of 6", "6 of 6", "< 0.001", "50"]
    assert "not for clinical use" in section["text"]
    assert (output / section["figures"][0]["file"]).read_bytes().startswith(b"\x89PNG")
    assert str(study / "key" / "key.tsv") in capsys.readouterr().out

    # With --partial, the text says that some did not finish only where it is so.
    command = ["reader_study.py", "score", str(study / "key" / "key.tsv"), *files, "--output", str(output), "--partial"]
    for missing in (0, 3):
        path = tmp_path / "Ben.tsv"
        path.write_text("".join(path.read_text().splitlines(keepends=True)[: 19 - missing]))
        monkeypatch.setattr("sys.argv", command)
        assert reader_study.main() == 0
        text = json.loads((output / "reader_study.section.json").read_text())["text"]
        assert ("Some did not finish" in text) == bool(missing)
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.parametrize(("column", "cell"), [("position", "one"), ("kind", "Real"), ("direction", "up"), ("item", "i1")])
def test_a_key_that_was_edited_is_refused(tmp_path, column, cell):
    key = key_of(["real", "synthetic"]).reset_index().astype(str)
    key.loc[0, column] = cell
    key.reindex(columns=KEY_COLUMNS).to_csv(tmp_path / "key.tsv", sep="\t", index=False)
    with pytest.raises(ValueError, match="key.tsv: item i. is there twice, or its position"):
        read_key(tmp_path / "key.tsv")


def test_scans_and_synthetic_volumes_that_were_exchanged_are_refused(tmp_path):
    """The key called each of them the other."""
    real, made = save_cohorts(tmp_path)
    bundle = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "brain_ldm_bundle"}]}
    (made[0] / "dataset_description.json").write_text(json.dumps(bundle))
    with pytest.raises(ValueError, match="sub-syn0_T1w.nii.gz: is synthetic, as .* says, but --real takes scans"):
        find_volumes(made, "real")
    (real[0] / "dataset_description.json").write_text(json.dumps({"DatasetType": "raw"}))
    with pytest.raises(ValueError, match="sub-0_T1w.nii.gz: is a scan, as .* says, but --synthetic takes synthetic volumes"):
        find_volumes(real, "synthetic")
