"""Runs the notebooks in order from the command line.

python -m tools.run_notebooks                                      # notebooks 01 to 04b, as `make run` does
python -m tools.run_notebooks 04_comparison --run quick-jigsaw
python -m tools.run_notebooks 05_improvements 06_common_mistakes   # on a finished run
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from itertools import count
from pathlib import Path

import nbformat
import papermill
from ipykernel.kernelspec import write_kernel_spec
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CoalesceStreamsPreprocessor
from papermill.exceptions import PapermillExecutionError

from helpers.config import look_up
from helpers.results import comparison_table, load_results
from helpers.runs import ROOT, Run, open_run, parse_run, tells_errors, write_file

NOTEBOOKS = ("01_data_preparation", "02_layer_distillation", "03_lora_fine_tuning", "04_comparison")
MORE_NOTEBOOKS = ("04b_appendix", "05_improvements", "06_common_mistakes", "07_demo")  # on a finished run
ALL_NOTEBOOKS = (*NOTEBOOKS, *MORE_NOTEBOOKS)
RUN_IN_ORDER = (*NOTEBOOKS, "04b_appendix")  # unless others are asked for
KERNEL = "this-environment"
KERNEL_DIED = "the notebook's kernel died, perhaps for lack of memory; the same command resumes from a checkpoint"


def read_notebook(name: str) -> nbformat.NotebookNode:
    """A notebook of notebooks/, with its outputs."""
    return nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)


def write_notebook(notebook: nbformat.NotebookNode, path: Path) -> None:
    """Writes a notebook that is valid by nbformat's schema, whole or not at all."""
    nbformat.validate(notebook)
    text = nbformat.writes(notebook) + "\n"
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def without_outputs(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook as if nobody had run it; it is changed itself."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return notebook


def run_notebook(name: str, run: Run) -> None:
    """Executes a notebook of notebooks/ and leaves it in runs/<run>/notebooks/, as .ipynb and .html.

    The terminal shows which cell runs and what it prints. The kernel is the Python that runs this, whatever other
    Pythons Jupyter knows on the machine. What papermill adds to a notebook is not kept.

    Raises:
        PapermillExecutionError: a cell failed; what ran until then has been written, with the error below its cell.
        DeadKernelError: the notebook's process ended; what ran until then has been written.
    """
    source, target = (folder / "notebooks" / f"{name}.ipynb" for folder in (ROOT, run.directory))
    notebook = without_outputs(read_notebook(name))
    cells = {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}
    numbers = count(1)

    def announce(cell: nbformat.NotebookNode, **_) -> None:
        print(f"\n[{name}] cell {next(numbers)} of {len(cells)}: {cell.source.splitlines()[0][:90]}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        write_kernel_spec(f"{folder}/kernels/{KERNEL}", extra_arguments=["--log-level=CRITICAL"])  # no hints of its own
        os.environ |= {"JUPYTER_PATH": folder, "JUPYTER_RUNTIME_DIR": folder}  # the home folder may be read-only
        executed = Path(folder) / "executed.ipynb"
        options = {"kernel_name": KERNEL, "cwd": source.parent, "progress_bar": False, "on_cell_execute": announce}
        try:
            papermill.execute_notebook(source, executed, stdout_file=sys.stdout, stderr_file=sys.stdout, **options)
        finally:
            for cell in nbformat.read(executed, as_version=4).cells:
                if cell.id in cells:
                    cells[cell.id].update(outputs=cell.outputs, execution_count=cell.execution_count)
            notebook, _ = CoalesceStreamsPreprocessor().preprocess(notebook, {})
            write_notebook(notebook, target)
            page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
            write_file(target.with_suffix(".html"), lambda temporary: temporary.write_text(page, encoding="utf-8"))


def show_outcome(run: Run) -> None:
    """Prints the run's scores, and says where its files are."""
    results = load_results(run)
    if results.by_name:
        table = comparison_table(results)
        columns = ["model", "accuracy", "f1", "precision", "recall", "average_precision"]
        print(f"\nTest scores ({run.data_label}, profile {run.profile.name}):\n")
        print(table[columns].to_string(index=False, float_format="{:.3f}".format, na_rep="–"))
    print(f"\nexecuted notebooks (.ipynb, .html): {run.show_path(run.directory / 'notebooks')}/")
    print(f"figures: {run.show_path(run.figures_dir)}/\nresults: {run.show_path(run.results_dir)}/")


@tells_errors
def main(arguments: list[str] | None = None) -> int:
    """Runs the notebooks asked for; returns the exit code. Errors that a person can act on come without a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tools.run_notebooks", description=__doc__.splitlines()[0])
    parser.add_argument("notebooks", nargs="*", help=f"{', '.join(ALL_NOTEBOOKS)} (default: 01 to 04b)")
    options = parse_run(parser, arguments)
    for name in options.notebooks:
        look_up("notebook", name, dict.fromkeys(ALL_NOTEBOOKS))
    run = open_run()
    os.environ["RUN"] = run.name  # for the notebooks' kernels
    print(f"run {run.name}: profile {run.profile.name}, {run.profile.expected_time}; comments: {run.data_label}")
    try:
        for name in options.notebooks or RUN_IN_ORDER:
            run_notebook(name, run)
    except (PapermillExecutionError, DeadKernelError) as error:
        told = KERNEL_DIED if isinstance(error, DeadKernelError) else error
        print(f"\n{told}\nThe notebook up to this cell: {run.show_path(run.directory / 'notebooks')}/", file=sys.stderr)
        return 1
    show_outcome(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
