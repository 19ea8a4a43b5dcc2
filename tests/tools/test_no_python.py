"""The bundle without Python names only MONAI and PyTorch, and makes the volumes of the full bundle."""

import ast
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from conftest import ROOT
from tiny_bundles import AUTOENCODER, LDM, REQUEST, SPADE, UNET, copy_bundle

from brain_ldm_bundle.scripts.data.covariates import CovariateSchema
from brain_ldm_bundle.scripts.model.dpm_solver import make_sampler
from brain_ldm_bundle.scripts.model.networks import Autoencoder, DiffusionUNet
from brain_ldm_bundle.scripts.model.sampler import LatentSampler
from brain_ldm_bundle.scripts.shared import mni_box

ALLOWED_TARGETS = ("monai.", "torch.", "ignite.")
ALLOWED_NAMES = {"torch", "monai", "setattr", "float"}  # in expressions, beside references and arguments of a lambda


def package(bundle, output):
    command = [sys.executable, ROOT / "scripts" / "package_bundle.py", bundle, "--weights", bundle / "models", "--no-python"]
    return subprocess.run([*command, "--output", output], capture_output=True, text=True)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The full bundle with tiny weights, and the folder of its form without Python."""
    folder = tmp_path_factory.mktemp("packed")
    bundle = copy_bundle(LDM, folder)
    answer = package(bundle, folder / "dist")
    assert answer.returncode == 0, answer.stderr
    [path] = folder.glob("dist/*.zip")
    assert re.fullmatch(rf"{LDM}_no_python_v[\d.]+\.zip", path.name)
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "elsewhere")
    return bundle, folder / "elsewhere" / f"{LDM}_no_python"


def texts(content):
    """All strings of a config, with the key of each."""
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if isinstance(value, str):
            yield key, value
        elif isinstance(value, (dict, list)):
            yield from texts(value)


@pytest.mark.slow
def test_it_holds_no_python_and_names_only_monai_torch_and_ignite(packed):
    _, bare = packed
    assert {path.suffix for path in bare.rglob("*") if path.is_file()} == {".json", ".pt", ".md", ""}
    config = json.loads((bare / "configs" / "inference.json").read_text())
    targets = [value for key, value in texts(config) if key == "_target_"]
    assert len(targets) >= 5 and all(target.startswith(ALLOWED_TARGETS) for target in targets)
    for key, value in texts(config):
        if key in ("_target_", "_desc_") or not value.startswith("$"):
            continue
        tree = ast.parse(re.sub(r"@(\w+)", r"torch.\1", value[1:]))
        imports = [name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names]
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        arguments = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        assert names - arguments <= ALLOWED_NAMES and set(imports) <= {"torch", "monai"}, value


@pytest.mark.slow
def test_it_makes_the_volume_of_the_full_bundle_from_another_folder(packed, tmp_path):
    full, bare = packed
    request = REQUEST | {"sex": 0}  # F
    settings = [text for name, value in request.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", bare / "configs" / "inference.json", *settings]
    command += ["--bundle_root", bare, "--seed", "3", "--steps", "5", "--output_dir", tmp_path / "out"]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""})
    assert answer.returncode == 0, answer.stderr[-3000:]
    [path] = (tmp_path / "out").glob("*.nii.gz")

    unet, autoencoder = DiffusionUNet(**UNET).eval(), Autoencoder(**AUTOENCODER).eval()
    unet.load_state_dict(torch.load(full / "models" / "model.pt", weights_only=True))
    autoencoder.load_state_dict(torch.load(full / "models" / "autoencoder.pt", weights_only=True))
    spacing_mm = unet.recipe["spacing_mm"]
    sampler = LatentSampler(autoencoder, make_sampler("ddim", 5), mni_box.size(spacing_mm))
    schema = CovariateSchema.from_file(ROOT / LDM / "configs" / "covariates.json")
    expected = sampler(torch.tensor([[schema.scale(REQUEST)]]), unet, [3])[0, 0].clamp(0, 1).numpy()
    made = nib.load(path)
    np.testing.assert_allclose(made.get_fdata(), expected, atol=1e-4)
    np.testing.assert_allclose(made.affine, mni_box.affine(spacing_mm), atol=1e-4)
    assert expected.std() > 0.01


@pytest.mark.slow
def test_its_page_says_what_is_lost(packed):
    page = (packed[1] / "docs" / "README.md").read_text()
    assert all(word in page for word in ("checks", "seed for each row", "sidecars", "guidance", "{F: 0, M: 1}"))


@pytest.mark.slow
def test_the_other_bundle_and_missing_weights_are_refused(tmp_path):
    bundle = copy_bundle(SPADE, tmp_path)
    answer = package(bundle, tmp_path / "dist")
    assert answer.returncode == 1 and "--no-python is for brain_ldm_bundle only" in answer.stderr.splitlines()[-1]
    assert not list(Path(tmp_path).glob("dist/*"))
