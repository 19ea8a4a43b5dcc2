import json

import compare_volumes
import numpy as np
import pandas as pd
import pytest
from compare_volumes import compare, volume_distance
from section import write_section as write_section_here

from brain_ldm_bundle.scripts.sections import write_section

RNG = np.random.default_rng(0)
HEADS = RNG.normal(50, 20, 40)


@pytest.fixture(autouse=True)
def few_resamples(monkeypatch):
    monkeypatch.setattr(compare_volumes, "RESAMPLES", 200)
    monkeypatch.setattr(compare_volumes, "SPLITS", 100)


def table(tmp_path, name, ventricles_ml, **columns):
    rows = pd.DataFrame({"participant_id": [f"sub-{i}" for i in range(len(ventricles_ml))], "ventricles_ml": ventricles_ml})
    path = tmp_path / name
    rows.assign(**columns).to_csv(path, sep="\t", index=False, na_rep="n/a")
    return path


def test_distance_by_hand():
    # Sorted, 1 2 3 6 against 2 3 5 8: each moves by 1, 1, 2, 2.
    found = volume_distance([3, 1, 6, 2], [8, 2, 3, 5])
    assert found["distance"] == pytest.approx(1.5)
    assert found["trivial"] == pytest.approx((2 + 1 + 0 + 3) / 4)  # from the mean, 3
    assert (found["n_real"], found["n_generated"]) == (4, 4)


def test_a_shift_is_the_distance_and_lies_in_its_interval():
    found = volume_distance(HEADS, HEADS + 30)
    assert found["distance"] == pytest.approx(30)
    assert found["distance_low"] < 30 < found["distance_high"]
    assert found["p"] < 0.01
    assert found["distance"] > found["floor_high"]


def test_heads_of_one_population_lie_at_the_floor():
    found = volume_distance(HEADS[:20], HEADS[20:])
    assert found["distance"] < found["floor_high"]
    assert found["p"] > 0.05


def test_a_generator_that_knows_only_the_mean_scores_the_trivial_answer():
    found = volume_distance(HEADS, np.full(40, HEADS.mean()))
    assert found["distance"] == pytest.approx(found["trivial"])
    assert found["generated_sd"] == pytest.approx(0)


def test_the_seed_decides_the_interval_and_nothing_else():
    first, same, other = (volume_distance(HEADS[:20], HEADS[20:], seed) for seed in (1, 1, 2))
    assert first == same
    assert first["distance"] == other["distance"] and first["distance_low"] != other["distance_low"]


@pytest.mark.parametrize(
    ("real", "generated", "message"),
    [
        ([1, 2, 3], [1, 2, 3, 4], "at least 4 real volumes, got 3"),
        ([1, 2, 3, 4], [], "at least 4 generated volumes, got 0"),
        ([1, 2, np.nan, 4], [1, 2, 3, 4], "real volumes must be finite, row 3"),
        ([5, 5, 5, 5], [1, 2, 3, 4], "all 4 real volumes are 5"),
    ],
)
def test_impossible_samples_are_refused(real, generated, message):
    with pytest.raises(ValueError, match=message):
        volume_distance(real, generated)


def test_rows_without_a_value_are_left_out_and_not_counted(tmp_path):
    real = compare_volumes.read_volumes(table(tmp_path, "a.tsv", [1, 2, 3, 4, np.nan]))
    assert compare(real, real)["n_real"].tolist() == [4]


def test_volumes_by_two_tools_are_not_compared(tmp_path):
    ours = compare_volumes.read_volumes(table(tmp_path, "a.tsv", HEADS))
    theirs = compare_volumes.read_volumes(table(tmp_path, "b.tsv", HEADS, tool="SynthSeg"))
    with pytest.raises(ValueError, match="real volumes are by measure_volumes.py, the generated ones by SynthSeg"):
        compare(ours, theirs)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("participant_id\tage\nsub-1\t70\n", "expected columns participant_id and some of ventricles_ml"),
        ("participant_id\tventricles_ml\nsub-1\t7\nsub-1\t8\n", "sub-1 is there twice"),
        ("participant_id\tventricles_ml\nsub-1\t7\nsub-2\tmany\n", "row 3: ventricles_ml must be a volume in mL, got many"),
        ("participant_id\tventricles_ml\nsub-1\t7\nsub-2\t-8\n", "row 3: ventricles_ml must be a volume in mL, got -8"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, content, message):
    (tmp_path / "a.tsv").write_text(content)
    with pytest.raises(ValueError, match=message):
        compare_volumes.read_volumes(tmp_path / "a.tsv")


def test_an_absent_table_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="measure_volumes"):
        compare_volumes.read_volumes(tmp_path / "a.tsv")


def test_command_writes_numbers_picture_and_a_section_for_the_page(tmp_path, monkeypatch):
    normalised = {"brain_normalised_ml": 1500 + HEADS}
    real = table(tmp_path, "real.tsv", HEADS, flags="", **normalised)
    generated = table(tmp_path, "generated.tsv", HEADS + 30, flags="brain_ml_unusual", **normalised)
    output = tmp_path / "new" / "volumes"
    monkeypatch.setattr("sys.argv", ["compare_volumes.py", str(real), str(generated), "--output", str(output)])
    assert compare_volumes.main() == 0

    numbers = json.loads((output / "volumes.json").read_text())
    assert [row["volume"] for row in numbers["volumes"]] == ["ventricles_ml", "brain_normalised_ml"]
    assert numbers["unit"] == "mL" and numbers["volumes"][0]["distance"] == pytest.approx(30, abs=0.01)
    assert pd.read_csv(output / "volumes.tsv", sep="\t")["distance"].tolist() == pytest.approx([30, 0], abs=0.01)
    section = json.loads((output / "volumes.section.json").read_text())
    assert (
        "40 real heads (real.tsv) and 40 generated ones" in section["text"] and "0 and 40 rows carry a flag" in section["text"]
    )
    assert section["tables"][0]["rows"][0][:2] == ["lateral ventricles", "40, 40"]
    assert (output / section["figures"][0]["file"]).read_bytes().startswith(b"\x89PNG")
    assert not list(output.glob("*.part"))


def test_a_section_of_the_tools_is_written_as_one_of_the_bundles(tmp_path):
    content = ("Title", "One.\n\nTwo ±.", [{"header": ["", "mL"], "rows": [["real", "1"]]}])
    write_section(tmp_path / "theirs.section.json", *content)
    write_section_here(tmp_path / "ours.section.json", *content)
    assert (tmp_path / "ours.section.json").read_bytes() == (tmp_path / "theirs.section.json").read_bytes()
