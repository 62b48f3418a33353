"""Publishes a finished run: its results go to results/<profile>/, and the pages' tables and figures are made anew.

    python -m tools.publish --run base-jigsaw                  # copies the run's results, then renews the pages
    python -m tools.publish --tables                           # renews the pages from what is published
    python -m tools.publish --notebooks --run quick-jigsaw     # copies the run's executed notebooks

A table stands between <!-- name --> and <!-- /name --> in README.md or CONTRIBUTING.md. The text around it is written
by hand; each number in it names its source (`tools/sources.py`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd

from helpers import plots
from helpers.config import PROFILES, Profile
from helpers.data import data_files, read_jigsaw, split_rows
from helpers.experiments import EXPERIMENTS
from helpers.results import (
    PRIMARY,
    SECONDARY,
    Results,
    comparison_table,
    cost_table,
    find_result,
    has_results,
    load_results,
    model_costs,
    model_title,
    published_dir,
    published_results,
    read_results,
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
from helpers.saved import predictions_path, result_path
from tools.run_notebooks import MORE_NOTEBOOKS, NOTEBOOKS, without_outputs, write_notebook

PAGES = ("README.md", "CONTRIBUTING.md")
SHOWN_NOTEBOOKS = (*NOTEBOOKS, *MORE_NOTEBOOKS[:-1])  # the demo's outputs are a page that is served while it runs
ANSWERS = ("odd", "even", "lora", "teacher")  # the three answers to the sheet's question, and what they replace
FIGURES = {
    "figures/verdicts.png": "verdicts",
    "figures/start_and_end.png": "start_and_end",
    "image.png": "training_loss",
    "image-1.png": "test_metrics",
}
START_AND_END = "The even copy starts ahead, and the odd student ends ahead"
TRAINING_LOSS = "Training loss falls for all models; on validation LoRA's is the lowest"
SHAPES = {
    "minilm-stacked": "MiniLM, stacked to 12 × 384",
    "all-mpnet-base-v2": "all-mpnet-base-v2, 12 × 768",
    "bert-base-uncased": "bert-base-uncased, 12 × 768",
    "tiny-random": "random, 12 × 32",
}
NOT_YET_RUN, UNKNOWN = "not yet run", "–"


# --- what may be published -------------------------------------------------------------------------------------------


def check_real_comments(run: Run) -> None:
    """Refuses a run on synthetic comments."""
    if run.data_source not in ("jigsaw", "hub"):
        raise ValueError(f"run {run.name!r} was made on {run.data_label}; publish a run on the real comments")


def check_finished(run: Run) -> Results:
    """The results of a run that is finished and of one piece.

    Raises:
        FileNotFoundError: something has not been run; the message says what makes it.
        ValueError: the parts of the run do not belong together.
    """
    results = load_results(run)
    if results.missing:
        names = ", ".join(f"{name} (seed {seed})" for name, seed in results.missing)
        raise FileNotFoundError(f"run {run.name!r} is not finished: no result of {names}; run 01 to 03 again")
    paths = {name: run.directory / "notebooks" / f"{name}.ipynb" for name in SHOWN_NOTEBOOKS}
    absent = [name for name in NOTEBOOKS if not paths[name].is_file()]
    if absent:
        raise FileNotFoundError(f"run {run.name!r} is not finished: run {', '.join(absent)} first")
    shown = paths[NOTEBOOKS[-1]].stat().st_mtime
    for (name, seed), directory in results.directories.items():
        if result_path(directory, name, seed).stat().st_mtime > shown:
            raise ValueError(
                f"run {run.name!r} is mixed: {name} (seed {seed}) is newer than notebook {NOTEBOOKS[-1]}; run it again"
            )
    for path in paths.values():
        if path.is_file():
            check_notebook(path, run)
    return results


def check_notebook(path: Path, run: Run) -> None:
    """Refuses an executed notebook that is another version, of another run, failed, or was not run to its end."""
    executed, source = (nbformat.read(each, as_version=4) for each in (path, ROOT / "notebooks" / path.name))
    mixed, unfinished = f"run {run.name!r} is mixed", f"run {run.name!r} is not finished"
    if [cell.source for cell in executed.cells] != [cell.source for cell in source.cells]:
        raise ValueError(f"{mixed}: notebooks/{path.name} was changed since it was run; run it again")
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    if f"run: {run.name}; comments: {run.data_label}" not in str(cells[0].outputs):
        raise ValueError(f"{mixed}: its notebook {path.stem} was run on another run; run it again")
    if any(output.output_type == "error" for cell in cells for output in cell.outputs):
        raise ValueError(f"{unfinished}: its notebook {path.stem} ended with an error")
    if any(cell.execution_count is None for cell in cells):
        raise ValueError(f"{unfinished}: its notebook {path.stem} was not run to its end")


# --- copying a run ---------------------------------------------------------------------------------------------------


def publish(run: Run) -> None:
    """Copies the results of a finished run to results/<profile>/, in place of what was published there.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: the run is mixed, or made on synthetic comments.
    """
    check_real_comments(run)
    check_finished(run)
    with new_directory(published_dir(run)) as directory:
        copy_results(run, directory)
        write_comparison(read_results(directory), directory)
        write_json(directory / "data.json", data_facts(run.profile, data_files(run)))
        grid = replace(run, directory=run.directory / "grid", part="grid")
        if has_results(grid):
            copy_results(grid, directory / "grid")


def copy_results(run: Run, directory: Path) -> None:
    """Copies the run's results and predictions to a new folder: those that fit its settings, comments and teachers."""
    found = read_results(run.results_dir)
    for name, seed in found.directories:
        if belongs(name, seed, found, run):
            for place in (predictions_path, result_path):
                copy_file(place(run.results_dir, name, seed), place(directory, name, seed))
    removal = read_json(run.results_dir / "greedy_removal.json")
    if removal and removal["finished"]:
        write_json(directory / "greedy_removal.json", removal)


def belongs(name: str, seed: int, found: Results, run: Run) -> bool:
    """Whether a result is of the run as it is now; what a grid has tried is so if its comments and its teacher are."""
    if name in EXPERIMENTS:
        return find_result(run, EXPERIMENTS[name], seed) is not None
    inputs, data = found.by_name[name][seed]["inputs"], read_json(run.data_dir / "data.json") or {}
    teacher = found.by_name.get("teacher", {}).get(seed, {})
    return inputs["data"] == data.get("fingerprint") and inputs.get("teacher") in (None, teacher.get("fingerprint"))


def copy_file(source: Path, target: Path) -> None:
    """Copies a file whole or not at all: what was published stays valid where the disk is full."""
    write_file(target, lambda temporary: shutil.copyfile(source, temporary))


def data_facts(profile: Profile, source: Path) -> dict[str, dict]:
    """By split of the profile: rows, toxic rows and their share, median words, and the share with a wiki heading."""
    train, test, _ = read_jigsaw(source)
    splits, _ = split_rows(train, test, profile)
    return {split: split_facts(rows["comment_text"], rows["toxic"]) for split, rows in splits.items()}


def split_facts(texts: pd.Series, toxic: pd.Series) -> dict[str, float]:
    return {
        "rows": len(texts),
        "toxic": int(toxic.sum()),
        "prevalence": float(toxic.mean()),
        "median_words": float(texts.str.split().str.len().median()),
        "headings": float(texts.str.contains("==", regex=False).mean()),
    }


def publish_notebooks(run: Run) -> None:
    """Copies the executed notebooks of a finished run to notebooks/; one that it has not executed loses its outputs.

    Raises:
        FileNotFoundError, ValueError: as for `publish`.
    """
    check_real_comments(run)
    check_finished(run)
    for name in SHOWN_NOTEBOOKS:
        executed, shown = (folder / "notebooks" / f"{name}.ipynb" for folder in (run.directory, ROOT))
        if executed.is_file():
            write_notebook(nbformat.read(executed, as_version=4), shown)
        else:  # what stands there may be another run's
            write_notebook(without_outputs(nbformat.read(shown, as_version=4)), shown)


# --- tables ----------------------------------------------------------------------------------------------------------


def markdown(table: pd.DataFrame, align: str = "right") -> str:
    """The table in Markdown, its columns from the second on aligned so; its cells are text already."""
    align = ["left", *[align] * (table.shape[1] - 1)]
    return table.to_markdown(index=False, disable_numparse=True, colalign=align)


def number(value: float, digits: int, unit: float = 1) -> str:
    """The value in its unit; a dash where it is not known."""
    return UNKNOWN if value is None or pd.isna(value) else f"{value / unit:,.{digits}f}"


def signed(value: float) -> str:
    return UNKNOWN if value is None or pd.isna(value) else f"{value:+.3f}".replace("-", "−")


def with_deviation(row: pd.Series, column: str) -> str:
    """The mean over seeds ± their standard deviation, which a model of one seed does not have."""
    deviation = row.get(f"{column}_sd")
    return number(row[column], 3) + ("" if pd.isna(deviation) else f" ± {deviation:.3f}")


def answer_table(published: Results) -> str:
    """The three answers and their teacher: score and costs."""
    scores, costs = (make(published).set_index("experiment") for make in (comparison_table, model_costs))
    rows = []
    for name in ANSWERS:
        known = name in scores.index
        score = with_deviation(scores.loc[name], "average_precision") if known else NOT_YET_RUN
        row = {"model": model_title(name), "average precision": score}
        rows.append(row | _costs_in_words(costs.reindex([name]).iloc[0]))
    return markdown(pd.DataFrame(rows))


def _costs_in_words(costs: pd.Series) -> dict[str, str]:
    factor = number(costs["training_cost"], 1)
    return {
        "latency (ms)": number(costs["latency_ms"], 0),
        "on disk (MB)": number(costs["megabytes"], 0),
        "one more task (MB)": number(costs["megabytes_per_task"], 1),
        "training cost": factor if factor == UNKNOWN else f"{factor} ×",
    }


def results_table(results: Results) -> str:
    """Training loss and test scores of every model; an experiment without a result is not yet run."""
    found = comparison_table(results).set_index("experiment")
    scores = {"accuracy": "accuracy", "f1": "F1", "precision": "precision", "recall": "recall"}
    titles = ["model", "training loss (CE)", *scores.values(), "average precision"]
    rows = []
    for name in dict.fromkeys([*EXPERIMENTS, *found.index]):
        if name not in found.index:
            rows.append([model_title(name), NOT_YET_RUN, *[UNKNOWN] * 5])
            continue
        row = found.loc[name]
        numbers = [number(row[column], 3) for column in ("training_loss", *scores)]
        rows.append([row["model"], *numbers, with_deviation(row, "average_precision")])
    return markdown(pd.DataFrame(rows, columns=titles))


def verdict_tables(published: Results) -> str:
    """The two families of comparisons, each with a Holm correction of its own."""
    families = {"question of the exercise": PRIMARY, "other comparisons": SECONDARY}
    tables = []
    for title, pairs in families.items():
        rows = [
            {
                title: comparison,
                "difference": signed(found.difference),
                "95 % interval": f"{signed(found.low)} to {signed(found.high)}",
                "p (Holm)": number(found.p_holm, 3),
                "detectable": number(found.detectable, 3),
                "verdict": found.verdict or UNKNOWN,
            }
            for comparison, found in published.verdicts(pairs).items()
        ]
        tables.append(markdown(pd.DataFrame(rows)))
    return "\n\n".join(tables)


def costs_table(published: Results) -> str:
    """What the teacher, a student and LoRA cost."""
    rows = [
        {
            "model": row["model"],
            "parameters (M)": number(row["parameters"], 1, 1e6),
            "trained (M)": number(row["trainable_parameters"], 2, 1e6),
            "latency, int8 (ms)": number(row["int8_latency_ms"], 0),
        }
        | _costs_in_words(row)
        for _, row in cost_table(published).iterrows()
    ]
    table = pd.DataFrame(rows)
    order = ["model", "parameters (M)", "trained (M)", "on disk (MB)", "one more task (MB)"]
    return markdown(table[[*order, "latency (ms)", "latency, int8 (ms)", "training cost"]])


def profiles_table(_: Results) -> str:
    """What each run profile trains, on what, and how long it takes."""
    rows = []
    for profile in PROFILES.values():
        counts = (profile.train_rows, profile.validation_rows, profile.test_rows)
        row = {"profile": f"`{profile.name}`", "pretrained": SHAPES.get(profile.pretrained, profile.pretrained)}
        row["rows train / validation / test"] = " / ".join(map(_count, counts))
        row |= {"tokens": str(profile.max_length), "epochs": str(profile.epochs), "seeds": str(len(profile.seeds))}
        rows.append(row | {"expected time": profile.expected_time})
    return markdown(pd.DataFrame(rows), align="left")


def _count(rows: int | float | None) -> str:
    return "all" if rows is None else f"{rows:.0%}".replace("%", " %") if isinstance(rows, float) else f"{rows:,}"


BLOCKS: dict[str, Callable[[Results], str]] = {
    "answer": answer_table,
    "results": results_table,
    "verdicts": verdict_tables,
    "costs": costs_table,
    "profiles": profiles_table,
}


# --- pages and figures -----------------------------------------------------------------------------------------------


def between_markers(text: str, name: str, content: str) -> str:
    """The text with `content` between <!-- name --> and <!-- /name -->; as it is where these markers are not."""
    if f"<!-- {name} -->" not in text:
        return text
    before, rest = text.split(f"<!-- {name} -->")
    _, after = rest.split(f"<!-- /{name} -->")
    return f"{before}<!-- {name} -->\n{content}\n<!-- /{name} -->{after}"


def with_tables(text: str, published: Results) -> str:
    """A page with its tables made anew."""
    for name, block in BLOCKS.items():
        text = between_markers(text, name, block(published))
    return text


def renew_pages(published: Results) -> None:
    """Writes the tables of README.md and CONTRIBUTING.md anew, and draws the figures that README.md shows."""
    for page in PAGES:
        path = ROOT / page
        if path.is_file():
            text = with_tables(path.read_text(encoding="utf-8"), published)
            write_file(path, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    draw_figures(published)


def draw_figures(published: Results) -> None:
    """Draws the pictures of README.md, FIGURES."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        plots.verdicts({"Published run": published.verdicts(PRIMARY)}, directory)
        plots.start_and_end({"Published run": published}, START_AND_END, directory)
        plots.training_loss(published, ("teacher", "odd", "even", "lora"), TRAINING_LOSS, directory)
        plots.test_metrics(published, directory)
        for target, name in FIGURES.items():
            copy_file(directory / f"{name}.png", ROOT / target)


# --- from the command line -------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.publish", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", help="as in `make run`")
    parser.add_argument("--run", help="name of the run's folder in runs/ (default: the run that finished last)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--tables", action="store_true", help="copy nothing: renew tables and figures")
    what.add_argument("--notebooks", action="store_true", help="copy the run's executed notebooks alone")
    return parser.parse_args(arguments)


def chosen_run(profile: str | None, name: str | None) -> Run:
    """The run that the options or the variables PROFILE and RUN name, or else the one that finished last."""
    asked = profile or name or os.environ.get("PROFILE") or os.environ.get("RUN")
    return open_run(profile, name) if asked else find_finished_run()


@tells_errors()
def main(arguments: list[str] | None = None) -> int:
    """Publishes; returns the exit code. Errors that a person can act on come without a traceback."""
    options = parse_arguments(arguments)
    if options.notebooks:
        publish_notebooks(chosen_run(options.profile, options.run))
        return 0
    if not options.tables:
        publish(chosen_run(options.profile, options.run))
    renew_pages(published_results())
    return 0


if __name__ == "__main__":
    sys.exit(main())
