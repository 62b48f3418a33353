"""README.md's tables and sentences, made from the results that lie beside it; nothing in them is typed by hand.

A block of README.md stands between <!-- name --> and <!-- /name -->. `make publish` and `make submission` write all of
them; this does it for the results that are there:

    python -m helpers.report
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from helpers import discussion
from helpers.benchmark import FULL_ROWS, MEAN_TOKENS, benchmark_in_markdown, gpus_in_markdown
from helpers.config import PROFILES, load_profile
from helpers.evaluation import describe
from helpers.experiments import (
    EXPERIMENTS,
    LABELS_REFERENCES,
    LAYER_COMPARISONS,
    Experiment,
    MissingStage,
    beside_results,
    comparison_table,
    find_result,
    labels_run,
    load_results,
    planned_comparisons,
    real_verdicts,
)
from helpers.improvements import experiments_on_test, grid_run, run_grid, sections, winner, winner_comparisons
from helpers.runs import ROOT, Run, read_json, tells_errors, write_file

TABLE = {  # column of the comparison: title, unit, digits
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
    "peak_memory_bytes": ("peak memory (GB)", 1e9, 1),
    "latency_ms": ("latency (ms)", 1, 1),
}
SCORES = ("experiment", "accuracy", "f1", "precision", "recall", "average_precision")
PROPOSALS = {  # section of notebook 05: the proposal in the report's words, its figure
    "layers": ("Layer selection beyond odd and even", "grid_layers"),
    "soft targets": ("Temperature and weight of the soft targets", "grid_soft"),
    "regularised LoRA": ("Regularised LoRA", "grid_lora"),
    "hybrid": ("LoRA with distillation", "grid_hybrid"),
}
KAGGLE_SCORED_ROWS = 63_978  # of the competition's test.csv: those that test_labels.csv does not mark with -1
BERT_BASE = ("colab", "full")  # the profiles with bert-base, which need a GPU


def shown_run(root: Path) -> Run:
    """What is published below `root`/results/, as a run.

    Raises:
        FileNotFoundError: nothing is published there.
    """
    facts = read_json(root / "results" / "run.json")
    if facts is None:
        raise FileNotFoundError("results/run.json is missing: nothing is published here; `make publish RUN=…` does it")
    profile = load_profile(facts["profile"], "toxic")
    return Run("published", root, profile, facts["data_source"], None, profile.seeds)


# --- the blocks ------------------------------------------------------------------------------------------------------


def about_block(run: Run) -> str:
    """What was run: model, rows, data, seeds, machine; and which rows of the comparison are still missing."""
    results = load_results(run)
    some = results.first_seed()["teacher"]
    seeds = len(results.by_name["teacher"])
    pretrained = {
        "minilm-stacked": "a 12-layer BERT stacked from MiniLM's six layers, taken twice",
        "all-mpnet-base-v2": "all-mpnet-base-v2, a real 12-layer encoder",
        "bert-base-uncased": "bert-base-uncased",
        "tiny-random": "a tiny random BERT, for tests",
    }[run.profile.pretrained]
    data = f"a sample of {run.data_label}'s comments" if run.data_label == "Jigsaw" else run.data_label
    lines = [
        f"**What is shown here** is one run: profile `{run.profile.name}` (the profiles are listed below), {data} "
        f"({comments_in_words(some)}), {pretrained}, {seeds} of {len(run.profile.seeds)} seeds; device: "
        f"{some['device']}."
    ]
    for seed in sorted({seed for _, seed in results.missing}):
        names = ", ".join(name for name, missing in results.missing if missing == seed)
        lines.append(f"Not yet run with seed {seed}: {names}.")
    absent = [name for name in BERT_BASE if beside_results(run, name) is None]
    if run.profile.pretrained != "bert-base-uncased" and absent:
        commands = " or ".join(f"`make run publish PROFILE={name}`" for name in absent)
        lines.append(f"**bert-base-uncased: not yet run** ({', '.join(absent)}). {commands} on a GPU fills these rows.")
    return "\n\n".join(lines)


def comments_in_words(result: dict) -> str:
    """How many comments each split of a result's data held: '3,000 train, 1,000 validation, 2,557 test comments'."""
    return ", ".join(f"{count:,} {split}" for split, count in result["rows"].items()) + " comments"


def beside_block(run: Run) -> str:
    """The models that stand beside the three in the table, in words."""
    beside = [EXPERIMENTS[name] for name in run.profile.experiments if name not in ("odd", "even", "lora")]
    return "Beside them: " + "; ".join(f"`{experiment.name}` ({experiment.title})" for experiment in beside) + "."


def published_block(run: Run) -> str:
    """Which part of Kaggle's files the published run has read."""
    rows = next(iter(load_results(run).by_name.values()))
    count = next(iter(rows.values()))["rows"]
    return (
        f"The published run learned from {count['train']:,} comments of train.csv, chose on {count['validation']:,} "
        f"others and was scored on {count['test']:,} of test.csv. With the full download every split, and so every "
        f"score, is another one: Kaggle scores {KAGGLE_SCORED_ROWS:,} test comments."
    )


def results_block(run: Run) -> str:
    """The results table, and beside bert-base 'not yet run' where it has not been."""
    results = load_results(run)
    table = comparison_table(results)
    seeds = int(table["seeds"].max())
    several = "means ± standard deviations over " if seeds > 1 else ""
    lines = [
        f"Profile `{run.profile.name}`, {run.data_label}, {several}{seeds} seed{'s' if seeds > 1 else ''}. Scores: the "
        "test set's; F1, precision and recall are the toxic class's. A student's training comes on top of its "
        "teacher's.",
        "",
        *_markdown_table(table, TABLE),
    ]
    if run.profile.pretrained != "bert-base-uncased":
        for name in BERT_BASE:
            found = beside_results(run, name)
            if found is None:
                lines.append(f"| bert-base (`{name}`) | not yet run {'| – ' * (len(TABLE) - 2)}|")
                continue
            named = comparison_table(found)
            named["experiment"] += f" (bert-base, `{name}`: other rows)"
            lines += _markdown_table(named, TABLE)[2:]
    return "\n".join(lines)


def observed_block(run: Run) -> str:
    """What was expected beside what the verdicts say."""
    results = load_results(run)
    table, verdicts = comparison_table(results), planned_comparisons(results)
    kept = discussion.what_is_kept(table).splitlines()[2:]
    lora_lines = discussion.is_lora_efficient(discussion.what_lora_saves(results)).splitlines()[2:]
    expected = [
        (
            "The students come close to their teacher with half of its layers.",
            "\n".join([*_of(kept, "odd", "even"), discussion.are_they_close(results, ("odd", "even"))]),
        ),
        ("Odd and even are similar.", discussion.odd_or_even(verdicts, run, real_verdicts(run))),
        (
            "LoRA is competitive and cheaper to train.",
            "\n".join([*_of(kept, "lora"), *_with_lora(verdicts), *lora_lines]),
        ),
        ("Distilling helps.", discussion.did_distilling_help(results, verdicts)),
    ]
    answers = [(what, re.sub(r"^\*\*[^*]+\?\*\* ", "", found)) for what, found in expected]  # not the question again
    blocks = [f"**Expected: {what}** Observed:\n\n{found}" for what, found in answers]
    return "\n\n".join([*blocks, discussion.answer(table, verdicts)])


def _of(lines: list[str], *names: str) -> list[str]:
    return [line for line in lines if line.startswith(tuple(f"- **{name}**" for name in names))]


def _with_lora(verdicts: dict[str, dict]) -> list[str]:
    return [f"- {describe(title, found)}" for title, found in verdicts.items() if title.startswith("lora")]


def improvements_block(run: Run) -> str:
    """Each proposal: who won on validation, and what is left of its lead on test."""
    lines = ["| proposal | best on validation (average precision; the default's) | figure |", "|---|---|---|"]
    tried = sections(run)
    missing = [name for name in PROPOSALS if not _is_finished(tried[name], run)]
    for name, (what, figure) in PROPOSALS.items():
        if name in missing:
            lines.append(f"| {what} | not yet run: `make improvements PROFILE={run.profile.name}` | – |")
            continue
        table = run_grid(tried[name], run)
        found = table.set_index("experiment")
        best = found.loc[winner(table)]
        lines.append(
            f"| {what} | {best['title']}: {best['average_precision']:.3f} ({found['average_precision'].iloc[0]:.3f}) "
            f"| [figures/{figure}.png](figures/{figure}.png) |"
        )
    return "\n".join([*lines, "", *([] if missing else _winners_on_test(run))])


def _is_finished(tried: list[Experiment], run: Run) -> bool:
    grid = grid_run(run)
    return all(find_result(grid, experiment, grid.seeds[0]) for experiment in tried)


def _winners_on_test(run: Run) -> list[str]:
    chosen = experiments_on_test(run)
    results = load_results(run, extra=chosen)
    absent = [experiment.name for experiment in chosen if experiment.name not in results.by_name]
    if absent:
        return [f"On test: not yet run ({', '.join(absent)}); `make improvements PROFILE={run.profile.name}` goes on."]
    found = winner_comparisons(run, results)
    lines = ["The winners against their defaults, on the test set:" if found else "Every default won its section."]
    return [*lines, "", *(f"- {describe(title, comparison)}" for title, comparison in found.items())]


def layers_block(run: Run) -> str:
    """The run with a real encoder's layers, whose verdicts on layers count."""
    results = beside_results(run, "base")
    if results is None:
        commands = ("make base", ".venv/bin/python -m helpers.experiments --profile base", "make publish PROFILE=base")
        return f"Not yet run: {', then '.join(f'`{command}`' for command in commands)}."
    verdicts = planned_comparisons(results, LAYER_COMPARISONS)
    seeds = max(len(by_seed) for by_seed in results.by_name.values())
    return "\n".join(
        [
            f"Profile `base`: all-mpnet-base-v2, 12 layers 768 wide; {run.data_label}, {seeds} seed"
            f"{'s' if seeds > 1 else ''}, test scores.",
            "",
            *_markdown_table(comparison_table(results), {column: TABLE[column] for column in SCORES}),
            "",
            *(f"- {describe(title, found)}" for title, found in verdicts.items()),
        ]
    )


def overfitting_block(run: Run) -> str:
    """How validation cross-entropy goes on while LoRA trains, beside the teacher's and the odd student's."""
    return discussion.does_it_overfit(load_results(run), ("teacher", "odd", "lora"))


def copy_block(run: Run) -> str:
    """What the copied layers are worth, on the grids' validation rows."""
    tried = sections(run)["copy"]
    if not _is_finished(tried, run):
        return f"Not yet run: `make improvements PROFILE={run.profile.name}`."
    return discussion.what_is_the_copy_worth(tried, run)


def labels_block(run: Run) -> str:
    """All six labels: Kaggle's metric of each model, and published scores with what they were measured on."""
    try:
        found = load_results(labels_run(run), task="labels").first_seed()
    except MissingStage:
        return f"Not yet run: `TASK=labels .venv/bin/python -m helpers.experiments --profile {run.profile.name}`."
    rows = next(iter(found.values()))["rows"]
    lines = ["| model | mean column-wise ROC AUC (95 % interval) | measured on |", "|---|---|---|"]
    lines += [
        f"| {name} | {discussion.roc_auc_in_words(result)} | this run's {rows['test']:,} test comments, one seed |"
        for name, result in found.items()
    ]
    lines += [
        f"| {reference['model']} | {reference['mean_column_roc_auc']:.4f} | {reference['measured_on']} |"
        for reference in LABELS_REFERENCES
    ]
    return "\n".join(lines)


def benchmark_block(run: Run) -> str:
    """The benchmark's tables, where it has been run."""
    facts = read_json(run.results_dir / "benchmark.json")
    return benchmark_in_markdown(facts) if facts else "Not measured beside these results; `make bench` does it."


def gpu_block(run: Run) -> str:
    """What a GPU would take, by formula: none has been used."""
    intro = (
        "For a GPU, which has not been used yet, by formula (`gpu_estimate` in "
        f"[`benchmark.py`](helpers/benchmark.py)): bert-base, {FULL_ROWS:,} comments (90 % of train.csv) of "
        f"{MEAN_TOKENS} tokens on average."
    )
    return f"{intro}\n\n{gpus_in_markdown()}"


def profiles_block(run: Run) -> str:
    """The run profiles: what each trains, on what, and how long it takes."""
    comments = {"quick": "default without a GPU", "colab": "default with a GPU", "base": "after `make base`"}
    names = {
        "minilm-stacked": "MiniLM, stacked to 12 layers",
        "all-mpnet-base-v2": "all-mpnet-base-v2, a real 12 × 768",
    }
    lines = [
        "| profile | pretrained model | rows train / validation / test | seeds | expected time |",
        "|---|---|---|---|---|",
    ]
    for name, profile in PROFILES.items():
        if name == "smoke":
            continue
        rows = [
            "all" if count is None else f"{count:.0%}" if isinstance(count, float) else f"{count:,}"
            for count in (profile.train_rows, profile.validation_rows, profile.test_rows)
        ]
        comment = f" ({comments[name]})" if name in comments else ""
        lines.append(
            f"| `{name}`{comment} | {names.get(profile.pretrained, profile.pretrained)} | {' / '.join(rows)} | "
            f"{len(profile.seeds)} | {profile.expected_time} |"
        )
    return "\n".join(lines)


def _markdown_table(table: pd.DataFrame, columns: dict[str, tuple[str, float, int | None]]) -> list[str]:
    """The lines of a table; scores of several seeds with their standard deviation."""
    lines = ["| " + " | ".join(title for title, _, _ in columns.values()) + " |", "|" + "---|" * len(columns)]
    for _, row in table.iterrows():
        cells = []
        for column, (_, unit, digits) in columns.items():
            if digits is None:
                cells.append(str(row[column]))
                continue
            shown = row if column in SCORES else row.drop(f"{column}_sd", errors="ignore")
            cells.append(discussion.number_in_words(shown, column, digits, unit))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


BLOCKS: dict[str, Callable[[Run], str]] = {
    "about": about_block,
    "profiles": profiles_block,
    "beside": beside_block,
    "results": results_block,
    "observed": observed_block,
    "layers": layers_block,
    "copy": copy_block,
    "overfitting": overfitting_block,
    "improvements": improvements_block,
    "labels": labels_block,
    "published": published_block,
    "benchmark": benchmark_block,
    "gpu": gpu_block,
}


# --- writing them ----------------------------------------------------------------------------------------------------


def between_markers(text: str, name: str, content: str) -> str:
    """The text with `content` between its lines <!-- name --> and <!-- /name -->."""
    before, rest = text.split(f"<!-- {name} -->")
    _, after = rest.split(f"<!-- /{name} -->")
    return f"{before}<!-- {name} -->\n{content}\n<!-- /{name} -->{after}"


def write_report(root: Path) -> None:
    """Writes every block of `root`/README.md anew from `root`/results/."""
    path, run = root / "README.md", shown_run(root)
    text = path.read_text(encoding="utf-8")
    for name, block in BLOCKS.items():
        text = between_markers(text, name, block(run))
    write_file(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


@tells_errors()
def main() -> int:
    """Writes the report; returns the exit code."""
    write_report(ROOT)
    return 0


if __name__ == "__main__":
    sys.exit(main())
