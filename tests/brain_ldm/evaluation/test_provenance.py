import json
from pathlib import Path

import pytest
from brain_ldm.evaluation.test_memorisation import audit, cohort, head  # noqa: F401 - a fixture
from brain_ldm.evaluation.test_memorisation import write as write_volume
from brain_ldm.model.test_training_record import write as write_weights

from brain_ldm_bundle.scripts.evaluation.provenance import MODELS, describe, held_out_scans, read_provenance, trained_on
from brain_ldm_bundle.scripts.shared.files import sha256
from brain_ldm_bundle.scripts.shared.weights import read_recipe

LDM = {"Sampler": "ddim", "Steps": 50, "GuidanceScale": 1.0, "WeightsSHA256": "a" * 64, "AutoencoderSHA256": "b" * 64}


def write(folder, **sidecars):
    """Items of which those with a sidecar have one."""
    folder.mkdir(exist_ok=True)
    for name, sidecar in sidecars.items():
        if sidecar is not None:
            (folder / f"{name}_T1w.json").write_text(json.dumps(sidecar))
    return [{"image": str(folder / f"{name}_T1w.nii.gz")} for name in sidecars]


def test_what_all_sidecars_say_is_told_and_seeds_may_differ(tmp_path):
    items = write(tmp_path, a=LDM | {"Seed": 1}, b=LDM | {"Seed": 2, "Covariates": {"age": 60}})
    assert read_provenance(items, "LDM") == LDM
    assert describe(LDM) == f"sampler ddim, steps 50, guidance 1.0, weights {'a' * 12}, autoencoder {'b' * 12}"
    vaegan = {"Model": "vaegan", "Steps": 1, "GuidanceScale": None, "WeightsSHA256": "c" * 64}
    assert read_provenance(write(tmp_path / "vaegan", a=vaegan), "VAE-GAN") == vaegan
    assert describe(vaegan) == f"model vaegan, steps 1, weights {'c' * 12}"


@pytest.mark.parametrize(
    ("key", "value"),
    [("Model", "vaegan"), ("Sampler", "ddpm"), ("Steps", 4), ("GuidanceScale", 2.0), ("WeightsSHA256", "d" * 64)],
)
def test_a_folder_of_two_models_is_refused_with_the_counts(tmp_path, key, value):
    items = write(tmp_path, a=LDM, b=LDM | {key: value}, c=LDM)
    with pytest.raises(
        ValueError, match=r"LDM: .*made in different ways: 2, such as .*a_T1w.*; 1, such as .*b_T1w.*Put each kind"
    ):
        read_provenance(items, "LDM")


def test_volumes_of_other_software_have_no_sidecars_all_or_none(tmp_path):
    assert read_provenance(write(tmp_path, a=None, b=None), "other") == {} and describe({}) == "unknown"
    assert read_provenance(write(tmp_path, c={"Manufacturer": "x"}), "other") == {}
    with pytest.raises(ValueError, match="1, such as .*d_T1w.nii.gz: sampler ddim.*; 1, such as .*e_T1w.nii.gz: no sidecar"):
        read_provenance(write(tmp_path, d=LDM, e=None), "mixed")


def test_a_broken_sidecar_is_named(tmp_path):
    items = write(tmp_path, a=LDM)
    (tmp_path / "a_T1w.json").write_text('{"Steps": 5')
    with pytest.raises(ValueError, match="a_T1w.json: this is not JSON .*Generate the volume again, or remove the sidecar"):
        read_provenance(items, "LDM")


SCANS = [{"voxels_sha256": voxels} for voxels in ("a", "b", "c", "c")]  # one of them listed twice


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"seen_voxels": ["a", "b", "c"]}, "3 of the 3 training scans"),
        ({"seen_voxels": ["a", "x", "y"]}, "1 of the 3 training scans and 2 others"),
        (
            {"seen_voxels": ["b"], "seen_unknown": True},
            "1 of the 3 training scans, and scans that its weights do not name",
        ),
        ({}, "scans that its weights do not name"),
    ],
)
def test_what_a_model_was_trained_on_is_told_from_its_weights(tmp_path, recipe, words):
    made_by = write_weights(tmp_path / "model.pt", recipe)
    assert trained_on(made_by, [tmp_path / "absent.pt", tmp_path / "model.pt"], SCANS) == words
    other = trained_on({"WeightsSHA256": "f" * 64}, [tmp_path / "model.pt"], SCANS)
    assert other == trained_on({}, [], SCANS) == "not known: its weights are missing"


def test_the_scans_of_an_autoencoder_count_as_those_of_its_model(tmp_path):
    made_by = write_weights(tmp_path / "model.pt", {"seen_voxels": ["a"]})
    made_by["AutoencoderSHA256"] = write_weights(tmp_path / "autoencoder.pt", {"seen_voxels": ["a", "x"]})["WeightsSHA256"]
    files = [tmp_path / "model.pt", tmp_path / "autoencoder.pt"]
    assert trained_on(made_by, files, SCANS) == "1 of the 3 training scans and 1 others"
    assert trained_on(made_by, files[:1], SCANS) == "1 of the 3 training scans"


def test_weights_that_come_with_the_bundle_are_known():
    """The page compared baselines that had never seen the cohort with a model that had, and did not say so."""
    for note in MODELS.glob("demo_*.json"):
        content = json.loads(note.read_text())
        for name, known in content["sha256"].items():
            assert sha256(MODELS / name) == known
            words = trained_on({"WeightsSHA256": known}, [MODELS / name], SCANS)
            if "seen_voxels" in read_recipe(MODELS / name):
                assert words.startswith("0 of the 3 training scans and ")
            else:
                assert words.startswith(content["trained_on"]) and f"({name}, which comes" in words


def test_an_audit_tells_what_it_audited(cohort, tmp_path):  # noqa: F811
    for i in range(4):
        image = Path(write_volume(tmp_path / "generated", f"sub-new{i}", head(100 + i))["image"])
        image.with_name(image.name.replace(".nii.gz", ".json")).write_text(json.dumps(LDM))
    summary = audit(cohort, tmp_path / "generated", tmp_path / "out")
    assert summary["audited"] == {"folder": str(tmp_path / "generated"), "n": 4, "provenance": LDM}
    section = json.loads((tmp_path / "out" / "memorisation.section.json").read_text())
    assert "Audited: generated, made by: sampler ddim, steps 50" in section["text"]


def test_an_empty_split_is_refused_with_what_there_is():
    with pytest.raises(ValueError, match=r"no scans in the split 'test' \(training: 1, test: 0\). Choose another with --split"):
        held_out_scans({"training": [{}], "test": []}, "test", {})


def test_scans_that_were_trained_on_are_scored_as_such_or_not_at_all():
    """Scans of any split other than the training split used to count as held out."""
    item = {"image": "a_T1w.nii.gz", "voxels_sha256": "0123456789abcdef"}
    recipe = {"seen_voxels": ["0123456789abcdef"]}
    assert held_out_scans({"training": [item]}, "training", recipe) == [item]
    with pytest.raises(ValueError, match="1 of 1 scans in the split 'test', such as .*a_T1w.nii.gz, are among those that"):
        held_out_scans({"test": [item]}, "test", recipe)
