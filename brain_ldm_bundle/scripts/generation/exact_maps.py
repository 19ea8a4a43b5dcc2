"""Turn logits into a label map whose volumes are the requested ones, with whole ventricles and without islands.

Volumes of a map are counted, not estimated. So an offset on the logits of the ventricles, and another one on those of the CSF
around the brain, are found by bisection.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage

from ..data.label_maps import CountedClasses, table_of
from ..data.volumes import TEMPLATE_ICV_ML
from ..shared.label_table import LabelTable

VENTRICLES, BRAIN = "ventricles_ml", "brain_normalised_ml"  # covariates that are counted
RELATIVE_TOLERANCE, TOLERANCE_ML = 0.01, 0.2  # a volume that differs by less than one of them is as requested
AIM = 0.1  # share of the tolerance at which a search ends
BISECTIONS = 24  # of the range of offsets, to less than rounding of float32 needs
ROUNDS = 8  # of correcting the brain for islands that change it
FULL = np.ones((3, 3, 3), bool)  # voxels that touch at a corner are neighbours


class LabelMap(NamedTuple):
    """A label map, and the entry of its sidecar about its volumes."""

    classes: np.ndarray  # (D, H, W) in uint8
    volumes: dict


class ExactMaps:
    """Make label maps of logits.

    The ventricles are the classes that win over all others after the offset is added to their logits. Only the part of each
    side that hangs together with its likeliest voxel counts, with its holes filled. The border between brain and the CSF around
    it is then moved by the second offset, which changes nothing else. Islands of fewer than `smallest_island` voxels go to the
    best of the classes that touch them; the largest part of a class always stays.

    Args:
        table: label table of the model.
        sums: entry "volumes" of the recipe, see `CountedClasses`.
        spacing_mm: edge length of a voxel.
        offset_limit: largest offset, in units of logits (natural logarithm of odds). A volume that needs a larger one is not
            forced: the map has the limit, and its sidecar says so.
        smallest_island: number of voxels.
    """

    def __init__(
        self, table: LabelTable, sums: Mapping[str, Sequence[str]], spacing_mm: float, offset_limit: float, smallest_island: int
    ) -> None:
        self.table, self.counted = table, CountedClasses.of(table, sums)
        self.voxel_ml = spacing_mm**3 / 1000
        self.offset_limit, self.smallest_island = offset_limit, smallest_island
        self.settings = {"LabelTable": table.name, "OffsetLimit": offset_limit, "SmallestIslandVoxels": smallest_island}

    def __call__(self, logits: torch.Tensor, requested: Mapping[str, float | None]) -> LabelMap:
        """Make the map of logits (C, D, H, W). Of the `requested` values, those of `VENTRICLES` and `BRAIN` are used."""
        likeliest = logits.argmax(dim=0)
        uncorrected = self._count(likeliest.cpu().numpy())
        classes, ventricle_offset = self._with_ventricles(logits, likeliest, requested.get(VENTRICLES))
        classes, csf_offset = self._with_brain(logits, classes, requested.get(BRAIN))
        found = self._count(classes)
        volumes = {"icv_ml": round(found["icv_ml"], 3), "brain_ml": round(found["brain_ml"], 3)}
        for name, offset in ((VENTRICLES, ventricle_offset), (BRAIN, csf_offset)):
            wanted = requested.get(name)
            volumes[name] = {
                "Requested": wanted,
                "Counted": round(found[name], 3),
                "Uncorrected": round(uncorrected[name], 3),
                "Offset": offset if offset is None else round(offset, 6),
                "AsRequested": wanted is not None and abs(found[name] - wanted) <= max(_tolerance(wanted), self.voxel_ml / 2),
            }
        return LabelMap(classes, volumes)

    def _with_ventricles(
        self, logits: torch.Tensor, likeliest: torch.Tensor, wanted_ml: float | None
    ) -> tuple[np.ndarray, float | None]:
        """Return the likeliest classes with ventricles of the requested volume, and their offset."""
        sides = list(self.counted.ventricles)
        others = [number for number in range(len(logits)) if number not in sides]
        best, index = logits[others].max(dim=0)
        classes = torch.tensor(others, device=index.device)[index].to(torch.uint8).cpu().numpy()
        if not sides:
            return classes, None
        own, side = logits[sides].max(dim=0)
        inside = ~torch.isin(likeliest, torch.tensor(self.counted.outside, device=likeliest.device))
        margin = torch.where(inside, own - best, -math.inf).cpu().numpy()
        box = _box(margin > -self.offset_limit)
        keep = np.isin(classes[box], self.counted.inner_csf)  # choroid plexus in a ventricle is no hole
        side = side.cpu().numpy()[box]
        margins = [np.where(side == number, margin[box], -math.inf) for number in range(len(sides))]
        seeds = [_seed(one) for one in margins]

        def grown(offset: float) -> np.ndarray:
            """Return the number of the side, from 1, of each voxel in the ventricles, or 0."""
            found = np.zeros(side.shape, np.uint8)
            for number, (one, seed) in enumerate(zip(margins, seeds), 1):
                found[_part_at(one > -offset, seed) & (found == 0)] = number
                _fill(found, number, keep)
            return found

        if wanted_ml is None:
            offset, small = 0.0, grown(0.0)
        else:
            wanted = wanted_ml / self.voxel_ml
            tolerance = AIM * _tolerance(wanted_ml) / self.voxel_ml
            offset, small, large = _bisected(grown, np.count_nonzero, wanted, tolerance, self.offset_limit)
            if large is not None:  # a part joins the ventricles at this offset: take as much of it as is needed
                small = _grown(small, large, np.max(margins, axis=0), round(wanted))
                for number in range(1, len(sides) + 1):
                    _fill(small, number, keep)
        classes[box] = np.where(small > 0, np.array([0, *sides], np.uint8)[small], classes[box])
        return classes, offset

    def _with_brain(
        self, logits: torch.Tensor, classes: np.ndarray, wanted_ml: float | None
    ) -> tuple[np.ndarray, float | None]:
        """Return the classes without islands and with the requested normalised brain volume, and the offset of the CSF."""
        brain, csf = list(self.counted.brain), list(self.counted.sulcal_csf)
        if not brain or not csf or wanted_ml is None:
            self._remove_islands(classes, logits)
            return classes, 0.0 if brain and csf else None
        (best_brain, of_brain), (best_csf, of_csf) = logits[brain].max(dim=0), logits[csf].max(dim=0)
        both = np.isin(classes, brain + csf)
        margin = (best_csf - best_brain).cpu().numpy()[both]
        as_brain = np.array(brain, np.uint8)[of_brain.cpu().numpy()[both]]
        as_csf = np.array(csf, np.uint8)[of_csf.cpu().numpy()[both]]
        rising, icv_ml, correction_ml = np.sort(margin), self._count(classes)["icv_ml"], 0.0
        least_error_ml = math.inf
        for _ in range(ROUNDS):
            brain_voxels = (wanted_ml * icv_ml / TEMPLATE_ICV_ML + correction_ml) / self.voxel_ml
            offset, *_ = _bisected(
                lambda offset: rising.size - np.searchsorted(rising, -offset, side="right"),
                int,
                rising.size - brain_voxels,
                0.5,
                self.offset_limit,
            )
            trial = classes.copy()
            trial[both] = np.where(margin > -offset, as_csf, as_brain)
            self._remove_islands(trial, logits)
            found = self._count(trial)
            icv_ml, error_ml = found["icv_ml"], wanted_ml - found[BRAIN]
            if abs(error_ml) < least_error_ml:
                least_error_ml, answer = abs(error_ml), (trial, offset)
            if abs(error_ml) <= AIM * _tolerance(wanted_ml) or abs(offset) == self.offset_limit:
                break
            correction_ml += error_ml * icv_ml / TEMPLATE_ICV_ML  # for what the removal of islands took or gave
        return answer

    def _remove_islands(self, classes: np.ndarray, logits: torch.Tensor) -> None:
        """Give each island to the class with the highest sum of logits among those that touch it, but not to the ventricles."""
        kept = self.counted.ventricles
        for number, box in enumerate(ndimage.find_objects(classes + 1)):
            if box is None or number in kept:
                continue
            box = _wider(box)
            view, own_logits = classes[box], logits[(slice(None), *box)]
            parts, _ = ndimage.label(view == number, FULL)
            sizes = np.bincount(parts.ravel())
            small = sizes < self.smallest_island
            small[1 + sizes[1:].argmax()] = False
            for part, place in enumerate(ndimage.find_objects(parts), 1):
                if not small[part]:
                    continue
                place = _wider(place)
                island = parts[place] == part
                around = np.unique(view[place][ndimage.binary_dilation(island) & ~island])
                touching = [int(other) for other in around if other not in kept]
                if touching:
                    sums = own_logits[(touching, *place)][:, torch.from_numpy(island)].sum(dim=1)
                    view[place][island] = touching[int(sums.argmax())]

    def _count(self, classes: np.ndarray) -> dict[str, float]:
        return self.counted.count_ml(np.bincount(classes.ravel(), minlength=self.table.num_classes), self.voxel_ml)


def exact_maps(recipe: Mapping, path: str, spacing_mm: float, offset_limit: float, smallest_island: int) -> ExactMaps | None:
    """Return what makes the label maps of a model, from the recipe of its weights in the file `path`; None for scans."""
    table = table_of(recipe, path)
    return None if table is None else ExactMaps(table, recipe.get("volumes") or {}, spacing_mm, offset_limit, smallest_island)


def _tolerance(wanted_ml: float) -> float:
    return max(RELATIVE_TOLERANCE * abs(wanted_ml), TOLERANCE_ML)


def _bisected(
    make: Callable[[float], Any], count: Callable[[Any], float], wanted: float, tolerance: float, limit: float
) -> tuple[float, Any, Any]:
    """Find the offset from -limit to limit at which `count(make(offset))`, which never falls, is the `wanted` number.

    Returns:
        the offset, what it makes, and None; or if the count leaps over the wanted number, the largest offset below the leap,
        what it makes, and what is made above the leap.
    """
    low, high, middle = -limit, limit, 0.0
    below, above = make(low), make(high)
    if count(above) <= wanted:
        return high, above, None
    if count(below) >= wanted:
        return low, below, None
    for _ in range(BISECTIONS):
        made = make(middle)
        found = count(made)
        if abs(found - wanted) <= tolerance:
            return middle, made, None
        if found < wanted:
            low, below = middle, made
        else:
            high, above = middle, made
        middle = (low + high) / 2
    return low, below, above


def _box(mask: np.ndarray) -> tuple[slice, ...]:
    """Return the slices of the smallest box around a mask, or of one voxel for an empty mask."""
    found = ndimage.find_objects(mask.astype(np.uint8))
    return found[0] if found else (slice(0, 1),) * mask.ndim


def _wider(box: tuple[slice, ...]) -> tuple[slice, ...]:
    """Return the slices of a box and the voxels around it."""
    return tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)


def _seed(margin: np.ndarray) -> tuple[int, ...]:
    """Return the voxel with the highest margin, in the largest part of the voxels above 0 if there are any."""
    parts, number = ndimage.label(margin > 0, FULL)
    if number:
        margin = np.where(parts == 1 + np.bincount(parts.ravel())[1:].argmax(), margin, -math.inf)
    return np.unravel_index(margin.argmax(), margin.shape)


def _part_at(mask: np.ndarray, seed: tuple[int, ...]) -> np.ndarray:
    """Return the part of a mask that contains a voxel, which is empty if the voxel is not in the mask."""
    parts, _ = ndimage.label(mask, FULL)
    return (parts == parts[seed]) & mask[seed]


def _fill(numbers: np.ndarray, number: int, keep: np.ndarray) -> None:
    """Give a number to the zeros that it encloses, but not to voxels to keep. Voxels that touch at a corner do not let out."""
    outside, _ = ndimage.label(np.pad(numbers != number, 1, constant_values=True))
    numbers[(outside[1:-1, 1:-1, 1:-1] != outside[0, 0, 0]) & (numbers == 0) & ~keep] = number


def _grown(small: np.ndarray, large: np.ndarray, margin: np.ndarray, wanted: int) -> np.ndarray:
    """Add voxels of numbered parts that touch them, from `large`, layer by layer, until there are as many as wanted."""
    grown = small.copy()
    while (missing := wanted - np.count_nonzero(grown)) > 0:
        layer = np.zeros(grown.shape, bool)
        for number in range(1, int(large.max()) + 1):
            layer |= ndimage.binary_dilation(grown == number, FULL) & (large == number) & (grown == 0)
        voxels = np.flatnonzero(layer)
        if not voxels.size:
            break
        likeliest = voxels[np.argsort(-margin.flat[voxels], kind="stable")[:missing]]
        grown.flat[likeliest] = large.flat[likeliest]
    return grown
