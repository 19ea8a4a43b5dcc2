"""How well scans are reconstructed, one row per scan, and by the trivial answer beside it: the mean training scan."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer
from monai.metrics import PSNRMetric
from scipy import stats
from tqdm import tqdm

from ..data.covariates import NULL, CovariateSchema, Request
from ..data.derivative import PROVENANCE, Derivative
from ..model.training_record import what_training_knew
from ..shared import mni_box
from ..shared.files import sha256, write_json
from ..shared.identities import refuse_seen
from ..shared.sections import write_section
from ..shared.tables import read_table, write_table
from .covariate_regressor import physical
from .ssim import SSIM

__all__ = ["Keep", "MeanImage", "Scores", "held_out", "mean_image", "needs", "summarise"]

NOTICE = "Synthetic: a scan through an autoencoder. It can show whose scan it was. For research, not for clinical use."

RECONSTRUCTIONS = "T1-weighted brain MRI through an autoencoder"


def needs(model_file: str | Path) -> None:
    """Sizes, spacing and covariates are read from the diffusion model's file; without it they would be the published ones.

    Raises:
        FileNotFoundError: there is none.
    """
    if not Path(model_file).is_file():
        raise FileNotFoundError(
            f"{model_file}: sizes and spacing are read from it. Train both stages first: python -m monai.bundle run training "
            f"--config_file configs/train.json --dataset_dir DIR"
        )


def held_out(data: Mapping[str, list[dict]], split: str, recipe: Mapping) -> list[dict]:
    """The items of a split, that the weights of `recipe` were not trained on unless the split is that of training.

    Raises:
        ValueError: an empty one, with what there is; or one with scans that were trained on.
    """
    if not data.get(split):
        counts = ", ".join(f"{name}: {len(items)}" for name, items in data.items())
        raise ValueError(f"no scans in the split {split!r} ({counts}). Choose another with --split")
    if split != "training":
        refuse_seen(data[split], recipe, split)
    return data[split]


def mean_image(items: Sequence[dict], preprocessing: Callable) -> torch.Tensor:
    """Mean of training scans, (1, D, H, W)."""
    total = sum(torch.as_tensor(preprocessing(item)["image"]) for item in tqdm(items, desc="mean image", leave=False))
    return total / len(items)


class MeanImage(Inferer):
    """Answers every scan with the same image."""

    def __init__(self, image: torch.Tensor) -> None:
        super().__init__()
        self.image = image

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        return self.image.to(inputs).expand_as(inputs)


class Scores:
    """SSIM, PSNR (dB) and mean absolute error of each volume, intensities 0 to 1, whole volume; written as a TSV at the end.

    SSIM as of Wang et al. 2004 in three dimensions, Gaussian window of 11 voxels and sigma 1.5, data range 1.
    """

    def __init__(self, path: str | Path, items: Sequence[dict]) -> None:
        self.path = Path(path)
        self.items = items
        self.rows: list[list] = []
        self.ssim = SSIM(spatial_dims=3, data_range=1.0)
        self.psnr = PSNRMetric(max_val=1.0)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._score)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _score(self, engine: Engine) -> None:
        prediction, image = (engine.state.output[key].float() for key in ("pred", "label"))
        l1 = (prediction - image).abs().flatten(1).mean(dim=1, keepdim=True)
        for values in torch.cat([self.ssim(prediction, image), self.psnr(prediction, image), l1], dim=1).tolist():
            item = self.items[len(self.rows)]
            if not all(map(math.isfinite, values)):
                found = ", ".join(f"{value:g}" for value in values)
                raise ValueError(
                    f"{item['image']}: SSIM, PSNR and L1 are {found}. The network's answer is not finite (train it again with "
                    f"a lower learning rate), or equals the scan"
                )
            self.rows.append([item["participant_id"], item["image"], *(f"{value:.5f}" for value in values)])

    def _write(self, engine: Engine) -> None:
        write_table(self.path, [["participant_id", "file", "ssim", "psnr_db", "l1"], *self.rows])


class Keep:
    """Write each reconstruction into a `Derivative`, as generation does, with the covariates of its scan.

    What a measuring tool reads there and not in the scan is the autoencoder's doing, not the diffusion model's.

    Args:
        output_dir: of the data set.
        schema: of the covariates.
        spacing_mm: of the model's grid.
        items: of the evaluator's scans, in their order, of `scripts.data.bids.read_dataset`. One of several scans of a
            participant is named after its file, such as sub-01ses2.
        autoencoder_file: its hash goes into the sidecars.

    Raises:
        ValueError: the folder holds another data set, or reconstructions of other scans or by other weights; two scans of one
            name.
    """

    def __init__(
        self,
        output_dir: str | Path,
        schema: CovariateSchema,
        spacing_mm: float,
        items: Sequence[Mapping],
        autoencoder_file: str | Path,
    ) -> None:
        there = Path(output_dir) / "dataset_description.json"
        name = json.loads(there.read_text(encoding="utf-8")).get("Name") if there.is_file() else RECONSTRUCTIONS
        if name != RECONSTRUCTIONS:
            raise ValueError(f"reconstructions_dir {output_dir} holds the data set {name!r}. Choose a new folder")
        self.items = items
        self.schema = schema
        self.names = _names(items)
        self.weights = sha256(autoencoder_file)
        for sidecar in sorted(Path(output_dir).glob("sub-*/anat/*_T1w.json")):
            weights = json.loads(sidecar.read_text(encoding="utf-8"))["WeightsSHA256"]
            if sidecar.parts[-3] not in self.names or weights != self.weights:
                raise ValueError(
                    f"reconstructions_dir {output_dir} holds {sidecar.name}, of another scan or autoencoder ({weights[:12]}) "
                    f"than these ({self.weights[:12]}): they would be measured together. Choose a new folder"
                )
        self.derivative = Derivative(
            output_dir,
            schema,
            mni_box.affine(spacing_mm),
            mni_box.size(spacing_mm),
            name=RECONSTRUCTIONS,
            covariates_are="of the scan",
        )
        self.rows: list[Request] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.COMPLETED, self._finish)

    def _keep(self, engine: Engine) -> None:
        for volume in engine.state.output["pred"]:
            item = self.items[len(self.rows)]
            row = {"participant_id": self.names[len(self.rows)]}
            for covariate, scaled in zip(self.schema.covariates, item["covariates"], strict=True):
                row[covariate.name] = None if scaled == NULL else physical(covariate, scaled)
            source = {"EditedImage": Path(item["image"]).name, "EditedImageSHA256": sha256(item["image"])}
            made = dict.fromkeys(PROVENANCE) | {"Sampler": "none", "WeightsSHA256": self.weights, "Description": NOTICE}
            request = self.schema.request(row)
            self.derivative.write(request, volume[0].float().cpu(), made | source)
            self.rows.append(request)

    def _finish(self, engine: Engine) -> None:
        self.derivative.finish(self.rows)


def _names(items: Sequence[Mapping]) -> list[str]:
    scans = Counter(item["participant_id"] for item in items)
    names = []
    for item in items:
        stem = Path(item["image"]).name.split(".nii")[0].removesuffix("_T1w").removeprefix("sub-")
        alone = scans[item["participant_id"]] == 1 and re.fullmatch(r"sub-[0-9A-Za-z+]+", item["participant_id"])
        names.append(item["participant_id"] if alone else f"sub-{re.sub(r'[^0-9A-Za-z]', '', stem)}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"{len(twice)} names are those of several scans, such as {twice[0]}: give them participant_id or names of BIDS"
        )
    return names


def summarise(output_dir: str | Path, split: str, recipe: Mapping) -> dict:
    """Mean and standard deviation (n - 1; None of one scan) over the scans, for the autoencoder and the mean image; printed,
    and kept for programs (reconstruction.json) and readers (reconstruction.section.json, with the mean's t interval).

    Args:
        split: of the scans.
        recipe: of the model, to say whether it knew them.
    """
    output_dir, summary = Path(output_dir), {}
    for name in ("reconstruction", "mean_image"):
        rows = read_table(output_dir / f"{name}.tsv")
        columns = {key: [float(row[key]) for row in rows] for key in ("ssim", "psnr_db", "l1")}
        scores = {
            key: {"mean": statistics.fmean(x), "std": statistics.stdev(x) if len(x) > 1 else None} for key, x in columns.items()
        }
        summary[name] = {"n": len(rows), **scores}
        cells = [f"{key} {_cell(score, len(rows))}" for key, score in scores.items()]
        print(f"{name:15s} n {len(rows):4d}", *cells, sep="  ")
    write_json(output_dir / "reconstruction.json", summary)
    titles = {"reconstruction": "autoencoder", "mean_image": "trivial answer: the mean training scan"}
    table = {
        "header": ["mean ± std [95 % of the mean]", "scans", "SSIM", "PSNR, dB", "L1"],
        "rows": [
            [titles[name], str(scores["n"]), *(_cell(scores[key], scores["n"]) for key in ("ssim", "psnr_db", "l1"))]
            for name, scores in summary.items()
        ],
    }
    text = (
        f"What the autoencoder keeps of the scans of the split {split}, {what_training_knew(split, recipe)}; samples of a "
        f"diffusion model on its latents lack what it loses. SSIM (Wang et al. 2004, in three dimensions, Gaussian window of "
        f"11 voxels, sigma 1.5), PSNR and mean absolute error of the whole volume, intensities 0 to 1."
    )
    write_section(output_dir / "reconstruction.section.json", "Reconstruction by the autoencoder", text, [table])
    return summary


def _cell(score: Mapping[str, float | None], n: int) -> str:
    mean, std = score["mean"], score["std"]
    if std is None:
        return f"{mean:.4g}"
    margin = stats.t.ppf(0.975, n - 1) * std / math.sqrt(n)
    return f"{mean:.4g} ± {std:.2g} [{mean - margin:.4g}, {mean + margin:.4g}]"
