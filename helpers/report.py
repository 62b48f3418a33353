"""README.md's tables and sentences, made from the results that lie beside it; nothing in them is typed by hand.

A block of README.md stands between <!-- name --> and <!-- /name -->. `make publish` and `make submission` write all of
them; this does it for the results that are there:

    python -m helpers.report
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from helpers import discussion
from helpers.config import MAIN_EXPERIMENTS, PROFILES, load_profile
from helpers.data import KAGGLE_TRAIN_ROWS
from helpers.evaluation import Difference
from helpers.experiments import EXPERIMENTS, Experiment, MissingStage
from helpers.improvements import (
    experiments_on_test,
    grid_comparisons,
    grid_run,
    run_grid,
    sections,
    winner,
    winner_comparisons,
    winners,
)
from helpers.results import (
    LABELS_REFERENCES,
    PRIMARY,
    SECONDARY,
    Results,
    beside_results,
    compare_pairs,
    comparison_table,
    find_result,
    labels_run,
    load_results,
    planned_comparisons,
    published_results,
    real_verdicts,
)
from helpers.runs import ROOT, Run, read_json, tells_errors, write_file

Columns = dict[str, tuple[str, float, int | None]]
MAIN_COLUMNS: Columns = {  # column of the comparison: title, unit, digits
    "experiment": ("model", 1, None),
    "training_loss": ("training loss (CE)", 1, 3),
    "accuracy": ("accuracy", 1, 3),
    "f1": ("F1", 1, 3),
    "precision": ("precision", 1, 3),
    "recall": ("recall", 1, 3),
    "average_precision": ("average precision", 1, 3),
    "trainable_parameters": ("trained (M)", 1e6, 2),
    "training_seconds": ("training (min)", 60, 1),
    "latency_ms": ("latency (ms)", 1, 1),
}
MORE_COSTS: Columns = {
    "experiment": ("model", 1, None),
    "parameters": ("parameters (M)", 1e6, 1),
    "total_seconds": ("training with the teacher's (min)", 60, 1),
    "peak_memory_bytes": ("peak memory (GB)", 1e9, 1),
    "bytes": ("on disk (MB)", 1e6, 0),
    "bytes_to_ship": ("one more task (MB)", 1e6, 1),
}
SPREAD = ("f1", "average_precision")  # the scores that verdicts rest on stand with their standard deviation
BESIDES = (("odd", "teacher"), ("even", "teacher"), ("even", "even_hard"))  # compared, though it was not planned
TIMES = ("training_seconds", "latency_ms")  # of `base`: several trainings shared one GPU, so its times mean nothing
COSTED = ("teacher", "odd", "even", "lora", "lora_6")  # the others have one of these shapes
PROPOSALS = {  # section of notebook 05: the proposal in the report's words, its figure
    "layers": ("Layer selection beyond odd and even", "grid_layers"),
    "soft targets": ("Temperature and weight of the soft targets", "grid_soft"),
    "regularised LoRA": ("LoRA: dropout, weight decay, rank, targets", "grid_lora"),
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
        "minilm-stacked": "a 12-layer BERT stacked from the six layers of MiniLM (a small public BERT), taken twice",
        "all-mpnet-base-v2": "all-mpnet-base-v2, a real 12-layer encoder",
        "bert-base-uncased": "bert-base-uncased",
        "tiny-random": "a tiny random BERT, for tests",
    }[run.profile.pretrained]
    data, own_files = run.data_label, ""
    if data == "Jigsaw":
        data, own_files = "Jigsaw's comments", " JIGSAW_DIR=path/to/jigsaw"
    lines = [
        discussion.answer(comparison_table(results), planned_comparisons(results)),
        f"**What is shown here** is a run of the profile `{run.profile.name}` (*Details* list them all): {data} "
        f"({comments_in_words(some)}), {pretrained}, {seeds} of {len(run.profile.seeds)} seeds (trainings with another "
        f"random start); device: {some['device']}. Numbers of other runs (`base`, grids, six labels) are marked so. "
        f"`make run improvements publish PROFILE={run.profile.name}{own_files}` makes it again.",
    ]
    lines += _not_yet_run(results)
    absent = [name for name in BERT_BASE if beside_results(run, name) is None]
    if run.profile.pretrained != "bert-base-uncased" and absent:
        commands = " or ".join(f"`make run publish PROFILE={name}`" for name in absent)
        lines.append(
            f"**bert-base-uncased: not yet run** ({', '.join(absent)}). {commands} on a GPU fills its rows of results."
        )
    return "\n\n".join(lines)


def _not_yet_run(results: Results) -> list[str]:
    """A sentence for each seed that some model of the comparison has not been trained with."""
    names: dict[int, list[str]] = {}
    for name, seed in results.missing:
        names.setdefault(seed, []).append(name)
    return [f"Not yet run with seed {seed}: {', '.join(names[seed])}." for seed in sorted(names)]


def comments_in_words(result: dict) -> str:
    """How many comments each split of a result's data held: '3,000 train, 1,000 validation, 2,557 test comments'."""
    return ", ".join(f"{count:,} {split}" for split, count in result["rows"].items()) + " comments"


def published_block(run: Run) -> str:
    """Which part of Kaggle's files the published run has read."""
    results = load_results(run)
    rows = next(iter(results.by_name.values()))
    count = next(iter(rows.values()))["rows"]
    toxic = int(results.labels().sum())
    text = (
        f"The published run learned from {count['train']:,} comments of train.csv, chose on {count['validation']:,} "
        f"others and was scored on {count['test']:,} of test.csv, {toxic:,} of them toxic"
    )
    there = read_json(run.results_dir / "run.json").get("train_csv_rows")
    if there in (None, KAGGLE_TRAIN_ROWS):
        return f"{text}."
    return (
        f"{text}. Its files are samples of Kaggle's at the natural share of toxic comments: {there:,} of "
        f"{KAGGLE_TRAIN_ROWS:,} training rows, and a part of the {KAGGLE_SCORED_ROWS:,} scored test rows. With the "
        "full download the splits differ, so every score will."
    )


def results_block(run: Run) -> str:
    """The table of scores and costs, bert-base's rows ("not yet run" where missing); folded: more models, costs."""
    results = load_results(run)
    table = comparison_table(results)
    seeds = int(table["seeds"].max())
    means = f"means over {seeds} seeds, F1 and average precision ± standard deviation" if seeds > 1 else "1 seed"
    lines = [
        f"Profile `{run.profile.name}`, {run.data_label}; {means}. F1, precision and recall are the toxic class's. "
        "Trained: weights, in millions; latency: one comment; a student's training comes on top of its teacher's. All "
        "columns: `results/comparison.csv`.",
        "",
        *_markdown_table(table[table["experiment"].isin(MAIN_EXPERIMENTS)], MAIN_COLUMNS),
    ]
    if run.profile.pretrained != "bert-base-uncased":
        for name in BERT_BASE:
            found = beside_results(run, name)
            if found is None:
                lines.append(f"| bert-base, `{name}` | not yet run {'| – ' * (len(MAIN_COLUMNS) - 2)}|")
                continue
            named = comparison_table(found)
            seeds = f"seeds: {named['seeds'].max()} of {len(PROFILES[name].seeds)}"
            named["experiment"] += f" (bert-base, `{name}`: other rows, {seeds})"
            lines += _markdown_table(named, MAIN_COLUMNS)[2:]
    others = table[~table["experiment"].isin(MAIN_EXPERIMENTS)]  # they are folded
    others = others.assign(experiment=[f"`{name}`: {EXPERIMENTS[name].title}" for name in others["experiment"]])
    costed = table[table["experiment"].isin(COSTED)]
    folded = [*_markdown_table(others, MAIN_COLUMNS), "", *_markdown_table(costed, MORE_COSTS)]
    return "\n".join([*lines, "", *_folded("The other models; size, memory and bytes", folded)])


def _folded(title: str, lines: list[str]) -> list[str]:
    """Lines that a reader of the page opens; the empty ones let Markdown be read inside."""
    return [f"<details>\n<summary><b>{title}</b></summary>", "", *lines, "", "</details>"]


def observed_block(run: Run) -> str:
    """What was expected beside what the verdicts say."""
    results, base = load_results(run), real_verdicts()
    table, planned = comparison_table(results), planned_comparisons(results)
    besides = compare_pairs(results, BESIDES)
    at = {title: f"{title} is **{found['verdict']}**" for title, found in planned.items()}
    at |= {title: f"{title} is **{found['verdict']}** (not planned)" for title, found in besides.items()}
    odd, teacher = (table.set_index("experiment").loc[name] for name in ("odd", "teacher"))
    shares = {
        "parameters": f"{odd['parameters'] / teacher['parameters']:.0%} of the parameters",
        "memory": f"{odd['peak_memory_bytes'] / teacher['peak_memory_bytes']:.0%} of the memory while they are trained",
        "latency": f"{odd['latency_ms'] / teacher['latency_ms']:.0%} of the latency",
    }
    similar = [at["odd − even"]]
    if planned["odd − even"]["verdict"] == "inconclusive":
        similar[0] += ", which is not 'they are equal'"
    if run.profile.pretrained == "minilm-stacked":
        similar.append("this holds for this stacked BERT only, whose odd layers are MiniLM's 1, 3, 5, twice")
    if base:
        similar.append(f"with a real encoder's layers (`base`, below) it is **{base['odd − even'].verdict}**")
    efficient = discussion.is_lora_efficient(discussion.what_lora_saves(results)).splitlines()[2]
    expected = {
        "the students come close to their teacher with half of its layers": (
            f"{at['odd − teacher']}, {at['even − teacher']}; they have {', '.join(shares.values())}."
        ),
        "odd and even are similar": f"{'; '.join(similar)}.",
        "LoRA is competitive and cheaper to train": (
            f"{at['lora − odd']}, {at['lora − even']}. Against full fine-tuning, {efficient.removeprefix('- ')}"
        ),
    }
    helps = [at[title] for title in ("odd − odd_hard", "even − even_hard") if title in at]
    if helps:
        expected["distilling helps"] = f"{', '.join(helps)}."
    lines = [f"- Expected: *{what}*. Observed: {found}" for what, found in expected.items()]
    return "\n".join([*verdict_table(planned | besides), "", *lines])


def verdict_table(comparisons: dict[str, dict]) -> list[str]:
    """The lines of a table of comparisons; p is there where they were planned, corrected for their number."""
    lines = ["| | difference | 95 % interval | p (Holm) | detectable | verdict |", "|" + "---|" * 6]
    for title, found in comparisons.items():
        p = f"{found['p_holm']:.3f}" if "p_holm" in found else "–"
        interval = f"{found['low']:+.3f} to {found['high']:+.3f}"
        row = (title, f"{found['difference']:+.3f}", interval, p, f"{found['detectable']:.3f}", _verdict(found))
        lines.append(f"| {' | '.join(row)} |")
    return lines


def _verdict(found: dict) -> str:
    one_seed = len(found["by_seed"]) == 1 and found["verdict"] != "inconclusive"
    return found["verdict"] + (" (one seed does not speak for the next)" if one_seed else "")


def _briefly(found: dict) -> str:
    return f"{found['difference']:+.3f} ({found['low']:+.3f} to {found['high']:+.3f}): {_verdict(found)}"


def improvements_block(run: Run) -> str:
    """Each proposal: who won on validation, and what is left of its lead on test."""
    lines = [
        "| proposal | best on validation | its score (the default's) | on test, in average precision | figure |",
        "|" + "---|" * 5,
    ]
    tried = sections(run)
    missing = [name for name in PROPOSALS if not _is_finished(tried[name], run)]
    on_test = {} if missing else _winners_on_test(run)
    for name, (what, figure) in PROPOSALS.items():
        if name in missing:
            lines.append(f"| {what} | not yet run: `make improvements PROFILE={run.profile.name}` | – | – | – |")
            continue
        table = run_grid(tried[name], run)
        found = table.set_index("experiment")
        best = found.loc[winner(table)]
        scores = f"{best['average_precision']:.3f} ({found['average_precision'].iloc[0]:.3f})"
        default_won = name != "hybrid" and best.name == table["experiment"].iloc[0]  # the hybrid is scored anyway
        left = "the default won" if default_won else on_test.get(name, "not yet run")
        lines.append(f"| {what} | {best['title']} | {scores} | {left} | {_figure(run, figure)} |")
    if "regularised LoRA" not in missing:
        lines += ["", _regularised(run_grid(tried["regularised LoRA"], run))]
    return "\n".join(lines)


def _regularised(table: pd.DataFrame) -> str:
    """What regularising itself did to LoRA: the settings of its grid that leave its size as it is."""
    default = table.iloc[0]
    same_size = table[table["trainable_parameters"] == default["trainable_parameters"]].iloc[1:]
    told = ", ".join(f"{row['title']}: {row['average_precision']:.3f}" for _, row in same_size.iterrows())
    return (
        f"Dropout and weight decay alone, on validation with one seed: {told}; the default: "
        f"{default['average_precision']:.3f}. A larger rank is the opposite of regularising: more room."
    )


def _figure(run: Run, name: str) -> str:
    """A link to the figure, where the run has drawn it."""
    return f"[{name}](figures/{name}.png)" if (run.figures_dir / f"{name}.png").is_file() else "–"


def _is_finished(tried: list[Experiment], run: Run) -> bool:
    grid = grid_run(run)
    return all(find_result(grid, experiment, grid.seeds[0]) for experiment in tried)


def _winners_on_test(run: Run) -> dict[str, str]:
    """By section what its winner gains over its default, in words; a section that its default won is not there."""
    chosen = winners(run)
    results = load_results(run, extra=experiments_on_test(run))
    names = {experiment.name for _, *pair in chosen for experiment in pair}
    if not names <= results.by_name.keys():
        return {}
    compared = winner_comparisons(run, results)
    found: dict[str, list[str]] = {}
    for section, best, default in chosen:
        against = compared[f"{best.name} − {default.name}"]
        explained = "" if default.name in EXPERIMENTS else f": {default.title}"
        found.setdefault(section, []).append(f"{_briefly(against)} (against `{default.name}`{explained})")
    return {section: "; ".join(told) for section, told in found.items()}


def layers_block(run: Run) -> str:
    """The published run with a real encoder's layers, with the verdicts that count the seeds' variance."""
    try:
        results = published_results("base")
    except MissingStage:
        return "Not yet run: nothing of the profile `base` is published."
    rows = next(iter(results.by_name["teacher"].values()))["rows"]
    scores = _markdown_table(comparison_table(results), {k: v for k, v in MAIN_COLUMNS.items() if k not in TIMES})
    return "\n".join(
        [
            f"Profile `base`: all-mpnet-base-v2, 12 layers 768 wide; {rows['train']:,} training comments, "
            f"{rows['test']:,} test comments, {len(results.by_name['teacher'])} seeds, on one GPU. Differences in "
            "average precision with 95 % intervals that count test rows and seeds; the verdicts, not the intervals, "
            "are corrected by Holm's method, within the first three (the question of the sheet) and within the others. "
            "LoRA was trained at 3e-4, a third of its best rate in a search on 1,500 rows.",
            "",
            *_difference_table(results.verdicts(PRIMARY)),
            "",
            *_difference_table(results.verdicts(SECONDARY)),
            "",
            *_folded("All its scores", scores),
        ]
    )


def _difference_table(verdicts: dict[str, Difference]) -> list[str]:
    lines = ["| | difference | 95 % interval | p (Holm) | detectable | verdict |", "|" + "---|" * 6]
    for title, found in verdicts.items():
        numbers = f"{found.difference:+.3f} | {found.low:+.3f} to {found.high:+.3f} | {found.p_holm:.3f}"
        lines.append(f"| {title} | {numbers} | {found.detectable:.3f} | {found.verdict} |")
    return lines


def overfitting_block(run: Run) -> str:
    """How validation cross-entropy goes on while LoRA trains, beside the teacher's."""
    return (
        f"{discussion.does_it_overfit(load_results(run), ('teacher', 'lora'))}\n\nFigure: {_figure(run, 'overfitting')}"
    )


def copy_block(run: Run) -> str:
    """What the copied layers are worth, on the grids' validation rows."""
    tried = sections(run)["copy"]
    if not _is_finished(tried, run):
        return f"Not yet run: `make improvements PROFILE={run.profile.name}`."
    return "\n".join(f"- {title} {_briefly(found)}" for title, found in grid_comparisons(tried, run).items())


def labels_block(run: Run) -> str:
    """All six labels: Kaggle's metric of each model, and published scores with what they were measured on."""
    try:
        found = load_results(labels_run(run), task="labels").first_seed()
    except MissingStage:
        return f"Not yet run: `TASK=labels .venv/bin/python -m helpers.experiments --profile {run.profile.name}`."
    rows = next(iter(found.values()))["rows"]
    own = "; ".join(f"{name} {discussion.roc_auc_in_words(result)}" for name, result in found.items())
    others = "; ".join(
        f"{reference['model']} {reference['mean_column_roc_auc']:.4f}" for reference in LABELS_REFERENCES
    )
    return (
        f"Kaggle's metric, the mean column-wise ROC AUC, on {rows['test']:,} test comments, one seed, with 95 % "
        f"intervals: {own}. Elsewhere, with all of train.csv to learn from, on {LABELS_REFERENCES[0]['measured_on']}: "
        f"{others} ([Detoxify's README](https://github.com/unitaryai/detoxify))."
    )


def times_block(run: Run) -> str:
    """How long each profile takes, by device, in a sentence."""
    times = "; ".join(f"`{name}` {profile.expected_time}" for name, profile in PROFILES.items() if name != "smoke")
    return (
        f"Expected times: {times}. (With the sample of the published run: all of Kaggle's {KAGGLE_SCORED_ROWS:,} test "
        "comments take `study` and `base` hours more on a CPU.)"
    )


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


def _markdown_table(table: pd.DataFrame, columns: Columns) -> list[str]:
    """The lines of a table; the scores of SPREAD with their standard deviation over seeds."""
    lines = ["| " + " | ".join(title for title, _, _ in columns.values()) + " |", "|" + "---|" * len(columns)]
    for _, row in table.iterrows():
        cells = []
        for column, (_, unit, digits) in columns.items():
            if digits is None:
                cells.append(str(row[column]))
                continue
            shown = row if column in SPREAD else row.drop(f"{column}_sd", errors="ignore")
            cells.append(discussion.number_in_words(shown, column, digits, unit).replace(" ", ""))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


BLOCKS: dict[str, Callable[[Run], str]] = {
    "about": about_block,
    "times": times_block,
    "profiles": profiles_block,
    "results": results_block,
    "observed": observed_block,
    "layers": layers_block,
    "copy": copy_block,
    "overfitting": overfitting_block,
    "improvements": improvements_block,
    "labels": labels_block,
    "published": published_block,
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
