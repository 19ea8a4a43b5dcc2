"""A section of conditioning.py says in its text and in its figures whether its scans are simulated."""

import json

import pytest
from conditioning_parts.report_section import ReportSection
from matplotlib.figure import Figure
from shared.simulated import NOTE


@pytest.mark.parametrize("simulated", [True, False])
def test_text_and_figures_say_whether_the_scans_are_simulated(tmp_path, simulated):
    (tmp_path / "dataset_description.json").write_text(json.dumps({"Simulated": simulated}))
    figure = Figure()
    figure.supxlabel("Generated and scans.")
    ReportSection("volumes", "Volumes", "Text.", [], {"a.png": (figure, "caption")}, scans=[tmp_path]).write(tmp_path)
    section = json.loads((tmp_path / "volumes.section.json").read_text())
    assert section["text"] == ("Text.\n\n" + NOTE if simulated else "Text.")
    assert figure.get_supxlabel() == ("Generated and scans. " + NOTE if simulated else "Generated and scans.")
