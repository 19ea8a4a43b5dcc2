"""Publish a checked bundle on a Hugging Face hub, with MONAI's own `push_to_hf_hub`.

    python scripts/publish_bundle.py brain_ldm_bundle --repo USER/brain_ldm_bundle --weights models --dry_run
    python scripts/publish_bundle.py brain_ldm_bundle --repo USER/brain_ldm_bundle --weights models

The command uploads exactly the files that `package_bundle.py` would pack. The repository is private, and its tag is the
version. Run `pip install huggingface_hub` and `hf auth login` first. --dry_run needs neither of them, and no network. This
script exists because the command line of MONAI 1.6.1 has no `push_to_hf_hub`.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import tempfile
from pathlib import Path

from command_line import Parser


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder of the bundle")
    parser.add_argument("--repo", required=True, help="USER/NAME or ORGANISATION/NAME on the hub")
    parser.add_argument("--weights", type=Path, help="upload the weights from this folder, the models_dir of a training")
    parser.add_argument("--public", action="store_true", help="make it visible to everybody; weights can reveal training scans")
    parser.add_argument("--dry_run", action="store_true", help="check everything and list the files, but upload nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    parse()  # answers --help and wrong options before the imports below, which take seconds

from package_bundle import checked_files, refuse_unloadable
from shared import refusals


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    bundle = options.bundle.resolve()
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", options.repo):
        raise ValueError(f"--repo {options.repo}: expected USER/NAME")
    if not options.dry_run and importlib.util.find_spec("huggingface_hub") is None:
        raise ValueError("publish_bundle.py needs huggingface_hub. Install it: pip install huggingface_hub")
    files = checked_files(bundle, options.weights)
    if options.weights is not None:
        refuse_unloadable(bundle, options.weights)
    version = json.loads(files["configs/metadata.json"].read_text())["version"]
    if options.dry_run:
        seen = "public" if options.public else "private"
        print(f"Would create {options.repo} ({seen}) unless it exists, upload these files and tag them {version}:")
        for name, path in files.items():
            print(f"{path.stat().st_size:>12,} {name}")
        return
    from monai.bundle.scripts import push_to_hf_hub

    with tempfile.TemporaryDirectory() as folder:  # a copy, because MONAI writes a model card among the files
        for name, path in files.items():
            copy = Path(folder) / bundle.name / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, copy)
        url = push_to_hf_hub(options.repo, bundle.name, folder, private=not options.public, version=version)
    download = "python -m monai.bundle download --source huggingface_hub"
    print(f"{url}\nDownload: {download} --repo {options.repo} --name {bundle.name}")


if __name__ == "__main__":
    refusals.run(main)
