"""The notebooks: their form, and their run from the command line in the `smoke` profile."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import helpers.pipeline
from helpers.config import PROFILES
from helpers.pipeline import MORE_NOTEBOOKS, NOTEBOOKS, colab_link, first_cell, navigation
from helpers.runs import ROOT, Run

PATHS = [ROOT / "notebooks" / f"{name}.ipynb" for name in (*NOTEBOOKS, *MORE_NOTEBOOKS)]
RUN = "test-notebooks"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


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


@pytest.mark.parametrize("path", PATHS, ids=[path.stem for path in PATHS])
def test_colab_opens_a_file_that_is_there_in_the_repository_of_the_first_cell(path):
    owner_and_name, file = colab_link(path.stem).split("/github/")[1].split("/blob/main/")
    assert f'"https://github.com/{owner_and_name}"' in first_cell()
    assert (ROOT / file).is_file()


def test_a_code_cell_is_short(notebook):
    long = [cell.source.splitlines()[0] for cell in code_cells(notebook) if len(cell.source.splitlines()) > 20]
    assert not long


def test_the_expected_time_on_a_cpu_and_a_t4_stands_at_the_top(notebook):
    top = notebook.cells[0].source
    assert "2 CPU cores" in top and "T4" in top


def test_a_notebook_closes_with_summary_and_what_to_try_next(notebook):
    last = notebook.cells[-1].source
    assert last.startswith("## Summary") and "**Try next.**" in last


def test_every_section_begins_with_its_question(notebook):
    sections = [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "markdown" and re.match(r"## \d", cell.source) and "Discussion" not in cell.source
    ]
    assert sections and all("**Question:**" in text or "Predict before you look" in text for text in sections)


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
        [sys.executable, "-m", "helpers.pipeline", *arguments],
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
    assert "average_precision" in end and "lora_6" in end and f"runs/{RUN}/notebooks/" in end


def test_an_executed_notebook_counts_its_cells_from_one(finished):
    for notebook in executed(finished[1]):
        counts = [cell.execution_count for cell in code_cells(notebook)]
        assert counts == list(range(1, len(counts) + 1))


def test_an_executed_notebook_has_a_page_beside_it(finished):
    for name in NOTEBOOKS:
        assert (finished[1] / "notebooks" / f"{name}.html").stat().st_size > 10_000


def test_every_table_of_a_run_without_jigsaw_says_so(finished):
    for notebook in executed(finished[1]):
        for cell in code_cells(notebook):
            for output in cell.outputs:
                page = output.get("data", {}).get("text/html", "")
                assert "<caption>" not in page or "not Jigsaw" in page or "(published, Jigsaw)" in page


def test_executed_notebooks_show_no_comment(finished):
    from datasets import load_from_disk

    splits = load_from_disk(str(finished[1] / "data"))
    comments = {text[:40] for split in splits.values() for text in split["comment_text"] if len(text) > 20}
    for notebook in executed(finished[1]):
        shown = outputs_text(notebook)
        assert not [text for text in comments if text in shown]


def test_the_comparison_file_has_the_promised_columns(finished):
    table = pd.read_csv(finished[1] / "results" / "comparison.csv")
    promised = [
        "experiment",
        "seeds",
        "layers",
        "parameters",
        "trainable_parameters",
        "training_loss",
        "validation_average_precision",
        "accuracy",
        "f1",
        "precision",
        "recall",
        "roc_auc",
        "average_precision",
        "training_seconds",
        "prerequisite_seconds",
        "peak_memory_bytes",
        "latency_ms",
        "bytes",
    ]
    assert [column for column in promised if column not in table] == []
    assert table.set_index("experiment")["layers"]["odd"] == "1,3,5,7,9,11"


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


# What a reader does who tries the questions at a notebook's end: cells changed (text, replacement), one cell appended.
# Two of them change a file of helpers/, which a test should not.
TRIES = {
    "01_data_preparation": (
        [],
        """print(baselines[1]["validation"]["average_precision"])
assert (run.results_dir / "tfidf-1.json").is_file()
lengths = pd.Series(data.splits["train"]["tokens"][:])
assert (lengths > run.profile.max_length).mean() >= (lengths > 2 * run.profile.max_length).mean()""",
    ),
    "02_layer_distillation": (
        [("(1.0, 2.0, 4.0)}, run)", "(1.0, 2.0, 4.0, 8.0)}, run)")],
        """first = copy_layers(load_teacher(seed, run)[0], (1, 2, 3, 4, 5, 6))
logits = predict(first, data.splits["validation"], label="first six")
print(average_precision_score(data.labels("validation"), toxic_probability(logits.numpy())))""",
    ),
    "03_lora_fine_tuning": (
        [],
        """fresh = load_model(find_pretrained(profile.pretrained), seed)
assert lora_parameters(fresh, 2) < lora_parameters(fresh, 32)
one = add_adapters(fresh, rank=profile.lora_rank, **settings, targets=["query"])
assert (predict(one, rows) - before).abs().max() < 1e-5
assert count_parameters(one)[1] < trainable""",
    ),
    "04_comparison": (
        [('worst_errors(results, "odd", run)', 'worst_errors(results, "odd", run, show_comments=True)')],
        """from helpers.evaluation import calibration, score
import numpy as np
for name in results.by_name:
    for metric in ("f1", "average_precision"):
        print(np.mean([score(seen, results.labels(), 0.5)[metric] for seen in results.probabilities(name)]))
seed = run.seeds[0]
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
logits, labels = results.logits("odd", seed, "validation"), results.labels("validation")
loss = lambda t: -log_softmax(logits / t, axis=1)[np.arange(len(labels)), labels].mean()
best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded").x
for split in ("validation", "test"):
    scaled = softmax(results.logits("odd", seed, split) / best, axis=1)[:, 1]
    print(calibration(results.labels(split), scaled))""",
    ),
    "05_improvements": (
        [],
        """from helpers.improvements import grid_run
from helpers.experiments import load_teacher, prepare, run_experiment
from helpers.layers import copy_layers
grid = grid_run(run)
data = prepare(grid)
run_experiment("teacher", grid.seeds[0], grid)
teacher, _ = load_teacher(grid.seeds[0], grid)
from sklearn.metrics import average_precision_score
from helpers.evaluation import toxic_probability
from helpers.training import predict
for layers in ((1, 2, 3, 4, 5, 12), selection(steps)):
    logits = predict(copy_layers(teacher, layers), data.splits["validation"], label="chosen")
    print(average_precision_score(data.labels("validation"), toxic_probability(logits.numpy())))""",
    ),
    "06_common_mistakes": (
        [
            (
                "students, distilled = {}, {}",
                'train_briefly("teacher", "taught at last", teachers["untrained teacher"], data, run)\n'
                "students, distilled = {}, {}",
            ),
            ("r=8)  # no task type", 'r=8, modules_to_save=["classifier"])'),
            (
                "    trained = count_parameters(model)[1]",
                "    trained = count_parameters(model)[1]\n    assert trained == formula",
            ),
        ],
        "forget(run)",
    ),
    "07_demo": (
        [("You are a complete idiot", "You are not a complete idiot")],
        """show_table(side_by_side(models, "You are a complete id**t"), "One comment", run)
low, high = (model.probabilities([text])[0] for text in (comment, comment.upper()))
assert low == high
page.close()""",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIES)
def test_what_a_notebooks_last_questions_ask_for_works_when_it_is_tried(finished, name, monkeypatch):
    for variable, value in {"PROFILE": "smoke", "RUN": RUN}.items():
        monkeypatch.setenv(variable, value)
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    changes, appended = TRIES[name]
    for text, replacement in changes:
        [cell] = [cell for cell in code_cells(notebook) if text in cell.source]
        cell.source = cell.source.replace(text, replacement)
    notebook.cells.append(nbformat.v4.new_code_cell(appended))
    NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()


def test_a_notebook_that_fails_shows_no_outputs_of_an_earlier_run(tmp_path, monkeypatch):
    cells = [nbformat.v4.new_code_cell(source) for source in ("1 / 0", "'next'")]
    for cell in cells:
        cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text="of another run")], 1
    (tmp_path / "notebooks").mkdir()
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "failing.ipynb")
    monkeypatch.setattr(helpers.pipeline, "ROOT", tmp_path)
    run = Run("r", tmp_path / "run", PROFILES["smoke"], "separable", None, (1,))
    with pytest.raises(CellExecutionError):
        helpers.pipeline.run_notebook("failing", run)
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
