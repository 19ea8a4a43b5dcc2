"""Every tool refuses an output that it cannot write before it looks at its inputs, in one line and with exit status 1."""

import importlib
import sys

import pytest

TOOLS = {  # arguments, with OUTPUT in place of the output
    "measure_volumes": "gone.nii.gz --output OUTPUT",
    "read_volumes": "gone.csv --output OUTPUT",
    "make_requests": "gone.tsv OUTPUT",
    "report": "gone --output OUTPUT.html",
    "conditioning": "gone --measured gone.tsv --output OUTPUT",
    "reader_study make": "--real gone --synthetic gone --output OUTPUT",
    "reader_study rate": "gone.html --output OUTPUT",
    "reader_study score": "key.tsv gone.tsv --output OUTPUT",
    "train_volume_net": "--labels gone --steps 1 --output OUTPUT",
    "make_demo_data": "OUTPUT --subjects 1",
    "prepare_data": "SCAN OUTPUT",
    "segment_t1w": "SCAN OUTPUT",
    "make_labelled_heads": "gone.tsv OUTPUT",
    "counterfactuals": "gone OUTPUT",
}


def run(tool, arguments, monkeypatch, capsys):
    """Return the exit status and the last line on the screen."""
    name, *command = tool.split()
    monkeypatch.setattr(sys, "argv", [f"scripts/{name}.py", *command, *arguments])
    module = importlib.import_module(name)
    with pytest.raises((SystemExit, ValueError, OSError)) as ended:
        module.main()
    code = ended.value.code if isinstance(ended.value, SystemExit) else f"error: {ended.value}"  # as the file's end does
    return code, (capsys.readouterr().err if isinstance(code, int) else code).splitlines()[-1]


@pytest.mark.parametrize("tool", TOOLS)
def test_an_output_inside_a_file_is_named(tool, tmp_path, monkeypatch, capsys):
    (tmp_path / "notes").write_text("mine")
    output = tmp_path / "notes" / "out"
    words = {"OUTPUT": str(output), "OUTPUT.html": f"{output}.html", "SCAN": __file__}
    code, line = run(tool, [words.get(word, word) for word in TOOLS[tool].split()], monkeypatch, capsys)
    assert code != 0 and "error: " in line and f"while writing {output}" in line, line
    assert (tmp_path / "notes").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("tool", ["measure_volumes", "read_volumes", "make_requests", "report", "train_volume_net"])
def test_an_output_that_is_a_folder_is_named(tool, tmp_path, monkeypatch, capsys):
    output = tmp_path / "out.html"
    output.mkdir()
    words = [str(output) if word.startswith("OUTPUT") else word for word in TOOLS[tool].split()]
    code, line = run(tool, words, monkeypatch, capsys)
    assert code != 0 and f"A folder has this name while writing {output}" in line, line


@pytest.mark.parametrize("tool", ["measure_volumes", "read_volumes", "make_requests"])
def test_an_output_that_is_an_input_is_refused(tool, tmp_path, monkeypatch, capsys):
    table = tmp_path / "volumes.tsv"
    table.write_text("participant_id\tage\nsub-01\t60\n")
    words = [str(table) if "gone" in word or word == "OUTPUT" else word for word in TOOLS[tool].split()]
    code, line = run(tool, words, monkeypatch, capsys)
    assert code != 0 and f"{table}: this output is also an input" in line
    assert table.read_text().endswith("60\n")
