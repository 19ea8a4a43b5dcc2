"""MONAI's own bundle commands work offline with our bundles, on copies with weights of tiny networks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT, forgotten_scripts
from monai.bundle import ConfigParser
from tiny_bundles import BUNDLES, LDM, SPADE, SPADE_SIZES, UNET, config, settings

from brain_ldm_bundle.scripts.data.covariates import NULL
from brain_ldm_bundle.scripts.model.networks import DiffusionUNet, OneInputUNet
from spade_fusion_bundle.scripts.data.planes import PLANES
from spade_fusion_bundle.scripts.model.networks import SpadeFusion

SCHEMA = ROOT.parent / "shared" / "reference" / "meta_schema_20240725.json"


@pytest.mark.skipif(not SCHEMA.is_file(), reason=f"no copy of the schema at {SCHEMA}")
@pytest.mark.parametrize("name", BUNDLES)
def test_verify_metadata_accepts_it(enter, name, tmp_path):
    schema = shutil.copy(SCHEMA, tmp_path / "schema.json")  # MONAI takes a file that is there, and downloads nothing
    enter(name)
    monai.bundle.verify_metadata(meta_file="configs/metadata.json", filepath=schema)
    broken = json.loads(Path("configs/metadata.json").read_text())
    del broken["network_data_format"]["outputs"]
    (tmp_path / "broken.json").write_text(json.dumps(broken))
    with pytest.raises(ValueError, match="'outputs' is a required property"):
        monai.bundle.verify_metadata(meta_file=str(tmp_path / "broken.json"), filepath=schema)


@pytest.mark.parametrize("name", BUNDLES)
def test_verify_net_in_out_finds_the_shapes_of_the_metadata(enter, name):
    enter(name)
    monai.bundle.verify_net_in_out("network_def", **config("inference"), device="cpu")
    wrong = {"_meta_#network_data_format#outputs#pred#num_channels": 2}
    with pytest.raises(ValueError, match="output channel number"):
        monai.bundle.verify_net_in_out("network_def", **config("inference"), device="cpu", **wrong)


@pytest.mark.filterwarnings("ignore:perceptual", "ignore:no VGG")
@pytest.mark.parametrize("workflow", ["train", "inference", "evaluate"])
@pytest.mark.parametrize("name", BUNDLES)
def test_no_property_is_missing_or_misnamed(enter, data, name, workflow, tmp_path):
    """Every property can also be built; a training needs no weights for this."""
    enter(name)
    kind = "train" if workflow == "train" else "inference"
    made = monai.bundle.create_workflow(
        config_file=f"configs/{workflow}.json", workflow_type=kind, **settings(name, data, workflow, tmp_path)
    )
    assert made.check_properties() == []
    assert Path(made.bundle_root) == Path.cwd() and made.device == torch.device("cpu")
    if workflow == "train":
        assert made.max_epochs == 1 and made.val_interval >= 1
        assert len(made.train_dataset_data) and len(made.val_dataset_data)
        assert made.train_handlers and made.val_handlers and "val_" in next(iter(made.val_key_metric))


def infer(name: str, data: dict, folder: Path, **more) -> list[Path]:
    """Run the inference of a bundle from Python, and return the paths of the images."""
    workflow = monai.bundle.create_workflow(
        config_file="configs/inference.json", workflow_type="inference", **settings(name, data, "inference", folder) | more
    )
    workflow.run()
    workflow.finalize()
    return sorted((folder / "out").glob("sub-*/anat/*_T1w.nii.gz"))


def test_both_bundles_work_in_one_process_one_after_the_other(enter, data, tmp_path):
    """Each bundle has its own `scripts`. A program that uses both unloads one before the other, as MONAI Label does."""
    one_map = next(Path(data[SPADE]).rglob("sub-01_dseg.nii.gz"))
    for number, name in enumerate((LDM, SPADE, LDM)):
        enter(name)
        more = {} if name == LDM else {"label_maps": str(one_map)}
        images = infer(name, data, tmp_path / str(number), **more)
        assert len(images) == 1, name
        expected = (20, 28, 20) if name == LDM else nib.load(one_map).shape
        assert nib.load(images[0]).shape == expected


def test_a_cohort_can_be_made_again_from_the_table_in_its_folder(enter, data, tmp_path):
    enter(LDM)
    (first,) = infer(LDM, data, tmp_path / "first")
    (again,) = infer(LDM, data, tmp_path / "again", request={}, dataset_dir=str(tmp_path / "first" / "out"))
    assert again.name == first.name and np.array_equal(nib.load(again).dataobj, nib.load(first).dataobj)


def blocks(*shape: int) -> torch.Tensor:
    """A label map with classes 0 to 5 in blocks, and empty slices at one end of each axis."""
    torch.manual_seed(1)
    coarse = torch.randint(0, 6, (1, 1, *(side // 8 for side in shape))).float()
    labels = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3).repeat_interleave(8, 4)
    labels[:, :, :8], labels[:, :, :, -8:], labels[..., :16] = 0, 0, 0
    return labels


def spade_network(copy: Path) -> SpadeFusion:
    state = torch.load(copy / "models" / "model.pt", weights_only=True)
    network = SpadeFusion(**SPADE_SIZES, num_labels=json.loads(bytes(state["_extra_state"].tolist()))["network"]["num_labels"])
    network.load_state_dict(state)
    return network.eval()


@pytest.mark.slow
@torch.no_grad()
def test_spade_is_exported_to_torchscript_by_scripting(enter, tmp_path):
    copy = enter(SPADE)
    file = tmp_path / "model.ts"
    monai.bundle.ckpt_export("network_def", filepath=str(file), ckpt_file="models/model.pt", **config("inference"))
    extra = {"metadata.json": "", "inference.json": ""}
    exported = torch.jit.load(file, _extra_files=extra)
    labels = blocks(32, 64, 96)
    image = exported(labels)
    torch.testing.assert_close(image, spade_network(copy)(labels), atol=1e-5, rtol=0)
    assert image.std() > 0.05 and (image[labels == 0] == 0).all()
    assert json.loads(extra["metadata.json"])["version"] == json.loads(Path("configs/metadata.json").read_text())["version"]
    with pytest.raises(torch.jit.Error, match="this network knows 0 to"):
        exported(labels + 100)
    with pytest.raises(torch.jit.Error, match="both sides must be multiples of 32"):
        exported(labels[:, :, :, :40])


def ldm_inputs(batch: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, time steps, covariates, and the three of them packed into the single input of `OneInputUNet`."""
    torch.manual_seed(1)
    latents, timesteps = torch.randn(batch, 3, 20, 28, 20), torch.tensor([7, 999, 512])[:batch]
    context = torch.rand(batch, 1, 4)
    values = torch.cat([timesteps[:, None].float(), context[:, 0]], dim=1)  # (B, 1 + 4)
    packed = torch.cat([latents, values[..., None, None, None].expand(-1, -1, 20, 28, 20)], dim=1)
    return latents, timesteps, context, packed


def ldm_network(copy: Path) -> DiffusionUNet:
    network = DiffusionUNet(**UNET)
    network.load_state_dict(torch.load(copy / "models" / "model.pt", weights_only=True))
    return network.eval()


@pytest.mark.slow
@torch.no_grad()
def test_the_ldm_is_exported_to_torchscript_by_tracing(enter, tmp_path):
    """The trace uses every input: time step and covariates are no constants in it."""
    copy = enter(LDM)
    file = tmp_path / "model.ts"
    monai.bundle.ckpt_export(
        "export_def", filepath=str(file), ckpt_file="models/model.pt", use_trace=True, input_shape=[1, 8, 20, 28, 20],
        **config("inference"),
    )  # fmt: skip
    exported, network = torch.jit.load(file), ldm_network(copy)
    for batch in (1, 3):
        latents, timesteps, context, packed = ldm_inputs(batch)
        torch.testing.assert_close(exported(packed), network(latents, timesteps, context), atol=1e-5, rtol=0)
    assert (exported(packed)[0] - exported(packed.roll(1, 0))[1]).abs().max() < 1e-5
    assert (network(latents, timesteps, context) - network(latents, timesteps.flip(0), context)).abs().max() > 1e-2


@pytest.mark.parametrize("net_id", ["network_def", "autoencoder_def"])
def test_the_ldm_cannot_be_scripted_as_its_docs_say(enter, net_id):
    """If this test fails, MONAI's networks can be scripted: then remove the tracing and the note for the model zoo."""
    enter(LDM)
    parser = monai.bundle.ConfigParser(monai.bundle.ConfigParser.load_config_file("configs/inference.json"))
    with pytest.raises((RuntimeError, torch.jit.frontend.NotSupportedError)):
        torch.jit.script(parser.get_parsed_content(net_id))
    assert "TorchScript" in Path("docs/README.md").read_text()


@torch.no_grad()
def test_without_step_and_covariates_the_network_takes_step_0_and_withholds_all(enter):
    network = ldm_network(enter(LDM))
    latents, *_ = ldm_inputs(2)
    expected = network(latents, torch.zeros(2, dtype=torch.long), torch.full((2, 1, 4), NULL))
    assert torch.equal(network(latents), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
@torch.no_grad()
def test_onnx_export_gives_the_same_answers(enter, name, tmp_path):
    """This takes about a minute, because the exporter is slow for networks of any size."""
    pytest.importorskip("onnxscript")
    evaluator = pytest.importorskip("onnx.reference").ReferenceEvaluator
    copy = enter(name)
    file = tmp_path / "model.onnx"
    shape, net_id = ([1, 1, 32, 32, 32], "network_def") if name == SPADE else ([1, 8, 20, 28, 20], "export_def")
    smaller = {"slices_per_batch": 32} if name == SPADE else {}
    monai.bundle.onnx_export(
        net_id, filepath=str(file), ckpt_file="models/model.pt", input_shape=shape, **config("inference"), **smaller
    )
    if name == SPADE:
        given = blocks(32, 32, 32)
        expected = spade_network(copy)(given)
    else:
        latents, timesteps, context, given = ldm_inputs(1)
        expected = ldm_network(copy)(latents, timesteps, context)
    session = evaluator(str(file))
    (answer,) = session.run(None, {session.input_names[0]: given.numpy()})
    torch.testing.assert_close(torch.from_numpy(answer), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
@torch.no_grad()
def test_the_ldm_is_exported_by_torch_export_with_trained_weights_and_any_batch(enter, tmp_path):
    copy = enter(LDM)
    for kind in ("model", "autoencoder"):
        shutil.copy(ROOT / LDM / "models" / f"demo_{kind}.pt", tmp_path / f"{kind}.pt")
    monai.bundle.run("exporting", config_file=str(copy / "configs" / "inference.json"), models_dir=str(tmp_path))
    networks = ConfigParser(ConfigParser.load_config_file("configs/inference.json"))
    networks.update({"models_dir": str(tmp_path)})
    unet, autoencoder = (networks.get_parsed_content(f"trained_{kind}").eval() for kind in ("network", "autoencoder"))
    extra = {"recipe.json": ""}
    exported = torch.export.load(tmp_path / "unet.pt2", extra_files=extra).module()
    decoder = torch.export.load(tmp_path / "decoder.pt2").module()
    latent = torch.randn(3, *networks.get_parsed_content("latent_shape"), generator=torch.Generator().manual_seed(1))
    steps, context = torch.tensor([7, 999, 512]), torch.rand((3, 1, 4), generator=torch.Generator().manual_seed(2))
    for batch in (1, 3):
        given = latent[:batch], steps[:batch], context[:batch]
        torch.testing.assert_close(exported(*given), unet(*given), atol=1e-5, rtol=0)
    torch.testing.assert_close(decoder(latent[:1]), autoencoder.decode(latent[:1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(decoder(latent[:2]), autoencoder.decode(latent[:2]), atol=1e-5, rtol=0)
    assert (exported(latent, steps, context) - exported(latent, steps.flip(0), context)).abs().max() > 1e-2
    recipe = json.loads(extra["recipe.json"])
    assert recipe["covariates"] == unet.recipe["covariates"] and recipe["scale_factor"] == unet.scale_factor.item()


@pytest.mark.slow
@torch.no_grad()
def test_spade_is_exported_by_torch_export(enter):
    copy = enter(SPADE)
    monai.bundle.run("exporting", config_file=str(copy / "configs" / "inference.json"), models_dir=str(copy / "models"))
    exported = torch.export.load(copy / "models" / "model.pt2").module()
    labels = blocks(64, 64, 64)  # the field of view at 4 mm, 40 x 56 x 40, padded to multiples of 32
    image = exported(labels)
    torch.testing.assert_close(image, spade_network(copy)(labels), atol=1e-5, rtol=0)
    assert image.std() > 0.05 and (image[labels == 0] == 0).all()
    with pytest.raises(AssertionError, match="Guard failed"):
        exported(blocks(64, 64, 96))
    code = "import sys, torch; torch.export.load(sys.argv[1]).module(); assert 'monai' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code, copy / "models" / "model.pt2"], cwd=copy.parent).returncode == 0


def test_the_one_input_network_takes_the_same_weights():
    assert OneInputUNet(**UNET).state_dict().keys() == DiffusionUNet(**UNET).state_dict().keys()


@pytest.mark.parametrize("name", BUNDLES)
def test_a_bundle_leaves_no_file_where_it_is_used(enter, data, name, tmp_path, monkeypatch):
    """The caller is in another folder and uses absolute paths; the bundle writes nothing there."""
    copy = enter(name)
    here = tmp_path / "elsewhere"
    here.mkdir()
    monkeypatch.chdir(here)
    with forgotten_scripts():
        overrides = settings(name, data, "inference", tmp_path)
        parser = monai.bundle.ConfigParser(monai.bundle.ConfigParser.load_config_file(copy / "configs" / "inference.json"))
        parser.update(overrides)
        assert parser.get_parsed_content("model_file") == str(copy / "models" / "model.pt")
        parser.get_parsed_content("network")
    assert os.listdir(here) == []


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("tracking", ["mlflow", "configs/tracking.json"])
@pytest.mark.parametrize("name", BUNDLES)
def test_mlflow_tracks_training_in_a_local_database(enter, data, name, tracking, tmp_path):
    """MONAI's own settings track only the last stage. mlflow is not in our requirements, because it brings fifty packages."""
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed: pip install mlflow")
    enter(name)
    overrides = settings(name, data, "train", tmp_path)
    workflow = monai.bundle.create_workflow(
        config_file="configs/train.json", workflow_type="train", tracking=tracking, **overrides
    )
    workflow.run()
    workflow.finalize()
    client = mlflow.tracking.MlflowClient(f"sqlite:///{tmp_path / 'out' / 'mlruns.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name != "Default"]
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    last = {"brain_ldm_bundle": "val_mse", "spade_fusion_bundle": "val_psnr"}[name]
    if tracking == "mlflow":
        (metrics,) = [run.data.metrics for run in runs]
        assert {"train_loss", last} <= metrics.keys()
        return
    found = {run.info.run_name: run.data.metrics.keys() for run in runs}
    expected = {
        LDM: {"autoencoder": {"loss", "l1", "kl", "val_ssim"}, "diffusion": {"loss", last}},
        SPADE: {**{f"spade_{plane}": {"features", "discriminator", "val_ssim"} for plane in PLANES}, "fusion": {"loss", last}},
    }[name]
    assert found.keys() == expected.keys()
    for stage, names in expected.items():
        assert names <= found[stage], stage
