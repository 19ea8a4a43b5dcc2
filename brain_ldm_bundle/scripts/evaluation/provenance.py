"""Which model made a folder of generated volumes, as their sidecars tell, and what that was trained on, as its weights tell."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..model.training_record import recipe_of
from ..shared.files import sha256
from ..shared.identities import knows_all

__all__ = ["describe", "describe_training", "read_provenance", "trained_on"]

MODELS = Path(__file__).parents[2] / "models"

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


def trained_on(provenance: Mapping, weights: Iterable[str | Path], training: Sequence[Mapping]) -> str:
    """What the model that made a set was trained on, in words.

    Args:
        provenance: of `read_provenance`.
        weights: files, some of which may not be there; those of the model are found by the hashes in `provenance`.
        training: scans of a data set's training split, of `read_dataset`.
    """
    files = {sha256(path): path for path in weights if Path(path).is_file()}
    made_by = provenance.get("WeightsSHA256", "")
    if made_by not in files:
        return _told_elsewhere(made_by) or "not known: its weights are not at hand"
    model = files[made_by]
    return describe_training(recipe_of(model, files.get(provenance.get("AutoencoderSHA256"), model)), training, made_by)


def describe_training(recipe: Mapping, training: Sequence[Mapping], weights_sha256: str) -> str:
    """`84 of the 84 training scans, and scans that its weights do not name`.

    Args:
        recipe: of the weights.
        training: scans of a data set's training split, of `read_dataset`.
        weights_sha256: of their file.
    """
    if "seen_voxels" not in recipe:
        return _told_elsewhere(weights_sha256) or "scans that its weights do not name"
    seen, own = set(recipe["seen_voxels"]), {item["voxels_sha256"] for item in training}
    text = f"{len(seen & own)} of the {len(own)} training scans"
    text += f" and {len(seen - own)} others" if seen - own else ""
    return text if knows_all(recipe) else f"{text}, and scans that its weights do not name"


def _told_elsewhere(weights_sha256: str) -> str:
    """What weights that come with the bundle were trained on, as the JSON file beside them says; "" of others."""
    for path in sorted(MODELS.glob("demo_*.json")):
        note = json.loads(path.read_text(encoding="utf-8"))
        for name, known in note["sha256"].items():
            if known == weights_sha256:
                return f"{note['trained_on']} ({name}, which comes with the bundle)"
    return ""
