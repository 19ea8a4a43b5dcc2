"""Which model made a folder of generated volumes, as their sidecars tell."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["describe", "read_provenance"]

# Sidecar's key and a reader's word. Seeds, covariates and software differ within what one model made.
FIELDS = {
    "Model": "model",
    "Sampler": "sampler",
    "Steps": "steps",
    "GuidanceScale": "guidance",
    "WeightsSHA256": "weights",
    "AutoencoderSHA256": "autoencoder",
}


def read_provenance(items: Sequence[Mapping], name: str) -> dict:
    """What the sidecars of a set say of `FIELDS`, the same in all; nothing where no volume has one, as of other software.

    Args:
        items: {"image": path}; the sidecar is beside it, `.json` for `.nii.gz` or `.nii`.
        name: of the set or its folder, for the errors.

    Raises:
        ValueError: volumes of several models, samplers or weights; some without a sidecar; one that is no JSON.
    """
    found: dict[str, list[str]] = {}
    for item in items:
        found.setdefault(json.dumps(_read(item["image"]), sort_keys=True), []).append(str(item["image"]))
    made = {text: json.loads(text) for text in found}
    if len(made) > 1:
        kinds = "; ".join(f"{len(files)}, such as {files[0]}: {describe(made[text])}" for text, files in found.items())
        raise ValueError(
            f"{name}: its volumes were not made in one way: {kinds}. One row would mix them: give each kind a folder of its own"
        )
    return next(iter(made.values()), None) or {}


def _read(image: str | Path) -> dict | None:
    path = Path(image)
    sidecar = path.with_name(f"{path.name.removesuffix('.gz').removesuffix('.nii')}.json")
    try:
        content = json.loads(sidecar.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{sidecar}: is not JSON ({error}). Generate the volume again, or remove the sidecar") from error
    return {key: content[key] for key in FIELDS if key in content} if isinstance(content, dict) else {}


def describe(provenance: Mapping | None) -> str:
    """`sampler ddim, steps 50, weights af6f642b2bde`, in one line; hashes by their first 12 digits."""
    if not provenance:
        return "unknown" if provenance is not None else "no sidecar"
    words = {key: str(value)[:12] if key.endswith("SHA256") else value for key, value in provenance.items()}
    return ", ".join(f"{FIELDS[key]} {words[key]}" for key in FIELDS if words.get(key) is not None)
