"""Choose the label table of a model of label maps, and count the volumes of its maps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..shared.files import read_json
from ..shared.label_table import LabelTable
from ..shared.weights import read_recipe
from .volumes import TEMPLATE_ICV_ML

VOLUMES = "_volumes"  # entry of a file of tables: names of the classes that each volume sums
SUMS = ("ventricles_ml", "csf", "outside_skull")


def chosen_table(labels_file: str | Path, name: str | None) -> LabelTable | None:
    """Read a table, and give each side of a structure its own class. Without a name there is none: the model is of scans."""
    return None if name is None else LabelTable.from_file(labels_file, name).sided()


def table_of(recipe: Mapping, path: str | Path) -> LabelTable | None:
    """Return the label table in the recipe of weights, whose file is `path`, or None for a model of scans."""
    return LabelTable.from_dict(recipe["labels"], f"the table in {path}") if recipe.get("labels") else None


def recipe_of_maps(table: LabelTable | None, labels_file: str | Path) -> dict:
    """Return the entries of a recipe that describe label maps, so that weights need no other file. They are None for scans."""
    if table is None:
        return {"labels": None, "volumes": None}
    sums = read_json(labels_file).get(VOLUMES, {})
    return {"labels": table.to_dict(), "volumes": {name: list(sums.get(name, ())) for name in SUMS}}


def refuse_other_maps(path: str | Path | None, table: LabelTable | None) -> None:
    """Refuse weights of scans for label maps, weights of label maps for scans, and weights of other classes.

    `path` is a file of weights, which may be missing, or None; `table` is the table of this run, or None for scans.
    """
    if path is None or not Path(path).is_file():
        return
    theirs, ours = table_of(read_recipe(path), path), table
    if theirs is None and ours is not None:
        raise ValueError(
            f"{path}: these weights are of scans, but this training is of label maps ({ours.name}). Leave out "
            f"configs/labels.json, or give weights that it trained"
        )
    if theirs is not None and ours is None:
        raise ValueError(
            f"{path}: these weights are of label maps ({theirs.name}), not of scans. Give others, or add configs/labels.json"
        )
    if theirs is not None and theirs.to_dict() != ours.to_dict():
        raise ValueError(
            f"{path}: these weights are of label maps with the table {theirs.name!r}, whose classes are not those of "
            f"{ours.name!r}. Give --label_table and --labels_file of their training, or other weights"
        )


def refuse_maps(recipe: Mapping, path: str | Path, purpose: str) -> None:
    """Refuse weights of label maps, from the file `path`, for a purpose that needs scans, such as "editing"."""
    if recipe.get("labels"):
        raise ValueError(f"{path}: these weights make label maps, but {purpose} needs a model of scans. Give other weights")


def refuse_scan_cache(scan_cache: str | None, table: LabelTable | None) -> None:
    """Refuse to store label maps as grey values."""
    if table is not None and scan_cache is not None:
        raise ValueError(
            f"scan_cache is {scan_cache!r}, which stores grey values, but this training is of label maps. Leave it out"
        )


@dataclass(frozen=True)
class CountedClasses:
    """Classes of a table that volumes sum."""

    ventricles: tuple[int, ...]  # the lateral ventricles, one class for each side
    brain: tuple[int, ...]  # brain tissue without CSF
    sulcal_csf: tuple[int, ...]  # around the brain
    inner_csf: tuple[int, ...]  # of the other ventricles and choroid plexus, which may touch the lateral ventricles
    outside: tuple[int, ...]  # background, and what lies outside of the skull

    @classmethod
    def of(cls, table: LabelTable, sums: Mapping[str, Sequence[str]]) -> CountedClasses:
        """Find the classes by the names in `sums`, the entry "volumes" of a recipe."""
        ventricles, csf, outside = (tuple(table.classes_of(sums.get(name, ()))) for name in SUMS)
        return cls(
            ventricles=ventricles,
            brain=tuple(number for number in table.brain if number not in csf),
            sulcal_csf=tuple(number for number in csf if number not in table.brain),
            inner_csf=tuple(number for number in csf if number in table.brain and number not in ventricles),
            outside=(0, *outside),
        )

    def count_ml(self, voxels: np.ndarray, voxel_ml: float) -> dict[str, float]:
        """Return the volumes of a map in mL from the number of voxels of each class.

        The intracranial volume is all that is not outside of the skull. Brain volume is normalised by it, see
        `TEMPLATE_ICV_ML`, and is 0 for an empty map.
        """
        brain_ml = float(voxels[list(self.brain)].sum() * voxel_ml)
        icv_ml = float((voxels.sum() - voxels[list(self.outside)].sum()) * voxel_ml)
        return {
            "ventricles_ml": float(voxels[list(self.ventricles)].sum() * voxel_ml),
            "brain_normalised_ml": brain_ml * TEMPLATE_ICV_ML / icv_ml if icv_ml else 0.0,
            "brain_ml": brain_ml,
            "icv_ml": icv_ml,
        }
