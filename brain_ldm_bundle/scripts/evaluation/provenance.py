"""Find out which model made a set of volumes, what it was trained on, and whether held-out scans are new to it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..data.label_maps import refuse_maps
from ..model.networks import DiffusionUNet
from ..model.training_record import recipe_of
from ..shared.files import read_json, sha256
from ..shared.recipe import refuse_other_settings
from ..shared.scan_identity import knows_all, refuse_seen
from ..shared.weights import read_recipe

MODELS = Path(__file__).parents[2] / "models"

# Keys of a sidecar that are the same for all volumes of one model, and their names in reports.
FIELDS = {
    "Model": "model",
    "Sampler": "sampler",
    "Steps": "steps",
    "GuidanceScale": "guidance",
    "WeightsSHA256": "weights",
    "AutoencoderSHA256": "autoencoder",
    "Acquisition": "noise and bias field",
}


def refuse_other_model(model_file: str | Path, autoencoder_file: str | Path, used: Mapping) -> None:
    """Refuse to evaluate without the diffusion model's file, or with settings that are `used` instead of those it holds."""
    if not Path(model_file).is_file():
        raise FileNotFoundError(
            f"{model_file}: sizes and spacing are read from it. Train both stages first: python -m monai.bundle run training "
            f"--config_file configs/train.json --dataset_dir DIR"
        )
    recipe = recipe_of(model_file, autoencoder_file)
    refuse_maps(recipe, model_file, "this evaluation")
    refuse_other_settings(used, recipe if read_recipe(model_file) else recipe | DiffusionUNet.implied_recipe, model_file)


def held_out_scans(data: Mapping[str, list[dict]], split: str, recipe: Mapping) -> list[dict]:
    """Return the items of a split, which must not be empty.

    Unless the split is training, its scans must be new to the weights with this recipe.
    """
    if not data.get(split):
        counts = ", ".join(f"{name}: {len(items)}" for name, items in data.items())
        raise ValueError(f"no scans in the split {split!r} ({counts}). Choose another with --split")
    if split != "training":
        refuse_seen(data[split], recipe, split)
    return data[split]


def read_provenance(items: Sequence[Mapping], name: str) -> dict:
    """Read from the sidecars of a set how it was made.

    There are no entries if no volume has a sidecar, as in folders of other software. Error messages give the set's `name`.

    Raises:
        ValueError: volumes were made by several models, samplers or weights, some have no sidecar, or a sidecar is not JSON.
    """
    found: dict[str, list[str]] = {}
    for item in items:
        found.setdefault(json.dumps(_read(Path(item["image"])), sort_keys=True), []).append(str(item["image"]))
    made = {text: json.loads(text) for text in found}
    if len(made) > 1:
        kinds = "; ".join(f"{len(files)}, such as {files[0]}: {describe(made[text])}" for text, files in found.items())
        raise ValueError(f"{name}: its volumes were made in different ways: {kinds}. Put each kind into its own folder")
    return next(iter(made.values()), None) or {}


def _read(image: Path) -> dict | None:
    sidecar = image.with_name(f"{image.name.removesuffix('.gz').removesuffix('.nii')}.json")
    if not sidecar.is_file():
        return None
    try:
        content = read_json(sidecar)
    except ValueError as error:
        raise ValueError(f"{error}. Generate the volume again, or remove the sidecar") from error
    if content.pop("Acquisition", None):  # volumes differ in its values
        content["Acquisition"] = "added"
    return {key: content[key] for key in FIELDS if key in content}


def describe(provenance: Mapping | None) -> str:
    """Describe provenance in one line, such as `sampler ddim, steps 50, weights af6f642b2bde`; None means no sidecar."""
    if not provenance:
        return "unknown" if provenance is not None else "no sidecar"
    words = {key: str(value)[:12] if key.endswith("SHA256") else value for key, value in provenance.items()}
    return ", ".join(f"{FIELDS[key]} {words[key]}" for key in FIELDS if words.get(key) is not None)


def trained_on(provenance: Mapping, weights: Iterable[str | Path], training: Sequence[Mapping]) -> str:
    """Describe what the model that made a set was trained on.

    The hashes in `provenance` decide which of the files `weights` are the model's; files may be missing. `training` has the
    scans of the training split.
    """
    files = {sha256(path): path for path in weights if Path(path).is_file()}
    made_by = provenance.get("WeightsSHA256", "")
    if made_by not in files:
        return _shipped(made_by) or "not known: its weights are missing"
    model = files[made_by]
    return describe_training(recipe_of(model, files.get(provenance.get("AutoencoderSHA256"), model)), training, made_by)


def describe_training(recipe: Mapping, training: Sequence[Mapping], weights_sha256: str) -> str:
    """Describe what weights were trained on, such as `84 of the 84 training scans and 12 others`."""
    if "seen_voxels" not in recipe:
        return _shipped(weights_sha256) or "scans that its weights do not name"
    seen, own = set(recipe["seen_voxels"]), {item["voxels_sha256"] for item in training}
    text = f"{len(seen & own)} of the {len(own)} training scans"
    text += f" and {len(seen - own)} others" if seen - own else ""
    return text if knows_all(recipe) else f"{text}, and scans that its weights do not name"


def _shipped(weights_sha256: str) -> str:
    """Describe the training scans of weights that come with the bundle, from the JSON file with their hash, or return ""."""
    for path in sorted(MODELS.glob("demo_*.json")):
        note = read_json(path)
        for name, known in note["sha256"].items():
            if known == weights_sha256:
                return f"{note['trained_on']} ({name}, which comes with the bundle)"
    return ""
