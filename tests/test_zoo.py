"""The model zoo's own checks accept both bundles. MONAI_MODEL_ZOO names a checkout of Project-MONAI/model-zoo.

The checks run unmodified, in a copy of the checkout. Only its lists of exceptions are extended, as docs/publishing.md says.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_bundles import BUNDLES, LDM, copy_bundle

ZOO = os.environ.get("MONAI_MODEL_ZOO", "")


@pytest.mark.slow
@pytest.mark.skipif(not ZOO, reason="set MONAI_MODEL_ZOO to the folder of a checkout of github.com/Project-MONAI/model-zoo")
@pytest.mark.parametrize("name", BUNDLES)
def test_verify_bundle_of_the_zoo_accepts_a_bundle(tmp_path, name):
    assert (Path(ZOO) / "ci" / "verify_bundle.py").is_file(), (
        f"MONAI_MODEL_ZOO {ZOO}: expected a checkout with ci/verify_bundle.py"
    )
    shutil.copytree(Path(ZOO) / "ci", tmp_path / "ci")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model_info.json").write_text(json.dumps({}))
    copy = copy_bundle(name, tmp_path / "models")
    (copy / "large_files.yml").unlink(missing_ok=True)  # names weights of 2.3 GB
    if name == LDM:  # its networks cannot be scripted
        lists = tmp_path / "ci" / "bundle_custom_data.py"
        text, added = re.subn(r"(?m)^(exclude_verify_torchscript_list = \[)", rf'\1\n    "{name}",', lists.read_text())
        assert added == 1
        lists.write_text(text)
    command = [sys.executable, "ci/verify_bundle.py", "--b", name, "-p", "models", "-m", "full"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
