"""Each request gives one volume, which one process makes once with its own seed."""

import json

import numpy as np
import pytest
import torch
from conftest import ROOT
from ignite.engine import Engine
from monai.bundle import create_workflow
from tiny_bundles import write_ldm_weights

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.data.derivative import Derivative
from brain_ldm_bundle.scripts.generation import requests as cohort

PROVENANCE = {"Sampler": "ddim", "Steps": 2, "GuidanceScale": 1.0, "PredictionType": "epsilon", "WeightsSHA256": "ab" * 32}
SHAPE = (4, 6, 5)


SCHEMA = CovariateSchema.from_dict({"covariates": [{"name": "age", "unit": "years", "range": [40, 80]}]})


@pytest.fixture
def schema():
    return SCHEMA


@pytest.fixture
def derivative(schema, tmp_path):
    return Derivative(tmp_path / "cohort", schema, np.diag([-1.0, 1, 1, 1]), SHAPE)


def requests(n, **changes):
    return [SCHEMA.request({"participant_id": f"sub-{i:02d}", "age": 50 + i, **changes}) for i in range(n)]


def test_a_single_request_is_named_for_what_it_asks(schema):
    (row,) = cohort.read_requests(schema, None, {"age": 60})
    (again,) = cohort.read_requests(schema, None, {"age": 60})
    (other,) = cohort.read_requests(schema, None, {"age": 61})
    assert row == again and row.values["age"] == 60
    assert row.participant_id != other.participant_id


def test_a_request_of_nothing_or_of_two_kinds_is_refused(schema, tmp_path):
    with pytest.raises(ValueError, match="nothing was requested. Give --requests TABLE.tsv, or .* --age"):
        cohort.read_requests(schema, None, {})
    with pytest.raises(ValueError, match="both a table .* and single covariates"):
        cohort.read_requests(schema, tmp_path / "table.tsv", {"age": 60})
    with pytest.raises(ValueError, match="image is scan.nii.gz, but .* To change it, give the run id editing"):
        cohort.read_requests(schema, None, {"age": 60}, image="scan.nii.gz")  # whoever forgot the run id got another head


ASKED = {"age": 70, "sex": "F", "ventricles_ml": 40, "brain_normalised_ml": 1400}
CONFIG = {"config_file": "configs/inference.json", "workflow_type": "inference"}


def test_covariates_given_from_python_make_the_volume_that_was_asked_for(bundle, tmp_path, monkeypatch, capsys):
    """They used to be read from the command line, even from the command line of a script that runs the bundle."""
    monkeypatch.setattr("sys.argv", ["my_script.py", "--age", "50", "--config_file", "mine.json"])
    (tmp_path / "models").mkdir()
    write_ldm_weights(tmp_path / "models")
    settings = {"models_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "out"), "use_device": "cpu", "steps": 2}
    workflow = create_workflow(**CONFIG, **settings, **ASKED, strength=0.3)
    workflow.run()
    assert "strength is 0.3, but has no effect here: only the run id editing reads it" in "".join(capsys.readouterr())
    (sidecar,) = (tmp_path / "out").glob("sub-*/anat/*_T1w.json")
    covariates = json.loads(sidecar.read_text())["Covariates"]
    assert {name: entry["Value"] for name, entry in covariates.items()} == ASKED


def test_the_settings_for_covariates_are_those_of_the_bundle():
    config = json.loads((ROOT / "brain_ldm_bundle" / "configs" / "inference.json").read_text())
    names = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json").names
    assert config["covariates"] == {name: f"@{name}" for name in config["covariates"]}
    assert sorted(config["covariates"]) == sorted(names) and all(config[name] is None for name in names)


def test_covariates_of_another_schema_are_read_from_the_command_line(monkeypatch):
    schema = CovariateSchema.from_dict({"covariates": [{"name": "age", "range": [40, 80]}, {"name": "mmse", "range": [0, 30]}]})
    monkeypatch.setattr("sys.argv", ["monai.bundle", "run", "--config_file", "x.json", "--mmse", "24", "--steps", "5"])
    given = cohort.given_covariates(schema, {}, {"age": 60, "sex": None})
    assert given == {"age": 60, "mmse": 24}
    monkeypatch.setattr("sys.argv", ["my_script.py", "--mmse", "24"])  # of a script that runs the bundle
    assert cohort.given_covariates(schema, {"mmse": 20}, {"age": 60, "sex": None}) == {"age": 60, "mmse": 20}
    with pytest.raises(ValueError, match="age is 60, but 70 in the request"):
        cohort.given_covariates(schema, {"age": 70}, {"age": 60, "sex": None})


def test_every_row_belongs_to_one_shard_and_keeps_its_seed(schema, derivative):
    alone = cohort.pending(requests(7), derivative, PROVENANCE, base_seed=5)
    parts = [cohort.pending(requests(7), derivative, PROVENANCE, 5, shard=f"{part}/3") for part in (1, 2, 3)]
    seeds = {item["request"].participant_id: item["provenance"]["Seed"] for items in parts for item in items}
    assert [len(items) for items in parts] == [3, 2, 2] and len(seeds) == 7
    assert seeds == {item["request"].participant_id: item["provenance"]["Seed"] for item in alone}
    assert len(set(seeds.values())) == 7


def test_rows_with_the_same_noise_share_a_seed_whichever_others_there_are(schema, derivative, tmp_path):
    table = tmp_path / "requests.tsv"
    table.write_text("participant_id\tage\tnoise\nsub-a\t50\t1\nsub-b\t60\t1\nsub-c\t60\t2\nsub-d\t60\tn/a\nsub-1\t60\t\n")
    rows = cohort.read_requests(schema, table, {})
    seeds = {
        item["request"].participant_id: item["provenance"]["Seed"]
        for part in ("1/2", "2/2")
        for item in cohort.pending(rows, derivative, PROVENANCE, 5, shard=part)
    }
    assert seeds["sub-a"] == seeds["sub-b"]
    assert len(set(seeds.values())) == 4  # sub-1 has another seed than the noise 1
    unnamed = cohort.pending([schema.request({"participant_id": "sub-d", "age": 60})], derivative, PROVENANCE, base_seed=5)
    assert seeds["sub-d"] == unnamed[0]["provenance"]["Seed"]
    other = cohort.pending(rows[:1], derivative, PROVENANCE, base_seed=6)
    assert other[0]["provenance"]["Seed"] != seeds["sub-a"]


def test_made_rows_are_left_out_until_something_about_them_changes(schema, derivative):
    items = cohort.pending(requests(3), derivative, PROVENANCE, base_seed=5)
    derivative.write(items[1]["request"], np.full(SHAPE, 0.5), items[1]["provenance"])

    def left(rows=None, seed=5, **changes):
        items = cohort.pending(rows or requests(3), derivative, PROVENANCE | changes, base_seed=seed)
        return [item["request"].participant_id for item in items]

    assert left() == ["sub-00", "sub-02"]
    assert left(seed=6) == left(Steps=3) == left(WeightsSHA256="cd" * 32) == ["sub-00", "sub-01", "sub-02"]
    assert left(requests(3, age=70)) == ["sub-00", "sub-01", "sub-02"]


def test_volumes_that_will_be_replaced_are_announced(schema, derivative, caplog):
    items = cohort.pending(requests(2), derivative, PROVENANCE, base_seed=5)
    derivative.write(items[0]["request"], np.full(SHAPE, 0.5), items[0]["provenance"])
    cohort.pending(requests(2), derivative, PROVENANCE, base_seed=5)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    cohort.pending(requests(2), derivative, PROVENANCE, base_seed=6)
    assert "1 volumes, such as" in caplog.text and "sub-00_T1w.nii.gz" in caplog.text


def test_one_volume_that_is_not_finite_does_not_stop_the_others(schema, derivative):
    items = cohort.pending(requests(3), derivative, PROVENANCE, base_seed=5)
    volumes = torch.full((3, 1, *SHAPE), 0.5)
    volumes[1, 0, 0, 0, 0] = torch.nan
    writer, engine = cohort.WriteVolumes(derivative), Engine(lambda engine, batch: {"pred": volumes})
    writer.attach(engine)
    engine.run([list(items)])
    assert [derivative.image_file(item["request"]).exists() for item in items] == [True, False, True]
    with pytest.raises(RuntimeError, match="1 volumes were not written, all others were:\nsub-01"):
        writer.report()


def test_the_batch_carries_scaled_covariates_and_seeds(schema, derivative):
    items = cohort.pending(requests(3), derivative, PROVENANCE, base_seed=5)
    context, _, _, arguments = cohort.request_batch(items, torch.device("cpu"))
    assert context.shape == (3, 1, 1)
    torch.testing.assert_close(context.flatten(), torch.tensor([10, 11, 12]) / 40)
    assert arguments["seeds"] == [item["provenance"]["Seed"] for item in items]


def test_the_schema_in_the_weights_comes_before_that_of_the_file(schema, tmp_path):
    assert cohort.schema_of({"covariates": schema.to_dict()}, cohort.COVARIATES).names == ["age"]
    with pytest.raises(FileNotFoundError):
        cohort.schema_of({}, tmp_path / "missing.json")


def test_another_file_of_covariates_must_have_those_of_the_weights(schema, tmp_path):
    own, recipe = tmp_path / "own.json", {"covariates": schema.to_dict()}
    own.write_text(json.dumps(schema.to_dict()))
    assert cohort.schema_of(recipe, own).names == ["age"]
    wider = schema.to_dict()
    wider["covariates"][0]["range"] = [0, 100]
    own.write_text(json.dumps(wider))
    with pytest.raises(ValueError, match=r"own\.json has other covariates than the model's weights \(age\).* Leave out"):
        cohort.schema_of(recipe, own)
