"""What a reader sees of the memorisation audit: the closest pairs, where all volumes lie, tables and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..data.derivative import NOTICE
from ..shared.files import save_figure
from ..shared.panels import three_planes
from ..shared.sections import write_section
from .nearest_scan import ANATOMY_MM, SHIFT_MM
from .provenance import describe

__all__ = ["draw_distances", "draw_pairs", "write_audit_section"]

DIFFERENCE = 0.5  # intensities; ends of the colours
COLOURS = {"held-out": "#4a90d9", "sample": "#e07b39", "control": "#8a8a8a"}
TITLES = {"held-out": "held-out scans", "sample": "generated volumes", "control": "training scans through the autoencoder"}

SPREADS = {"r": "r with the nearest, median (range)", "relative_distance": "relative distance, median (range)"}
TEST_HEADER = [
    "space",
    "probability that a generated volume is nearer than a held-out scan",
    "p (one-sided Mann-Whitney)",
    "nearer than all but 5 % of the held-out scans (%)",
]


def draw_pairs(path: str | Path, pairs: Sequence[Mapping]) -> None:
    """One row a pair: sample, scan, sample minus scan, in the three mid-planes of `panels.three_planes`.

    Args:
        path: PNG to write.
        pairs: "sample" and "scan" (D, H, W) in 0 to 1, "titles" of the three pictures, "flagged".
    """
    from matplotlib.figure import Figure  # training and generation run without matplotlib

    figure = Figure(figsize=(13, 2.1 * len(pairs) + 0.6), layout="constrained", facecolor="white")
    for axes, pair in zip(figure.subplots(len(pairs), 3, squeeze=False), pairs):
        sample, scan = (three_planes(pair[name])[0].numpy() for name in ("sample", "scan"))
        grey = {"cmap": "gray", "vmin": 0, "vmax": 1}
        for place, picture, style in zip(
            axes, (sample, scan, sample - scan), (grey, grey, {"cmap": "RdBu_r", "vmin": -DIFFERENCE, "vmax": DIFFERENCE})
        ):
            shown = place.imshow(picture, interpolation="nearest", **style)
            place.set_axis_off()
        for place, title in zip(axes, pair["titles"]):
            place.set_title(title, fontsize=8, color="#b00020" if pair["flagged"] else "black")
        figure.colorbar(shown, ax=axes[2], shrink=0.8, label="generated - scan")
    figure.supxlabel(f"First column: {NOTICE[0].lower()}{NOTICE[1:]} Flagged pairs in red.", fontsize=8)
    save_figure(path, figure, dpi=110)


def draw_distances(path: str | Path, distances: Mapping[str, Mapping[str, np.ndarray]], limits: Mapping[str, float]) -> None:
    """Histograms of relative distances, one panel a space: shares of held-out scans, generated volumes and controls.

    Args:
        path: PNG to write.
        distances: space to kind to values.
        limits: space to the value below which a volume is flagged.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.9), layout="constrained", facecolor="white")
    for axes, (space, kinds) in zip(figure.subplots(1, len(distances)), distances.items()):
        bins = np.linspace(min(0.0, limits[space]), max(1.0, *(values.max() for values in kinds.values())), 41)
        for kind, values in kinds.items():
            weights = np.full(len(values), 100 / len(values))
            label = f"{TITLES[kind]}, n = {len(values)}"
            axes.hist(values, bins, weights=weights, histtype="stepfilled", color=COLOURS[kind], alpha=0.6, label=label)
        axes.axvline(limits[space], color="#b00020", linewidth=1, label="flagged to the left of this line")
        axes.set(title=f"{space} space, flagged below {limits[space]:.2f}", ylabel="share (%)")
        axes.set_xlabel("relative distance to the nearest training scan (0: a copy)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    save_figure(path, figure, dpi=110)


def write_audit_section(output_dir: Path, summary: Mapping, pairs: int) -> None:
    """Write memorisation.section.json of what `Audit` found, beside its figures; `pairs` are drawn."""
    counts, spaces = summary["counts"], summary["spaces"]
    low, high = (100 * end for end in counts["sample"]["share_95"])
    text = (
        f"{'Passed' if summary['passed'] else 'Not passed'}: {summary['verdict']}. 95 % interval of the flagged share: "
        f"{low:.1f} to {high:.1f} %. Audited: {Path(summary['audited']['folder']).name}, made by: "
        f"{describe(summary['audited']['provenance'])}.\n\n"
        f"Each volume is compared with all {summary['training_scans']} training scans in two spaces: its anatomy at "
        f"{ANATOMY_MM} mm in the box around the brain, also mirrored and moved by {SHIFT_MM} mm; its latent, also mirrored. "
        f"The mean training scan is taken away first; r is the correlation of what remains. The relative distance is 1 - r to "
        f"the nearest training participant over the mean 1 - r to the next {summary['neighbours']} (Carlini et al. 2023): "
        f"about 1 for a head of its own, 0 for a copy. Flagged is what lies, in either space, below half of the held-out "
        f"scans' median and 3 interquartile ranges below their lower quartile. Held-out scans, of validation and test, show "
        f"what is ordinary (Dar et al. 2024).\n\n"
        f"The controls are training scans, encoded and decoded: the best copies this model can make. Generated volumes that "
        f"are nearer than held-out scans as a whole (Meehan et al. 2020: a probability above 0.5 with a small p; {len(spaces)} "
        f"tests, p not corrected for that) hint at overfitting, or at requests drawn from the training table, even where none "
        f"is a copy. An audit without a finding is no proof of privacy."
    )
    count_rows = []
    for kind, title in TITLES.items():
        share, ends = counts[kind]["share"], counts[kind]["share_95"]
        interval = f"{100 * share:.1f} [{100 * ends[0]:.1f}, {100 * ends[1]:.1f}]"
        count_rows.append([title, str(counts[kind]["n"]), str(counts[kind]["flagged"]), interval])
    spread_rows, test_rows = [], []
    for space, numbers in spaces.items():
        for kind, title in TITLES.items():
            spreads = ["{median:.2f} ({lowest:.2f} to {highest:.2f})".format(**numbers[kind][k]) for k in SPREADS]
            spread_rows.append([f"{space}: {title}", *spreads, f"{numbers['threshold']:.2f}"])
        below = f"{100 * numbers['share_below_5th_percentile']:.1f}"
        test_rows.append([space, f"{numbers['probability_nearer']:.2f}", f"{numbers['p']:.2g}", below])
    write_section(
        output_dir / "memorisation.section.json",
        "Memorisation",
        text,
        [
            {"header": ["", "n", "flagged", "share (%) [95 %]"], "rows": count_rows},
            {"header": ["space: volumes", *SPREADS.values(), "flagged below"], "rows": spread_rows},
            {"header": TEST_HEADER, "rows": test_rows},
        ],
        [
            {
                "file": "memorisation.png",
                "caption": f"The {pairs} generated volumes that resemble a training scan most, that scan, and generated minus "
                "scan, in intensities of 0 to 1: red where the generated one is brighter. Mid-planes; the subject's left is at "
                "the picture's right, in the sagittal plane the front is at the left. A generated volume is drawn in the view "
                "that fits the scan best: 'mirrored' in its title means that its own sides are swapped. The first column is "
                "synthetic.",
            },
            {"file": "memorisation_distances.png", "caption": "Relative distances of all volumes, and the threshold."},
        ],
    )
