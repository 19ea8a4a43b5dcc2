"""The page shows the sections of evaluations, and refuses those that it cannot show."""

import pytest
from report_page.read_sections import OTHERS
from shared.sections import table_sha256
from tiny_report import (
    cells,
    page_of,
    requested_cohort,
    write_section,
)


@pytest.fixture
def generated(tmp_path):
    return requested_cohort(tmp_path / "generated")


def test_requested_against_measured_is_shown_once(generated, tmp_path):
    """The page had the rows of Figure 3 twice, the second time without the rows of the tool on scans."""
    write_section(tmp_path / "evaluation", "conditioning")
    page = page_of(generated, "--evaluation", tmp_path / "evaluation")
    assert "Do they show what was requested?" not in page and "How well does the measuring tool" in page


def test_sections_stand_in_the_order_of_their_paths_with_their_tables_and_figures(generated, tmp_path):
    write_section(tmp_path / "evaluation" / "b", "second", title="B")
    write_section(tmp_path / "evaluation" / "a", "first")
    page = page_of(generated, "--evaluation", tmp_path / "evaluation", tmp_path / "evaluation" / "b")
    assert page.index("<h2>Table &lt;1&gt;</h2>") < page.index("<h2>B</h2>") and page.count("<h2>B</h2>") == 1
    assert "Do they show what was requested?" in page  # there is no section of the conditioning
    assert "<p>One.</p>" in page and "<p>Two &lt;b&gt;.</p></details>" in page
    assert cells(page, "real &amp; real") == ["0.1"]
    assert "<figcaption>A &lt;plot&gt;</figcaption>" in page


def test_a_section_about_other_volumes_is_named(generated, tmp_path, capsys):
    """The numbers of another folder stood under the page's volumes."""
    own = write_section(tmp_path / "own", volumes=["0" * 64, table_sha256(generated[0])])
    other = write_section(tmp_path / "other", "conditioning", verdict="They follow.", volumes=["0" * 64])
    page = page_of(generated, "--evaluation", own)
    assert OTHERS not in page and not capsys.readouterr().err
    page = page_of(generated, "--evaluation", own, other)
    assert f"{OTHERS} They follow." in page and "conditioning.section.json: This describes other" in capsys.readouterr().err


def test_numbers_in_the_tables_of_a_section_are_shown(generated, tmp_path):
    """A whole number ended the command."""
    table = {"header": ["year", 2020], "rows": [["n", 12], ["mean", 0.5], ["p", None]]}
    page = page_of(generated, "--evaluation", write_section(tmp_path / "evaluation", tables=[table]))
    assert ">2020</th>" in page and [cells(page, name) for name in ("n", "mean", "p")] == [["12"], ["0.5"], ["n/a"]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tables": [{"header": ["a"], "rows": ["x"]}]}, "a.section.json: the row x of a table must be a list of texts and"),
        ({"tables": [{"header": ["a"], "rows": [[["x"]]]}]}, "the row .* of a table must be a list of texts and numbers"),
        ({"tables": [{"header": ["a", "b"], "rows": [["1"]]}]}, r"a.section.json: the row \['1'\] has 1 cells, its header 2"),
        ({"figures": [{"file": "absent.png"}]}, "a.section.json: its figure absent.png is not in the same folder"),
        ({"figures": [{"file": "../secret.png"}]}, "a figure must be in the folder of its section"),
        ({"figures": [{"file": "a.section.json"}]}, "its figure a.section.json is not a PNG file"),
        ({"title": None}, "a section needs a title and a text"),
        ({"verdict": 1}, "its verdict must be a text"),
        ({"tables": [{"head": ["a"], "rows": []}]}, "a table needs header and rows, and a figure needs a file"),
        ({"figures": [{}]}, "a table needs header and rows, and a figure needs a file"),
    ],
)
def test_a_section_that_cannot_be_shown_is_named_and_no_page_is_written(generated, tmp_path, changes, message):
    evaluation = write_section(tmp_path / "evaluation", **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        page_of(generated, "--evaluation", evaluation)
    assert not list(tmp_path.glob("*report*"))


def test_a_folder_without_an_evaluation_is_named(generated, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match="absent: no such folder"):
        page_of(generated, "--evaluation", tmp_path / "absent")
    with pytest.raises((ValueError, FileNotFoundError), match=r"generated: no \*.section.json below it"):
        page_of(generated, "--evaluation", generated[0])
