"""A network comes back from Python with the sizes, the tensors and the recipe of its weights, or an error."""

import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest
import tiny
import tiny_spade
import torch
from conftest import ROOT, forgotten_scripts
from tiny_bundles import BUNDLES, LDM, SPADE, write_spade_weights


def assert_trained(network: torch.nn.Module, weights: Path) -> None:
    """Every tensor is the file's, and the recipe too."""
    found, state = network.state_dict(), torch.load(weights, weights_only=True)
    assert found.keys() == state.keys() and json.loads(bytes(state["_extra_state"].tolist())) == network.recipe != {}
    assert all(torch.equal(found[key], value) for key, value in state.items())


@pytest.mark.parametrize("name", BUNDLES)
def test_load_builds_the_network_of_the_weights_or_refuses(enter, name):
    copy = enter(name)
    load = functools.partial(monai.bundle.load, name, bundle_dir=str(copy.parent))
    assert_trained(load(workflow_type="inference"), copy / "models" / "model.pt")
    shutil.move(copy / "models" / "model.pt", copy / "models" / "other.pt")
    try:
        other = {"model_file": "models/other.pt", "net_override": {"path": str(copy / "models" / "other.pt")}}
        assert_trained(load(workflow_type="inference", **other), copy / "models" / "other.pt")
        sizes = tiny.SIZES if name == LDM else tiny_spade.SIZES
        with pytest.raises(ValueError, match=r"these weights lack \d+ of the \d+ tensors .*net_override"):
            load(model=small_network(name, sizes), model_file="models/other.pt")
    finally:
        shutil.move(copy / "models" / "other.pt", copy / "models" / "model.pt")


def small_network(name: str, sizes: dict) -> torch.nn.Module:
    """Build `network_def` of train.json with sizes of its own, as `load` does by default."""
    parser = monai.bundle.ConfigParser(monai.bundle.ConfigParser.load_config_file("configs/train.json"))
    parser.update(sizes)
    return parser.get_parsed_content("network_def")


def documented(name: str, bundles: Path) -> list[str]:
    """The lines of Python that get a network, as the docs have them, for the bundle in the folder `bundles`."""
    page = "generation.md" if name == LDM else "README.md"
    blocks = re.findall(r"```python\n(.*?)```", (bundles / name / "docs" / page).read_text(), re.DOTALL)
    return [block.replace("/data/bundles", str(bundles)) for block in blocks if "network" in block]


def demo_weights(name: str, bundle: Path) -> Path:
    """The file that the documented lines load; the SPADE bundle comes without one, so tiny weights are written."""
    if name == SPADE:
        (bundle / "models").mkdir(exist_ok=True)
        write_spade_weights(bundle / "models")
    return bundle / "models" / ("demo_model.pt" if name == LDM else "model.pt")


@pytest.mark.parametrize("name", BUNDLES)
def test_the_documented_lines_give_the_network_of_the_weights(enter, name, tmp_path, monkeypatch):
    """They are run in one process from another folder: `create_workflow` comes first and finds the bundle by itself."""
    copy = shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("eval", "cache", "__pycache__"))
    weights = demo_weights(name, copy)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if Path(entry).name != name])
    with forgotten_scripts():
        blocks = documented(name, tmp_path)
        assert len(blocks) == 3
        for block in blocks:
            lines: dict = {}
            exec(block, lines)
            assert_trained(lines["network"], weights)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
def test_the_documented_lines_work_with_the_packed_bundle(name, tmp_path):
    command = [sys.executable, ROOT / "scripts" / "package_bundle.py", name, "--output", tmp_path]
    if name == SPADE:  # it comes without weights
        (tmp_path / "weights").mkdir()
        write_spade_weights(tmp_path / "weights")
        command += ["--weights", tmp_path / "weights"]
    subprocess.run(command, check=True, cwd=ROOT)
    (zip_file,) = tmp_path.glob("*.zip")
    shutil.unpack_archive(zip_file, tmp_path / "bundles")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = "\n".join(documented(name, tmp_path / "bundles")) + "\nprint(network.recipe['spacing_mm'])"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "bundles")}
    done = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.split()[-1] == "4.0", done.stderr[-2000:]
    assert os.listdir(elsewhere) == []
