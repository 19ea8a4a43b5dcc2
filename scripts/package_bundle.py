"""Check a bundle and pack it as the MONAI model zoo does, into dist/<name>_v<version>.zip and a file with its sha256.

    python scripts/package_bundle.py brain_ldm_bundle
    python scripts/package_bundle.py spade_fusion_bundle --weights spade_fusion_bundle/models

`monai.bundle download --name ... --url ...` reads such a file. The same content gives the same bytes on any machine.

With --no-python, the zip holds configs and weights of brain_ldm_bundle and no Python, for places that admit none. It makes
single volumes only, and its docs/README.md says what is lost.

With --weights, the command packs your trained weights, but only the files that configs/inference.json names. Without it, the
command packs the weights that come with this project (models/demo_*). A file over 25 MB, the zoo's limit, must have an entry in
large_files.yml with its download address. It is then left out of the zip.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from command_line import Parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--output", type=Path, default=Path("dist"), help="folder for the zip (default dist)")
    parser.add_argument("--weights", type=Path, help="pack the weights from this folder, the models_dir of a training")
    parser.add_argument("--no-python", action="store_true", help="pack a bundle without Python that only makes volumes")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

import yaml
from monai.bundle import ConfigParser
from shared import refusals
from shared.files import atomic, read_json, read_tensors, refuse_twice, refuse_unwritable, sha256, write_text

MOST_BYTES = 25_000_000
CONTENT = {  # folder: the files that it may hold
    ".": ("LICENSE", "large_files.yml"),
    "configs": ("*.json", "logging.conf"),
    "docs": ("*.md", "*.txt", "*.png", "*.ipynb"),
    "scripts": ("*.py",),
}
NECESSARY = ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/metadata.json", "configs/inference.json")
HEADINGS = (
    *("Description", "Model Overview", "Data", "Training configuration", "Performance", "Execution commands"),
    *("Limitations", "References", "License"),
)
METADATA = (
    *("schema", "version", "changelog", "monai_version", "pytorch_version", "numpy_version", "required_packages_version"),
    *("name", "task", "description", "authors", "copyright", "intended_use", "network_data_format"),
)
VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc|\.post|\.dev)\d+)?")
ABSOLUTE_PATH = re.compile(
    r"(?<![\w.:/<])(/(?:home|Users|root|tmp|mnt|media|scratch|work|workspace)/[^\s\"']*"
    r"|(?:[A-Z]:(?:\\{1,2}|/(?!/))|~/)\w[^\s\"']*)"
)
ABSOLUTE_VALUE = re.compile(r'"(/\w[^"]*)"')  # in JSON; text of messages may have examples such as /data/study
LOADER = "scripts.shared.weights.load_weights"
WEIGHTS_OF_A_CONFIG = re.compile(r"@models_dir \+ '/([\w.-]+\.pt)'")


def files_of(bundle: Path, weights: Path | None = None) -> dict[str, Path]:
    """Return the files of a release, sorted by their path inside the bundle. Caches, results and checkpoints are left out."""
    if not (bundle / "configs" / "metadata.json").is_file():
        raise FileNotFoundError(f"{bundle}: not a bundle, because it has no configs/metadata.json. Give the folder of a bundle")
    files = {}
    for folder, patterns in CONTENT.items():
        for path in (bundle / folder).glob("*" if folder == "." else "**/*"):
            hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(bundle).parts)
            if hidden or not path.is_file():
                continue
            if not any(path.match(pattern) for pattern in patterns):
                raise ValueError(f"{path}: does not belong in a bundle ({folder}: {', '.join(patterns)}). Move or delete it")
            files[path.relative_to(bundle).as_posix()] = path
    if weights is None:
        files |= {f"models/{path.name}": path for path in (bundle / "models").glob("demo_*")}
    else:
        for name in WEIGHTS_OF_A_CONFIG.findall((bundle / "configs" / "inference.json").read_text()):
            if not (weights / name).is_file():
                raise FileNotFoundError(f"{weights / name}: no such file, but configs/inference.json needs it. Train it first")
            files[f"models/{name}"] = weights / name
    return dict(sorted(files.items()))


def large_files(bundle: Path) -> dict[str, Mapping]:
    """Return the entries of large_files.yml, keyed by path inside the bundle."""
    path = bundle / "large_files.yml"
    try:
        entries = (yaml.safe_load(path.read_bytes()) or {}).get("large_files", []) if path.is_file() else []
        return {entry["path"]: entry for entry in entries}
    except (yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{path}: expected YAML with a list large_files, whose entries have a path ({reason})") from error


def problems(bundle: Path, files: Mapping[str, Path]) -> Iterator[str]:
    """Yield the reasons why the model zoo would refuse the bundle, or why it would not run for other people."""
    listed = large_files(bundle)
    yield from (f"{name} is missing" for name in NECESSARY if name not in files)
    if not any(name.endswith(".pt") for name in (*files, *listed)):
        yield "there are no weights, neither in models/ nor in large_files.yml. Give --weights, the models_dir of a training"
    for name, path in files.items():
        if path.stat().st_size > MOST_BYTES and name not in listed:
            yield (
                f"{name} has {path.stat().st_size / 1e6:.0f} MB, but the zoo accepts only 25. Upload it, and add "
                "its path, url, hash_val and hash_type to large_files.yml"
            )
        kind = listed.get(name, {}).get("hash_type")
        if kind and hashlib.new(kind, path.read_bytes()).hexdigest() != listed[name].get("hash_val"):
            yield f"{name} is not the file that large_files.yml names: its {kind} differs"
        try:
            if path.suffix == ".pt":
                read_tensors(path)  # for example a pointer of Git LFS has the name, but not the weights
                continue
            text = "" if path.suffix == ".png" else path.read_text(encoding="utf-8")
        except ValueError as error:
            yield f"{name}: {error}"
            continue
        if path.suffix in {".json", ".py", ".conf", ".yml"}:
            whole = ABSOLUTE_VALUE.findall(text) if path.suffix == ".json" else []
            for found in dict.fromkeys([*ABSOLUTE_PATH.findall(text), *whole]):
                yield f"{name} names a place on one computer: {found}"
        if name.startswith("configs/") and name.endswith(".json"):
            yield from config_problems(name, path, files)
    try:
        yield from metadata_problems(read_json(files["configs/metadata.json"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        yield f"configs/metadata.json is not as the zoo describes it: {error}"
    if "docs/README.md" in files:
        headings = re.findall(r"^## (.+)$", files["docs/README.md"].read_text("utf-8", errors="replace"), re.MULTILINE)
        if absent := [heading for heading in HEADINGS if heading not in headings]:
            yield f"docs/README.md lacks the headings {', '.join(absent)}"


def metadata_problems(metadata: Mapping) -> Iterator[str]:
    """Yield the problems of configs/metadata.json."""
    if absent := [key for key in METADATA if key not in metadata]:
        yield f"configs/metadata.json lacks {', '.join(absent)}"
        return
    if metadata["version"] not in metadata["changelog"]:
        yield f"configs/metadata.json: version {metadata['version']} is not in the changelog"
    versions = {name: metadata[f"{name}_version"] for name in ("monai", "pytorch", "numpy")}
    for name, version in {"version": metadata["version"], **versions, **metadata["required_packages_version"]}.items():
        if not (isinstance(version, str) and VERSION.fullmatch(version)):
            yield f'configs/metadata.json: {name} {version!r} is not one exact version in text, such as "0.1.0"'
    tensors = metadata["network_data_format"]
    if list(tensors["inputs"])[:1] != ["image"] or list(tensors["outputs"])[:1] != ["pred"]:
        yield "configs/metadata.json: the first input must be called image, the first output pred"


def config_problems(name: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    """Yield the problems of a config. It must be JSON without repeated keys, and the files must include its code."""
    text = path.read_text(encoding="utf-8")
    try:
        json.loads(text, object_pairs_hook=refuse_twice)
        ConfigParser(ConfigParser.load_config_file(path)).parse()
    except (ValueError, KeyError) as error:
        yield f"{name}: {error}"
        return
    for dotted in sorted(set(re.findall(r"\bscripts\.([a-z]\w*(?:\.\w+)*)", text))):
        place = "scripts"
        for part in dotted.split("."):  # up to the module; the rest is an object in it
            place = f"{place}/{part}"
            if f"{place}.py" in files:
                break
            if not any(file.startswith(f"{place}/") for file in files):
                yield f"{name} uses {place}.py, which is missing"
                break


def checked_files(bundle: Path, weights: Path | None = None) -> dict[str, Path]:
    """Return the result of `files_of` without the files that large_files.yml names.

    Raises:
        FileNotFoundError: the bundle or its weights do not exist.
        ValueError: the bundle cannot be released. The message lists all reasons.
    """
    files = files_of(bundle, weights)
    if found := list(problems(bundle, files)):
        raise ValueError("\n  ".join([f"{bundle} cannot be released:", *found]))
    return {name: path for name, path in files.items() if name not in large_files(bundle)}


def refuse_unloadable(bundle: Path, weights: Path) -> None:
    """Load weights with the bundle's own config. It refuses those of another bundle, and files of two trainings.

    Raises:
        ValueError: the weights cannot be loaded.
    """
    entries = read_json(bundle / "configs" / "inference.json").items()
    loaders = [f"@{name}" for name, entry in entries if isinstance(entry, dict) and entry.get("_target_") == LOADER]
    with tempfile.TemporaryDirectory() as folder:
        overlay = Path(folder) / "loading.json"
        overlay.write_text(json.dumps({"loading": loaders}))
        configs = f"['configs/inference.json','{overlay}']"
        command = [sys.executable, "-m", "monai.bundle", "run", "loading", "--config_file", configs, "--models_dir"]
        run = subprocess.run([*command, str(weights.absolute())], cwd=bundle, capture_output=True, text=True)
    if run.returncode:
        reason = run.stderr.strip().splitlines()[-1].removeprefix("error: ")
        raise ValueError(f"{bundle} cannot be released, because its weights cannot be loaded: {reason}")


def release(bundle: Path, output: Path, weights: Path | None = None) -> Path:
    """Check a bundle, and write its zip and a file with the sha256 into the same folder.

    The zip is not compressed. Weights and pictures would hardly shrink, and without compression the bytes do not depend on the
    version of a compressor.
    """
    files = checked_files(bundle, weights)
    return write_zip(files, bundle.name, output)


def release_without_python(bundle: Path, output: Path, weights: Path) -> Path:
    """Check a bundle, and write the zip of its form without Python, which is called BUNDLE_no_python."""
    from releases.no_python import write_no_python

    checked_files(bundle, weights)
    with tempfile.TemporaryDirectory() as folder:
        write_no_python(bundle, weights.absolute(), Path(folder))
        files = {path.relative_to(folder).as_posix(): path for path in sorted(Path(folder).rglob("*")) if path.is_file()}
        return write_zip(files, f"{bundle.name}_no_python", output)


def write_zip(files: Mapping[str, Path], name: str, output: Path) -> Path:
    version = json.loads(files["configs/metadata.json"].read_text())["version"]
    path = output / f"{name}_v{version}.zip"
    with atomic(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for inside, source in files.items():
            entry = zipfile.ZipInfo(f"{name}/{inside}", date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o100644 << 16  # Unix, mode of a regular file
            archive.writestr(entry, source.read_bytes())
    write_text(path.with_name(f"{path.name}.sha256"), f"{sha256(path)}  {path.name}\n")
    return path


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    refuse_unwritable(options.output / "bundle.zip")
    bundle = options.bundle.resolve()
    if options.no_python:
        if options.weights is None:
            raise ValueError("--no-python packs trained weights. Give their folder by --weights, the models_dir of a training")
        path = release_without_python(bundle, options.output, options.weights)
        print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256(path)}. Its docs/README.md says what it lacks.")
        return
    if options.weights is not None:
        checked_files(bundle, options.weights)
        refuse_unloadable(bundle, options.weights)
    path = release(bundle, options.output, options.weights)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    print(f"{path}: {len(names)} files, {path.stat().st_size / 1e6:.1f} MB, sha256 {sha256(path)}")
    if f"{bundle.name}/models/model.pt" not in names:
        print("models/model.pt is not included. Train first, or download the weights that large_files.yml names.")


if __name__ == "__main__":
    refusals.run(main)
