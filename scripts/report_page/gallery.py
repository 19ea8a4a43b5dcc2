"""Make the report page's gallery: three planes of each volume with its values, and controls that filter and sort."""

from __future__ import annotations

import io
import json
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from cohorts.cohort import Cohort
from cohorts.origin import edited_image
from cohorts.three_planes import three_planes, three_planes_of_labels
from PIL import Image  # a dependency of matplotlib

from report_page.html import escape, folded, img
from report_page.label_names import LabelNames

MOST_LEVELS = 12  # columns with more different texts get no tick boxes, but the search finds the texts
SLIDER_STEPS = 100  # smallest number of steps of a slider


@dataclass(frozen=True)
class Column:
    """A column by which the gallery can be sorted. Unless its kind is "sorted", it can also filter the gallery."""

    title: str
    values: pd.Series  # numbers or text, by volume
    kind: str  # "number", "levels" or "sorted"


def columns(cohort: Cohort) -> list[Column]:
    """Return covariates, measured values, and measured - requested values. Columns with one value are left out."""
    found = [_column(_titled(cohort, name), cohort.expected[name]) for name in cohort.expected]
    for name, tool, by_tool in cohort.readings():
        measured, title = by_tool.measured[name], f"{_titled(cohort, name)}{cohort.by(name, tool)}"
        found.append(_column(f"measured {title}", measured))
        found.append(Column(f"measured − requested {title}", measured - cohort.expected[name], "sorted"))
    return [column for column in found if column.values.nunique() > 1]


def _titled(cohort: Cohort, name: str) -> str:
    return f"{cohort.title(name)}, {cohort.unit(name)}" if cohort.unit(name) else cohort.title(name)


def _column(title: str, values: pd.Series) -> Column:
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return Column(title, values.astype(float).where(np.isfinite(values.astype(float))), "number")
    values = values.map(lambda value: value if pd.isna(value) else str(value))
    return Column(title, values, "levels" if values.nunique() <= MOST_LEVELS else "sorted")


def slider(values: pd.Series) -> tuple[float, float, float]:
    """Return lowest value, highest value and step of a slider for these values. Steps are 1, 2 or 5 times a power of ten.

    For whole numbers the step is at least 1.
    """
    low, high = float(values.min()), float(values.max())
    wanted = (high - low) / SLIDER_STEPS
    power = 10.0 ** math.floor(math.log10(wanted))
    step = max(factor * power for factor in (1, 2, 5) if factor * power <= wanted * (1 + 1e-9))
    if (values.dropna() % 1 == 0).all():
        step = max(step, 1.0)
    digits = max(0, -math.floor(math.log10(step)))
    ends = math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step, step
    return tuple(round(number, digits) for number in ends)


def controls(found: Sequence[Column], shown: int) -> str:
    """Return the form above the gallery. It is hidden if scripts do not run."""
    options = "".join(f'<option value="{number}">{escape(column.title)}</option>' for number, column in enumerate(found))
    return (
        '<form id="filters" hidden aria-label="Filter and sort the gallery"><p class="bar">'
        '<label>Find <input type="search" id="search" placeholder="part of a name" autocomplete="off"></label>'
        f'<label>Sort by <select id="sort"><option value="">order of the page</option>{options}</select></label>'
        '<label><input type="checkbox" id="descending"> largest first</label>'
        '<button type="reset">Show all</button>'
        f'<span id="count" role="status">{shown} of {shown}</span></p>'
        f"{folded('Filter by values', fields) if (fields := _fields(found)) else ''}</form>\n"
    )


def _fields(found: Sequence[Column]) -> str:
    """Return the sliders and tick boxes of the columns."""
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
    return f'<div class="fields">{"".join(fields)}</div>' if fields else ""


def gallery(
    cohort: Cohort,
    volumes: Sequence[str],
    asked: str,
    names: LabelNames,
    in_viewer: Mapping[str, int],
    found: Sequence[Column] = (),
    element_id: str = "",
) -> Iterator[str]:
    """Yield the figures of the volumes, one at a time.

    `asked` is the word for expected values, "requested" or "true". `in_viewer` has the number of each volume that the viewer
    can open. `found` has the columns of the controls, whose values are stored in the figures.
    """
    labelled = any(cohort.label_map(volume) for volume in volumes[:1])
    identity = f' id="{element_id}"' if element_id else ""
    yield f'<div class="gallery{" pairs" * labelled}"{identity}>'
    for volume in volumes:
        attributes = buttons = ""
        if found:
            values = [None if pd.isna(value := column.values[volume]) else value for column in found]
            attributes = f' data-values="{escape(json.dumps(values, allow_nan=False))}"'
        if volume in in_viewer:
            attributes += f' data-volume="{in_viewer[volume]}"'
            left, right = (
                f'<button type="button" data-side="{side}" aria-label="Show {escape(volume)} at the {side}">{text}</button>'
                for side, text in {"left": "⇤ left", "right": "right ⇥"}.items()
            )
            buttons = f'<span class="show">{left}{right}</span>'
        buttons += f'<span class="enlarge"><button type="button" aria-label="Enlarge {escape(volume)}">enlarge</button></span>'
        pictures = "".join(
            img(picture, f"{volume}: {kind}", lazy=True) for kind, picture in planes_images(cohort, volume, names).items()
        )
        text = f"<figcaption>{caption(cohort, volume, asked)}<br>{buttons}</figcaption>"
        yield f'<figure{attributes}><div class="planes">{pictures}</div>{text}</figure>\n'
    yield "</div>"


def planes_images(cohort: Cohort, volume: str, names: LabelNames) -> dict[str, bytes]:
    """Return by description the PNG of three planes of a volume, after its label map in colour if there is one."""
    pictures = {}
    if cohort.label_map(volume) is not None:
        pictures["label map"] = Image.fromarray(coloured_planes(cohort, volume, names))
    grey = (three_planes(cohort.images[volume], cohort.point_mm(volume)) * 255).round().astype(np.uint8)
    pictures["axial, coronal and sagittal plane"] = Image.fromarray(grey)
    return {kind: _png(picture) for kind, picture in pictures.items()}


def coloured_planes(cohort: Cohort, volume: str, names: LabelNames) -> np.ndarray:
    """Return three planes of a volume's label map in colour, uint8 (rows, columns, 3)."""
    planes = three_planes_of_labels(cohort.label_map(volume), cohort.point_mm(volume))
    values, index = np.unique(planes, return_inverse=True)
    return names.colours(values)[index.reshape(planes.shape)]


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def described(cohort: Cohort, volume: str) -> str:
    """Return the name and the expected values of a volume: "sub-0001: lateral ventricles 41.6 mL, age 63 years, sex F"."""
    values = {name: value for name, value in cohort.expected.loc[volume].items() if name != "split" and not pd.isna(value)}
    texts = ", ".join(f"{cohort.title(name)} {_text(cohort, name, value)}" for name, value in values.items())
    return f"{volume}: {texts}" if texts else volume


def _text(cohort: Cohort, name: str, value: object) -> str:
    return cohort.value(name, value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else str(value)


def caption(cohort: Cohort, volume: str, asked: str) -> str:
    """Return the expected and measured values of a volume and the warnings of the measuring tool, as HTML."""
    expected, flags = cohort.expected.loc[volume], cohort.measured.loc[volume].get("flags")
    main, compared = cohort.main_quantity(), cohort.quantities()
    heading, rest = volume, []
    if main is not None and not pd.isna(expected[main]):
        heading = f"{asked} {cohort.value(main, expected[main], 1 if main in compared else None)}"
        if main in compared:
            heading += f", {_measured(cohort, volume, main, 1) or 'could not be measured'}"
        rest.append(volume)
    for name, value in expected.items():
        if name in (main, "split") and heading != volume or pd.isna(value):
            continue
        text = f"{cohort.title(name)} {_text(cohort, name, value)}"
        found = _measured(cohort, volume, name)
        rest.append(f"{text} ({found})" if found else text)
    if edited := edited_image(cohort.images[volume]):
        rest.append(f"edit of {edited}")
    if isinstance(flags, str) and flags not in ("", "n/a"):
        rest.append(flags)
    return f"<b>{escape(heading)}</b><br>{escape(' · '.join(rest))}"


def _measured(cohort: Cohort, volume: str, name: str, decimals: int | None = None) -> str:
    """Return the measured value, such as "measured 41.6 mL", or "". If several tools measured it, the first one counts."""
    number = cohort.measured.loc[volume, name] if name in cohort.quantities() else None
    return "" if number is None or pd.isna(number) else f"measured {cohort.value(name, float(number), decimals)}"
