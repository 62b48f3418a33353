"""What is published is one finished run; its tables come from the published results alone."""

import os
import shutil
from dataclasses import replace

import nbformat
import pandas as pd
import pytest

import helpers.results
from helpers.config import PROFILES
from helpers.data import load_data
from helpers.results import published_results
from helpers.runs import PUBLISHED_RESULTS, ROOT, find_data_source, read_json, write_json
from tools import publish as publishing
from tools.publish import (
    BLOCKS,
    PAGES,
    between_markers,
    check_finished,
    data_facts,
    publish,
    publish_notebooks,
    renew_pages,
    with_tables,
)
from tools.run_notebooks import MORE_NOTEBOOKS, NOTEBOOKS


@pytest.fixture
def run(copied_run):
    """A finished run with executed notebooks, whose outputs are few: what the checks look at is there."""
    for name in NOTEBOOKS:
        write_executed(copied_run, name)
    return copied_run


def write_executed(run, name, text="", error=False):
    """Leaves a notebook in the run as if it had been executed there."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    text = text or f"run: {run.name}; comments: {run.data_label}\n"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in cells:
        cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text=text)], 1
    if error:
        cells[-1].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    path = run.directory / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)


def change_notebook(run, name, change):
    path = run.directory / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    change(notebook.cells)
    nbformat.write(notebook, path)


# --- what may be published -------------------------------------------------------------------------------------------


def test_a_finished_run_passes(run):
    assert set(check_finished(run).by_name) == set(run.profile.experiments)


def test_a_run_with_a_seed_missing_is_not_finished(run):
    with pytest.raises(FileNotFoundError, match=r"no result of teacher \(seed 2\)"):
        check_finished(replace(run, profile=replace(run.profile, seeds=(1, 2))))


def test_a_run_whose_notebook_was_not_run_is_not_finished(run):
    (run.directory / "notebooks" / "03_lora_fine_tuning.ipynb").unlink()
    with pytest.raises(FileNotFoundError, match="run 03_lora_fine_tuning first"):
        check_finished(run)


def test_a_run_whose_notebook_failed_is_not_finished(run):
    write_executed(run, "05_improvements", error=True)
    with pytest.raises(ValueError, match="05_improvements ended with an error"):
        check_finished(run)


def test_a_notebook_that_was_not_run_to_its_end_is_found(run):
    def stop_before_the_last(cells):
        last = [cell for cell in cells if cell.cell_type == "code"][-1]
        last.outputs, last.execution_count = [], None

    change_notebook(run, "03_lora_fine_tuning", stop_before_the_last)
    with pytest.raises(ValueError, match="03_lora_fine_tuning was not run to its end"):
        check_finished(run)


def test_a_notebook_that_was_changed_since_it_was_run_is_found(run):
    def add_a_word(cells):
        cells[0].source += " More."

    change_notebook(run, "02_layer_distillation", add_a_word)
    with pytest.raises(ValueError, match=r"02_layer_distillation.ipynb was changed since it was run; run it again"):
        check_finished(run)


def test_a_notebook_of_another_run_is_found(run):
    write_executed(run, "04_comparison", "run: quick-sample; comments: synthetic comments, not Jigsaw\n")
    with pytest.raises(ValueError, match="is mixed: its notebook 04_comparison was run on another run"):
        check_finished(run)


def test_a_result_that_is_newer_than_the_notebook_that_shows_it_is_found(run):
    later = (run.directory / "notebooks" / "04_comparison.ipynb").stat().st_mtime + 1
    os.utime(run.results_dir / "odd-1.json", (later, later))
    with pytest.raises(ValueError, match=r"is mixed: odd \(seed 1\) is newer than notebook 04_comparison"):
        check_finished(run)


def test_a_run_on_written_comments_is_not_published(run):
    with pytest.raises(ValueError, match="publish a run on the real comments"):
        publish(run)


# --- copying a run ---------------------------------------------------------------------------------------------------


@pytest.fixture
def allowed(run, monkeypatch):
    """The finished run as if its comments were real; its grid has one setting of the run and one of other comments."""
    monkeypatch.setattr(publishing, "check_real_comments", lambda run: None)
    grid = run.directory / "grid"
    for part in ("data", "results"):
        shutil.copytree(run.directory / part, grid / part)
    for name, data in (("odd-alpha_1.0", load_data(run).fingerprint), ("odd-alpha_0.9", "other comments")):
        result = read_json(grid / "results" / "odd-1.json")
        write_json(grid / "results" / f"{name}-1.json", result | {"inputs": result["inputs"] | {"data": data}})
        predictions = grid / "results" / "predictions"
        shutil.copy(predictions / "odd-1.parquet", predictions / f"{name}-1.parquet")
    return run


def test_a_run_is_published_whole_with_its_grid_and_the_facts_of_its_comments(allowed):
    publish(allowed)
    published, grid = published_results("smoke"), published_results("smoke/grid")
    assert set(published.by_name) == set(allowed.profile.experiments)
    assert "odd-alpha_1.0" in grid.by_name and "odd-alpha_0.9" not in grid.by_name
    table = pd.read_csv(helpers.results.PUBLISHED_RESULTS / "smoke" / "comparison.csv")
    assert table["experiment"].tolist() == list(published.by_name)
    facts = read_json(helpers.results.PUBLISHED_RESULTS / "smoke" / "data.json")
    data = load_data(allowed)
    assert {split: found["rows"] for split, found in facts.items()} == {name: len(r) for name, r in data.splits.items()}
    assert {split: found["toxic"] for split, found in facts.items()} == {name: data.positives(name) for name in facts}


def test_what_was_published_before_is_replaced_and_never_mixed(allowed):
    old = helpers.results.PUBLISHED_RESULTS / "smoke" / "lora-9.json"
    old.parent.mkdir(parents=True)
    old.touch()
    publish(allowed)
    assert not old.exists()


def test_a_run_that_cannot_be_copied_leaves_what_was_published(allowed, monkeypatch):
    old = helpers.results.PUBLISHED_RESULTS / "smoke" / "odd-1.json"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    (allowed.results_dir / "even-1.json").unlink()
    with pytest.raises(FileNotFoundError, match="no result of even"):
        publish(allowed)
    assert [path.name for path in old.parent.rglob("*")] == ["odd-1.json"] and old.read_text() == "old"


def test_notebooks_that_the_run_did_not_execute_are_shown_without_outputs(allowed, tmp_path, monkeypatch):
    shown = tmp_path / "shown"
    shutil.copytree(ROOT / "notebooks", shown / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    monkeypatch.setattr(publishing, "ROOT", shown)
    names = [name for name in (*NOTEBOOKS, *MORE_NOTEBOOKS[:-1]) if (shown / "notebooks" / f"{name}.ipynb").is_file()]
    monkeypatch.setattr(publishing, "SHOWN_NOTEBOOKS", names)
    publish_notebooks(allowed)
    for name in names:
        notebook = nbformat.read(shown / "notebooks" / f"{name}.ipynb", as_version=4)
        assert any(cell.get("outputs") for cell in notebook.cells) == (name in NOTEBOOKS), name


def test_the_published_facts_are_those_of_the_comments():
    sample = ROOT.parent / "shared" / "data" / "jigsaw"
    if not os.environ.get("JIGSAW_DIR") and not sample.is_dir():
        pytest.skip("the sample of real comments is not at hand")
    _, source = find_data_source(PROFILES["base"], os.environ.get("JIGSAW_DIR") or sample)
    assert data_facts(PROFILES["base"], source) == read_json(PUBLISHED_RESULTS / "base" / "data.json")


# --- the pages -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base():
    return published_results("base")


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_the_answer_has_a_row_per_answer_and_one_for_their_teacher(base):
    table = cells(BLOCKS["answer"](base))
    assert [row[0] for row in table[2:]] == [helpers.results.model_title(n) for n in ("odd", "even", "lora", "teacher")]
    assert table[2][1] == "0.792 ± 0.008"


def test_an_experiment_without_a_result_is_not_yet_run(base):
    rows = {row[0]: row[1:] for row in cells(BLOCKS["results"](base))}
    assert rows[helpers.results.model_title("odd_hard")] == ["not yet run", *["–"] * 5]
    assert rows[helpers.results.model_title("teacher")][0] == "0.070"


def test_the_verdicts_are_two_tables_with_true_minus_signs(base):
    primary, secondary = map(cells, BLOCKS["verdicts"](base).split("\n\n"))
    assert primary[2] == ["odd − even", "+0.026", "+0.012 to +0.041", "0.002", "0.021", "better"]
    assert [row[1] for row in secondary if row[0] == "even − teacher"] == ["−0.017"]


def test_a_page_without_a_tables_markers_stays_as_it_is(base):
    assert with_tables("no table", base) == "no table"
    assert between_markers("a <!-- x -->old<!-- /x --> b", "x", "new") == "a <!-- x -->\nnew\n<!-- /x --> b"


def test_the_tables_of_the_pages_are_those_of_the_published_results(base):
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES if (ROOT / page).is_file()]
    if not any("<!-- answer -->" in text for text in texts):
        pytest.skip("README.md has no table of the answer yet")
    assert all(sum(f"<!-- {name} -->" in text for text in texts) == 1 for name in BLOCKS)
    assert [with_tables(text, base) for text in texts] == texts


def test_renewing_the_pages_writes_tables_and_figures_and_needs_no_run(base, tmp_path, monkeypatch):
    def draw(name):
        return lambda *arguments: (arguments[-1] / f"{name}.png").write_bytes(name.encode())

    for name in ("verdicts", "training_loss", "test_metrics"):
        monkeypatch.setattr(publishing.plots, name, draw(name))
    monkeypatch.setattr(publishing, "ROOT", tmp_path)
    (tmp_path / "README.md").write_text("<!-- costs --><!-- /costs -->", encoding="utf-8")
    renew_pages(base)
    assert "| Teacher" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "figures" / "verdicts.png").read_bytes() == b"verdicts"
    assert (tmp_path / "image-1.png").read_bytes() == b"test_metrics"
