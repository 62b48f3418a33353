"""What is shown is one finished run; what is handed in is the student's own, and works elsewhere."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from dataclasses import replace
from html.parser import HTMLParser
from urllib.parse import unquote

import nbformat
import pandas as pd
import pytest

import helpers.results
from helpers import publishing, report
from helpers.pipeline import MORE_NOTEBOOKS, NOTEBOOKS
from helpers.publishing import check_finished, check_own, cover, main, publish, publish_beside, submission
from helpers.results import load_results, write_comparison
from helpers.runs import ROOT, write_file, write_json


@pytest.fixture
def run(copied_run):
    """A finished run with executed notebooks, whose cells are few: what the checks look at is there."""
    write_comparison(load_results(copied_run), copied_run)
    for name in NOTEBOOKS:
        write_executed(copied_run, name, f"run: {copied_run.name}; comments: {copied_run.data_label}\n")
    return copied_run


def write_executed(run, name, text, error=False):
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [nbformat.v4.new_output("stream", text=text)], 1
    if error:
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        cells[-1].outputs = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]
    path = run.directory / "notebooks" / f"{name}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)


# --- what may be shown -----------------------------------------------------------------------------------------------


def test_a_finished_run_passes(run):
    assert set(check_finished(run).by_name) == set(run.profile.experiments)


def test_a_run_without_an_experiment_is_not_finished(run):
    (run.results_dir / "even-1.json").unlink()
    with pytest.raises(FileNotFoundError, match="no result of even: run 02_layer_distillation first"):
        check_finished(run)


def test_a_run_with_a_seed_missing_is_not_finished(run):
    with pytest.raises(FileNotFoundError, match=r"no result of teacher \(seed 2\)"):
        check_finished(replace(run, profile=replace(run.profile, seeds=(1, 2))))


def test_a_run_whose_notebook_was_not_run_is_not_finished(run):
    (run.directory / "notebooks" / "03_lora_fine_tuning.ipynb").unlink()
    with pytest.raises(FileNotFoundError, match="run 03_lora_fine_tuning first"):
        check_finished(run)


def test_a_run_whose_notebook_failed_is_not_finished(run):
    write_executed(run, "02_layer_distillation", f"run: {run.name}; comments: {run.data_label}\n", error=True)
    with pytest.raises(ValueError, match="02_layer_distillation ended with an error"):
        check_finished(run)


def test_a_notebook_that_was_not_run_to_its_end_is_found(run):
    path = run.directory / "notebooks" / "03_lora_fine_tuning.ipynb"
    notebook = nbformat.read(path, as_version=4)
    last = [cell for cell in notebook.cells if cell.cell_type == "code"][-1]
    last.outputs, last.execution_count = [], None
    nbformat.write(notebook, path)
    with pytest.raises(ValueError, match="03_lora_fine_tuning was not run to its end"):
        check_finished(run)


def test_a_notebook_that_was_changed_since_it_was_run_is_found(run):
    path = run.directory / "notebooks" / "02_layer_distillation.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[0].source += " More."
    nbformat.write(notebook, path)
    with pytest.raises(ValueError, match=r"02_layer_distillation.ipynb was changed since it was run; run it again"):
        check_finished(run)


def test_the_notebooks_on_improvements_and_mistakes_are_checked_where_they_were_run(run):
    write_executed(run, "05_improvements", f"run: {run.name}; comments: {run.data_label}\n", error=True)
    with pytest.raises(ValueError, match="05_improvements ended with an error"):
        check_finished(run)


def test_a_notebook_of_another_run_is_found(run):
    write_executed(run, "04_comparison", "run: quick-sample; comments: written sample, not Jigsaw\n")
    with pytest.raises(ValueError, match="is mixed: its notebook 04_comparison was run on another run"):
        check_finished(run)


def test_a_comparison_of_other_results_is_found(run):
    path = run.results_dir / "comparison.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], *reversed(lines[1:])]))
    with pytest.raises(ValueError, match="is mixed: its notebook 04 was run on other results"):
        check_finished(run)


def test_a_run_on_written_comments_is_not_published(run):
    with pytest.raises(ValueError, match="publish a run on the real comments"):
        publish(run)


def test_an_unfinished_run_is_not_published(run, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "ROOT", tmp_path / "shown")
    monkeypatch.setattr(publishing, "check_real_comments", lambda run: None)
    (run.results_dir / "even-1.json").unlink()
    with pytest.raises(FileNotFoundError, match="no result of even"):
        publish(run)
    assert not (tmp_path / "shown").exists()


def test_a_run_beside_is_published_with_every_seed_or_when_told_so(run, tmp_path, monkeypatch):
    for module, name in ((publishing, "ROOT"), (helpers.results, "PUBLISHED_RESULTS")):
        monkeypatch.setattr(module, name, tmp_path / "shown")
    for name in ("check_real_comments", "write_report"):
        monkeypatch.setattr(publishing, name, lambda _: None)
    half = replace(run, profile=replace(run.profile, name="base", seeds=(1, 2)))
    with pytest.raises(FileNotFoundError, match=r"no result of teacher \(seed 2\).*ANYWAY=1"):
        publish_beside(half)
    assert not (tmp_path / "shown").exists()
    publish_beside(half, anyway=True)
    assert (tmp_path / "shown" / "results" / "base" / "odd-1.json").is_file()


def test_told_so_anything_with_a_result_of_each_is_published(run, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "ROOT", tmp_path / "shown")
    monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", tmp_path / "shown" / "results")
    monkeypatch.setattr(publishing, "write_report", lambda root: None)
    for name in (*publishing.REPORT_FIGURES.values(), "verdicts.png"):
        run.figures_dir.mkdir(exist_ok=True)
        (run.figures_dir / name).write_bytes(b"picture")
    for name in ("notebooks", "figures"):
        (tmp_path / "shown" / name).mkdir(parents=True)
    (tmp_path / "shown" / "figures" / "of_another_run.png").touch()
    for name in (*NOTEBOOKS, *MORE_NOTEBOOKS):
        shutil.copy(ROOT / "notebooks" / f"{name}.ipynb", tmp_path / "shown" / "notebooks")
    publish(run, anyway=True)
    shown = {str(path.relative_to(tmp_path / "shown")) for path in (tmp_path / "shown").rglob("*") if path.is_file()}
    assert {"image.png", "image-1.png", "figures/verdicts.png", "results/run.json", "results/odd-1.json"} < shown
    assert {"results/predictions/odd-1.parquet", "results/comparison.csv", "notebooks/04_comparison.ipynb"} < shown
    assert "figures/of_another_run.png" not in shown


def test_the_published_comparison_is_made_from_the_published_results(run, tmp_path):
    (run.results_dir / "comparison.csv").write_text("of other results")
    publishing.copy_comparison(run, tmp_path)
    assert len(pd.read_csv(tmp_path / "results" / "comparison.csv")) == len(run.profile.experiments)


@pytest.mark.parametrize(
    ("rows", "told"),
    [(10_447, "10,447 of 159,571 training rows"), (159_571, "16 of them toxic."), (None, "16 of them toxic.")],
)
def test_a_sample_is_called_one_and_the_full_download_is_not(run, rows, told):
    write_json(run.results_dir / "run.json", {"train_csv_rows": rows})
    text = report.published_block(run)
    assert told in text and ("sample" in text) == (rows == 10_447)


def test_a_run_without_figures_leaves_what_was_published(run, tmp_path, monkeypatch):
    monkeypatch.setattr(publishing, "ROOT", tmp_path / "shown")
    (tmp_path / "shown" / "figures").mkdir(parents=True)
    (tmp_path / "shown" / "figures" / "old.png").touch()
    shutil.rmtree(run.figures_dir, ignore_errors=True)
    with pytest.raises(FileNotFoundError):
        publish(run, anyway=True)
    assert [path.name for path in (tmp_path / "shown").rglob("*")] == ["figures", "old.png"]


@pytest.mark.parametrize("profile", ["base", "colab", "full"])
def test_a_run_of_another_pretrained_model_is_published_beside_the_one_that_is_shown(run, profile):
    other = replace(run, profile=replace(run.profile, name=profile))
    assert helpers.results.is_beside(other) and not helpers.results.is_beside(run)
    assert str(helpers.results.published_part(other)) == profile


def test_the_rows_of_bert_base_are_filled_from_what_stands_beside(run, monkeypatch):
    shown = replace(run, data_source="separable")
    assert report.results_block(shown).count("not yet run") == 2
    monkeypatch.setattr(helpers.results, "beside_run", lambda run, name: replace(shown, name=name))
    assert "| odd (bert-base, `colab`: other rows, seeds: 1 of 1) |" in report.results_block(shown)
    assert "bert-base-uncased: not yet run" not in report.about_block(shown)


def test_a_seed_that_some_model_lacks_is_named(run, monkeypatch):
    unfinished = replace(run, profile=replace(run.profile, seeds=(1, 2)))
    monkeypatch.setattr(helpers.results, "beside_run", lambda run, name: unfinished)
    assert "Not yet run with seed 2: teacher, odd, even, lora, lora_6, odd_hard, even_hard." in report.about_block(
        unfinished
    )


def test_the_report_links_to_a_figure_only_where_it_was_drawn(run):
    (run.figures_dir / "overfitting.png").unlink(missing_ok=True)
    assert "](figures/" not in report.overfitting_block(run)
    (run.figures_dir / "overfitting.png").parent.mkdir(exist_ok=True)
    (run.figures_dir / "overfitting.png").touch()
    assert "[overfitting](figures/overfitting.png)" in report.overfitting_block(run)


def test_a_comparison_that_was_not_planned_has_no_p_value():
    found = {"difference": 0.02, "low": -0.01, "high": 0.05, "detectable": 0.04, "by_seed": [0.01, 0.03]}
    found["verdict"] = "inconclusive"
    rows = report.verdict_table({"a − b": found | {"p_holm": 0.2}, "c − d": found})[2:]
    assert rows[0] == "| a − b | +0.020 | -0.010 to +0.050 | 0.200 | 0.040 | inconclusive |"
    assert rows[1] == "| c − d | +0.020 | -0.010 to +0.050 | – | 0.040 | inconclusive |"


def test_a_verdict_of_one_seed_says_that_it_is_one():
    found = {"difference": 0.02, "low": 0.01, "high": 0.03, "detectable": 0.04, "by_seed": [0.02], "verdict": "better"}
    assert "one seed does not speak for the next" in report.verdict_table({"a − b": found})[-1]


# --- whose work it is ------------------------------------------------------------------------------------------------


def test_ones_own_results_may_be_handed_in(run):
    check_own(run, load_results(run))


@pytest.mark.parametrize("way", ["read from results/", "copied into runs/"])
def test_the_published_results_are_not_ones_own(run, way, tmp_path, monkeypatch):
    published = tmp_path / "results"
    (shutil.move if way == "read from results/" else shutil.copytree)(run.results_dir, published)
    monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", published)
    with pytest.raises(ValueError, match=r"the published ones, not yours: majority \(seed 1\)"):
        check_own(run, load_results(run))


@pytest.mark.parametrize(("name", "number"), [("", "1"), ("Ada", ""), ("Ada", "../1"), ("Ada", "a b")])
def test_without_a_name_and_a_number_nothing_is_packed(run, name, number):
    with pytest.raises(ValueError, match='give NAME="your name" and ID="your number"'):
        submission(run, name, number)


def test_the_cover_escapes_what_is_typed(run):
    text = cover(run, load_results(run), "<b>Ada</b> | x\ny", "1", "", published=False)
    assert "| name | &lt;b&gt;Ada&lt;/b&gt; &#124; x y |" in text
    assert "| results | of my own run |" in text


def test_the_cover_says_so_where_the_published_run_is_handed_in(run):
    assert "the published run, handed in unchanged" in cover(run, load_results(run), "Ada", "1", "", published=True)


def test_a_zip_that_would_be_too_large_is_refused_and_not_left_behind(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "image.png").write_bytes(os.urandom(2_000))
    monkeypatch.setattr(publishing, "SUBMISSION_BYTES", 1_000)
    with pytest.raises(ValueError, match="hand in a run of a smaller profile"):
        write_file(tmp_path / "work.zip", lambda temporary: publishing._pack(tmp_path / "in", temporary))
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_run_that_is_not_there_gets_one_clear_line(capsys, monkeypatch, tmp_path):
    for name in ("PROFILE", "RUN", "JIGSAW_DIR", "SEEDS", "TASK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("helpers.runs.ROOT", tmp_path)
    assert main(["submission", "--profile", "smoke", "--name", "Ada", "--id", "1"]) == 2
    assert "has no result of" in capsys.readouterr().err


# --- the zip ---------------------------------------------------------------------------------------------------------


class Links(HTMLParser):
    """The local targets of a page's links and pictures, and its anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.targets, self.pictures, self.anchors = [], 0, set()

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found.get("id"), found.get("name")}
        target = found.get("href") if tag == "a" else found.get("src") if tag == "img" else None
        if target and target.startswith("data:"):
            self.pictures += 1
        elif target and "://" not in target:
            self.targets.append(target)


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A smoke run, made and handed in from the command line; unpacked in another folder."""
    name = "test-submission"
    clean = {key: value for key, value in os.environ.items() if key not in ("RUN", "JIGSAW_DIR", "SEEDS", "TASK")}
    clean |= {"PROFILE": "smoke", "RUN": name}
    folder = tmp_path_factory.mktemp("handed-in")
    try:
        for command in (["pipeline"], ["publishing", "submission", "--name", "Ada Lovelace", "--id", "1815"]):
            outcome = subprocess.run(
                [sys.executable, "-m", f"helpers.{command[0]}", *command[1:]],
                cwd=ROOT,
                env=clean,
                capture_output=True,
                text=True,
            )
            assert outcome.returncode == 0, outcome.stdout[-2_000:] + outcome.stderr[-2_000:]
        packed = ROOT / "runs" / name / "submission-1815.zip"
        assert packed.stat().st_size < 20_000_000
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(folder)
    finally:
        shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)
    [root] = folder.iterdir()
    return root


@pytest.mark.slow
def test_the_zip_holds_what_is_asked_for(unpacked):
    asked = ["README.md", "README.html", "image.png", "image-1.png", "environment.yml", "requirements.txt"]
    asked += ["constraints.txt", "helpers/layers.py", "results/comparison.csv", "results/odd-1.json"]
    asked += ["results/predictions/odd-1.parquet", "figures/training_loss.png"]
    asked += [f"notebooks/{name}.{end}" for name in (*NOTEBOOKS, *MORE_NOTEBOOKS) for end in ("ipynb", "html")]
    assert [name for name in asked if not (unpacked / name).is_file()] == []


@pytest.mark.slow
def test_the_cover_and_the_numbers_are_the_students(unpacked):
    text = (unpacked / "README.md").read_text(encoding="utf-8")
    assert "| name | Ada Lovelace |" in text and "| number | 1815 |" in text
    assert "| results | of my own run |" in text and "separable test data, not Jigsaw" in text
    result = json.loads((unpacked / "results" / "odd-1.json").read_text())
    scores, _costs = re.findall(r"^\| odd \|.*$", text, flags=re.M)
    assert f"| {result['test']['f1']:.3f} |" in scores
    assert "Jigsaw (3,000" not in text and "The published run" not in text


@pytest.mark.slow
def test_links_and_pictures_of_every_page_work(unpacked):
    pages = sorted(unpacked.rglob("*.html"))
    pictures = 0
    for page in pages:
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        pictures += links.pictures
        for target in links.targets:
            path, _, anchor = target.partition("#")
            assert (page.parent / unquote(path)).exists(), f"{page.name}: {target}"
            assert path or {anchor, unquote(anchor)} & links.anchors, f"{page.name}: {target}"  # as browsers look
    assert len(pages) == 8 and pictures > 10


@pytest.mark.slow
def test_notebook_4_runs_where_it_was_unpacked(unpacked):
    clean = {key: value for key, value in os.environ.items() if key not in ("RUN", "JIGSAW_DIR", "SEEDS", "TASK")}
    outcome = subprocess.run(
        [sys.executable, "-m", "helpers.pipeline", "04_comparison"],
        cwd=unpacked,
        env=clean | {"PROFILE": "smoke"},
        capture_output=True,
        text=True,
    )
    assert outcome.returncode == 0, outcome.stdout[-2_000:] + outcome.stderr[-2_000:]


@pytest.mark.slow
def test_without_a_run_of_ones_own_the_published_one_is_handed_in_as_it_is_shown(capsys, monkeypatch, tmp_path):
    for name in ("PROFILE", "RUN", "JIGSAW_DIR", "SEEDS", "TASK"):
        monkeypatch.delenv(name, raising=False)
    packed = ROOT / "runs" / "submission-test.1815.zip"
    try:
        assert main(["submission", "--published", "--name", "Ada", "--id", "test.1815"]) == 0
        with zipfile.ZipFile(packed) as archive:
            archive.extractall(tmp_path)
    finally:
        packed.unlink(missing_ok=True)
    [root] = tmp_path.iterdir()
    assert "the published run, handed in unchanged" in (root / "README.md").read_text(encoding="utf-8")
    for name in ("results/odd-1.json", "notebooks/04_comparison.ipynb", "figures/verdicts.png", "image.png"):
        assert (root / name).read_bytes() == (ROOT / name).read_bytes()
    assert (root / "notebooks" / "04_comparison.html").is_file()
