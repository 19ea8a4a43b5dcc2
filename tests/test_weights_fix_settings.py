"""What was trained cannot be changed afterwards: settings that contradict the weights are refused before any work."""

import json
import shutil
from pathlib import Path

import monai.bundle
import pytest
import tiny
import tiny_spade
import torch
from tiny_bundles import BUNDLES, LDM, REQUEST, SPADE, settings

from brain_ldm_bundle.scripts.model.gan_networks import VolumeGenerator

SPACING_MM = {LDM: tiny.SPACING_MM, SPADE: tiny_spade.SPACING_MM}
RUNS = {
    (LDM, "generating"): "inference",
    (LDM, "editing"): "inference",
    (LDM, "evaluating"): "evaluate",
    (LDM, "evaluating_reconstruction"): "evaluate",
    (LDM, "evaluating_samples"): "evaluate",
    (LDM, "auditing"): "evaluate",
    (SPADE, "synthesising"): "inference",
    (SPADE, "evaluating"): "evaluate",
}


def own_words(error: BaseException | None) -> str:
    """The messages of an error and of its causes; MONAI wraps ours."""
    return f"{error} {own_words(error.__cause__)}" if error else ""


def refusal(run_id: str, config: str, **overrides) -> str:
    with pytest.raises((RuntimeError, ValueError)) as caught:
        monai.bundle.run(run_id, config_file=f"configs/{config}.json", **overrides)
    return own_words(caught.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "run_id"), RUNS)
def test_another_spacing_than_that_of_the_weights_is_refused(enter, data, tmp_path, name, run_id):
    enter(name)
    config, spacing_mm = RUNS[name, run_id], 2 * SPACING_MM[name]
    more = {"image": next(Path(data[LDM]).rglob("*_T1w.nii.gz"))} if run_id == "editing" else {}
    if run_id == "synthesising":
        more = {"label_maps": str(next(Path(data[SPADE]).rglob("sub-01_dseg.nii.gz")))}
    message = refusal(run_id, config, **settings(name, data, config, tmp_path) | more | {"spacing_mm": spacing_mm})
    assert f"spacing_mm is {spacing_mm}, but" in message and "model.pt was trained with" in message
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("run_id", ["generating", "auditing"])
def test_another_recipe_than_that_of_the_weights_is_refused(enter, data, tmp_path, run_id):
    copy = enter(LDM)
    recipe = torch.load(copy / "models" / "model.pt", weights_only=True)["_extra_state"]
    recipe = json.loads(bytes(recipe.tolist()))
    age = next(entry for entry in recipe["covariates"]["covariates"] if entry["name"] == "age")
    age["range"] = [20, 100]
    message = refusal(
        run_id,
        RUNS[LDM, run_id],
        **settings(LDM, data, RUNS[LDM, run_id], tmp_path) | {"recipe": recipe},
    )
    assert "covariates is {" in message and "model.pt was trained with" in message and not list(tmp_path.glob("out/*"))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", BUNDLES)
def test_the_spacing_of_the_weights_may_be_given_and_is_in_the_sidecar(enter, data, tmp_path, name):
    enter(name)
    one_map = {} if name == LDM else {"label_maps": str(next(Path(data[SPADE]).rglob("sub-01_dseg.nii.gz")))}
    given = settings(name, data, "inference", tmp_path) | one_map | {"spacing_mm": SPACING_MM[name]}
    monai.bundle.run(config_file="configs/inference.json", **given)
    (sidecar,) = (tmp_path / "out").rglob("*_T1w.json")
    assert json.loads(sidecar.read_text())["SpacingMm"] == SPACING_MM[name]


def write_baseline(path: Path) -> dict:
    torch.manual_seed(0)
    sizes = {"image_size": [20, 28, 20], "latent_size": 6, "channels": [8, 4], "norm_num_groups": 2}
    network = tiny.perturbed(VolumeGenerator(**sizes))
    network.recipe = {"model": "lsgan", "spacing_mm": tiny.SPACING_MM, "generator": sizes}
    torch.save(network.state_dict(), path)
    return {"model": "lsgan", "model_file": str(path), "volumes": 1, "use_device": "cpu"}


BASELINE = {"spacing_mm": 4.0, "latent_size": 512, "groups": 4, "generator_channels": [8, 8]}


@pytest.mark.parametrize("name", BASELINE)
def test_a_baseline_keeps_its_sizes(enter, tmp_path, name):
    enter(LDM)
    given = write_baseline(tmp_path / "lsgan.pt") | {"output_dir": str(tmp_path / "out")}
    if name != "latent_size":  # 512 is the default, so nobody asked for it
        message = refusal("generating", "baselines", **given | {name: BASELINE[name]})
        assert f"{name} is {BASELINE[name]}, but" in message and not list(tmp_path.rglob("*.nii.gz"))
        return
    monai.bundle.run("generating", config_file="configs/baselines.json", **given | {"spacing_mm": 8.0})
    (sidecar,) = (tmp_path / "out").rglob("*_T1w.json")
    assert json.loads(sidecar.read_text())["SpacingMm"] == 8


def test_other_covariates_than_those_of_the_weights_are_refused(enter, data, tmp_path):
    copy = enter(LDM)
    schema = json.loads((copy / "configs" / "covariates.json").read_text())
    schema["covariates"] = schema["covariates"][:2]
    (tmp_path / "two.json").write_text(json.dumps(schema))
    given = settings(LDM, data, "inference", tmp_path) | {"covariates_file": str(tmp_path / "two.json")}
    message = refusal("generating", "inference", **given | {"request": REQUEST})
    assert "two.json has other covariates than the model's weights" in message


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "run_id"), [(LDM, "generating"), (LDM, "evaluating_reconstruction"), (SPADE, "evaluating")])
def test_weights_that_are_not_finite_are_refused_before_results_are_replaced(enter, data, tmp_path, name, run_id):
    models = shutil.copytree(enter(name) / "models", tmp_path / "models")
    file = models / ("autoencoder.pt" if run_id == "evaluating_reconstruction" else "model.pt")
    state = torch.load(file, weights_only=True)
    next(value for value in state.values() if value.ndim > 1).flatten()[0] = torch.nan
    torch.save(state, file)
    (tmp_path / "out").mkdir()
    kept = [tmp_path / "out" / f"{section}.section.json" for section in ("reconstruction", "synthesis")]
    for path in kept:
        path.write_text("{}")
    given = settings(name, data, RUNS[name, run_id], tmp_path) | {"models_dir": str(models)}
    message = refusal(run_id, RUNS[name, run_id], **given)
    assert "holds NaN or infinity" in message and all(path.is_file() for path in kept)
    assert sorted(tmp_path.glob("out/*")) == sorted(kept)
