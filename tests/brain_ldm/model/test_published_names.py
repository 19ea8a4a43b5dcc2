"""The overlay for the published UK Biobank weights fits large_files.yml, inference.json and the published architecture."""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT
from monai.bundle import ConfigParser, download_large_files

from brain_ldm_bundle.scripts.model.networks import Autoencoder, DiffusionUNet
from brain_ldm_bundle.scripts.model.published_names import BEYOND_PUBLISHED
from brain_ldm_bundle.scripts.shared.refusals import reason

BUNDLE = ROOT / "brain_ldm_bundle"
OVERLAY = json.loads((BUNDLE / "configs" / "published.json").read_text())
LARGE_FILES = yaml.safe_load((BUNDLE / "large_files.yml").read_text())["large_files"]


def old_layout(state):
    """The names that monai-generative 0.2 gave, as in the published files."""
    kept = {key: value for key, value in state.items() if key not in BEYOND_PUBLISHED}
    return {key.replace(".postconv.", ".conv.").replace(".out_proj.", ".to_out.0."): value for key, value in kept.items()}


def test_the_overlay_uses_the_files_that_large_files_yml_makes():
    used = {OVERLAY[key].partition("/")[2].rstrip("'") for key in ("model_file", "autoencoder_file")}
    assert {f"models/{name}" for name in used} == {file["path"] for file in LARGE_FILES}


@pytest.mark.parametrize("network", ["trained_network", "trained_autoencoder"])
def test_a_missing_file_is_refused_with_the_command_that_fetches_it(bundle, tmp_path, network):
    """Training, which the message named, never makes these files."""
    parser = ConfigParser()
    parser.read_config(["configs/inference.json", "configs/published.json"])
    parser.update({"models_dir": str(tmp_path)})
    with pytest.raises(RuntimeError) as caught:
        parser.get_parsed_content(network)
    command = f"python -m monai.bundle download_large_files --bundle_path {bundle}"
    assert re.search(f"published_.*no such weights file. Make it with: {command}", str(reason(caught.value)))


def test_every_large_file_has_an_md5_and_an_address():
    for file in LARGE_FILES:
        assert file["hash_type"] == "md5" and re.fullmatch("[0-9a-f]{32}", file["hash_val"])
        assert file["url"].startswith("https://")
    for key in ("path", "hash_val"):
        assert len({file[key] for file in LARGE_FILES}) == 2, key
    assert [file["url"].split("/")[2] for file in LARGE_FILES] == 2 * ["huggingface.co"] + 2 * ["drive.google.com"]
    by_host = [{file["path"]: file["hash_val"] for file in part} for part in (LARGE_FILES[:2], LARGE_FILES[2:])]
    assert by_host[0] == by_host[1]


def test_the_second_address_is_not_asked_for_files_that_came_from_the_first(tmp_path):
    """The same list with small files; nothing answers at the second address."""
    (tmp_path / "models").mkdir()
    entries = []
    for number, file in enumerate(LARGE_FILES):
        source = tmp_path / Path(file["path"]).name
        source.write_bytes(file["path"].encode())
        url = source.as_uri() if number < 2 else (tmp_path / "nothing.pt").as_uri()
        entries.append(file | {"url": url, "hash_val": hashlib.md5(source.read_bytes()).hexdigest()})
    (tmp_path / "large_files.yml").write_text(yaml.safe_dump({"large_files": entries}))
    download_large_files(bundle_path=str(tmp_path))
    assert {path.name for path in (tmp_path / "models").iterdir()} == {Path(file["path"]).name for file in LARGE_FILES}


def test_names_of_published_weights_are_longer_than_those_of_our_own():
    """MONAI Label takes the shortest file name in models/ as the default."""
    assert all(len(file["path"]) > len("models/autoencoder.pt") for file in LARGE_FILES)


def test_the_overlay_changes_only_what_inference_knows():
    inference = json.loads((BUNDLE / "configs" / "inference.json").read_text())
    assert {name.partition("#")[0] for name in OVERLAY} <= inference.keys()


def test_sampling_is_that_of_the_authors():
    settings = json.loads((BUNDLE / "configs" / "inference.json").read_text()) | OVERLAY
    assert (settings["sampler_name"], settings["steps"], settings["guidance_scale"]) == ("ddim", 50, 1.0)


@pytest.mark.parametrize(
    ("network", "keys", "renamed", "parameters"), [(Autoencoder, 162, 6, 13_766_248), (DiffusionUNet, 528, 44, 553_168_899)]
)
def test_default_sizes_are_the_published_ones(network, keys, renamed, parameters):
    """Counts of the published configuration in monai-generative 0.2.3: no key more, none fewer."""
    with torch.device("meta"):
        state = network().state_dict()
    published = old_layout(state)
    assert len(published) == keys
    assert len(published.keys() - state.keys()) == renamed
    assert sum(value.numel() for value in published.values()) == parameters


@pytest.mark.slow
def test_random_weights_of_the_published_size_make_a_volume(tmp_path):
    """2.2 GB of weights in the old layout, 160 x 224 x 160 voxels of 1 mm; two steps instead of 50."""
    if shutil.disk_usage(tmp_path).free < 4e9:
        pytest.skip("needs 4 GB of disk")
    for name, network in (("published_autoencoder.pt", Autoencoder), ("published_model.pt", DiffusionUNet)):
        torch.manual_seed(0)
        torch.save(old_layout(network().state_dict()), tmp_path / name)
    files = [str(BUNDLE / "configs" / name) for name in ("inference.json", "published.json")]
    request = ["--age", "70", "--sex", "F", "--ventricles_ml", "30", "--brain_normalised_ml", "1500", "--steps", "2"]
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", str(files), "--models_dir", str(tmp_path)]
    run = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "out"), *request], cwd=tmp_path, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    (path,) = (tmp_path / "out").glob("sub-*/anat/sub-*_T1w.nii.gz")
    image = nib.load(path)
    assert image.shape == (160, 224, 160)
    assert np.allclose(image.affine, [[-1, 0, 0, 80.481], [0, 1, 0, -125.477], [0, 0, 1, -60.554], [0, 0, 0, 1]])
    for name in ("published_autoencoder.pt", "published_model.pt"):
        (tmp_path / name).unlink()
