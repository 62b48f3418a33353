"""Runs the notebooks in order from the command line, and keeps what they have in common in one place.

python -m tools.run_notebooks                                  # notebooks 01 to 04b, as `make run` does
python -m tools.run_notebooks 04_comparison --run quick-jigsaw
python -m tools.run_notebooks 05_improvements 06_common_mistakes   # on a finished run
"""

from __future__ import annotations

import argparse
import os
import sys
import tomllib
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor

from helpers.config import unknown
from helpers.results import load_results, write_comparison
from helpers.runs import (
    ROOT,
    Run,
    add_run_arguments,
    open_run,
    tells_errors,
    use_run_arguments,
    write_file,
)

NOTEBOOKS = ("01_data_preparation", "02_layer_distillation", "03_lora_fine_tuning", "04_comparison")
MORE_NOTEBOOKS = ("04b_appendix", "05_improvements", "06_common_mistakes", "07_demo")  # on a finished run
RUN_IN_ORDER = (*NOTEBOOKS, "04b_appendix")  # unless others are asked for
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

from helpers.notebook import start_notebook

run = start_notebook(KEEP_ON_DRIVE)"""


def repository() -> str:
    """The repository's address, from the one place that holds it, pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return project["project"]["urls"]["Repository"]


def first_cell() -> str:
    """The source of every notebook's first code cell."""
    return FIRST_CELL.format(repository=repository())


def colab_link(name: str) -> str | None:
    """Where Colab opens the notebook from the repository; None as long as nobody has set the repository's address."""
    owner_and_name = repository().split("github.com/")[-1]
    if owner_and_name.startswith("OWNER/"):
        return None
    return f"https://colab.research.google.com/github/{owner_and_name}/blob/main/notebooks/{name}.ipynb"


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
    if colab_link(name):
        links.append(f"[open in Colab]({colab_link(name)})")
    return " · ".join(links)


def write_first_cells() -> None:
    """Puts the first cell and the links into every notebook, made from the repository's address."""
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
    text = nbformat.writes(notebook) + "\n"
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


def without_outputs(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as if nobody had run it; it is changed itself."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def run_notebook(name: str, run: Run) -> Path:
    """Executes a notebook of notebooks/ and leaves it in runs/<run>/notebooks/, as .ipynb and .html.

    Raises:
        CellExecutionError: a cell failed; what ran until then has been written, with the error below its cell.
    """
    source = ROOT / "notebooks" / f"{name}.ipynb"
    notebook = without_outputs(nbformat.read(source, as_version=4))  # else a failure would leave another run's below it
    client = StreamingClient(
        notebook,
        name,
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
    """Writes the comparison of what the run has to comparison.csv, prints its scores, and says where the files are."""
    results = load_results(run)
    if results.by_name:
        table = write_comparison(results, run.results_dir)
        columns = ["model", "accuracy", "f1", "precision", "recall", "average_precision"]
        print(f"\nTest scores ({run.data_label}, profile {run.profile.name}):\n")
        print(table[columns].to_string(index=False, float_format="{:.3f}".format, na_rep="–"))
    print(f"\nexecuted notebooks (.ipynb, .html): {run.show_path(run.directory / 'notebooks')}/")
    print(f"figures: {run.show_path(run.figures_dir)}/")
    print(f"results: {run.show_path(run.results_dir)}/")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.run_notebooks", description=__doc__.splitlines()[0])
    known = f"{' '.join(RUN_IN_ORDER)}; by name also: {' '.join(MORE_NOTEBOOKS[1:])}"
    parser.add_argument("notebooks", nargs="*", help=f"which notebooks (default: {known})")
    add_run_arguments(parser)
    parser.add_argument(
        "--first-cells", action="store_true", help="run nothing; write the notebooks' first cells and links anew"
    )
    return parser.parse_args(arguments)


@tells_errors()
def main(arguments: list[str] | None = None) -> int:
    """Runs the notebooks asked for; returns the exit code. Errors that a person can act on come without a traceback."""
    options = parse_arguments(arguments)
    if options.first_cells:
        write_first_cells()
        return 0
    use_run_arguments(options)
    try:
        known = [*NOTEBOOKS, *MORE_NOTEBOOKS]
        wrong = [name for name in options.notebooks if name not in known]
        if wrong:
            raise ValueError(unknown("notebook", wrong[0], known))
        run = open_run()
        os.environ["RUN"] = run.name
        print(f"run {run.name}: profile {run.profile.name}, {run.profile.expected_time}; comments: {run.data_label}")
        for name in options.notebooks or RUN_IN_ORDER:
            run_notebook(name, run)
    except DeadKernelError:
        print(
            "\nthe notebook's kernel died: it was stopped, or the machine ran out of memory (a smaller profile needs "
            "less). The same command goes on from the last checkpoint",
            file=sys.stderr,
        )
        return 1
    except CellExecutionError as error:
        print(
            f"\n{error}\nThe notebook up to this cell: {run.show_path(run.directory / 'notebooks')}/", file=sys.stderr
        )
        return 1
    show_outcome(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
