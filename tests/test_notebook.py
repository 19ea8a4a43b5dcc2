"""The notebook, and the Python of the README, run from the weights that come with the project."""

import json
import os
import re
import subprocess
import sys

import nibabel as nib
import pytest
from conftest import ROOT

NOTEBOOK = ROOT / "brain_ldm_bundle" / "docs" / "first_volumes.ipynb"


def run(source, folder):
    """Run lines of Python in a process of their own; return what the process wrote."""
    environment = os.environ | {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", source], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture
def project(tmp_path):
    """A folder with the bundle, as a fresh clone has it."""
    (tmp_path / "brain_ldm_bundle").symlink_to(ROOT / "brain_ldm_bundle")
    return tmp_path


def cells(kind):
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_is_stored_without_results():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in notebook["cells"] if "outputs" in cell)


def test_the_links_of_the_notebook_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)", "\n".join(cells("markdown")))
    assert links and [link for link in links if not (NOTEBOOK.parent / link).exists()] == []


@pytest.mark.slow
def test_the_notebook_runs_from_the_shipped_weights_and_ventricles_follow_the_request(project):
    told = run("\n".join([*cells("code"), "print(json.dumps(measured['dark_ml'].tolist()))"]), project)
    dark = json.loads(told.splitlines()[-1])
    assert len(dark) == 4 and dark[0] < dark[1] < dark[2] < dark[3]
    assert (project / "first_volumes" / "heads" / "participants.tsv").is_file()


@pytest.mark.slow
def test_the_python_of_the_readme_gives_a_volume_as_an_array(project):
    [source] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    told = run(f"{source}\nimport json\nprint(json.dumps([volume.shape, volume.min(), volume.max()]))", project)
    shape, low, high = json.loads(told.splitlines()[-1])
    assert shape == [40, 56, 40] and 0 <= low < high <= 1
    assert nib.load(next(project.glob("first_volume/sub-*/anat/*_T1w.nii.gz"))).shape == (40, 56, 40)
