"""Packs a student's finished run with a cover into one zip to hand in.

python -m tools.submission --name "Ada Lovelace" --id 1815 --run quick-jigsaw
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
import sys
import tempfile
from datetime import date
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell, new_notebook

import helpers.results
from helpers.results import Results
from helpers.runs import ROOT, Run, open_run, parse_run, read_json, tells_errors, write_file, write_json
from helpers.saved import result_path
from tools.publish import check_finished, results_table
from tools.run_notebooks import ALL_NOTEBOOKS, read_notebook, without_outputs, write_notebook

PROJECT_FILES = ("README.md", "CONTRIBUTING.md", "LICENSE", "Makefile", "pyproject.toml", "environment.yml")
PROJECT_FILES += ("requirements.txt", "constraints.txt", "constraints-lowest.txt", "image.png", "image-1.png")
PROJECT_FOLDERS = ("helpers", "tools", "results", "figures")


def submission(run: Run, name: str, number: str, course: str = "") -> Path:
    """Packs a finished run of the student's own with a cover into one zip in the run's folder; returns its path."""
    if not name.strip() or not re.fullmatch(r"[\w.-]+", number):
        raise ValueError('give NAME="your name" and ID="your number" (letters, digits, "-", "_", "." only)')
    results = check_finished(run)
    check_own(run, results)
    target = run.directory / f"submission-{number}.zip"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / f"{number}-smaller-bert"
        copy_project(root)
        copy_run(run, root)
        (root / "COVER.md").write_text(cover(run, results, name, number, course), encoding="utf-8")
        write_pages(root)
        pack(root, target)
    return target


def check_own(run: Run, results: Results) -> None:
    """Refuses results that are the published ones, which no run of a student has made; the message says which."""
    published = helpers.results.PUBLISHED_RESULTS / run.profile.name
    copied = [
        f"{name} (seed {seed})"
        for (name, seed), directory in results.directories.items()
        if read_json(result_path(published, name, seed)) == read_json(result_path(directory, name, seed))
    ]
    if copied:
        raise ValueError(
            f"these results of run {run.name!r} are the published ones, not yours: {', '.join(copied)}. Train them "
            f"(`make run PROFILE={run.profile.name}` with the comments at hand, or PROFILE=quick)"
        )


def copy_project(root: Path) -> None:
    """Copies the code, the published results, the figures and the notebooks without outputs to a new folder."""
    for name in PROJECT_FOLDERS:
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in PROJECT_FILES:
        shutil.copyfile(ROOT / name, root / name)
    for name in ALL_NOTEBOOKS:
        write_notebook(without_outputs(read_notebook(name)), root / "notebooks" / f"{name}.ipynb")


def copy_run(run: Run, root: Path) -> None:
    """Copies the run's results and figures to runs/<run>/, and its executed notebooks over those of the project."""
    target = root / "runs" / run.name
    for name in ("results", "grid/results", "figures"):
        if (run.directory / name).is_dir():
            shutil.copytree(run.directory / name, target / name)
    for path in (run.directory / "notebooks").glob("*.ipynb"):
        shutil.copyfile(path, root / "notebooks" / path.name)
    facts = {"profile": run.profile.name, "data_source": run.data_source}
    write_json(target / "run.json", facts | {"jigsaw_dir": "data/jigsaw" if run.jigsaw_dir else None})


def cover(run: Run, results: Results, name: str, number: str, course: str) -> str:
    """The first page, in Markdown: who, when, which run, its results, and the notebooks."""
    teachers = results.by_name["teacher"]
    first = next(iter(teachers.values()))
    facts = {
        "name": name,
        "number": number,
        "course": course or "–",
        "date": date.today().isoformat(),
        "profile": f"{run.profile.name}, {len(teachers)} seed(s), {first['device']}",
        "comments": f"{run.data_label}: " + ", ".join(f"{count:,} {split}" for split, count in first["rows"].items()),
        "run": f"runs/{run.name}/",
        "to run notebook 4 again": f"python -m tools.run_notebooks 04_comparison --run {run.name}",
    }
    lines = ["# Three cheaper BERTs for toxic comments", "", "| | |", "|---|---|"]
    for what, value in facts.items():
        lines.append(f"| {what} | {' '.join(html.escape(value).replace('|', '&#124;').split())} |")
    lines += ["", "## Test scores of this run", "", results_table(results), "", "## Notebooks", ""]
    lines += [f"- [{name}](notebooks/{name}.ipynb)" for name in ALL_NOTEBOOKS]
    return "\n".join([*lines, "", "[README](README.md)", ""])


def write_pages(root: Path) -> None:
    """Writes an HTML page beside each page and notebook, pictures inside; links between them lead to these."""
    for path in (*root.glob("*.md"), *root.glob("notebooks/*.ipynb")):
        if path.suffix == ".md":
            notebook = new_notebook(cells=[new_markdown_cell(path.read_text(encoding="utf-8"))])
        else:
            notebook = nbformat.read(path, as_version=4)
        place = {"metadata": {"path": str(path.parent), "name": path.stem}}
        page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook, resources=place)
        page = re.sub(r'href="([\w/]+)\.(md|ipynb)"', r'href="\1.html"', page)
        path.with_suffix(".html").write_text(page, encoding="utf-8")


def pack(root: Path, target: Path) -> None:
    """Zips the folder. Everything in it is dated today, since a zip knows no day before 1980."""
    for path in root.rglob("*"):
        os.utime(path)
    packed = shutil.make_archive(str(root), "zip", root.parent, root.name)
    write_file(target, lambda temporary: shutil.copyfile(packed, temporary))


@tells_errors
def main(arguments: list[str] | None = None) -> int:
    """Packs a run; returns the exit code. Errors that a person can act on come without a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tools.submission", description=__doc__.splitlines()[0])
    parser.add_argument("--name", required=True)
    parser.add_argument("--id", required=True, dest="number")
    parser.add_argument("--course", default="")
    options = parse_run(parser, arguments)
    run = open_run()
    path = submission(run, options.name, options.number, options.course)
    print(f"{run.show_path(path)}: {path.stat().st_size / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
