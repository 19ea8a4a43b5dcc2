"""counterfactuals.py edits each head in three ways, and its numbers follow from the files by hand."""

import json
import shutil
from pathlib import Path

import counterfactuals
import make_demo_data
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT
from counterfactuals import Pair
from shared.files import read_json

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.generation.editing import read_edits

MODELS = ROOT / "brain_ldm_bundle" / "models"
SCHEMA = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two pairs of 8 mm."""
    folder = tmp_path_factory.mktemp("pairs")
    change = ["--change", "ventricles_ml", "30"]
    make_demo_data.main([str(folder), "--subjects", "2", "--spacing_mm", "8", "--workers", "1", *change])
    return folder


def edits(folder, method, tmp_path):
    """The edits as the bundle reads them, by name."""
    pairs, _ = counterfactuals.read_pairs(folder)
    table, out = tmp_path / f"{method}.tsv", tmp_path / method
    counterfactuals.write_edits(table, out, pairs, "T1w")
    settings = {"method": "inversion"} if method == "inversion" else {}
    return pairs, {edit.name: edit for edit in read_edits(SCHEMA, {"strength": 0.6, "seed": 0}, None, table, out, **settings)}


@pytest.mark.parametrize("method", ["autoencoder", "noise", "inversion"])
def test_each_head_is_left_changed_and_changed_back(folder, tmp_path, method):
    pairs, made = edits(folder, method, tmp_path)
    pair = pairs[1]
    same, changed, back = (made[f"{pair.name}{kind}"] for kind in ("same", "changed", "back"))
    own, other = (float(row["ventricles_ml"]) for row in pair.rows)
    assert abs(other - own) == pytest.approx(30, abs=0.6)  # of voxels
    assert [edit.values["ventricles_ml"] for edit in (same, changed, back)] == [own, other, own]
    assert same.image == pair.images[0].absolute()
    alone = method == "autoencoder"  # it reconstructs the true counterfactual, and its own reconstruction
    assert changed.image == pair.images[alone].absolute() and back.image.name.startswith(
        f"{pair.name}{'same' if alone else 'changed'}"
    )
    if method == "inversion":
        assert [edit.source["ventricles_ml"] for edit in (same, changed, back)] == [own, own, other]
    else:
        assert same.source is changed.source is back.source is None


def test_the_bundle_knows_the_settings(tmp_path):
    config = read_json(ROOT / "brain_ldm_bundle" / "configs" / "inference.json")
    for more in ([], ["--models_dir", str(tmp_path)]):
        options = counterfactuals.parse_arguments(["pairs", "out", "--guidance_scale", "2", *more])
        for method in ("autoencoder", "noise", "inversion"):
            words = counterfactuals.command(method, options)[7:]
            given = dict(zip(words[::2], words[1::2]))
            assert {name.removeprefix("--") for name in given} <= config.keys()
            assert given.get("--method", "noise") == ("inversion" if method == "inversion" else "noise")
            assert ("--guidance_scale" in given) == (method != "autoencoder")


def test_differences_are_those_of_the_files(tmp_path):
    """A cube of 8 voxels: one becomes ventricle, one is air, and six lie outside of what changes."""
    labels = np.full((2, 2, 2), 4, np.uint8)
    labels[0, 0, 0] = 0
    after = labels.copy()
    after[1, 1, 1] = 6
    values = np.full((2, 2, 2), 0.5, np.float32)
    truth = values.copy()
    truth[1, 1, 1] = 0.1
    same, changed, back = values + 0.02, truth + 0.03, values.copy()
    back[0, 0, 0] = 1  # air does not count
    changed[1, 1, 1] = 0.4
    files = []
    for name, content in (("a", values), ("b", truth), ("la", labels), ("lb", after)):
        files.append(tmp_path / f"{name}.nii.gz")
        nib.save(nib.Nifti1Image(content, np.eye(4)), files[-1])
    for kind, content in (("same", same), ("changed", changed), ("back", back)):
        path = counterfactuals.edited(tmp_path, f"x{kind}", "T1w")
        path.parent.mkdir(parents=True)
        nib.save(nib.Nifti1Image(content, np.eye(4)), path)
    pair = Pair("x", tuple(files[:2]), tuple(files[2:]), ({}, {}))
    found = counterfactuals.differences(pair, tmp_path, None)
    assert found == pytest.approx({"composition": 0.02, "reversibility": 0, "outside": 0.03, "inside": 0.3})
    unchanged = counterfactuals.differences(pair, None, None)
    assert unchanged == pytest.approx({"composition": 0, "reversibility": 0, "outside": 0, "inside": 0.4})


def test_errors_and_the_share_of_the_change_are_means_over_heads():
    """Of the requested +30 and -30 mL, 15 and 24 mL were made."""
    rows = []
    for name, original, requested, made in (("a", 40, 70, 55), ("b", 100, 70, 76)):
        for answer, measured in (("no change", original), ("noise", made), ("truth", requested)):
            own = {"participant_id": name, "answer": answer, **dict.fromkeys(counterfactuals.DIFFERENCES, 0.01)}
            for column in counterfactuals.UNITS:
                own |= {f"{column}_original": 50.0, f"{column}_requested": 50.0, f"{column}_measured": np.nan}
            changed = {"original": original, "requested": requested, "measured": measured}
            rows.append(own | {f"ventricles_ml_{key}": float(value) for key, value in changed.items()})
    numbers = counterfactuals.summary(pd.DataFrame(rows), "ventricles_ml")
    assert [numbers[answer]["share"]["mean"] for answer in ("no change", "noise", "truth")] == pytest.approx([0, 0.65, 1])
    assert [numbers[answer]["ventricles_ml_error"]["mean"] for answer in ("no change", "noise")] == pytest.approx([30, 10.5])
    low, high = numbers["noise"]["ventricles_ml_error"]["interval"]
    assert (high - low) / 2 == pytest.approx(12.706 * 4.5, rel=1e-3)  # t with one degree of freedom
    assert "age_error" not in numbers["noise"]
    table = counterfactuals.printed(numbers, "ventricles_ml", False)
    assert "ventricles error, mL" in table["header"] and not any("age" in title for title in table["header"])


def test_what_cannot_be_compared_is_refused_before_work_starts(folder, tmp_path):
    def refusal(*words):
        with pytest.raises((ValueError, FileNotFoundError)) as refused:
            counterfactuals.main([*map(str, words)])
        assert not (tmp_path / "out").exists()
        return str(refused.value)

    out = tmp_path / "out"
    assert "holds no pairs of heads" in refusal(folder / "original", out)
    assert "demo_model.pt is of 4 mm, but" in refusal(folder, out) and "of 8 mm" in refusal(folder, out)
    assert "model.pt: no such weights file" in refusal(folder, out, "--models_dir", tmp_path / "gone")
    other = tmp_path / "other.tsv"
    other.write_text("name\tage\na\t60\n")
    with pytest.raises(ValueError, match="other.tsv: has no columns file and age"):
        counterfactuals.read_ages([other], [folder])
    other.write_text("file\tage\n/moved/sub-0001_T1w.nii.gz\t60\n")
    with pytest.raises(ValueError, match="other.tsv: names no file in .* but for instance /moved/sub-0001_T1w.nii.gz"):
        counterfactuals.read_ages([other], [folder, out])
    assert counterfactuals.read_ages([other], [Path("/moved")])
    broken = shutil.copytree(folder, tmp_path / "broken")
    next((broken / "changed").glob("sub-0002/anat/*_T1w.nii.gz")).unlink()
    assert "sub-0002 is no complete pair" in refusal(broken, out)


def test_settings_that_no_edit_allows_are_refused_before_the_first_edit(tmp_path, capsys):
    """The autoencoder's edits were made, before the edits with these settings were refused."""
    for name, value in (("strength", "2"), ("strength", "nan"), ("inversion_strength", "-1"), ("guidance_scale", "inf")):
        with pytest.raises(SystemExit):
            counterfactuals.parse_arguments(["pairs", "out", f"--{name}", value])
        assert f"--{name} must be a number from 0 to" in capsys.readouterr().err
    heads = ["--subjects", "1", "--workers", "1", "--change", "ventricles_ml", "30"]
    make_demo_data.main([str(tmp_path / "pairs"), "--spacing_mm", "4", *heads])
    weights = torch.load(MODELS / "demo_model.pt")
    recipe = json.loads(bytes(weights["_extra_state"].tolist())) | {"condition_dropout": 0}
    weights["_extra_state"] = torch.tensor(list(json.dumps(recipe).encode()), dtype=torch.uint8)
    (tmp_path / "models").mkdir()
    torch.save(weights, tmp_path / "models" / "model.pt")
    unguided = ["--guidance_scale", "2", "--models_dir", str(tmp_path / "models")]
    for words, message in ((["--use_device", "gpu"], "no such device"), (unguided, "cannot be guided")):
        with pytest.raises(ValueError, match=message):
            counterfactuals.main([str(tmp_path / "pairs"), str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_shipped_weights_are_compared_with_the_truth(tmp_path, capfd):
    heads = ["--subjects", "2", "--seed", "907"]  # with small ventricles: those above 100 mL are measured too small
    make_demo_data.main([str(tmp_path / "pairs"), *heads, "--workers", "1", "--change", "ventricles_ml", "30"])
    words = [str(tmp_path / "pairs"), str(tmp_path / "out"), "--steps", "5", "--use_device", "cpu"]
    assert counterfactuals.main(words) == 0
    assert "2 heads, ventricles_ml changed by 30: mean [95 %]" in capfd.readouterr().out
    answers = json.loads((tmp_path / "out" / "counterfactuals.json").read_text())["answers"]
    mean = {answer: {name: entry["mean"] for name, entry in own.items()} for answer, own in answers.items()}
    assert all(mean["no change"][name] == 0 for name in ("composition", "reversibility", "share"))
    assert mean["truth"]["share"] == pytest.approx(1, abs=0.15) and mean["autoencoder"]["share"] == pytest.approx(1, abs=0.4)
    assert mean["inversion"]["composition"] < mean["noise"]["composition"]
    assert mean["autoencoder"]["composition"] < mean["noise"]["composition"]
    assert "brain_normalised_ml_error" in mean["inversion"] and "age_error" not in mean["inversion"]
    ages = tmp_path / "ages.tsv"
    files = pd.read_csv(tmp_path / "out" / "counterfactuals.tsv", sep="\t")["file"]
    ages.write_text("file\tage\n" + "".join(f"{file}\t63\n" for file in files))
    assert counterfactuals.main([*words, "--ages", str(ages)]) == 0
    assert "age error, years" in capfd.readouterr().out
