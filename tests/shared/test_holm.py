import pytest

from brain_ldm_bundle.scripts.shared.holm import holm


def test_holm_by_hand():
    """0.01 x 4, 0.02 x 3, 0.03 x 2 -> not less than the one before, 0.5; None is no comparison."""
    assert holm([0.02, None, 0.01, 0.5, 0.03]) == pytest.approx([0.06, None, 0.04, 0.5, 0.06])
    assert holm([0.7, 0.6]) == [1.0, 1.0]
