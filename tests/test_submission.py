"""What is handed in is the student's own finished run, and works elsewhere."""

import os
import re
import shutil
import zipfile
from dataclasses import replace
from urllib.parse import unquote

import pytest
from bs4 import BeautifulSoup
from conftest import run_module

import helpers.results
from helpers.results import load_results
from helpers.runs import ROOT, read_json
from tools.submission import check_own, copy_run, cover, main, pack, submission


def test_the_published_results_are_not_ones_own(copied_run):
    check_own(copied_run, load_results(copied_run))
    shutil.copytree(copied_run.results_dir, helpers.results.PUBLISHED_RESULTS / "smoke")
    with pytest.raises(ValueError, match=r"the published ones, not yours: majority \(seed 1\)"):
        check_own(copied_run, load_results(copied_run))


@pytest.mark.parametrize(("name", "number"), [("", "1"), ("Ada", "../1")])
def test_without_a_name_and_a_number_nothing_is_packed(finished_run, name, number):
    with pytest.raises(ValueError, match='give NAME="your name" and ID="your number"'):
        submission(finished_run, name, number)


def test_the_cover_escapes_what_is_typed(finished_run):
    text = cover(finished_run, load_results(finished_run), "<b>Ada</b> | x\ny", "1", "")
    assert "| name | &lt;b&gt;Ada&lt;/b&gt; &#124; x y |" in text


def test_no_folder_of_the_students_machine_is_handed_in(copied_run, tmp_path):
    (tmp_path / "zip" / "notebooks").mkdir(parents=True)
    copy_run(replace(copied_run, jigsaw_dir=tmp_path / "private"), tmp_path / "zip")
    assert read_json(tmp_path / "zip" / "runs" / copied_run.name / "run.json")["jigsaw_dir"] == "data/jigsaw"


def test_files_and_folders_from_before_1980_can_be_packed(tmp_path):
    (tmp_path / "zip" / "folder").mkdir(parents=True)
    (tmp_path / "zip" / "folder" / "file").touch()
    for path in (tmp_path / "zip").rglob("*"):
        os.utime(path, (0, 0))
    pack(tmp_path / "zip", tmp_path / "packed.zip")
    assert zipfile.is_zipfile(tmp_path / "packed.zip")


def test_a_run_that_is_not_there_gets_one_clear_line(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("helpers.runs.ROOT", tmp_path)
    assert main(["--profile", "smoke", "--name", "Ada", "--id", "1"]) == 2
    assert "is not finished: no result of" in capsys.readouterr().err


def command(folder, *arguments):
    outcome = run_module(*arguments, cwd=folder)
    assert outcome.returncode == 0, outcome.stdout[-2_000:] + outcome.stderr[-2_000:]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    """A smoke run, made and handed in from the command line; unpacked in another folder."""
    name, folder = "test-submission", tmp_path_factory.mktemp("handed-in")
    try:
        command(ROOT, "tools.run_notebooks", "--profile", "smoke", "--run", name)
        command(ROOT, "tools.submission", "--run", name, "--name", "Ada Lovelace", "--id", "1815")
        with zipfile.ZipFile(ROOT / "runs" / name / "submission-1815.zip") as archive:
            archive.extractall(folder)
    finally:
        shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)
    [root] = folder.iterdir()
    return root


@pytest.mark.slow
def test_the_zip_holds_what_is_asked_for(unpacked):
    asked = ["COVER.html", "README.md", "README.html", "image.png", "image-1.png", "requirements.txt"]
    asked += ["helpers/layers.py", "results/base/odd-1.json", "runs/test-submission/results/odd-1.json"]
    asked += ["figures/verdicts.png", *(f"figures/{path.name}" for path in ROOT.glob("figures/*.svg"))]
    asked += [f"notebooks/{path.stem}.{end}" for path in ROOT.glob("notebooks/*.ipynb") for end in ("ipynb", "html")]
    assert [name for name in asked if not (unpacked / name).is_file()] == []


@pytest.mark.slow
def test_the_cover_and_its_numbers_are_the_students(unpacked):
    text = (unpacked / "COVER.md").read_text(encoding="utf-8")
    assert "| name | Ada Lovelace |" in text and "separable test data, not Jigsaw" in text
    result = read_json(unpacked / "runs" / "test-submission" / "results" / "odd-1.json")
    [scores] = re.findall(r"^\| Odd student.*$", text, flags=re.M)
    assert f"{result['training_loss']:.3f}" in scores


@pytest.mark.slow
def test_links_and_pictures_of_every_page_work(unpacked):
    pictures = 0
    for page in unpacked.rglob("*.html"):
        soup = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
        anchors = {tag.get("id") for tag in soup.find_all(id=True)}
        targets = [tag["href"] for tag in soup("a", href=True)] + [tag["src"] for tag in soup("img", src=True)]
        pictures += sum(target.startswith("data:") for target in targets)
        for target in targets:
            path, _, anchor = target.partition("#")
            if "://" not in target and not target.startswith("data:"):
                assert (page.parent / unquote(path)).exists(), f"{page.name}: {target}"
                assert not path.endswith((".md", ".ipynb")), f"{page.name}: {target}"  # which no browser shows
                assert path or {anchor, unquote(anchor)} & anchors, f"{page.name}: {target}"  # as browsers look
    assert pictures > 10


@pytest.mark.slow
def test_notebook_4_runs_where_it_was_unpacked(unpacked):
    command(unpacked, "tools.run_notebooks", "04_comparison", "--run", "test-submission")
