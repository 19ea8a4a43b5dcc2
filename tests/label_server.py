"""A real MONAI Label server with tiny weights of both bundles, and requests to it.

The tests are slow and need MONAI Label, best in a separate environment (see requirements-monailabel.txt).
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny
import tiny_spade
from conftest import ROOT
from tiny_bundles import LDM, SPADE, copy_bundle

NEEDS_LABEL = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("monailabel") is None,
        reason="MONAI Label is not installed: pip install --no-deps -r requirements-monailabel.txt, in another environment",
    ),
]
OWN_APP = ROOT / "scripts" / "monailabel_app"
SAMPLE_APP = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
# Asked once, because a test of the app puts the stub on the path of this process.
STUB = str(OWN_APP / "stub") if importlib.util.find_spec("torchvision") is None else ""
COVARIATES = {"age": 70, "sex": "M", "ventricles_ml": 90, "brain_normalised_ml": 1500}


def reoriented(nifti, axcodes):
    wanted = nib.orientations.axcodes2ornt(axcodes)
    image = nifti.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(nifti.affine), wanted))
    image.set_sform(image.affine, code="mni")
    return image


def write_studies(folder):
    """As MONAI Label wants them, in one folder: T1w with final labels to train from, label maps and a head to infer from."""
    (folder / "labels" / "final").mkdir(parents=True)
    cohort = tiny_spade.write_dataset(folder.parent / "cohort")
    for image in sorted(cohort.glob("sub-*/anat/*_T1w.nii.gz")):
        shutil.copy(image, folder)
        label = next(cohort.glob(f"derivatives/*/*/anat/{image.name.replace('T1w', 'dseg')}"))
        shutil.copy(label, folder / "labels" / "final" / image.name)
    label = next(cohort.glob("derivatives/*/sub-02/anat/sub-02_dseg.nii.gz"))
    for axcodes in ("LAS", "PIR"):
        nib.save(reoriented(nib.load(label), axcodes), folder / f"map{axcodes}.nii.gz")
    unknown = np.asarray(nib.load(label).dataobj).copy()
    unknown[20:23, 20:24, 20:25] = 77
    nib.save(nib.Nifti1Image(unknown, nib.load(label).affine), folder / "unknown.nii.gz")
    head = next(tiny.write_dataset(folder.parent / "heads", 1, 0).rglob("*_T1w.nii.gz"))
    nib.save(reoriented(nib.load(head), "PIR"), folder / "head.nii.gz")
    return folder


def write_app(folder, own):
    """The sample app or our own, with copies of both bundles that hold tiny weights, and train at that size."""
    folder.mkdir()
    if own:
        shutil.copy(OWN_APP / "main.py", folder)
    else:
        shutil.copytree(SAMPLE_APP, folder, dirs_exist_ok=True)
    (folder / "model").mkdir()
    for name in (LDM, SPADE):
        copy_bundle(name, folder / "model")
    config = folder / "model" / SPADE / "configs" / "train.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | tiny_spade.SETTINGS))
    config = folder / "model" / LDM / "configs" / "inference.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"steps": 4}))
    return folder


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start(app, studies, port, log):
    """The server on 127.0.0.1."""
    conf = [
        word
        for pair in (("models", f"{SPADE},{LDM}"), ("zoo_source", "local"), ("sam2", "false"))
        for word in ("--conf", *pair)
    ]
    environment = os.environ | {"PYTHONPATH": STUB, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", app, "--studies", studies]
    command += ["--host", "127.0.0.1", "--port", port, *conf]
    return subprocess.Popen(list(map(str, command)), cwd=app, env=environment, stdout=log, stderr=subprocess.STDOUT)


@contextmanager
def serving(begin, log):
    """A client of the server that `begin(port, log)` starts."""
    from monailabel.client import MONAILabelClient

    port = free_port()
    with open(log, "w") as file:
        process = begin(port, file)
        try:
            deadline = time.monotonic() + 300
            while True:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/info/", timeout=60).read()
                    break
                except (urllib.error.URLError, ConnectionError):
                    time.sleep(0.5)
            client = MONAILabelClient(f"http://127.0.0.1:{port}", tmpdir=str(log.parent))
            client.log = log
            yield client
            assert process.poll() is None, "a request stopped the server"
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def infer(client, model, image, **params):
    """The answer of the server as NIfTI, in memory, and its JSON."""
    path, result = client.infer(model, image, params)
    nifti = nib.load(path)
    nifti = nib.Nifti1Image(np.asarray(nifti.dataobj), nifti.affine, nifti.header)
    os.remove(path)
    return nifti, result


def refusal(client, model, name, /, **params):
    """Status and text of a request that fails."""
    data = f"params={urllib.request.quote(json.dumps(params))}".encode()
    return _refusal(urllib.request.Request(f"{client.get_server_url()}/infer/{model}?image={name}&output=image", data))


def refused_training(client, **params):
    """Status and text of a request of training that fails."""
    url, kind = f"{client.get_server_url()}/train/{SPADE}", {"Content-Type": "application/json"}
    return _refusal(urllib.request.Request(url, json.dumps(params).encode(), kind))


def _refusal(request):
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    return caught.value.code, caught.value.read().decode()


def train(client, **params):
    """Status of a training of the SPADE bundle, and its last lines, when it has ended."""
    client.train_start(SPADE, {"val_split": 0.2, **params})
    while (task := client.train_status())["status"] in ("SUBMITTED", "RUNNING"):
        time.sleep(0.5)
    return task["status"], "\n".join(task["details"])
