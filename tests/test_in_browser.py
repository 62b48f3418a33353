"""The demo and the notebooks in a real browser, as a person uses them. Skipped where there is no Chromium."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from urllib.error import URLError
from urllib.request import urlopen

import nbformat
import pytest
from conftest import no_run_named
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from helpers.demo import build_page, launch, load_models
from helpers.runs import ROOT
from tools.run_notebooks import ALL_NOTEBOOKS, read_notebook, without_outputs, write_notebook

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver on the PATH"),
]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in [*flags.split(), "disable-component-update", "disable-sync", "window-size=1200,1400"]:
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('profile')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address(finished_run):
    page = build_page(load_models(finished_run), finished_run)
    yield launch(page)
    page.close()


@pytest.fixture
def page(browser, address):
    browser.get(address)
    wait_for(browser, lambda: browser.find_elements(By.CSS_SELECTOR, "#comment textarea"))
    return browser


def wait_for(browser, condition, seconds=30):
    return WebDriverWait(browser, seconds, ignored_exceptions=[Exception]).until(lambda _: condition())


def text_of(browser, element):
    return browser.find_element(By.ID, element).text


def type_comment(browser, text):
    box = browser.find_element(By.CSS_SELECTOR, "#comment textarea")
    # as pasting does; chromedriver cannot type characters beyond the basic plane
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", box, text
    )


def judged(browser, text):
    """The verdict's text after typing and submitting."""
    before = text_of(browser, "verdict")
    type_comment(browser, text)
    browser.find_element(By.ID, "judge").click()
    wait_for(browser, lambda: text_of(browser, "verdict") not in ("", before))
    return text_of(browser, "verdict")


COMMENTS = {"typed": "hello there", "very long": "word " * 2_000, "emoji": "\U0001f600 \U0001f468\u200d\U0001f469"}


@pytest.mark.parametrize("kind", COMMENTS)
def test_a_comment_gets_its_verdict_and_is_shown(page, kind):
    found = judged(page, COMMENTS[kind])
    assert re.match(r"(not )?toxic\nProbability of toxic: [01]\.\d{3}\. ", found)
    assert COMMENTS[kind].split()[0] in text_of(page, "words")


def test_another_model_gives_its_own_verdict(page):
    assert "Teacher calls a comment toxic" in judged(page, "hello there")
    page.find_element(By.XPATH, "//*[@id='model']//label[contains(., 'Even student')]").click()
    wait_for(page, lambda: "Even student calls a comment toxic" in text_of(page, "verdict"))


def test_all_models_stand_side_by_side_with_their_latency(page):
    type_comment(page, "hello there")
    page.find_element(By.ID, "ask-all").click()
    wait_for(page, lambda: "LoRA" in text_of(page, "side-by-side"))
    shown = text_of(page, "side-by-side")
    assert "milliseconds" in shown and "Odd student" in shown


def test_an_empty_comment_is_asked_for(page):
    assert judged(page, "  ") == "Type a comment first."


def test_html_is_shown_as_text_and_never_run(page):
    typed = "<img src=x onerror=\"document.title='broken'\"> <b>bold</b>"
    judged(page, typed)
    wait_for(page, lambda: "<b>bold</b>" in text_of(page, "words"))
    assert page.title == "Toxic or not?"
    assert not page.find_elements(By.CSS_SELECTOR, "#words img, #words b, #verdict img")


def test_the_page_asks_no_other_host_and_logs_no_error(page, address):
    judged(page, "hello there")
    asked = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []


PANEL = "[...(window.jupyterapp?.shell?.widgets('main') ?? [])].find(widget => widget.context)"
RUN_ALL = f"""
const [finished, app, panel] = [arguments[arguments.length - 1], window.jupyterapp, {PANEL}];
app.shell.activateById(panel.id);
panel.content.notebookConfig = {{...panel.content.notebookConfig, windowingMode: "none"}};  // all cells are drawn
panel.context.ready
  .then(() => panel.sessionContext.ready)
  .then(() => app.commands.execute("notebook:run-all-cells"))
  .then(() => panel.context.save())
  .then(() => finished("saved"), error => finished(String(error)));
"""
SEEN = "[...document.querySelectorAll('.jp-OutputArea-output img')].filter(img => img.naturalWidth && img.width)"


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """(address, project): JupyterLab as `make lab` starts it, on a copy of the project, in the smoke profile."""
    project = tmp_path_factory.mktemp("lab") / "project"
    for folder in ("helpers", "notebooks", "figures", "results", "tests/separable_comments"):
        shutil.copytree(ROOT / folder, project / folder, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_*"))
    for name in ("requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, project / name)
    for name in ALL_NOTEBOOKS:  # else committed counts and figures would pass for those of this run
        write_notebook(without_outputs(read_notebook(name)), project / "notebooks" / f"{name}.ipynb")
    options = ["--no-browser", "--expose-app-in-browser", "--IdentityProvider.token=", "--ip=127.0.0.1", "--allow-root"]
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", *options, "--port=8975", "--ServerApp.port_retries=0"],
        cwd=project / "notebooks",
        env=no_run_named() | {"PROFILE": "smoke"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = "http://127.0.0.1:8975"
    for _ in range(120):
        try:
            urlopen(f"{address}/api/status", timeout=5)
            break
        except (URLError, OSError):
            time.sleep(0.5)
    assert server.poll() is None, "port 8975 is taken, perhaps by the server of a test that was killed"
    yield address, project
    server.terminate()
    server.wait(20)


@pytest.mark.parametrize("name", ALL_NOTEBOOKS)
def test_run_all_ends_without_an_error_and_shows_its_figures(name, lab, browser):
    address, project = lab
    browser.get(f"{address}/lab/workspaces/{name}/tree/{name}.ipynb")
    wait_for(browser, lambda: browser.execute_script(f"return !!{PANEL}"), 90)
    browser.set_script_timeout(900)
    assert browser.execute_async_script(RUN_ALL) == "saved"
    notebook = nbformat.read(project / "notebooks" / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert [output for output in outputs if output.output_type == "error"] == []
    figures = sum(bool(re.search("image/(png|svg)", json.dumps(output))) for output in outputs)
    assert figures or name == "07_demo"
    wait_for(browser, lambda: browser.execute_script(f"return ({SEEN}).length") == figures)
    if name == "07_demo":
        browser.switch_to.frame(browser.find_element(By.CSS_SELECTOR, ".jp-OutputArea-output iframe"))
        wait_for(browser, lambda: browser.find_element(By.CSS_SELECTOR, "#comment textarea").is_displayed())
        browser.switch_to.default_content()
    if folder := os.environ.get("SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/{name}.png")
