"""The benchmark counts the work of both ways, and compares their results."""

import json

import benchmark
import pytest
import torch
from speed import file_cases
from speed.measuring import Case, Meter


def test_a_case_counts_the_operations_of_both_ways_and_compares_their_results():
    a, b = torch.rand(8, 8), torch.rand(8, 8)
    meter = Meter(torch.device("cpu"), bfloat16=False)
    found = meter.compare(Case("product", lambda: (a @ b) @ a, lambda: 1.01 * (a @ (b @ a)).double()), repeats=2)
    assert found["theirs_tflop"] == found["ours_tflop"] == 2 * 2 * 8**3 / 1e12
    assert found["relative_difference"] == pytest.approx(0.01, rel=1e-3)
    assert found["ratio"] > 0 and found["share_of_floor"] > 0


def test_a_name_that_no_case_has_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "GROUPS", (file_cases,))  # each case of the networks makes them first
    with pytest.raises(ValueError, match="--only nothing: no case has such a name"):
        benchmark.main(["--quick", "--only", "nothing", "--use_device", "cpu", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_quick_benchmark_measures_all_cases(tmp_path):
    benchmark.main(["--quick", "--use_device", "cpu", "--output", str(tmp_path)])
    content = json.loads((tmp_path / "benchmark.json").read_text())
    found = {result["case"]: result for result in content["results"]}
    assert len(found) == 11 and (tmp_path / "benchmark.png").stat().st_size > 10_000
    for case in ("U-Net step", "decode", "volume, 15 steps", "training step, diffusion", "SPADE, three planes"):
        assert found[case]["ours_tflop"] < 0.95 * found[case]["theirs_tflop"], case
    assert all(result.get("relative_difference", 0) < 1e-4 for result in content["results"])
