"""The page opens with answers that are true, for one bundle and for both."""

import re

import pytest
from tiny_report import (
    MEASURED_ML,
    REQUESTED_ML,
    Elements,
    cells,
    make_cohort,
    make_labelled,
    page_of,
    requested_cohort,
    write_section,
)


@pytest.fixture
def generated(tmp_path):
    return requested_cohort(tmp_path / "generated")


def answers_of(page):
    """The questions and answers at the top of the page, with the id that the question links to, or None."""
    top = page.split("<main>")[0]
    pairs = re.findall(r'<dt>(?:<a href="#(.*?)">)?(.*?)(?:</a>)?</dt>(.*?)\n', top)
    return {question: (anchor, re.sub("<.*?>", "", answer)) for anchor, question, answer in pairs}


def test_the_page_opens_with_six_answers_and_each_links_to_its_section(generated, tmp_path):
    folder = write_section(tmp_path / "evaluation", "samples", title="Quality", verdict="The FID is 3 <mL>.")
    for place, name in (("evaluation", "reader_study"), ("other", "reader_study")):
        write_section(tmp_path / place, name, title=f"Study {place} (Figure 4C)", verdict=f"Readers of {place} guess.")
    page = page_of(generated, "--evaluation", folder, tmp_path / "other")
    answers = answers_of(page)
    assert len(answers) == 6
    ids = [attributes["id"] for _, attributes in Elements(page).found if "id" in attributes]
    assert all(anchor in ids for anchor, _ in answers.values())
    assert "6 synthetic heads were generated, for lateral ventricles of 10 to 60 mL." in answers["What was made?"][1]
    assert "measured values follow the requests closely" in answers["Do they follow their requests?"][1]
    assert answers["How close are they to scans?"][1] == "The FID is 3 &lt;mL&gt;."
    assert answers["Are they copies of training scans?"] == ("limits", "Not measured.")
    told = answers["Can they be told from scans?"][1]
    assert told == "Study evaluation: Readers of evaluation guess.Study other: Readers of other guess."
    assert "because nothing was measured: Are they copies of training scans?" in answers["What does this page not show?"][1]
    order = [page.index(f'<section id="{name}">') for name in ("gallery", "viewer", "agreement", "evaluation-0", "limits")]
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("measured_ml", "words"),
    [
        ([20.0, 20.0, 21.0, 20.0, 26.0, 20.0], "do not follow the requests in a way that shows"),
        ([70.0 - value for value in MEASURED_ML], "change against the requests"),
        ([41.0, 22.0, 25.0, 35.0, 55.0, 50.0], "follow the requests loosely"),
    ],
)
def test_the_verdict_names_a_model_that_ignores_its_requests(tmp_path, measured_ml, words):
    generated = make_cohort(tmp_path / "generated", [f"sub-{i}" for i in range(6)], REQUESTED_ML, measured_ml)
    assert words in answers_of(page_of(generated))["Do they follow their requests?"][1]


def test_volumes_from_label_maps_stand_on_the_same_page(generated, tmp_path):
    synthetic = make_labelled(tmp_path / "synthetic", ["sub-01", "sub-01v01"])
    page = page_of(generated, "--synthetic", synthetic, "--viewer", 2)
    assert "2 more were made from label maps" in answers_of(page)["What was made?"][1]
    assert 'id="synthetic"' in page and "sub-01v01: label map" in page
    assert "2 of 6 generated volumes, 2 of 2 volumes from label maps are inside" in page
    assert cells(page, "Synthesis, names of the labels") == ["freesurfer"] and cells(page, "Sampling, steps") == ["7"]
