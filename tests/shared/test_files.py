"""Files are complete or absent, and damaged ones are refused by name."""

import hashlib
import resource

import pytest
import torch

from brain_ldm_bundle.scripts.shared.files import atomic, read_json, save_weights, sha256, write_json


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pt"


def test_the_hash_is_sha256_and_follows_the_content(path):
    for content in (b"one", b"three"):
        path.write_bytes(content)
        assert sha256(path) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_network_is_not_written_and_the_older_file_stays(path, value):
    save_weights({"network": {"weight": torch.ones(3)}}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"not written, network\.weight is not finite"):
        save_weights({"network": {"weight": torch.tensor([1.0, value])}}, path)
    assert path.read_bytes() == before


def test_a_full_disk_leaves_the_older_file_and_nothing_else(path):
    save_weights({"weight": torch.ones(3)}, path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            save_weights({"weight": torch.ones(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_missing_input_of_the_writer_is_named_and_not_the_output(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"^scan\.nii\.gz: no such file$"), atomic(tmp_path / "page.html"):
        raise FileNotFoundError("scan.nii.gz: no such file")
    assert not list(tmp_path.iterdir())


def test_folders_are_made_and_the_file_alone_is_left(tmp_path):
    path = tmp_path / "models" / "resume" / "network.pt"
    save_weights({"weight": torch.ones(3)}, path)
    assert torch.equal(torch.load(path, weights_only=True)["weight"], torch.ones(3))
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_json_with_a_number_that_json_does_not_know_is_refused(tmp_path, number):
    """Python writes NaN, which no other reader takes."""
    with pytest.raises(ValueError, match="scores.json: not written, it would hold a number that is NaN or infinite"):
        write_json(tmp_path / "scores.json", {"ssim": {"mean": number}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("text", "message"), [("{", "this is not JSON"), ("[1]", "expected a JSON object, got list")])
def test_what_is_no_json_object_is_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match="a.json: no such file"):
        read_json(path)
    path.write_text(text)
    with pytest.raises(ValueError, match=f"a.json: {message}"):
        read_json(path)
