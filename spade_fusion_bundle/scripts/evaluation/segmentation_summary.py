"""Tables and figure of the segmentation experiment: Dice of each arm, and the arms against each other scan by scan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..shared.files import write_json
from ..shared.sections import write_section
from ..shared.tables import print_table, spread_text, write_table
from . import score_statistics as paired
from .figures import draw_segmentations
from .segmentation import DiceScores
from .synthesis_summary import mean_and_std

__all__ = ["write"]

COLUMNS = ("arm", "participant_id", "file", "structure", "brain", "voxels", "dice")
DEFINITION = """\
Dice: 2 x overlap / (voxels of segmentation + voxels of the scan's own map), per structure, left and right apart, on the grid of
the experiment; a structure that a scan's map does not have gets no score there. Mean: over the brain structures of a scan,
then mean ± standard deviation (n - 1) over the scans.

Arms: the same U-Net with the same first weights, steps, batches, learning rates and augmentation, trained on volumes that were
synthesised from label maps (synthetic), on the scans of the training split (real), or on the union of both (both). What was
learnt at the last step is tested; the test scans decide nothing. Each arm is trained once: what another seed would give is in
no interval."""
TRIVIAL = {
    "trivial: by position": "Trivial answer: the most frequent label of each voxel over the real training maps, without a look "
    "at the scan. Possible because all maps share one grid.",
    "trivial: by intensity": "Trivial answer: the most frequent label of each of 64 intensities over the real training scans. "
    "The scans do not share one grid, so that places mean nothing. It cannot tell left from right.",
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
    """Write `segmentation.tsv` (a row per arm, scan and structure), `.json`, `.png` and `.section.json`; print the tables.

    Args:
        output_dir: of the files.
        scores: of synthetic, real, both and the trivial answer, in this order.
        items: "real", "synthetic" and "test", see `segmentation.share_out`.
        dataset_dir, split: of the scans that are tested on, for the text.
        steps: of each training.
        spacing_mm: of the grid.

    Returns:
        what `segmentation.json` holds.

    Raises:
        ValueError: no scan has any brain structure.
    """
    output_dir = Path(output_dir)
    table = scores[0].table
    summary = {
        "n": len(items["test"]),
        "data": Path(dataset_dir).resolve().name,
        "split": split,
        "steps": steps,
        "spacing_mm": spacing_mm,
        "definition": f"{DEFINITION}\n\n{TRIVIAL[scores[-1].arm]}\n\n{paired.DEFINITION}",
        "smallest_p": paired.smallest_p(len(items["test"])),
        "synthetic_sources": len({item["source"] for item in items["synthetic"]}),
        "arms": {one.arm: _summary_of(one, items) for one in scores},
    }
    summary["differences"] = _compare(scores)
    output_dir.mkdir(parents=True, exist_ok=True)
    lines = [[_cell(row[name]) for name in COLUMNS] for one in scores for row in one.rows]
    write_table(output_dir / "segmentation.tsv", [COLUMNS, *lines])
    write_json(output_dir / "segmentation.json", summary)
    first = scores[0].first
    draw_segmentations(
        output_dir / "segmentation.png",
        first["image"],
        {"own label map": first["label"]} | {_heading(one.arm): one.first["pred"] for one in scores},
        np.isin(first["label"], table.brain),
        table.names,
        np.broadcast_to(spacing_mm, 3),
        items["test"][0]["participant_id"],
    )
    tables, text = _tables(summary), _text(summary)
    caption = "The first test scan, its own label map, and what the networks and the trivial answer make of the scan."
    figures = [{"file": "segmentation.png", "caption": caption}]
    write_section(
        output_dir / "segmentation.section.json", "SPADE fusion: segmentation learnt from its volumes", text, tables, figures
    )
    print(f"{text}\n")
    for part in tables:
        print_table(part)
    return summary


def _heading(arm: str) -> str:
    return arm if arm in TRIVIAL else f"trained on: {arm}"


def _cell(value: object) -> str:
    return "n/a" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _per_scan(scores: DiceScores) -> np.ndarray:
    """Mean Dice of the brain structures of each scan, (scans,).

    Raises:
        ValueError: a scan whose map has none.
    """
    values = {}
    for row in scores.rows:
        values.setdefault((row["participant_id"], row["file"]), []).extend(
            [row["dice"]] * (row["brain"] and row["dice"] is not None)
        )
    for (participant, file), dice in values.items():
        if not dice:
            raise ValueError(f"{participant} ({file}): its label map has no brain structure of the table. Choose the table")
    return np.array([np.mean(dice) for dice in values.values()])


def _summary_of(scores: DiceScores, items: Mapping[str, Sequence]) -> dict:
    trained_on = {"synthetic": ["synthetic"], "real": ["real"], "both": ["synthetic", "real"]}.get(scores.arm, ["real"])
    structures = {}
    for name in scores.table.names[1:]:
        dice = np.array([row["dice"] for row in scores.rows if row["structure"] == name and row["dice"] is not None], float)
        if len(dice):
            brain = scores.table.names.index(name) in scores.table.brain
            structures[name] = {"n": len(dice), "brain": brain} | mean_and_std(dice)
    per_scan = _per_scan(scores)
    return {
        "volumes": {kind: len(items[kind]) for kind in trained_on},
        "mean_dice": {"n": len(per_scan)} | mean_and_std(per_scan),
        "structures": structures,
    }


def _compare(scores: Sequence[DiceScores]) -> list[dict]:
    """Mean Dice of one arm minus that of another, over the scans; p corrected for all of them."""
    values = {one.arm: _per_scan(one) for one in scores}
    trivial = scores[-1].arm
    pairs = [("synthetic", "real"), ("both", "real"), *((arm, trivial) for arm in ("synthetic", "real", "both"))]
    differences = [paired.paired_difference(values[first], values[second]) for first, second in pairs]
    corrected = paired.holm([difference["p"] for difference in differences])
    return [
        {"arm": first, "minus": second, "wins": int((values[first] > values[second]).sum())} | difference | {"p_holm": p}
        for (first, second), difference, p in zip(pairs, differences, corrected)
    ]


def _tables(summary: Mapping) -> list[dict]:
    arms = summary["arms"]
    means = [
        [
            _heading(arm),
            " + ".join(f"{number} {kind}" for kind, number in values["volumes"].items()),
            spread_text(values["mean_dice"], 3),
            str(values["mean_dice"]["n"]),
        ]
        for arm, values in arms.items()
    ]
    comparisons = [
        [
            f"{one['arm']} minus {one['minus']}",
            paired.interval_text(one, 3),
            f"{one['wins']} of {summary['n']}",
            paired.p_text(one["p"]),
            paired.p_text(one["p_holm"]),
        ]
        for one in summary["differences"]
    ]
    some = next(iter(arms.values()))["structures"]
    structures = [
        [name, str(some[name]["n"]), *(spread_text(values["structures"][name], 3) for values in arms.values())]
        for name in some
        if some[name]["brain"]
    ]
    return [
        {"header": ["", "learnt from", "mean Dice", "scans"], "rows": means},
        {"header": ["mean Dice", "mean difference [95 %]", "better on", "p", "p (Holm)"], "rows": comparisons},
        {"header": ["Dice", "scans", *map(_heading, arms)], "rows": structures},
    ]


def _text(summary: Mapping) -> str:
    volumes = summary["arms"]["both"]["volumes"]
    n, smallest = summary["n"], summary["smallest_p"]
    parts = [
        f"Tested on {n} real scan{'s' * (n > 1)} of the folder {summary['data']}, split {summary['split']}, "
        f"at {summary['spacing_mm']:g} mm.",
        f"Trained on {volumes['synthetic']} synthetic volumes of the maps of {summary['synthetic_sources']} subjects, none of "
        f"them tested on, and on {volumes['real']} real scans; {summary['steps']} steps each.",
    ]
    if n < 2:
        parts.append("One scan allows neither a spread nor a test.")
    elif len(summary["differences"]) * smallest > 0.05:
        parts.append(f"With {n} scans p cannot be below {paired.p_text(smallest)}: too few to prove a difference by this test.")
    return f"{' '.join(parts)}\n\n{summary['definition']}"
