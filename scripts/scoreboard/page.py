"""Make the page that compares the sets side by side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from cohorts.three_planes import POINT_MM, cut
from matplotlib.figure import Figure
from report_page.html import escape, folded, img, paragraphs, table
from report_page.page import head
from report_page.plots import png
from shared import mni_box
from shared.intervals import with_interval

from scoreboard.board import HALF, Board, nearest_and_strangest
from scoreboard.controls import DEFECTS
from scoreboard.naming import SPLITS, WIDTH
from scoreboard.scores import KINDS

HOW = f"""Each set is compared with one half of the scans. The column "halves of scans" gives the mean of {SPLITS} random \
splits into halves, and the lowest and the highest value that is not named: {WIDTH:g} standard deviations of the splits from \
their mean, or the largest deviation of a split if that is more. A value beyond is marked by the name of its defect. Intervals \
(95 %) come from a jackknife over the volumes of both sets.

FID without a correction is too large for few volumes. So compare it only at the same n, and see the curves. A control is the \
other half of the scans with a planted defect. It shows that its score finds this defect in this study: it must be the worst \
of all sets, and be named. If it is not, the study is too small for this score, or has nothing that shows the defect.

A set that is not named is as close to the scans as other scans are, as far as these scores can show with this n. For \
research, not for clinical use."""


def page(board: Board, settings: Mapping, note: str) -> Iterator[str]:
    """Yield the HTML of the page in parts. `note` says whether the scans are simulated."""
    yield head("Scoreboard of generators") + "<header><h1>Scoreboard of generators</h1>"
    yield f'<p class="note"><b>{escape(note)}</b></p>' if note else ""
    yield '<dl id="verdict">' + "".join(_answer(board, name) for name in (*board.sets, HALF)) + "</dl></header><main>"
    yield "<section><h2>All scores</h2>" + _scores(board) + folded("How to read these numbers", paragraphs(HOW)) + "</section>"
    yield "<section><h2>Planted controls</h2>" + _controls(board) + "</section>"
    yield "<section><h2>Nearest and strangest volumes</h2>" + _pictures(board, settings["spacing_mm"]) + "</section>"
    yield "<section><h2>Estimates against the number of volumes</h2>" + _curves(board) + "</section>"
    faults = [fault for one in board.sets.values() for fault in one.faults]
    facts = table(["", ""], [[name, _fact(value)] for name, value in settings.items()], "facts")
    yield "<section><h2>How they were scored</h2>" + facts
    yield folded("Faulty files", paragraphs("\n\n".join(faults))) if faults else ""
    yield "</section></main></body></html>\n"


def _fact(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {one}" for name, one in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _answer(board: Board, name: str) -> str:
    named = ", ".join(dict.fromkeys(board.named(name).values())) or "nothing that halves of the scans do not show"
    return f"<dt>{escape(name)}</dt><dd>{escape(named)}</dd>"


def _scores(board: Board) -> str:
    columns, rows = [*board.sets, HALF], []
    for score in [score for score in KINDS if any(score in board.found[name] for name in columns)]:
        limits = "—"
        if score in board.floor.values:
            limits = with_interval(float(board.floor.values[score].mean()), *board.floor.limits(score))
        cells = [_cell(board, name, score) for name in columns]
        rows.append([KINDS[score].title, limits, *cells])
    return table(["", "halves of scans", *columns], rows)


def _cell(board: Board, name: str, score: str) -> str:
    if score not in board.found[name]:
        return "—"
    value, error = board.found[name][score]
    text = f"{value:.3g}" if math.isnan(error) else with_interval(value, value - 1.96 * error, value + 1.96 * error)
    return " ".join(filter(None, [text, board.named(name).get(score)]))


def _controls(board: Board) -> str:
    rows = []
    for control in board.controls:
        defect, named = DEFECTS[control.removeprefix("control: ")], board.named(control)
        if defect.score in board.found[control]:
            worst = board.worst(defect.score, defect.end)
            found = "yes" if board.finds(control) else "no, so its score proves nothing here"
            cell, others = _cell(board, control, defect.score), [name for score, name in named.items() if score != defect.score]
            rows.append([control, KINDS[defect.score].title, cell, worst, found, ", ".join(dict.fromkeys(others))])
    return table(["", "its own score", "value", "worst of all", "found", "also named"], rows)


def _pictures(board: Board, spacing_mm: float) -> str:
    sets = {**board.sets, "scans": board.reference}
    figure = Figure(figsize=(9, 1.9 * len(sets)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(sets), 2, squeeze=False)
    for row, (name, one) in zip(axes, sets.items(), strict=True):
        chosen = nearest_and_strangest(one, board.reference, board.space) if one is not board.reference else (0, 1)
        for cell, kind, number in zip(row, ("nearest", "strangest"), chosen, strict=True):
            planes = cut(one.levels[number][::-1], mni_box.affine(spacing_mm, "RAS"), POINT_MM)
            cell.imshow(planes, cmap="gray", vmin=0, vmax=255)
            cell.set_title(f"{name}{'' if one is board.reference else f', {kind}'}: {one.paths[number].name}", fontsize=8)
            cell.set_axis_off()
    text = "By the features of FID, from the nearest scan. The subject's left is at the picture's right."
    return f"<figure>{img(png(figure), text, 'picture')}<figcaption>{text}</figcaption></figure>"


def _curves(board: Board) -> str:
    figure = Figure(figsize=(3.3 * len(board.curves), 3), layout="constrained", facecolor="white")
    for axes, (score, of) in zip(figure.subplots(1, len(board.curves), squeeze=False)[0], board.curves.items(), strict=True):
        for name, curve in of.groupby(level=0, sort=False):
            axes.errorbar(curve.index.get_level_values(1), curve["mean"], curve["std"], label=name, capsize=2)
        axes.set(title=KINDS[score].title, xlabel="volumes in each set")
    figure.axes[0].legend(fontsize=7, frameon=False)
    text = "Mean and standard deviation over random subsets. Trust a score where its curve is flat and its bars are short."
    return f"<figure>{img(png(figure), text, 'picture')}<figcaption>{text}</figcaption></figure>"
