"""Write the model card of a bundle from the files that state its facts, so that it contradicts none of them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from shared.files import read_json, sha256

HEAD = """---
license: apache-2.0
library_name: monai
tags: [monai, medical, mri, brain, image-generation]
---
"""
NONE = "The bundle comes without weights."
UNKNOWN = "Nobody has stated what these weights were trained on, nor how good they are."


def model_card(bundle: Path, weights: Path) -> str:
    """Return the card of the weights in a folder, as the page docs/model_card.md.

    A JSON file beside the weights states what they were trained on and the numbers that were measured: {"what": ..., "sha256":
    {FILE: ...}, ...}. Limits, references and licence are the sections of docs/README.md.

    Raises:
        ValueError: a JSON file states the facts of other weights than those that lie beside it.
    """
    metadata = read_json(bundle / "configs" / "metadata.json")
    parts = [
        f"# Model card: {metadata['name']} {metadata['version']}",
        f"{metadata['description']}. {metadata['intended_use']}.",
        "All volumes that these models make are synthetic. `docs/README.md` of the bundle explains how to use them.",
        "## Weights",
        *(weights_of(path) for path in provenance(weights)),
    ]
    if len(parts) == 4:
        parts.append(UNKNOWN if any(weights.glob("*.pt")) else NONE)
    page = (bundle / "docs" / "README.md").read_text(encoding="utf-8")
    parts += [section for title in ("Limitations", "References", "License") if (section := section_of(page, title))]
    return "\n\n".join(parts) + "\n"


def hub_page(card: str) -> str:
    """Return the card as README.md of a hub: with the header that hubs read, and links from the folder above docs/."""
    inner = re.sub(r"\]\((?!\w+:|#)(?!\.\./)", "](docs/", card)
    return HEAD + inner.replace("](../", "](")


def provenance(weights: Path) -> Iterator[Path]:
    """Yield the JSON files in a folder that state facts of weights, and refuse those of other weights."""
    for path in sorted(weights.glob("*.json")):
        for name, expected in read_json(path).get("sha256", {}).items():
            file = path.with_name(name)
            if not file.is_file() or sha256(file) != expected:
                raise ValueError(f"{path}: the facts of another {name} than {file}. Measure these weights, or remove it")
        if "sha256" in read_json(path):
            yield path


def weights_of(path: Path) -> str:
    """Return the section of the weights that a JSON file describes."""
    facts: Mapping = read_json(path)
    names = " and ".join(f"`models/{name}`" for name in facts["sha256"])
    stated = {key.replace("_", " "): value for key, value in facts.items() if key not in ("what", "sha256")}
    rows = [f"| {key} | {cell(str(value))} |" for key, value in stated.items()]
    hashes = [f"| sha256 of `{name}` | `{value}` |" for name, value in facts["sha256"].items()]
    return "\n".join([f"### {names}", "", facts["what"], "", "| | |", "|---|---|", *rows, *hashes])


def cell(text: str) -> str:
    """Return text as a cell of a table, with a command in backticks."""
    text = text.replace("|", "\\|")
    return re.sub(r"^python [^(]*[^( ]", lambda command: f"`{command[0]}`", text)


def section_of(page: str, title: str) -> str:
    """Return a section of a page with its heading, or nothing if it has none."""
    found = re.search(rf"^## {title}\n.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found[0].strip() if found else ""
