"""The notebooks: their form, and their run from the command line in the `smoke` profile."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import tools.run_notebooks
from helpers.config import PROFILES
from helpers.runs import ROOT, Run
from tools.run_notebooks import MORE_NOTEBOOKS, NOTEBOOKS, first_cell, navigation

PATHS = [ROOT / "notebooks" / f"{name}.ipynb" for name in (*NOTEBOOKS, *MORE_NOTEBOOKS)]
RUN = "test-notebooks"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def solutions(notebook) -> list[str]:
    """The code of the exercises' solutions, which stands folded in the last cell."""
    return re.findall(r"```python\n(.*?)```", notebook.cells[-1].source, flags=re.S)


def outputs_text(notebook):
    return "\n".join(json.dumps(cell.outputs, ensure_ascii=False) for cell in code_cells(notebook))


@pytest.fixture(params=PATHS, ids=[path.stem for path in PATHS])
def notebook(request):
    return nbformat.read(request.param, as_version=4)


# --- form ------------------------------------------------------------------------------------------------------------


def test_a_notebook_is_valid_nbformat(notebook):
    nbformat.validate(notebook)


def test_the_first_cell_is_the_generated_one(notebook):
    assert code_cells(notebook)[0].source == first_cell()


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_the_links_to_its_neighbours_and_to_colab_are_the_generated_ones(path):
    notebook = nbformat.read(path, as_version=4)
    for cell in (notebook.cells[0], notebook.cells[-1]):
        assert cell.source.splitlines()[-1] == navigation(path.stem)


def test_a_code_cell_is_short(notebook):
    """The first cell and the training loop, which is the lesson itself, are longer."""
    cells = [cell.source.splitlines() for cell in code_cells(notebook)[1:] if "def distil(" not in cell.source]
    assert [lines[0] for lines in cells if len(lines) > 17] == []


def test_the_expected_time_on_a_cpu_and_a_t4_stands_at_the_top(notebook):
    top = notebook.cells[0].source
    assert "2 CPU cores" in top and "T4" in top


def test_a_notebook_closes_with_a_summary_and_exercises_whose_solutions_are_folded(notebook):
    last = notebook.cells[-1].source
    assert last.startswith("## Summary") and "## Exercises" in last
    exercises = re.findall(r"^\*\*\d\.\*\*", last, flags=re.M)
    assert 2 <= len(exercises) <= 3
    assert len(solutions(notebook)) == len(exercises) == last.count("<details><summary>Solution</summary>")


def test_every_prediction_that_a_reader_is_asked_for_is_answered(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    asked = [found.start() for found in re.finditer("Predict before you look", text)]
    answered = [found.start() for found in re.finditer(r"\*\*Answer", text)]
    assert len(answered) >= len(asked)
    assert all(question < answer for question, answer in zip(asked, answered, strict=False))


def test_links_between_notebooks_lead_somewhere(notebook):
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    assert re.search(r"\]\(0\d_", text)
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / "notebooks" / target).is_file(), target


def test_no_star_import_and_no_absolute_path(notebook):
    source = "\n".join(cell.source for cell in code_cells(notebook))
    assert not re.search(r"import \*", source)
    assert not re.search(r"""["'](/home|/root|/Users|/content|[A-Z]:\\)""", source)


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_committed_outputs_are_of_one_honest_run(path):
    notebook = nbformat.read(path, as_version=4)
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1)) or (path.stem not in NOTEBOOKS and not any(counts))
    assert not [output for cell in code_cells(notebook) for output in cell.outputs if output.output_type == "error"]
    assert "widgets" not in notebook.metadata


def test_committed_outputs_hold_no_path_of_a_machine(notebook):
    found = re.search(r"/(home|root|Users|work|tmp)/[\w./-]*", outputs_text(notebook))
    assert found is None, found


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_a_notebook_stays_below_500_kb(path):
    assert path.stat().st_size < 500_000


# --- run -------------------------------------------------------------------------------------------------------------


def pipeline(*arguments, **environment):
    """Runs the command line as a person would, in a process of its own."""
    clean = {key: value for key, value in os.environ.items() if key not in ("PROFILE", "RUN", "JIGSAW_DIR", "SEEDS")}
    return subprocess.run(
        [sys.executable, "-m", "tools.run_notebooks", *arguments],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=540,
    )


@pytest.fixture(scope="module")
def finished():
    """All notebooks executed once in the smoke profile: (the process's outcome, the run's folder)."""
    directory = ROOT / "runs" / RUN
    shutil.rmtree(directory, ignore_errors=True)
    yield pipeline("--profile", "smoke", "--run", RUN), directory
    shutil.rmtree(directory, ignore_errors=True)


def executed(directory: Path):
    return [nbformat.read(directory / "notebooks" / f"{name}.ipynb", as_version=4) for name in NOTEBOOKS]


def test_the_notebooks_run_in_order_without_an_error(finished):
    outcome, _ = finished
    assert outcome.returncode == 0, outcome.stdout[-3_000:] + outcome.stderr[-3_000:]


def test_the_terminal_shows_which_cell_runs_and_the_training_bars(finished):
    outcome, _ = finished
    assert "[02_layer_distillation] cell 2 of" in outcome.stdout
    assert "teacher, seed 1" in outcome.stdout and "step/s" in outcome.stdout


def test_the_terminal_ends_with_the_table_and_where_the_files_lie(finished):
    outcome, _ = finished
    end = outcome.stdout[-2_500:]
    assert "average_precision" in end and "Even student" in end and f"runs/{RUN}/notebooks/" in end


def test_an_executed_notebook_counts_its_cells_from_one(finished):
    for notebook in executed(finished[1]):
        counts = [cell.execution_count for cell in code_cells(notebook)]
        assert counts == list(range(1, len(counts) + 1))


def test_an_executed_notebook_shows_no_warning(finished):
    for notebook in executed(finished[1]):
        shown = [output for cell in code_cells(notebook) for output in cell.outputs if output.get("name") == "stderr"]
        assert shown == []


def test_an_executed_notebook_has_a_page_beside_it(finished):
    for name in NOTEBOOKS:
        assert (finished[1] / "notebooks" / f"{name}.html").stat().st_size > 10_000


def test_every_table_of_a_run_without_jigsaw_says_so(finished):
    for notebook in executed(finished[1]):
        for cell in code_cells(notebook):
            for output in cell.outputs:
                page = output.get("data", {}).get("text/html", "")
                caption = "".join(re.findall(r"<caption>(.*?)</caption>", page))
                assert not caption or re.search("not Jigsaw|[Pp]ublished|tiny|public solutions", caption), caption


def test_executed_notebooks_show_no_comment(finished):
    from datasets import load_from_disk

    splits = load_from_disk(str(finished[1] / "data"))
    comments = {text[:40] for split in splits.values() for text in split["comment_text"] if len(text) > 20}
    for notebook in executed(finished[1]):
        shown = outputs_text(notebook)
        assert not [text for text in comments if text in shown]


def test_run_again_it_trains_nothing(finished):
    _, directory = finished
    before = {path.name: json.loads(path.read_text())["finished"] for path in directory.glob("results/*.json")}
    outcome = pipeline("02_layer_distillation", "03_lora_fine_tuning", "--run", RUN)
    after = {path.name: json.loads(path.read_text())["finished"] for path in directory.glob("results/*.json")}
    assert outcome.returncode == 0 and "step/s" not in outcome.stdout
    assert after == before


@pytest.mark.slow
def test_the_improvements_run_on_a_finished_run(finished):
    outcome = pipeline("05_improvements", "--run", RUN)
    assert outcome.returncode == 0, outcome.stdout[-3_000:] + outcome.stderr[-3_000:]
    notebook = nbformat.read(finished[1] / "notebooks" / "05_improvements.ipynb", as_version=4)
    assert "not Jigsaw" in outputs_text(notebook)
    of_grid = [json.loads(path.read_text()) for path in (finished[1] / "grid" / "results").glob("*-1.json")]
    assert of_grid and not [result for result in of_grid if "test" in result]


@pytest.mark.slow
def test_the_demo_notebook_starts_its_page_on_this_machine(finished):
    outcome = pipeline("07_demo", "--run", RUN)
    assert outcome.returncode == 0, outcome.stdout[-3_000:] + outcome.stderr[-3_000:]
    assert re.search(r"also at http://127\.0\.0\.1:\d+/", outcome.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_the_solutions_of_the_exercises_run_below_their_notebook(finished, path, monkeypatch):
    for variable, value in {"PROFILE": "smoke", "RUN": RUN}.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells += [nbformat.v4.new_code_cell(code) for code in solutions(notebook)]
    client = NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}})
    client.execute()
    printed = str([cell.outputs for cell in notebook.cells[-len(solutions(notebook)) :]])
    assert "Not yet right" not in printed or path.stem == "06_common_mistakes"  # whose exercise plants a mistake


def test_a_notebook_that_fails_shows_no_outputs_of_an_earlier_run(tmp_path, monkeypatch):
    cells = [nbformat.v4.new_code_cell(source) for source in ("1 / 0", "'next'")]
    for cell in cells:
        cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="of another run")], 1
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "failing.ipynb")
    monkeypatch.setattr(tools.run_notebooks, "ROOT", tmp_path)
    run = Run("r", tmp_path / "run", PROFILES["smoke"], "separable", None, (1,))
    with pytest.raises(CellExecutionError):
        tools.run_notebooks.run_notebook("failing", run)
    written = nbformat.read(run.directory / "notebooks" / "failing.ipynb", as_version=4)
    assert [output.output_type for cell in written.cells for output in cell.outputs] == ["error"]


def test_a_notebook_without_its_input_says_which_one_to_run_first():
    name = f"{RUN}-empty"
    try:
        outcome = pipeline("02_layer_distillation", "--profile", "smoke", "--run", name)
        assert outcome.returncode == 1
        assert "run 01_data_preparation first" in outcome.stderr
    finally:
        shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--profile", "quik"], "Did you mean 'quick'?"),
        (["04_comparsion"], "Did you mean '04_comparison'?"),
        (["--jigsaw-dir", "no/such/folder", "--profile", "quick"], "JIGSAW_DIR=no/such/folder"),
    ],
)
def test_a_wrong_argument_gets_one_clear_line_and_no_traceback(arguments, message):
    outcome = pipeline(*arguments)
    assert outcome.returncode == 2 and message in outcome.stderr and "Traceback" not in outcome.stderr
