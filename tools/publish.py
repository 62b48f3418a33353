"""Publishes a finished run: copies its results to results/<profile>/, and renews the pages' tables and figures.

    python -m tools.publish --run base-jigsaw                  # copies the run's results, then renews the pages
    python -m tools.publish --tables                           # renews the pages from what is published
    python -m tools.publish --notebooks --run quick-jigsaw     # copies the run's executed notebooks

A table stands between <!-- name --> and <!-- /name --> in README.md or CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd

from helpers import plots, results
from helpers.config import PROFILES, Profile
from helpers.data import data_files, read_jigsaw, split_rows
from helpers.experiments import EXPERIMENTS
from helpers.models import PRETRAINED
from helpers.results import PRIMARY, SECONDARY, Results
from helpers.runs import ROOT, Run, new_directory, open_run, parse_run, read_json, tells_errors, write_file, write_json
from helpers.saved import predictions_path, result_path
from tools.run_notebooks import ALL_NOTEBOOKS, NOTEBOOKS, read_notebook, without_outputs, write_notebook

PAGES = ("README.md", "CONTRIBUTING.md")
SHOWN_NOTEBOOKS = ALL_NOTEBOOKS[:-1]  # the demo's output is a page that is served only while it runs
ANSWERS = ("odd", "even", "lora", "teacher")  # the three answers to the sheet's question, and what they replace
START_AND_END = "The even copy starts ahead, and the odd student ends ahead"
TRAINING_LOSS = "Training loss falls for all models; on validation LoRA's is the lowest"
FIGURES = {"image.png": "training_loss", "image-1.png": "test_metrics"}
FIGURES |= {f"figures/{name}.png": name for name in ("verdicts", "start_and_end")}
# A table's columns: what the reader sees, the column of the comparison or of the costs, and how a number is written.
SCORES = ("training_loss", "accuracy", "f1", "precision", "recall", "average_precision")
COSTS = {"megabytes": "{:,.0f}", "megabytes_per_task": "{:,.1f}", "latency_ms": "{:,.0f}"}
COSTS |= {"int8_latency_ms": "{:,.0f}", "training_cost": "{:.1f} ×"}
TITLES = {  # what the reader sees of columns whose names say less
    "training_loss": "training loss (CE)",
    "f1": "F1",
    "average_precision": "average precision",
    "parameters": "parameters (M)",
    "trainable_parameters": "trained (M)",
    "megabytes": "on disk (MB)",
    "megabytes_per_task": "one more task (MB)",
    "latency_ms": "latency (ms)",
    "int8_latency_ms": "latency, int8 (ms)",
    "training_cost": "training cost",
    "p_holm": "p (Holm)",
}


def check_real_comments(run: Run) -> None:
    """Refuses a run on synthetic comments."""
    if run.data_source not in ("jigsaw", "hub"):
        raise ValueError(f"run {run.name!r} was made on {run.data_label}; publish a run on the real comments (RUN=)")


def check_finished(run: Run) -> Results:
    """The results of a run: a FileNotFoundError says what has not been run, a ValueError what does not fit the rest."""
    found, unfinished = results.load_results(run), f"run {run.name!r} (RUN= names another) is not finished"
    if found.missing:
        names = ", ".join(f"{name} (seed {seed})" for name, seed in found.missing)
        raise FileNotFoundError(f"{unfinished}: no result of {names}; run 01 to 03 again")
    paths = {name: run.directory / "notebooks" / f"{name}.ipynb" for name in SHOWN_NOTEBOOKS}
    absent = [name for name in NOTEBOOKS if not paths[name].is_file()]
    if absent:
        raise FileNotFoundError(f"{unfinished}: run {', '.join(absent)} first")
    for (name, seed), directory in found.directories.items():
        if result_path(directory, name, seed).stat().st_mtime > paths["04_comparison"].stat().st_mtime:
            newer = f"{name} (seed {seed}) is newer than notebook 04_comparison"
            raise ValueError(f"run {run.name!r} is mixed: {newer}; run it again")
    for path in filter(Path.is_file, paths.values()):
        check_notebook(path, run)
    return found


def check_notebook(path: Path, run: Run) -> None:
    """Refuses an executed notebook that is another version, of another run, failed, or was not run to its end."""
    executed, source = nbformat.read(path, as_version=4), read_notebook(path.stem)
    cells = [cell for cell in executed.cells if cell.cell_type == "code"]
    wrong = {
        "was changed since it was run": [c.source for c in executed.cells] != [c.source for c in source.cells],
        "was run on another run": f"run: {run.name}; comments: {run.data_label}" not in str(cells[0].outputs),
        "ended with an error": any(output.output_type == "error" for cell in cells for output in cell.outputs),
        "was not run to its end": any(cell.execution_count is None for cell in cells),
    }
    for what, found in wrong.items():
        if found:
            raise ValueError(f"notebook {path.stem} of run {run.name!r} {what}; run it again")


def publish(run: Run) -> None:
    """Copies the results of a finished run on real comments to results/<profile>/, in place of what stood there."""
    check_real_comments(run)
    check_finished(run)
    with new_directory(results.PUBLISHED_RESULTS / run.profile.name) as directory:
        copy_results(run, directory)
        write_json(directory / "data.json", data_facts(run.profile, data_files(run)))
        grid = replace(run, directory=run.directory / "grid", part="grid")
        if any(grid.results_dir.glob("*-*.json")):
            copy_results(grid, directory / "grid")


def copy_results(run: Run, directory: Path) -> None:
    """Copies the results and predictions that fit the run's settings, comments and teachers to a new folder."""
    found = results.read_results(run.results_dir)
    (directory / "predictions").mkdir(parents=True)
    for name, seed in found.directories:
        if belongs(name, seed, found, run):
            for place in (predictions_path, result_path):
                shutil.copyfile(place(run.results_dir, name, seed), place(directory, name, seed))
    removal = read_json(run.results_dir / "greedy_removal.json")
    if removal:
        write_json(directory / "greedy_removal.json", removal)


def belongs(name: str, seed: int, found: Results, run: Run) -> bool:
    """Whether a result is of the run as it is now; one of a grid is if its comments and its teacher are the run's."""
    if name in EXPERIMENTS:
        return results.find_result(run, EXPERIMENTS[name], seed) is not None
    inputs, data = found.by_name[name][seed]["inputs"], read_json(run.data_dir / "data.json") or {}
    teacher = found.by_name.get("teacher", {}).get(seed, {})
    return inputs["data"] == data.get("fingerprint") and inputs.get("teacher") in (None, teacher.get("fingerprint"))


def data_facts(profile: Profile, source: Path) -> dict[str, dict[str, float]]:
    """By split of the profile: rows, toxic rows and their share, and the share with a wiki heading."""
    train, test, _ = read_jigsaw(source)
    splits, _ = split_rows(train, test, profile)
    return {
        split: {
            "rows": len(rows),
            "toxic": int(rows["toxic"].sum()),
            "prevalence": float(rows["toxic"].mean()),
            "headings": float(rows["comment_text"].str.contains("==", regex=False).mean()),
        }
        for split, rows in splits.items()
    }


def publish_notebooks(run: Run) -> None:
    """Copies the executed notebooks of a finished run to notebooks/; one that it has not executed loses its outputs."""
    check_real_comments(run)
    check_finished(run)
    for name in SHOWN_NOTEBOOKS:
        executed, shown = (folder / "notebooks" / f"{name}.ipynb" for folder in (run.directory, ROOT))
        kept = nbformat.read(executed, as_version=4) if executed.is_file() else without_outputs(read_notebook(name))
        write_notebook(kept, shown)


def markdown(table: pd.DataFrame, align: str = "right") -> str:
    """The table in Markdown, its columns from the second on aligned so; its cells are text already."""
    align = ["left", *[align] * (table.shape[1] - 1)]
    return table.rename(columns=TITLES).to_markdown(index=False, disable_numparse=True, colalign=align)


def written(table: pd.DataFrame, forms: dict[str, str]) -> pd.DataFrame:
    """These columns as text in their forms; a dash where a number is not known."""
    texts = {column: table[column].map(form.format, na_action="ignore") for column, form in forms.items()}
    return pd.DataFrame(texts).astype(object).fillna("–").replace("^-", "−", regex=True)


def written_scores(table: pd.DataFrame) -> pd.DataFrame:
    """The models' titles and scores as text, the main one ± its standard deviation over the seeds."""
    scores = written(table, dict.fromkeys(SCORES, "{:.3f}"))
    if "average_precision_sd" in table:
        deviations = table["average_precision_sd"].map(" ± {:.3f}".format, na_action="ignore")
        scores["average_precision"] += deviations.astype(object).fillna("")
    scores.loc[table["average_precision"].isna(), "average_precision"] = "not yet run"
    return scores.assign(model=[results.model_title(name) for name in table.index])


def answer_table(published: Results) -> str:
    """The three answers and their teacher: score and costs."""
    scores = results.comparison_table(published).set_index("experiment").reindex(ANSWERS)
    costs = results.model_costs(published).set_index("experiment").reindex(ANSWERS)
    columns = ["model", "average_precision", "latency_ms", "megabytes", "megabytes_per_task", "training_cost"]
    return markdown(written_scores(scores).join(written(costs, COSTS))[columns])


def results_table(found: Results, names: Iterable[str] | None = None) -> str:
    """Training loss and test scores of every model that has been run, or of these, run or not."""
    table = results.comparison_table(found).set_index("experiment")
    return markdown(written_scores(table.reindex(names) if names else table)[["model", *SCORES]])


def verdict_tables(published: Results) -> str:
    """The two families of comparisons, each with a Holm correction of its own."""
    forms = dict.fromkeys(("difference", "low", "high"), "{:+.3f}") | {"p_holm": "{:.3f}", "detectable": "{:.3f}"}
    tables = []
    for title, pairs in {"question of the exercise": PRIMARY, "other comparisons": SECONDARY}.items():
        found = results.verdict_table(published.verdicts(pairs))
        table = written(found, {"comparison": "{}"} | forms | {"verdict": "{}"}).rename(columns={"comparison": title})
        table.insert(2, "95 % interval", table.pop("low") + " to " + table.pop("high"))
        tables.append(markdown(table))
    return "\n\n".join(tables)


def costs_table(published: Results) -> str:
    """What the teacher, a student and LoRA cost."""
    costs = results.cost_table(published)
    costs = costs.assign(**{column: costs[column] / 1e6 for column in ("parameters", "trainable_parameters")})
    return markdown(written(costs, {"model": "{}", "parameters": "{:.1f}", "trainable_parameters": "{:.2f}"} | COSTS))


def profiles_table(_: Results) -> str:
    """What each run profile trains, on what, and how long it takes."""
    rows = []
    for profile in PROFILES.values():
        counts = (profile.train_rows, profile.validation_rows, profile.test_rows)
        row = {"profile": f"`{profile.name}`", "pretrained": PRETRAINED[profile.pretrained].description}
        row["rows train / validation / test"] = " / ".join(map(_count, counts))
        row |= {"tokens": str(profile.max_length), "epochs": str(profile.epochs), "seeds": str(len(profile.seeds))}
        rows.append(row | {"expected time": profile.expected_time})
    return markdown(pd.DataFrame(rows), align="left")


def _count(rows: int | float | None) -> str:
    return "all" if rows is None else f"{rows:.0%}".replace("%", " %") if isinstance(rows, float) else f"{rows:,}"


BLOCKS: dict[str, Callable[[Results], str]] = {
    "answer": answer_table,
    "results": partial(results_table, names=EXPERIMENTS),
    "verdicts": verdict_tables,
    "costs": costs_table,
    "profiles": profiles_table,
}


def with_tables(text: str, published: Results) -> str:
    """A page with each table between its markers made anew."""

    def renewed(found: re.Match) -> str:
        return f"<!-- {found[1]} -->\n{BLOCKS[found[1]](published)}\n<!-- /{found[1]} -->"

    return re.sub(r"<!-- (\w+) -->.*?<!-- /\1 -->", renewed, text, flags=re.S)


def renew_pages(published: Results) -> None:
    """Writes the tables of README.md and CONTRIBUTING.md anew, and draws the figures that README.md shows."""
    for page in PAGES:
        text = with_tables((ROOT / page).read_text(encoding="utf-8"), published)
        write_file(ROOT / page, lambda temporary, text=text: temporary.write_text(text, encoding="utf-8"))
    draw_figures(published)


def draw_figures(published: Results) -> None:
    """Draws the pictures of README.md, FIGURES."""
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        verdicts = {"Published run": published.verdicts(PRIMARY)}
        plots.forest(verdicts, "Which model is better on the test set?", directory, "verdicts")
        plots.start_and_end({"Published run": published}, START_AND_END, directory)
        plots.training_loss(published, ("teacher", "odd", "even", "lora"), TRAINING_LOSS, directory)
        plots.test_metrics(published, directory)
        for target, name in FIGURES.items():
            shutil.copyfile(directory / f"{name}.png", ROOT / target)


@tells_errors
def main(arguments: list[str] | None = None) -> int:
    """Publishes; returns the exit code. Errors that a person can act on come without a traceback."""
    parser = argparse.ArgumentParser(prog="python -m tools.publish", description=__doc__.splitlines()[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--tables", action="store_true", help="copy nothing: renew tables and figures")
    what.add_argument("--notebooks", action="store_true", help="copy the run's executed notebooks alone")
    options = parse_run(parser, arguments)
    if options.notebooks:
        publish_notebooks(open_run())
        return 0
    if not options.tables:
        publish(open_run())
    renew_pages(results.published_results())
    return 0


if __name__ == "__main__":
    sys.exit(main())
