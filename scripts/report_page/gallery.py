"""The report page's gallery: three planes of each volume, its values beneath, and controls that filter and sort."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from cohorts.cohort import Cohort

from report_page.html import escape, img
from report_page.label_names import LabelNames
from report_page.plots import planes_image

MOST_LEVELS = 12  # a column of more different texts is searched, not ticked
SLIDER_STEPS = 100  # at least so many on a slider


@dataclass(frozen=True)
class Column:
    """One column that the gallery can be filtered and sorted by."""

    title: str
    values: pd.Series  # by volume, numbers or text
    kind: str  # "number", "levels" or "sorted" (not filtered)


def columns(cohort: Cohort) -> list[Column]:
    """Covariates, then what was measured, then how far measured and requested differ. Columns of one value are left out."""
    found = []
    for name in cohort.expected:
        found.append(_column(_titled(cohort, name), cohort.expected[name]))
    for name, tool, by_tool in cohort.readings():
        measured, title = by_tool.measured[name], f"{_titled(cohort, name)}{cohort.by(name, tool)}"
        found.append(_column(f"measured {title}", measured))
        found.append(Column(f"measured − requested {title}", measured - cohort.expected[name], "sorted"))
    return [column for column in found if column and column.values.nunique() > 1]


def _titled(cohort: Cohort, name: str) -> str:
    return f"{cohort.title(name)}, {cohort.unit(name)}" if cohort.unit(name) else cohort.title(name)


def _column(title: str, values: pd.Series) -> Column | None:
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return Column(title, values.astype(float).where(np.isfinite(values.astype(float))), "number")
    values = values.map(lambda value: value if pd.isna(value) else str(value))
    return Column(title, values, "levels" if values.nunique() <= MOST_LEVELS else "sorted")


def slider(values: pd.Series) -> tuple[float, float, float]:
    """Lowest and highest value of a slider over all values, both round, and its step: 1, 2 or 5 times a power of ten.

    Whole numbers have a step of 1 at least.
    """
    low, high = float(values.min()), float(values.max())
    wanted = (high - low) / SLIDER_STEPS
    power = 10.0 ** math.floor(math.log10(wanted))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= wanted * (1 + 1e-9))
    if (values.dropna() % 1 == 0).all():
        step = max(step, 1.0)
    digits = max(0, -math.floor(math.log10(step)))
    return (
        round(math.floor(low / step + 1e-9) * step, digits),
        round(math.ceil(high / step - 1e-9) * step, digits),
        round(step, digits),
    )


def controls(cohort: Cohort, found: Sequence[Column], shown: int) -> str:
    """The form above the gallery. It is hidden where there is no script to obey it."""
    fields = []
    for number, column in enumerate(found):
        title = escape(column.title)
        if column.kind == "number":
            low, high, step = slider(column.values)
            limits = f'min="{low:.12g}" max="{high:.12g}" step="{step:.12g}"'
            fields.append(
                f'<fieldset class="range" data-column="{number}"><legend>{title}</legend><div class="track">'
                f'<input type="range" {limits} value="{low:.12g}" aria-label="{title}, from">'
                f'<input type="range" {limits} value="{high:.12g}" aria-label="{title}, to"></div>'
                f"<output>{low:.12g} – {high:.12g}</output></fieldset>"
            )
        elif column.kind == "levels":
            counts = column.values.dropna().value_counts().sort_index()
            boxes = "".join(
                f'<label><input type="checkbox" value="{escape(level)}" checked> {escape(level)} '
                f'<span class="soft">{count}</span></label>'
                for level, count in counts.items()
            )
            fields.append(f'<fieldset class="levels" data-column="{number}"><legend>{title}</legend>{boxes}</fieldset>')
    options = "".join(f'<option value="{number}">{escape(column.title)}</option>' for number, column in enumerate(found))
    return (
        f'<form id="filters" hidden aria-label="Filter and sort the gallery"><div class="fields">{"".join(fields)}</div>'
        '<p class="bar"><label>Find <input type="search" id="search" placeholder="part of a name" autocomplete="off"></label>'
        f'<label>Sort by <select id="sort"><option value="">as at first</option>{options}</select></label>'
        '<label><input type="checkbox" id="descending"> largest first</label>'
        '<button type="reset">Show all</button>'
        f'<span id="count" role="status">{shown} of {shown}</span></p></form>'
    )


def gallery(
    cohort: Cohort,
    volumes: Sequence[str],
    asked: str,
    names: LabelNames,
    in_viewer: dict[str, int],
    found: Sequence[Column] = (),
    element_id: str = "",
) -> Iterator[str]:
    """Figures of volumes, one by one.

    Args:
        cohort: that has them.
        volumes: to show, in this order.
        asked: what expected values are: "requested" or "true".
        names: of label values.
        in_viewer: volume -> its number in the viewer.
        found: `columns` whose values go along, for the controls.
        element_id: of the gallery.
    """
    yield f'<div class="gallery" id="{element_id}">' if element_id else '<div class="gallery">'
    for volume in volumes:
        values = [None if pd.isna(value := column.values[volume]) else value for column in found]
        text = escape(json.dumps(values, allow_nan=False))
        number = in_viewer.get(volume)
        buttons = (
            ""
            if number is None
            else f'<span class="show"><button type="button" data-side="left" aria-label="Show {escape(volume)} at the left">'
            f'⇤ left</button> <button type="button" data-side="right" aria-label="Show {escape(volume)} at the right">'
            "right ⇥</button></span>"
        )
        attributes = f' data-values="{text}"' if found else ""
        attributes += "" if number is None else f' data-volume="{number}"'
        kind = "axial, coronal and sagittal plane" + (", the label map below" if cohort.label_map(volume) else "")
        picture = img(planes_image(cohort, volume, names), f"{volume}: {kind}", lazy=True)
        yield f"<figure{attributes}>{picture}<figcaption>{caption(cohort, volume, asked)}{buttons}</figcaption></figure>\n"
    yield "</div>"


def caption(cohort: Cohort, volume: str, asked: str) -> str:
    """What a volume should be and what was measured in it, with the measuring tool's doubts."""
    expected, flags = cohort.expected.loc[volume], cohort.measured.loc[volume].get("flags")
    main, compared = cohort.main_quantity(), cohort.quantities()
    heading = volume
    rest = []
    if main is not None and not pd.isna(expected[main]):
        heading = f"{asked} {cohort.value(main, expected[main], 1 if main in compared else None)}"
        if main in compared:
            heading += f", {_measured(cohort, volume, main, 1) or 'could not be measured'}"
        rest.append(volume)
    for name in cohort.expected:
        value = expected[name]
        if name in (main, "split") and heading != volume or pd.isna(value):
            continue
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        text = f"{cohort.title(name)} {cohort.value(name, value) if number else value}"
        if found := _measured(cohort, volume, name):
            text += f" ({found})"
        rest.append(text)
    if isinstance(flags, str) and flags not in ("", "n/a"):
        rest.append(flags)
    return f"<b>{escape(heading)}</b><br>{escape(' · '.join(rest))}"


def _measured(cohort: Cohort, volume: str, name: str, decimals: int | None = None) -> str:
    """What each tool measured of a quantity, such as "measured 41.6 mL"; "" where none could."""
    readings = {tool: by_tool.measured.loc[volume, name] for of, tool, by_tool in cohort.readings() if of == name}
    texts = [
        f"{cohort.value(name, float(number), decimals)}{cohort.by(name, tool)}"
        for tool, number in readings.items()
        if not pd.isna(number)
    ]
    return f"measured {', '.join(texts)}" if texts else ""
