"""What is written of a reader study's numbers: figure, tables and text for people, ratings and JSON for programs."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from cohorts.section import write_json, write_section, write_whole
from matplotlib.figure import Figure, SubFigure

from reader_studies.make import KINDS
from reader_studies.rate import RULES
from reader_studies.score import COMPUTED, RATINGS, RESAMPLES

COLOURS = {"real": "#4a90d9", "synthetic": "#e07b39"}  # as in report.py


def draw(numbers: dict) -> bytes:
    """PNG: how often each rating was given, for real and synthetic slices, and how often readers guessed right.

    Computed readers have panels of their own below those of people, and open marks.
    """
    people = {direction.replace("all", "all directions"): counts for direction, counts in numbers["frequencies"].items()}
    computed = {reader: entry["frequencies"]["all"] for reader, entry in numbers["computed"].items()}
    charts = [chart for chart in (people if numbers["n_readers"] else {}, computed) if chart]
    figure = Figure(figsize=(11, 2.2 + 3.3 * len(charts)), layout="constrained", facecolor="white")
    *above, below = figure.subfigures(len(charts) + 1, 1, height_ratios=[3] * len(charts) + [2], squeeze=False)[:, 0]
    for part, chart in zip(above, charts):
        _draw_frequencies(part, chart)
    if computed:
        above[0].suptitle("People", fontsize=10)
        above[-1].suptitle("Computed readers: rules on one cue of the pictures, and chance. Not people", fontsize=10)

    axes = below.subplots()
    guesses = [*numbers["guesses"], *(entry["guesses"][0] for entry in numbers["computed"].values())]
    for place, entry in enumerate(guesses):
        low, value, high = (100 * entry["accuracy"][name] for name in ("low", "value", "high"))
        axes.plot([low, high], [place] * 2, color="#333333", linewidth=1.5)
        filling = "white" if entry["reader"] in computed else "#333333"
        axes.plot(value, place, "o", color="#333333", markerfacecolor=filling, clip_on=False)
    axes.axvline(50, color="#999999", linestyle="--", linewidth=1)
    names = [f"{entry['reader']}, n = {entry['n']}" for entry in guesses]
    axes.set_yticks(range(len(guesses)), names, fontsize=9, parse_math=False)  # a $ is a $
    axes.set_ylim(len(guesses) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("guesses that were right, % with exact 95 % interval (dashed: chance)")
    axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110)
    return buffer.getvalue()


def _draw_frequencies(part: SubFigure, chart: Mapping[str, Mapping[str, Mapping[int, int]]]) -> None:
    """A panel for each title: how often each kind was given each rating."""
    panels = part.subplots(1, len(chart), sharey=True, squeeze=False)[0]
    for axes, (title, counts) in zip(panels, chart.items()):
        for shift, (kind, count) in zip((-0.2, 0.2), counts.items()):
            total = max(sum(count.values()), 1)
            heights = [100 * n / total for n in count.values()]
            axes.bar([rating + shift for rating in RATINGS], heights, 0.38, color=COLOURS[kind], label=f"{kind}, n = {total}")
        axes.set_title(title, fontsize=10, parse_math=False)
        axes.set_xticks(list(RATINGS), ["1\nvery good", "2", "3", "4", "5\nvery poor"], fontsize=8)
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("% of the ratings")
    panels[0].set_ylim(0, panels[0].get_ylim()[1] * 1.25)


def _with_interval(estimate: dict, digits: int = 2, scale: float = 1) -> str:
    if math.isnan(estimate["value"]):
        return "undefined"
    value, low, high = (f"{round(scale * estimate[name], digits) + 0.0:.{digits}f}" for name in ("value", "low", "high"))
    return f"{value} [{low}, {high}]" if not math.isnan(estimate["low"]) else f"{value} [too few for an interval]"


def tables(numbers: dict) -> list[dict]:
    """Ratings, guesses and agreement, of people first, then of computed readers, as `write_section` takes them."""
    people = "people, " if numbers["computed"] else ""
    everyone = {people: numbers} | {f"{reader}, ": entry for reader, entry in numbers["computed"].items()}
    ratings = [
        [
            whose + ("all directions" if direction == "all" else direction),
            f"{row['n']['real']}, {row['n']['synthetic']}",
            *(_with_interval(row[name]) for name in (*KINDS, "difference")),
        ]
        for whose, entry in everyone.items()
        for direction, row in entry["ratings"].items()
        if direction == "all" or whose == people
    ]
    told = [_guesses_row(row) for row in numbers["guesses"]]
    if numbers["n_readers"] > 1:
        n = sum(row["n"] for row in numbers["guesses"])
        told.append(["all people", str(n), *_with_interval(numbers["accuracy_of_all"], 0, 100).split(" ", 1), "", "", "", ""])
    told += [_guesses_row(entry["guesses"][0]) for entry in numbers["computed"].values()]
    agreeing = [
        [f"{row['reader']} with themselves", str(row["n"]), _with_interval(row["kappa"]), f"{row['equal']} of {row['n']}"]
        for row in numbers["intra_reader"]
    ]
    pairs = numbers["inter_reader"], numbers["agreement_with_computed"]
    between, with_computed = (
        [[" and ".join(row["readers"]), str(row["n"]), _with_interval(row["kappa"]), ""] for row in rows] for rows in pairs
    )
    agreement = {
        "header": ["agreement of ratings", "n items", "weighted kappa [95 %] (chance: 0)", "equal ratings"],
        "rows": between + agreeing + with_computed,
    }
    if not agreeing:  # the last column is theirs
        agreement = {"header": agreement["header"][:-1], "rows": [row[:-1] for row in agreement["rows"]]}
    return [
        {"header": ["mean rating (1 very good to 5 very poor) [95 %]", "n ratings real, synthetic", "real", "synthetic",
                    "synthetic - real"], "rows": ratings},
        {"header": ["guesses by", "n", "right, % [95 %, exact]", "[95 %, volumes drawn]", "right of real", "right of synthetic",
                    "p against 50 %", "always one answer, %"], "rows": told},
        agreement,
    ]  # fmt: skip


def _guesses_row(row: dict) -> list[str]:
    exact, by_volumes = (_with_interval(row[name], 0, 100) for name in ("accuracy", "by_volumes"))
    return [
        row["reader"],
        str(row["n"]),
        exact,
        by_volumes.partition(" ")[2],
        *(f"{right} of {n}" for right, n in row["right_of"].values()),
        "< 0.001" if row["p"] < 0.001 else f"{row['p']:.3f}",
        f"{100 * row['trivial']:.0f}",
    ]


def explain(numbers: dict, partial: bool) -> str:
    """What was done by whom, and how the numbers are to be read; the first sentence says whether people rated at all."""
    parts = [_explain_who(numbers, partial)]
    if numbers["computed"]:
        parts.append(_explain_computed(numbers["computed"]))
    parts.append(f"""\
Ratings: mean with 95 % percentile bootstrap, {RESAMPLES} times, drawing whole volumes, since slices of one are alike. The \
readers are taken as they are: the intervals say nothing about other readers. The yardstick of the synthetic slices is the \
rating of the real ones. Guesses: share that was right, with two intervals, beside the trivial 50 %. The exact binomial one \
(Clopper-Pearson) and p take slices as independent, though slices of one volume are alike: they may be too sure. There is one \
p for each reader, {len(numbers["guesses"]) + len(numbers["computed"])} in all, not corrected for their number. The bootstrap \
that draws whole volumes allows for that, but is too narrow with few volumes, and has no width where all guesses are right: \
believe the wider one. Agreement: quadratically weighted kappa (0: chance, 1: equal), undefined where both always gave the \
same rating.""")
    parts.append(
        "The frequency chart follows Figure 4C of Ayaz et al. 2022. Research data about synthetic images; not for clinical use."
    )
    return "\n\n".join(parts)


def _explain_who(numbers: dict, partial: bool) -> str:
    readers = numbers["n_readers"]
    rated = numbers if readers else next(iter(numbers["computed"].values()))
    volumes = rated["n_volumes"]
    slices = f"{rated['n_items']} slices of {volumes['real']} real and {volumes['synthetic']} synthetic volumes"
    shown = f"""\
shuffled, in sagittal, coronal and axial direction, and guessed whether each is real, without knowing which is which (study \
{numbers["study"]}). Air was drawn black in both kinds: it is not judged."""
    if not readers:
        return f"""\
No person has rated this study. What is shown are rules that look at one cue of the pictures, beside which people's answers \
will stand. They rated {slices}, {shown}"""
    unfinished = "Some did not finish; their answers so far are counted. " if partial else ""
    return f"""\
{readers} {"person" if readers == 1 else "people"} rated {slices}, {shown} {unfinished}Some slices came twice; the second time \
counts for the agreement of readers with themselves alone."""


def _explain_computed(computed: Mapping[str, dict]) -> str:
    right = {reader.removesuffix(COMPUTED): entry["guesses"][0]["accuracy"]["value"] for reader, entry in computed.items()}
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in right.items() if name != "chance")
    alone = f"Who looks at one cue alone is right in: {shares}; below 50 %, synthetic slices have more. " if shares else ""
    known = "; ".join(f"{name}: {RULES[name]}" for name in right if name in RULES)
    return f"""\
Computed readers look at the page that people get, and are counted in no number of people. They are the yardstick of guesses. \
{alone}A person who is right no more often need not have seen more than that. ({known}.) Each rule ranks the slices of a \
direction by its cue inside the head. Five equal classes are its ratings, so that only the difference between the kinds says \
something, and the half with more of the cue is taken for real. Its guesses depend on each other by that, which the intervals \
leave out. A slice that comes again gets the same answer, except from chance. The kappa of a person and a rule says how far \
the person's ratings go with the cue."""


def write_scores(
    numbers: dict, answers: pd.DataFrame, output: Path, partial: bool = False, title: str = "Reader study"
) -> None:
    """Write ratings.tsv, reader_study.json, reader_study.png and reader_study.section.json, of this title, into a folder."""
    output.mkdir(parents=True, exist_ok=True)
    columns = ["reader", "position", "item", "kind", "direction", "file", "slice", "repeat_of", "rating", "guess", "seconds"]
    write_whole(output / "ratings.tsv", answers[columns].to_csv(sep="\t", index=False, na_rep="n/a").encode())
    write_json(output / "reader_study.json", _plain(numbers | {"partial": partial}))
    write_whole(output / "reader_study.png", draw(numbers))
    whose = ["by people"] * bool(numbers["n_readers"]) + ["by computed readers"] * bool(numbers["computed"])
    caption = (
        f"Ratings of real and synthetic slices, and guesses that were right, {' and '.join(whose)}. "
        "Synthetic images; research, not for clinical use."
    )
    figures = [{"file": "reader_study.png", "caption": caption}]
    write_section(output / "reader_study.section.json", title, explain(numbers, partial), tables(numbers), figures)


def _plain(value):
    """JSON has no NaN: null."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value
