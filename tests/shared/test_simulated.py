"""Simulated scans are known by their sidecar or by the description of their data set."""

import json

import pytest

from brain_ldm_bundle.scripts.shared.simulated import NOTE, is_simulated, note_on


@pytest.mark.parametrize(
    ("description", "sidecar", "simulated"),
    [
        ({"Simulated": True}, None, True),
        ({"DemoSettings": {}}, None, True),  # made before there was the entry
        ({"Simulated": True}, {"Modality": "MR"}, True),
        ({"Name": "a study"}, {"Simulated": True}, True),
        ({"Simulated": True}, {"Simulated": False}, False),
        ({"Name": "a study"}, None, False),
        (None, {"Modality": "MR"}, False),
        ([], None, False),
    ],
)
def test_sidecar_and_description_say_whether_a_scan_is_simulated(tmp_path, description, sidecar, simulated):
    scan = tmp_path / "sub-1" / "anat" / "sub-1_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    for path, content in (
        (tmp_path / "dataset_description.json", description),
        (scan.with_name("sub-1_T1w.json"), sidecar),
    ):
        if content is not None:
            path.write_text(json.dumps(content))
    assert is_simulated(scan) is simulated
    assert note_on([tmp_path.parent, scan]) == (NOTE if simulated else "")


def test_the_nearest_description_counts(tmp_path):
    (tmp_path / "dataset_description.json").write_text('{"Simulated": true}')
    study = tmp_path / "derivatives" / "study"
    study.mkdir(parents=True)
    assert is_simulated(study)
    (study / "dataset_description.json").write_text('{"Name": "scans of people"}')
    assert not is_simulated(study) and is_simulated(tmp_path)
