"""Start training from weights of an earlier training, to fine-tune them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ..data.planes import PLANES
from ..model.networks import SpadeGenerator
from ..model.plane_weights import generator_file, refuse_other_generator
from ..shared.scan_identity import refuse_seen_by_start
from ..shared.weights import load_weights, read_recipe


def start_files(init_dir: str | Path | None) -> list[Path]:
    """Return the files of weights in the folder of an earlier training: the model's, and those of planes that are there.

    A plane may have been trained again since, on other scans than the model.
    """
    if init_dir is None:
        return []
    planes = (generator_file(init_dir, plane) for plane in PLANES)
    return [Path(init_dir) / "model.pt", *(path for path in planes if path.is_file())]


def load_generator(generator: SpadeGenerator, init_dir: str | Path, plane: str, recipe: Mapping) -> Path:
    """Load the weights of one plane from the folder of an earlier training, and return their file.

    Raises:
        FileNotFoundError: the folder lacks the file.
        ValueError: the weights have another architecture, plane, label table or spacing.
    """
    path = generator_file(init_dir, plane)
    load_weights(generator, path)
    refuse_other_generator(generator, path, {"plane": plane} | {key: recipe.get(key) for key in ("labels", "spacing_mm")})
    return path


def refuse_seen(init_dir: str | Path | None, data: Mapping[str, Sequence[Mapping]], folds: int, fingerprint: str) -> None:
    """Refuse initial weights that were trained on scans which this training holds out from the generators.

    The generators never see the scans of validation. The fusion must learn from scans that the generators of its start did not
    see either; only with the splits of the earlier training, whose `fingerprint` its weights hold, are they known to be others.
    """
    for path in start_files(init_dir):
        if not path.is_file():
            raise FileNotFoundError(
                f"init_dir {init_dir}: there is no {path.name}. Give the models folder of an earlier training"
            )
        same = read_recipe(path).get("data") == fingerprint
        for split in ("validation", *(["training"] if folds else [] if same else ["fusion"])):
            refuse_seen_by_start(path, data[split], split)
