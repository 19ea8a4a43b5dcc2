"""Measure how accurately the regressor predicts covariates from real scans, and write numbers, a figure and a section."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats

from ..data.covariates import CovariateSchema
from ..model.training_record import what_training_knew
from ..shared.agreement import agreement
from ..shared.files import save_figure, sha256, write_json
from ..shared.sections import write_section
from ..shared.simulated import note_on
from ..shared.tables import print_table, read_number, read_table
from ..shared.weights import read_recipe
from .provenance import describe_training


def quantity_accuracy(truth: Sequence[float], predicted: Sequence[float], trivial: float) -> dict[str, float | list[float]]:
    """Compute the `agreement` of predictions of a quantity with the truth, and the error of always predicting `trivial`."""
    numbers = agreement(truth, predicted)
    kept = {key: numbers[key] for key in ("n", "r", "slope", "bias", "mae")}
    kept["r_95"] = [numbers["r_low"], numbers["r_high"]]
    return kept | {"mae_trivial": float(np.abs(trivial - np.array(truth)).mean())}


def hits(truth: Sequence[str], predicted: Sequence[str], trivial: str) -> dict[str, float | list[float]]:
    """Compute the share of correct categories with Wilson's interval, and the share if `trivial` is always predicted."""
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


def report(
    output_dir: str | Path, data: Mapping[str, Sequence[dict]], split: str, schema: CovariateSchema, model_file: str | Path
) -> dict:
    """Compare the predictions in `output_dir`/regressor.tsv, of the scans of a split, with the covariates of these scans.

    Print the comparison, write regressor.json, regressor.png and regressor.section.json, and return the content of the first.
    """
    output_dir = Path(output_dir)
    rows = {row["file"]: row for row in read_table(output_dir / "regressor.tsv")}
    known = next(iter(rows.values()))
    scores, pairs = {}, {}
    for index, covariate in enumerate(schema.covariates):
        if covariate.name not in known:
            raise ValueError(f"the regressor was not trained to read {covariate.name}, only {', '.join(list(known)[2:-1])}")
        values = {
            name: [(covariate.physical(item["covariates"][index]), item["image"]) for item in data[name]]
            for name in ("training", split)
        }
        training = [value for value, _ in values["training"] if value is not None]
        both = [(value, rows[file][covariate.name]) for value, file in values[split] if value is not None]
        truth, predicted = zip(*both) if both else ((), ())
        try:
            if covariate.levels is not None:
                scores[covariate.name] = hits(truth, predicted, statistics.mode(training))
            else:
                predicted = [read_number(value) for value in predicted]
                scores[covariate.name] = quantity_accuracy(truth, predicted, sum(training) / len(training))
                pairs[f"{covariate.name}{covariate._in_unit()}"] = (truth, predicted)
        except ValueError as error:
            raise ValueError(f"{covariate.name} in the split {split!r}: {error}") from error
    recipe = read_recipe(model_file)
    summary = {"split": split, "weights_sha256": sha256(model_file)}
    summary["trained_on"] = describe_training(recipe, data["training"], summary["weights_sha256"])
    summary["covariates"] = scores
    write_json(output_dir / "regressor.json", summary)
    scans = [item["image"] for item in data[split]]
    _draw(output_dir / "regressor.png", pairs, f"Scans of the split {split}. {note_on(scans)}".strip())
    _write_section(output_dir, summary, schema, what_training_knew(split, recipe), scans)
    return summary


def _draw(path: Path, pairs: Mapping[str, tuple[Sequence[float], Sequence[float]]], note: str) -> None:
    from matplotlib.figure import Figure  # training and generation run without matplotlib

    figure = Figure(figsize=(4 * max(len(pairs), 1), 4), layout="constrained")
    for axes, (label, (truth, predicted)) in zip(np.ravel(figure.subplots(1, max(len(pairs), 1))), pairs.items()):
        axes.axline((truth[0], truth[0]), slope=1, color="0.7", linewidth=1)
        axes.plot(truth, predicted, "o", markersize=4, alpha=0.7)
        axes.set(xlabel=label, ylabel="predicted", title=f"n = {len(truth)}")
    figure.supxlabel(note, fontsize=8, wrap=True)
    save_figure(path, figure)


def _write_section(
    output_dir: Path, summary: Mapping, schema: CovariateSchema, known: str, scans: Sequence[str | Path]
) -> None:
    header = ["", "n", "r [95 %]", "slope", "bias", "mean absolute error", "always the training mean"]
    quantities = {"header": header, "rows": []}
    categories = {"header": ["", "n", "right [95 %]", "most frequent of training"], "rows": []}
    for covariate in schema.covariates:
        score, unit = summary["covariates"][covariate.name], f" {covariate.unit}".rstrip()
        if covariate.levels is None:
            low, high = score["r_95"]
            cells = [f"{score['r']:.3f} [{low:.3f}, {high:.3f}]", f"{score['slope']:.2f}", f"{score['bias']:+.1f}{unit}"]
            cells += [f"{score['mae']:.1f}{unit}", f"{score['mae_trivial']:.1f}{unit}"]
            quantities["rows"].append([covariate.name, str(score["n"]), *cells])
        else:
            low, high = score["accuracy_95"]
            accuracy = f"{score['accuracy']:.3f} [{low:.3f}, {high:.3f}]"
            categories["rows"].append([covariate.name, str(score["n"]), accuracy, f"{score['accuracy_trivial']:.3f}"])
    tables = [table for table in (quantities, categories) if table["rows"]]
    for table in tables:
        print_table(table)
    figure = {"file": "regressor.png", "caption": "Predicted against true values; the line is equality."}
    write_section(
        output_dir / "regressor.section.json",
        "The regressor's own accuracy",
        f"A 3-D CNN (after Cole et al. 2017) predicted covariates from scans of the split {summary['split']}, "
        f"{known}. The tables compare the predictions with the true covariates. It was trained on {summary['trained_on']}. Its "
        "predictions from generated volumes can be no more accurate than from new scans.\n\n"
        "r is Pearson's correlation, with an interval by Fisher's z. The slope is of predicted on true values; it is below 1 "
        "if predictions are biased towards the mean. The bias is the mean of predicted - true. For sex and other categories "
        "the table gives the share of correct predictions, with Wilson's interval. Pinaya et al. 2022 report r = 0.692 between "
        "requested and predicted age in generated volumes of UK Biobank.",
        tables,
        [figure] if quantities["rows"] else [],
        scans,
    )
