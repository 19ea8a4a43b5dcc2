import numpy as np
import pytest
import torch
from scipy.stats import norm

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.evaluation.regressor_accuracy import hits, quantity_accuracy, report


def test_agreement_is_that_of_a_hand_calculation():
    truth, predicted = [50.0, 60.0, 70.0, 80.0, 90.0], [58.0, 57.0, 66.0, 71.0, 73.0]
    found = quantity_accuracy(truth, predicted, trivial=60.0)
    x, y = np.subtract(truth, 70.0), np.subtract(predicted, 65.0)
    r = (x @ y) / np.sqrt((x @ x) * (y @ y))
    z = np.arctanh(r) + norm.ppf([0.025, 0.975]) / np.sqrt(5 - 3)
    assert found["n"] == 5
    assert found["r"] == pytest.approx(r) and found["r_95"] == pytest.approx(np.tanh(z))
    assert found["slope"] == pytest.approx((x @ y) / (x @ x))
    assert found["bias"] == pytest.approx(-5) and found["mae"] == pytest.approx((8 + 3 + 4 + 9 + 17) / 5)
    assert found["mae_trivial"] == pytest.approx((10 + 0 + 10 + 20 + 30) / 5)


@pytest.mark.parametrize(
    ("truth", "predicted", "message"),
    [
        ([1, 2, 3], [1, 2, 3], "at least 4 pairs.*got 3"),
        ([5, 5, 5, 5], [1, 2, 3, 4], "expected values are all 5"),
        ([1, 2, 3, 4], [7, 7, 7, 7], "measured values are all 7"),
        ([1, 2, 3, 4], [1, 2, 3, float("nan")], "measured values must be finite, row 4"),
    ],
)
def test_no_number_comes_of_too_few_constant_or_broken_values(truth, predicted, message):
    with pytest.raises(ValueError, match=message):
        quantity_accuracy(truth, predicted, trivial=2.0)


def test_categories_are_counted_beside_the_most_frequent_one():
    found = hits(list("FFMM"), list("FMMM"), trivial="F")
    assert (found["accuracy"], found["accuracy_trivial"]) == (0.75, 0.5)
    low, high = found["accuracy_95"]
    assert (low, high) == pytest.approx((0.3006, 0.9544), abs=1e-4)  # Wilson 1927, for 3 of 4


def test_of_equally_frequent_categories_the_first_training_scan_decides(tmp_path):
    """The order of a set decided, so the trivial answer changed from run to run."""
    schema = CovariateSchema.from_dict({"covariates": [{"name": "sex", "levels": {"F": 0, "M": 1}}]})
    scaled = [1.0, 0.0, 0.0, 1.0, 0.0]  # M F, then F M F
    items = [{"image": f"{n}.nii.gz", "covariates": [x], "voxels_sha256": str(n)} for n, x in enumerate(scaled)]
    data = {"training": items[:2], "test": items[2:]}
    lines = [f"sub-{n}\t{n}.nii.gz\tF\tregressor\n" for n in (4, 2, 3)]  # in another order than the scans
    (tmp_path / "regressor.tsv").write_text("".join(["participant_id\tfile\tsex\ttool\n", *lines]))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "regressor.pt")
    found = report(tmp_path, data, "test", schema, tmp_path / "regressor.pt")["covariates"]["sex"]
    assert found["accuracy_trivial"] == pytest.approx(1 / 3) and found["accuracy"] == pytest.approx(2 / 3)
