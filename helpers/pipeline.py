"""Runs the notebooks in order from the command line, and keeps what they have in common in one place.

python -m helpers.pipeline                                  # notebooks 01 to 04, as `make run` does
python -m helpers.pipeline 04_comparison --run study-jigsaw
python -m helpers.pipeline 05_improvements 06_common_mistakes   # on a finished run: hours in study
python -m helpers.pipeline --publish --run study-jigsaw     # copy a finished run into what the repository shows
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tomllib
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from helpers.benchmark import benchmark_in_markdown
from helpers.config import unknown
from helpers.experiments import EXPERIMENTS, Experiment, find_result, load_results, predictions_path, published_part
from helpers.improvements import grid_run, sections
from helpers.runs import ROOT, Run, check_notebook_task, open_run, read_json, write_file, write_json

NOTEBOOKS = ("01_data_preparation", "02_layer_distillation", "03_lora_fine_tuning", "04_comparison")
MORE_NOTEBOOKS = ("05_improvements", "06_common_mistakes", "07_demo")  # on a finished run, by name
REPORT_FIGURES = {"image.png": "training_loss.png", "image-1.png": "test_metrics.png"}
README_COLUMNS = {  # column of comparison.csv: title, unit, digits
    "experiment": ("model", 1, None),
    "parameters": ("parameters (M)", 1e6, 1),
    "trainable_parameters": ("trained (M)", 1e6, 2),
    "training_loss": ("training loss (CE)", 1, 3),
    "accuracy": ("accuracy", 1, 3),
    "f1": ("F1", 1, 3),
    "precision": ("precision", 1, 3),
    "recall": ("recall", 1, 3),
    "average_precision": ("average precision", 1, 3),
    "training_seconds": ("training (min)", 60, 1),
    "latency_ms": ("latency (ms)", 1, 1),
}
FIRST_CELL = """\
# The same in every notebook: finds the project (on Colab: fetches it) and opens the run.
import subprocess
import sys
from pathlib import Path

REPOSITORY = "{repository}"
KEEP_ON_DRIVE = False  # on Colab: True keeps runs/ on your Google Drive, for a session that drops
here = Path.cwd()
ROOT = next((folder for folder in (here, *here.parents) if (folder / "helpers").is_dir()), None)
if ROOT is None:
    ROOT = here / REPOSITORY.rsplit("/", 1)[-1]
    if not ROOT.is_dir():
        subprocess.run(["git", "clone", "--depth", "1", REPOSITORY, str(ROOT)], check=True)
sys.path.insert(0, str(ROOT))

from helpers.runs import start_notebook

run = start_notebook(KEEP_ON_DRIVE)"""


def repository() -> str:
    """The repository's address, from the one place that holds it, pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["urls"]["Repository"]


def first_cell() -> str:
    """The source of every notebook's first code cell."""
    return FIRST_CELL.format(repository=repository())


def colab_link(name: str) -> str:
    """Where Colab opens the notebook from the repository."""
    return f"https://colab.research.google.com/github/{repository().split('github.com/')[-1]}/blob/main/notebooks/{name}.ipynb"


def title(name: str) -> str:
    """A notebook's number and short title, '2 · Layer distillation', from its first line."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    return notebook.cells[0].source.splitlines()[0].removeprefix("# ").split(":")[0]


def navigation(name: str) -> str:
    """The last line of a notebook's first and last cell: links to its neighbours, and to itself on Colab."""
    names = (*NOTEBOOKS, *MORE_NOTEBOOKS)
    place, links = names.index(name), []
    for word, neighbour in (("Previous", place - 1), ("Next", place + 1)):
        if 0 <= neighbour < len(names):
            links.append(f"{word}: [{title(names[neighbour])}]({names[neighbour]}.ipynb)")
    return " · ".join([*links, f"[open in Colab]({colab_link(name)})"])


def write_first_cells() -> None:
    """Puts the first cell and the links into every notebook, after its address in pyproject.toml has changed."""
    for name in (*NOTEBOOKS, *MORE_NOTEBOOKS):
        path = ROOT / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
        cell.source = first_cell()
        for cell in (notebook.cells[0], notebook.cells[-1]):
            *text, _ = cell.source.splitlines()
            cell.source = "\n".join([*text, navigation(name)])
        write_notebook(notebook, path)


def write_notebook(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Writes a notebook that is valid by nbformat's schema, whole or not at all."""
    nbformat.validate(notebook)
    text = nbformat.writes(notebook)
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class StreamingClient(NotebookClient):
    """Executes a notebook and shows on the terminal which cell runs and what the cells print, bars included."""

    def __init__(self, notebook: nbformat.NotebookNode, name: str, **options) -> None:
        super().__init__(notebook, **options)
        self.name = name
        self.code_cells = [index for index, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
        self.on_cell_execute = self._announce

    def _announce(self, cell: nbformat.NotebookNode, cell_index: int) -> None:
        number = self.code_cells.index(cell_index) + 1 if cell_index in self.code_cells else 0
        if number:
            first_line = next((line for line in cell.source.splitlines() if line.strip()), "")
            print(f"\n[{self.name}] cell {number} of {len(self.code_cells)}: {first_line[:90]}", flush=True)

    def process_message(self, msg: dict, cell: nbformat.NotebookNode, cell_index: int):
        if msg["msg_type"] == "stream":
            sys.stdout.write(msg["content"]["text"])
            sys.stdout.flush()
        return super().process_message(msg, cell, cell_index)


def run_notebook(name: str, run: Run, timeout: int | None = None) -> Path:
    """Executes a notebook of notebooks/ and leaves it in runs/<run>/notebooks/, as .ipynb and .html.

    Raises:
        CellExecutionError: a cell failed; what ran until then has been written, with the error below its cell.
    """
    source = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = nbformat.read(source, as_version=4)
    client = StreamingClient(
        notebook,
        name,
        timeout=timeout,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(source.parent)}},
    )
    target = run.directory / "notebooks" / f"{name}.ipynb"
    try:
        client.execute()
    finally:
        notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
        write_notebook(notebook, target)
        page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
        write_file(target.with_suffix(".html"), lambda temporary: temporary.write_text(page, encoding="utf-8"))
    return target


def show_outcome(run: Run) -> None:
    """Prints the comparison table, if it is there, and where to find the run's files."""
    path = run.results_dir / "comparison.csv"
    if path.is_file():
        table = pd.read_csv(path)
        columns = ["experiment", "parameters", "trainable_parameters", "accuracy", "f1", "precision", "recall"]
        columns += ["average_precision", "training_seconds", "latency_ms"]
        print(f"\nTest scores ({run.data_label}, profile {run.profile.name}):\n")
        print(table[columns].to_string(index=False, float_format="{:.3f}".format, na_rep="–"))
    print(f"\nexecuted notebooks (.ipynb, .html): {run.show_path(run.directory / 'notebooks')}/")
    print(f"figures: {run.show_path(run.figures_dir)}/")
    print(f"results: {run.show_path(run.results_dir)}/")


def publish(run: Run) -> None:
    """Copies a finished run into what the repository shows: results/, figures/, the two images, executed notebooks.

    What was published before stays where the run has not made it again and its fingerprint still fits: the seeds of a
    long run may come from several machines. Everything else that was published is removed.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: the run was made on written comments, whose numbers say nothing about Jigsaw.
    """
    if not (run.results_dir / "comparison.csv").is_file():
        raise FileNotFoundError(f"run {run.name!r} is not finished: run 01 to 04 first")
    check_real_comments(run)
    copy_results(run)
    copy_results(grid_run(run))
    shutil.copytree(run.figures_dir, ROOT / "figures", dirs_exist_ok=True)
    for image, figure in REPORT_FIGURES.items():
        shutil.copyfile(run.figures_dir / figure, ROOT / image)
    for name in (*NOTEBOOKS, *MORE_NOTEBOOKS):
        executed = run.directory / "notebooks" / f"{name}.ipynb"
        if executed.is_file():
            shutil.copyfile(executed, ROOT / "notebooks" / f"{name}.ipynb")
    published = {"profile": run.profile.name, "data_source": run.data_source, "data": run.data_label}
    write_json(ROOT / "results" / "run.json", published)
    write_readme_results()
    print(f"published {run.name}: results/, figures/, {', '.join(REPORT_FIGURES)} and the executed notebooks")


def copy_results(run: Run) -> None:
    """Copies a run's results that fit its settings below results/; removes those there that do not fit any more."""
    directory = ROOT / "results" / published_part(run)
    known = EXPERIMENTS | {experiment.name: experiment for tried in sections(run).values() for experiment in tried}
    if run.results_dir.is_dir():
        (directory / "predictions").mkdir(parents=True, exist_ok=True)
    for path in run.results_dir.glob("*-*.json"):
        name, seed = path.stem.rsplit("-", 1)
        found = find_result(run, known[name], int(seed)) if name in known else None
        if found and found[1] == run.results_dir:
            predictions = predictions_path(directory, name, int(seed))
            shutil.copyfile(predictions_path(run.results_dir, name, int(seed)), predictions)
            shutil.copyfile(path, directory / path.name)
    for name in ("comparison.csv", "probe.json", "greedy_removal.json"):
        made = run.results_dir / name
        if made.is_file() and (read_json(made) or {}).get("finished", True):
            shutil.copyfile(made, directory / name)
    remove_outdated(run, directory, known)


def remove_outdated(run: Run, directory: Path, known: dict[str, Experiment]) -> None:
    """Removes the published results that the run's settings would not give any more, and their predictions."""
    for path in directory.glob("*-*.json"):
        name, seed = path.stem.rsplit("-", 1)
        if name not in known or find_result(run, known[name], int(seed)) is None:
            path.unlink()
            predictions_path(directory, name, int(seed)).unlink(missing_ok=True)


def publish_beside(run: Run) -> None:
    """Copies a run with TASK=labels or PROFILE=base to its folder below results/, beside the run that is shown.

    Raises:
        FileNotFoundError: a model of the run has no result.
        ValueError: the run was made on written comments.
    """
    found = load_results(run, run.profile.task)
    check_real_comments(run)
    copy_results(run)
    copy_results(grid_run(run))
    print(f"published {run.name}: results/{published_part(run)}/ ({', '.join(found.by_name)})")


def check_real_comments(run: Run) -> None:
    """Refuses to publish a run on written comments."""
    if run.data_source not in ("jigsaw", "hub"):
        raise ValueError(f"run {run.name!r} was made on {run.data_label}; publish a run on the real comments")


def results_in_markdown(directory: Path) -> str:
    """The published comparison as README.md shows it, made from comparison.csv and run.json."""
    table, run = pd.read_csv(directory / "comparison.csv"), read_json(directory / "run.json")
    seeds = int(table["seeds"].max())
    lines = [
        f"Profile `{run['profile']}`, {run['data']}, {seeds} seed{'s' if seeds > 1 else ''}. Scores: the test set's; "
        "F1, precision and recall are the toxic class's. A student's training comes on top of its teacher's.",
        "",
        "| " + " | ".join(title for title, _, _ in README_COLUMNS.values()) + " |",
        "|" + "---|" * len(README_COLUMNS),
    ]
    for _, row in table.iterrows():
        cells = [
            str(row[column]) if digits is None else "–" if pd.isna(row[column]) else f"{row[column] / unit:.{digits}f}"
            for column, (_, unit, digits) in README_COLUMNS.items()
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_readme_results() -> None:
    """Puts the published tables between README.md's markers."""
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    text = between_markers(text, "results", results_in_markdown(ROOT / "results"))
    benchmark = read_json(ROOT / "results" / "benchmark.json")
    if benchmark:
        text = between_markers(text, "benchmark", benchmark_in_markdown(benchmark))
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def between_markers(text: str, name: str, content: str) -> str:
    """The text with `content` between its lines <!-- name --> and <!-- /name -->."""
    before, rest = text.split(f"<!-- {name} -->")
    _, after = rest.split(f"<!-- /{name} -->")
    return f"{before}<!-- {name} -->\n{content}\n<!-- /{name} -->{after}"


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m helpers.pipeline", description=__doc__.splitlines()[0])
    known = f"{' '.join(NOTEBOOKS)}; by name also: {' '.join(MORE_NOTEBOOKS)}"
    parser.add_argument("notebooks", nargs="*", help=f"which notebooks (default: {known})")
    parser.add_argument("--profile", help="quick, study, colab, full or smoke (default: colab with a GPU, else quick)")
    parser.add_argument("--run", help="name of the run's folder in runs/ (default: <profile>-<data source>)")
    parser.add_argument("--jigsaw-dir", help="folder or zip with Kaggle's files (default: data/jigsaw/ if it is there)")
    parser.add_argument("--seeds", help="the profile's seeds to run now, for instance 1 or 1,2 (default: all)")
    parser.add_argument("--publish", action="store_true", help="run nothing; copy the finished run into the repository")
    parser.add_argument("--readme", action="store_true", help="run nothing; write README.md's tables anew")
    parser.add_argument(
        "--first-cells", action="store_true", help="run nothing; write the notebooks' first cells and links anew"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Runs the notebooks asked for; returns the exit code. Errors that a person can act on come without a traceback."""
    options = parse_arguments(arguments)
    if options.first_cells:
        write_first_cells()
        return 0
    if options.readme:
        write_readme_results()
        return 0
    for variable, value in (
        ("PROFILE", options.profile),
        ("RUN", options.run),
        ("JIGSAW_DIR", options.jigsaw_dir),
        ("SEEDS", options.seeds),
    ):
        if value:
            os.environ[variable] = value  # the notebooks' kernels read them
    try:
        known = [*NOTEBOOKS, *MORE_NOTEBOOKS]
        wrong = [name for name in options.notebooks if name not in known]
        if wrong:
            raise ValueError(unknown("notebook", wrong[0], known))
        run = open_run()
        os.environ["RUN"] = run.name
        if options.publish:
            is_shown = run.profile.task == "toxic" and run.profile.name != "base"
            (publish if is_shown else publish_beside)(run)
            return 0
        check_notebook_task(run)
        print(f"run {run.name}: profile {run.profile.name}, {run.profile.expected_time}; comments: {run.data_label}")
        for name in options.notebooks or NOTEBOOKS:
            run_notebook(name, run)
    except CellExecutionError as error:
        print(
            f"\n{error}\nThe notebook up to this cell: {run.show_path(run.directory / 'notebooks')}/", file=sys.stderr
        )
        return 1
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    show_outcome(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
