import pytest

from brain_ldm_bundle.scripts.shared.problems import of_each, refuse


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


def test_an_item_with_a_fault_does_not_hide_the_faults_of_others():
    assert of_each(int, ["1", "2"], "of 2 numbers are none:") == [1, 2]
    with pytest.raises(ValueError, match="(?s)^2 of 3 numbers are none:.*'one'.*'two'"):
        of_each(int, ["one", "2", "two"], "of 3 numbers are none:")
