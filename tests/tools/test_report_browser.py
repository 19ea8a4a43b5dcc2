"""The report page works in Chromium from file:// without a network, in wide and narrow windows, with and without WebGL2."""

import base64
import io
import json
import shutil
import time

import numpy as np
import pytest
import report
from PIL import Image
from tiny_report import CENTRE_MM, make_cohort, make_labelled, write_section

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver (Debian: chromium, chromium-driver)"),
]
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium: pip install -r requirements-dev.txt")
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

WEBGL = ("--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
AGES = [61.0, 52.0, 73.0, 44.0, 65.0, 56.0]
VENTRICLES_ML = [40.0, 10.0, 30.0, 20.0, 60.0, 50.0]
LONG = "a long text in a cell that cannot be read on a narrow screen without moving " * 3


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Paths of two pages: "covariates" with everything on it, "labels" with label maps."""
    folder = tmp_path_factory.mktemp("pages")
    names = [f"sub-{i}" for i in range(6)]
    generated, measured = make_cohort(
        folder / "covariates", names, VENTRICLES_ML, [v + 3 for v in VENTRICLES_ML], age=AGES, sex=list("FMFMFM")
    )
    wide = {"header": ["what", *"abcdefgh"], "rows": [[LONG, *["0.123 [0.100, 0.200]"] * 8]]}
    evaluation = write_section(folder / "evaluation", tables=[wide])
    arguments = [str(generated), "--measured", str(measured), "--evaluation", str(evaluation)]
    real = shutil.copytree(generated, folder / "study")
    report.main([*arguments, "--real", str(real), "--real_measured", str(measured)])
    labelled = make_labelled(folder / "labels", ["sub-01", "sub-01v01"])
    report.main([str(labelled)])
    return {name: folder / f"{name}_report.html" for name in ("covariates", "labels")}


def start(*arguments):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", *arguments):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))


@pytest.fixture(scope="module")
def browser():
    driver = start(*WEBGL)
    yield driver
    driver.quit()


def opened(browser, path, width=1280, height=1000):
    """Load a page in a window of that size and wait for its viewer."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get_log("performance"), browser.get_log("browser")  # of the page before
    browser.get(path.as_uri())
    wait_for(browser, "return [...document.querySelectorAll('.pane')].every((pane) => pane.dataset.loaded)")
    browser.execute_script("document.querySelector('#filters details')?.setAttribute('open', '')")
    return browser


def wait_for(browser, script, seconds=60):
    end = time.monotonic() + seconds
    while not browser.execute_script(script):
        assert time.monotonic() < end, f"not within {seconds} s: {script}"
        time.sleep(0.1)


def find(browser, selector):
    return browser.find_element(By.CSS_SELECTOR, selector)


def shown(browser):
    """Names of the figures that the gallery shows, in order."""
    figures = browser.find_elements(By.CSS_SELECTOR, "#figures figure")
    return [
        figure.find_element(By.TAG_NAME, "img").get_attribute("alt").split(":")[0]
        for figure in figures
        if figure.is_displayed()
    ]


def crosshairs(browser):
    """Where the two panes have their crosshairs, mm."""
    script = "return reportViewer.panes.map(({nv}) => [...nv.frac2mm(nv.scene.crosshairPos)].slice(0, 3))"
    return np.array(browser.execute_script(script), float)


def pixels(browser, side):
    """(H, W, 3) of a pane's canvas, as drawn."""
    # Drawn and read in one step: a canvas of WebGL is empty once its frame is on the screen.
    script = "const {nv, canvas} = reportViewer.panes[arguments[0]]; nv.drawScene(); return canvas.toDataURL()"
    png = base64.b64decode(browser.execute_script(script, int(side == "right")).split(",")[1])
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def plane(browser, value):
    """Show one plane through the phantom's middle: axial 0, coronal 1, sagittal 2."""
    browser.execute_script("reportViewer.move(arguments[0])", list(CENTRE_MM))
    find(browser, f"#planes option[value='{value}']").click()


def test_the_page_loads_without_errors_and_asks_no_network(browser, pages):
    for path in pages.values():
        opened(browser, path)
        assert [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"] == []
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        assert path.as_uri() in urls  # or nothing was recorded
        assert [url for url in urls if url != path.as_uri() and not url.startswith(("data:", "blob:"))] == []


def test_both_panes_show_a_volume(browser, pages):
    opened(browser, pages["covariates"])
    for side in ("left", "right"):
        grey = pixels(browser, side)
        assert len(np.unique(grey.reshape(-1, 3), axis=0)) > 20 and (grey.min(axis=-1) > 200).sum() > 100


def middle_of(browser, side, low, high):
    """Middle of the grey pixels within limits, from -1 to 1 over the canvas: right and down are positive."""
    picture = pixels(browser, side)
    grey = np.ptp(picture, axis=-1) < 12  # not the crosshair
    rows, columns = np.nonzero(grey & (picture.min(axis=-1) >= low) & (picture.max(axis=-1) <= high))
    assert len(rows) > 20
    return 2 * columns.mean() / picture.shape[1] - 1, 2 * rows.mean() / picture.shape[0] - 1


@pytest.mark.parametrize("side", ["left", "right"])  # in the right pane a volume that is stored from left to right
def test_the_subjects_left_is_drawn_at_the_right_and_the_front_and_the_head_up(browser, pages, side):
    opened(browser, pages["labels"])
    hide_labels(browser, 0)
    left, front, top = (245, 255), (200, 208), (150, 156)  # the phantom's marks of 1, 0.8 and 0.6
    plane(browser, 0)  # axial
    assert middle_of(browser, side, *left)[0] > 0.3 and abs(middle_of(browser, side, *left)[1]) < 0.2
    assert middle_of(browser, side, *front)[1] < -0.6
    plane(browser, 1)  # coronal
    assert middle_of(browser, side, *left)[0] > 0.3 and middle_of(browser, side, *top)[1] < -0.5
    plane(browser, 2)  # sagittal: the front at the left
    assert middle_of(browser, side, *front)[0] < -0.6 and middle_of(browser, side, *top)[1] < -0.4


def hide_labels(browser, opacity):
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    browser.execute_script(script, find(browser, "#overlay input"), opacity)


def test_the_label_map_lies_over_the_volume_as_much_as_asked(browser, pages):
    opened(browser, pages["labels"])
    plane(browser, 0)

    def coloured(opacity):
        hide_labels(browser, opacity)
        return (np.ptp(pixels(browser, "left"), axis=-1) > 60).sum()

    assert coloured(1) > coloured(0) + 500
    assert "background" in find(browser, "#pane-left figcaption").text
    browser.execute_script("reportViewer.move([-14, 1, 1])")  # RAS mm: in the mark at the subject's left
    assert "intensity 1.00 · left hippocampus" in find(browser, "#pane-left figcaption").text
    assert "intensity 1.00 · left hippocampus" in find(browser, "#pane-right figcaption").text


def test_a_click_in_one_volume_moves_both_crosshairs(browser, pages):
    opened(browser, pages["covariates"])
    plane(browser, 0)
    before = crosshairs(browser)
    assert np.allclose(before, CENTRE_MM, atol=1.1)
    canvas = find(browser, "#pane-left canvas")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    webdriver.ActionChains(browser).move_to_element_with_offset(canvas, 60, -60).click().perform()
    after = crosshairs(browser)
    assert np.allclose(after[0], after[1], atol=1e-3)
    assert after[0][0] < before[0][0] - 3 and after[0][1] > before[0][1] + 3  # to the right is the subject's left, up the front
    slider = find(browser, "#crosshair input")
    assert float(slider.get_attribute("value")) == pytest.approx(after[0][0], abs=0.1)


def test_the_crosshair_can_be_moved_by_keyboard(browser, pages):
    opened(browser, pages["covariates"])
    find(browser, "#crosshair input").send_keys(Keys.END)
    assert np.allclose(crosshairs(browser)[:, 0], 19.0, atol=0.1)  # the rightmost voxel
    assert "19 mm R" in find(browser, "#crosshair output").text


def test_a_click_shows_a_figure_at_the_left_and_with_shift_at_the_right(browser, pages):
    opened(browser, pages["covariates"])
    figures = browser.find_elements(By.CSS_SELECTOR, "#figures figure")
    figures[3].find_element(By.TAG_NAME, "img").click()
    wait_for(browser, "return document.getElementById('pane-left').dataset.loaded === 'sub-0'")  # 40 mL: the fourth
    webdriver.ActionChains(browser).key_down(Keys.SHIFT).click(figures[5].find_element(By.TAG_NAME, "img")).key_up(
        Keys.SHIFT
    ).perform()
    wait_for(browser, "return document.getElementById('pane-right').dataset.loaded === 'sub-4'")
    figures[1].find_element(By.CSS_SELECTOR, "[data-side=right]").send_keys(Keys.ENTER)
    wait_for(browser, "return document.getElementById('pane-right').dataset.loaded === 'sub-3'")
    assert find(browser, "#pane-left select").get_attribute("value") == figures[3].get_attribute("data-volume")


def test_filters_filter_and_say_how_many_are_left(browser, pages):
    opened(browser, pages["covariates"])
    assert len(shown(browser)) == 6 and find(browser, "#count").text == "6 of 6"
    find(browser, "input[type=checkbox][value=F]").click()
    assert shown(browser) == ["sub-1", "sub-3", "sub-5"] and find(browser, "#count").text == "3 of 6"
    low = find(browser, "input[aria-label='age, years, from']")
    step = float(low.get_attribute("step"))
    low.send_keys(*[Keys.ARROW_RIGHT] * int(np.ceil((50 - min(AGES)) / step)))
    assert shown(browser) == ["sub-1", "sub-5"] and find(browser, "#count").text == "2 of 6"
    find(browser, "#search").send_keys("sub-5")
    assert shown(browser) == ["sub-5"]
    find(browser, "#filters button[type=reset]").click()
    wait_for(browser, "return document.getElementById('count').textContent === '6 of 6'")
    assert len(shown(browser)) == 6


def test_the_lower_end_of_a_range_cannot_pass_the_upper_one(browser, pages):
    opened(browser, pages["covariates"])
    low, high = (find(browser, f"input[aria-label='age, years, {end}']") for end in ("from", "to"))
    high.send_keys(Keys.HOME)
    assert high.get_attribute("value") == low.get_attribute("value") and shown(browser) == ["sub-3"]  # the youngest
    low.send_keys(Keys.END)
    assert low.get_attribute("value") == high.get_attribute("value")


def test_the_gallery_is_sorted_by_what_is_chosen(browser, pages):
    opened(browser, pages["covariates"])
    by_age = [f"sub-{i}" for i in np.argsort(AGES)]
    options = {option.text: option for option in browser.find_elements(By.CSS_SELECTOR, "#sort option")}
    options["age, years"].click()
    assert shown(browser) == by_age
    find(browser, "#descending").click()
    assert shown(browser) == by_age[::-1]


@pytest.mark.parametrize("name", ["covariates", "labels"])
def test_a_narrow_screen_does_not_scroll_sideways(browser, pages, name):
    opened(browser, pages[name], width=360, height=740)
    browser.execute_script("for (const each of document.querySelectorAll('details')) each.open = true")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    elements = browser.find_elements(By.CSS_SELECTOR, "main > :not(script), section > *")
    assert all(element.rect["x"] + element.rect["width"] <= 361 for element in elements)


def test_every_control_has_a_name_and_every_picture_a_text(browser, pages):
    opened(browser, pages["covariates"])
    controls = browser.find_elements(By.CSS_SELECTOR, "input, select, button, canvas")
    assert len(controls) > 20
    for control in controls:
        browser.execute_script("arguments[0].scrollIntoView()", control)
        if control.is_displayed():
            assert control.accessible_name, control.get_attribute("outerHTML")[:200]
    assert all(picture.get_attribute("alt") for picture in browser.find_elements(By.TAG_NAME, "img"))


def test_without_webgl2_a_sentence_says_so_and_the_gallery_works(pages):
    driver = start("--disable-gpu", "--disable-3d-apis")
    try:
        driver.get(pages["covariates"].as_uri())
        assert "needs scripts and WebGL2" in find(driver, "#no-viewer").text
        assert not find(driver, "#viewer-panel").is_displayed()
        assert not any(button.is_displayed() for button in driver.find_elements(By.CSS_SELECTOR, "[data-side]"))
        find(driver, "#filters summary").click()
        find(driver, "input[type=checkbox][value=F]").click()
        assert find(driver, "#count").text == "3 of 6"
        find(driver, "#figures figure:not([hidden]) .enlarge button").send_keys(Keys.ENTER)
        assert find(driver, "#enlarged img").is_displayed()
        find(driver, "#enlarged").send_keys(Keys.ESCAPE)
        assert not find(driver, "#enlarged img").is_displayed()
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []
    finally:
        driver.quit()
