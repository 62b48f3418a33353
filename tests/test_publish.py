"""What is published is one finished run; its tables come from the published results alone."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest

import helpers.results
from helpers.config import PROFILES
from helpers.data import load_data
from helpers.results import model_title, published_results
from helpers.runs import PUBLISHED_RESULTS, ROOT, read_json, write_json
from tools import publish as publishing
from tools.publish import BLOCKS, PAGES, check_finished, data_facts, publish, publish_notebooks, with_tables
from tools.run_notebooks import NOTEBOOKS, read_notebook


@pytest.fixture
def run(copied_run):
    """A finished run with executed notebooks, whose outputs are few: what the checks look at is there."""
    for name in NOTEBOOKS:
        write_executed(copied_run, name)
    return copied_run


def write_executed(run, name, text="", error=False, unfinished=False, changed=False):
    """Leaves a notebook in the run as if it had been executed there."""
    notebook = read_notebook(name)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        text = text or f"run: {run.name}; comments: {run.data_label}\n"
        cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text=text)], 1
    if error:
        cells[-1].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    if unfinished:
        cells[-1].execution_count = None
    if changed:
        notebook.cells[0].source += " More."
    path = run.directory / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)


def test_a_run_with_a_seed_missing_is_not_finished(run):
    with pytest.raises(FileNotFoundError, match=r"no result of teacher \(seed 2\)"):
        check_finished(replace(run, profile=replace(run.profile, seeds=(1, 2))))


def test_a_run_whose_notebook_was_not_run_is_not_finished(run):
    (run.directory / "notebooks" / "03_lora_fine_tuning.ipynb").unlink()
    with pytest.raises(FileNotFoundError, match="run 03_lora_fine_tuning first"):
        check_finished(run)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"error": True}, "ended with an error"),
        ({"unfinished": True}, "was not run to its end"),
        ({"changed": True}, "was changed since it was run; run it again"),
        ({"text": "run: quick-sample; comments: synthetic comments, not Jigsaw\n"}, "was run on another run"),
    ],
)
def test_a_notebook_that_does_not_show_the_run_is_found(run, fault, message):
    write_executed(run, "05_improvements", **fault)
    with pytest.raises(ValueError, match=f"notebook 05_improvements of run '{run.name}' {message}"):
        check_finished(run)


def test_a_result_that_is_newer_than_the_notebook_that_shows_it_is_found(run):
    later = (run.directory / "notebooks" / "04_comparison.ipynb").stat().st_mtime + 1
    os.utime(run.results_dir / "odd-1.json", (later, later))
    with pytest.raises(ValueError, match=r"is mixed: odd \(seed 1\) is newer than notebook 04_comparison"):
        check_finished(run)


def test_a_run_on_synthetic_comments_is_not_published(run):
    with pytest.raises(ValueError, match="publish a run on the real comments"):
        publish(run)


@pytest.fixture
def allowed(run, monkeypatch):
    """The finished run as if its comments were real; its grid has one setting of the run and one of other comments."""
    monkeypatch.setattr(publishing, "check_real_comments", lambda run: None)
    results = run.directory / "grid" / "results"
    for part in ("data", "results"):
        shutil.copytree(run.directory / part, run.directory / "grid" / part)
    for name, data in (("odd-alpha_1.0", load_data(run).fingerprint), ("odd-alpha_0.9", "other comments")):
        result = read_json(results / "odd-1.json")
        write_json(results / f"{name}-1.json", result | {"inputs": result["inputs"] | {"data": data}})
        shutil.copy(results / "predictions" / "odd-1.parquet", results / "predictions" / f"{name}-1.parquet")
    return run


def test_a_run_is_published_whole_with_its_grid_and_the_facts_of_its_comments(allowed):
    publish(allowed)
    published, grid = published_results("smoke"), published_results("smoke/grid")
    assert set(published.by_name) == set(allowed.profile.experiments)
    assert "odd-alpha_1.0" in grid.by_name and "odd-alpha_0.9" not in grid.by_name
    facts, data = read_json(helpers.results.PUBLISHED_RESULTS / "smoke" / "data.json"), load_data(allowed)
    for split, found in facts.items():
        assert (found["rows"], found["toxic"]) == (len(data.splits[split]), data.labels(split).sum())


def test_what_was_published_before_is_replaced_and_never_mixed(allowed):
    old = helpers.results.PUBLISHED_RESULTS / "smoke" / "lora-9.json"
    old.parent.mkdir(parents=True)
    old.touch()
    publish(allowed)
    assert not old.exists()


def test_a_run_that_cannot_be_copied_leaves_what_was_published(allowed):
    old = helpers.results.PUBLISHED_RESULTS / "smoke" / "odd-1.json"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    (allowed.results_dir / "even-1.json").unlink()
    with pytest.raises(FileNotFoundError, match="no result of even"):
        publish(allowed)
    assert [path.name for path in old.parent.rglob("*")] == ["odd-1.json"] and old.read_text() == "old"


def test_notebooks_that_the_run_did_not_execute_are_shown_without_outputs(allowed, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "ROOT", tmp_path)
    publish_notebooks(allowed)
    for path in (tmp_path / "notebooks").iterdir():
        cells = nbformat.read(path, as_version=4).cells
        assert any(cell.get("outputs") for cell in cells) == (path.stem in NOTEBOOKS), path.stem


def test_the_published_facts_are_those_of_the_comments():
    directory = os.environ.get("JIGSAW_DIR") or ROOT.parent / "shared" / "data" / "jigsaw"
    if not os.path.isdir(directory):
        pytest.skip("the sample of real comments is not at hand")
    assert data_facts(PROFILES["base"], Path(directory)) == read_json(PUBLISHED_RESULTS / "base" / "data.json")


@pytest.fixture(scope="module")
def base():
    return published_results("base")


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_tables_hold_the_published_numbers_and_say_what_was_not_run(base):
    answer, scores = cells(BLOCKS["answer"](base)), {row[0]: row[1:] for row in cells(BLOCKS["results"](base))}
    assert [row[0] for row in answer[2:]] == [model_title(name) for name in ("odd", "even", "lora", "teacher")]
    assert answer[2][1] == "0.792 ± 0.008" and scores[model_title("teacher")][0] == "0.070"
    assert scores[model_title("odd_hard")][-1] == "not yet run"


def test_the_verdicts_are_two_tables_with_true_minus_signs(base):
    primary, secondary = map(cells, BLOCKS["verdicts"](base).split("\n\n"))
    assert primary[2] == ["odd − even", "+0.026", "+0.012 to +0.041", "0.002", "0.021", "better"]
    assert [row[1] for row in secondary if row[0] == "even − teacher"] == ["−0.017"]


def test_the_tables_of_the_pages_are_those_of_the_published_results(base):
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    assert all(sum(f"<!-- {name} -->" in text for text in texts) == 1 for name in BLOCKS)
    assert [with_tables(text, base) for text in texts] == texts


def test_the_figures_of_the_report_are_drawn_from_what_is_published(base, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "ROOT", tmp_path)
    (tmp_path / "figures").mkdir()
    publishing.draw_figures(base)
    assert all((tmp_path / name).stat().st_size > 10_000 for name in publishing.FIGURES)
