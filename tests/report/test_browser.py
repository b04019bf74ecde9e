"""The pages in headless Chromium: nothing is loaded, nothing fails, all is reached by keys, on phone, paper and in the
dark."""

import dataclasses
import json
import shutil

import numpy as np
import page_inputs
import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.actions.action_builder import ActionBuilder
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait

from privimage_jax.report import comparison, evaluation, inspection, study
from privimage_jax.report.gallery import ImageSet
from privimage_jax.report.neighbours import Neighbourhood
from privimage_jax.report.page import render

CHROMIUM, DRIVER = shutil.which("chromium") or shutil.which("chromium-browser"), shutil.which("chromedriver")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PAGES = ("release", "evaluation", "comparison", "inspection", "study")
LONG = "a_class_with_a_long_name_that_has_no_space_in_it"
NAMES = ("ant", "bee", "cat", LONG)
FOCUS = "select, button, [tabindex]"
VISIBLE = "(selector) => [...document.querySelectorAll(selector)].filter((each) => each.checkVisibility())"

pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="there is no Chromium; on Debian: apt-get install chromium chromium-driver"
)


def image_set(name: str, per_class: int, side: int = 8) -> ImageSet:
    labels = np.arange(per_class * len(NAMES)) % len(NAMES)
    return ImageSet(name, np.random.default_rng(0).integers(0, 256, (len(labels), side, side, 3), np.uint8), labels)


def written() -> dict[str, str]:
    """Each page with more images of a class than are seen at first, long names, and all of its sections."""
    images = image_set("synthetic", 15)
    near = Neighbourhood(images.images[0], LONG, images.images[:6], [LONG] * 6)
    release = dataclasses.replace(
        page_inputs.release(),
        title=f"Digits {LONG}",
        images=images.images,
        labels=images.labels,
        class_names=NAMES,
        settings={"data.class_names": str(NAMES * 5), f"model.{LONG}": LONG},
        neighbourhoods=[near] * 3,
        training=[("loss of pre-training", page_inputs.CURVE)],
    )
    sets = [image_set("real", 9), image_set("public", 3), image_set("synthetic", 9)]
    measured = dataclasses.replace(page_inputs.evaluation(), sets=sets, class_names=NAMES)
    runs = [
        page_inputs.run(name, images=each.images, labels=each.labels, class_names=NAMES)
        for name, each in zip(("runs/one", LONG, "three", "four"), [*sets, images], strict=True)
    ]
    pages = (
        render(release),
        evaluation.render(measured),
        comparison.render(runs, "Together: a sentence."),
        inspection.render(f"Digits {LONG}", page_inputs.found(NAMES), [page_inputs.shown(images, NAMES)]),
        study.render(page_inputs.study(sets, NAMES)),
    )
    return dict(zip(PAGES, pages, strict=True))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as driver:
        yield driver


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    for name, page in written().items():
        (folder / f"{name}.html").write_text(page, encoding="utf-8")
    return folder


class Page:
    """One page, open in the browser."""

    def __init__(self, driver, address):
        self.driver, self.address = driver, address
        self.device(1280)
        self.media("screen", "light")
        for log in ("browser", "performance"):
            driver.get_log(log)  # what came before
        driver.get(address)

    def run(self, script, *arguments):
        """The value of a script's `return`."""
        return self.driver.execute_script(f"const visible = {VISIBLE};\n{script}", *arguments)

    def waits_until(self, script, *arguments):
        """Fails unless the script's value is true in a moment."""
        WebDriverWait(self.driver, 5, 0.02).until(lambda _: self.run(script, *arguments))

    def press(self, *keys):
        ActionChains(self.driver).send_keys(*keys).perform()

    def device(self, width):
        metrics = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)

    def media(self, medium, scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": medium, "features": features})

    @property
    def focused(self):
        return self.driver.switch_to.active_element

    @property
    def enlarged(self):
        """The address of the enlarged image, or None."""
        return self.run("return enlarged.open ? enlarged.querySelector('img').src : null")


@pytest.fixture(params=PAGES)
def page(request, browser, folder):
    return Page(browser, (folder / f"{request.param}.html").as_uri())


@pytest.fixture
def release(browser, folder):
    return Page(browser, (folder / "release.html").as_uri())


def test_the_page_renders_without_a_complaint_or_a_request(page):
    assert page.driver.get_log("browser") == []
    events = [json.loads(line["message"])["message"] for line in page.driver.get_log("performance")]
    asked = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    assert asked and {url for url in asked if not url.startswith("data:image/")} == {page.address}
    assert page.run("return document.images.length") > 20
    assert page.run("return [...document.images].every((image) => image.complete && image.naturalWidth > 0)")


@pytest.mark.parametrize("width", [360, 768])
def test_nothing_sticks_out(page, width):
    page.device(width)
    assert page.run("return document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0


def luminance(colour):
    """Relative luminance of "rgb(r, g, b)" as WCAG 2 defines it."""
    parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


@pytest.mark.parametrize(("medium", "scheme"), [("screen", "light"), ("screen", "dark"), ("print", "light")])
def test_text_stands_out_from_the_paper(page, medium, scheme):
    page.media(medium, scheme)
    paper, *inks = page.run(
        "return [getComputedStyle(document.body).backgroundColor, "
        "...['h1', 'p', '.note', 'figcaption', '.eyebrow', 'footer p', 'dd, th'].map("
        "(each) => getComputedStyle(document.querySelector(each)).color)]"
    )
    assert (luminance(paper) > 0.5) == (scheme == "light")
    for ink in inks:
        low, high = sorted([luminance(ink), luminance(paper)])
        assert (high + 0.05) / (low + 0.05) >= 4.5, (ink, paper)


def test_paper_shows_everything_and_no_controls(page):
    page.media("print", "light")
    assert page.run("return visible('select, dialog').length") == 0
    assert page.run(
        "return [...document.querySelectorAll('.scroll')].every((each) => "
        "getComputedStyle(each).overflowX === 'visible')"
    )
    pdf = page.driver.execute_cdp_cmd("Page.printToPDF", {})["data"]
    assert pdf.startswith("JVBERi0")  # "%PDF-"


def test_one_class_can_be_chosen_by_keys(page):
    seen = page.run("return visible('figure[data-class]').length")
    before = page.run("return visible('figure[data-class=\"2\"] img').length")
    assert seen == len(NAMES)
    for _ in range(3):
        page.press(Keys.TAB)
        if page.focused.tag_name == "select":
            break
    page.press("cat")
    figures = page.run("return visible('figure[data-class]').map((each) => each.innerText)")
    assert len(figures) == 1 and figures[0].startswith("cat")
    assert page.run("return visible('figure img').length") > before > 0
    page.press(Keys.HOME)
    assert page.run("return visible('figure[data-class]').length") == seen


def test_keys_reach_everything(page):
    """Tab stops at each control and strip once and in order; arrow keys go through the images of a strip."""
    reached = []
    page.run("window.reached = new Set(); document.addEventListener('focusin', (event) => reached.add(event.target))")
    for _ in range(page.run(f"return visible({FOCUS!r}).filter((each) => each.tabIndex === 0).length")):
        page.press(Keys.TAB)
        reached.append(page.focused)
        if page.focused.tag_name == "button":
            images = page.run("return document.activeElement.parentElement.querySelectorAll('button').length")
            page.press(*[Keys.ARROW_RIGHT] * images, Keys.HOME)
            assert page.focused == reached[-1]
    assert len(set(reached)) == len(reached)
    assert page.run(f"return visible({FOCUS!r}).every((each) => reached.has(each))")


def test_an_image_is_enlarged_and_closed_by_keys(page):
    images = page.run("return [...document.querySelector('.strip').querySelectorAll('img')].map((each) => each.src)")
    page.run("document.querySelector('.strip button').focus()")
    for key, expected in ((Keys.ENTER, 0), (Keys.SPACE, 1)):
        page.press(key)
        assert page.enlarged == images[expected]
        page.press(Keys.ARROW_RIGHT)
        assert page.enlarged == images[expected + 1]
        page.press(Keys.ESCAPE)
        assert page.enlarged is None
        page.waits_until("return document.activeElement.firstElementChild?.src === arguments[0]", images[expected + 1])
    page.press(Keys.ENTER)
    page.press(Keys.TAB, Keys.TAB, Keys.ENTER)  # from "previous" over "next" to "close"
    page.waits_until("return !enlarged.open")
    assert page.driver.get_log("browser") == []


def test_an_image_is_enlarged_and_closed_by_a_pointer(release):
    first, second, *_ = release.driver.find_elements(By.CSS_SELECTOR, ".strip button")
    second.click()
    sources = [each.find_element(By.TAG_NAME, "img").get_attribute("src") for each in (first, second)]
    assert release.enlarged == sources[1]
    previous, _, close = release.driver.find_elements(By.CSS_SELECTOR, "dialog button")
    previous.click()
    assert release.enlarged == sources[0]
    assert "number 1 (1 of 12)" in release.driver.find_element(By.CSS_SELECTOR, "dialog p").text
    close.click()
    assert release.enlarged is None
    first.click()
    beside = ActionBuilder(release.driver)
    beside.pointer_action.move_to_location(5, 5).click()
    beside.perform()
    assert release.enlarged is None


def test_without_its_script_the_page_is_whole(browser, folder):
    """Its policy refuses the script once a character of it differs."""
    spoilt = folder / "spoilt.html"
    spoilt.write_text((folder / "release.html").read_text(encoding="utf-8").replace('"use strict"', "'use strict'"))
    page = Page(browser, spoilt.as_uri())
    assert any("Content Security Policy" in line["message"] for line in browser.get_log("browser"))
    assert page.run("return visible('select, button, dialog').length") == 0
    assert page.run("return visible('.strip img').length") == 4 * 12 + 3 * 7
