"""Write tables and figure of the segmentation experiment: Dice of each arm, and comparisons on the same scans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..shared.files import write_json
from ..shared.tables import write_table
from . import score_statistics as statistics
from .figures import draw_segmentations, scan_of
from .segmentation import DiceScores

COLUMNS = ("arm", "participant_id", "file", "structure", "brain", "voxels", "dice")
DEFINITION = """\
Dice is 2 x overlap / (voxels of segmentation + voxels of the scan's own map). It is computed for each structure, separately on
the left and the right, on the grid of the experiment. A structure that is not in a scan's map has no score for this scan. The
mean Dice is the mean over the brain structures of a scan; tables give mean ± standard deviation (n - 1) over the scans.

All arms train the same U-Net with the same first weights, steps, batches, learning rates and augmentation: on volumes that were
synthesised from label maps (synthetic), on the scans of the training split (real), or on both (both). The weights of the last
step are tested, so the test scans influence no choice. Each arm is trained once, so no interval includes the effect of
another seed."""
TRIVIAL = {
    "trivial: by position": "The trivial answer is the most frequent label of each voxel over the real training maps. It does "
    "not use the scan, and is possible because all maps share one grid.",
    "trivial: by intensity": "The trivial answer is the most frequent label of each of 64 intensities over the real training "
    "scans. Positions cannot be used, because the scans do not share one grid. It cannot distinguish left and right.",
}


def write(
    output_dir: str | Path,
    scores: Sequence[DiceScores],
    items: Mapping[str, Sequence[Mapping]],
    dataset_dir: str | Path,
    split: str,
    steps: int,
    spacing_mm: float,
) -> dict:
    """Write `segmentation.tsv` (a row for each arm, scan and structure), `.json`, `.png` and `.section.json`; print the tables.

    Args:
        output_dir: folder of the files.
        scores: results of the arms synthetic, real and both, followed by the trivial answer.
        items: "real", "synthetic" and "test" items, from `segmentation.choose_scans`.
        dataset_dir: data set of the test scans. The text names it, `split`, `steps` and `spacing_mm`.

    Returns:
        the content of `segmentation.json`.
    """
    output_dir, table, first = Path(output_dir), scores[0].table, scores[0].first
    n, trivial = len(items["test"]), scores[-1].arm
    per_scan = {one.arm: _mean_of_brain(one) for one in scores}
    pairs = [("synthetic", "real"), ("both", "real"), *((arm, trivial) for arm in ("synthetic", "real", "both"))]
    differences = statistics.compare([(per_scan[first], per_scan[second]) for first, second in pairs])
    summary = {
        "n": n,
        "data": Path(dataset_dir).resolve().name,
        "split": split,
        "steps": steps,
        "spacing_mm": spacing_mm,
        "definition": f"{DEFINITION}\n\n{TRIVIAL[trivial]}\n\n{statistics.DEFINITION}",
        "smallest_p": statistics.smallest_p(n),
        "synthetic_sources": len({item["source"] for item in items["synthetic"]}),
        "arms": {one.arm: _summary_of(one, per_scan[one.arm], items) for one in scores},
        "differences": [{"arm": arm, "minus": other} | one for (arm, other), one in zip(pairs, differences)],
    }
    lines = [[_cell(row[name]) for name in COLUMNS] for one in scores for row in one.rows]
    write_table(output_dir / "segmentation.tsv", [COLUMNS, *lines])
    write_json(output_dir / "segmentation.json", summary)
    scan = scan_of(dataset_dir)
    draw_segmentations(
        output_dir / "segmentation.png",
        first["image"],
        {"own label map": first["label"]} | {_heading(one.arm, scan != "scan"): one.first["pred"] for one in scores},
        np.isin(first["label"], table.brain),
        table.names,
        np.broadcast_to(spacing_mm, 3),
        items["test"][0]["participant_id"],
        scan,
    )
    caption = "The first test scan, its own label map, and the segmentations by the networks and by the trivial answer."
    statistics.report(
        output_dir / "segmentation.section.json",
        "SPADE fusion: segmentation learnt from its volumes",
        _text(summary),
        _tables(summary),
        {"segmentation.png": caption},
        dataset_dir,
    )
    return summary


def _heading(arm: str, simulated: bool = False) -> str:
    return arm if arm in TRIVIAL else f"trained on: {'simulated scans' if simulated and arm == 'real' else arm}"


def _cell(value: object) -> str:
    return "n/a" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _mean_of_brain(scores: DiceScores) -> np.ndarray:
    """Return the mean Dice of the brain structures of each scan, (scans,)."""
    values = {}
    for row in scores.rows:
        dice = values.setdefault((row["participant_id"], row["file"]), [])
        if row["brain"] and row["dice"] is not None:
            dice.append(row["dice"])
    for (participant, file), dice in values.items():
        if not dice:
            raise ValueError(f"{participant} ({file}): its label map has no brain structure of the table. Choose the table")
    return np.array([np.mean(dice) for dice in values.values()])


def _summary_of(scores: DiceScores, per_scan: np.ndarray, items: Mapping[str, Sequence]) -> dict:
    structures = {}
    for number, name in enumerate(scores.table.names[1:], 1):
        dice = np.array([row["dice"] for row in scores.rows if row["structure"] == name and row["dice"] is not None])
        if len(dice):
            structures[name] = {"n": len(dice), "brain": number in scores.table.brain} | statistics.mean_and_std(dice)
    trained_on = {"synthetic": ["synthetic"], "both": ["synthetic", "real"]}.get(scores.arm, ["real"])
    return {
        "volumes": {kind: len(items[kind]) for kind in trained_on},
        "mean_dice": {"n": len(per_scan)} | statistics.mean_and_std(per_scan),
        "structures": structures,
    }


def _tables(summary: Mapping) -> list[dict]:
    arms = summary["arms"]
    means = [
        [
            _heading(arm),
            " + ".join(f"{number} {kind}" for kind, number in values["volumes"].items()),
            statistics.spread_text(values["mean_dice"], 3),
            str(values["mean_dice"]["n"]),
        ]
        for arm, values in arms.items()
    ]
    comparisons = [
        [f"{one['arm']} minus {one['minus']}", *statistics.comparison_cells(one, 3)] for one in summary["differences"]
    ]
    structures = [
        [name, str(some["n"]), *(statistics.spread_text(values["structures"][name], 3) for values in arms.values())]
        for name, some in next(iter(arms.values()))["structures"].items()
        if some["brain"]
    ]
    return [
        {"header": ["", "learnt from", "mean Dice", "scans"], "rows": means},
        {"header": ["mean Dice", *statistics.COMPARISON], "rows": comparisons},
        {"header": ["Dice", "scans", *map(_heading, arms)], "rows": structures},
    ]


def _text(summary: Mapping) -> str:
    volumes, n = summary["arms"]["both"]["volumes"], summary["n"]
    return (
        f"Tested on {n} real scan{'s' * (n > 1)} of the split {summary['split']} "
        f"at {summary['spacing_mm']:g} mm. Trained on {volumes['synthetic']} synthetic volumes from the maps of "
        f"{summary['synthetic_sources']} subjects, none of whom is a test subject, and on {volumes['real']} real scans, for "
        f"{summary['steps']} steps each. {statistics.note_on_few_scans(n, len(summary['differences']))}\n\n"
        f"{summary['definition']}"
    )
