"""Publish a checked bundle on a Hugging Face hub, with MONAI's own `push_to_hf_hub`.

    python scripts/publish_bundle.py brain_ldm_bundle --repo USER/brain_ldm_bundle --weights models --dry_run
    python scripts/publish_bundle.py brain_ldm_bundle --repo USER/brain_ldm_bundle --weights models

Uploads what `package_bundle.py` would pack, nothing else, as a private repository with a tag of the version. Needs
`pip install huggingface_hub` and `hf auth login` first; --dry_run needs neither, and no network. The command line of MONAI
1.6.1 has no `push_to_hf_hub`, hence this script.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from package_bundle import checked_files


def stage(files: Mapping[str, Path], folder: Path) -> Path:
    """Copy a release's files into `folder`, because MONAI writes a model card among them before it uploads the folder."""
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / name)
    return folder


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--repo", required=True, help="USER/NAME or ORGANISATION/NAME on the hub")
    parser.add_argument("--weights", type=Path, help="models_dir of a training whose weights are to go with it")
    parser.add_argument("--public", action="store_true", help="visible to everybody; think of whose scans the weights know")
    parser.add_argument("--dry_run", action="store_true", help="check everything, say what would be uploaded, upload nothing")
    options = parser.parse_args(arguments)
    bundle = options.bundle.resolve()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.repo):
        sys.exit(f"--repo {options.repo}: expected USER/NAME")
    try:
        files = checked_files(bundle, options.weights)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    version = json.loads(files["configs/metadata.json"].read_text())["version"]
    seen = "public" if options.public else "private"
    if options.dry_run:
        print(f"Would create {options.repo} ({seen}) where there is none, upload these files and tag them {version}:")
        for name, path in files.items():
            print(f"{path.stat().st_size:>12,} {name}")
        return
    from monai.bundle.scripts import push_to_hf_hub

    with tempfile.TemporaryDirectory() as folder:
        stage(files, Path(folder) / bundle.name)
        url = push_to_hf_hub(options.repo, bundle.name, folder, private=not options.public, version=version)
    print(
        f"{url}\nDownload: python -m monai.bundle download --source huggingface_hub --repo {options.repo} --name {bundle.name}"
    )


if __name__ == "__main__":
    main()
