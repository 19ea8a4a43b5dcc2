"""A pair is prepared once, until its files, settings or code change, and never read from an incomplete file."""

from functools import partial

import pytest
import torch
from monai.transforms import Lambda

from spade_fusion_bundle.scripts.data import prepared_pairs
from spade_fusion_bundle.scripts.data.prepared_pairs import PreparedPairs, pair_key


@pytest.fixture
def prepared(tmp_path):
    """The number of calls of the preparation, and a function that reads the first pair of a new data set."""
    item = {"image": str(tmp_path / "scan.nii"), "label": str(tmp_path / "map.nii")}
    for path in item.values():
        with open(path, "w") as file:
            file.write("1")
    calls = []

    def prepare(item):
        calls.append(item)
        return {"image": torch.arange(1000.0), "label": torch.ones(1, 2, 3)}

    def first(settings=("4 mm",)):
        return PreparedPairs([item], Lambda(prepare), tmp_path / "cache", hash_func=partial(pair_key, settings=settings))[0]

    return calls, first, item


def test_a_pair_is_prepared_once_until_something_changes(prepared, monkeypatch):
    calls, first, item = prepared
    for _ in range(2):
        assert torch.equal(first()["image"], torch.arange(1000.0))
    assert len(calls) == 1
    first(("2 mm",))
    with open(item["label"], "w") as file:
        file.write("22")
    first()
    monkeypatch.setattr(prepared_pairs, "code_sha256", lambda: "an update")
    first()
    assert len(calls) == 4


def test_a_file_that_was_cut_short_is_made_again(prepared, tmp_path):
    """A full disk left it, and every later run ended there."""
    calls, first, _ = prepared
    first()
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-50])
    assert torch.equal(first()["label"], torch.ones(1, 2, 3)) and len(calls) == 2
    assert len(list((tmp_path / "cache").iterdir())) == 1
