"""Covariates read from a volume: training the regressor, loading it, and how far its answers can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from ignite.engine import Engine, Events
from scipy import stats

from ..data.covariates import NULL, Covariate, CovariateSchema
from ..model.networks import Regressor
from ..model.training_record import what_training_knew
from ..shared.files import save_figure, sha256, write_json
from ..shared.sections import write_section
from ..shared.tables import read_table, write_table
from ..shared.weights import load_weights, read_recipe
from .provenance import describe_training

__all__ = [
    "Predictions",
    "agreement",
    "covariate_loss",
    "covariates_as_target",
    "load_regressor",
    "refuse_no_folder",
    "regression_step",
    "summarise",
]

MADE_BY = "python -m monai.bundle run training --config_file configs/train_regressor.json --dataset_dir DIR"


def load_regressor(path: str | Path, spacing_mm: float) -> Regressor:
    """The regressor of a file of weights, on the CPU and in eval mode; sizes and covariates come with the weights.

    Args:
        path: as `configs/train_regressor.json` writes it, `models/regressor.pt`.
        spacing_mm: of the volumes that it shall read.

    Raises:
        FileNotFoundError: no such file; with the command that makes it.
        ValueError: no regressor's weights, or a regressor of another spacing.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such regressor. Train it first: {MADE_BY}")
    recipe = read_recipe(path)
    if "regressor" not in recipe:
        raise ValueError(f"{path}: these are not a regressor's weights. Train one: {MADE_BY}")
    if recipe["spacing_mm"] != spacing_mm:
        raise ValueError(
            f"{path}: this regressor reads volumes of {recipe['spacing_mm']:g} mm, not of {spacing_mm:g} mm. Give "
            f"--spacing_mm {recipe['spacing_mm']:g}, or train one for them: {MADE_BY} --spacing_mm {spacing_mm:g}"
        )
    return load_weights(Regressor(**recipe["regressor"]), path).eval()


def covariate_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of scaled covariates (B, C) over those that are known; 0 where none is."""
    known = target != NULL
    return ((prediction - target).abs() * known).sum() / known.sum().clamp(min=1)


def covariates_as_target(batch: Mapping, device: torch.device, non_blocking: bool = False, **kwargs) -> tuple:
    """Input and target of the regression: image (B, 1, D, H, W) and scaled covariates (B, C)."""
    return tuple(torch.as_tensor(batch[key]).to(device, non_blocking=non_blocking) for key in ("image", "covariates"))


def regression_step(engine: Engine, batch: Mapping, grad_clip: float, amp: bool) -> list[dict[str, float]]:
    """Absolute error of the scaled covariates, as Cole et al. 2017 trained their age predictor.

    Args:
        engine: MONAI's SupervisedTrainer.
        batch: {"image": (B, 1, D, H, W) in [0, 1], "covariates": (B, C)}.
        grad_clip: the gradient's norm is clipped to this.
        amp: bfloat16 autocast; the loss stays in float32.
    """
    network = engine.network.train()
    image, covariates = covariates_as_target(batch, engine.state.device, non_blocking=True)
    engine.optimizer.zero_grad(set_to_none=True)
    with torch.autocast(image.device.type, dtype=torch.bfloat16, enabled=amp):
        prediction = network(image)
    loss = covariate_loss(prediction.float(), covariates)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), grad_clip)
    engine.optimizer.step()
    return [{"loss": loss.item()}]


def physical(covariate: Covariate, scaled: float) -> float | str:
    """A scaled value in the covariate's unit, or the level whose code is nearest."""
    if covariate.levels is not None:
        return min(covariate.levels, key=lambda level: abs(covariate.levels[level] - scaled))
    return float(f"{covariate.unscaled(scaled):.12g}")  # that of 80 years is 80, no hair above a limit


class Predictions:
    """Write what a regressor reads from each volume: a table of participant_id, file, covariates in physical units, and tool.

    Args:
        path: TSV, written whole when the last volume is done.
        items: of the evaluator's volumes, in their order: {"participant_id": "sub-X", "image": path}.
        recipe: of the regressor.
    """

    def __init__(self, path: str | Path, items: Sequence[Mapping], recipe: Mapping) -> None:
        self.path = Path(path)
        self.items = items
        self.schema = CovariateSchema.from_dict(recipe["covariates"], where="the schema in the regressor's weights")
        self.rows: list[list[str]] = []

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._keep)
        engine.add_event_handler(Events.COMPLETED, self._write)

    def _keep(self, engine: Engine) -> None:
        output = engine.state.output
        for image, scaled in zip(output["image"], output["pred"].float(), strict=True):
            item = self.items[len(self.rows)]
            low, high = image.min().item(), image.max().item()
            if not (-0.01 <= low < high <= 1.01):  # also where it is NaN
                raise ValueError(
                    f"{item['image']}: values from {low:g} to {high:g}; a regressor reads images that vary within 0 to 1. "
                    f"Bring scans there with --stretch_intensities True"
                )
            values = [physical(c, value) for c, value in zip(self.schema.covariates, scaled.tolist(), strict=True)]
            cells = (v if isinstance(v, str) else f"{v:.6g}" for v in values)
            self.rows.append([item["participant_id"], str(item["image"]), *cells, "regressor"])

    def _write(self, engine: Engine) -> None:
        write_table(self.path, [["participant_id", "file", *self.schema.names, "tool"], *self.rows])


def refuse_no_folder(predict_dir: str | Path | None) -> None:
    """Refuse to predict where it is not said of what, before time goes into anything else.

    Raises:
        ValueError: no folder given.
    """
    if predict_dir is None:
        raise ValueError("nothing to predict. Give --predict_dir FOLDER, with volumes below sub-*/anat, as generated")


def agreement(truth: Sequence[float], predicted: Sequence[float], trivial: float) -> dict[str, float | list[float]]:
    """How well a quantity is predicted, in its unit.

    Args:
        truth, predicted: one per scan.
        trivial: the answer that knows no image, the mean of the training scans.

    Returns:
        n; r, Pearson's, and r_95, its interval by Fisher's z; slope of the predicted on the true values; bias, mean of
        predicted - true; mae, mean absolute error; mae_trivial.

    Raises:
        ValueError: fewer than four scans; all true or all predicted values the same; a value that is not finite.
    """
    truth, predicted = np.asarray(truth, dtype=float), np.asarray(predicted, dtype=float)
    if len(truth) < 4:
        raise ValueError(f"{len(truth)} scans with a known value: too few for a correlation, which needs at least 4")
    for name, values in (("true", truth), ("predicted", predicted)):
        if not np.isfinite(values).all():
            raise ValueError(f"a {name} value is not finite")
        if np.ptp(values) == 0:
            raise ValueError(f"all {len(values)} {name} values are {values[0]:g}: there is no correlation")
    r = stats.pearsonr(truth, predicted)
    return {
        "n": len(truth),
        "r": float(r.statistic),
        "r_95": [float(bound) for bound in r.confidence_interval(0.95)],
        "slope": float(stats.linregress(truth, predicted).slope),
        "bias": float((predicted - truth).mean()),
        "mae": float(np.abs(predicted - truth).mean()),
        "mae_trivial": float(np.abs(trivial - truth).mean()),
    }


def hits(truth: Sequence[str], predicted: Sequence[str], trivial: str) -> dict[str, float | list[float]]:
    """Share of the scans whose category is right, with Wilson's interval, and of the most frequent training category."""
    if not truth:
        raise ValueError("no scan with a known category")
    right = sum(a == b for a, b in zip(truth, predicted, strict=True))
    interval = stats.binomtest(right, len(truth)).proportion_ci(0.95, method="wilson")
    return {
        "n": len(truth),
        "accuracy": right / len(truth),
        "accuracy_95": [float(interval.low), float(interval.high)],
        "accuracy_trivial": sum(level == trivial for level in truth) / len(truth),
    }


def summarise(
    output_dir: str | Path, data: Mapping[str, Sequence[dict]], split: str, schema: CovariateSchema, model_file: str | Path
) -> dict:
    """Compare `output_dir/regressor.tsv`, the predictions of a split's scans, with their covariates; print it and keep it.

    Writes regressor.json, regressor.png and regressor.section.json beside the table.

    Args:
        data: of `scripts.data.bids.read_dataset`.
        split: of the scans in the table.
        schema: that the data was read with.

    Raises:
        ValueError: a covariate that the regressor does not know, or of which no accuracy can be told.
    """
    output_dir = Path(output_dir)
    rows = read_table(output_dir / "regressor.tsv")
    scores, pairs = {}, {}
    for index, covariate in enumerate(schema.covariates):
        if covariate.name not in rows[0]:
            raise ValueError(f"the regressor was not trained to read {covariate.name}, only {', '.join(list(rows[0])[2:-1])}")
        known = {name: [item["covariates"][index] for item in data[name]] for name in ("training", split)}
        training = [physical(covariate, value) for value in known["training"] if value != NULL]
        both = [(physical(covariate, v), row[covariate.name]) for v, row in zip(known[split], rows, strict=True) if v != NULL]
        truth, predicted = zip(*both) if both else ((), ())
        try:
            if covariate.levels is not None:
                scores[covariate.name] = hits(truth, predicted, max(set(training), key=training.count))
            else:
                predicted = [float(value) for value in predicted]
                scores[covariate.name] = agreement(truth, predicted, sum(training) / len(training))
                pairs[f"{covariate.name}{covariate._in_unit()}"] = (truth, predicted)
        except ValueError as error:
            raise ValueError(f"{covariate.name} in the split {split!r}: {error}") from error
    recipe = read_recipe(model_file)
    summary = {"split": split, "weights_sha256": sha256(model_file)}
    summary["trained_on"] = describe_training(recipe, data["training"], summary["weights_sha256"])
    write_json(output_dir / "regressor.json", summary | {"covariates": scores})
    _draw(output_dir / "regressor.png", pairs)
    _write_section(output_dir, summary, scores, schema, what_training_knew(split, recipe))
    return summary | {"covariates": scores}


def _draw(path: Path, pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> None:
    from matplotlib.figure import Figure  # training and generation run without matplotlib

    figure = Figure(figsize=(4 * max(len(pairs), 1), 4), layout="constrained")
    for axes, (label, (truth, predicted)) in zip(np.ravel(figure.subplots(1, max(len(pairs), 1))), pairs.items()):
        axes.axline((truth[0], truth[0]), slope=1, color="0.7", linewidth=1)
        axes.plot(truth, predicted, "o", markersize=4, alpha=0.7)
        axes.set(xlabel=label, ylabel="predicted", title=f"n = {len(truth)}")
    save_figure(path, figure)


def _write_section(
    output_dir: Path, summary: Mapping, scores: Mapping[str, Mapping], schema: CovariateSchema, known: str
) -> None:
    header = ["", "n", "r [95 %]", "slope", "bias", "mean absolute error", "always the training mean"]
    quantities, categories = [], []
    for covariate in schema.covariates:
        score, unit = scores[covariate.name], f" {covariate.unit}".rstrip()
        if covariate.levels is None:
            low, high = score["r_95"]
            cells = [f"{score['r']:.3f} [{low:.3f}, {high:.3f}]", f"{score['slope']:.2f}", f"{score['bias']:+.1f}{unit}"]
            cells += [f"{score['mae']:.1f}{unit}", f"{score['mae_trivial']:.1f}{unit}"]
            quantities.append([covariate.name, f"{score['n']}", *cells])
        else:
            low, high = score["accuracy_95"]
            accuracy = f"{score['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
            categories.append([covariate.name, f"{score['n']}", accuracy, f"{score['accuracy_trivial']:.3f}"])
    for row in [*quantities, *categories]:
        print("  ".join(row))
    tables = [{"header": header, "rows": quantities}] if quantities else []
    if categories:
        tables.append({"header": ["", "n", "right [95 %]", "most frequent of training"], "rows": categories})
    write_section(
        output_dir / "regressor.section.json",
        "The regressor's own accuracy",
        f"Covariates that a 3-D CNN (after Cole et al. 2017) reads from the real scans of the split {summary['split']}, "
        f"{known}, against their table. It was trained on {summary['trained_on']}. What it reads from generated volumes "
        "can be no better than on new scans.\n\n"
        "r: Pearson's, interval by Fisher's z. Slope: of predicted on true values; below 1 where it leans to the mean. Bias: "
        "predicted - true. For sex and other categories: the share that is right, Wilson's interval. Pinaya et al. 2022 report "
        "r = 0.692 for age, requested against predicted, in generated volumes of UK Biobank.",
        tables,
        [{"file": "regressor.png", "caption": "Predicted against true values; the line is equality."}] if quantities else [],
    )
