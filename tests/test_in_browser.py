"""The demo and the notebooks in a real browser, as a person uses them. Skipped where there is no Chromium."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pytest
from conftest import no_run_named, wait_for_page
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from helpers.demo import load_models, serve
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
    page = serve(load_models(finished_run), finished_run)
    yield page.local_url
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


def judge(browser, text):
    """Types a comment and presses the button."""
    box = browser.find_element(By.CSS_SELECTOR, "#comment textarea")
    # as pasting does; chromedriver cannot type characters beyond the basic plane
    browser.execute_script(
        "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", box, text
    )
    browser.find_element(By.ID, "judge").click()


def wait_for_table(browser):
    """Waits until the table holds both its first and its last model."""
    wait_for(browser, lambda: all(name in text_of(browser, "side-by-side") for name in ("Teacher", "LoRA on odd copy")))


COMMENTS = {"typed": "hello there", "very long": "word " * 2_000, "emoji": "\U0001f600 \U0001f468\u200d\U0001f469"}


@pytest.mark.parametrize("kind", COMMENTS)
def test_a_comment_gets_the_verdict_of_every_model(page, kind):
    judge(page, COMMENTS[kind])
    wait_for_table(page)
    assert re.search(r"Odd student\s+(not )?toxic\s+[01](\.\d{1,3})?\s", text_of(page, "side-by-side"))


def test_enter_submits_the_comment(page):
    page.find_element(By.CSS_SELECTOR, "#comment textarea").send_keys("hello there", Keys.ENTER)
    wait_for_table(page)


def test_an_empty_comment_is_asked_for(page):
    judge(page, "  ")
    wait_for(page, lambda: "Type a comment first." in page.find_element(By.TAG_NAME, "body").text)
    assert "Teacher" not in text_of(page, "side-by-side")


def test_the_page_asks_no_other_host_and_logs_no_error(page, address):
    judge(page, "hello there")
    wait_for_table(page)
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
    wait_for_page(f"{address}/api/status")
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
    figures = sum("image/png" in json.dumps(output) for output in outputs)
    assert figures
    wait_for(browser, lambda: browser.execute_script(f"return ({SEEN}).length") == figures)
    if name == "07_demo":
        browser.switch_to.frame(browser.find_element(By.CSS_SELECTOR, ".jp-OutputArea-output iframe"))
        wait_for(browser, lambda: browser.find_element(By.CSS_SELECTOR, "#comment textarea").is_displayed())
        browser.switch_to.default_content()
    if folder := os.environ.get("SCREENSHOTS"):
        browser.save_screenshot(f"{folder}/{name}.png")
