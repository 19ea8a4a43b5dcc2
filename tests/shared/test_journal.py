"""A journal keeps what was finished, and nothing of a file, a setting or an output that is another."""

import os
import sys

import pytest

from brain_ldm_bundle.scripts.shared.journal import Journal


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / name for name in "abc"]
    for path in paths:
        path.write_text(path.name)
    return paths


def test_a_result_counts_while_its_file_and_the_settings_are_the_same(files, tmp_path):
    a, b, c = files
    first = Journal(tmp_path / "out" / "table.tsv", ["weights 1"])
    assert first.open(files) == files and not (tmp_path / "out").exists()
    first.add(a, {"age": 0.1 + 0.2})
    first.add(b, None)
    again = Journal(tmp_path / "out" / "table.tsv", ["weights 1"])
    assert again.open(files) == [c]
    assert again.found == {str(a): {"age": 0.1 + 0.2}, str(b): None}
    assert Journal(tmp_path / "out" / "table.tsv", ["weights 2"]).open(files) == files
    assert Journal(tmp_path / "out" / "other.tsv", ["weights 1"]).open(files) == files
    os.utime(a, ns=(1, 1))
    assert again.open(files) == [a, c]
    b.unlink()
    assert again.open(files) == files
    again.close()
    assert list((tmp_path / "out").iterdir()) == []


def test_a_line_that_was_cut_short_is_left_out_and_spoils_no_other(files, tmp_path):
    journal = Journal(tmp_path / "table.tsv")
    journal.open(files)
    for file in files[:2]:
        journal.add(file, [1, 2, 3])
    content = journal.path.read_bytes()
    journal.path.write_bytes(content[:-4])
    assert journal.open(files) == files[1:]
    journal.add(files[2], [4])
    assert journal.open(files) == files[1:2]


@pytest.mark.skipif(sys.platform == "win32", reason="has no /dev")
def test_an_output_that_is_no_file_has_no_journal(files):
    journal = Journal("/dev/stdout")
    journal.open(files)
    journal.add(files[0], 1)
    journal.close()
    assert journal.found == {str(files[0]): 1} and not os.path.exists("/dev/.stdout.unfinished")
