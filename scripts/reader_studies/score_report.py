"""Write the report of a reader study: a figure, tables and text for people, ratings and JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure, SubFigure
from shared.files import save_figure, write_json, write_text
from shared.intervals import with_interval
from shared.sections import write_section
from shared.simulated import NOTE

from reader_studies.rate import RULES
from reader_studies.score import COMPUTED, RATINGS, RESAMPLES
from reader_studies.slices import KINDS

NOTICE = "Some of the images are synthetic. For research, not for clinical use."
COLOURS = {"real": "#4a90d9", "synthetic": "#e07b39"}  # as in report.py


def draw(numbers: dict) -> Figure:
    """Draw how often each rating was given to real and synthetic slices, and how often readers guessed right.

    Computed readers have their own panels, below the panels of people, and open marks.
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
        above[-1].suptitle("Computed readers (not people): rules that use one cue of the pictures, and chance", fontsize=10)

    axes = below.subplots()
    guesses = [*numbers["guesses"], *(entry["guesses"][0] for entry in numbers["computed"].values())]
    for place, entry in enumerate(guesses):
        low, value, high = (100 * entry["accuracy"][name] for name in ("low", "value", "high"))
        axes.plot([low, high], [place] * 2, color="#333333", linewidth=1.5)
        filling = "white" if entry["reader"] in computed else "#333333"
        axes.plot(value, place, "o", color="#333333", markerfacecolor=filling, clip_on=False)
    axes.axvline(50, color="#999999", linestyle="--", linewidth=1)
    names = [f"{entry['reader']}, n = {entry['n']}" for entry in guesses]
    axes.set_yticks(range(len(guesses)), names, fontsize=9, parse_math=False)  # $ starts no formula
    axes.set(xlim=(0, 100), ylim=(len(guesses) - 0.5, -0.5))
    axes.set_xlabel("right guesses, % with exact 95 % interval (dashed: chance)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"{NOTICE} {NOTE if numbers['simulated'] else ''}".strip(), fontsize=8, wrap=True)
    return figure


def _draw_frequencies(part: SubFigure, chart: Mapping[str, Mapping[str, Mapping[int, int]]]) -> None:
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


def _with_interval(estimate: dict, scale: float = 1) -> str:
    if math.isnan(estimate["value"]):
        return "undefined"
    if math.isnan(estimate["low"]):
        return f"{scale * estimate['value']:.3g} [too few for an interval]"
    return with_interval(estimate["value"], estimate["low"], estimate["high"], scale)


def tables(numbers: dict) -> list[dict]:
    """Return the tables of ratings, guesses and agreement for `write_section`, with people before computed readers."""
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
    guesses = [_guesses_row(row) for row in numbers["guesses"]]
    if len(guesses) > 1:
        n = sum(row["n"] for row in numbers["guesses"])
        guesses.append(["all people", str(n), *_with_interval(numbers["accuracy_of_all"], 100).split(" ", 1), *[""] * 4])
    guesses += [_guesses_row(entry["guesses"][0]) for entry in numbers["computed"].values()]
    compared = {" and ".join(row["readers"]): row for row in numbers["inter_reader"]}
    compared |= {f"{row['reader']} with themselves": row for row in numbers["intra_reader"]}
    compared |= {" and ".join(row["readers"]): row for row in numbers["agreement_with_computed"]}
    agreement = [
        [name, str(row["n"]), _with_interval(row["kappa"]), f"{row['equal']} of {row['n']}"] for name, row in compared.items()
    ]
    return [
        {"header": ["mean rating (1 very good to 5 very poor) [95 %]", "n ratings real, synthetic", "real", "synthetic",
                    "synthetic - real"], "rows": ratings},
        {"header": ["guesses by", "n", "right, % [95 %, exact]", "[95 %, over volumes]", "right, real slices",
                    "right, synthetic slices", "p against 50 %", "always the same answer, %"], "rows": guesses},
        {"header": ["agreement of ratings", "n items", "weighted kappa [95 %] (chance: 0)", "equal ratings"],
         "rows": agreement},
    ]  # fmt: skip


def _guesses_row(row: dict) -> list[str]:
    exact, by_volumes = (_with_interval(row[name], 100) for name in ("accuracy", "by_volumes"))
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
    """Explain who rated what, and how to read the numbers. The first sentence states whether people rated at all."""
    computed = numbers["computed"]
    ratings = f"""\
Ratings are means with a 95 % percentile bootstrap interval ({RESAMPLES} draws of whole volumes, because slices of one volume \
are alike). The intervals do not describe other readers. Compare synthetic slices with real ones."""
    guesses = f"""\
The table of guesses gives the share of right guesses. Random guesses give 50 %. The exact interval (Clopper-Pearson) and p \
may be too optimistic, because they treat slices as independent. There is one p for each reader, \
{len(numbers["guesses"]) + len(computed)} in all, without a correction for multiple tests. The bootstrap interval over volumes \
is too narrow with few volumes, and it has no width if all guesses are right. Trust the wider interval."""
    agreement = """\
Agreement is quadratically weighted kappa: 0 is chance and 1 is equal ratings. It is undefined where all ratings are the \
same. The frequency chart follows Figure 4C of Ayaz et al. 2022. Research data about synthetic images; not for clinical use."""
    about_computed = [_explain_computed(computed)] if computed else []
    simulated = [NOTE] if numbers["simulated"] else []
    return "\n\n".join([_explain_who(numbers, partial), *simulated, *about_computed, ratings, guesses, agreement])


def _explain_who(numbers: dict, partial: bool) -> str:
    readers = numbers["n_readers"]
    rated = numbers if readers else next(iter(numbers["computed"].values()))
    volumes = rated["n_volumes"]
    study = f"""\
{rated["n_items"]} slices of {volumes["real"]} real and {volumes["synthetic"]} synthetic volumes, and guessed whether each is \
real, without knowing the answer (study {numbers["study"]}). The slices were shuffled and are sagittal, coronal and axial. Air \
was drawn black in both kinds, so it is not judged."""
    if not readers:
        return f"""\
No person has rated this study. The numbers come from rules that use one cue of the pictures. They can be compared with \
answers of people later. The rules rated {study}"""
    unfinished = " Some did not finish; the answers that they gave are counted." if partial else ""
    return f"""\
{readers} {"person" if readers == 1 else "people"} rated {study}{unfinished} Some slices were shown twice; the second answer \
counts only for the agreement of readers with themselves."""


def _explain_computed(computed: Mapping[str, dict]) -> str:
    right = {reader.removesuffix(COMPUTED): entry["guesses"][0]["accuracy"]["value"] for reader, entry in computed.items()}
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in right.items() if name != "chance")
    alone = f"A reader who uses one cue alone guesses right in: {shares}. Below 50 %, synthetic slices have more of the cue. "
    known = "; ".join(f"{name}: {RULES[name]}" for name in right if name in RULES)
    return f"""\
Computed readers look at the page that people get. They do not count as people in any number. Compare guesses of people with \
theirs. {alone if shares else ""}A person who is right no more often may have used this cue alone. ({known}.) Each rule ranks \
the slices of a direction by its cue inside the head. Its ratings are five equal classes, so only the difference between the \
kinds has a meaning. It guesses that the half with more of the cue is real. These guesses depend on each other, \
but the intervals ignore this. A slice that is shown twice gets the same answer, except from chance. The kappa of a person \
and a rule measures how closely the person's ratings follow the cue."""


def write_scores(
    numbers: dict, answers: pd.DataFrame, output: Path, partial: bool = False, title: str = "Reader study"
) -> None:
    """Write ratings.tsv, reader_study.json, reader_study.png, and reader_study.section.json with the given title."""
    columns = ["reader", "position", "item", "kind", "direction", "file", "slice", "repeat_of", "rating", "guess", "seconds"]
    write_text(output / "ratings.tsv", answers[columns].to_csv(sep="\t", index=False, na_rep="n/a"))
    without_nan = json.loads(json.dumps(numbers | {"partial": partial}), parse_constant=lambda name: None)  # NaN becomes null
    write_json(output / "reader_study.json", without_nan)
    save_figure(output / "reader_study.png", draw(numbers), dpi=110)
    whose = ["by people"] * bool(numbers["n_readers"]) + ["by computed readers"] * bool(numbers["computed"])
    caption = f"Ratings of real and synthetic slices, and right guesses, {' and '.join(whose)}. {NOTICE}"
    figures = [{"file": "reader_study.png", "caption": caption}]
    path = output / "reader_study.section.json"
    write_section(path, title, explain(numbers, partial), tables(numbers), figures, verdict=verdict(numbers))


def verdict(numbers: dict) -> str:
    """Say how often people guessed right or, if nobody rated, how often computed readers did."""
    chance = "Random guesses are right in 50 %."
    if (readers := numbers["n_readers"]) == 1:  # the interval over volumes may have no width, see `explain`
        right = _with_interval(numbers["guesses"][0]["accuracy"], 100)
        return f"One person guesses right for {right} % of the slices. {chance}"
    if readers:
        return f"{readers} people guess right for {_with_interval(numbers['accuracy_of_all'], 100)} % of the slices. {chance}"
    rules = {reader.removesuffix(COMPUTED): entry["guesses"][0]["accuracy"] for reader, entry in numbers["computed"].items()}
    rules = {name: share for name, share in rules.items() if name in RULES and name != "chance"}
    best = max(rules, key=lambda name: rules[name]["value"])
    right = _with_interval(rules[best], 100)
    return f"No person has rated the slices. A rule that sees only {best} is right for {right} % of them. {chance}"
