"""A small reader study works in Chromium from file://, with mouse and keys, up to the scores."""

import json
import shutil
from contextlib import contextmanager

import pandas as pd
import pytest
import reader_study
from reader_studies.make import make_study
from tiny_study import read_page, save_cohorts

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: requirements-dev.txt")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.wait import WebDriverWait  # noqa: E402

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no Chromium with chromedriver on this computer"),
]


class Reader:
    """The page as a person has it: what is on the screen, keys and clicks."""

    def __init__(self, driver):
        self.driver = driver

    def find(self, selector):
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def begin(self, name):
        self.find("#reader").send_keys(name, Keys.ENTER)

    def press(self, *keys):
        for key in keys:
            self.find("body").send_keys(key)

    def click(self, selector):
        next(found for found in self.driver.find_elements(By.CSS_SELECTOR, selector) if found.is_displayed()).click()

    @property
    def view(self):
        [view] = [main.get_attribute("id") for main in self.driver.find_elements(By.TAG_NAME, "main") if main.is_displayed()]
        return view

    @property
    def count(self):
        return self.find("#count").text

    @property
    def pressed(self):
        """Texts of the answers that are chosen."""
        return [button.text.split(None, 1)[1] for button in self.driver.find_elements(By.CSS_SELECTOR, "[aria-pressed=true]")]

    @property
    def requests(self):
        """Addresses that the page asked for."""
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [entry["params"]["request"]["url"] for entry in messages if entry["method"] == "Network.requestWillBeSent"]


@contextmanager
def browser(page, profile, size="1366,768", before=""):
    """A Chromium with a profile of its own; what it saves comes into the folder profile/downloads.

    `before` is a script that runs before the page's own.
    """
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={size}")
    options.add_argument(f"--user-data-dir={profile / 'browser'}")
    (profile / "downloads").mkdir(parents=True, exist_ok=True)
    options.add_experimental_option("prefs", {"download.default_directory": str(profile / "downloads")})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": before})
        driver.get(page.as_uri())
        yield Reader(driver)
        assert driver.get_log("browser") == []  # no error, no warning
    finally:
        driver.quit()


def saved_file(reader, folder):
    reader.click(".save")
    WebDriverWait(reader.driver, 20).until(lambda _: list(folder.glob("*.tsv")))
    [path] = folder.glob("*.tsv")
    return path


@pytest.fixture
def study(tmp_path):
    """Page and key of a study of twelve slices, six of them twice."""
    return make_study(*save_cohorts(tmp_path), tmp_path / "study", slices=12, repeats=0.5)


def answers_to(page):
    """An answer to each item that depends on its id: (rating, guess)."""
    return [(int(item["id"], 16) % 5 + 1, ("real", "synthetic")[int(item["id"], 16) % 2]) for item in read_page(page)["items"]]


def test_a_reader_answers_by_keys_and_mouse_resumes_saves_and_is_scored(tmp_path, study, monkeypatch):
    page, key = study
    answers = answers_to(page)
    with browser(page, tmp_path) as reader:
        assert reader.view == "welcome"
        assert "Some of these images are synthetic" in reader.find("#welcome").text
        reader.begin("Anna <b>B.</b>")
        assert reader.view == "reading" and reader.count == "Image 1 of 18, 0 answered"
        assert "Reader: Anna <b>B.</b>" in reader.find("#panel").text  # a name is text
        assert reader.find("#image").get_property("naturalWidth") in (20, 28)

        # The next image appears only after both answers. An answer can be changed.
        reader.press(Keys.ARROW_RIGHT, "6", "5")
        assert not reader.find("#next").is_enabled() and reader.count == "Image 1 of 18, 0 answered"
        rating, guess = answers[0]
        reader.press(str(rating), guess[0].upper())
        assert reader.count == "Image 1 of 18, 1 answered" and reader.pressed[-1] == guess
        reader.press(Keys.ARROW_RIGHT)
        for rating, guess in answers[1:4]:
            reader.click(f"[data-guess={guess}]")
            reader.click(f"[data-rating='{rating}']")
            reader.click("#next")
        assert reader.count == "Image 5 of 18, 4 answered"
        reader.press("2")

        reader.driver.refresh()
        assert reader.view == "reading" and reader.count == "Image 5 of 18, 4 answered"
        assert reader.pressed == ["good"]
        reader.press(Keys.ARROW_LEFT)
        assert reader.pressed[-1] == answers[3][1] and reader.count == "Image 4 of 18, 4 answered"
        assert reader.requests and all(url.startswith(("file:", "data:")) for url in reader.requests)

    with browser(page, tmp_path) as reader:  # the browser was closed
        assert reader.count == "Image 4 of 18, 4 answered"
        reader.press(Keys.ARROW_RIGHT)
        for rating, guess in answers[4:]:
            reader.press(str(rating), guess[0], Keys.ARROW_RIGHT)
        assert reader.view == "end" and "All 18 images are answered" in reader.find("#end").text
        path = saved_file(reader, tmp_path / "downloads")

    assert path.name.startswith("reader_study_") and path.name.endswith("_Anna-b-B-b-.tsv")
    table = pd.read_csv(path, sep="\t")
    assert table.columns.tolist() == ["study", "reader", "item", "rating", "guess", "seconds"]
    assert list(zip(table["rating"], table["guess"])) == answers
    assert set(table["reader"]) == {"Anna <b>B.</b>"} and (table["seconds"] >= 0).all()

    monkeypatch.setattr("reader_studies.score.RESAMPLES", 200)
    monkeypatch.setattr("sys.argv", ["reader_study.py", "score", str(key), str(path), "--output", str(tmp_path / "scores")])
    assert reader_study.main() == 0
    numbers = json.loads((tmp_path / "scores" / "reader_study.json").read_text())
    unblinded = table.merge(pd.read_csv(key, sep="\t", keep_default_na=False), on="item")
    once = unblinded[unblinded["repeat_of"] == ""]
    assert numbers["guesses"][0]["right"] == (once["guess"] == once["kind"]).sum()
    means = {kind: numbers["ratings"]["all"][kind]["value"] for kind in ("real", "synthetic")}
    assert means == pytest.approx(once.groupby("kind")["rating"].mean().to_dict())


def test_answers_move_to_another_computer_and_readers_stay_apart(tmp_path, study):
    page, _ = study
    with browser(page, tmp_path / "first") as reader:
        reader.begin("Anna")
        for key in "123":
            reader.press(key, "r", Keys.ARROW_RIGHT)
        reader.press("4")  # half an answer
        path = saved_file(reader, tmp_path / "first" / "downloads")
        reader.click(".leave")
        reader.begin("Ben")
        assert reader.count == "Image 1 of 18, 0 answered" and reader.pressed == []
        reader.press("5")
        reader.click(".leave")
        reader.begin("Anna")
        assert reader.count == "Image 4 of 18, 3 answered" and reader.pressed == ["poor"]

    with browser(page, tmp_path / "second", size="390,844") as reader:
        other = tmp_path / "other.tsv"
        other.write_text(path.read_text().replace(read_page(page)["study"], "0123456789"))
        reader.find("#import").send_keys(str(other))
        WebDriverWait(reader.driver, 20).until(lambda _: reader.find("#message").text)
        assert reader.find("#message").text == "Row 2: these are results of another study, 0123456789."
        assert reader.view == "welcome"
        reader.find("#import").send_keys(str(path))
        WebDriverWait(reader.driver, 20).until(lambda _: reader.view == "reading")
        assert reader.count == "Image 4 of 18, 3 answered" and reader.pressed == ["poor"]
        reader.press(Keys.ARROW_LEFT)
        assert reader.pressed == ["fair", "real"]
        wide = reader.driver.execute_script("return document.documentElement.scrollWidth > window.innerWidth")
        assert not wide  # a telephone needs no scrolling sideways


def test_a_browser_that_keeps_nothing_says_so_and_still_saves(tmp_path, study):
    refuse = "Storage.prototype.setItem = () => { throw new DOMException('no room', 'QuotaExceededError'); };"
    with browser(study[0], tmp_path, before=refuse) as reader:
        assert "keeps no answers for this page. Save them as a file" in reader.find("#message").text
        reader.begin("constructor")  # a name like another
        reader.press("3", "s")
        assert reader.count == "Image 1 of 18, 1 answered"
        [row] = pd.read_csv(saved_file(reader, tmp_path / "downloads"), sep="\t").to_dict("records")
    assert (row["reader"], row["rating"], row["guess"]) == ("constructor", 3, "synthetic")
