"""Find the training scan that a volume resembles most, after the mean scan is subtracted.

Each volume is represented by a vector: its anatomy at 8 mm, or its latent. The mean training vector is subtracted, and r is the
correlation with each training scan. The relative distance is 1 - r to the nearest participant, divided by the mean 1 - r to the
next five. It is about 1 for a new head and 0 for a copy, even if a model's volumes are smooth. It is the relative distance of
Carlini et al. 2023 (arXiv 2301.13188) with 1 - r, which is half of the squared distance between vectors of length 1.
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

ANATOMY_MM = 8  # chosen: so coarse that the decoder's smoothing does not matter, so fine that heads differ
SHIFT_MM = 4  # chosen: finds copies that were moved by one voxel of a coarse model, or by 4 mm
HALF = 0.5  # chosen: share of the ordinary relative distance, as alpha in Carlini et al. 2023
FENCE = 3.0  # interquartile ranges below the lower quartile: "far out" (Tukey 1977)


def views(volume: torch.Tensor, spacing_mm: float) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield 14 named views of a volume (1, D, H, W): itself, its mirror image, and both shifted by 4 mm along each axis.

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
    """Average a volume (1, D, H, W) in cells of 8 mm in the box around the MNI brain, and scale them to mean 0, length 1.

    Rescaled intensities give the same vector. A volume that is constant in the box is refused.
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
    """Return a mask of the cells whose centres lie in the box around the MNI brain."""
    centres_mm = nib.affines.apply_affine(mni_box.affine(cell_mm), np.moveaxis(np.indices(shape), 0, -1))
    lower, upper = mni_box.BRAIN_MM
    return torch.from_numpy(((centres_mm > lower) & (centres_mm < upper)).all(-1))


@dataclass(frozen=True)
class Match:
    """The training scan that a volume resembles most."""

    scan: int  # index of the scan
    r: float  # correlation with it, -1 to 1
    relative_distance: float  # as defined above; at least 0
    view: str  # view of the volume that resembles it


class Neighbours:
    """Nearest training participants by correlation, after the mean training vector is subtracted.

    Args:
        vectors: vectors (n, F) of the training scans, on the device that compares. They are overwritten to save memory.
        participants: participant of each scan. Only the most similar scan of a participant counts as a neighbour.
        neighbours: number of further participants in the denominator of the relative distance, limited to those that exist.
    """

    def __init__(self, vectors: torch.Tensor, participants: Sequence[str], neighbours: int = 5) -> None:
        numbers = {name: number for number, name in enumerate(dict.fromkeys(participants))}
        self.mean = vectors.mean(0)
        self.residuals = F.normalize(vectors.sub_(self.mean), dim=1, out=vectors)
        self.participant = torch.tensor([numbers[name] for name in participants], device=vectors.device)
        self.count = len(numbers)
        self.neighbours = min(neighbours, self.count - 1)

    def match(self, queries: torch.Tensor, names: Sequence[str]) -> Match:
        """Find the best match of one volume, given the vectors (V, F) and the `names` of its views."""
        correlations = F.normalize(queries.to(self.mean.device) - self.mean, dim=1) @ self.residuals.T  # (V, n)
        best, view = correlations.max(0)  # (n,): best view for each scan
        per_participant = best.new_full((self.count,), -1.0).scatter_reduce(0, self.participant, best, "amax")
        highest = per_participant.topk(1 + self.neighbours).values
        nearest = int(best.argmax())
        relative = (1 - highest[0]) / (1 - highest[1:].mean()).clamp_min(1e-6)
        return Match(nearest, float(highest[0]), float(relative.clamp_min(0)), names[int(view[nearest])])


def threshold(held_out: Sequence[float]) -> float:
    """Compute the relative distance below which a volume counts as a copy, from the relative distances of held-out scans.

    It is the lower of two values: half of the median, and 3 interquartile ranges below the lower quartile. The second prevents
    false alarms if the distances of held-out scans vary widely.
    """
    lower, median, upper = np.quantile(held_out, (0.25, 0.5, 0.75))
    return float(min(HALF * median, lower - FENCE * (upper - lower)))
