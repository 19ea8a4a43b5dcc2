"""The table of the synthesis (Ayaz et al. 2022, Figure 4A): every method's scores, and the fusion against each other method."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..data.planes import PLANES
from ..shared.files import write_json
from ..shared.sections import write_section
from ..shared.tables import print_table, read_table, spread_text, write_table
from . import score_statistics as paired
from .synthesis_scores import DEFINITION, METHODS, SCORES

__all__ = ["mean_and_std", "summarise"]

COMPARED = {"ssim": 1, "mse": -1, "psnr_db": 1}  # 1: larger is better
HEADINGS = {"ssim": "SSIM", "mse": "MSE", "psnr_db": "PSNR, dB"}
DIGITS = {"ssim": 4, "mse": 5, "psnr_db": 2}
FIGURES = {
    "planes.png": "Labels, scan and synthetic volumes of the first scan, through the brain's centre of mass.",
    "profiles.png": "Intensity along three lines through the brain of the same scan (as Ayaz et al. 2022, Figure 4B).",
}


def summarise(output_dir: str | Path, split: str, dataset_dir: str | Path) -> dict:
    """Mean and standard deviation of `scores.tsv` over the scans, and fusion minus each other method scan by scan.

    Printed, and kept as `summary.tsv`, `summary.json` and, for people, `synthesis.section.json`. What is not finite, as the
    mean where one PSNR is infinite, and the spread of a single scan are "n/a" in the table and null in JSON.

    Args:
        output_dir: of the scores, and of the figures where they were drawn.
        split, dataset_dir: whose scans were scored, for the text.

    Raises:
        FileNotFoundError: nothing has been scored yet.
        ValueError: a method lacks scans that another has.
    """
    output_dir = Path(output_dir)
    path = output_dir / "scores.tsv"
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no scores yet. Make them: python -m monai.bundle run --config_file configs/evaluate.json"
        )
    rows = read_table(path)
    values = {
        method: {name: np.array([float(row[name]) for row in rows if row["method"] == method]) for name in SCORES}
        for method in METHODS
    }
    counts = {method: len(scores["ssim"]) for method, scores in values.items()}
    if len(set(counts.values())) > 1 or not counts["fusion"]:
        raise ValueError(f"{path}: scans per method {counts}, each must have the same. Delete the file and evaluate again")
    summary = {
        "n": counts["fusion"],
        "data": f"split {split} of the folder {Path(dataset_dir).resolve().name}",
        "definition": f"{DEFINITION}\n\n{paired.DEFINITION}",
        "smallest_p": paired.smallest_p(counts["fusion"]),
        "methods": {method: {name: mean_and_std(x) for name, x in scores.items()} for method, scores in values.items()},
        "fusion_minus": _compare(values),
    }
    write_json(output_dir / "summary.json", summary)
    write_table(output_dir / "summary.tsv", _summary_lines(summary))
    tables, note = _tables(summary), _smallest_p_note(summary)
    figures = [{"file": name, "caption": text} for name, text in FIGURES.items() if (output_dir / name).is_file()]
    text = f"{summary['n']} scan{'s' * (summary['n'] > 1)}: {summary['data']}. {note}\n\n{summary['definition']}"
    write_section(
        output_dir / "synthesis.section.json", "SPADE fusion: how close to the scans (Figures 4A and 4B)", text, tables, figures
    )
    print(f"{text}\n")
    for table in tables:
        print_table(table)
    return summary


def mean_and_std(values: np.ndarray) -> dict[str, float | None]:
    """{"mean", "std": of a sample (n - 1)} of scores of shape (scans,); None for what is not finite, and one scan's spread."""
    if not len(values) or not np.isfinite(values).all():
        return {"mean": None, "std": None}
    return {"mean": float(values.mean()), "std": float(values.std(ddof=1)) if len(values) > 1 else None}


def _compare(values: Mapping[str, Mapping[str, np.ndarray]]) -> dict:
    others = [method for method in METHODS if method != "fusion"]
    compared = {method: {} for method in others}
    for name, sign in COMPARED.items():
        differences = [paired.paired_difference(values["fusion"][name], values[method][name]) for method in others]
        corrected = paired.holm([difference["p"] for difference in differences])
        for method, difference, p in zip(others, differences, corrected):
            wins = int((sign * values["fusion"][name] > sign * values[method][name]).sum())
            compared[method][name] = difference | {"p_holm": p, "wins": wins}
    return compared


def _smallest_p_note(summary: Mapping) -> str:
    n, smallest, comparisons = summary["n"], summary["smallest_p"], len(METHODS) - 1
    if n < 2:
        return "One scan allows neither a spread nor a test."
    corrected = min(1.0, comparisons * smallest)
    if corrected <= 0.05:
        return ""
    return (
        f"With {n} scans p cannot be below {paired.p_text(smallest)}, nor below {paired.p_text(corrected)} where all "
        f"{comparisons} comparisons are that clear and corrected for: too few scans to prove a difference by this test."
    )


def _tables(summary: Mapping) -> list[dict]:
    scores = [
        [
            method.replace("_", " "),
            *(spread_text(values[name], digits) for name, digits in DIGITS.items()),
            *(spread_text(values[f"flicker_{plane}"], 2) for plane in PLANES),
        ]
        for method, values in summary["methods"].items()
    ]
    comparisons = [
        [
            HEADINGS[name],
            method.replace("_", " "),
            paired.interval_text(summary["fusion_minus"][method][name], DIGITS[name]),
            f"{summary['fusion_minus'][method][name]['wins']} of {summary['n']}",
            paired.p_text(summary["fusion_minus"][method][name]["p"]),
            paired.p_text(summary["fusion_minus"][method][name]["p_holm"]),
        ]
        for name in COMPARED
        for method in summary["fusion_minus"]
    ]
    columns = ["method", *HEADINGS.values(), *(f"flicker {plane}" for plane in PLANES)]
    against = ["score", "fusion minus", "mean difference [95 %]", "fusion better on", "p", "p (Holm)"]
    return [{"header": columns, "rows": scores}, {"header": against, "rows": comparisons}]


def _cell(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.6g}"


def _summary_lines(summary: Mapping) -> list[list[str]]:
    """Rows of summary.tsv: per method mean and spread of each score, then fusion minus that method."""
    parts = {"": "mean", "_low": "low", "_high": "high", "_p": "p", "_p_holm": "p_holm", "_wins": "wins"}
    versus = [f"fusion_minus_{name}{suffix}" for name in COMPARED for suffix in parts]
    lines = [["method", "n", *(f"{name}_{part}" for name in SCORES for part in ("mean", "std")), *versus]]
    for method, scores in summary["methods"].items():
        compared = summary["fusion_minus"].get(method)
        cells = [_cell(scores[name][part]) for name in SCORES for part in ("mean", "std")]
        cells += [_cell(compared[name][part]) if compared else "n/a" for name in COMPARED for part in parts.values()]
        lines.append([method, str(summary["n"]), *cells])
    return lines
