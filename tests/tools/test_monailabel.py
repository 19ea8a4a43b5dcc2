"""The real MONAI Label server serves both bundles to its real client, with the sample app `monaibundle` and with our own app.

The tests are slow and need MONAI Label, best in a separate environment (see requirements-monailabel.txt).
"""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny
import tiny_spade
from conftest import ROOT
from monai.bundle import run
from tiny_bundles import LDM, SPADE, copy_bundle

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("monailabel") is None,
        reason="MONAI Label is not installed: pip install --no-deps -r requirements-monailabel.txt, in another environment",
    ),
]

OWN_APP = ROOT / "scripts" / "monailabel_app"
SAMPLE_APP = Path(sys.prefix) / "monailabel" / "sample-apps" / "monaibundle"
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
    path = [str(OWN_APP / "stub")] if importlib.util.find_spec("torchvision") is None else []
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "CUDA_VISIBLE_DEVICES": ""}
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


@pytest.fixture(scope="module", params=["sample app", "own app"])
def client(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("label")
    own = request.param == "own app"
    app, studies = write_app(folder / "app", own), write_studies(folder / "studies")
    with serving(partial(start, app, studies), folder / "log") as client:
        client.own, client.bundles, client.studies = own, app / "model", studies
        yield client


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
    request = urllib.request.Request(f"{client.get_server_url()}/infer/{model}?image={name}&output=image", data)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request)
    return caught.value.code, caught.value.read().decode()


def test_both_bundles_are_served(client):
    info = client.info()
    assert info["models"].keys() == {SPADE, LDM}
    assert info["models"][LDM]["config"].items() >= {"age": 65, "sex": "F", "strength": 0.6, "seed": 0}.items()
    assert info["datastore"] == {"total": 10, "completed": 6, "label_tags": {"final": 6}}
    if client.own:
        assert {model["type"] for model in info["models"].values()} == {"others"}
        assert list(info["trainers"]) == [SPADE]
    else:
        assert SPADE in info["trainers"]


@pytest.mark.parametrize("axcodes", ["LAS", "PIR"])
def test_a_label_map_becomes_a_t1w_on_its_own_grid(client, axcodes, spade_bundle, tmp_path):
    """The values equal the output of the bundle on the command line."""
    given = client.studies / f"map{axcodes}.nii.gz"
    made, result = infer(client, SPADE, f"map{axcodes}")
    assert made.shape == nib.load(given).shape and made.get_data_dtype() == np.float32
    assert "".join(nib.aff2axcodes(made.affine)) == axcodes
    np.testing.assert_allclose(made.affine, nib.load(given).affine, atol=1e-4)
    models = str(client.bundles / SPADE / "models")
    settings = {"models_dir": models, "output_dir": str(tmp_path / "out"), "use_device": "cpu", "output_dtype": "float32"}
    run(config_file="configs/inference.json", label_maps=str(given), **settings)
    expected = nib.load(next((tmp_path / "out").rglob("*_T1w.nii.gz"))).get_fdata()
    np.testing.assert_allclose(made.get_fdata(), expected, atol=1e-4)
    assert expected.std() > 0.01 and len(np.unique(made.get_fdata())) > 300
    if client.own:
        assert result["notice"].startswith("Synthetic image")
        assert made.header["descrip"].item().decode() == "Synthetic, not for clinical use"


def test_the_order_of_the_axes_does_not_change_the_image(client):
    images = [nib.as_closest_canonical(infer(client, SPADE, f"map{axcodes}")[0]) for axcodes in ("LAS", "PIR")]
    np.testing.assert_allclose(images[0].get_fdata(), images[1].get_fdata(), atol=1e-5)


def test_a_file_may_come_with_the_request(client):
    path, _ = client.infer(SPADE, "", {}, file=str(client.studies / "mapLAS.nii.gz"))
    np.testing.assert_array_equal(nib.load(path).get_fdata(), infer(client, SPADE, "mapLAS")[0].get_fdata())
    os.remove(path)


@pytest.mark.parametrize(
    "params",
    [
        {"result_extension": ".nrrd"},
        {"result_dtype": "uint8"},  # of 0 to 1 only 0 and 1 would be left
        {"result_write_to_file": False},
        {"skip_writer": True},
        {"save_label": True, "label_tag": "../../written"},
    ],
)
def test_no_request_takes_the_values_or_the_mark_from_an_answer_of_our_app(client, params):
    if not client.own:
        pytest.skip("the sample app does what the request says")
    expected, _ = infer(client, SPADE, "mapLAS")
    made, result = infer(client, SPADE, "mapLAS", **params)
    np.testing.assert_array_equal(made.get_fdata(), expected.get_fdata())
    assert made.get_data_dtype() == np.float32 and result["notice"].startswith("Synthetic image")
    assert made.header["descrip"].item().decode() == "Synthetic, not for clinical use"
    assert not list(client.studies.parent.rglob("written"))


def test_a_head_is_edited_toward_the_requested_covariates(client, bundle, tmp_path):
    """The volume equals the output of the run id `editing`, lies on the head's own grid, and is reproducible."""
    request = COVARIATES | {"strength": 0.5, "seed": 3}
    made, _ = infer(client, LDM, "head", **request)
    given = client.studies / "head.nii.gz"
    assert made.shape == nib.load(given).shape and "".join(nib.aff2axcodes(made.affine)) == "PIR"
    np.testing.assert_allclose(made.affine, nib.load(given).affine, atol=1e-4)
    models = str(client.bundles / LDM / "models")
    settings = {"models_dir": models, "output_dir": str(tmp_path / "out"), "use_device": "cpu", "output_dtype": "float32"}
    run(
        "editing",
        config_file="configs/inference.json",
        image=str(given),
        request=COVARIATES,
        strength=0.5,
        seed=3,
        steps=4,
        **settings,
    )
    expected = nib.load(next((tmp_path / "out").rglob("*_T1w.nii.gz"))).get_fdata()
    np.testing.assert_allclose(made.get_fdata(), expected, atol=1e-4)
    assert expected.std() > 0.01

    def values(**changes):
        return infer(client, LDM, "head", **{**request, **changes})[0].get_fdata()

    np.testing.assert_array_equal(values(), made.get_fdata())
    np.testing.assert_array_equal(values(ventricles_ml="90"), made.get_fdata())  # as a form sends it
    for changes in ({"seed": 4}, {"sex": "F"}, {"strength": 1}):
        assert np.abs(values(**changes) - made.get_fdata()).max() > 1e-4, changes
    np.testing.assert_array_equal(values(strength=0), values(strength=0, seed=4, sex="F"))


@pytest.mark.parametrize(
    ("model", "image", "params", "sentence"),
    [
        ("spade_bundle", "mapLAS", {}, "[Tt]here is no model 'spade_bundle'"),
        (LDM, "nobody", COVARIATES, "the datastore has no image 'nobody'"),
        (LDM, "", COVARIATES, "Neither Image nor File|the request has no image"),
        (LDM, "head", COVARIATES | {"age": "old"}, "age in years must be a number.*got 'old'"),
        (LDM, "head", COVARIATES | {"sex": "W"}, "sex must be 'F' or 'M', got 'W'"),
        (LDM, "head", COVARIATES | {"strength": 2}, "strength must be a number from 0 .* got 2"),
        (LDM, "head", COVARIATES | {"age": None}, "age is missing"),
        (LDM, "head", COVARIATES | {"model_filename": "autoencoder.pt"}, "Missing key|does not hold the weights of model.pt"),
        (SPADE, "unknown", {}, r"label values 77 \(60 voxels\) are not in the label table 'demo'"),
    ],
)
def test_a_bad_request_is_an_error_and_the_server_continues(client, model, image, params, sentence):
    """With our app as a sentence; the sample app says "Internal Server Error" for most, and the sentence in its log."""
    before = client.log.stat().st_size
    status, text = refusal(client, model, image, **params)
    assert 400 <= status <= 500
    if client.own:
        assert status in (400, 404) and re.search(sentence, json.loads(text)["detail"]), text
        log = client.log.read_text()[before:]
        assert re.search(sentence, "".join(log.splitlines()[-2:])) and "Traceback" not in log, log  # the server adds a line
    elif image == "nobody":
        assert status == 500
    else:
        deadline = time.monotonic() + 30  # the log comes after the answer
        while not re.search(sentence, text + client.log.read_text()[before:]):
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
    assert infer(client, LDM, "head", **COVARIATES, strength=0)[0].shape


@pytest.mark.parametrize(
    ("model", "image", "params", "sentence"),
    [
        (LDM, "head", {"ventricle_ml": 90}, "has no setting 'ventricle_ml'. Did you mean 'ventricles_ml'"),
        (LDM, "head", {"AGE": 70}, "has no setting 'AGE'. Did you mean 'age'"),
        (LDM, "head", {"icv": 1400}, "has no setting 'icv'. Its settings are: age, sex, ventricles_ml"),
        (SPADE, "mapLAS", {"age": 70}, "spade_fusion_bundle has no setting 'age'"),
        (LDM, "head", {"age": [70]}, r"age must be a number or a plain word, got \[70\]"),
        (LDM, "head", {"age": True}, "age in years must be a number.*got True"),
        (LDM, "head", {"age": 700}, "age"),
        (LDM, "head", {"age": float("nan")}, "age .*nan"),
        (LDM, "head", {"seed": 1.5}, "seed must be a whole number from 0 .*got 1.5"),
        (LDM, "head", {"strength": None}, "strength must be a number from 0 .*got None"),
        (SPADE, "mapLAS", {"device": 5}, "device must be cuda or .*got 5"),
        (SPADE, "mapLAS", {"device": "gpu"}, "device must be cuda or .*got 'gpu'"),
        (SPADE, "mapLAS", {"model_filename": "../model.pt"}, r"model_filename must be .*got '\.\./model\.pt'"),
        (SPADE, "mapLAS", {"save_label": "perhaps"}, "save_label must be True or False, got 'perhaps'"),
        (SPADE, "mapLAS", {"image": {"a": 1}}, "image must be a number or a plain word"),
        (SPADE, "mapLAS", {"image": "/tmp"}, "/tmp"),
    ],
)
def test_our_app_ignores_no_misspelt_setting_and_no_wrong_value(client, model, image, params, sentence):
    """With a misspelt covariate, the answer was a head for the default; a wrong type was status 500."""
    if not client.own:
        pytest.skip("the sample app ignores what it does not know")
    before = client.log.stat().st_size
    status, text = refusal(client, model, image, **params)
    assert status in (400, 404) and re.search(sentence, json.loads(text)["detail"]), text
    assert "Traceback" not in (log := client.log.read_text()[before:]), log


@pytest.mark.parametrize(
    ("query", "fields", "sentence"),
    [
        ("image=head", {"params": "{'age': 70}"}, "params must be JSON such as .*got"),
        ("image=head", {"params": "[70]"}, "no object in braces"),
        ("image=head", {"params": '{"age": 60, "age": 70}'}, "it has 'age' twice"),
        ("image=head", {"params": "[" * 100_000}, "params must be JSON"),
        ("image=head&age=70", {"params": "{}"}, "'age' is in the wrong place"),
        ("image=head", {"age": "70"}, "'age' is in the wrong place"),
        ("", {"params": "{}"}, "the request has no image"),
        ("image=head", '{"age": 70}', "a request is a form, got 'application/json'"),
    ],
)
def test_our_app_answers_a_malformed_request_with_a_sentence(client, query, fields, sentence):
    if not client.own:
        pytest.skip("the sample app answers with status 500, or ignores it")
    url = f"{client.get_server_url()}/infer/{LDM}?{query}"
    is_json = isinstance(fields, str)
    body, headers = (fields, {"Content-Type": "application/json"}) if is_json else (urllib.parse.urlencode(fields), {})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(urllib.request.Request(url, body.encode(), headers))
    text = caught.value.read().decode()
    assert caught.value.code == 400 and re.search(sentence, json.loads(text)["detail"]), text


def test_the_answer_of_our_app_says_which_values_were_used(client):
    if not client.own:
        pytest.skip("the sample app does not say it")
    made, result = infer(client, LDM, "head", ventricles_ml=90, strength=0)
    used = {"age": 65, "sex": "F", "ventricles_ml": 90, "brain_normalised_ml": 1500, "strength": 0, "seed": 0}
    assert result["used"] == used == json.loads(made.header.extensions[0].get_content())
    assert infer(client, SPADE, "mapLAS")[1]["used"] == {}


def test_a_fault_that_is_not_the_requests_is_status_500_with_a_traceback_in_the_log(client):
    before = client.log.stat().st_size
    weights = client.bundles / SPADE / "models" / "model.pt"
    kept = weights.read_bytes()
    weights.write_bytes(b"these are no weights")
    status, _ = refusal(client, SPADE, "mapLAS")
    weights.write_bytes(kept)
    assert status == 500
    deadline = time.monotonic() + 30
    while "Traceback" not in client.log.read_text()[before:]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert infer(client, SPADE, "mapLAS")[0].shape


def test_no_request_can_run_code_in_our_app(client, tmp_path):
    """MONAI evaluates what begins with a dollar, wherever it comes from, and the sample app lets it: its README says so."""
    code = f"$open('{tmp_path / 'written'}', 'w').close()"
    if not client.own:
        refusal(client, LDM, "head", **COVARIATES | {"age": code})
        assert (tmp_path / "written").exists()
        return
    for name in ("age", "device"):
        status, text = refusal(client, LDM, "head", **COVARIATES | {name: code})
        assert status == 400 and f"{name} must be a number or a plain word" in text
    for params in (
        {"age": {"_target_": "os.getcwd"}},
        {"age": ["$1"]},
        {"sex": "@bundle_root"},
        {"sex": "%configs/train.json"},
    ):
        assert refusal(client, LDM, "head", **COVARIATES | params)[0] == 400
    (client.studies / "uploaded.json").write_text(json.dumps({"handlers_id": {}, "configs": {"uploaded": code}}))
    uploaded = {"tracking": str(client.studies / "uploaded.json"), "run_id": "uploaded"}  # MONAI takes such files as settings
    several = {"force_multi_gpu": True, "run_id": "unknown"}  # another process, whose command and settings are not checked
    for params in ({"seed": code}, {"max_epochs": code}, {"tracking": "mlflow", "tracking_uri": code}, uploaded, several):
        assert train(client, **{"max_epochs": 1, **params})[0] == "ERROR", params
    assert "RUNNING COMMAND:: ['torchrun" not in client.log.read_text()
    assert "Ignore Multi-GPU Training" not in client.log.read_text()
    assert not (tmp_path / "written").exists()


def train(client, **params):
    """Status of a training of the SPADE bundle, and its last lines, when it has ended."""
    client.train_start(SPADE, {"val_split": 0.2, **params})
    while (task := client.train_status())["status"] in ("SUBMITTED", "RUNNING"):
        time.sleep(0.5)
    return task["status"], "\n".join(task["details"])


def test_the_spade_bundle_trains_from_the_datastore(client):
    """Afterwards the new weights are served, without a restart."""
    before, _ = infer(client, SPADE, "mapLAS")
    models = client.bundles / SPADE / "models"
    status, details = train(client, max_epochs=1)
    assert status == "DONE", details
    assert {"spade_axial.pt", "spade_coronal.pt", "spade_sagittal.pt", "model.pt"} <= {path.name for path in models.iterdir()}
    after, _ = infer(client, SPADE, "mapLAS")
    assert np.abs(after.get_fdata() - before.get_fdata()).max() > 0.01
    assert after.get_fdata().std() > 0.01
    if not client.own:  # it would continue the first training, which had other data
        assert train(client, max_epochs=1, val_split=0.4)[0] == "ERROR"
        assert "was made by a run with other settings (data: " in client.log.read_text()


def test_a_second_training_may_have_other_data_and_sizes_in_our_app(client):
    if not client.own:
        pytest.skip("in the sample app it would be refused, see the test before")
    elsewhere = str(client.bundles.parent / "elsewhere")  # no client says where files go
    own = client.bundles / SPADE / "models" / "resume" / "fusion.pt"  # as a training on the command line left it
    own.parent.mkdir()
    own.write_text("of 40 hours")
    settings = {"val_split": -1, "fusion_channels": 3, "pretrained": False, "run_id": "", "models_dir": elsewhere}
    status, details = train(client, max_epochs=1, **settings)
    assert status == "DONE" and not Path(elsewhere).exists(), details
    urllib.request.urlopen(urllib.request.Request(f"{client.get_server_url()}/reload", method="POST"))
    assert infer(client, SPADE, "mapLAS")[0].get_fdata().std() > 0.01
    served = (client.bundles / SPADE / "models" / "model.pt").read_bytes()
    status, details = train(client, max_epochs=1, label_table="frisurfer")
    assert status == "ERROR" and "no label table 'frisurfer'" in client.log.read_text()
    assert (client.bundles / SPADE / "models" / "model.pt").read_bytes() == served
    assert own.read_text() == "of 40 hours"


def test_inference_of_many_images_is_checked_before_it_starts(client):
    if not client.own:
        pytest.skip("the sample app ignores what it does not know")
    for model, params, status, sentence in (
        (LDM, {"ages": 70}, 400, "has no setting 'ages'. Did you mean 'age'"),
        ("nobody", {}, 404, "there is no model 'nobody'"),
    ):
        url, headers = f"{client.get_server_url()}/batch/infer/{model}?images=unlabeled", {"Content-Type": "application/json"}
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(urllib.request.Request(url, json.dumps(params).encode(), headers))
        assert caught.value.code == status and sentence in caught.value.read().decode()


def test_training_what_cannot_be_trained_is_refused_by_our_app(client):
    if not client.own:
        pytest.skip("the sample app begins, and ends in ERROR")
    from monailabel.client.client import MONAILabelClientException

    with pytest.raises(MONAILabelClientException) as caught:
        client.train_start(LDM, {})
    assert f"no model '{LDM}' can be trained here, only {SPADE}" in caught.value.msg
    with pytest.raises(MONAILabelClientException, match="has no setting .*spade_epoch.*Did you mean .*spade_epochs"):
        client.train_start(SPADE, {"spade_epoch": 1})


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
