"""Summarise the synthesis (Ayaz et al. 2022, Figure 4A): scores of every method, and the fusion against every other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..data.planes import PLANES
from ..shared.files import write_json
from ..shared.scan_identity import knows_all
from ..shared.tables import read_table, write_table
from . import score_statistics as statistics
from .synthesis_scores import DEFINITION, METHODS, SCORES

# Scores by which the fusion is compared: heading, digits in the tables, whether larger is better.
COMPARED = {"ssim": ("SSIM", 4, True), "mse": ("MSE", 5, False), "psnr_db": ("PSNR, dB", 2, True)}
OTHERS = tuple(method for method in METHODS if method != "fusion")
FIGURES = {
    "planes.png": "Labels, scan and synthetic volumes of the first scan, through the brain's centre of mass.",
    "profiles.png": "Intensity along three lines through the brain of the same scan (as Ayaz et al. 2022, Figure 4B).",
}

UNCHECKED = ", which should be new to the model (not checked, because its weights do not name all of their training scans)"


def summarise(output_dir: str | Path, split: str, dataset_dir: str | Path, recipe: Mapping) -> dict:
    """Summarise `scores.tsv`: mean and spread of each method, and the fusion minus each other method on the same scans.

    Print the tables, and write `summary.tsv`, `summary.json` and `synthesis.section.json`. Numbers that are not finite or
    need more than one scan are "n/a" in tables and null in JSON. The data are described with a remark if the recipe of the
    weights does not name all training scans.
    """
    output_dir = Path(output_dir)
    path = output_dir / "scores.tsv"
    rows = read_table(path)
    values = {
        method: {name: np.array([float(row[name]) for row in rows if row["method"] == method]) for name in SCORES}
        for method in METHODS
    }
    counts = {method: len(scores["ssim"]) for method, scores in values.items()}
    if len(set(counts.values())) > 1 or not counts["fusion"]:
        raise ValueError(f"{path}: scans per method {counts}, each must have the same. Delete the file and evaluate again")
    n = counts["fusion"]
    summary = {
        "n": n,
        "data": f"split {split}{'' if knows_all(recipe) else UNCHECKED}",
        "definition": f"{DEFINITION}\n\n{statistics.DEFINITION}",
        "smallest_p": statistics.smallest_p(n),
        "methods": {
            method: {name: statistics.mean_and_std(x) for name, x in scores.items()} for method, scores in values.items()
        },
        "fusion_minus": {method: {} for method in OTHERS},
    }
    for name, (_, _, larger_is_better) in COMPARED.items():
        pairs = [(values["fusion"][name], values[method][name]) for method in OTHERS]
        for method, difference in zip(OTHERS, statistics.compare(pairs, larger_is_better)):
            summary["fusion_minus"][method][name] = difference
    write_json(output_dir / "summary.json", summary)
    write_table(output_dir / "summary.tsv", _lines(summary))
    note = statistics.note_on_few_scans(n, len(OTHERS))
    text = f"{n} scan{'s' * (n > 1)}: {summary['data']}. {note}\n\n{summary['definition']}"
    title = "SPADE fusion: how close to the scans (Figures 4A and 4B)"
    path = output_dir / "synthesis.section.json"
    statistics.report(path, title, text, _tables(summary), FIGURES, dataset_dir, _verdict(summary))
    return summary


def _verdict(summary: Mapping) -> str:
    """Say the fusion's SSIM and PSNR beside the best single plane and the trivial answer."""
    methods, n = summary["methods"], summary["n"]

    def score(method: str, name: str) -> str:
        return statistics.spread_text(methods[method][name], COMPARED[name][1])

    best = max(PLANES, key=lambda plane: methods[plane]["psnr_db"]["mean"] or 0)
    return (
        f"T1w from label maps reach a PSNR of {score('fusion', 'psnr_db')} dB and an SSIM of {score('fusion', 'ssim')} in the "
        f"brain of {n} scan{'s' * (n > 1)}. Without the fusion, the best plane reaches {score(best, 'psnr_db')} dB; without a "
        f"network, the mean of each label reaches {score('label_mean', 'psnr_db')} dB."
    )


def _tables(summary: Mapping) -> list[dict]:
    digits = {name: number for name, (_, number, _) in COMPARED.items()} | {f"flicker_{plane}": 2 for plane in PLANES}
    scores = [
        [method.replace("_", " "), *(statistics.spread_text(values[name], number) for name, number in digits.items())]
        for method, values in summary["methods"].items()
    ]
    comparisons = [
        [heading, method.replace("_", " "), *statistics.comparison_cells(compared[name], number)]
        for name, (heading, number, _) in COMPARED.items()
        for method, compared in summary["fusion_minus"].items()
    ]
    headings = [heading for heading, _, _ in COMPARED.values()] + [f"flicker {plane}" for plane in PLANES]
    difference, wins, *p = statistics.COMPARISON
    return [
        {"header": ["method", *headings], "rows": scores},
        {"header": ["score", "fusion minus", difference, f"fusion {wins}", *p], "rows": comparisons},
    ]


def _lines(summary: Mapping) -> list[list[str]]:
    """Return the lines of summary.tsv: mean and spread of each score of a method, then the fusion minus this method."""
    parts = {"": "mean", "_low": "low", "_high": "high", "_p": "p", "_p_holm": "p_holm", "_wins": "wins"}
    versus = [f"fusion_minus_{name}{suffix}" for name in COMPARED for suffix in parts]
    lines = [["method", "n", *(f"{name}_{part}" for name in SCORES for part in ("mean", "std")), *versus]]
    for method, scores in summary["methods"].items():
        compared = summary["fusion_minus"].get(method)
        cells = [scores[name][part] for name in SCORES for part in ("mean", "std")]
        cells += [compared[name][part] if compared else None for name in COMPARED for part in parts.values()]
        lines.append([method, str(summary["n"]), *("n/a" if cell is None else f"{cell:.6g}" for cell in cells)])
    return lines
