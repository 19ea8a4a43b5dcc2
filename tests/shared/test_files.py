"""Files are complete or absent, and damaged ones are refused by name."""

import hashlib
import os
import resource
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from brain_ldm_bundle.scripts.shared.files import (
    atomic,
    is_whole_array,
    read_json,
    refuse_unwritable,
    save_weights,
    sha256,
    write_json,
    write_text,
)


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


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of 64 kB that can be made read-only. Modes of files do not bind the superuser."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True).returncode:
        pytest.skip("mounting a disk needs the superuser")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_or_read_only_disk_is_named_in_one_line_and_keeps_the_older_file(small_disk):
    path = small_disk / "page.html"
    write_text(path, "older")
    with pytest.raises(OSError, match=f"^No space left on device while writing {path}. Make room") as refused:
        write_text(path, "x" * 100_000)
    assert "\n" not in str(refused.value)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for write in (
        lambda: write_text(path, "x"),
        lambda: refuse_unwritable(path),
        lambda: write_text(small_disk / "a" / "b", ""),
    ):
        with pytest.raises(OSError, match=f"^Read-only file system while writing {small_disk}"):
            write()
    assert path.read_text() == "older" and os.listdir(small_disk) == ["page.html"]


def test_an_output_that_is_a_folder_or_inside_a_file_is_refused_before_and_after_work(tmp_path):
    (tmp_path / "file").write_text("older")
    for path, reason in (
        (tmp_path, "folder|directory"),
        (tmp_path / "file" / "x", "Not a directory"),
        (tmp_path / "file" / "x" / "y", "Not a directory"),
    ):
        for write in (refuse_unwritable, partial(write_text, text="x")):
            with pytest.raises(OSError, match=f"(?i)({reason}|File exists).* while writing {path}"):
                write(path)
    refuse_unwritable(tmp_path / "new folder" / "x")
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "older"


def test_an_address_is_no_output():
    with pytest.raises(ValueError, match="s3:/bucket/page.html: this is an address, not a path"):
        refuse_unwritable(Path("s3://bucket/page.html"))


@pytest.mark.parametrize("name", ["volumes.tsv.gz", "volumes.tsv.XZ"])
def test_an_output_that_is_plain_text_is_not_called_compressed(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: this output is not compressed. Leave .* out of its name"):
        refuse_unwritable(tmp_path / name)


@pytest.mark.parametrize("name", ["volumes.xlsx", "volumes.XLS"])
def test_a_workbook_is_no_output(tmp_path, name):
    with pytest.raises(ValueError, match=f"{name}: this output is text, not a workbook. End its name in .tsv or .csv"):
        refuse_unwritable(tmp_path / name)


def test_a_home_folder_that_the_shell_did_not_replace_is_no_output():
    """bash does not replace it in `--output=~/volumes.tsv`. The file appeared in a new folder with the name ~."""
    with pytest.raises(ValueError, match="~/volumes.tsv: the shell did not replace ~ by your home folder"):
        refuse_unwritable(Path("~/volumes.tsv"))


@pytest.mark.parametrize("name", ["participants.tsv", "sub-1_sessions.tsv", "sub-1_T1w.nii.gz"])
def test_an_output_that_would_replace_data_of_a_study_is_refused(tmp_path, name):
    """`measure_volumes.py STUDY --output STUDY/participants.tsv` replaced the covariates."""
    refuse_unwritable(tmp_path / name)
    (tmp_path / name).write_text("older")
    with pytest.raises(ValueError, match=f"{name}: this output would replace data of a study"):
        refuse_unwritable(tmp_path / name)


def test_a_file_may_have_the_longest_name(tmp_path):
    write_text(tmp_path / ("x" * 255), "text")
    assert [len(name) for name in os.listdir(tmp_path)] == [255]


def test_a_pipe_or_device_is_written_and_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    refuse_unwritable(pipe)
    write_text(pipe, "table")
    assert os.read(reader, 100) == b"table" and pipe.is_fifo()
    os.close(reader)
    with pytest.raises(OSError, match="No space left on device while writing /dev/full"):
        write_text("/dev/full", "x")
    assert not Path("/dev/full").is_file()
    read_end, write_end = os.pipe()
    os.close(read_end)  # as `| head` does
    with pytest.raises(OSError, match="Broken pipe while writing .*. The program that read it ended early"):
        write_text(f"/dev/fd/{write_end}", "x")
    os.close(write_end)


def test_an_error_about_another_file_is_not_blamed_on_the_output(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file or directory: '.*gone.nii'$"), atomic(tmp_path / "page.html"):
        open(tmp_path / "gone.nii")


def test_an_array_that_was_cut_short_is_not_whole(tmp_path):
    path = tmp_path / "latent.npy"
    assert not is_whole_array(path)
    np.save(path, np.ones((2, 3, 4)))
    assert is_whole_array(path)
    for content in (path.read_bytes()[:-1], path.read_bytes()[:20], b""):
        path.write_bytes(content)
        assert not is_whole_array(path)


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


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_of_editors_on_windows_is_read(tmp_path, encoding):
    (tmp_path / "a.json").write_bytes('{"name": "Müller"}'.encode(encoding))
    assert read_json(tmp_path / "a.json") == {"name": "Müller"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "this is not JSON"),
        ("[1]", "expected a JSON object, got list"),
        # The second list of scans replaced the first one without a word.
        ('{"a": {"training": [1], "training": [2]}}', r"this is not JSON .given twice: training"),
    ],
)
def test_what_is_no_json_object_is_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match="a.json: no such file"):
        read_json(path)
    path.write_text(text)
    with pytest.raises(ValueError, match=f"a.json: {message}"):
        read_json(path)


def test_json_with_a_mark_is_read_and_with_a_key_twice_is_refused(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('\ufeff{"range": [1, 2]}', encoding="utf-8")
    assert read_json(path) == {"range": [1, 2]}
    path.write_text('{"range": [1, 2], "range": [1, 3]}')
    with pytest.raises(ValueError, match="a.json: .*given twice: range"):
        read_json(path)
