import hashlib
import json

import pytest

from brain_ldm_bundle.scripts.shared.sections import drop_sections, write_section


def test_a_section_keeps_its_tables_and_figures(tmp_path):
    (tmp_path / "plot.png").write_bytes(b"png")
    (tmp_path / "participants.tsv").write_bytes(b"abc")
    tables = [{"header": ["", "FID"], "rows": [["real", "0.1"]]}]
    write_section(
        tmp_path / "a.section.json",
        "Title",
        "One.\n\nTwo.",
        tables,
        [{"file": "plot.png", "caption": "A plot"}],
        verdict="Good.",
        volumes=[tmp_path, tmp_path / "without_a_table"],
    )
    assert json.loads((tmp_path / "a.section.json").read_text()) == {
        "title": "Title",
        "verdict": "Good.",
        "text": "One.\n\nTwo.",
        "tables": tables,
        "figures": [{"file": "plot.png", "caption": "A plot"}],
        "volumes": [hashlib.sha256(b"abc").hexdigest()],
    }


@pytest.mark.parametrize(
    ("name", "tables", "figures", "message"),
    [
        ("a.json", [], [], "a.json"),
        ("a.section.json", [{"header": ["", "FID"], "rows": [["real"]]}], [], "FID.*real"),
        ("a.section.json", [], [{"file": "absent.png", "caption": ""}], "absent.png"),
    ],
)
def test_what_a_page_could_not_show_is_refused(tmp_path, name, tables, figures, message):
    with pytest.raises(AssertionError, match=message):
        write_section(tmp_path / name, "Title", "Text", tables, figures)
    assert not list(tmp_path.iterdir())


def test_sections_are_dropped_by_name_and_others_stay(tmp_path):
    for name in ("samples", "memorisation"):
        write_section(tmp_path / f"{name}.section.json", "Title", "Text")
    drop_sections(tmp_path, "samples", "reconstruction")
    assert [path.name for path in tmp_path.iterdir()] == ["memorisation.section.json"]


def test_an_evaluation_that_could_not_write_its_result_is_refused_before_it_starts(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="Not a directory while writing .*file/out/samples.section.json"):
        drop_sections(tmp_path / "file" / "out", "samples")
