"""The model zoo's own checks accept both bundles. MONAI_MODEL_ZOO names a checkout of Project-MONAI/model-zoo.

The checks run unmodified, in a copy of the checkout. Only its lists of exceptions are extended, as docs/publishing.md says.
The zoo downloads the schema that metadata.json names. Without a network, put it into the checkout's folder models beforehand.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from tiny_bundles import BUNDLES, LDM, copy_bundle

ZOO = os.environ.get("MONAI_MODEL_ZOO", "")


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not ZOO, reason="set MONAI_MODEL_ZOO to the folder of a checkout of github.com/Project-MONAI/model-zoo"),
]


def run(folder: Path, *command: str) -> None:
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


def replace_large_files(copy: Path) -> None:
    """Put small files in the place of the 2.3 GB of weights that large_files.yml names, with their own checksums."""
    listed = copy / "large_files.yml"
    entries = yaml.safe_load(listed.read_text())["large_files"]
    for entry in entries:
        (copy / entry["path"]).write_bytes(b"small")
        entry["hash_val"] = hashlib.new(entry["hash_type"], b"small").hexdigest()
    listed.write_text(yaml.safe_dump({"large_files": entries}))


@pytest.mark.parametrize("name", BUNDLES)
def test_verify_bundle_of_the_zoo_accepts_a_bundle(tmp_path, name):
    assert (Path(ZOO) / "ci" / "verify_bundle.py").is_file(), (
        f"MONAI_MODEL_ZOO {ZOO}: expected a checkout with ci/verify_bundle.py"
    )
    shutil.copytree(Path(ZOO) / "ci", tmp_path / "ci")
    (tmp_path / "models").mkdir()
    for file in (Path(ZOO) / "models").glob("*.json"):  # the released versions of all bundles, and schemas that are there
        shutil.copy(file, tmp_path / "models")
    copy = copy_bundle(name, tmp_path / "models")
    if name == LDM:
        replace_large_files(copy)
        lists = tmp_path / "ci" / "bundle_custom_data.py"  # its networks cannot be scripted
        text, added = re.subn(r"(?m)^(exclude_verify_torchscript_list = \[)", rf'\1\n    "{name}",', lists.read_text())
        assert added == 1
        lists.write_text(text)
    run(tmp_path, "ci/prepare_schema.py", "--l", name)
    run(tmp_path, "ci/verify_bundle.py", "--b", name, "-p", "models", "-m", "full")


@pytest.mark.parametrize("name", BUNDLES)
def test_code_passes_the_zoos_checks_of_style_after_its_formatters(tmp_path, name):
    """The formatters change lines, because our lines are longer. No check may refuse what they write."""
    for tool in ("isort", "black", "flake8", "bugbear", "pep8ext_naming"):
        pytest.importorskip(tool, reason=f"{tool} is not installed: pip install isort black flake8 flake8-bugbear pep8-naming")
    for settings in ("setup.cfg", "pyproject.toml"):
        shutil.copy(Path(ZOO) / settings, tmp_path)
    shutil.copytree(ROOT / name / "scripts", tmp_path / "models" / name / "scripts")
    run(tmp_path, "-m", "isort", ".")
    run(tmp_path, "-m", "black", "--skip-magic-trailing-comma", ".")
    run(tmp_path, "-m", "isort", "--check", ".")
    run(tmp_path, "-m", "flake8", ".")
