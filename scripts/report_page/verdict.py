"""Answer the questions of a reader in a few lines at the top of the report page, each with a link to its section."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
from cohorts.agreement import agreement_in_words
from cohorts.cohort import Cohort
from shared.agreement import agreement
from shared.simulated import is_simulated

from report_page.html import escape

REQUESTS = "Do they follow their requests?"
# The question, and the sections that answer it: NAME of NAME.section.json
ANSWERS = {
    REQUESTS: ("conditioning",),
    "How close are they to scans?": ("samples", "synthesis"),
    "Are they copies of training scans?": ("memorisation",),
    "Can they be told from scans?": ("reader_study",),
}
ORDER = [name for names in ANSWERS.values() for name in names]
LOOK = "The section below gives the numbers."
MOST_LEVELS = 5  # more different texts are not listed


def by_question(sections: Sequence[dict]) -> list[dict]:
    """Return the sections in the order of the questions. Sections that answer none of them come last."""
    return sorted(sections, key=lambda section: ORDER.index(name) if (name := name_of(section)) in ORDER else len(ORDER))


def name_of(section: dict) -> str:
    return section["name"].removesuffix(".section.json")


def verdict(cohorts: Mapping[str, Cohort], sections: Sequence[dict], anchors: Mapping[str, str]) -> Iterator[str]:
    """Yield the list of questions and answers.

    `anchors` has the id on the page of each section by the path of its file, and of the page's own sections by name. A question
    that nothing answers is answered by "Not measured."
    """
    yield '<dl id="verdict">'
    yield _answer("What was made?", [("gallery", "", made(cohorts))])
    for question, names in ANSWERS.items():
        found = [section for section in sections if name_of(section) in names]
        answers = [(anchors[str(section["path"])], section["title"], section["verdict"] or LOOK) for section in found]
        if not found and question == REQUESTS and (text := follow(cohorts["generated"])):
            answers = [("agreement", "", text)]
        yield _answer(question, answers)
    yield _answer("What does this page not show?", [("limits", "", limits(cohorts, sections)[0])])
    yield "</dl>\n"


def _answer(question: str, answers: Sequence[tuple[str, str, str]]) -> str:
    """Return a question and its answers (id of the section, its title, text). With several answers, each has its title."""
    if not answers:
        answers = [("limits", "", "Not measured.")]
    texts = [
        f'<dd><a href="#{anchor}">{escape(title.partition(" (")[0])}</a>: {escape(text)}</dd>'
        if len(answers) > 1
        else f"<dd>{escape(text)}</dd>"
        for anchor, title, text in answers
    ]
    return f'<dt><a href="#{answers[0][0]}">{question}</a></dt>{"".join(texts)}\n'


def made(cohorts: Mapping[str, Cohort]) -> str:
    """Say how many volumes were made from what, how many could not be measured, and what they are compared with."""
    generated = cohorts["generated"]
    count, labelled = len(generated.expected), any(map(generated.from_map, generated.images))
    heads = f"{count} synthetic head{' was' if count == 1 else 's were'} generated"
    requests = _ranges(generated)
    text = f"{heads} from label maps." if labelled else f"{heads}{f', for {requests}' if requests else ''}."
    if generated.quantities():
        lost = int(generated.measured[generated.main_quantity()].isna().sum())
        text += f" {lost} could not be measured and do not count in the numbers below." if lost else ""
    if "synthetic" in cohorts:
        text += f" {len(cohorts['synthetic'].expected)} more were made from label maps, with the anatomy of the map."
    if scans := cohorts.get("cohort"):
        text += f" They are shown beside {len(scans.expected)} {'simulated ' * is_simulated(scans.folder)}scans."
    return text


def _ranges(cohort: Cohort) -> str:
    """Return "lateral ventricles of 8 to 127 mL, sex F or M"."""
    texts = []
    for name, values in cohort.expected.items():
        known = values.dropna()
        if name in cohort.numbers() and name != "noise" and known.nunique() > 1:
            low, high = (f"{float(f'{value:.3g}'):g}" for value in (known.min(), known.max()))
            texts.append(f"{cohort.title(name)} of {low} to {high} {cohort.unit(name)}".strip())
        elif not pd.api.types.is_numeric_dtype(known) and 1 < known.nunique() <= MOST_LEVELS:
            texts.append(f"{cohort.title(name)} {' or '.join(sorted(map(str, known.unique())))}")
    return "; ".join(texts)


def follow(generated: Cohort) -> str:
    """Say how closely each measured quantity follows its request. If several tools measured it, the first one counts."""
    found, missing = {}, []
    for name in generated.quantities():
        pairs, title = generated.pairs(name), generated.title(name)
        try:
            found[title] = agreement(pairs["expected"], pairs["measured"])
        except ValueError as error:
            missing.append(f"{title.capitalize()}: there is no number, because {error}.")
    return " ".join(filter(None, [agreement_in_words(found), *missing]))


def limits(cohorts: Mapping[str, Cohort], sections: Sequence[dict]) -> list[str]:
    """Return what the page does not show, the gravest first."""
    found, scans = {name_of(section) for section in sections}, cohorts.get("cohort")
    if cohorts["generated"].quantities():
        found.add("conditioning")  # the page itself compares requested and measured values
    unknown = [question for question, names in ANSWERS.items() if not found & set(names)]
    texts = []
    if scans and is_simulated(scans.folder):
        texts.append("The scans are simulated, so no number on this page says what the model does with scans of people.")
    if unknown:
        texts.append(f"These questions are open, because nothing was measured: {' '.join(unknown)}")
    texts.append("The numbers describe one trained model. Another training gives other numbers, and the intervals ignore this.")
    if "conditioning" in found:
        texts.append("Each measured value has the error of the tool that measured it.")
    if "memorisation" in found:
        texts.append("A search for copies that finds none is no proof of privacy.")
    return [*texts, "No number on this page says that the images are fit for clinical use."]
