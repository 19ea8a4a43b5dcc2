"""Score synthetic T1w against the real scan within the brain, for every method of combining the planes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
Scores use intensities of 0 to 1 on the model's grid (RAS) and only voxels of the brain (Ayaz et al.). Tables give the mean ±
standard deviation (n - 1) over the scans.

SSIM is the mean over the brain of the SSIM map of the whole volumes (Wang et al. 2004 in 3-D: Gaussian window of 11 voxels,
sigma 1.5, data range 1; volumes are padded with 0). MSE and PSNR (peak 1) are over the brain's voxels.

Flicker is the mean absolute difference between neighbouring slices of a plane, divided by the same difference in the real scan.
At 1 a volume is as smooth as the scan. Above 1, intensities jump between slices; below 1, slices are too similar.

Label mean, the trivial answer, paints each class with its mean training intensity, without a network."""


def held_out(data: Mapping[str, list[dict]], split: str, recipe: Mapping) -> list[dict]:
    """Return the items of a split, which must not be empty and must be new to the GANs and the fusion with this recipe."""
    if not data.get(split):
        counts = ", ".join(f"{name}: {len(items)}" for name, items in data.items())
        raise ValueError(f"no scans in the split {split!r} ({counts}). Choose another with --split")
    refuse_seen(data[split], recipe, split)
    return data[split]


@dataclass(eq=False)
class EveryMethod(Inferer):
    """Synthesise by every method that is compared. The slices are made once and then combined."""

    synthesiser: Synthesiser
    class_intensities: torch.Tensor  # (num_classes,), from `trivial_answers.mean_intensity`; the label mean paints them

    @torch.inference_mode()
    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        """Make volumes (B, 7, D, H, W), intensities 0 to 1, in the order of METHODS, from classes (B, 1, D, H, W)."""
        planes = self.synthesiser.planes(inputs, network)  # (B, 3, D, H, W); they take nearly all the time
        fusion = self.synthesiser.fuse(planes, inputs, network)  # (B, 1, D, H, W)
        mean, median = planes.mean(dim=1, keepdim=True), planes.median(dim=1, keepdim=True).values
        return torch.cat([planes, mean, median, fusion, paint(inputs, self.class_intensities)], dim=1)


def flicker(prediction: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """Divide the mean |difference of neighbouring slices| of a prediction by the target's, for each plane.

    A pair of neighbouring voxels counts if both are inside the mask. All arguments have the shape (1, 1, D, H, W), RAS.
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
    """Compute the SCORES of one synthetic volume, as DEFINITION describes. PSNR is infinite if it equals the target.

    Prediction, target and mask of the brain have the shape (1, 1, D, H, W), RAS; intensities are 0 to 1.
    """
    if not mask.any():
        raise ValueError("the brain mask is empty: no label of the map is a brain class of the label table")
    for name, volume in (("synthetic volume", prediction), ("real scan", target)):
        if not torch.isfinite(volume).all():
            raise ValueError(f"{name}: {int((~torch.isfinite(volume)).sum())} voxels are not finite")
        if volume[mask].min() == volume[mask].max():
            raise ValueError(
                f"{name}: the intensity is {float(volume[mask][0]):.4g} in the whole brain, so it cannot be scored"
            )
    box = box_around(mask, margin=WINDOW // 2)  # voxels further away do not matter
    prediction, target, mask = prediction[box].float(), target[box].float(), mask[box]
    mse = float((prediction - target).double()[mask].square().mean())
    psnr_db = -10 * float(torch.tensor(mse, dtype=torch.float64).log10())
    ssim = float(ssim_map(prediction, target).double()[mask].mean())
    ratios = flicker(prediction, target, mask)
    return {"ssim": ssim, "mse": mse, "psnr_db": psnr_db} | {f"flicker_{plane}": ratio for plane, ratio in ratios.items()}


class Scores:
    """Score every method on each scan of an evaluator with `EveryMethod`, and write `scores.tsv` at the end.

    The table has a row for each scan and method. The batch has the keys "participant_id" and "scan_file".
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
