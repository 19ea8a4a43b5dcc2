"""A bad request to MONAI Label gets a sentence, changes nothing, and runs no code. The server continues."""

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest
from label_server import COVARIATES, NEEDS_LABEL, infer, refusal, refused_training, train
from tiny_bundles import LDM, SPADE

pytestmark = NEEDS_LABEL


def logged(client, before, sentence, answer=""):
    """The answer and what the server has logged since `before`. The log can come after the answer, so this waits for it."""
    deadline = time.monotonic() + 60
    while not re.search(sentence, found := answer + client.log.read_text()[before:]):
        assert time.monotonic() < deadline, f"{sentence} is not in: {found}"
        time.sleep(0.2)
    return found


def test_a_bad_request_is_an_error_and_the_server_continues(client):
    """With our app as a sentence; the sample app says "Internal Server Error" for most, and the sentence in its log."""
    for model, image, params, sentence in (
        ("spade_bundle", "mapLAS", {}, "[Tt]here is no model 'spade_bundle'"),
        (LDM, "nobody", COVARIATES, "the datastore has no image 'nobody'"),
        (LDM, "", COVARIATES, "Neither Image nor File|the request has no image"),
        (LDM, "head", COVARIATES | {"age": "old"}, "age in years must be a number.*got 'old'"),
        (LDM, "head", COVARIATES | {"sex": "W"}, "sex must be 'F' or 'M', got 'W'"),
        (LDM, "head", COVARIATES | {"strength": 2}, "strength must be a number from 0 .* got 2"),
        (LDM, "head", COVARIATES | {"age": None}, "age is missing"),
        (LDM, "head", COVARIATES | {"model_filename": "autoencoder.pt"}, "Missing key|does not hold the weights of model.pt"),
        (SPADE, "unknown", {}, r"label values 77 \(60 voxels\) are not in the label table 'demo'"),
    ):
        before = client.log.stat().st_size
        status, text = refusal(client, model, image, **params)
        assert 400 <= status <= 500, sentence
        if client.own:
            assert status in (400, 404) and re.search(sentence, json.loads(text)["detail"]), (sentence, text)
            log = logged(client, before, sentence)
            assert re.search(sentence, "".join(log.splitlines()[-2:])) and "Traceback" not in log, log  # the server adds a line
        elif image == "nobody":
            assert status == 500
        else:
            logged(client, before, sentence, text)
    assert infer(client, LDM, "head", **COVARIATES, strength=0)[0].shape


def test_our_app_ignores_no_misspelt_setting_and_no_wrong_value(client):
    """With a misspelt covariate, the answer was a head for the default; a wrong type was status 500."""
    if not client.own:
        pytest.skip("the sample app ignores what it does not know")
    before = client.log.stat().st_size
    for model, image, params, sentence in (
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
    ):
        status, text = refusal(client, model, image, **params)
        assert status in (400, 404) and re.search(sentence, json.loads(text)["detail"]), (params, text)
    assert "Traceback" not in (log := client.log.read_text()[before:]), log


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        ({"spade_epochs": -1}, "spade_epochs is -1. Allowed: whole number"),
        ({"fusion_lr": "fast"}, "fusion_lr is 'fast'. Allowed: number"),
        ({"spade_epoch": 1}, "has no setting 'spade_epoch'. Did you mean 'spade_epochs'"),
    ],
)
def test_our_app_refuses_wrong_settings_of_training_at_once(client, params, sentence):
    """A wrong value was status 500."""
    if not client.own:
        pytest.skip("the sample app starts the training, which ends with an error")
    status, text = refused_training(client, **params)
    assert status == 400 and sentence in json.loads(text)["detail"]


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


def test_a_fault_that_is_not_the_requests_is_status_500_with_a_traceback_in_the_log(client):
    before = client.log.stat().st_size
    weights = client.bundles / SPADE / "models" / "model.pt"
    kept = weights.read_bytes()
    weights.write_bytes(b"these are no weights")
    status, _ = refusal(client, SPADE, "mapLAS")
    weights.write_bytes(kept)
    assert status == 500
    logged(client, before, "Traceback")
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
    several = {"force_multi_gpu": True}  # another process, whose command and settings are not checked
    for params in ({"seed": code}, {"max_epochs": code}, {"tracking": "mlflow", "tracking_uri": code}):
        assert refused_training(client, **params)[0] == 400, params
    assert train(client, **uploaded, **several, max_epochs=1)[0] == "ERROR"
    assert "RUNNING COMMAND:: ['torchrun" not in client.log.read_text()
    assert "Ignore Multi-GPU Training" not in client.log.read_text()
    assert not (tmp_path / "written").exists()


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
