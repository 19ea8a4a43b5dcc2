"""The layout of the repository, its documents and its requirements are consistent."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

TOP_LEVEL = {
    *("brain_ldm_bundle", "spade_fusion_bundle", "scripts", "tests"),
    *(
        "README.md",
        "CHANGELOG.md",
        "LICENSE",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "requirements.txt",
        "requirements-dev.txt",
        "constraints.txt",
        "requirements-monailabel.txt",
        "pyproject.toml",
    ),
    *(".ci", ".github", ".gitignore", ".git-blame-ignore-revs"),
}
BUNDLES = sorted(ROOT.glob("*_bundle"))
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


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


def modules(tracked, folder):
    """The Python files of a folder that are in git. A bundle also holds cohorts and models that are not."""
    return [ROOT / path for path in tracked if path.suffix == ".py" and path.is_relative_to(folder)]


def test_tools_at_top_level_do_not_import_from_a_bundle(tracked):
    """The benchmark measures the bundles' own code, and the scoreboard measures with it."""
    names = "|".join(["scripts", *(bundle.name for bundle in BUNDLES)])
    measuring = {path for room in ("speed", "scoreboard") for path in modules(tracked, f"scripts/{room}")}
    for path in set(modules(tracked, "scripts")) - measuring:
        assert not re.search(rf"^\s*(from|import) ({names}|ldm(?!\.data\.)|spade)\b", path.read_text(), re.MULTILINE), path.name


def test_bundles_do_not_name_each_other_or_the_top_level(tracked):
    names = {bundle.name for bundle in BUNDLES}
    for bundle in BUNDLES:
        for path in modules(tracked, bundle.name):
            imported = set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
            assert not imported & (names | {"scripts"}), path


def test_images_are_read_by_the_one_reader_alone(tracked):
    """Another reader would skip the checksum of gzip, or take another affine than the checks."""
    reads = re.compile(
        r"\bnib(abel)?\.(load|Nifti\w+\.(load|from_\w+))\(|from nibabel import.*\bload\b|get_fdata\(|LoadImaged?\((?!.*reader=)"
    )
    allowed = {"nifti.py", "template.py", "main.py"}  # the reader; nilearn's template; a file that MONAI Label has just written
    for folder in ("scripts", *(bundle.name for bundle in BUNDLES)):
        for path in (path for path in modules(tracked, folder) if path.name not in allowed):
            assert not reads.search(path.read_text()), path


def test_no_file_is_larger_than_25_mb(tracked):
    """The limit of the model zoo for one file."""
    assert [str(path) for path in tracked if (ROOT / path).stat().st_size > 25e6] == []


def test_every_bundle_carries_the_licence():
    for bundle in BUNDLES:
        assert (bundle / "LICENSE").read_text() == (ROOT / "LICENSE").read_text()


def headings(document):
    """Anchors of the headings of a document, as GitHub makes them."""
    found = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_local_link_of_the_documents_resolves(tracked):
    broken = []
    for document in (path for path in tracked if path.suffix == ".md"):
        text = re.sub(r"```.*?```", "", (ROOT / document).read_text(), flags=re.DOTALL)
        for target, anchor in re.findall(r"\]\(<?([^)#>\s]*)#?([^)>\s]*)", text):
            if re.match(r"\w+:", target):
                continue
            file = ROOT / document.parent / target if target else ROOT / document
            if not file.exists() or anchor and anchor not in headings(file):
                broken.append(f"{document}: {target}#{anchor}")
    assert broken == []


def required(name):
    """Requirements that a file lists, by name in lower case with hyphens."""
    lines = (re.sub(r"(^| )#.*", "", line).strip() for line in (ROOT / name).read_text().splitlines())
    found = [Requirement(line) for line in lines if line and not line.startswith("-r ")]
    return {re.sub(r"[-_.]+", "-", one.name).lower(): one for one in found}


def pinned(python):
    """Name to version of each package that constraints.txt pins for a version of Python."""
    lines = (line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
    active = [one for one in map(Requirement, lines) if not one.marker or one.marker.evaluate({"python_version": python})]
    assert all(re.fullmatch(r"==[\w.]+", str(one.specifier)) for one in active)  # one exact version, without "+cpu"
    names = [one.name for one in active]
    assert len(set(names)) == len(names), "a package is pinned twice"
    return {one.name: str(one.specifier).removeprefix("==") for one in active}


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_pin_every_requirement_to_a_version_that_it_allows(python):
    versions = pinned(python)
    for name, requirement in (required("requirements.txt") | required("requirements-dev.txt")).items():
        assert versions[name] in requirement.specifier, name


def test_torch_has_no_upper_bound():
    assert {bound.operator for bound in required("requirements.txt")["torch"].specifier} == {">="}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_versions_of_the_metadata_are_tested_and_exist_for_every_python(bundle):
    """A version that runs on the oldest Python runs on the others, too."""
    metadata = json.loads((bundle / "configs" / "metadata.json").read_text())
    named = {"monai": "monai_version", "torch": "pytorch_version", "numpy": "numpy_version"}
    versions = {name: metadata[key] for name, key in named.items()} | metadata["required_packages_version"]
    assert versions == {name: pinned(PYTHONS[0])[name] for name in versions}


@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda bundle: bundle.name)
def test_the_metadata_names_every_package_that_the_code_imports(tracked, bundle):
    named = json.loads((bundle / "configs" / "metadata.json").read_text())["required_packages_version"]
    known = {*sys.stdlib_module_names, "torch", "monai", "numpy", *named, "ignite" if "pytorch-ignite" in named else None}
    for path in modules(tracked, bundle.name):
        imported = set(re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(), re.MULTILINE))
        assert imported <= known, path


def test_every_python_is_tested():
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text()
    assert json.loads(re.search(r"python-version: (\[.*\])", workflow)[1]) == list(PYTHONS)
    setup = (ROOT / "scripts" / "setup.sh").read_text()
    assert f"({PYTHONS[0].replace('.', ', ')}) <= sys.version_info[:2] <= ({PYTHONS[-1].replace('.', ', ')})" in setup


def test_the_weekly_row_installs_the_newest_torch_and_monai_after_the_requirements():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "newest.yml").read_text())
    assert workflow[True]["schedule"]  # YAML reads `on` as true
    steps = workflow["jobs"]["tests"]["steps"]
    assert steps[1]["with"]["python-version"] == PYTHONS[-1]
    commands = [step["run"] for step in steps if "run" in step]
    assert commands[:2] == ["pip install -r requirements-dev.txt", "pip install --upgrade torch monai"]
    assert "pytest" in commands[-1] and not any("constraints" in command for command in commands)


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
