"""Shows a finished run: `publish` copies it into the repository, `submission` packs it as a student's own work.

make publish RUN=study-jigsaw
make submission NAME="Ada Lovelace" ID="1815" RUN=quick-sample
"""

from __future__ import annotations

import argparse
import html
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import nbformat
import pandas as pd
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell, new_notebook

from helpers.experiments import EXPERIMENTS, Experiment, predictions_path, result_path
from helpers.improvements import grid_run, sections
from helpers.pipeline import MORE_NOTEBOOKS, NOTEBOOKS, without_outputs, write_notebook
from helpers.report import comments_in_words, shown_run, write_report
from helpers.results import (
    BESIDE,
    Results,
    beside_run,
    comparison_table,
    find_result,
    is_beside,
    labels_run,
    load_results,
    published_dir,
    published_part,
    write_comparison,
)
from helpers.runs import (
    ROOT,
    Run,
    find_finished_run,
    new_directory,
    open_run,
    read_json,
    tells_errors,
    write_file,
    write_json,
)

REPORT_FIGURES = {"image.png": "training_loss.png", "image-1.png": "test_metrics.png"}
SHOWN_NOTEBOOKS = (*NOTEBOOKS, *MORE_NOTEBOOKS[:-1])  # the demo's outputs are a page that is served while it runs
BESIDE_RESULTS = ("probe.json", "greedy_removal.json")
PROJECT_FILES = ("README.md", "LICENSE", "Makefile", "pyproject.toml", "environment.yml", "requirements.txt")
PROJECT_FILES += ("constraints.txt", "constraints-lowest.txt")
SUBMISSION_BYTES = 20_000_000


# --- what may be shown -----------------------------------------------------------------------------------------------


def check_finished(run: Run) -> Results:
    """The results of a run that is finished and of one piece.

    Raises:
        FileNotFoundError: something has not been run; the message says what makes it.
        ValueError: the parts of the run do not belong together.
    """
    results = load_results(run)
    check_every_seed(run, results)
    notebooks = [run.directory / "notebooks" / f"{name}.ipynb" for name in NOTEBOOKS]
    absent = [path.stem for path in notebooks if not path.is_file()]
    if absent or not (run.results_dir / "comparison.csv").is_file():
        raise FileNotFoundError(f"run {run.name!r} is not finished: run {', '.join(absent) or '04_comparison'} first")
    written = pd.read_csv(run.results_dir / "comparison.csv")
    if list(written["average_precision"].round(9)) != list(comparison_table(results)["average_precision"].round(9)):
        raise ValueError(f"run {run.name!r} is mixed: its notebook 04 was run on other results; run 04 again")
    more = [run.directory / "notebooks" / f"{name}.ipynb" for name in MORE_NOTEBOOKS[:-1]]
    for path in [*notebooks, *(path for path in more if path.is_file())]:
        executed, source = (nbformat.read(each, as_version=4) for each in (path, ROOT / "notebooks" / path.name))
        if [cell.source for cell in executed.cells] != [cell.source for cell in source.cells]:
            raise ValueError(
                f"run {run.name!r} is mixed: notebooks/{path.name} was changed since it was run; run it again"
            )
        cells = [cell for cell in executed.cells if cell.cell_type == "code"]
        shown = str(cells[0].outputs)
        if f"run: {run.name}; comments: {run.data_label}" not in shown:
            raise ValueError(
                f"run {run.name!r} is mixed: its notebook {path.stem} was run on another run; run it again"
            )
        if any(output.output_type == "error" for cell in cells for output in cell.outputs):
            raise ValueError(f"run {run.name!r} is not finished: its notebook {path.stem} ended with an error")
        if any(cell.execution_count is None for cell in cells):
            raise ValueError(f"run {run.name!r} is not finished: its notebook {path.stem} was not run to its end")
    return results


def check_every_seed(run: Run, results: Results) -> None:
    """Refuses a run of which an experiment has no result with some seed of the profile."""
    if results.missing:
        names = ", ".join(f"{name} (seed {seed})" for name, seed in results.missing)
        raise FileNotFoundError(
            f"run {run.name!r} is not finished: no result of {names}; run 02 and 03 again, or publish what there is "
            "with ANYWAY=1"
        )


def check_real_comments(run: Run) -> None:
    """Refuses to publish a run on written comments."""
    if run.data_source not in ("jigsaw", "hub"):
        raise ValueError(f"run {run.name!r} was made on {run.data_label}; publish a run on the real comments")


def check_own(run: Run, results: Results) -> None:
    """Refuses results that are the published ones, which nobody's own run has made.

    Raises:
        ValueError: some are; the message says which.
    """
    borrowed = []
    for (name, seed), directory in results.directories.items():
        published = read_json(result_path(published_dir(run), name, seed))
        if directory != run.results_dir or published == read_json(result_path(directory, name, seed)):
            borrowed.append(f"{name} (seed {seed})")
    if borrowed:
        raise ValueError(
            f"these results of run {run.name!r} are the published ones, not yours: {', '.join(borrowed)}. Train them "
            f"(`make run PROFILE={run.profile.name}` with the comments at hand, or PROFILE=quick), or hand in the "
            "published run with PUBLISHED=1: the cover will say so"
        )


# --- copying a run ---------------------------------------------------------------------------------------------------


def copy_run(run: Run, target: Path) -> None:
    """Copies what a repository shows of a run: results with its grids, figures, the two images, executed notebooks."""
    with new_directory(target / "figures") as folder:  # first: a run without figures leaves all as it was
        shutil.copytree(run.figures_dir, folder, dirs_exist_ok=True)
    for part in dict.fromkeys((run, *(beside_run(run, name) for name in BESIDE), labels_run(run))):
        copy_results(part, target)
        copy_results(grid_run(part), target)
    copy_comparison(run, target)
    for image, figure in REPORT_FIGURES.items():
        copy_file(run.figures_dir / figure, target / image)
    for name in SHOWN_NOTEBOOKS:
        executed = run.directory / "notebooks" / f"{name}.ipynb"
        if executed.is_file():
            notebook = nbformat.read(executed, as_version=4)
        else:  # what stands there may be another run's
            notebook = without_outputs(nbformat.read(ROOT / "notebooks" / executed.name, as_version=4))
        write_notebook(notebook, target / "notebooks" / executed.name)
    facts = {"profile": run.profile.name, "data_source": run.data_source, "data": run.data_label}
    counts = (read_json(run.data_dir / "data.json") or {}).get("counts", {})  # the comments may not be at hand
    facts["train_csv_rows"] = counts.get("train.csv: rows")
    write_json(target / "results" / "run.json", facts)


def copy_file(source: Path, target: Path) -> None:
    """Copies a file whole or not at all: what was published stays valid where the disk is full."""
    write_file(target, lambda temporary: shutil.copyfile(source, temporary))


def copy_results(run: Run, target: Path) -> None:
    """Copies a run's own results that fit its settings to their place below `target`/results/."""
    directory = target / "results" / published_part(run)
    for experiment, seed in _possible(run):
        found = find_result(run, experiment, seed)
        if found and found[1] == run.results_dir:
            for place in (predictions_path, result_path):
                copy_file(place(found[1], experiment.name, seed), place(directory, experiment.name, seed))
    for name in BESIDE_RESULTS:
        made = run.results_dir / name
        if made.is_file() and (read_json(made) or {}).get("finished", True) and directory.is_dir():
            copy_file(made, directory / name)


def copy_comparison(run: Run, target: Path) -> None:
    """Writes comparison.csv beside a run's copied results and from them: the run's own may be of other ones."""
    write_comparison(load_results(run), run, target / "results" / published_part(run))


def _possible(run: Run) -> Iterator[tuple[Experiment, int]]:
    """Every experiment and seed that may lie in the run: the named ones and those of its grids."""
    tried = {experiment.name: experiment for section in sections(run).values() for experiment in section}
    for experiment in (EXPERIMENTS | tried).values():
        for seed in run.profile.seeds:
            yield experiment, seed


def remove_outdated(run: Run) -> None:
    """Removes the published results that the run's settings would not give any more, and their predictions."""
    directory = published_dir(run)
    fitting = {
        result_path(directory, experiment.name, seed)
        for experiment, seed in _possible(run)
        if find_result(run, experiment, seed)
    }
    for path in set(directory.glob("*-*.json")) - fitting:
        name, seed = path.stem.rsplit("-", 1)
        path.unlink()
        predictions_path(directory, name, int(seed)).unlink(missing_ok=True)


def publish(run: Run, anyway: bool = False) -> None:
    """Copies a finished run into what the repository shows, and writes README.md's tables and sentences from it.

    What was published before stays where the run has not made it again and its fingerprint still fits: the seeds of a
    long run may come from several machines. Everything else that was published is removed.

    Raises:
        FileNotFoundError: the run is not finished (unless `anyway`, which shows what is missing as 'not yet run').
        ValueError: the run is mixed, or made on written comments (unless `anyway`).
    """
    if anyway:
        load_results(run)
    else:
        check_real_comments(run)
        check_finished(run)
    copy_run(run, ROOT)
    for part in (run, grid_run(run)):
        remove_outdated(part)
    write_report(ROOT)
    print(f"published {run.name}: results/, figures/, {', '.join(REPORT_FIGURES)}, README.md, the executed notebooks")


def publish_beside(run: Run, anyway: bool = False) -> None:
    """Copies a run with TASK=labels or a profile of BESIDE to its folder below results/, beside the run that is shown.

    Raises:
        FileNotFoundError: a model of the run has no result, or (unless `anyway`) not with every seed.
        ValueError: the run was made on written comments.
    """
    found = load_results(run, run.profile.task)
    check_real_comments(run)
    if not anyway:
        check_every_seed(run, found)
    for part in (run, grid_run(run)):
        copy_results(part, ROOT)
        remove_outdated(part)
    if run.profile.task == "toxic":
        copy_comparison(run, ROOT)
    write_report(ROOT)
    print(f"published {run.name}: results/{published_part(run)}/ ({', '.join(found.by_name)}), README.md")


# --- a student's own work --------------------------------------------------------------------------------------------


def submission(run: Run | None, name: str, number: str, course: str = "") -> Path:
    """Packs a finished run with a cover into one zip, submission-<number>.zip in the run's folder; returns its path.

    Without a run the published one is packed as it is shown, into runs/, and the cover says so.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: no name or number; the run is mixed, or is not the student's own; the zip is too large.
    """
    if not name.strip() or not re.fullmatch(r"[\w.-]+", number):
        raise ValueError('give NAME="your name" and ID="your number" (letters, digits, "-", "_", "." only)')
    published = run is None
    if published:
        run = shown_run(ROOT)
        results = load_results(run)
    else:
        results = check_finished(run)
        check_own(run, results)
    target = (ROOT / "runs" if published else run.directory) / f"submission-{number}.zip"
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / f"{number}-smaller-bert"
        copy_project(root)
        if published:
            copy_published(root)
        else:
            copy_run(run, root)
            subprocess.run([sys.executable, "-m", "helpers.report"], cwd=root, check=True)  # from these results alone
        write_cover(root / "README.md", cover(run, results, name, number, course, published))
        write_pages(root)
        write_file(target, lambda temporary: _pack(root, temporary))
    return target


def copy_project(root: Path) -> None:
    """Copies the code, the notebooks without outputs and the files that describe the environment to a new folder."""
    (root / "notebooks").mkdir(parents=True)
    shutil.copytree(ROOT / "helpers", root / "helpers", ignore=shutil.ignore_patterns("__pycache__"))
    for name in PROJECT_FILES:
        shutil.copyfile(ROOT / name, root / name)
    for name in (*NOTEBOOKS, *MORE_NOTEBOOKS):
        notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
        write_notebook(without_outputs(notebook), root / "notebooks" / f"{name}.ipynb")


def copy_published(root: Path) -> None:
    """Copies what the repository shows: results, figures, the two images, executed notebooks."""
    for name in ("results", "figures"):
        shutil.copytree(ROOT / name, root / name)
    for name in (*REPORT_FIGURES, *(f"notebooks/{name}.ipynb" for name in SHOWN_NOTEBOOKS)):
        shutil.copyfile(ROOT / name, root / name)


def cover(run: Run, results: Results, name: str, number: str, course: str, published: bool) -> str:
    """The first page, in Markdown: who, when, and which run this is."""
    some = results.first_seed()["teacher"]
    facts = {
        "name": name,
        "number": number,
        "course": course or "–",
        "date": date.today().isoformat(),
        "profile": f"{run.profile.name}, {len(results.by_name['teacher'])} seed(s), {some['device']}",
        "data": f"{run.data_label}: {comments_in_words(some)}",
        "results": "the published run, handed in unchanged" if published else "of my own run",
        "to run notebook 4 again": f"PROFILE={run.profile.name} python -m helpers.pipeline 04_comparison",
    }
    lines = [f"| {what} | {html.escape(str(value)).replace('|', '&#124;')} |" for what, value in facts.items()]
    return "\n".join(["| | |", "|---|---|", *(" ".join(line.split()) for line in lines)])


def write_cover(readme: Path, text: str) -> None:
    """Puts the cover below README.md's title; what speaks of the published run alone is left out."""
    report = re.sub(r"<!-- published -->.*?<!-- /published -->\n", "", readme.read_text(encoding="utf-8"), flags=re.S)
    heading, rest = report.split("\n", 1)
    readme.write_text(f"{heading}\n\n{text}\n{rest}", encoding="utf-8")


def write_pages(root: Path) -> None:
    """Writes README.html and a page beside each notebook, pictures inside; links lead from page to page."""
    exporter = HTMLExporter(embed_images=True)
    text = (root / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"<details>\n<summary><b>(.*?)</b></summary>", r"### \1", text)  # unfolded, to print
    text = text.replace("</details>\n", "")
    readme = new_notebook(cells=[new_markdown_cell(text)])
    notebooks = {path: nbformat.read(path, as_version=4) for path in sorted((root / "notebooks").glob("*.ipynb"))}
    for path, notebook in ({root / "README.md": readme} | notebooks).items():
        place = {"metadata": {"path": str(path.parent), "name": path.stem}}
        page, _ = exporter.from_notebook_node(notebook, resources=place)
        page = re.sub(r'href="((?:notebooks/)?\d\d_\w+)\.ipynb"', r'href="\1.html"', page)
        path.with_suffix(".html").write_text(page, encoding="utf-8")


def _pack(root: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(root.parent))
    if target.stat().st_size > SUBMISSION_BYTES:
        raise ValueError(
            f"the zip would have {target.stat().st_size / 1e6:.0f} MB, more than {SUBMISSION_BYTES / 1e6:.0f}: "
            "hand in a run of a smaller profile"
        )


# --- from the command line -------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m helpers.publishing", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    show = commands.add_parser("publish", help="copy a finished run into what the repository shows")
    show.add_argument("--anyway", action="store_true", help="though it is unfinished, or made on written comments")
    pack = commands.add_parser("submission", help="one zip of your own finished run")
    pack.add_argument("--name", required=True)
    pack.add_argument("--id", required=True, dest="number")
    pack.add_argument("--course", default="")
    pack.add_argument("--published", action="store_true", help="hand in the published run, and say so")
    for command in (show, pack):
        command.add_argument("--profile", help="as in `make run`")
        command.add_argument(
            "--run", help="name of the run's folder in runs/ (default: the profile's; without one the latest)"
        )
    return parser.parse_args(arguments)


@tells_errors()
def main(arguments: list[str] | None = None) -> int:
    """Publishes or packs a run; returns the exit code. Errors that a person can act on come without a traceback."""
    options = parse_arguments(arguments)
    asked = options.profile or options.run or os.environ.get("PROFILE") or os.environ.get("RUN")
    run = None
    if options.command == "publish" or not options.published:
        run = open_run(options.profile, options.run) if asked else find_finished_run()
    if options.command == "submission":
        path = submission(run, options.name, options.number, options.course)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e6:.1f} MB")
    elif is_beside(run):
        publish_beside(run, options.anyway)
    else:
        publish(run, options.anyway)
    return 0


if __name__ == "__main__":
    sys.exit(main())
