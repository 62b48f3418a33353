"""The notebooks: their form, and their run from the command line in the `smoke` profile."""

import json
import re
import shutil
import signal
import sys
import tomllib
from xml.etree import ElementTree

import nbformat
import pytest
from conftest import run_module
from datasets import load_from_disk
from nbclient import NotebookClient

import helpers.runs
import tools.run_notebooks
from helpers.config import PROFILES
from helpers.layers import EVEN_LAYERS, ODD_LAYERS
from helpers.runs import ROOT
from helpers.saved import result_path
from tools.run_notebooks import ALL_NOTEBOOKS, NOTEBOOKS, read_notebook

COMMITTED = {name: read_notebook(name) for name in ALL_NOTEBOOKS}
RUN = "test-notebooks"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def prose(notebook) -> str:
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def outputs_text(notebook) -> str:
    return "\n".join(json.dumps(cell.outputs, ensure_ascii=False) for cell in code_cells(notebook))


def solutions(notebook) -> list[str]:
    """The code of the exercises' solutions, which stands folded in the last cell."""
    return re.findall(r"```python\n(.*?)```", notebook.cells[-1].source, flags=re.S)


def counts_up(notebook) -> bool:
    return [cell.execution_count for cell in code_cells(notebook)] == [*range(1, len(code_cells(notebook)) + 1)]


def those(rule) -> list[str]:
    """The notebooks for which the rule does not hold."""
    return [name for name, notebook in COMMITTED.items() if not rule(notebook)]


def test_committed_notebooks_are_valid():
    for notebook in COMMITTED.values():
        nbformat.validate(notebook)


def test_committed_outputs_are_of_one_run_in_order():
    """The first four always; a later one may be committed without any output."""
    without = {name for name in ALL_NOTEBOOKS if not any(cell.execution_count for cell in code_cells(COMMITTED[name]))}
    assert set(those(counts_up)) <= without - set(NOTEBOOKS)


def test_committed_outputs_hold_no_error():
    assert those(lambda notebook: '"output_type": "error"' not in outputs_text(notebook)) == []


def test_committed_notebooks_hold_the_kernel_python3_and_no_metadata_of_widgets_or_of_a_runner():
    assert those(lambda notebook: notebook.metadata.kernelspec.name == "python3") == []
    assert those(lambda notebook: set(notebook.metadata) <= {"kernelspec", "language_info"}) == []
    assert those(lambda notebook: not any(cell.metadata for cell in notebook.cells)) == []


def test_committed_notebooks_hold_no_path_of_a_machine():
    path = re.compile(r"/(home|root|Users|work|tmp)/[\w./-]+|[\"'](/content|[A-Z]:\\)")
    assert those(lambda notebook: not path.search(outputs_text(notebook))) == []
    assert those(lambda notebook: not any(path.search(cell.source) for cell in code_cells(notebook))) == []


def test_committed_notebooks_stay_below_500_kb():
    assert [name for name in ALL_NOTEBOOKS if (ROOT / "notebooks" / f"{name}.ipynb").stat().st_size >= 500_000] == []


def test_the_first_cell_is_the_same_in_all_with_the_repositorys_address():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    first_cell = code_cells(COMMITTED[NOTEBOOKS[0]])[0].source
    assert f'REPOSITORY = "{project["urls"]["Repository"]}"' in first_cell
    assert those(lambda notebook: code_cells(notebook)[0].source == first_cell) == []


def test_the_first_and_the_last_cell_end_with_links_to_the_neighbours():
    for place, name in enumerate(ALL_NOTEBOOKS):
        last_line = COMMITTED[name].cells[0].source.splitlines()[-1]
        neighbours = ALL_NOTEBOOKS[:place][-1:] + ALL_NOTEBOOKS[place + 1 :][:1]
        assert re.findall(r"\]\((\w+).ipynb\)", last_line) == list(neighbours)
        assert COMMITTED[name].cells[-1].source.splitlines()[-1] == last_line


def test_a_code_cell_is_short():
    """The first cell and the training loop, which is the lesson itself, are longer."""
    cells = [cell.source for notebook in COMMITTED.values() for cell in code_cells(notebook)[1:]]
    assert [source for source in cells if len(source.splitlines()) > 17 and "def distil(" not in source] == []


def test_the_expected_time_on_a_cpu_and_a_t4_stands_at_the_top():
    assert those(lambda notebook: re.search("2 CPU cores.*T4", notebook.cells[0].source, flags=re.S)) == []


def test_a_notebook_closes_with_a_summary_and_exercises_whose_solutions_are_folded():
    for name, notebook in COMMITTED.items():
        last = notebook.cells[-1].source
        assert last.startswith("## Summary") and "## Exercises" in last, name
        exercises = re.findall(r"^\*\*\d\.\*\*", last, flags=re.M)
        assert 2 <= len(exercises) <= 3, name
        assert len(solutions(notebook)) == len(exercises) == last.count("<details><summary>Solution</summary>"), name


def test_every_prediction_that_a_reader_is_asked_for_is_answered_afterwards():
    for name, notebook in COMMITTED.items():
        asked, answered = (
            [found.start() for found in re.finditer(mark, prose(notebook))]
            for mark in ("Predict before you look", r"\*\*Answer")
        )
        assert len(answered) >= len(asked), name
        assert all(question < answer for question, answer in zip(asked, answered, strict=False)), name


def test_links_between_notebooks_lead_somewhere():
    targets = {target for notebook in COMMITTED.values() for target in re.findall(r"\]\(([^)#:]+)\)", prose(notebook))}
    assert targets and [target for target in targets if not (ROOT / "notebooks" / target).is_file()] == []


def test_every_drawing_is_shown_by_a_notebook():
    code = "\n".join(cell.source for notebook in COMMITTED.values() for cell in code_cells(notebook))
    drawings = [path.stem for path in (ROOT / "figures").glob("*.svg")]
    assert drawings and [name for name in drawings if f'"{name}.png"' not in code] == []


def test_the_drawn_students_stand_beside_the_layers_that_they_copy():
    drawing = ElementTree.parse(ROOT / "figures" / "drawing_layer_copy.svg")

    def rows(model) -> dict[str, str]:
        boxes = drawing.findall(f".//*[@id='copy-{model}']/{{*}}g")
        return {box.find("{*}rect").get("y"): box.find("{*}text").text for box in boxes}

    for student, layers in (("odd", ODD_LAYERS), ("even", EVEN_LAYERS)):
        beside = [rows("teacher")[y] for y, name in rows(student).items() if name.startswith("layer")]
        assert beside == [f"layer {layer}" for layer in layers]


def run_notebooks(*arguments):
    return run_module("tools.run_notebooks", *arguments)


@pytest.fixture(scope="module")
def finished():
    """Notebooks 01 to 04b executed with smoke and two seeds: (the process's outcome, the run's folder, notebooks)."""
    directory = ROOT / "runs" / RUN
    shutil.rmtree(directory, ignore_errors=True)
    outcome = run_notebooks(
        "--profile", "smoke", "--run", RUN, "--seeds", "1,11"
    )  # of seed 2 the teacher learns nothing: its start is perfect
    assert outcome.returncode == 0, outcome.stdout[-3_000:] + outcome.stderr[-3_000:]
    yield outcome, directory, [nbformat.read(directory / "notebooks" / f"{n}.ipynb", as_version=4) for n in NOTEBOOKS]
    shutil.rmtree(directory, ignore_errors=True)


def test_every_experiment_of_the_profile_is_trained_with_every_seed_asked_for(finished):
    profile, baselines = PROFILES["smoke"], {"majority", "tfidf"}
    wanted = {(name, seed) for name in profile.experiments for seed in ((1,) if name in baselines else (1, 11))}
    missing = [key for key in wanted if not result_path(finished[1] / "results", *key).is_file()]
    assert missing == []


def test_the_terminal_shows_which_cell_runs_the_bars_and_where_the_files_lie(finished):
    shown = finished[0].stdout
    assert "[02_layer_distillation] cell 2 of" in shown
    assert "teacher, seed 1" in shown and "step/s" in shown
    end = shown[-2_500:]
    assert "average_precision" in end and "Even student" in end and f"runs/{RUN}/notebooks/" in end


def test_an_executed_notebook_is_in_order_and_holds_nothing_of_its_runner(finished):
    for notebook in finished[2]:
        assert counts_up(notebook) and notebook.metadata.kernelspec.name == "python3"
        assert not any(cell.metadata for cell in notebook.cells) and "papermill" not in notebook.metadata


def test_an_executed_notebook_shows_no_warning_and_has_a_page_beside_it(finished):
    assert [notebook for notebook in finished[2] if '"name": "stderr"' in outputs_text(notebook)] == []
    assert all((finished[1] / "notebooks" / f"{name}.html").stat().st_size > 10_000 for name in NOTEBOOKS)


def test_every_table_of_a_run_without_jigsaw_says_so(finished):
    pages = [
        out.get("data", {}).get("text/html", "") for n in finished[2] for cell in code_cells(n) for out in cell.outputs
    ]
    captions = [caption for page in pages for caption in re.findall(r"<caption>(.*?)</caption>", page)]
    said = re.compile("not Jigsaw|[Pp]ublished|tiny|public solutions")
    assert captions and [caption for caption in captions if caption and not said.search(caption)] == []


def test_executed_notebooks_show_no_comment(finished):
    splits = load_from_disk(str(finished[1] / "data"))
    comments = {text[:40] for split in splits.values() for text in split["comment_text"] if len(text) > 20}
    shown = "\n".join(map(outputs_text, finished[2]))
    assert [text for text in comments if text in shown] == []


def test_run_again_it_trains_nothing(finished):
    def times():
        return {path.name: json.loads(path.read_text())["finished"] for path in finished[1].glob("results/*.json")}

    before = times()
    outcome = run_notebooks("02_layer_distillation", "03_lora_fine_tuning", "--run", RUN)
    assert outcome.returncode == 0 and "step/s" not in outcome.stdout
    assert times() == before


@pytest.mark.slow
def test_the_improvements_run_on_a_finished_run_and_score_no_grid_on_test(finished):
    for outcome in (run_module("helpers.improvements", "--run", RUN), run_notebooks("05_improvements", "--run", RUN)):
        assert outcome.returncode == 0, outcome.stdout[-3_000:] + outcome.stderr[-3_000:]
    of_grid = [json.loads(path.read_text()) for path in (finished[1] / "grid" / "results").glob("*-1.json")]
    assert of_grid and not [result for result in of_grid if "test" in result]


@pytest.mark.slow
def test_the_demo_notebook_starts_its_page_on_this_machine(finished):
    outcome = run_notebooks("07_demo", "--run", RUN)
    assert outcome.returncode == 0, outcome.stdout[-3_000:] + outcome.stderr[-3_000:]
    assert re.search(r"also at http://127\.0\.0\.1:\d+/", outcome.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL_NOTEBOOKS)
def test_the_solutions_of_the_exercises_run_below_their_notebook(finished, name, monkeypatch):
    for variable, value in {"PROFILE": "smoke", "RUN": RUN}.items():
        monkeypatch.setenv(variable, value)
    notebook = read_notebook(name)
    added = [nbformat.v4.new_code_cell(code) for code in solutions(notebook)]
    notebook.cells += added
    NotebookClient(notebook, resources={"metadata": {"path": str(ROOT / "notebooks")}}).execute()
    printed = str([cell.outputs for cell in added])
    assert "Not yet right" not in printed or name == "06_common_mistakes"  # whose exercise plants a mistake


@pytest.fixture
def run_cells(tmp_path, monkeypatch, capsys):
    """A function that runs a notebook of these cells: the exit code, what the terminal shows, the notebook left."""

    def run(*sources):
        cells = [nbformat.v4.new_code_cell(source, execution_count=7) for source in sources]
        cells[0].outputs = [nbformat.v4.new_output("stream", text="of another run")]
        (tmp_path / "notebooks").mkdir()
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "notebooks" / "tried.ipynb")
        for module in (helpers.runs, tools.run_notebooks):
            monkeypatch.setattr(module, "ROOT", tmp_path)
        monkeypatch.setattr(tools.run_notebooks, "ALL_NOTEBOOKS", ("tried",))
        code = tools.run_notebooks.main(["tried", "--profile", "smoke", "--run", "r"])
        written = nbformat.read(tmp_path / "runs" / "r" / "notebooks" / "tried.ipynb", as_version=4)
        return code, "".join(capsys.readouterr()), written

    return run


def test_a_failed_cell_leaves_the_notebook_so_far_with_its_error_and_nothing_of_an_earlier_run(run_cells):
    code, shown, notebook = run_cells("1 / 0", "'next'")
    assert code == 1 and "ZeroDivisionError" in shown and "runs/r/notebooks/" in shown
    assert [output.output_type for cell in notebook.cells for output in cell.outputs] == ["error"]


def test_a_kernel_that_dies_is_said(run_cells):
    code, shown, notebook = run_cells("print('before')", "import os; os._exit(9)")
    assert code == 1 and "the notebook's kernel died" in shown and "Traceback" not in shown
    assert notebook.cells[0].outputs[0].text == "before\n"


@pytest.mark.skipif(sys.platform == "win32", reason="the signal would end the whole process")
def test_ctrl_c_stops_the_notebook_and_says_how_to_go_on(run_cells):
    press = "import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    try:
        code, shown, _ = run_cells("print('before')", press)
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130 and "same command" in shown


def test_no_other_python_of_the_machine_runs_a_notebook(run_cells, tmp_path, monkeypatch):
    other = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    other.parent.mkdir(parents=True)
    other.write_text('{"argv": ["/bin/false", "{connection_file}"], "display_name": "Python 3", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    code, shown, _ = run_cells("import sys\nprint(sys.executable)")
    assert code == 0 and sys.executable in shown


def test_a_notebook_without_its_input_says_which_one_to_run_first():
    name = f"{RUN}-empty"
    try:
        outcome = run_notebooks("02_layer_distillation", "--profile", "smoke", "--run", name)
        assert outcome.returncode == 1
        assert "run 01_data_preparation first" in outcome.stderr
    finally:
        shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)


def test_a_wrong_argument_gets_one_clear_line(capsys):
    assert tools.run_notebooks.main(["04_comparsion"]) == 2
    assert "Did you mean '04_comparison'?" in capsys.readouterr().err
