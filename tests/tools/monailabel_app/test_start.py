"""A server does not start with wrong weights, and one command starts one for the demo."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import nibabel as nib
import pytest
import tiny_spade
from conftest import ROOT
from label_server import NEEDS_LABEL, free_port, infer, serving, start, train, write_app
from tiny_bundles import LDM, SPADE, copy_bundle

pytestmark = NEEDS_LABEL


@pytest.mark.parametrize("fault", ["missing", "wrong", "no model.pt"])
def test_our_app_does_not_start_with_weights_that_are_missing_or_wrong(tmp_path, fault):
    """The sample app starts, and leaves the bundle out or answers with random weights."""
    app, studies = write_app(tmp_path / "app", own=True), tmp_path / "studies"
    models = app / "model" / LDM / "models"
    if fault == "missing":
        (models / "autoencoder.pt").unlink()
        message = rf"{LDM} cannot be served: .*autoencoder\.pt: no such weights file. Make it with: python -m monai.bundle run"
    elif fault == "wrong":
        shutil.copy(models / "autoencoder.pt", models / "model.pt")
        message = rf"{LDM} cannot be served: .*model\.pt.* do not fit a DiffusionUNet"
    else:
        (models / "model.pt").unlink()
        message = rf"{LDM} cannot be served: .*model\.pt: no such weights file\. Make it with: python -m monai.bundle run"
    with open(tmp_path / "log", "w") as log:
        process = start(app, studies, free_port(), log)
        try:
            assert process.wait(300) != 0
        finally:
            process.kill()
    assert re.search(f"^error: {SPADE},{message}", (tmp_path / "log").read_text().splitlines()[-1])


def test_one_command_serves_what_the_demo_made(tmp_path):
    """From copies: what a client stores or trains does not reach the demo's own files."""
    demo = tmp_path / "demo"
    tiny_spade.write_dataset(demo / "data")
    (demo / "spade").mkdir()
    for name, folder in ((LDM, demo), (SPADE, demo / "spade")):
        shutil.move(copy_bundle(name, tmp_path / name) / "models", folder / "models")
    before = {path: path.stat().st_mtime_ns for path in demo.rglob("*") if path.is_file()}

    def begin(port, log):
        command = ["bash", str(ROOT / "scripts" / "start_monailabel.sh"), "--demo", str(demo), "--port", str(port)]
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=subprocess.STDOUT)

    with serving(begin, tmp_path / "log") as client:
        assert client.info()["datastore"] == {"total": 12, "completed": 6, "label_tags": {"final": 6}}
        made, _ = infer(client, SPADE, "sub-03_dseg")
        for path in ("datastore/image?image=x", f"model/{SPADE}"):  # what could write files
            headers = {"Origin": "http://evil.example", "Access-Control-Request-Method": "PUT"}
            preflight = urllib.request.Request(f"{client.get_server_url()}/{path}", headers=headers, method="OPTIONS")
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(preflight)
            assert caught.value.code == 400 and "Access-Control-Allow-Origin" not in caught.value.headers
        evil = urllib.request.Request(f"{client.get_server_url()}/info/", headers={"Origin": "http://evil.example"})
        assert "Access-Control-Allow-Origin" not in urllib.request.urlopen(evil).headers  # may ask, but not read the answer
        assert train(client, run_id="unknown")[0] == "ERROR"
        log = (tmp_path / "log").read_text()  # the origins once stopped each training before its request was read
        assert "Train Request" in log and "AnyHttpUrl" not in log
        client.save_label("sub-03_T1w", str(demo / "data" / "participants.tsv"), "final")
        assert f"127.0.0.1:{client.get_server_url().rpartition(':')[2]}/infer/{SPADE}?image=" in (tmp_path / "log").read_text()
    assert made.shape == nib.load(next(demo.glob("data/derivatives/*/sub-03/anat/*_dseg.nii.gz"))).shape
    assert {path: path.stat().st_mtime_ns for path in before} == before
    config = json.loads((demo / "label" / "app" / "model" / SPADE / "configs" / "train.json").read_text())
    assert config["label_table"] == "demo" and config["spacing_mm"] == 4

    # Weights that the demo made since are served, those that were trained by the server are kept.
    served = demo / "label" / "app" / "model"
    for folder, change in ((served / SPADE / "models", "trained by the server"), (demo / "models", "made since")):
        newest = time.time() + 10
        (folder / "model.pt").write_text(change)
        os.utime(folder / "model.pt", (newest, newest))
    with open(tmp_path / "log", "w") as log:
        process = begin(free_port(), log)
        try:
            assert process.wait(300) != 0  # neither is a file of weights
        finally:
            process.kill()
    assert (served / LDM / "models" / "model.pt").read_text() == "made since"
    assert (served / SPADE / "models" / "model.pt").read_text() == "trained by the server"


def test_the_command_says_that_the_demo_comes_first(tmp_path):
    command = ["bash", str(ROOT / "scripts" / "start_monailabel.sh"), "--demo", str(tmp_path)]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1 and "participants.tsv: no such file. Run first: bash scripts/demo.sh" in process.stderr
