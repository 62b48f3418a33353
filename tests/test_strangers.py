"""The project on machines that are not its makers': it keeps to itself, prints on any output, runs in any folder."""

import re
import shutil
import subprocess
import sys

import pytest
from conftest import no_run_named, wait_for_page

from helpers.runs import ROOT


def run_code(code: str, **environment: str | None) -> subprocess.CompletedProcess:
    """Runs Python code in a process of its own, with these variables set, or, where one is None, without it."""
    variables = no_run_named() | {"OMP_NUM_THREADS": "1"} | environment
    variables = {name: value for name, value in variables.items() if value is not None}
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=variables, capture_output=True, timeout=300)


ASKS_NOBODY = """
import sys
asked = []
def listen(event, values):
    if event == "socket.getaddrinfo" or event == "socket.connect" and isinstance(values[1], tuple):
        asked.append(values)
sys.addaudithook(listen)
import helpers.demo
import gradio, time
with gradio.Blocks():
    gradio.Markdown("hello")
time.sleep(1)
sys.exit(f"it asked for {asked}" if asked else 0)
"""


def test_the_libraries_of_the_demo_ask_no_host_and_leave_nothing_in_the_home_folder(tmp_path):
    switches = dict.fromkeys(("ORT_DISABLE_TELEMETRY", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_DISABLE_TELEMETRY"))
    caches = dict.fromkeys(("XDG_CACHE_HOME", "XDG_CONFIG_HOME", "HF_HOME", "HF_HUB_OFFLINE", "MPLCONFIGDIR"))
    outcome = run_code(ASKS_NOBODY, HOME=str(tmp_path), **switches, **caches)
    assert outcome.returncode == 0, outcome.stderr.decode()
    assert [str(path) for path in tmp_path.rglob("*") if path.is_file()] == []


LAB_ASKS_NOBODY = """
import sys
def listen(event, values):
    if event == "socket.getaddrinfo" and values[0] not in ("127.0.0.1", "localhost"):
        print(f"it asked for {values[0]}", flush=True)
sys.addaudithook(listen)
from jupyterlab.labapp import main
main(sys.argv[1:])
"""


def test_jupyterlab_looks_for_no_update_and_no_news(tmp_path):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    options = re.search(r"^lab:.*\n.* -m jupyterlab notebooks (.*)$", makefile, re.M)[1].split()
    options += ["--no-browser", "--allow-root", "--port=8976", "--IdentityProvider.token=", "notebooks"]
    command = [sys.executable, "-c", LAB_ASKS_NOBODY, *options]
    homes = {"HOME": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    said = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=ROOT, env=no_run_named() | homes, text=True, **said) as lab:
        try:
            for path in ("api/status", "lab/api/update", "lab/api/news"):
                wait_for_page(f"http://127.0.0.1:8976/{path}")
        finally:
            lab.terminate()
        assert lab.stdout.read() == ""


PRINTS_MUCH = """
from helpers.batches import progress_bar
from helpers.checks import check_copy
for _ in progress_bar(range(3), desc="odd · 3 of 3 −"):
    pass
assert not check_copy(lambda teacher, layers: teacher)
"""


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_an_output_that_lacks_a_character_gets_another_one(encoding):
    outcome = run_code(PRINTS_MUCH, PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert outcome.returncode == 0, outcome.stderr.decode()
    assert b"3/3" in outcome.stdout and b"? " in outcome.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs make")
@pytest.mark.parametrize("target", ["lab", "test", "demo", "submission"])
def test_a_recipe_runs_the_environment_of_its_folder_whatever_the_folders_name(tmp_path, target):
    folder = tmp_path / "Übung 2 (final) [v1]"
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "notebooks").mkdir()
    for name in ("Makefile", "requirements.txt", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    python = folder / ".venv" / "bin" / "python"
    python.write_text('#!/bin/sh\necho "$0" "$@"\n')
    python.chmod(0o755)
    (folder / ".venv" / "installed").touch()
    command = ["make", "--no-print-directory", target, "NAME=x", "ID=1"]
    outcome = subprocess.run(
        command, cwd=folder, env=no_run_named() | {"MAKEFLAGS": ""}, capture_output=True, text=True
    )
    assert outcome.returncode == 0, outcome.stderr
    assert ".venv/bin/python -m " in outcome.stdout and str(tmp_path) not in outcome.stdout


@pytest.mark.slow
def test_plain_nbconvert_runs_a_notebook_from_another_folder(tmp_path):
    notebook = ROOT / "notebooks" / "01_data_preparation.ipynb"
    command = [sys.executable, "-m", "nbconvert", "--execute", "--to", "notebook", "--output-dir", tmp_path, notebook]
    environment = no_run_named() | {"PROFILE": "smoke", "RUN": f"test-{tmp_path.name}"}
    try:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (ROOT / "runs" / environment["RUN"] / "data" / "data.json").is_file()
    finally:
        shutil.rmtree(ROOT / "runs" / environment["RUN"], ignore_errors=True)


@pytest.mark.skipif(sys.platform == "win32", reason="the home folder is named otherwise there")
def test_a_home_folder_that_cannot_be_written_to_stops_no_scoring():
    code = "from helpers.evaluation import np, score; print(score(np.array([0.1, 0.9]), np.array([0, 1]), 0.5))"
    done = run_code(code, HOME="/dev/null/home", HF_HOME=None, XDG_CACHE_HOME=None)
    assert b"'recall': 1.0" in done.stdout, done.stderr.decode()
