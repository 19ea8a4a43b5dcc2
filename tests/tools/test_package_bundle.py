"""A release has the right files, bad bundles are refused, and MONAI downloads and runs the zip."""

import functools
import hashlib
import http.server
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import package_bundle
import publish_bundle
import pytest
import tiny
import tiny_spade
import torch
from conftest import ROOT
from monai.bundle import run
from tiny_bundles import BUNDLES, LDM, REQUEST, SPADE, copy_bundle

OTHERS = ("models/resume/diffusion.pt", "models/other.pt", "eval/picture.png", "cache/latent.npy", "scripts/__pycache__/a.pyc")
OTHERS += ("scripts/.ipynb_checkpoints/a-checkpoint.py",)
VERSION = json.loads((ROOT / LDM / "configs" / "metadata.json").read_text())["version"]
REQUEST_IN_TWO_STEPS = REQUEST | {"steps": 2}


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A copy of a bundle, ready for release, amid what trainings leave behind."""
    copy = copy_bundle(LDM, tmp_path_factory.mktemp("ready"))
    for name in OTHERS:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes(b"1")
    return copy


@pytest.fixture
def bundle(ready, tmp_path):
    return shutil.copytree(ready, tmp_path / LDM)


def release(bundle: Path, output: str = "dist") -> Path:
    return package_bundle.release(bundle, bundle.parent / output, bundle / "models")


def names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def write(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.touch()


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_release_holds_the_bundle_and_nothing_that_runs_leave(bundle):
    path = release(bundle)
    assert path.name == f"brain_ldm_bundle_v{VERSION}.zip"
    inside = names(path)
    assert inside == sorted(inside) and all(name.startswith("brain_ldm_bundle/") for name in inside)
    inside = {name.removeprefix("brain_ldm_bundle/") for name in inside}
    assert {"LICENSE", "large_files.yml", "configs/train.json", "scripts/__init__.py", "docs/README.md"} <= inside
    assert {name for name in inside if name.startswith("models/")} == {"models/model.pt", "models/autoencoder.pt"}
    assert inside.isdisjoint(OTHERS)
    code = {path.relative_to(bundle).as_posix() for path in (bundle / "scripts").rglob("*.py")} - set(OTHERS)
    assert code and {name for name in inside if name.endswith(".py")} == code
    with zipfile.ZipFile(path) as archive:
        assert archive.read("brain_ldm_bundle/LICENSE") == (bundle / "LICENSE").read_bytes()


def test_the_same_content_gives_the_same_bytes(bundle):
    first = release(bundle).read_bytes()
    for file in bundle.rglob("*"):
        os.utime(file, (1, 1))
    (bundle / "LICENSE").chmod(0o600)
    again = release(bundle, "again")
    assert again.read_bytes() == first
    told, name = again.with_name(f"{again.name}.sha256").read_text().split()
    assert told == hashlib.sha256(again.read_bytes()).hexdigest() and name == again.name
    (bundle / "LICENSE").write_text("another")
    assert release(bundle).read_bytes() != first


def test_without_weights_only_those_of_the_project_go(bundle):
    torch.save({}, bundle / "models" / "demo_model.pt")
    path = package_bundle.release(bundle, bundle.parent)
    assert [name for name in names(path) if "/models/" in name] == ["brain_ldm_bundle/models/demo_model.pt"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: (b / "docs/data_license.txt").unlink(), "docs/data_license.txt is missing"),
        (lambda b: edit(b / "configs/metadata.json", version="9.0.0"), "version 9.0.0 is not in the changelog"),
        (lambda b: edit(b / "configs/metadata.json", numpy_version=">=2"), "numpy '>=2' is not one exact version"),
        (lambda b: (b / "docs/README.md").write_text("## Data\n"), "lacks the headings Description, Model Overview"),
        (lambda b: (b / "configs/demo.json").write_text("{"), "configs/demo.json: Expecting property name"),
        (lambda b: (b / "configs/demo.json").write_text('{"a": 1, "a": 2}'), "configs/demo.json: given twice: a"),
        (lambda b: edit(b / "configs/demo.json", a="/home/me/data"), "names a place on one computer: /home/me/data"),
        (lambda b: edit(b / "configs/demo.json", a="D:/data/study"), "names a place on one computer: D:/data/study"),
        (lambda b: edit(b / "configs/demo.json", a="~/data/study"), "names a place on one computer: ~/data/study"),
        (lambda b: edit(b / "configs/demo.json", a="/data/study"), "names a place on one computer: /data/study"),
        (lambda b: edit(b / "configs/demo.json", a="$scripts.gone.f()"), "uses scripts/gone.py, which is missing"),
        (lambda b: edit(b / "configs/demo.json", a="$scripts.cellar.f()"), "uses scripts/cellar.py, which is missing"),
        (
            lambda b: (b / "models/model.pt").write_bytes(bytes(25_000_001)),
            "models/model.pt has 25 MB, but the zoo accepts only 25",
        ),
        (lambda b: edit(b / "configs/metadata.json", version=1.0), "version 1.0 is not one exact version in text"),
        (lambda b: edit(b / "configs/metadata.json", required_packages_version=["torch"]), "is not as the zoo describes it"),
        (lambda b: (b / "configs/metadata.json").write_text("{},"), "configs/metadata.json: Extra data"),
        (lambda b: (b / "docs/README.md").write_bytes(b"caf\xe9"), "docs/README.md: 'utf-8' codec can't decode"),
        (lambda b: (b / "large_files.yml").write_text("large_files:\n\t- a"), "expected YAML with a list large_files"),
        (lambda b: (b / "large_files.yml").write_text("large_files:\n- url: a"), "whose entries have a path ('path')"),
        (lambda b: (b / "models/model.pt").write_text("version https://git-lfs"), "model.pt: not a file of PyTorch weights"),
        (lambda b: (b / "configs/notes.doc").touch(), "notes.doc: does not belong in a bundle"),
        (lambda b: write(b / "scripts/cellar/notes.doc"), "notes.doc: does not belong in a bundle"),
    ],
)
def test_what_the_zoo_would_refuse_is_refused_with_its_name(bundle, change, message):
    change(bundle)
    with pytest.raises(ValueError) as error:
        release(bundle)
    assert message in str(error.value)
    assert not (bundle.parent / "dist").exists()


def test_missing_bundles_and_weights_are_refused(bundle, tmp_path):
    with pytest.raises(FileNotFoundError, match="not a bundle"):
        package_bundle.release(tmp_path, tmp_path)
    (bundle / "models" / "autoencoder.pt").unlink()
    with pytest.raises(FileNotFoundError, match="autoencoder.pt: no such file, but configs/inference.json needs it"):
        release(bundle)
    (bundle / "large_files.yml").unlink()
    with pytest.raises(ValueError, match="there are no weights"):
        package_bundle.release(bundle, tmp_path)


def test_a_large_file_that_is_named_is_left_out_if_it_is_the_one(bundle):
    weights = bundle / "models" / "model.pt"
    entry = "large_files:\n  - path: models/model.pt\n    url: https://example.org/m\n    hash_type: sha256\n    hash_val: {}\n"
    (bundle / "large_files.yml").write_text(entry.format(hashlib.sha256(weights.read_bytes()).hexdigest()))
    assert "brain_ldm_bundle/models/model.pt" not in names(release(bundle))
    (bundle / "large_files.yml").write_text(entry.format("0" * 64))
    with pytest.raises(ValueError, match="models/model.pt is not the file that large_files.yml names: its sha256 differs"):
        release(bundle)


def test_code_in_a_folder_of_its_own_is_packed(bundle):
    write(bundle / "scripts" / "cellar" / "deep" / "wine.py")
    edit(bundle / "configs" / "demo.json", a="$scripts.cellar.deep.wine.taste()")
    assert "brain_ldm_bundle/scripts/cellar/deep/wine.py" in names(release(bundle))


@pytest.mark.parametrize("name", BUNDLES)
def test_this_projects_bundles_are_fit_for_release(tmp_path, name):
    copy = copy_bundle(name, tmp_path)
    assert package_bundle.checked_files(copy, copy / "models")["models/model.pt"].is_file()


@pytest.mark.slow
def test_weights_that_the_bundle_would_refuse_are_not_packed(bundle, tmp_path):
    """Those of the other bundle were packed, and those of two trainings."""
    other = copy_bundle(SPADE, tmp_path)
    with pytest.raises(ValueError, match="its weights cannot be loaded: .*weights of another architecture"):
        package_bundle.main([str(other), "--weights", str(bundle / "models"), "--output", str(tmp_path / "dist")])
    state = torch.load(bundle / "models" / "autoencoder.pt", weights_only=True)
    torch.save(
        {name: value + 1 if torch.is_tensor(value) else value for name, value in state.items()},
        bundle / "models" / "autoencoder.pt",
    )
    with pytest.raises(ValueError, match="its weights cannot be loaded: .*autoencoder.pt"):
        publish_bundle.main([str(bundle), "--repo", "a/b", "--weights", str(bundle / "models"), "--dry_run"])
    assert not (tmp_path / "dist").exists()


@pytest.mark.slow
def test_a_dry_run_of_publishing_names_what_would_be_uploaded(bundle, capsys):
    arguments = [str(bundle), "--repo", "someone/brain_ldm_bundle", "--weights", str(bundle / "models"), "--dry_run"]
    publish_bundle.main(arguments)
    told = capsys.readouterr().out
    assert "Would create someone/brain_ldm_bundle (private)" in told and f"tag them {VERSION}" in told
    listed = set(re.findall(r"^ *[\d,]+ (\S+)$", told, re.MULTILINE))
    assert listed == {name.removeprefix("brain_ldm_bundle/") for name in names(release(bundle))}
    (bundle / "LICENSE").unlink()
    with pytest.raises(ValueError, match="LICENSE is missing"):
        publish_bundle.main(arguments)


def test_publishing_names_the_missing_package_and_the_command_that_installs_it(bundle, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs huggingface_hub and safetensors. Install: pip install huggingface_hub s"):
        publish_bundle.main([str(bundle), "--repo", "someone/brain_ldm_bundle"])


@pytest.mark.parametrize("name", BUNDLES)
def test_a_packed_copy_runs_from_another_folder(tmp_path, monkeypatch, forget_scripts, name):
    copy = copy_bundle(name, tmp_path / "made")
    with zipfile.ZipFile(package_bundle.release(copy, tmp_path / "dist", copy / "models")) as archive:
        archive.extractall(tmp_path / "unpacked")
    shutil.rmtree(tmp_path / "made")
    asked = REQUEST_IN_TWO_STEPS if name == LDM else {"label_maps": str(tiny_spade.write_dataset(tmp_path / "data", ("test",)))}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))  # MONAI adds the bundle
    config = str(tmp_path / "unpacked" / name / "configs" / "inference.json")
    run(config_file=config, use_device="cpu", output_dir=str(tmp_path / "out"), **asked)
    assert Path(sys.modules["scripts"].__file__).is_relative_to(tmp_path / "unpacked")
    assert list((tmp_path / "out").glob("sub-*/anat/*_T1w.nii.gz"))


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def serve():
    """Serve a folder on 127.0.0.1; gives the address."""
    servers = []

    def start(folder: Path) -> str:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLES)
def test_a_downloaded_release_infers_and_trains_by_itself(tmp_path, serve, name):
    """Each step is a process of its own, in a folder that holds nothing else of ours."""
    copy = copy_bundle(name, tmp_path / "made")
    path = package_bundle.release(copy, tmp_path / "dist", copy / "models")
    shutil.rmtree(tmp_path / "made")
    here = tmp_path / "here"
    here.mkdir()

    def monai_bundle(*arguments: object) -> None:
        command = [sys.executable, "-m", "monai.bundle", *map(str, arguments)]
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        process = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-3000:]

    def flags(**settings: object) -> list[str]:
        return [text for key, value in settings.items() for text in (f"--{key}", str(value))]

    url = f"{serve(tmp_path / 'dist')}/{path.name}"
    monai_bundle("download", "--name", name, "--url", url, "--bundle_dir", here / "bundles")
    bundle = here / "bundles" / name
    data = {LDM: tiny, SPADE: tiny_spade}[name].write_dataset(tmp_path / "data")
    asked = REQUEST_IN_TWO_STEPS if name == LDM else {"label_maps": data}
    infer = ["run", "--config_file", bundle / "configs" / "inference.json", "--use_device", "cpu", "--output_dir", here / "out"]
    monai_bundle(*infer, *flags(**asked))
    assert len(list((here / "out").glob("sub-*/anat/*_T1w.nii.gz"))) == (1 if name == LDM else 6)

    settings = (tiny if name == LDM else tiny_spade).SETTINGS | {"dataset_dir": data, "models_dir": here / "models"}
    monai_bundle("run", "training", "--config_file", bundle / "configs" / "train.json", *flags(**settings))
    assert (here / "models" / "model.pt").is_file()
    monai_bundle(*infer, "--models_dir", here / "models", *flags(**asked))
    assert sorted(os.listdir(here)) == ["bundles", "models", "out"]
