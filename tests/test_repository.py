"""The layout of the repository is what the README and MONAI's bundle commands rely on."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

TOP_LEVEL = {
    *("brain_ldm_bundle", "spade_fusion_bundle", "scripts", "tests"),
    *(
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "requirements.txt",
        "requirements-dev.txt",
        "requirements-monailabel.txt",
        "pyproject.toml",
    ),
    *(".ci", ".github", ".gitignore", ".git-blame-ignore-revs"),
}
BUNDLES = sorted(ROOT.glob("*_bundle"))


@pytest.fixture(scope="module")
def tracked():
    """Paths of the files in git, relative to the root."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [Path(name) for name in names.split("\0") if name and (ROOT / name).is_file()]


def test_top_level_holds_nothing_but_the_layout(tracked):
    assert {path.parts[0] for path in tracked} <= TOP_LEVEL


def test_top_level_scripts_is_no_package():
    """With an `__init__.py` it would hide the `scripts` of each bundle from `python -m monai.bundle run`."""
    assert not (ROOT / "scripts" / "__init__.py").exists()


def test_tools_at_top_level_do_not_import_from_a_bundle():
    names = "|".join(["scripts", *(bundle.name for bundle in BUNDLES)])
    for path in sorted((ROOT / "scripts").rglob("*.py")):
        assert not re.search(rf"^\s*(from|import) ({names})\b", path.read_text(), re.MULTILINE), path.name


def test_bundles_do_not_name_each_other_or_the_top_level():
    names = {bundle.name for bundle in BUNDLES}
    for bundle in BUNDLES:
        for path in bundle.rglob("*.py"):
            imported = set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
            assert not imported & (names | {"scripts"}), path


def test_no_file_is_larger_than_25_mb(tracked):
    """The limit of the model zoo for one file."""
    assert [str(path) for path in tracked if (ROOT / path).stat().st_size > 25e6] == []


def test_every_bundle_carries_the_licence():
    for bundle in BUNDLES:
        assert (bundle / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def test_every_local_link_of_the_documents_resolves(tracked):
    broken = []
    for document in (path for path in tracked if path.suffix == ".md"):
        text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.DOTALL)
        for target in re.findall(r"\]\(<?([^)#>\s]+)", text):
            if not re.match(r"\w+:", target) and not (ROOT / document.parent / target).exists():
                broken.append(f"{document}: {target}")
    assert broken == []


def test_requirements_pin_the_monai_version_of_the_metadata():
    pinned = re.search(r"^monai==(\S+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)[1]
    for metadata in ROOT.glob("*_bundle/configs/metadata.json"):
        assert f'"monai_version": "{pinned}"' in metadata.read_text(), metadata


def test_slow_and_gpu_tests_are_left_out_by_default(pytestconfig):
    assert "not slow and not gpu" in " ".join(pytestconfig.getini("addopts"))


@pytest.mark.parametrize("path", sorted(ROOT.glob("scripts/*.sh")) + [ROOT / ".ci/run"], ids=lambda path: path.name)
def test_shell_scripts_are_well_formed(path):
    checked = subprocess.run(["bash", "-n", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr


def test_fixture_enters_a_bundle_and_leaves_none_of_its_modules_behind(bundle, forget_scripts):
    import scripts

    assert Path(scripts.__file__).parent == bundle / "scripts"
    forget_scripts()
    assert "scripts" not in sys.modules
