"""Check a bundle and pack it as the MONAI model zoo releases it: dist/<name>_v<version>.zip, and its sha256 beside it.

    python scripts/package_bundle.py brain_ldm_bundle
    python scripts/package_bundle.py spade_fusion_bundle --weights spade_fusion_bundle/models

`monai.bundle download --name ... --url ...` takes such a file. The same content gives the same bytes, on any machine.

Weights of a training are never packed by accident: only with --weights, and then the files that configs/inference.json
names. Without it, those that come with this project (models/demo_*). A file over 25 MB, the zoo's limit, must be named in
large_files.yml, which says where it can be downloaded; it is then left out.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import yaml
from monai.bundle import ConfigParser

MOST_BYTES = 25_000_000
CONTENT = {  # folder: what may lie in it
    ".": ("LICENSE", "large_files.yml"),
    "configs": ("*.json", "logging.conf"),
    "docs": ("*.md", "*.txt", "*.png"),
    "scripts": ("*.py",),
}
OWN_WEIGHTS = "demo_*"
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
    r"(?<![\w.:/<])(/(?:home|Users|root|tmp|mnt|media|scratch|work|workspace)/[^\s\"']*|[A-Z]:\\\\\w[^\s\"']*)"
)
WEIGHTS_OF_A_CONFIG = re.compile(r"@models_dir \+ '/([\w.-]+\.pt)'")


def files_of(bundle: Path, weights: Path | None = None) -> dict[str, Path]:
    """Path in the bundle to file on disk, sorted: what a release holds. Caches, results and checkpoints are not among it.

    Raises:
        FileNotFoundError: no such bundle, no weights.
        ValueError: a file that belongs to no bundle.
    """
    if not (bundle / "configs" / "metadata.json").is_file():
        raise FileNotFoundError(f"{bundle}: not a bundle, there is no configs/metadata.json. Give the folder of a bundle")
    files = {}
    for folder, patterns in CONTENT.items():
        for path in (bundle / folder).glob("*" if folder == "." else "**/*"):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            if not any(path.match(pattern) for pattern in patterns):
                raise ValueError(f"{path}: does not belong in a bundle ({folder}: {', '.join(patterns)}). Move or delete it")
            files[path.relative_to(bundle).as_posix()] = path
    if weights is None:
        files |= {f"models/{path.name}": path for path in (bundle / "models").glob(OWN_WEIGHTS)}
    else:
        for name in weights_named(bundle):
            if not (weights / name).is_file():
                raise FileNotFoundError(
                    f"{weights / name}: no such file, which configs/inference.json asks for. Train it first"
                )
            files[f"models/{name}"] = weights / name
    return dict(sorted(files.items()))


def weights_named(bundle: Path) -> list[str]:
    """The names of the weights that inference asks for."""
    return sorted(set(WEIGHTS_OF_A_CONFIG.findall((bundle / "configs" / "inference.json").read_text())))


def large_files(bundle: Path) -> dict[str, Mapping]:
    """Path in the bundle to entry of large_files.yml."""
    path = bundle / "large_files.yml"
    entries = (yaml.safe_load(path.read_text()) or {}).get("large_files", []) if path.is_file() else []
    return {entry["path"]: entry for entry in entries}


def problems(bundle: Path, files: Mapping[str, Path]) -> Iterator[str]:
    """What the model zoo, or whoever downloads the bundle, would stumble over; a sentence each."""
    listed = large_files(bundle)
    for name in NECESSARY:
        if name not in files:
            yield f"{name} is missing"
    if not any(name.endswith(".pt") for name in (*files, *listed)):
        yield "there are no weights, neither in models/ nor in large_files.yml. Give --weights, the models_dir of a training"
    for name, path in files.items():
        if path.stat().st_size > MOST_BYTES and name not in listed:
            yield (
                f"{name} has {path.stat().st_size / 1e6:.0f} MB, the zoo takes 25. Upload it, and write where into "
                f"large_files.yml (path, url, hash_val, hash_type)"
            )
        if name in listed and digest(path, listed[name].get("hash_type")) != listed[name].get("hash_val"):
            yield f"{name} is not the file that large_files.yml names: another {listed[name].get('hash_type')}"
        if path.suffix in {".json", ".py", ".conf", ".yml"}:
            for found in ABSOLUTE_PATH.findall(path.read_text(encoding="utf-8")):
                yield f"{name} names a place on one computer: {found}"
    yield from metadata_problems(files)
    yield from config_problems(files)
    if "docs/README.md" in files:
        headings = re.findall(r"^## (.+)$", files["docs/README.md"].read_text(encoding="utf-8"), re.MULTILINE)
        if absent := [heading for heading in HEADINGS if heading not in headings]:
            yield f"docs/README.md lacks the headings {', '.join(absent)}"


def metadata_problems(files: Mapping[str, Path]) -> Iterator[str]:
    metadata = json.loads(files["configs/metadata.json"].read_text(encoding="utf-8"))
    if absent := [key for key in METADATA if key not in metadata]:
        yield f"configs/metadata.json lacks {', '.join(absent)}"
        return
    if metadata["version"] not in metadata["changelog"]:
        yield f"configs/metadata.json: version {metadata['version']} is not in the changelog"
    versions = {name: metadata[f"{name}_version"] for name in ("monai", "pytorch", "numpy")}
    for name, version in {"version": metadata["version"], **versions, **metadata["required_packages_version"]}.items():
        if not VERSION.fullmatch(version):
            yield f"configs/metadata.json: {name} {version!r} is not one exact version"
    tensors = metadata["network_data_format"]
    if list(tensors["inputs"])[:1] != ["image"] or list(tensors["outputs"])[:1] != ["pred"]:
        yield "configs/metadata.json: the first input must be called image, the first output pred"


def config_problems(files: Mapping[str, Path]) -> Iterator[str]:
    for name, path in files.items():
        if not (name.startswith("configs/") and name.endswith(".json")):
            continue
        try:
            text = path.read_text(encoding="utf-8")
            json.loads(text, object_pairs_hook=refuse_twice)
            ConfigParser(ConfigParser.load_config_file(path)).parse()
        except (ValueError, KeyError) as error:
            yield f"{name}: {error}"
            continue
        for dotted in sorted(set(re.findall(r"\bscripts\.([a-z]\w*(?:\.\w+)*)", text))):
            if missing := missing_module(dotted.split("."), files):
                yield f"{name} uses {missing}, which is missing"


def missing_module(names: list[str], files: Mapping[str, Path]) -> str | None:
    """The module or folder that is missing on the way to an object of a bundle's code, or None.

    Args:
        names: the parts of its dotted name after `scripts`, for instance `["model", "networks", "DiffusionUNet"]`.
        files: of `files_of`.
    """
    place = "scripts"
    for name in names:
        place = f"{place}/{name}"
        if f"{place}.py" in files:
            return None
        if not any(file.startswith(f"{place}/") for file in files):
            return f"{place}.py"
    return None


def refuse_twice(pairs: list[tuple[str, object]]) -> dict:
    """For `json.loads`, which keeps the last of two equal keys without a word."""
    keys = [key for key, _ in pairs]
    if twice := {key for key in keys if keys.count(key) > 1}:
        raise ValueError(f"given twice: {', '.join(sorted(twice))}")
    return dict(pairs)


def digest(path: Path, kind: str | None) -> str | None:
    """Hash of a file; None without a kind."""
    if not kind:
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, kind).hexdigest() if hasattr(hashlib, "file_digest") else _digest(file, kind)


def _digest(file, kind: str) -> str:  # Python 3.10
    found = hashlib.new(kind)
    while block := file.read(1 << 20):
        found.update(block)
    return found.hexdigest()


def checked_files(bundle: Path, weights: Path | None = None) -> dict[str, Path]:
    """What a release holds: path in the bundle to file on disk, without those that large_files.yml names.

    Raises:
        FileNotFoundError: no such bundle, no weights.
        ValueError: the bundle is not fit to be released; all reasons.
    """
    files = files_of(bundle, weights)
    if found := list(problems(bundle, files)):
        raise ValueError("\n  ".join([f"{bundle} cannot be released:", *found]))
    return {name: path for name, path in files.items() if name not in large_files(bundle)}


def pack(name: str, files: Mapping[str, Path], path: Path) -> None:
    """Write a zip with one top folder, `name`; whole or not at all.

    Stored, not compressed: weights and pictures would hardly shrink, and no byte depends on the version of a compressor.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    try:
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
            for inside, file in sorted(files.items()):
                entry = zipfile.ZipInfo(f"{name}/{inside}", date_time=(1980, 1, 1, 0, 0, 0))
                entry.create_system = 3  # Unix, whose modes are written
                entry.external_attr = 0o100644 << 16
                archive.writestr(entry, file.read_bytes())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def release(bundle: Path, output: Path, weights: Path | None = None) -> Path:
    """Check and pack a bundle; the zip comes back, with its sha256 beside it."""
    files = checked_files(bundle, weights)
    version = json.loads(files["configs/metadata.json"].read_text())["version"]
    path = output / f"{bundle.name}_v{version}.zip"
    pack(bundle.name, files, path)
    path.with_name(f"{path.name}.sha256").write_text(f"{digest(path, 'sha256')}  {path.name}\n")
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--output", type=Path, default=Path("dist"), help="folder for the zip")
    parser.add_argument("--weights", type=Path, help="models_dir of a training whose weights are to go with it")
    options = parser.parse_args(arguments)
    try:
        path = release(options.bundle.resolve(), options.output, options.weights)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    print(
        f"{path}: {len(names)} files, {path.stat().st_size / 1e6:.1f} MB\n{path.with_name(path.name + '.sha256').read_text()}",
        end="",
    )
    if f"{options.bundle.resolve().name}/models/model.pt" not in names:
        print("Without models/model.pt: inference needs a training first, or the weights that large_files.yml names.")


if __name__ == "__main__":
    main()
