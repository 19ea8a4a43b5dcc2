import pytest

from brain_ldm_bundle.scripts.shared.problems import refuse


def test_all_problems_are_in_one_message():
    with pytest.raises(ValueError) as error:
        refuse(["a: one", "b: two"], "2 problems:")
    assert str(error.value) == "2 problems:\na: one\nb: two"


def test_further_problems_are_counted():
    with pytest.raises(ValueError) as error:
        refuse([f"file {number}" for number in range(23)])
    assert str(error.value).split("\n")[-2:] == ["file 19", "... and 3 more of these problems"]


def test_without_problems_nothing_happens():
    refuse([], "0 problems:")
