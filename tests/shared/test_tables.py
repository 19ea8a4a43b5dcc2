"""One reader reads all tables of users. It refuses bad tables with a clear message."""

import pytest

from brain_ldm_bundle.scripts.shared.tables import read_numbered, read_table, write_table


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new folder" / "table.tsv"


def test_a_table_comes_back_as_it_was_written(path):
    write_table(path, [["participant_id", "größe_ml"], ["sub-1", "4.5"], ["sub-2", ""]])
    assert read_table(path) == [{"participant_id": "sub-1", "größe_ml": "4.5"}, {"participant_id": "sub-2", "größe_ml": ""}]
    assert [file.name for file in path.parent.iterdir()] == ["table.tsv"]


def test_tables_of_spreadsheets_are_read(tmp_path):
    """A byte-order mark, Windows' line ends, an empty line, a quoted cell with a separator in it."""
    path = tmp_path / "table.tsv"
    path.write_bytes(b'\xef\xbb\xbfsubject\ttotal\r\n\r\n"a\tb"\t1\r\n')
    assert read_table(path) == [{"subject": "a\tb", "total": "1"}]


def test_rows_of_another_length_are_named_by_their_number(path):
    write_table(path, [["a", "b"], ["1"], ["1", "2"], ["1", "2", "3"]])
    header, rows, problems = read_numbered(path)
    assert header == ["a", "b"] and rows == {3: {"a": "1", "b": "2"}}
    assert [problem.split(": ")[1] for problem in problems] == [
        f"{n} cells for 2 columns. Put one separator between two cells" for n in (1, 3)
    ]
    with pytest.raises(ValueError, match="(?s)row 2: 1 cells.*row 4: 3 cells"):
        read_table(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("a\tb\n", "only a header"),
        ("a,b\n1,2\n", "separated by commas. Save it again with tabs"),
        ("a;b\n1;2\n", "separated by semicolons. Save it again with tabs"),
        ("a\ta\n1\t2\n", "a column name appears twice"),
    ],
)
def test_what_is_no_such_table_is_refused(tmp_path, content, message):
    path = tmp_path / "table.tsv"
    path.write_text(content)
    with pytest.raises(ValueError, match=f"table.tsv: .*{message}"):
        read_table(path)


def test_a_table_that_is_not_there_is_refused(path):
    with pytest.raises(FileNotFoundError, match="table.tsv: no such table"):
        read_table(path)
