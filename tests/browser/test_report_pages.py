"""A published report, looked at as a reader does: every link, every picture, the dark."""

from __future__ import annotations

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

import small_notebooks
import synthetic
from meshdns import report

pytestmark = [pytest.mark.browser, pytest.mark.slow]

UNLOADED = "return [...document.images].filter(i => !(i.complete && i.naturalWidth > 0)).map(i => i.src.slice(0, 80))"
BACKGROUND = "return getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Addresses of the index and of every page it links to."""
    folder = tmp_path_factory.mktemp("browser")
    runs = synthetic.build(folder / "runs", blocks=2, samples_per_cell=5)
    books = [small_notebooks.write(folder, stem) for stem in ("01_names", "10_card")]
    index = report.publish(runs, folder / "reports" / "one", {}, books, lambda what, done, total: None)
    return [path.as_uri() for path in (index, *(index.parent / f"{book.stem}.html" for book in books))]


def test_every_link_of_the_index_leads_to_a_page_with_its_answer(browser: Chrome, pages: list[str]) -> None:
    browser.get(pages[0])
    assert len(browser.find_elements(By.CSS_SELECTOR, ".card .answer")) == len(pages) - 1
    count = len(browser.find_elements(By.CSS_SELECTOR, "a[href]"))
    visited = set()
    for at in range(count):
        browser.get(pages[0])
        browser.find_elements(By.CSS_SELECTOR, "a[href]")[at].click()
        visited.add(browser.current_url)
        assert browser.find_element(By.CSS_SELECTOR, "h1").is_displayed()
        assert "costs 4 µs more" in browser.find_element(By.CSS_SELECTOR, ".answer").text
        assert browser.execute_script(UNLOADED) == []
        browser.find_element(By.CSS_SELECTOR, "nav a").click()
        assert browser.current_url == pages[0]
    assert visited == set(pages)
    assert browser.get_log("browser") == []


SMUGGLED = """
const [image, script] = ['img', 'script'].map(name => document.createElement(name));
image.setAttribute('onerror', 'window.reached = true');
image.src = 'data:image/png;base64,AAAA';
script.textContent = 'window.reached = true';
document.body.append(image, script);
"""


def test_a_page_runs_nothing_even_if_a_script_got_into_it(browser: Chrome, pages: list[str]) -> None:
    browser.get(pages[1])
    assert browser.get_log("browser") == []
    browser.execute_script(SMUGGLED)
    refused = [each["message"] for each in browser.get_log("browser")]
    assert any("Content Security Policy" in message for message in refused)
    assert browser.execute_script("return window.reached ?? false") is False


def test_dark_mode_is_dark_and_figures_stay_on_light(browser: Chrome, pages: list[str]) -> None:
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    browser.get(pages[1])
    light = browser.execute_script(BACKGROUND)
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    try:
        assert browser.execute_script(BACKGROUND) != light == "rgb(255, 255, 255)"
        image = browser.find_element(By.CSS_SELECTOR, "figure img")
        assert image.value_of_css_property("background-color") == "rgba(255, 255, 255, 1)"
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_every_picture_says_what_it_shows(browser: Chrome, pages: list[str]) -> None:
    for address in pages:
        browser.get(address)
        assert all(image.get_attribute("alt") for image in browser.find_elements(By.CSS_SELECTOR, "img"))
