"""How much volumes resemble training scans, beyond what all heads share.

A volume becomes a vector: its anatomy at 8 mm, or its latent. The mean training vector is taken away; the correlation r with
every training scan then says whom a volume resembles, and the relative distance how far that scan stands out: 1 - r to the
nearest participant over the mean 1 - r to the next five. It is about 1 for a head of its own and 0 for a copy, however smooth
a model's volumes are. The relative distance is from Carlini et al. 2023 (arXiv 2301.13188), with 1 - r, which is
half of the squared distance between vectors of length 1.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

from ..shared import mni_box

__all__ = ["ANATOMY_MM", "SHIFT_MM", "Match", "Neighbours", "anatomy", "threshold", "views"]

ANATOMY_MM = 8  # chosen: coarse enough for the decoder's smoothing not to count, fine enough to tell heads apart
SHIFT_MM = 4  # chosen: copies moved by one voxel of a coarse model, or by so much, are found
HALF = 0.5  # chosen: of the ordinary relative distance, as alpha of Carlini et al. 2023
FENCE = 3.0  # interquartile ranges below the lower quartile: "far out" (Tukey 1977)


def views(volume: torch.Tensor, spacing_mm: float) -> Iterator[tuple[str, torch.Tensor]]:
    """A volume (1, D, H, W), its mirror image, and each moved by 4 mm (at least a voxel) along each axis: 14, named.

    The autoencoder learns from mirrored heads too, so a memorised head may come out mirrored.
    """
    voxels = max(1, round(SHIFT_MM / spacing_mm))
    for side, sided in (("", volume), ("mirrored", volume.flip(1))):
        yield side or "as it is", sided
        for axis, name in ((1, "left-right"), (2, "back-front"), (3, "bottom-top")):
            for shift in (-voxels, voxels):
                moved = f"moved {shift * spacing_mm:+g} mm {name}"
                yield f"{side} {moved}".strip(), torch.roll(sided, shift, axis)


def anatomy(volume: torch.Tensor, spacing_mm: float) -> torch.Tensor:
    """A volume (1, D, H, W) as a vector: means of 8 mm cells in the box around the MNI brain, mean 0, length 1.

    Intensities that are rescaled linearly give the same vector.

    Raises:
        ValueError: the volume is constant in that box.
    """
    cells = F.avg_pool3d(volume.float()[None], max(1, round(ANATOMY_MM / spacing_mm)))[0, 0]  # (d, h, w)
    values = cells[_in_brain(cells.shape, spacing_mm * volume.shape[1] / cells.shape[0])]
    values = values - values.mean()
    length = values.norm()
    if not length > 1e-6:
        raise ValueError("is constant where the brain should be")
    return values / length


@functools.cache
def _in_brain(shape: Sequence[int], cell_mm: float) -> torch.Tensor:
    """Which cells of the grid have their centres in the box around the MNI brain."""
    centres_mm = nib.affines.apply_affine(mni_box.affine(cell_mm), np.moveaxis(np.indices(shape), 0, -1))
    lower, upper = mni_box.BRAIN_MM
    return torch.from_numpy(((centres_mm > lower) & (centres_mm < upper)).all(-1))


@dataclass(frozen=True)
class Match:
    """The training participant that a volume resembles most.

    Attributes:
        scan: index of the training scan.
        r: correlation with it, -1 to 1.
        relative_distance: as the module defines it; at least 0.
        view: which of the volume's views resembles it.
    """

    scan: int
    r: float
    relative_distance: float
    view: str


class Neighbours:
    """Nearest training participants by correlation, after the mean training vector is taken away.

    Args:
        vectors: (n, F) of the training scans, which are overwritten: n F numbers of 4 bytes stay in memory, and no others.
        participants: whose scans they are; further scans of the nearest participant are no second neighbours.
        neighbours: how many further participants a relative distance is measured by; fewer where there are fewer.
    """

    def __init__(self, vectors: torch.Tensor, participants: Sequence[str], neighbours: int = 5) -> None:
        numbers = {name: number for number, name in enumerate(dict.fromkeys(participants))}
        self.mean = vectors.mean(0)
        self.residuals = F.normalize(vectors.sub_(self.mean), dim=1, out=vectors)
        self.participant = torch.tensor([numbers[name] for name in participants])
        self.count = len(numbers)
        self.neighbours = min(neighbours, self.count - 1)

    def match(self, queries: torch.Tensor, names: Sequence[str]) -> Match:
        """The match of one volume, of which `queries` (V, F) holds the views called `names`."""
        correlations = F.normalize(queries - self.mean, dim=1) @ self.residuals.T  # (V, n)
        best, view = correlations.max(0)  # of each scan, (n,)
        per_participant = best.new_full((self.count,), -1.0).scatter_reduce(0, self.participant, best, "amax")
        highest = per_participant.topk(1 + self.neighbours).values
        nearest = int(best.argmax())
        relative = (1 - highest[0]) / (1 - highest[1:].mean()).clamp_min(1e-6)
        return Match(nearest, float(highest[0]), float(relative.clamp_min(0)), names[int(view[nearest])])


def threshold(held_out: Sequence[float]) -> float:
    """The relative distance below which a volume counts as a copy.

    The lower of two: half of what is ordinary (the median of the held-out scans), and 3 interquartile ranges below their
    lower quartile. The second guards against false alarms where held-out scans differ much among themselves.
    """
    lower, median, upper = np.quantile(held_out, (0.25, 0.5, 0.75))
    return float(min(HALF * median, lower - FENCE * (upper - lower)))
