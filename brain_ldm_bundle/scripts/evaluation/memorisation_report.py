"""Report the memorisation audit: the closest pairs, the distances of all volumes, tables and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.derivative import NOTICE
from ..shared.files import save_figure
from ..shared.intervals import with_interval
from ..shared.sections import write_section
from ..shared.tensorboard_panels import three_planes
from .nearest_scan import ANATOMY_MM, SHIFT_MM
from .provenance import describe

DIFFERENCE = 0.5  # end of the colour scale, in intensity 0 to 1
COLOURS = {"held-out": "#4a90d9", "sample": "#e07b39", "control": "#8a8a8a"}
KINDS = {"held-out": "held-out scans", "sample": "generated volumes", "control": "training scans through the autoencoder"}

SPREADS = {"r": "r with the nearest, median (range)", "relative_distance": "relative distance, median (range)"}
TEST_HEADER = [
    "space",
    "probability that a generated volume is nearer than a held-out scan",
    "p (one-sided Mann-Whitney)",
    "nearer than all but 5 % of the held-out scans (%)",
]


def draw_pairs(path: str | Path, pairs: Sequence[Mapping], note: str = "") -> None:
    """Draw a row for each pair: sample, scan, and sample minus scan, each in three mid-planes.

    A pair has "sample" and "scan" (D, H, W) in 0 to 1, "titles" of the three pictures, and "flagged". `note` is a sentence
    about the scans.
    """
    from matplotlib.figure import Figure  # training and generation run without matplotlib

    grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
    styles = (grey, grey, {"cmap": "RdBu_r", "vmin": -DIFFERENCE, "vmax": DIFFERENCE})
    figure = Figure(figsize=(13, 2.1 * len(pairs) + 0.6), layout="constrained", facecolor="white")
    for axes, pair in zip(figure.subplots(len(pairs), 3, squeeze=False), pairs):
        sample, scan = (three_planes(pair[name])[0].numpy() for name in ("sample", "scan"))
        for place, picture, style, title in zip(axes, (sample, scan, sample - scan), styles, pair["titles"]):
            shown = place.imshow(picture, interpolation="nearest", **style)
            place.set_axis_off()
            place.set_title(title, fontsize=8, color="#b00020" if pair["flagged"] else "black")
        figure.colorbar(shown, ax=axes[2], shrink=0.8, label="generated - scan")
    figure.supxlabel(
        f"First column: {NOTICE[0].lower()}{NOTICE[1:]} Flagged pairs in red. {note}".strip(), fontsize=8, wrap=True
    )
    save_figure(path, figure, dpi=110)


def draw_distances(path: str | Path, rows: pd.DataFrame, spaces: Mapping[str, Mapping], note: str = "") -> None:
    """Draw histograms of relative distances of held-out scans, generated volumes and controls, one panel for each space.

    `rows` has "kind" and "SPACE_relative_distance" of each volume, `spaces` the "threshold" below which a volume is flagged.
    `note` is a sentence about the scans.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.9), layout="constrained", facecolor="white")
    for axes, (space, numbers) in zip(figure.subplots(1, len(spaces)), spaces.items()):
        limit, distances = numbers["threshold"], rows[f"{space}_relative_distance"]
        bins = np.linspace(min(0.0, limit), max(1.0, distances.max()), 41)
        for kind, title in KINDS.items():
            values = distances[rows["kind"] == kind]
            weights = np.full(len(values), 100 / len(values))
            style = {"histtype": "stepfilled", "color": COLOURS[kind], "alpha": 0.6}
            axes.hist(values, bins, weights=weights, label=f"{title}, n = {len(values)}", **style)
        axes.axvline(limit, color="#b00020", linewidth=1, label="flagged to the left of this line")
        axes.set(title=f"{space} space, flagged below {limit:.2f}", ylabel="share (%)")
        axes.set_xlabel("relative distance to the nearest training scan (0: a copy)")
    place = {"loc": "outside lower center", "ncols": 4, "frameon": False, "fontsize": 8}
    figure.legend(*axes.get_legend_handles_labels(), title=note or None, title_fontsize=8, **place)
    save_figure(path, figure, dpi=110)


def write_audit_section(output_dir: Path, summary: Mapping, pairs: int, scans: Sequence[str]) -> None:
    """Write memorisation.section.json from the content of memorisation.json; the figure shows this many `pairs`."""
    counts, spaces = summary["counts"], summary["spaces"]
    low, high = (100 * end for end in counts["sample"]["share_95"])
    text = (
        f"{'Passed' if summary['passed'] else 'Not passed'}: {summary['verdict']}. The 95 % interval of the flagged share is "
        f"{low:.1f} to {high:.1f} %. Audited: {Path(summary['audited']['folder']).name}, made by: "
        f"{describe(summary['audited']['provenance'])}.\n\n"
        f"Each volume is compared with all {summary['training_scans']} training scans in two spaces. The first is its anatomy "
        f"at {ANATOMY_MM} mm in the box around the brain, also mirrored and moved by {SHIFT_MM} mm. The second is its latent, "
        f"also mirrored. The mean training scan is subtracted first, and r is the correlation of the differences. The relative "
        f"distance is 1 - r to the nearest training participant, divided by the mean 1 - r to the next "
        f"{summary['neighbours']} (Carlini et al. 2023). It is about 1 for a new head and 0 for a copy. A volume is flagged if "
        f"its relative distance, in either space, is below half of the held-out scans' median and 3 interquartile ranges below "
        f"their lower quartile. Held-out scans (validation and test) show the distances of new heads (Dar et al. 2024).\n\n"
        f"The controls are training scans that were encoded and decoded, the best copies that this model can make. Generated "
        f"volumes as a whole may be nearer than held-out scans although none is a copy (Meehan et al. 2020: a probability "
        f"above 0.5 with a small p; there are {len(spaces)} tests, and p is not corrected). Then the model may be overfitted, "
        f"or the requests may come from the training table. An audit without a finding is no proof of privacy."
    )
    count_rows, spread_rows, test_rows = [], [], []
    for kind, title in KINDS.items():
        share, ends = counts[kind]["share"], counts[kind]["share_95"]
        count_rows.append([title, str(counts[kind]["n"]), str(counts[kind]["flagged"]), with_interval(share, *ends, 100)])
    for space, numbers in spaces.items():
        for kind, title in KINDS.items():
            spreads = ["{median:.2f} ({lowest:.2f} to {highest:.2f})".format(**numbers[kind][key]) for key in SPREADS]
            spread_rows.append([f"{space}: {title}", *spreads, f"{numbers['threshold']:.2f}"])
        below = f"{100 * numbers['share_below_5th_percentile']:.1f}"
        test_rows.append([space, f"{numbers['probability_nearer']:.2f}", f"{numbers['p']:.2g}", below])
    tables = [
        {"header": ["", "n", "flagged", "share (%) [95 %]"], "rows": count_rows},
        {"header": ["space: volumes", *SPREADS.values(), "flagged below"], "rows": spread_rows},
        {"header": TEST_HEADER, "rows": test_rows},
    ]
    closest = (
        f"The {pairs} generated volumes that resemble a training scan most, that scan, and generated minus scan, in "
        "intensities of 0 to 1. Red means that the generated volume is brighter. The pictures show mid-planes in radiological "
        "convention; in sagittal planes the front is on the left. A generated volume is drawn in the view that "
        "fits the scan best: 'mirrored' in its title means that its own sides are swapped. The first column is synthetic."
    )
    figures = [
        {"file": "memorisation.png", "caption": closest},
        {"file": "memorisation_distances.png", "caption": "Relative distances of all volumes, and the threshold."},
    ]
    path = output_dir / "memorisation.section.json"
    verdict, volumes = verdict_of(counts, summary["passed"]), [summary["audited"]["folder"]]
    write_section(path, "Copies of training scans", text, tables, figures, scans, verdict, volumes)


def verdict_of(counts: Mapping[str, Mapping], passed: bool) -> str:
    """Say how many volumes are flagged, and whether the audit would have found copies."""
    sample, control = counts["sample"], counts["control"]
    share = with_interval(sample["share"], *sample["share_95"], 100)
    return (
        f"The audit {'passed' if passed else 'did not pass'}. {sample['flagged']} of {sample['n']} generated heads are "
        f"flagged as copies ({share} %). Of {control['n']} true copies, the audit finds {control['flagged']}."
    )
