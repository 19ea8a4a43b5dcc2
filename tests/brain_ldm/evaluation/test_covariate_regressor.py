"""The regressor learns covariates from volumes, stores what it needs, and reports its accuracy."""

import csv
import json
import re
import shutil
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import tiny
import torch
from brain_ldm.training.test_resume import assert_equal, chain, load
from monai.bundle import ConfigParser, run

from brain_ldm_bundle.scripts.data.covariates import NULL, CovariateSchema
from brain_ldm_bundle.scripts.evaluation import covariate_regressor as regression
from brain_ldm_bundle.scripts.model.regressor_network import Regressor
from brain_ldm_bundle.scripts.shared.files import sha256

SIZES = {"image_size": [20, 28, 20], "num_outputs": 4, "channels": [4, 8], "num_features": 6, "norm_num_groups": 2}
KNOBS = {
    "spacing_mm": tiny.SPACING_MM,
    "use_device": "cpu",
    "num_workers": 0,
    "cache_rate": 1.0,
    "regressor_channels": [4, 8],
    "regressor_groups": 2,
    "regressor_epochs": 1,
    "regressor_batch_size": 3,
}
SCHEMA = CovariateSchema.from_dict(
    {"covariates": [{"name": "sex", "levels": {"F": 0, "M": 1}}, {"name": "age", "unit": "years", "range": [40, 80]}]}
)


def weights(folder, **recipe):
    """A regressor's file, with weights of no use."""
    torch.manual_seed(0)
    network = tiny.perturbed(Regressor(**SIZES))
    network.recipe = {"spacing_mm": tiny.SPACING_MM, "covariates": SCHEMA.to_dict(), "regressor": SIZES} | recipe
    torch.save(network.state_dict(), folder / "regressor.pt")
    return folder / "regressor.pt"


def test_answers_and_features_have_their_lengths_on_a_grid_of_three_sides():
    network = Regressor((22, 28, 18), 3, channels=[4, 8], num_features=6, norm_num_groups=2)
    volumes = torch.rand(2, 1, 22, 28, 18)
    assert network(volumes).shape == (2, 3) and network.features(volumes).shape == (2, 6)


def test_an_answer_is_linear_in_the_features_and_does_not_depend_on_the_batch():
    torch.manual_seed(0)
    network = tiny.perturbed(Regressor(**SIZES))
    volumes = torch.rand(3, 1, 20, 28, 20)
    together = network(volumes)
    torch.testing.assert_close(network.final[-1](network.features(volumes)), together)
    torch.testing.assert_close(torch.cat([network(volume[None]) for volume in volumes]), together)


def test_a_loaded_regressor_equals_the_saved_one_and_knows_its_covariates(tmp_path):
    path = weights(tmp_path)
    network = regression.load_regressor(path, tiny.SPACING_MM)
    assert not network.training and network.recipe["covariates"] == SCHEMA.to_dict()
    assert_equal(network.state_dict(), load(path))


def test_a_file_that_is_missing_of_another_spacing_or_no_regressor_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.pt: no such regressor. Train it first: .*train_regressor.json"):
        regression.load_regressor(tmp_path / "absent.pt", 1.0)
    with pytest.raises(ValueError, match="reads volumes of 8 mm, but spacing_mm is 4. For volumes of 8 mm, add --spacing_mm 8"):
        regression.load_regressor(weights(tmp_path), 4.0)
    torch.save(tiny.unet().state_dict(), tmp_path / "unet.pt")
    with pytest.raises(ValueError, match="unet.pt: these are not a regressor's weights"):
        regression.load_regressor(tmp_path / "unet.pt", 8.0)


def test_weights_that_answer_for_other_covariates_are_no_start(tmp_path):
    """As many answers fit, but their order and scale would be another."""
    path = weights(tmp_path)
    network = Regressor(**SIZES)
    regression.load_start(network, path, SCHEMA)
    with pytest.raises(ValueError, match="was trained on other covariates .* leave out --init_regressor"):
        regression.load_start(network, path, CovariateSchema(SCHEMA.covariates[::-1]))


def test_unknown_covariates_do_not_count_in_the_loss():
    prediction = torch.tensor([[0.5, 9.0], [0.2, 0.4]])
    target = torch.tensor([[0.1, NULL], [0.5, 0.6]])
    assert regression.covariate_loss(prediction, target).item() == pytest.approx((0.4 + 0.3 + 0.2) / 3)
    assert regression.covariate_loss(prediction, torch.full((2, 2), NULL)).item() == 0


def predictions(folder, name, files):
    items = [{"image": file} for file in files]
    return regression.Predictions(folder / name, {"covariates": SCHEMA.to_dict()}, items, [], weights(folder))


def test_predictions_are_written_in_physical_units(tmp_path):
    table = predictions(tmp_path, "out/a.tsv", ["0.nii.gz", "1.nii.gz"])
    batch = {"participant_id": ["sub-0", "sub-1"], "file": ["0.nii.gz", "1.nii.gz"]}
    image = torch.rand(2, 1, 4, 6, 5)
    output = {"image": image, "pred": torch.tensor([[0.4, 0.25], [0.6, 1.5]])}
    table.read(SimpleNamespace(state=SimpleNamespace(batch=batch, output=output)))
    table.write()
    text = (tmp_path / "out" / "a.tsv").read_text()
    assert text == (
        "participant_id\tfile\tsex\tage\ttool\nsub-0\t0.nii.gz\tF\t50\tregressor\nsub-1\t1.nii.gz\tM\t100\tregressor\n"
    )
    predictions(tmp_path, "out/a.tsv", ["0.nii.gz"])
    (tmp_path / "out" / "a.tsv").write_text(text.replace("tool", "tool\tqc").replace("regressor", "regressor\tgood"))
    with pytest.raises(ValueError, match="a.tsv: this output has the column 'qc', which would be lost"):
        predictions(tmp_path, "out/a.tsv", ["0.nii.gz"])


@pytest.mark.parametrize(
    "image", [torch.rand(1, 4, 6, 5) * 900, torch.full((1, 4, 6, 5), 0.5), torch.full((1, 4, 6, 5), torch.nan)]
)
def test_images_of_another_scale_constant_or_not_finite_are_refused(tmp_path, image):
    table = predictions(tmp_path, "a.tsv", ["0.nii.gz"])
    batch, output = {"participant_id": ["sub-0"], "file": ["0.nii.gz"]}, {"image": image[None], "pred": torch.zeros(1, 2)}
    engine = SimpleNamespace(state=SimpleNamespace(batch=batch, output=output))
    with pytest.raises(ValueError, match="0.nii.gz: values from .* vary within 0 to 1"):
        table.read(engine)


@pytest.fixture
def regressor(bundle, tmp_path):
    """Run a run id of train_regressor.json in a folder; the folder of the weights comes back."""

    def run_one(run_id, dataset_dir, folder="", **settings):
        places = tiny.places(dataset_dir, tmp_path / folder)
        run(run_id, config_file="configs/train_regressor.json", **places, **KNOBS | settings)
        return tmp_path / folder / "models"

    return run_one


@pytest.fixture(scope="module")
def dataset_dir(tmp_path_factory):
    return tiny.write_dataset(tmp_path_factory.mktemp("blobs"), training=24, validation=8)


@pytest.mark.slow
def test_it_beats_the_mean_where_the_volumes_show_the_answer(regressor, dataset_dir, tmp_path):
    """The size of the dark ellipsoid is the ventricles' volume."""
    settings = {"regressor_lr": 0.01, "regressor_epochs": 30, "val_interval": 5, "shift_mm": 0.0}
    models = regressor("training", dataset_dir, **settings)
    assert (models / "regressor.pt").is_file()
    generated = tmp_path / "generated"
    (generated / "sub-9" / "anat").mkdir(parents=True)
    source = dataset_dir / "sub-0001" / "anat" / "sub-0001_T1w.nii.gz"
    (generated / "sub-9" / "anat" / "sub-9_T1w.nii.gz").write_bytes(source.read_bytes())
    predictions = tmp_path / "predictions.tsv"
    regressor(
        "predicting",
        dataset_dir,
        split="validation",
        predict_dir=str(generated),
        predictions=str(predictions),
        stretch_intensities=True,
    )
    summary = json.loads((tmp_path / "output" / "regressor.json").read_text())
    assert summary["trained_on"] == "24 of the 24 training scans"
    ventricles = summary["covariates"]["ventricles_ml"]
    assert ventricles["n"] == 8 and ventricles["r"] > 0.8 and ventricles["mae"] < 0.6 * ventricles["mae_trivial"]
    section = json.loads((tmp_path / "output" / "regressor.section.json").read_text())
    assert "the split validation, which chose its best epoch. The tables" in section["text"]
    assert "It was trained on 24 of the 24 training scans. Its" in section["text"]
    assert "8" in section["tables"][0]["rows"][0] and (tmp_path / "output" / section["figures"][0]["file"]).is_file()
    (row,) = csv.DictReader(predictions.open(), delimiter="\t")
    assert list(row) == ["participant_id", "file", "sex", "age", "ventricles_ml", "brain_normalised_ml", "tool"]
    (truth,) = (
        r
        for r in csv.DictReader((dataset_dir / "participants.tsv").open(), delimiter="\t")
        if r["participant_id"] == "sub-0001"
    )
    assert float(row["ventricles_ml"]) == pytest.approx(float(truth["ventricles_ml"]), abs=50)


def test_a_regressor_trained_in_two_goes_equals_one_trained_in_one(regressor, tmp_path):
    dataset_dir = tiny.write_dataset(tmp_path / "few", training=3, validation=2)
    schedule = {"train#lr_scheduler#epochs": 2}
    one = regressor("training", dataset_dir, "one", regressor_epochs=2, **schedule)
    regressor("training", dataset_dir, "two", regressor_epochs=1, **schedule)
    two = regressor("training", dataset_dir, "two", regressor_epochs=2, **schedule)
    for name in ("resume/regressor.pt", "regressor.pt"):
        assert_equal(load(two / name), load(one / name))
    with pytest.raises(Exception) as error:
        regressor("training", dataset_dir, "two", regressor_epochs=3, regressor_channels=[4, 4])
    assert "made by a run with other settings" in chain(error)
    for run_id in ("evaluating", "predicting"):  # the images came first, with a message about them alone
        with pytest.raises(Exception) as error:
            regressor(run_id, dataset_dir, "two", predict_dir=str(dataset_dir), spacing_mm=4.0)
        assert "reads volumes of 8 mm, but spacing_mm is 4. For volumes of 8 mm, add --spacing_mm 8." in chain(error)


def test_a_table_of_predictions_that_cannot_be_written_is_refused_before_any_work(regressor, dataset_dir, tmp_path):
    """It was refused after the evaluation of the test scans."""
    (tmp_path / "models").mkdir()
    weights(tmp_path / "models")
    for predictions, message in (
        ("participants.tsv", "would replace data"),
        ("participants.tsv/a.tsv", "Not a directory while writing"),
    ):
        (tmp_path / "participants.tsv").touch()
        more = {"split": "validation", "predict_dir": str(dataset_dir), "predictions": str(tmp_path / predictions)}
        with pytest.raises(Exception) as error:
            regressor("predicting", dataset_dir, **more)
        assert message in chain(error) and not (tmp_path / "output").exists()


def test_predictions_of_a_stopped_run_are_not_made_again(regressor, dataset_dir, tmp_path, monkeypatch):
    regressor("training", dataset_dir)
    settings = {"split": "validation", "predict_dir": str(dataset_dir), "stretch_intensities": True}
    once, twice = tmp_path / "once.tsv", tmp_path / "twice.tsv"
    regressor("predicting", dataset_dir, predictions=str(once), **settings)
    # As if the run was stopped after 30 of 32 volumes: their rows are kept, one of them changed, which shows its use.
    table = list(csv.reader(once.open(), delimiter="\t"))
    journal = regression.Journal(twice, [sha256(tmp_path / "models" / "regressor.pt"), tiny.SPACING_MM, True])
    journal.open([])
    for row in table[1:31]:
        journal.add(row[1], [*row[:-1], "kept"])
    regressor("predicting", dataset_dir, predictions=str(twice), **settings)
    found = list(csv.reader(twice.open(), delimiter="\t"))
    assert [row[:-1] for row in found] == [row[:-1] for row in table]
    assert [row[-1] for row in found] == ["tool", *["kept"] * 30, *["regressor"] * 2]
    assert not journal.path.exists()


def test_nothing_to_predict_and_unknown_overrides_are_refused_before_any_work(regressor, dataset_dir, tmp_path, monkeypatch):
    with pytest.raises(Exception) as error:
        regressor("predicting", dataset_dir)
    assert "nothing to predict. Give --predict_dir FOLDER" in chain(error)
    command = ["monai.bundle", "run", "training", "--config_file", "configs/train_regressor.json", "--regressor_epoch", "3"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(Exception) as error:
        regressor("training", dataset_dir)
    assert "no setting is called 'regressor_epoch'" in chain(error) and "'regressor_epochs'" in chain(error)
    assert not (tmp_path / "models").exists()


def test_scans_that_a_regressor_was_trained_on_are_no_test_of_it(regressor, dataset_dir, tmp_path):
    """Another split than training's went unnoticed."""
    models = regressor("training", dataset_dir)
    table = (dataset_dir / "participants.tsv").read_text()
    shutil.copytree(dataset_dir, tmp_path / "other")
    (tmp_path / "other" / "participants.tsv").write_text(re.sub("train$", "test", table, count=12, flags=re.MULTILINE))
    with pytest.raises(Exception) as error:
        regressor("evaluating", tmp_path / "other")
    assert "12 of 12 scans in the split 'test'" in chain(error) and "were trained on" in chain(error)
    assert len(regression.load_regressor(models / "regressor.pt", tiny.SPACING_MM).recipe["seen_voxels"]) == 24
    assert not (tmp_path / "output" / "regressor.json").exists()


@pytest.fixture
def parser(bundle, dataset_dir, tmp_path):
    """train_regressor.json with settings, for a look at its parts."""
    parser = ConfigParser(ConfigParser.load_config_file("configs/train_regressor.json"))
    parser.update(tiny.places(dataset_dir, tmp_path) | KNOBS | {"cache_rate": 0.0})
    return parser


def test_a_regressor_learns_from_the_training_scans_alone(parser):
    learnt = {item["participant_id"] for item in parser.get_parsed_content("train#dataset").data}
    validated = {item["participant_id"] for item in parser.get_parsed_content("validate#dataset").data}
    assert learnt == {f"sub-{number:04d}" for number in range(1, 25)}
    assert validated == {f"sub-{number:04d}" for number in range(25, 33)}
    assert len(parser.get_parsed_content("recipe")["seen_voxels"]) == 24


@pytest.mark.parametrize(("stretched", "brightest"), [(False, 0.25), (True, 1.0)])
def test_generated_volumes_are_read_as_written_unless_told(parser, tmp_path, stretched, brightest):
    """A faint volume must not look like a bright one."""
    affine = np.diag([tiny.SPACING_MM] * 3 + [1.0])
    affine[:3, 3] = np.array([-79.019, -125.977, -61.054]) + tiny.SPACING_MM / 2
    faint = nib.Nifti1Image(np.linspace(0, 0.25, 20 * 28 * 20, dtype=np.float32).reshape(20, 28, 20), affine)
    faint.set_sform(affine, code="mni")
    (tmp_path / "generated" / "sub-1" / "anat").mkdir(parents=True)
    nib.save(faint, tmp_path / "generated" / "sub-1" / "anat" / "sub-1_T1w.nii.gz")
    everything = {"predict#dataset#data": "@predict#items"}  # without a table, which needs weights
    parser.update({"predict_dir": str(tmp_path / "generated"), "stretch_intensities": stretched, **everything})
    image = parser.get_parsed_content("predict#dataset")[0]["image"]
    assert image.max().item() == pytest.approx(brightest, abs=1e-3)
