"""Scores of synthetic T1w against the real scan, in the brain only, for every method of combining the planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from ignite.engine import Engine, Events
from monai.inferers import Inferer

from ..data.planes import AXES, PLANES
from ..generation.patch_merging import box_around
from ..generation.synthesis import Synthesiser
from ..shared.scan_identity import refuse_seen
from ..shared.ssim import SSIM, WINDOW, ssim_maps
from ..shared.tables import write_table
from .trivial_answers import paint

METHODS = (*PLANES, "mean", "median", "fusion", "label_mean")
SCORES = ("ssim", "mse", "psnr_db", *(f"flicker_{plane}" for plane in PLANES))
DEFINITION = """\
Intensities 0 to 1 on the model's grid (RAS); brain voxels only (Ayaz et al.). Mean ± standard deviation (n - 1) over the scans.

SSIM: mean over the brain of the SSIM map of the whole volumes (Wang et al. 2004 in 3-D: Gaussian window of 11 voxels, sigma
1.5, data range 1; background, 0, beyond the volume's border). MSE, PSNR: over the brain's voxels, peak 1.

Flicker: mean absolute difference of neighbouring slices across a plane, divided by the same of the real scan; 1 is real,
above 1 the slices jump, below 1 they are too smooth.

Label mean, the trivial answer: each class painted with its mean training intensity, no network."""


def held_out(data: Mapping[str, list[dict]], split: str, recipe: Mapping) -> list[dict]:
    """Give the items of a split, on none of which the model with this recipe was trained.

    Raises:
        ValueError: the split is empty, or has scans that GANs or fusion were trained on.
    """
    if not data.get(split):
        counts = ", ".join(f"{name}: {len(items)}" for name, items in data.items())
        raise ValueError(f"no scans in the split {split!r} ({counts}). Choose another with --split")
    refuse_seen(data[split], recipe, split)
    return data[split]


class EveryMethod(Inferer):
    """Synthesise by every method that is compared. The slices are made once, then combined.

    The label mean paints `class_intensities` (num_classes,), which come from `trivial_answers.mean_intensity`.
    """

    def __init__(self, synthesiser: Synthesiser, class_intensities: torch.Tensor) -> None:
        super().__init__()
        self.synthesiser = synthesiser
        self.class_intensities = class_intensities

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Make volumes (B, 7, D, H, W), intensities 0 to 1, in the order of METHODS, of classes (B, 1, D, H, W)."""
        planes = self.synthesiser.planes(inputs, network)  # (B, 3, D, H, W); they take nearly all the time
        fusion = self.synthesiser.fuse(planes, inputs, network)  # (B, 1, D, H, W)
        mean, median = planes.mean(dim=1, keepdim=True), planes.median(dim=1, keepdim=True).values
        return torch.cat([planes, mean, median, fusion, paint(inputs, self.class_intensities)], dim=1)


def flicker(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Mean |difference of neighbouring slices| of a prediction divided by the target's, for each plane; 1 is real.

    A pair of neighbours counts if both are inside the mask. All arguments have the shape (1, 1, D, H, W), RAS.

    Raises:
        ValueError: the mask is one slice thick, or all slices of the target are the same.
    """
    ratios = {}
    for plane, axis in AXES.items():
        inside = mask.movedim(2 + axis, 0)
        pairs = inside[1:] & inside[:-1]
        if not pairs.any():
            raise ValueError(f"the brain mask has no two neighbouring {plane} slices: flicker cannot be measured")
        steps = [volume.double().movedim(2 + axis, 0).diff(dim=0)[pairs].abs().mean() for volume in (prediction, target)]
        if not steps[1]:
            raise ValueError(f"the real scan is the same in all {plane} slices of the brain: flicker cannot be measured")
        ratios[plane] = float(steps[0] / steps[1])
    return ratios


def ssim_map(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Compute SSIM around every voxel of volumes (B, 1, D, H, W), 0 to 1. Outside of their borders they count as 0."""
    border = [WINDOW // 2] * 6
    return ssim_maps(SSIM(spatial_dims=3), F.pad(prediction, border), F.pad(target, border))[0]


def brain_scores(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Compute the SCORES of one synthetic volume, as DEFINITION describes; PSNR is infinite if it equals the target.

    Prediction, target and mask of the brain have the shape (1, 1, D, H, W), RAS; intensities are 0 to 1.

    Raises:
        ValueError: the mask is empty, or intensities are not finite, or constant in the brain.
    """
    if not mask.any():
        raise ValueError("the brain mask is empty: no label of the map is a brain class of the label table")
    for name, volume in (("synthetic volume", prediction), ("real scan", target)):
        if not torch.isfinite(volume).all():
            raise ValueError(f"{name}: {int((~torch.isfinite(volume)).sum())} voxels are not finite")
        if volume[mask].min() == volume[mask].max():
            raise ValueError(
                f"{name}: the intensity is {float(volume[mask][0]):.4g} in the whole brain, there is nothing to compare"
            )
    box = box_around(mask, margin=WINDOW // 2)  # voxels further away do not matter
    prediction, target, mask = prediction[box].float(), target[box].float(), mask[box]
    mse = float((prediction - target).double()[mask].square().mean())
    psnr_db = -10 * float(torch.tensor(mse, dtype=torch.float64).log10())
    ssim = float(ssim_map(prediction, target).double()[mask].mean())
    ratios = flicker(prediction, target, mask)
    return {"ssim": ssim, "mse": mse, "psnr_db": psnr_db} | {f"flicker_{plane}": ratio for plane, ratio in ratios.items()}


class Scores:
    """Score every method on each scan that an evaluator with `EveryMethod` runs, and write `scores.tsv` at the end.

    The table has a row for each scan and method. The batch names the scan: "participant_id" and "scan_file".
    """

    def __init__(self, output_dir: str | Path, brain: Sequence[int]) -> None:
        self.path = Path(output_dir) / "scores.tsv"
        self.brain = torch.tensor(list(brain))
        self.rows: list[list[str]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.STARTED, lambda engine: self.rows.clear())
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _score(self, engine: Engine) -> None:
        classes, target, predictions = (engine.state.output[key] for key in ("image", "label", "pred"))
        (participant,), (scan,) = (engine.state.batch[key] for key in ("participant_id", "scan_file"))
        mask = torch.isin(classes, self.brain.to(classes))
        for method, prediction in zip(METHODS, predictions.split(1, dim=1)):
            try:
                scores = brain_scores(prediction, target, mask)
            except ValueError as error:
                raise ValueError(f"{participant} ({scan}), {method}: {error}") from error
            self.rows.append([participant, Path(scan).name, method, *(f"{scores[name]:.6g}" for name in SCORES)])

    def _write(self, engine: Engine) -> None:
        write_table(self.path, [["participant_id", "file", "method", *SCORES], *self.rows])
