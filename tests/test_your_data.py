"""Each command of the page about one's own data runs, from raw real scans to a neighbour and an edit."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

PAGE = ROOT / "brain_ldm_bundle" / "docs" / "your_data.md"
REAL = Path(os.environ.get("REAL_SCANS", ROOT.parent / "shared" / "real"))
SCANS = ("studyforrest_t1", "t1_crop", "seg3d_MR", "ch2")  # sub-01 to sub-04 of the page


def steps(folder):
    """The blocks of bash and Python of the page, in their order, with /data in `folder`."""
    blocks = re.findall(r"^```(bash|python)\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    return [(language, block.replace("/data/", f"{folder}/")) for language, block in blocks]


@pytest.mark.parametrize("block", [block for language, block in steps("/data") if language == "python"])
def test_python_of_the_page_is_valid(block):
    compile(block, PAGE, "exec")


@pytest.mark.slow
def test_a_real_scan_is_followed_to_a_neighbour_and_an_edit(tmp_path):
    missing = [REAL / f"{name}.nii.gz" for name in SCANS if not (REAL / f"{name}.nii.gz").is_file()]
    if missing:
        pytest.skip(f"{missing[0]} is not here (REAL_SCANS)")
    rows = ["participant_id\tage\tsex\tsplit"]
    for number, name in enumerate(SCANS, start=1):
        folder = tmp_path / "raw_study" / f"sub-0{number}" / "anat"
        folder.mkdir(parents=True)
        shutil.copyfile(REAL / f"{name}.nii.gz", folder / f"sub-0{number}_T1w.nii.gz")
        rows.append(f"sub-0{number}\tn/a\tn/a\t{'validation' if number == len(SCANS) else 'train'}")
    (tmp_path / "raw_study" / "participants.tsv").write_text("\n".join(rows) + "\n")

    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "MPLBACKEND": "agg"}
    output = []
    for language, block in steps(tmp_path):
        words = ["bash", "-ec", block] if language == "bash" else [sys.executable, "-c", block]
        process = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        output.append(process.stdout + process.stderr)
        assert process.returncode == 0, f"{block}\n{output[-1][-4000:]}"
    print("\n".join(output))

    volumes = pd.read_csv(tmp_path / "volumes.tsv", sep="\t").set_index("participant_id")
    assert volumes.loc["sub-01", "ventricles_ml"] == pytest.approx(28.2, abs=1)  # the request of the page
    assert volumes.loc["sub-01", "brain_normalised_ml"] == pytest.approx(1419, abs=20)
    assert (tmp_path / "study" / "registration.png").is_file() and (tmp_path / "comparison.png").is_file()
    before, *best = map(float, re.findall(r"val_ssim (?:before training|so far), ([\d.]+)", output[3]))
    assert max(best, default=before) >= before
    table = {name: [float(r) for r in rest] for name, *rest in map(str.split, output[-1].splitlines()) if len(rest) == 4}
    assert table["edited"][0] == max(table["edited"]) > table["neighbour"][0]
