"""Draw prepared scans side by side, so that a person sees in a minute which ones are placed wrongly."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from cohorts.three_planes import POINT_MM, cut, read_canonical, white_level
from matplotlib.figure import Figure
from registration.template import brain_on
from shared.files import save_figure

MOST_SCANS = 60
COLUMNS = 3
DRAWN_MM = 2.0


def draw(path: Path, scans: Mapping[Path, Mapping]) -> None:
    """Draw three planes of each scan with the outline of the template's brain, the least similar to the template first.

    Args:
        path: PNG file.
        scans: prepared images and their sidecars, with the matrix from RAS mm to the template's and the result of `assess`.
    """

    def goodness(image: Path) -> tuple[bool, float]:
        measures = scans[image]["Registration"]
        return not measures["suspicious"], measures["template_correlation"]

    worst = sorted(scans, key=goodness)[:MOST_SCANS]
    rows = -(-len(worst) // COLUMNS)
    figure = Figure(figsize=(4.8 * COLUMNS, 2.1 * rows + 0.6), layout="constrained")
    for panel in figure.subplots(rows, COLUMNS, squeeze=False).ravel():
        panel.set_axis_off()
    for panel, image in zip(figure.axes, worst):
        measures = scans[image]["Registration"]
        volume, affine = read_canonical(image)
        step = max(1, round(DRAWN_MM / affine[0, 0]))
        volume, affine = volume[::step, ::step, ::step], affine @ np.diag([step, step, step, 1])
        brain = brain_on(volume.shape, affine, np.array(scans[image]["MniToTemplateRasMm"]))
        panel.imshow(cut(volume, affine, POINT_MM) / white_level(volume), cmap="gray", vmin=0, vmax=1)
        panel.contour(cut(brain.astype(float), affine, POINT_MM), [0.5], colors="tab:orange", linewidths=0.7)
        words = f"{image.name.split('_')[0]}, r = {measures['template_correlation']:.2f}"
        if measures["suspicious"]:
            words = textwrap.fill(f"{words}: {measures['suspicious']}", 70)
        panel.set_title(words, fontsize=8, color="tab:red" if measures["suspicious"] else "black")
    figure.suptitle(
        f"{len(worst)} of {len(scans)} scans, the least similar to the template first. The outline is the template's brain, "
        "fitted to each head.\nThe subject's left is at the picture's right.",
        fontsize=9,
    )
    save_figure(path, figure)
