import json

import numpy as np
import pytest
from scipy import stats

from spade_fusion_bundle.scripts.evaluation.synthesis_scores import METHODS, SCORES
from spade_fusion_bundle.scripts.evaluation.synthesis_summary import summarise
from spade_fusion_bundle.scripts.shared.tables import read_table, write_table


def write_scores(folder, n, seed=0):
    """Scores of n scans; by SSIM the fusion is best on all of them, by MSE it is the worst. Returns the scores by method."""
    rng = np.random.default_rng(seed)
    values = {}
    for number, method in enumerate(METHODS):
        scores = {name: rng.uniform(0.5, 0.6, n) for name in SCORES}
        scores["ssim"] += 0.3 if method == "fusion" else 0.01 * number
        scores["mse"] += 0.2 if method == "fusion" else 0
        values[method] = {name: [f"{value:.6g}" for value in column] for name, column in scores.items()}
    rows = [
        [f"sub-{scan}", f"sub-{scan}_T1w.nii.gz", method, *(values[method][name][scan] for name in SCORES)]
        for scan in range(n)
        for method in METHODS
    ]
    write_table(folder / "scores.tsv", [["participant_id", "file", "method", *SCORES], *rows])
    return {method: {name: np.array(column, float) for name, column in scores.items()} for method, scores in values.items()}


def test_the_table_has_the_fusion_against_each_method_with_what_chance_gives(tmp_path):
    values = write_scores(tmp_path, 8)
    summary = summarise(tmp_path, "test", tmp_path, {"seen_voxels": []})
    assert summary == json.loads((tmp_path / "summary.json").read_text()) and summary["n"] == 8
    for method, scores in values.items():
        assert summary["methods"][method]["psnr_db"] == pytest.approx(
            {"mean": scores["psnr_db"].mean(), "std": np.std(scores["psnr_db"], ddof=1)}
        )
    assert "fusion" not in summary["fusion_minus"] and len(summary["fusion_minus"]) == 6
    gain = values["fusion"]["ssim"] - values["coronal"]["ssim"]
    found = summary["fusion_minus"]["coronal"]["ssim"]
    assert (found["low"], found["high"]) == pytest.approx(stats.ttest_1samp(gain, 0).confidence_interval())
    # All 8 differences of one sign: 2 of 2^8 outcomes; the smallest of six equal p, six times corrected.
    assert (found["p"], found["p_holm"], found["wins"]) == pytest.approx((2 / 256, 12 / 256, 8))
    assert summary["fusion_minus"]["coronal"]["mse"]["wins"] == 0  # smaller is better
    table = {row["method"]: row for row in read_table(tmp_path / "summary.tsv")}
    assert float(table["coronal"]["fusion_minus_ssim_p_holm"]) == pytest.approx(12 / 256, rel=1e-4)
    assert float(table["median"]["ssim_mean"]) == pytest.approx(values["median"]["ssim"].mean(), rel=1e-4)
    assert table["fusion"]["fusion_minus_ssim"] == "n/a"


@pytest.mark.parametrize(
    ("recipe", "said"), [({"seen_voxels": []}, False), ({"seen_voxels": [], "seen_unknown": True}, True), ({}, True)]
)
def test_the_section_says_if_nobody_knows_whether_the_scans_are_new_to_the_weights(tmp_path, recipe, said):
    write_scores(tmp_path, 2)
    summarise(tmp_path, "test", tmp_path, recipe)
    text = json.loads((tmp_path / "synthesis.section.json").read_text())["text"]
    assert ("not checked, because its weights do not name all" in text) == said


def test_the_section_shows_every_method_and_comparison_with_the_definitions(tmp_path, capsys):
    values = write_scores(tmp_path, 8)
    (tmp_path / "planes.png").write_bytes(b"")
    summarise(tmp_path, "test", tmp_path, {"seen_voxels": []})
    section = json.loads((tmp_path / "synthesis.section.json").read_text())
    scores, comparisons = section["tables"]
    assert [row[0] for row in scores["rows"]] == [method.replace("_", " ") for method in METHODS]
    ssim = values["fusion"]["ssim"]
    mean, deviation = scores["rows"][5][1].split(" ± ")
    assert float(mean) == pytest.approx(ssim.mean(), abs=0.05 * np.std(ssim, ddof=1) + 1e-4)
    assert float(deviation) == pytest.approx(np.std(ssim, ddof=1), rel=0.2)
    assert f"PSNR of {scores['rows'][5][3]} dB and an SSIM of {scores['rows'][5][1]}" in section["verdict"]
    assert len(comparisons["rows"]) == 3 * 6
    row = dict(zip(comparisons["header"], comparisons["rows"][1]))
    assert (row["score"], row["fusion minus"], row["fusion better on"]) == ("SSIM", "coronal", "8 of 8")
    assert (row["p"], row["p (Holm)"]) == ("0.0078", "0.047")
    assert [figure["file"] for figure in section["figures"]] == ["planes.png"]  # those that were drawn
    for part in ("8 scans: split test", "Wang et al. 2004", "Holm 1979", "95 % interval"):
        assert part in section["text"]
    assert "p cannot be below" not in section["text"]
    printed = capsys.readouterr().out
    assert printed.count("Wang et al. 2004") == 1 and "8 of 8" in printed


def test_few_scans_say_what_p_they_could_reach(tmp_path):
    write_scores(tmp_path, 3)
    summary = summarise(tmp_path, "test", tmp_path, {"seen_voxels": []})
    assert summary["smallest_p"] == 0.25 and summary["fusion_minus"]["axial"]["ssim"]["p_holm"] == 1
    text = json.loads((tmp_path / "synthesis.section.json").read_text())["text"]
    assert "With 3 scans p cannot be below 0.25, and not below 1.00 after the correction for 6 comparisons" in text


def test_one_scan_has_neither_spread_nor_test(tmp_path):
    write_scores(tmp_path, 1)
    summary = summarise(tmp_path, "test", tmp_path, {"seen_voxels": []})
    assert summary["methods"]["fusion"]["ssim"]["std"] is None
    assert summary["fusion_minus"]["mean"]["ssim"]["p"] is None
    section = json.loads((tmp_path / "synthesis.section.json").read_text())
    assert "One scan allows neither a spread nor a test" in section["text"]
    assert "one scan has no spread" in section["tables"][1]["rows"][0][2] and section["tables"][1]["rows"][0][4] == "n/a"


def test_an_infinite_psnr_leaves_the_summary_valid_json(tmp_path):
    header = ["participant_id", "file", "method", *SCORES]
    rows = [["sub-1", "a.nii", method, "1", "0", "inf" if method == "mean" else "30", "1", "1", "1"] for method in METHODS]
    write_table(tmp_path / "scores.tsv", [header, *rows])
    summary = summarise(tmp_path, "test", tmp_path, {"seen_voxels": []})
    assert summary["methods"]["mean"]["psnr_db"] == {"mean": None, "std": None}
    assert summary["fusion_minus"]["mean"]["psnr_db"]["mean"] is None
    assert not {"NaN", "Infinity"} & set((tmp_path / "summary.json").read_text().replace(",", " ").split())
    assert {row["method"]: row for row in read_table(tmp_path / "summary.tsv")}["mean"]["psnr_db_mean"] == "n/a"


def test_a_table_that_lacks_a_scan_of_one_method_is_refused(tmp_path):
    write_scores(tmp_path, 2)
    path = tmp_path / "scores.tsv"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ValueError, match="'label_mean': 1}, each must have the same"):
        summarise(tmp_path, "test", tmp_path, {"seen_voxels": []})


def test_a_table_of_other_methods_is_refused_with_its_name(tmp_path):
    """Such as the table of an earlier version. The message spoke of scores of shape (0,), and of no file."""
    write_table(tmp_path / "scores.tsv", [["participant_id", "file", "method", *SCORES], ["s", "f", "old", *"111111"]])
    with pytest.raises(ValueError, match="scores.tsv: scans per method .*'fusion': 0.* evaluate again"):
        summarise(tmp_path, "test", tmp_path, {"seen_voxels": []})
