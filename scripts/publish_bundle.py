"""Publish checked bundles on a Hugging Face hub.

    python scripts/publish_bundle.py brain_ldm_bundle --repo USER --dry_run
    python scripts/publish_bundle.py brain_ldm_bundle --repo USER/NAME --weights models
    python scripts/publish_bundle.py brain_ldm_bundle spade_fusion_bundle --repo USER --weights spade_fusion_bundle=models

The command uploads the files that `package_bundle.py` would pack, each file of weights a second time as safetensors, and the
model card. Each bundle gets a repository of its own, which is private, and whose tag is the version. Nothing is uploaded unless
all bundles pass the checks and none has this version on the hub. Run `pip install huggingface_hub safetensors` and
`hf auth login` first. --dry_run needs neither of them, and no network.

Without --weights, the command uploads the weights that come with the bundles. With it, weights of your own: a JSON file beside
them, as in brain_ldm_bundle/models, states in the model card what they were trained on. --card writes docs/model_card.md of the
bundles from these files, and uploads nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from command_line import Parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("bundles", type=Path, nargs="+", help="folders of the bundles")
    parser.add_argument("--repo", help="USER, for USER/<name of the bundle>; or USER/NAME on the hub, for one bundle")
    parser.add_argument(
        "--weights", nargs="+", default=[], help="folder of a training's weights; for several bundles NAME=FOLDER ..."
    )
    parser.add_argument("--public", action="store_true", help="make it visible to everybody; weights can reveal training scans")
    parser.add_argument("--dry_run", action="store_true", help="check everything and list the files, but upload nothing")
    parser.add_argument("--card", action="store_true", help="only write docs/model_card.md of the bundles")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

from package_bundle import checked_files, refuse_unloadable
from releases.model_card import hub_page, model_card, provenance
from shared import refusals
from shared.files import read_tensors, write_text


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    bundles = [bundle.resolve() for bundle in options.bundles]
    if options.card:
        for bundle in bundles:
            write_text(bundle / "docs" / "model_card.md", model_card(bundle, bundle / "models"))
        return
    repos = repositories(options.repo, bundles)
    weights = weights_folders(options.weights, bundles)
    missing = [name for name in ("huggingface_hub", "safetensors") if importlib.util.find_spec(name) is None]
    if missing and not options.dry_run:
        raise ValueError(f"publish_bundle.py needs {' and '.join(missing)}. Install: pip install {' '.join(missing)}")
    files = {bundle: checked_files(bundle, weights.get(bundle)) for bundle in bundles}
    cards = {bundle: model_card(bundle, weights.get(bundle, bundle / "models")) for bundle in bundles}
    for bundle, folder in weights.items():
        refuse_unloadable(bundle, folder)
        if not any(provenance(folder)):
            print(f"{folder}: no JSON file states what these weights were trained on, and the model card says so.")
    version = {bundle: json.loads(files[bundle]["configs/metadata.json"].read_text())["version"] for bundle in bundles}
    if options.dry_run:
        for bundle, repo in repos.items():
            seen = "public" if options.public else "private"
            print(f"Would create {repo} ({seen}) unless it exists, upload these files and tag them {version[bundle]}:")
            for name, path in files[bundle].items():
                print(f"{path.stat().st_size:>12,} {name}")
        print("Each .pt would be uploaded as .safetensors, too, and the model card as README.md.")
        return
    from huggingface_hub import HfApi

    hub = HfApi()
    for bundle, repo in repos.items():
        if hub.repo_exists(repo) and version[bundle] in [tag.name for tag in hub.list_repo_refs(repo).tags]:
            raise ValueError(f"{repo}: version {version[bundle]} is there already. Raise it in {bundle}/configs/metadata.json")
    for bundle, repo in repos.items():
        with tempfile.TemporaryDirectory() as folder:
            copy_files(files[bundle], cards[bundle], Path(folder))
            hub.create_repo(repo, private=not options.public, exist_ok=True)
            release = f"Release {version[bundle]}"
            hub.upload_folder(repo_id=repo, folder_path=folder, commit_message=release, delete_patterns="*")
            hub.create_tag(repo, tag=version[bundle])
        download = f"python -m monai.bundle download --source huggingface_hub --repo {repo} --name {bundle.name}"
        print(f"{hub.endpoint}/{repo}\nDownload: {download} --version {version[bundle]}")


def repositories(repo: str | None, bundles: list[Path]) -> dict[Path, str]:
    """Return the name of the repository of each bundle."""
    if repo and re.fullmatch(r"[\w.-]+", repo):
        return {bundle: f"{repo}/{bundle.name}" for bundle in bundles}
    if repo and re.fullmatch(r"[\w.-]+/[\w.-]+", repo) and len(bundles) == 1:
        return {bundles[0]: repo}
    raise ValueError(f"--repo {repo}: expected USER, or USER/NAME for one bundle")


def weights_folders(given: list[str], bundles: list[Path]) -> dict[Path, Path]:
    """Return the folder of weights of each bundle that has one: FOLDER for the only bundle, or NAME=FOLDER."""
    if len(given) == len(bundles) == 1 and "=" not in given[0]:
        return {bundles[0]: Path(given[0])}
    folders = dict(text.split("=", 1) for text in given if "=" in text)
    names = [bundle.name for bundle in bundles]
    if len(folders) != len(given) or not folders.keys() <= set(names):
        raise ValueError(f"--weights {' '.join(given)}: expected NAME=FOLDER with names of {', '.join(names)}, each once")
    return {bundle: Path(folders[bundle.name]) for bundle in bundles if bundle.name in folders}


def copy_files(files: Mapping[str, Path], card: str, folder: Path) -> None:
    """Copy the files of a release, with weights as safetensors beside them and the model card."""
    from safetensors.torch import save_file

    for name, path in files.items():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
        if copy.suffix == ".pt":
            tensors = {key: value.contiguous().clone() for key, value in read_tensors(path).items()}
            save_file(tensors, copy.with_suffix(".safetensors"), metadata={"format": "pt"})
    (folder / "docs" / "model_card.md").write_text(card, encoding="utf-8")
    (folder / "README.md").write_text(hub_page(card), encoding="utf-8")


if __name__ == "__main__":
    refusals.run(main)
