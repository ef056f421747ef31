"""explore.ipynb in JupyterLab, as `make lab` opens it: run it, turn a widget, see picture and table change."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

import synthetic

pytestmark = [pytest.mark.browser, pytest.mark.slow]

NOTEBOOK = Path(__file__).parents[2] / "notebooks" / "explore.ipynb"
WAIT_S = 90  # a cold JupyterLab and a kernel on a busy machine
PICTURE = "img.widget-image"
TABLE = ".meshdns-table"


@dataclass(frozen=True)
class Lab:
    address: str
    token: str


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on a free port, in a copy of the notebooks folder with a run beside it; ended by its own pid."""
    root = tmp_path_factory.mktemp("lab")
    synthetic.build(root / "data" / "sample", blocks=4, samples_per_cell=40)
    notebooks = root / "notebooks"
    notebooks.mkdir()
    (notebooks / NOTEBOOK.name).write_bytes(NOTEBOOK.read_bytes())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--ip=127.0.0.1", f"--port={port}"]
    command += [f"--notebook-dir={notebooks}", "--LabApp.news_url=None", "--LabApp.check_for_updates_class="
                "jupyterlab.NeverCheckForUpdate"]  # fmt: skip
    command += ["--allow-root"] if os.geteuid() == 0 else []
    private = {name: str(root / name.lower()) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    environment = {**os.environ, **private, "JUPYTER_TOKEN": token, "JUPYTERLAB_WORKSPACES_DIR": str(root / "spaces")}
    with (root / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            _wait_for(Lab(f"http://127.0.0.1:{port}", token), process, root / "log.txt")
            yield Lab(f"http://127.0.0.1:{port}", token)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def test_turning_a_widget_changes_the_figure_and_the_table(browser: Chrome, lab: Lab) -> None:
    browser.get(f"{lab.address}/lab/tree/{NOTEBOOK.name}?token={lab.token}")
    wait = WebDriverWait(browser, WAIT_S, poll_frequency=0.2)
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-CodeCell"))
    wait.until(lambda page: "Idle" in _status(page))
    _run_all(browser, wait)
    wait.until(lambda page: page.find_elements(By.CSS_SELECTOR, PICTURE))
    before = _seen(browser)
    assert "p50" in before[1] and "plain" in before[1]

    chosen = Select(_list_titled(browser, "Percentiles"))
    chosen.deselect_all()
    chosen.select_by_visible_text("p75")
    wait.until(lambda page: "p75" in _seen(page)[1] and "p50" not in _seen(page)[1])
    after = _seen(browser)
    assert after[0] != before[0]

    Select(_list_titled(browser, "Arms")).deselect_by_visible_text("mode1")
    wait.until(lambda page: "mode1" not in _seen(page)[1])
    assert _seen(browser)[0] not in (before[0], after[0])


def _run_all(browser: Chrome, wait: WebDriverWait[Chrome]) -> None:
    browser.find_element(By.XPATH, "//div[contains(@class,'lm-MenuBar-itemLabel')][text()='Run']").click()
    item = (By.CSS_SELECTOR, ".lm-Menu-item[data-command='runmenu:run-all']")
    wait.until(lambda page: page.find_elements(*item))[0].click()


def _seen(browser: Chrome) -> tuple[str, str]:
    """Address of the picture and text of the table."""
    picture = browser.execute_script(f"return document.querySelector('{PICTURE}')?.src ?? ''")
    table = browser.execute_script(f"return document.querySelector('{TABLE}')?.innerText ?? ''")
    return str(picture), str(table)


def _status(browser: Chrome) -> str:
    return str(
        browser.execute_script("return document.querySelector('#jp-bottom-panel, #jp-main-statusbar')?.innerText ?? ''")
    )


def _list_titled(browser: Chrome, title: str) -> WebElement:
    return browser.find_element(
        By.XPATH, f"//*[text()='{title}']/ancestor::div[contains(@class,'widget-vbox')][1]//select"
    )


def _wait_for(lab: Lab, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{lab.address}/api/status?token={lab.token}", timeout=2) as answer:
                json.load(answer)
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"JupyterLab did not answer within {WAIT_S} s: {log.read_text()}")
