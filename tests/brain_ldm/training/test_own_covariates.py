"""Fine-tuning from weights of other covariates keeps what the columns in both schemas have learnt."""

import pytest
import tiny
import torch
from conftest import ROOT

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.model.dpm_solver import make_sampler
from brain_ldm_bundle.scripts.model.networks import DiffusionUNet
from brain_ldm_bundle.scripts.model.published_names import PUBLISHED_COVARIATES
from brain_ldm_bundle.scripts.model.sampler import LatentSampler
from brain_ldm_bundle.scripts.shared.files import save_weights
from brain_ldm_bundle.scripts.training.own_covariates import load_start

SIZES = {"latent_channels": 3, "channels": [8, 8], "num_head_channels": [0, 8], "num_res_blocks": 1, "norm_num_groups": 4}
AGE = {"name": "age", "unit": "years", "range": [44, 82]}
SEX = {"name": "sex", "levels": {"F": 0, "M": 1}}
VENTRICLES = {"name": "ventricles_ml", "range": [6.99568, 171.375]}
BRAIN = {"name": "brain_normalised_ml", "range": [1144.24, 1793.91]}
DIAGNOSIS = {"name": "diagnosis", "levels": {"healthy": 0, "AD": 1}}
MMSE = {"name": "mmse", "range": [10, 30]}


def network(covariates):
    torch.manual_seed(0)
    return DiffusionUNet(**SIZES, num_covariates=len(covariates))


def trained(path, covariates, recipe=True):
    """Weights of a model of these covariates with nothing left at zero."""
    model = tiny.perturbed(network(covariates))
    model.scale_factor.fill_(0.5 if recipe else 1.0)  # a file without a recipe lacks it
    model.recipe = {"covariates": {"covariates": covariates}, "prediction_type": "v_prediction"} if recipe else {}
    state = model.state_dict()
    if not recipe:
        state = {key: value for key, value in state.items() if key not in ("_extra_state", "scale_factor")}
    save_weights(state, path)
    return model


def continued(path, covariates):
    """A network for other covariates that starts from these weights."""
    model = network(covariates)
    load_start(model, path, {"covariates": {"covariates": covariates}, "unet": SIZES | {"num_covariates": len(covariates)}})
    return model.eval()


def sampled(model, rows):
    """Volumes of each row of scaled covariates from the same noise."""
    predicts = model.recipe.get("prediction_type", "epsilon")
    sampler = LatentSampler(tiny.autoencoder(), make_sampler("ddim", 4, predicts), (8, 12, 16), amp=False)
    return sampler(torch.tensor(rows)[:, None], model, seeds=range(len(rows)))


@pytest.mark.parametrize("withheld", [0.0, -1.0, 0.7])
def test_it_samples_as_before_whatever_the_new_covariates_are(tmp_path, withheld):
    """New covariates have weights of zero; the old ones stand in another order."""
    old = trained(tmp_path / "model.pt", [SEX, AGE, VENTRICLES, BRAIN])
    new = continued(tmp_path / "model.pt", [MMSE, BRAIN, AGE, DIAGNOSIS, SEX, VENTRICLES])
    values = [[0.0, 0.2, 0.3, 0.9], [1.0, 0.8, 0.1, 0.4]]
    before = sampled(old, values)
    after = sampled(new, [[withheld, brain, age, withheld, sex, ventricles] for sex, age, ventricles, brain in values])
    torch.testing.assert_close(after, before, atol=1e-5, rtol=0)
    assert new.scale_factor == 0.5
    other = sampled(new, [[withheld, brain, 1 - age, withheld, sex, ventricles] for sex, age, ventricles, brain in values])
    assert (other - before).abs().max() > 1e-3  # so the columns count


def test_published_weights_without_a_recipe_go_on_with_age_and_diagnosis(tmp_path, caplog):
    old = trained(tmp_path / "published.pt", PUBLISHED_COVARIATES["covariates"], recipe=False)
    new = continued(tmp_path / "published.pt", [AGE, DIAGNOSIS])
    torch.testing.assert_close(
        sampled(new, [[0.3, 0.0], [0.9, 1.0]]), sampled(old, [[0.0, 0.3, 0.0, 0.0], [0.0, 0.9, 0.0, 0.0]]), atol=1e-5, rtol=0
    )
    assert "keeps the weights of age; new, with weights of zero: diagnosis; left out, as if always at the low" in caplog.text
    assert "sex, ventricles_ml, brain_normalised_ml" in caplog.text


def test_a_new_column_learns(tmp_path):
    trained(tmp_path / "model.pt", [SEX, AGE])
    new = continued(tmp_path / "model.pt", [SEX, AGE, DIAGNOSIS])
    new(torch.randn(2, 3, 4, 4, 4), torch.tensor([5, 500]), torch.rand(2, 1, 3)).square().mean().backward()
    assert new.conv_in.conv.weight.grad[:, 5].abs().max() > 0
    assert new.conv_in.conv.weight[:, 5].abs().max() == 0


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (AGE | {"range": [18, 90]}, r"age was scaled by range \[44, 82\].*, now by range \[18, 90\]"),
        (AGE | {"unit": "months"}, r"age was scaled by range \[44, 82\] years.*, now by range \[44, 82\] months"),
        (AGE | {"scale": "log"}, "age was scaled by .* scale 'linear', now by range .* scale 'log'"),
        ({"name": "Age", "levels": {"young": 0, "old": 1}}, r"Age was scaled by range .*, now by levels"),
        (SEX | {"levels": {"M": 0, "F": 1}}, "sex was scaled by levels .*'F': 0.*, now by levels .*'F': 1"),
        (SEX | {"levels": {"female": 0, "male": 1}}, "sex was scaled by levels"),
    ],
)
def test_a_covariate_that_is_scaled_in_another_way_is_refused(tmp_path, changed, message):
    """Its values would mean something else to the weights."""
    trained(tmp_path / "model.pt", [SEX, AGE])
    with pytest.raises(ValueError, match=rf"model.pt: {message}.* give (sex|age|Age) these in --covariates_file"):
        continued(tmp_path / "model.pt", [changed, DIAGNOSIS])


def test_weights_of_none_of_the_covariates_are_refused(tmp_path):
    trained(tmp_path / "model.pt", [SEX, AGE])
    with pytest.raises(ValueError, match="trained on the covariates sex, age, and this training has none of them .diagnosis"):
        continued(tmp_path / "model.pt", [DIAGNOSIS])


def test_further_levels_wider_limits_and_other_words_are_no_difference(tmp_path):
    old = trained(tmp_path / "model.pt", [SEX, AGE])
    new = continued(
        tmp_path / "model.pt",
        [SEX | {"levels": {"F": 0, "M": 1, "unknown": 0.5}}, AGE | {"limits": [10, 110], "description": "Age at the visit"}],
    )
    for key, value in old.state_dict().items():
        assert key == "_extra_state" or torch.equal(new.state_dict()[key], value)


def test_the_published_covariates_are_those_of_the_file_that_users_may_edit():
    in_file = CovariateSchema.from_file(ROOT / "brain_ldm_bundle" / "configs" / "covariates.json")
    assert CovariateSchema.from_dict(PUBLISHED_COVARIATES).inputs == in_file.inputs
