"""One reader reads all tables of users. It refuses bad tables with a clear message."""

import gzip
import os
import threading

import pandas as pd
import pytest

from brain_ldm_bundle.scripts.shared.tables import (
    is_missing,
    print_table,
    read_number,
    read_numbered,
    read_table,
    refuse_users_columns,
    write_table,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new folder" / "table.tsv"


def test_a_table_comes_back_as_it_was_written(path):
    write_table(path, [["participant_id", "größe_ml"], ["sub-1", "4.5"], ["sub-2", ""]])
    assert read_table(path) == [{"participant_id": "sub-1", "größe_ml": "4.5"}, {"participant_id": "sub-2", "größe_ml": ""}]
    assert [file.name for file in path.parent.iterdir()] == ["table.tsv"]


def test_commas_separate_the_cells_of_a_csv(tmp_path):
    """Tabs stood in it, and spreadsheets showed one column."""
    for name, line in (("a.csv", 'a,"b, c"'), ("a.CSV", 'a,"b, c"'), ("a.tsv", "a\tb, c")):
        write_table(tmp_path / name, [["id", "note"], ["a", "b, c"]])
        assert (tmp_path / name).read_text().splitlines()[1] == line
        assert read_table(tmp_path / name) == [{"id": "a", "note": "b, c"}]


def test_a_cell_that_is_too_long_is_named_with_the_limit(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("id\tnote\na\t" + "x" * 140_000 + "\n")
    with pytest.raises(ValueError, match="row 2: cannot be read .*A cell may have at most 131072 characters. Is a quotation"):
        read_table(path)


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
        f"{cells} for 2 columns. Put one separator between two cells" for cells in ("1 cell", "3 cells")
    ]
    with pytest.raises(ValueError, match="(?s)row 2: 1 cell .*row 4: 3 cells"):
        read_table(path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("separator", ["\t", ",", ";", "   "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_the_same_cells_come_back_however_a_program_writes_them(tmp_path, encoding, separator, end):
    path = tmp_path / "table.txt"
    path.write_bytes(end.join([f"id{separator}größe", f"x{separator}4.5", ""]).encode(encoding))
    assert read_table(path) == [{"id": "x", "größe": "4.5"}]


def test_blanks_and_empty_cells_at_the_end_do_not_count(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("\n a \tB\t\t\n 1\t 2 \t\n\t\t\t\n3\t\n\n")
    assert read_numbered(path)[1] == {3: {"a": "1", "B": "2"}, 5: {"a": "3", "B": ""}}


def test_a_comma_in_the_name_of_a_column_separates_nothing(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("id;age, years;sex\nx;5;F\n")
    assert read_table(path) == [{"id": "x", "age, years": "5", "sex": "F"}]


def test_a_column_is_found_in_any_case(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text("PARTICIPANT_ID\tage_Years\n1\t2\n")
    assert read_table(path, ["participant_id", "Age_years"]) == [{"participant_id": "1", "Age_years": "2"}]


def test_quotes_belong_to_a_cell_only_where_no_spreadsheet_wrote_it(tmp_path):
    path = tmp_path / "table.tsv"
    path.write_text('a\tb\n"x, ""y"""\t5\'2"\n')
    assert read_table(path) == [{"a": 'x, "y"', "b": "5'2\""}]
    assert read_table(path, quotes=False) == [{"a": '"x, ""y"""', "b": "5'2\""}]


@pytest.mark.parametrize("cell", ['"1', '"1"x', '"1\nsub-2\t2"', "1" * 200_000], ids=["open", "behind", "rows", "huge"])
def test_a_row_that_cannot_be_read_is_named_and_hides_no_other(tmp_path, cell):
    path = tmp_path / "table.tsv"
    path.write_text(f"id\tvalue\nsub-0\nsub-1\t{cell}\nsub-3\t3\n")
    problems = read_numbered(path)[2]
    assert sum("row 2: 1 cell for 2 columns" in problem for problem in problems) == 1
    assert sum("row 3: cannot be read" in problem for problem in problems) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty"),
        ("a\tb\n", "only a header"),
        ("a\tb\n\t\n  \n", "only a header"),
        ("a\ta\n1\t2\n", "the column name 'a' appears twice"),
        ("Age\tage \n1\t2\n", "the column name 'Age' appears twice"),
        ("a\t\t\tb\n1\t2\t3\t4\n", "the column name '' appears twice"),
        ("a\tb\n1\t\0\n", "null characters"),
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
    path.parent.mkdir()
    path.symlink_to(".git/annex/objects/x.tsv")  # git-annex has not fetched it
    with pytest.raises(FileNotFoundError, match="table.tsv: is a link to .git/annex/objects/x.tsv, which does not exist"):
        read_table(path)


@pytest.mark.parametrize(
    "cell", [None, "", " ", "n/a", "N/A", "NA", "NaN", "nan", "None", "NULL", "#N/A", "<NA>", float("nan")]
)
def test_words_for_a_missing_value_are_known(cell):
    assert is_missing(cell)


@pytest.mark.parametrize("cell", [0, "0", "-", ".", "nano", "F"])
def test_other_cells_are_not_missing(cell):
    assert not is_missing(cell)


@pytest.mark.parametrize(
    ("cell", "value"), [("50", 50), (" 50.5 ", 50.5), ("+.5", 0.5), ("-5.", -5), ("1e-3", 0.001), (7, 7), (0.1, 0.1)]
)
def test_numbers_are_read(cell, value):
    assert read_number(cell) == value


@pytest.mark.parametrize(
    "cell",
    ["50,5", "89+", "5O", "1_000", "inf", "-Infinity", "1e400", "nan", "", "0x10", "١٢", "1 2", True, None, [1], 10**400],
)
def test_what_is_no_finite_number_is_refused(cell):
    with pytest.raises(ValueError, match="must be a number, decimals after a point, got"):
        read_number(cell)


def test_a_written_cell_comes_back_whatever_it_holds(path):
    write_table(path, [["file", "n"], ['a\tb "c"\nd', 3]])
    assert pd.read_csv(path, sep="\t").to_dict("records") == [{"file": 'a\tb "c"\nd', "n": 3}]


def test_whole_numbers_are_printed(capsys):
    print_table({"header": ["a", 2020], "rows": [[1, 2.5], [None, "x"]]})
    assert capsys.readouterr().out == "a     2020\n1     2.5\nNone  x\n\n"


def test_a_control_character_is_refused_with_its_row(tmp_path):
    """A terminal would obey it when a message prints the cell."""
    path = tmp_path / "t.tsv"
    path.write_text("participant_id\tage\nsub-1\t50\nsub-2\t5\x1b[2J\n")
    with pytest.raises(ValueError, match=r"t.tsv row 3: holds the control character '\\x1b'\. Remove it"):
        read_table(path)


def test_a_pointer_of_git_annex_is_named(tmp_path):
    """It was called a table with only a header."""
    (tmp_path / "participants.tsv").write_text("/annex/objects/MD5E-s1234--d41d8cd98f00b204e9800998ecf8427e.tsv\n")
    with pytest.raises(ValueError, match="only a pointer of git-annex, .* Fetch it: datalad get participants.tsv"):
        read_table(tmp_path / "participants.tsv")


def test_a_table_may_come_through_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=("a\tb\n1\t2\n",))
    writer.start()
    assert read_table(tmp_path / "pipe") == [{"a": "1", "b": "2"}]
    writer.join()


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (gzip.compress(b"id\tage\na\t7\n", mtime=0), "compressed with gzip. Unpack it: gunzip -k table.tsv"),
        (b"sep=;\r\nid;age\r\na;7\r\n", "begins with 'sep=;', which only Excel reads. Remove this row"),
        (b'"id"\t"age"\n"1"\t"a"\t7\n"2"\t"b"\t8\n', "each row has one cell more than the header, as R writes them"),
    ],
)
def test_tables_of_other_programs_are_refused_with_what_helps(tmp_path, content, advice):
    path = tmp_path / "table.tsv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"table.tsv: {advice}"):
        read_table(path)


def test_a_table_with_a_column_of_the_user_is_not_replaced(tmp_path):
    table, columns = tmp_path / "t.tsv", ["participant_id", "session_id", "age"]
    for text in ("", "participant_id\tage\n", "participant_id\tage\tsession_id\n1\t2\t3\n", "file\tqc\na\tb\n", "\0"):
        table.write_text(text)
        refuse_users_columns(table, columns)
    refuse_users_columns(tmp_path / "new.tsv", columns)
    table.write_text("participant_id\tage\tqc\n1\t2\tgood\n")
    with pytest.raises(ValueError, match="t.tsv: this output has the column 'qc', which would be lost"):
        refuse_users_columns(table, columns)
