"""A reader study shows real and synthetic slices that only their pixels tell apart, and refuses what it cannot show."""

import base64
import json
import math
import re
import struct

import numpy as np
import pandas as pd
import pytest
import reader_study
from reader_studies import make as reader_study_make
from reader_studies import score as reader_study_score
from reader_studies import slices as reader_study_slices
from reader_studies.make import make_study
from reader_studies.score import read_key
from reader_studies.slices import find_volumes
from scipy import ndimage, stats
from shared.nifti import read_volume
from tiny_study import (
    SHAPE,
    head,
    read_page,
    read_study,
    save,
    save_cohorts,
    save_results,
)


@pytest.fixture
def cohorts(tmp_path):
    return save_cohorts(tmp_path)


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(reader_study_score, "RESAMPLES", 50)


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


def test_the_page_says_that_synthetic_images_are_edits_of_scans(tmp_path, cohorts):
    assert "edits of scans" not in make_study(*cohorts, tmp_path / "before", slices=12)[0].read_text()
    for image in cohorts[1][0].rglob("*.nii*"):
        image.with_name(f"{image.name.split('.')[0]}.json").write_text(json.dumps({"EditedImage": "a.nii.gz", "Strength": 0.5}))
    page = make_study(*cohorts, tmp_path / "study", slices=12)[0].read_text()
    assert "Some of the synthetic images are edits of scans, and may identify persons." in page


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


def test_brains_compared_with_heads_are_refused(tmp_path):
    for i in range(3):
        save(tmp_path / "scans" / f"sub-{i}_T1w.nii.gz", head(i))
        save(tmp_path / "made" / f"sub-{i}_T1w.nii.gz", np.where(ndimage.binary_erosion(head(i) > 0, iterations=3), head(i), 0))
    with pytest.raises(ValueError, match="27 % of the sagittal slices of real volumes are black, but .* of synthetic ones"):
        make_study([tmp_path / "scans"], [tmp_path / "made"], tmp_path / "study", slices=12)
    assert not (tmp_path / "study").exists()


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


def test_a_synthetic_volume_without_a_sidecar_among_others_is_named(tmp_path):
    """A scan that lay among generated heads was shown as synthetic."""
    for name in "ab":
        save(tmp_path / f"sub-{name}" / "anat" / f"sub-{name}_T1w.nii.gz", head(5))
    (tmp_path / "sub-a" / "anat" / "sub-a_T1w.json").write_text(json.dumps({"Synthetic": True}))
    made_by = {"DatasetType": "derivative", "GeneratedBy": [{"Name": "brain_ldm_bundle"}]}
    (tmp_path / "dataset_description.json").write_text(json.dumps(made_by))
    with pytest.warns(UserWarning, match="JSON sidecar is missing beside 1 image, such as .*sub-b_T1w.nii.gz"):
        find_volumes([tmp_path], "synthetic")


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


def test_a_page_that_cannot_be_written_leaves_no_key(tmp_path, cohorts, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reader_study_make, "_write_page", full)
    with pytest.raises(OSError):
        make_study(*cohorts, tmp_path / "study", slices=12)
    assert not list((tmp_path / "study").rglob("*.tsv"))


def test_the_key_of_another_study_is_not_overwritten(tmp_path, cohorts):
    _, key = make_study(*cohorts, tmp_path / "study", slices=12)
    before = key.read_bytes()
    with pytest.raises(ValueError, match="key of another study"):
        make_study(*cohorts, tmp_path / "study", slices=12, seed=1)
    assert key.read_bytes() == before


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
