"""Score the autoencoder's reconstructions, and the mean training scan as a trivial answer."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from ignite.engine import Engine, Events
from monai.inferers import Inferer
from monai.metrics import PSNRMetric
from scipy import stats
from tqdm import tqdm

from ..data.covariates import CovariateSchema, Request
from ..data.derivative import PROVENANCE, Derivative
from ..model.training_record import what_training_knew
from ..shared import mni_box
from ..shared.files import read_json, sha256, write_json
from ..shared.image_files import find_files
from ..shared.intervals import with_interval
from ..shared.sections import write_section
from ..shared.ssim import SSIM
from ..shared.tables import print_table, read_number, read_table, write_table

NOTICE = "Synthetic: a scan through an autoencoder. It may identify the subject. For research, not for clinical use."
RECONSTRUCTIONS = "T1-weighted brain MRI through an autoencoder"
TITLES = {"reconstruction": "autoencoder", "mean_image": "trivial answer: the mean training scan"}


def mean_image(items: Sequence[dict], preprocessing: Callable) -> torch.Tensor:
    """Average scans (1, D, H, W); `preprocessing` turns an item into {"image": scan}."""
    total = sum(torch.as_tensor(preprocessing(item)["image"]) for item in tqdm(items, desc="mean image", leave=False))
    return total / len(items)


@dataclass(eq=False)
class MeanImage(Inferer):
    """Predict the same image (1, D, H, W) for every scan."""

    image: torch.Tensor

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
        return self.image.to(inputs).expand_as(inputs)


class ReconstructionScores:
    """Write a table of SSIM, PSNR (dB) and mean absolute error of each volume, whose intensities are 0 to 1.

    SSIM (Wang et al. 2004) is three-dimensional, with a Gaussian window of 11 voxels and sigma 1.5, data range 1.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self.lines = [["participant_id", "file", "ssim", "psnr_db", "l1"]]
        self.ssim = SSIM(spatial_dims=3, data_range=1.0)
        self.psnr = PSNRMetric(max_val=1.0)

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.score)
        engine.add_event_handler(Events.COMPLETED, self.write)

    def score(self, engine: Engine) -> None:
        prediction, image = (engine.state.output[key].float() for key in ("pred", "label"))
        l1 = (prediction - image).abs().flatten(1).mean(dim=1, keepdim=True)
        scores = torch.cat([self.ssim(prediction, image), self.psnr(prediction, image), l1], dim=1).tolist()
        batch = engine.state.batch
        for participant, file, values in zip(batch["participant_id"], batch["file"], scores, strict=True):
            if not all(map(math.isfinite, values)):
                found = ", ".join(f"{value:g}" for value in values)
                raise ValueError(
                    f"{file}: SSIM, PSNR and L1 are {found}. The network's output is not finite (train it again with a lower "
                    f"learning rate), or equals the scan"
                )
            self.lines.append([participant, file, *(f"{value:.5f}" for value in values)])

    def write(self, engine: Engine) -> None:
        write_table(self.path, self.lines)


class KeepReconstructions:
    """Write each reconstruction into a `Derivative`, with the covariates of its scan, as generation does.

    If a tool measures other volumes in a reconstruction than in the scan, the autoencoder is the cause, not the diffusion
    model.

    `items` are the evaluator's scans, from `read_dataset`. If a participant has several, each is named after its file, such as
    sub-01ses2. The hash of the weights in `autoencoder_file` is written to the sidecars.

    Raises:
        ValueError: the folder holds another data set, or reconstructions of other scans or weights, or two scans have the
            same name.
    """

    def __init__(
        self,
        output_dir: str | Path,
        schema: CovariateSchema,
        spacing_mm: float,
        items: Sequence[Mapping],
        autoencoder_file: str | Path,
    ) -> None:
        description = Path(output_dir) / "dataset_description.json"
        name = read_json(description).get("Name") if description.is_file() else RECONSTRUCTIONS
        if name != RECONSTRUCTIONS:
            raise ValueError(f"reconstructions_dir {output_dir} holds the data set {name!r}. Choose a new folder")
        self.weights, self.spacing_mm = sha256(autoencoder_file), spacing_mm
        self.requests = {item["image"]: _request(item, name, schema) for item, name in zip(items, _names(items), strict=True)}
        names = {request.participant_id for request in self.requests.values()}
        for sidecar in find_files(output_dir, "sub-*/anat/*_T1w.json", (".json",)) if description.is_file() else ():
            weights = str(read_json(sidecar).get("WeightsSHA256"))
            if sidecar.parts[-3] not in names or weights != self.weights:
                raise ValueError(
                    f"reconstructions_dir {output_dir} holds {sidecar.name}, of another scan or autoencoder ({weights[:12]}) "
                    f"than these ({self.weights[:12]}). Choose a new folder, so that they are not measured together"
                )
        place = mni_box.affine(spacing_mm), mni_box.size(spacing_mm)
        self.derivative = Derivative(output_dir, schema, *place, name=RECONSTRUCTIONS, covariates_are="of the scan")

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self.keep)
        engine.add_event_handler(Events.COMPLETED, self.finish)

    def keep(self, engine: Engine) -> None:
        for file, volume in zip(engine.state.batch["file"], engine.state.output["pred"], strict=True):
            source = {"EditedImage": Path(file).name, "EditedImageSHA256": sha256(file)}
            made = {"SpacingMm": self.spacing_mm, "Sampler": "none", "WeightsSHA256": self.weights, "Description": NOTICE}
            self.derivative.write(self.requests[file], volume[0].float().cpu(), dict.fromkeys(PROVENANCE) | made | source)

    def finish(self, engine: Engine) -> None:
        self.derivative.finish(list(self.requests.values()))


def _request(item: Mapping, name: str, schema: CovariateSchema) -> Request:
    values = {c.name: c.physical(scaled) for c, scaled in zip(schema.covariates, item["covariates"], strict=True)}
    return schema.request({"participant_id": name} | values)


def _names(items: Sequence[Mapping]) -> list[str]:
    scans = Counter(item["participant_id"] for item in items)
    names = []
    for item in items:
        stem = Path(item["image"]).name.split(".nii")[0].removesuffix("_T1w").removeprefix("sub-")
        alone = scans[item["participant_id"]] == 1 and re.fullmatch(r"sub-[0-9A-Za-z+]+", item["participant_id"])
        names.append(item["participant_id"] if alone else f"sub-{re.sub(r'[^0-9A-Za-z]', '', stem)}")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(
            f"{len(twice)} names belong to several scans, such as {twice[0]}. Give the scans a participant_id or BIDS names"
        )
    return names


def summarise(output_dir: str | Path, split: str, recipe: Mapping) -> dict:
    """Average reconstruction.tsv and mean_image.tsv, the scores of a split, and print and write the summary and its section.

    Returns:
        the content of reconstruction.json: the number of scans, and the mean and standard deviation (n - 1; None for one scan)
        of each score.
    """
    output_dir, summary = Path(output_dir), {}
    for name in TITLES:
        rows = read_table(output_dir / f"{name}.tsv")
        scans = [row["file"] for row in rows]
        scores = pd.DataFrame([{key: read_number(row[key]) for key in ("ssim", "psnr_db", "l1")} for row in rows])
        one = len(scores) == 1
        spread = {key: {"mean": float(x.mean()), "std": None if one else float(x.std())} for key, x in scores.items()}
        summary[name] = {"n": len(scores), **spread}
    write_json(output_dir / "reconstruction.json", summary)
    table = {
        "header": ["mean ± std [95 % of the mean]", "scans", "SSIM", "PSNR, dB", "L1"],
        "rows": [
            [TITLES[name], str(scores["n"]), *(_cell(scores[key], scores["n"]) for key in ("ssim", "psnr_db", "l1"))]
            for name, scores in summary.items()
        ],
    }
    print_table(table)
    text = (
        f"The autoencoder reconstructed the scans of the split {split}, {what_training_knew(split, recipe)}. Details that it "
        f"loses are also missing in generated volumes. The table gives SSIM (Wang et al. 2004, in three dimensions, "
        f"Gaussian window of 11 voxels, sigma 1.5), PSNR and mean absolute error of the whole volume, intensities 0 to 1."
    )
    write_section(output_dir / "reconstruction.section.json", "Reconstruction by the autoencoder", text, [table], scans=scans)
    return summary


def _cell(score: Mapping[str, float | None], n: int) -> str:
    mean, std = score["mean"], score["std"]
    if std is None:
        return f"{mean:.4g}"
    margin = stats.t.ppf(0.975, n - 1) * std / math.sqrt(n)
    value, interval = with_interval(mean, mean - margin, mean + margin).split(" ", 1)
    return f"{value} ± {std:.2g} {interval}"
