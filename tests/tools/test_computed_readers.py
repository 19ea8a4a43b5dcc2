"""Computed readers see only the page, are marked as such, and are never counted as people."""

import base64
import io
import json
import re

import numpy as np
import pandas as pd
import pytest
import reader_study
from PIL import Image
from reader_studies import score as reader_study_score
from reader_studies.make import make_study
from reader_studies.rate import contrast, find_inside, noise, rate, read_page, sharpness
from reader_studies.score import kappa, read_key, read_results, score, unblind
from reader_studies.score_report import write_scores
from report_page.read_sections import find_sections
from scipy import ndimage
from tiny_study import head, key_of, results_of, save, save_cohorts

CUES = ("sharpness", "contrast", "noise")
DISC = np.hypot(*np.mgrid[-20:21, -24:25]) < 17  # rows, columns


@pytest.fixture
def few_resamples(monkeypatch):
    monkeypatch.setattr(reader_study_score, "RESAMPLES", 50)


def slice_of(seed, sigma=0.0, spread=40.0, noise_sd=4.0):
    """Grey levels of a disc of tissue on black, with structure of some width; 41 x 49."""
    rng = np.random.default_rng(seed)
    tissue = 120 + spread * np.sign(ndimage.gaussian_filter(rng.normal(size=DISC.shape), 2))
    tissue = ndimage.gaussian_filter(tissue, sigma) + rng.normal(0, noise_sd, DISC.shape)
    return np.where(DISC, tissue, 0).round().clip(0, 255).astype(np.uint8)


def save_page(path, pictures, directions=None, ids=None):
    """A page as far as a computed reader reads it."""
    items = []
    for n, grey in enumerate(pictures):
        buffer = io.BytesIO()
        Image.fromarray(grey).save(buffer, "PNG")
        image = base64.b64encode(buffer.getvalue()).decode()
        items.append({"id": ids[n] if ids else f"i{n}", "direction": directions[n] if directions else "axial", "image": image})
    study = json.dumps({"study": "s", "extent": {}, "items": items})
    path.write_text(f'<script type="application/json" id="study">{study}</script>')
    return path


def answers_to(page, output):
    """Each computed reader's table, by item."""
    return {path.stem: pd.read_csv(path, sep="\t", dtype=str, keep_default_na=False) for path in rate(page, output)}


# --- Cues


@pytest.mark.parametrize(
    ("measure", "plain", "changed"),
    [
        (sharpness, {}, {"sigma": 1.5}),
        (contrast, {}, {"spread": 20}),
        (noise, {"sigma": 1.5}, {"sigma": 1.5, "noise_sd": 1}),  # broad structure, the noise on it
    ],
)
def test_each_cue_falls_with_what_it_is_named_after(measure, plain, changed):
    more, less = (slice_of(3, **settings).astype(float) for settings in (plain, changed))
    assert measure(less, find_inside(less)) < 0.7 * measure(more, find_inside(more))


def test_noise_is_the_standard_deviation_in_grey_levels_and_no_slope_adds_to_it():
    rng = np.random.default_rng(0)
    ramp = np.broadcast_to(np.arange(50.0, 210), (120, 160))
    assert noise(ramp, find_inside(ramp)) == 0
    assert noise(ramp + rng.normal(0, 6, ramp.shape), find_inside(ramp)) == pytest.approx(6, rel=0.05)


def test_sharpness_by_hand():
    """A ramp of 3 grey levels a row. scikit-image takes the difference over two rows, and the root of the mean square of
    both directions: 6 / sqrt(2). Only ranks count."""
    ramp = np.broadcast_to(30 + 3.0 * np.arange(40)[:, None], (40, 30))
    assert sharpness(ramp, find_inside(ramp)) == pytest.approx(6 / np.sqrt(2))


def test_the_outline_that_was_drawn_is_no_cue():
    """Air is made black by `make`: the step from tissue to it says nothing about the slice."""
    flat = np.where(DISC, 120.0, 0)
    flat[18:22, 22:26] = 0  # a dark part of the head, enclosed
    inside = find_inside(flat)
    assert inside[20, 24] and not inside[DISC ^ ndimage.binary_erosion(DISC, np.ones((3, 3)))].any()
    flat[DISC] = 120
    assert (sharpness(flat, inside), contrast(flat, inside), noise(flat, inside)) == (0, 0, 0)


# --- Answers


def test_blurred_slices_are_guessed_synthetic_by_sharpness(tmp_path):
    pictures = [slice_of(n, sigma=1.2 * (n % 2)) for n in range(20)]
    told = answers_to(save_page(tmp_path / "page.html", pictures), tmp_path / "computed")["sharpness"]
    assert told["guess"].tolist() == ["real", "synthetic"] * 10
    assert set(told["rating"][::2]) == {"1", "2", "3"} and set(told["rating"][1::2]) == {"3", "4", "5"}


def test_clean_slices_are_guessed_synthetic_and_rated_better_by_noise(tmp_path):
    pictures = [slice_of(n, noise_sd=2 + 6 * (n % 2)) for n in range(20)]
    told = answers_to(save_page(tmp_path / "page.html", pictures), tmp_path / "computed")["noise"]
    assert told["guess"].tolist() == ["synthetic", "real"] * 10
    assert set(told["rating"][::2]) == {"1", "2", "3"} and set(told["rating"][1::2]) == {"3", "4", "5"}


@pytest.mark.parametrize(("n", "counts"), [(20, [4, 4, 4, 4, 4]), (4, [1, 1, 0, 1, 1]), (2, [0, 1, 0, 1, 0])])
def test_ratings_are_five_equal_classes_of_each_direction_and_half_is_called_real(tmp_path, n, counts):
    # One direction is sharper as a whole: that must not count.
    pictures = [slice_of(k, sigma=1.5 * (k % 3 == 0)) for k in range(3 * n)]
    directions = ["sagittal", "coronal", "axial"] * n
    tables = answers_to(save_page(tmp_path / "page.html", pictures, directions), tmp_path / "computed")
    for name in CUES:
        for direction in set(directions):
            own = tables[name][np.array(directions) == direction]
            assert [int((own["rating"] == str(rating)).sum()) for rating in range(1, 6)] == counts, (name, direction)
            assert (own["guess"] == "real").sum() == n // 2


def test_a_computed_reader_answers_from_pixels_alone(tmp_path):
    """Other names, another order, no key: the same answers to the same pictures."""
    page, key = make_study(*save_cohorts(tmp_path), tmp_path / "study", slices=24, repeats=0)
    key.unlink()
    before = answers_to(page, tmp_path / "before")
    _, pictures = read_page(page)
    turned = [picture.grey.astype(np.uint8) for picture in reversed(pictures)]
    directions, ids = [picture.direction for picture in reversed(pictures)], [f"{n:08x}" for n in range(24)]
    after = answers_to(save_page(tmp_path / "page.html", turned, directions, ids), tmp_path / "after")
    for name in CUES:
        assert before[name][["rating", "guess"]].values.tolist() == after[name][["rating", "guess"]].values.tolist()[::-1]


def test_a_slice_that_comes_again_gets_the_same_answer(tmp_path):
    """A repeated picture has another dither. Among 24 slices with 12 repeats, the ranks of both would differ."""
    page, key = make_study(*save_cohorts(tmp_path), tmp_path / "study", slices=24, repeats=0.5)
    key = read_key(key)
    again = key[key["repeat_of"] != ""]
    greys = {picture.item: picture.grey for picture in read_page(page)[1]}
    assert any((greys[item] != greys[first]).any() for item, first in again["repeat_of"].items())
    for name, table in answers_to(page, tmp_path / "computed").items():
        table = table.set_index("item")
        same = [table.loc[item, "rating"] == table.loc[first, "rating"] for item, first in again["repeat_of"].items()]
        assert len(same) == 12 and (all(same) if name in CUES else not all(same)), name
        once = table.drop(again.index)
        if name in CUES:
            assert (once["guess"] == "real").sum() == 12


def test_chance_is_about_chance_and_the_same_for_a_seed(tmp_path):
    page = save_page(tmp_path / "page.html", [slice_of(n) for n in range(24)])
    kinds = np.array(["real", "synthetic"] * 12)
    right, ratings = [], []
    for seed in range(30):
        path = rate(page, tmp_path / str(seed), seed)[-1]
        table = pd.read_csv(path, sep="\t", dtype=str)
        right.append((table["guess"] == kinds).mean())
        ratings.append(table["rating"].to_numpy(float))
    assert path.name == "chance.tsv" and 0.44 < np.mean(right) < 0.56  # 720 guesses: sd 0.019
    assert set(np.concatenate(ratings)) == {1, 2, 3, 4, 5}
    assert abs(kappa(np.concatenate(ratings[:15]), np.concatenate(ratings[15:]))) < 0.2
    rate(page, tmp_path / "again", 29)
    for name in ("chance", *CUES):
        assert (tmp_path / "again" / f"{name}.tsv").read_bytes() == (tmp_path / "29" / f"{name}.tsv").read_bytes()
    assert (tmp_path / "0" / "sharpness.tsv").read_bytes() == (tmp_path / "1" / "sharpness.tsv").read_bytes()


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([slice_of(0)] * 6, "page.html: no two axial pictures differ in sharpness"),
        ([np.where(DISC, grey, 0).astype(np.uint8) for grey in (90, 120, 150)], "no two axial pictures differ in sharpness"),
        ([slice_of(0), np.zeros((41, 49), np.uint8)], "page.html: no head is visible on 1 of 2 pictures, such as i1"),
    ],
)
def test_pictures_that_cannot_be_ranked_are_refused_and_nothing_is_written(tmp_path, pictures, message):
    with pytest.raises(ValueError, match=message):
        rate(save_page(tmp_path / "page.html", pictures), tmp_path / "computed")
    assert not (tmp_path / "computed").exists()


def test_ties_share_the_rank_in_their_middle(tmp_path):
    """Two flat slices, not one slice twice, and two with structure, of four: places 1.5, 1.5, 3 and 4 from below."""
    pictures = [np.where(DISC, grey, 0).astype(np.uint8) for grey in (90, 150)] + [slice_of(0, sigma=2), slice_of(0)]
    table = answers_to(save_page(tmp_path / "page.html", pictures), tmp_path / "computed")["sharpness"]
    assert table["rating"].tolist() == ["4", "4", "2", "1"]
    assert table["guess"].tolist() == ["synthetic", "synthetic", "real", "real"]


@pytest.mark.parametrize("content", ["study\titem\n", '<script type="application/json" id="study">{{STUDY}}</script>'])
def test_other_files_than_the_page_are_refused(tmp_path, content):
    (tmp_path / "key.tsv").write_text(content)
    with pytest.raises(ValueError, match="key.tsv: not the page of a reader study .* Give STUDY_DIR/page/reader_study.html"):
        rate(tmp_path / "key.tsv", tmp_path / "computed")
    with pytest.raises(FileNotFoundError, match="absent.html: no such page"):
        rate(tmp_path / "absent.html", tmp_path / "computed")


# --- Together with people

KINDS = ["real", "synthetic"] * 6
RATINGS = {"Anna": [1, 3, 2, 4, 1, 5, 2, 5, 1, 2, 3, 3], "Ben": [2, 2, 2, 4, 1, 4, 3, 5, 1, 1, 4, 2]}
RULE = [5, 1, 4, 2, 5, 1, 4, 2, 5, 1, 4, 3]


def people(key):
    return [results_of(key, ratings, KINDS[:6] + ["real"] * 6, reader=name) for name, ratings in RATINGS.items()]


def computed(key):
    return [results_of(key, RULE, KINDS, reader=f"{name} (computed)").assign(seconds=np.nan) for name in ("noise", "chance")]


def test_computed_readers_are_never_counted_as_people(few_resamples):
    key = key_of(KINDS)
    alone, together = (score(key, unblind(key, results)) for results in (people(key), people(key) + computed(key)))
    for name in alone.keys() - {"computed", "agreement_with_computed"}:
        assert together[name] == alone[name], name
    assert together["n_readers"] == 2 and together["ratings"]["all"]["n"] == {"real": 12, "synthetic": 12}
    assert alone["computed"] == {} and alone["agreement_with_computed"] == []
    assert together["computed"]["noise (computed)"]["guesses"][0]["right"] == 12
    assert together["computed"]["noise (computed)"]["frequencies"]["all"]["real"] == {1: 0, 2: 0, 3: 0, 4: 3, 5: 3}


def test_the_kappa_of_a_person_and_a_rule_is_given(few_resamples):
    key = key_of(KINDS)
    pairs = score(key, unblind(key, people(key) + computed(key)))["agreement_with_computed"]
    assert [row["readers"] for row in pairs] == [
        ["Anna", "chance (computed)"],
        ["Anna", "noise (computed)"],
        ["Ben", "chance (computed)"],
        ["Ben", "noise (computed)"],
        ["chance (computed)", "noise (computed)"],
    ]
    assert pairs[1]["kappa"]["value"] == pytest.approx(kappa(np.array(RATINGS["Anna"], float), np.array(RULE, float)))
    assert pairs[1]["kappa"]["value"] < 0 < pairs[4]["kappa"]["value"]


def section_of(key, results, folder):
    answers = unblind(key, results)
    write_scores(score(key, answers), answers, folder)
    return json.loads((folder / "reader_study.section.json").read_text())


def test_the_section_says_first_that_no_person_has_rated(tmp_path, few_resamples):
    section = section_of(key_of(KINDS), computed(key_of(KINDS)), tmp_path)
    assert section["text"].startswith("No person has rated this study. The numbers come from rules that use one cue")
    assert "12 slices of 6 real and 6 synthetic volumes" in section["text"]
    ratings, told, agreeing = ([row[0] for row in table["rows"]] for table in section["tables"])
    assert ratings == ["chance (computed), all directions", "noise (computed), all directions"]
    assert told == ["chance (computed)", "noise (computed)"] and agreeing == ["chance (computed) and noise (computed)"]
    assert "by computed readers." in section["figures"][0]["caption"] and "people" not in section["figures"][0]["caption"]
    numbers = json.loads((tmp_path / "reader_study.json").read_text())
    assert numbers["n_readers"] == 0 and numbers["accuracy_of_all"] is None and numbers["ratings"] == {}
    assert numbers["computed"]["noise (computed)"]["guesses"][0]["median_seconds"] is None


def test_with_people_the_rules_are_the_yardstick_in_rows_and_panels_of_their_own(tmp_path, few_resamples):
    section = section_of(key_of(KINDS), people(key_of(KINDS)) + computed(key_of(KINDS)), tmp_path / "together")
    assert section["text"].startswith("2 people rated 12 slices")
    assert "uses one cue alone guesses right in: noise 100 %. Below" in section["text"]
    told = {row[0]: row[1] for row in section["tables"][1]["rows"]}
    assert told == {"Anna": "12", "Ben": "12", "all people": "24", "chance (computed)": "12", "noise (computed)": "12"}
    assert [row[0] for row in section["tables"][0]["rows"]][:2] == ["people, all directions", "people, axial"]
    alone = section_of(key_of(KINDS), people(key_of(KINDS)), tmp_path / "alone")
    assert "omputed" not in json.dumps(alone)
    heights = [Image.open(tmp_path / name / "reader_study.png").height for name in ("alone", "together")]
    assert heights[1] > 1.5 * heights[0]


def test_people_may_not_bear_the_name_of_a_computed_reader(tmp_path):
    rows = ["\t".join(["s", "noise (computed)", item, "2", "real", "3.5"]) for item in ("i0", "i1")]
    (tmp_path / "a.tsv").write_text("\n".join(["study\treader\titem\trating\tguess\tseconds", *rows]) + "\n")
    with pytest.raises(ValueError, match=r"a.tsv: 'noise \(computed\)' is the name of a computed reader, but took seconds"):
        read_results(tmp_path / "a.tsv", key_of(["real", "synthetic"]))


def test_two_studies_stand_on_one_page_by_their_titles(tmp_path, monkeypatch, few_resamples, capsys):
    """The commands of a demo: make, rate and score, for two kinds of synthetic volumes."""
    for i in range(3):
        save(tmp_path / "scans" / f"sub-{i}_T1w.nii.gz", head(i))
        save(tmp_path / "sharp" / f"sub-{i}_T1w.nii.gz", head(100 + i))
        blurred = np.where(head(i) > 0, ndimage.gaussian_filter(head(200 + i), 1.5), 0)
        save(tmp_path / "blurred" / f"sub-{i}_T1w.nii.gz", blurred)

    def command(line):
        monkeypatch.setattr("sys.argv", ["reader_study.py", *line.split("|")])
        assert reader_study.main() == 0

    for name in ("sharp", "blurred"):
        study, scores = tmp_path / f"study_{name}", tmp_path / "evaluation" / name
        command(f"make|--real|{tmp_path / 'scans'}|--synthetic|{tmp_path / name}|--output|{study}|--slices|24")
        command(f"rate|{study / 'page' / 'reader_study.html'}|--output|{study / 'computed'}")
        assert "These are rules, not people" in capsys.readouterr().out
        files = "|".join(map(str, sorted((study / "computed").glob("*.tsv"))))
        command(f"score|{study / 'key' / 'key.tsv'}|{files}|--output|{scores}|--title|Reader study, {name}")
    sections = find_sections([tmp_path / "evaluation"])
    assert [section["title"] for section in sections] == ["Reader study, blurred", "Reader study, sharp"]
    [told, _] = [{row[0]: row[2] for row in section["tables"][1]["rows"]} for section in sections]
    assert re.match(r"100 \[", told["noise (computed)"])
    assert not list(tmp_path.rglob("*.part"))
