"""Draw the picture of a report: heads in the order of what was requested, beside scans, and a label map with its T1w."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from cohorts.cohort import Cohort, evenly, nearest
from cohorts.origin import note_on_edits
from cohorts.three_planes import three_planes
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from shared.simulated import is_simulated, note_on

from report_page.gallery import coloured_planes
from report_page.label_names import LabelNames
from report_page.plots import LITERAL, png

ROWS_IN_PICTURE = 5
NOTICE = "Generated and synthetic volumes were made by models. For research, not for clinical use."


@dataclass(frozen=True)
class Column:
    """Volumes of a cohort, below each other in the order of a quantity. A volume is None if too few are left."""

    kind: str  # key of the cohort
    quantity: str | None
    volumes: list[str | None]


def columns(cohorts: Mapping[str, Cohort]) -> list[Column]:
    """Choose heads by the main quantity and by age, and beside each the scan with the most similar true value."""
    generated, scans = cohorts["generated"], cohorts.get("cohort")
    main, found = generated.main_quantity(), []
    by_age = main != "age" and "age" in generated.numbers() and generated.expected["age"].nunique() > 1
    for quantity in (main, *["age"] * by_age):
        shown = evenly(generated.sorted_by(quantity), ROWS_IN_PICTURE)
        found.append(Column("generated", quantity, shown))
        if scans and quantity in scans.numbers():
            wanted = generated.expected.loc[shown, quantity].fillna(0).tolist()
            found.append(Column("cohort", quantity, nearest(scans, quantity, wanted)))
    return found


def from_map(cohorts: Mapping[str, Cohort]) -> dict[str, str]:
    """Return by kind the first volume that was made from a label map and, if it is there, the scan of that map."""
    kind = "synthetic" if "synthetic" in cohorts else "generated"
    drawn = (name for name in cohorts[kind].images if cohorts[kind].label_map(name))
    volume = next(filter(cohorts[kind].from_map, drawn), None)
    if volume is None:
        return {}
    source = cohorts[kind].expected.loc[volume].get("source_participant_id")
    scan = {"cohort": source} if "cohort" in cohorts and source in cohorts["cohort"].images else {}
    return {kind: volume} | scan


@rc_context(LITERAL)
def overview(cohorts: Mapping[str, Cohort], names: Mapping[str, LabelNames]) -> bytes:
    """Draw the columns and, below them, a label map, the T1w that was made from it, and the scan of the map."""
    generated, shown, last = cohorts["generated"], columns(cohorts), from_map(cohorts)
    rows, width = max(len(column.volumes) for column in shown), max(len(shown), len(last) + 1 if last else 0)
    figure = Figure(figsize=(4.1 * width, 1.35 * (rows + bool(last)) + 0.8), layout="constrained", facecolor="white")
    grid = figure.subplots(rows + bool(last), width, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, column in enumerate(shown):
        cohort = cohorts[column.kind]
        order = f", by {cohort.title(column.quantity)}" if column.quantity else ""
        grid[0, place].set_title(f"{_kind(cohorts, column.kind)}{order}", fontsize=10)
        for axes, volume in zip(grid[:, place], column.volumes):
            if volume is not None:
                _draw(axes, three_planes(cohort.images[volume], cohort.point_mm(volume)))
                _label(axes, _values(cohort, volume, column))
    _draw_last(grid[-1], cohorts, names)
    note = note_on([cohorts["cohort"].folder] if "cohort" in cohorts else [])
    notes = "The subject's left is at the picture's right.", NOTICE, note_on_edits(generated.images.values()), note
    figure.supxlabel(" ".join(filter(None, notes)), fontsize=8, wrap=True)
    return png(figure, bbox_inches="tight")  # includes the texts outside of the axes


def _draw_last(row: Sequence[Axes], cohorts: Mapping[str, Cohort], names: Mapping[str, LabelNames]) -> None:
    """Draw a label map and its T1w, and the scan of the map at the same point."""
    for place, (kind, volume) in enumerate(from_map(cohorts).items(), 1):
        cohort = cohorts[kind]
        if kind == "cohort":
            title = f"{_kind(cohorts, kind).removesuffix('s')} of the map"
        else:
            title, point_mm = "T1w from the label map (synthetic)", cohort.point_mm(volume)
            _draw(row[0], coloured_planes(cohort, volume, names[kind]))
            row[0].set_title("label map", fontsize=10)
        _draw(row[place], three_planes(cohort.images[volume], point_mm))
        row[place].set_title(title, fontsize=10)


def _kind(cohorts: Mapping[str, Cohort], kind: str) -> str:
    if kind == "generated":
        return "generated (synthetic)"
    return "simulated scans" if is_simulated(cohorts[kind].folder) else "scans"


def _draw(axes: Axes, planes: np.ndarray) -> None:
    axes.imshow(planes, cmap="gray", vmin=0, vmax=1, interpolation="bilinear" if planes.ndim == 2 else "nearest")


def _label(axes: Axes, text: str) -> None:
    axes.text(-0.02, 0.5, text, transform=axes.transAxes, ha="right", va="center", fontsize=8)


def _values(cohort: Cohort, volume: str, column: Column) -> str:
    """Return the expected value of a volume, and the measured one, or its name if it has none."""
    if column.quantity is None:
        return volume
    tables = {"requested" if column.kind == "generated" else "true": cohort.expected, "measured": cohort.measured}
    texts = {
        kind: _rounded(cohort, table, volume, column.quantity) for kind, table in tables.items() if column.quantity in table
    }
    return "\n\n".join(f"{kind}\n{text}" for kind, text in texts.items())


def _rounded(cohort: Cohort, table: pd.DataFrame, volume: str, quantity: str) -> str:
    number = table.loc[volume, quantity]
    return "—" if pd.isna(number) else cohort.value(quantity, float(f"{number:.3g}") if abs(number) < 100 else round(number))
