"""Measure the volumes of a set, each once. `scores` compares the measurements of two sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import torch
from ldm.evaluation.anatomies import anatomy_of_views
from ldm.evaluation.diversity import draw_pairs, multi_scale_ssim
from ldm.evaluation.feature_extractors import load_extractor
from ldm.evaluation.grey_values import LEVELS, as_stored
from measurement import WEIGHTS
from measurement.volume_net import load_network
from reader_studies.rate import find_inside, noise, sharpness
from scipy import ndimage
from shared import mni_box
from torch.utils.data import DataLoader
from tqdm import tqdm

from scoreboard.conforming import Files, Head, conform

REGRESSOR = Path(__file__).parents[2] / "brain_ldm_bundle" / "models" / "demo_regressor.pt"
LARGEST_BARE = 1.15  # outline of the image / mask of the brain: at most 0.95 without a skull, at least 1.4 with one; chosen
CUBE_MM, CUBE_SIDE = 8.0, 24  # chosen: so coarse that one head's folds do not matter, and as large as a head


@dataclass
class Measured:
    """The measurements of n volumes."""

    paths: list[Path]
    affines: list[np.ndarray]  # by which the volumes were conformed
    features: np.ndarray  # (n, F)
    anatomies: np.ndarray  # (n, 14, F): of 14 views, see nearest_scan.py
    cubes: np.ndarray  # (n, CUBE_SIDE, CUBE_SIDE, CUBE_SIDE), 8 mm about the head's own centre, RAS
    histograms: np.ndarray  # (n, 256)
    numbers: pd.DataFrame  # sharpness, noise, x_mm, y_mm, z_mm, mask_ml, outline_ml, and the structures' volumes in mL
    levels: list[np.ndarray]  # volumes (D, H, W), LAS, uint8
    similarity: np.ndarray  # (n, n): MS-SSIM of pairs; NaN where none was drawn
    table: pd.DataFrame  # covariates of each volume, as its participants.tsv has them
    files: int  # number of files, those that are left out included
    faults: list[str] = field(default_factory=list)  # of files that are left out, or misplaced

    def __len__(self) -> int:
        return len(self.paths)

    def of(self, rows: Sequence[int] | np.ndarray) -> Measured:
        """Return some rows, in this order; a row may occur several times."""
        rows = np.asarray(rows)
        return Measured(
            *([of[row] for row in rows] for of in (self.paths, self.affines)),
            *(array[rows] for array in (self.features, self.anatomies, self.cubes, self.histograms)),
            self.numbers.iloc[rows].reset_index(drop=True),
            [self.levels[row] for row in rows],
            np.where(rows[:, None] == rows, 1.0, self.similarity[np.ix_(rows, rows)]),
            self.table.iloc[rows].reset_index(drop=True),
            len(rows),
        )

    def is_bare(self) -> bool:
        """Return whether the volumes have no skull and scalp outside of the brain's mask."""
        return float((self.numbers["outline_ml"] / self.numbers["mask_ml"]).median()) < LARGEST_BARE

    def with_table(self, **columns: Sequence) -> Measured:
        """Return the same volumes with other covariates."""
        return replace(self, table=self.table.assign(**columns))


@dataclass
class Meter:
    """Measures sets in the same way: on one grid, with one kind of mask ("brain" or "head") and one extractor."""

    spacing_mm: float
    mask: str
    pairs: int  # random pairs of volumes for MS-SSIM
    seed: int
    device: torch.device
    workers: int = 0
    extractor_file: Path | None = None  # of MedicalNet or RadImageNet; None takes the regressor that is part of the bundle
    extractor_sha256: str | None = None

    def __post_init__(self) -> None:
        file, digest = self.extractor_file, self.extractor_sha256
        self.extractor = load_extractor(file, digest, REGRESSOR, self.spacing_mm, self.device)
        self.network = load_network(WEIGHTS).to(self.device) if self.mask == "brain" else None

    @torch.inference_mode()
    def measure(self, files: Files, table: pd.DataFrame, name: str) -> Measured:
        """Read, conform and measure the volumes of a set. `table` has a row of covariates for each file."""
        found, kept, affines, faults = [], [], [], []
        loader = DataLoader(files, batch_size=None, num_workers=self.workers, collate_fn=_unchanged)
        for row, (values, affine, fault) in enumerate(tqdm(loader, name, leave=False, disable=None)):
            try:
                if fault:
                    raise ValueError(fault)
                head = conform(values, affine, self.spacing_mm, self.network)
                found.append(self._measure(head, files.paths[row]))
                kept.append(row)
                affines.append(affine)
                fault = f"{files.paths[row]}: its header places the brain outside of the field of view" * head.misplaced
            except ValueError as refusal:
                fault = str(refusal) if str(files.paths[row]) in str(refusal) else f"{files.paths[row]}: {refusal}"
            faults += [fault] if fault else []
        if not found:
            raise ValueError(f"{name}: none of {len(files)} volumes can be measured. The first: {faults[0]}")
        features, anatomies, cubes, histograms, numbers, levels = zip(*found)
        return Measured(
            [files.paths[row] for row in kept],
            affines,
            *(np.stack(arrays) for arrays in (features, anatomies, cubes, histograms)),
            pd.DataFrame(list(numbers)),
            list(levels),
            self._similarity(levels),
            table.iloc[kept].reset_index(drop=True),
            len(files),
            faults,
        )

    def _measure(self, head: Head, path: Path) -> tuple:
        levels, mask = as_stored(head.image.numpy()), head.mask.numpy()
        image = torch.from_numpy(levels).float() / (LEVELS - 1)
        centre = ndimage.center_of_mass(mask)
        centre_mm = nib.affines.apply_affine(mni_box.affine(self.spacing_mm), centre)
        numbers = texture(levels) | dict(zip(("x_mm", "y_mm", "z_mm"), centre_mm, strict=True))
        numbers |= {"mask_ml": float(mask.sum()) * self.spacing_mm**3 / 1000, "outline_ml": head.outline_ml, **head.volumes_ml}
        return (
            self.extractor(image[None].to(self.device)),
            anatomy_of_views(image[None], self.spacing_mm, str(path)).numpy(),
            cube(image.numpy(), centre, self.spacing_mm),
            np.bincount(levels[mask], minlength=LEVELS) / mask.sum(),
            numbers,
            levels,
        )

    def _similarity(self, levels: Sequence[np.ndarray]) -> np.ndarray:
        metric, found = multi_scale_ssim(levels[0].shape), np.full((len(levels),) * 2, np.nan)
        volumes = [torch.from_numpy(one)[None, None] for one in levels]
        for i, j in draw_pairs(range(len(levels)), self.pairs, self.seed) if len(levels) > 1 else ():
            pair = [volumes[k].to(self.device).float() / (LEVELS - 1) for k in (i, j)]
            found[i, j] = found[j, i] = float(metric(*pair))
        return found


def texture(levels: np.ndarray) -> dict[str, float]:
    """Return the mean sharpness and noise of every other axial slice (D, H) of a volume, away from the mask's outline."""
    slices = [grey.astype(np.float32) for grey in np.moveaxis(levels, 2, 0)[::2]]
    pairs = [(grey, inside) for grey in slices if (inside := find_inside(grey)).any()]
    if not pairs:
        raise ValueError("no slice shows a head. Correct the header")
    weights = [inside.sum() for _, inside in pairs]
    measured = {"sharpness": sharpness, "noise": noise}
    return {name: float(np.average([of(*pair) for pair in pairs], weights=weights)) for name, of in measured.items()}


def cube(image: np.ndarray, centre: Sequence[float], spacing_mm: float) -> np.ndarray:
    """Return a volume (LAS) at 8 mm in a cube about its centre, in RAS order, scaled to mean 0 and length 1."""
    step = CUBE_MM / spacing_mm
    smooth = ndimage.gaussian_filter(image, step / 2)
    offset = np.subtract(centre, step * (CUBE_SIDE - 1) / 2)
    found = ndimage.affine_transform(smooth, [step] * 3, offset, (CUBE_SIDE,) * 3, order=1)[::-1]
    return (found - found.mean()) / max(np.linalg.norm(found - found.mean()), 1e-9)


def _unchanged(item: tuple) -> tuple:
    return item
