"""The report on the recorded sample with the real notebooks, as readers meet it: phone, dark, paper, no network."""

from __future__ import annotations

import base64
import itertools
import re
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from meshdns import report

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
BOOKS = report.notebooks_in(ROOT / "notebooks")
PHONE = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
OVERFLOW = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
UNLOADED = "return [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src.slice(0, 80))"
HEADINGS = "return [...document.querySelectorAll('h1,h2,h3,h4')].map(h => +h.tagName[1])"
# Words and tables that are as dark as the page they stand on.
CONTRAST = r"""
const light = c => { const [r, g, b] = c.match(/[\d.]+/g).map(Number); return (0.3 * r + 0.6 * g + 0.1 * b) / 255; };
const page = light(getComputedStyle(document.body).backgroundColor);
return [...document.querySelectorAll('h1,p,td,th,figcaption,a')].filter(e => e.textContent.trim())
  .filter(e => Math.abs(light(getComputedStyle(e).color) - page) < 0.3).map(e => e.outerHTML.slice(0, 100));
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Addresses of the index and of the page of every notebook."""
    out = tmp_path_factory.mktemp("sample") / "report"
    index = report.publish(ROOT / "data" / "sample", out, {}, BOOKS, lambda what, done, total: None)
    return [path.as_uri() for path in (index, *(index.parent / f"{book.stem}.html" for book in BOOKS))]


def test_the_index_answers_every_notebook_s_question_first(browser: Chrome, pages: list[str]) -> None:
    browser.get(pages[0])
    answers = [each.text for each in browser.find_elements(By.CSS_SELECTOR, ".card .answer")]
    assert len(answers) == len(BOOKS)
    assert all(re.search(r"\d", answer) for answer in answers)
    linked = {link.get_attribute("href") for link in browser.find_elements(By.CSS_SELECTOR, ".card a")}
    assert set(pages[1:]) <= linked
    for address in pages[1:]:
        browser.get(address)
        first, heading = browser.find_element(By.CSS_SELECTOR, ".answer"), browser.find_element(By.CSS_SELECTOR, "h1")
        assert heading.location["y"] < first.location["y"] < 300
        assert browser.execute_script(UNLOADED) == []
    assert browser.get_log("browser") == []  # nothing was asked of anybody


def test_real_pages_fit_a_phone_with_headings_in_order(browser: Chrome, pages: list[str]) -> None:
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", PHONE)
    try:
        for address in pages:
            browser.get(address)
            assert browser.execute_script(OVERFLOW) <= 0, address
            levels = browser.execute_script(HEADINGS)
            assert levels[0] == 1
            assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels)), address
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_by_day_and_by_night(browser: Chrome, pages: list[str], scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    try:
        for address in pages:
            browser.get(address)
            assert browser.execute_script(CONTRAST) == [], address
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_real_pages_print_with_their_figures(browser: Chrome, pages: list[str]) -> None:
    for address in pages:
        browser.get(address)
        printed = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})["data"])
        assert printed.count(b"/Subtype /Image") >= browser.execute_script("return document.images.length") > 0
