"""The report's proposals, tried (notebook 05): grids of settings shown on validation, their winners scored on test.

A grid changes one thing at a time around the default. It trains on 1,500 rows with one seed in a part of its own,
runs/<run>/grid/, and never sees the test set. The winner of each section is then trained like a main experiment, with
every seed of the run, and compared on test. These are hours of work, which go on where they were stopped:

    python -m helpers.improvements rates layers --profile study
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch

from helpers.batches import predict, progress_bar
from helpers.config import Profile, unknown
from helpers.data import PreparedData
from helpers.evaluation import compare, score, toxic_probability, with_holm
from helpers.experiments import EXPERIMENTS, Experiment, load_teacher, prepare, run_experiment
from helpers.layers import NEIGHBOURS, SPREAD_LAYERS, copy_layers
from helpers.losses import hard_loss
from helpers.results import Results, compare_pairs, find_result, load_results, published_dir
from helpers.runs import (
    Run,
    add_run_arguments,
    fingerprint,
    only_writer,
    open_run,
    read_json,
    resumes,
    tells_errors,
    use_run_arguments,
    write_json,
)
from helpers.training import TrainingError

GRID_ROWS = 1_500
TEACHER_RATES = (2.5e-5, 5e-5, 1e-4)
STUDENT_RATES, LORA_RATES = (0.5, 1, 2), (3, 10, 30)  # times the teacher's rate
TEMPERATURES, SOFT_WEIGHTS = (1.0, 2.0, 4.0, 8.0), (0.25, 0.5, 1.0)
HYBRID = replace(EXPERIMENTS["lora_6"], name="hybrid", title="LoRA on the odd layers, distilled", distil=True)


def grid_run(run: Run) -> Run:
    """The run's part for grids: 1,500 training rows, the first seed, validation only; itself if it is that already."""
    if run.part == "grid":
        return run
    rows = run.profile.train_rows
    profile = replace(run.profile, train_rows=min(GRID_ROWS, rows) if rows else GRID_ROWS, seeds=run.profile.seeds[:1])
    return replace(
        run,
        directory=run.directory / "grid",
        profile=profile,
        seeds=profile.seeds,
        scored=("validation",),
        part="grid",
    )


# --- the grids as data -----------------------------------------------------------------------------------------------


def varied(experiment: str, profile: Profile, title: str, **changes) -> Experiment:
    """The experiment with some settings of the profile changed; itself, but for the title, if that changes nothing.

    It is named for its changes: `lora-rank_32_alpha_64`.
    """
    if profile.settings(*changes) == changes:
        return replace(EXPERIMENTS[experiment], title=f"{title} (default)")
    without_family = (re.sub("^(lora|student|teacher)_", "", field) for field in changes)
    suffix = "_".join(f"{field}_{value}" for field, value in zip(without_family, changes.values(), strict=True))
    return replace(EXPERIMENTS[experiment], name=f"{experiment}-{suffix}", title=title, changes=tuple(changes.items()))


def rate_search(profile: Profile) -> dict[str, list[Experiment]]:
    """Three rates for each family: the teacher's own, and for students and LoRA multiples of the profile's."""

    def tried(experiment: str, field: str, rates: list[float]) -> list[Experiment]:
        return [varied(experiment, profile, f"{experiment} at {rate:g}", **{field: rate}) for rate in rates]

    base = profile.teacher_learning_rate
    return {
        "teacher": tried("teacher", "teacher_learning_rate", list(TEACHER_RATES)),
        "odd": tried("odd", "student_learning_rate", [_rounded(times * base) for times in STUDENT_RATES]),
        "lora": tried("lora", "lora_learning_rate", [_rounded(times * base) for times in LORA_RATES]),
    }


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


def layer_selections(task_specific: tuple[int, ...] | None) -> list[Experiment]:
    """Distilled students with other layers of the same teacher; the task-specific ones come from `greedy_removal`."""
    odd = EXPERIMENTS["odd"]
    chosen = [
        odd,
        EXPERIMENTS["even"],
        EXPERIMENTS["first_six"],
        EXPERIMENTS["last_six"],
        replace(odd, name="spread", title="Spread layers", layers=SPREAD_LAYERS),
        replace(odd, name="merged", title="Means of neighbours", layers=NEIGHBOURS),
    ]
    if task_specific:
        chosen.append(replace(odd, name="task_specific", title="Task-specific layers", layers=task_specific))
    return chosen


def soft_target_settings(profile: Profile) -> list[Experiment]:
    """The odd student at other temperatures T and other weights α of the soft targets."""
    default = f"T = {profile.temperature:g}, α = {profile.alpha:g}"
    return [
        varied("odd", profile, default),
        *(varied("odd", profile, f"T = {t:g}", temperature=t) for t in TEMPERATURES if t != profile.temperature),
        *(varied("odd", profile, f"α = {a:g}", alpha=a) for a in SOFT_WEIGHTS if a != profile.alpha),
    ]


def lora_settings(profile: Profile) -> list[Experiment]:
    """LoRA, regularised in four ways: dropout, weight decay, rank (alpha = 2 r), and which layers get adapters."""
    slower = _rounded(profile.lora_learning_rate / 3)
    default = f"rank {profile.lora_rank}, dropout {profile.lora_dropout:g}, weight decay {profile.weight_decay:g}"
    return [
        varied("lora", profile, default),
        *(varied("lora", profile, f"dropout {p:g}", lora_dropout=p) for p in (0.0, 0.3)),
        *(varied("lora", profile, f"weight decay {w:g}", weight_decay=w) for w in (0.0, 0.1, 1.0)),
        *(varied("lora", profile, f"rank {r}", lora_rank=r, lora_alpha=2 * r) for r in (2, 32)),
        varied(
            "lora",
            profile,
            "all linear maps, a third of the rate",  # at the full rate they collapse
            lora_targets="all_linear",
            lora_learning_rate=slower,
        ),
    ]


def hybrids(profile: Profile) -> list[Experiment]:
    """Adapters trained with the distillation loss, beside adapters and a distilled student of as many epochs."""
    return [
        EXPERIMENTS["lora_6"],
        varied("odd", profile, "Odd student, LoRA's epochs", epochs=profile.lora_epochs),
        HYBRID,
    ]


def sections(run: Run) -> dict[str, list[Experiment]]:
    """The grids by section, in the order of notebook 05. A section begins with its default; rates rise.

    The task-specific layers are there once `greedy_removal` has found them.
    """
    grid = grid_run(run)
    rates = {f"rates of {family}": tried for family, tried in rate_search(grid.profile).items()}
    removal = _finished_removal(grid)
    return rates | {
        "layers": layer_selections(selection(removal) if removal else None),
        "soft targets": soft_target_settings(grid.profile),
        "regularised LoRA": lora_settings(grid.profile),
        "hybrid": hybrids(grid.profile),
    }


# --- running a grid --------------------------------------------------------------------------------------------------


def found_or_trained(experiment: Experiment, seed: int, run: Run) -> dict:
    """Its result: the run's, the published one, or a new one, for which a teacher without weights is trained first."""
    found = find_result(run, experiment, seed)
    if found:
        return found[0]
    prepare(run)
    if experiment.needs_teacher:
        run_experiment("teacher", seed, run)
    return run_experiment(experiment, seed, run)


def run_grid(experiments: list[Experiment], run: Run) -> pd.DataFrame:
    """Trains what is not trained or published yet; a row an experiment, validation scores only.

    Columns: experiment, title, average_precision (AP), f1 at the threshold chosen on the same rows, the lowest and the
    last epoch's cross-entropy, best epoch, seconds an epoch, trained parameters.
    """
    grid, rows = grid_run(run), []
    for experiment in experiments:
        result = found_or_trained(experiment, grid.seeds[0], grid)
        epochs = result["history"]["epochs"]
        rows.append(
            {
                "experiment": experiment.name,
                "title": experiment.title,
                "average_precision": result["validation"]["average_precision"],
                "f1": result["validation"]["f1"],
                "lowest_cross_entropy": min(epoch["validation"]["hard"] for epoch in epochs),
                "last_cross_entropy": epochs[-1]["validation"]["hard"],
                "best_epoch": result["history"]["best_epoch"],
                "seconds_an_epoch": result["costs"]["training_seconds"] / len(epochs),
                "trainable_parameters": result["trainable_parameters"],
            }
        )
    return pd.DataFrame(rows)


def grid_comparisons(tried: Sequence[Experiment], run: Run) -> dict[str, dict]:
    """The first experiment of a grid minus each of the others, paired over the validation rows of its one seed.

    Average precision, neither planned nor corrected; one seed does not speak for the next.
    """
    grid = grid_run(run)
    seed, found = grid.seeds[0], {experiment.name: find_result(grid, experiment, grid.seeds[0]) for experiment in tried}
    results = Results(
        by_name={name: {seed: result} for name, (result, _) in found.items()},
        directories={(name, seed): directory for name, (_, directory) in found.items()},
        missing=[],
    )
    default, *others = (results.probabilities(experiment.name, "validation") for experiment in tried)
    return {
        f"{tried[0].name} − {experiment.name}": compare(results.labels("validation"), default, scores)
        for experiment, scores in zip(tried[1:], others, strict=True)
    }


def winner(table: pd.DataFrame) -> str:
    """The name of the experiment with the largest validation average precision; of equals the first."""
    return table["experiment"][table["average_precision"].idxmax()]


# --- which layers does this task need? -------------------------------------------------------------------------------


def greedy_removal(run: Run) -> list[dict]:
    """Removes layers from the grid's teacher one by one, always the one whose loss costs least, until one is left.

    Nothing is trained: the validation cross-entropy of the remaining layers decides (after Sajjad et al. 2023,
    arXiv:2004.03844, who compare such rankings with simply keeping the lower layers). Goes on where it was stopped.

    Returns:
        A step each from 12 layers down to 1: `layers` (kept), `cross_entropy`, `average_precision`, and `without`: the
        cross-entropy that removing each of them would give.
    """
    grid = grid_run(run)
    done = _finished_removal(grid)
    if done:
        return done
    data = prepare(grid)
    run_experiment("teacher", grid.seeds[0], grid)
    teacher, result = load_teacher(grid.seeds[0], grid)
    path, made_from = grid.results_dir / "greedy_removal.json", _removal_fingerprint(result["fingerprint"])
    saved = read_json(path) or {}
    steps = saved["steps"] if saved.get("fingerprint") == made_from else []
    layers = tuple(steps[-1]["next"]) if steps else tuple(range(1, 13))
    with only_writer(grid):
        while layers:
            step = _removal_step(teacher, layers, data)
            steps.append(step)
            write_json(path, {"fingerprint": made_from, "finished": not step["next"], "steps": steps})
            layers = tuple(step["next"])
    return steps


def _removal_step(teacher: torch.nn.Module, layers: tuple[int, ...], data: PreparedData) -> dict:
    """The scores of these layers, and what is left after removing the one that is missed least."""
    rows, labels = data.splits["validation"], torch.tensor(data.labels("validation"))
    logits = predict(copy_layers(teacher, layers), rows)
    scores = score(toxic_probability(logits.numpy()), labels.numpy(), 0.5)
    step = {
        "layers": list(layers),
        "cross_entropy": float(hard_loss(logits, labels)),
        "average_precision": scores["average_precision"],
        "without": {},
    }
    candidates = layers if len(layers) > 1 else ()
    for layer in progress_bar(candidates, desc=f"{len(layers)} layers: which to remove", unit="layer", leave=False):
        rest = [kept for kept in layers if kept != layer]
        step["without"][str(layer)] = float(hard_loss(predict(copy_layers(teacher, rest), rows), labels))
    removed = min(step["without"], key=step["without"].get, default=None)
    return step | {"next": [kept for kept in layers if str(kept) != removed] if removed else []}


def _removal_fingerprint(teacher: str) -> str:
    return fingerprint({"stage": "greedy removal", "teacher": teacher})


def _finished_removal(grid: Run) -> list[dict] | None:
    """The steps, if all have been made from the grid's teacher as it is now, in the run or among what is published."""
    teacher = find_result(grid, EXPERIMENTS["teacher"], grid.seeds[0])
    for directory in (grid.results_dir, published_dir(grid)):
        saved = read_json(directory / "greedy_removal.json") or {}
        if (
            teacher
            and saved.get("finished")
            and saved["fingerprint"] == _removal_fingerprint(teacher[0]["fingerprint"])
        ):
            return saved["steps"]
    return None


def selection(steps: list[dict]) -> tuple[int, ...]:
    """The layers that greedy removal keeps when so many are left."""
    return tuple(next(step["layers"] for step in steps if len(step["layers"]) == 6))


# --- the winners, on test --------------------------------------------------------------------------------------------


def winners(run: Run) -> list[tuple[str, Experiment, Experiment]]:
    """(section, winner, default) where another one than the default won on validation.

    The hybrid was named beforehand: it stands against both that it is made of, whichever of them was better.
    """
    found = []
    for name, tried in sections(run).items():
        if name.startswith("rates"):
            continue  # the profile's rates are set by hand after the search
        if name == "hybrid":
            found += [(name, HYBRID, other) for other in tried if other != HYBRID]
            continue
        best = winner(run_grid(tried, run))
        if best != tried[0].name:
            found.append((name, next(experiment for experiment in tried if experiment.name == best), tried[0]))
    return found


def experiments_on_test(run: Run) -> list[Experiment]:
    """Every section's winner and what it is held against, each once."""
    return list({experiment.name: experiment for _, *pair in winners(run) for experiment in pair}.values())


def run_winners(run: Run) -> Results:
    """Trains every section's winner, and its default, with every seed of the run; the run's results and theirs."""
    chosen = experiments_on_test(run)
    for seed in run.seeds:
        for experiment in chosen:
            found_or_trained(experiment, seed, run)
    return load_results(run, extra=chosen)


def winner_comparisons(run: Run, results: Results) -> dict[str, dict]:
    """Each winner against its section's default: paired, over seeds and test rows, with Holm's correction."""
    return with_holm(compare_pairs(results, [(best.name, default.name) for _, best, default in winners(run)]))


def pareto_front(costs: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Which points no other one beats: none is as cheap and better, or as good and cheaper. Shapes (n,) → (n,)."""
    costs, scores = np.asarray(costs), np.asarray(scores)
    cheaper, better = costs[None] <= costs[:, None], scores[None] >= scores[:, None]
    strictly = (costs[None] < costs[:, None]) | (scores[None] > scores[:, None])
    return ~(cheaper & better & strictly).any(axis=1)


COSTS = ("trainable_parameters", "total_seconds", "peak_memory_bytes", "bytes", "latency_ms")


def fronts(table: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, np.ndarray]]:
    """The trained models of the comparison, and for each of COSTS who is on the Pareto front with average precision."""
    trained = table[table["parameters"].notna()].reset_index(drop=True)
    scores = trained["average_precision"].to_numpy()
    return trained, {cost: pareto_front(trained[cost].to_numpy(dtype=float), scores) for cost in COSTS}


# --- without a notebook ----------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m helpers.improvements", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help="for instance rates, layers (default: all, then the winners)")
    add_run_arguments(parser)
    return parser.parse_args(arguments)


@tells_errors(TrainingError)
@resumes
def main(arguments: list[str] | None = None) -> int:
    """Runs the sections asked for and prints their tables; returns the exit code."""
    options = parse_arguments(arguments)
    use_run_arguments(options)
    run = open_run()
    known = list(sections(run))
    wrong = [asked for asked in options.sections if not any(name.startswith(asked) for name in known)]
    if wrong:
        raise ValueError(unknown("section", wrong[0], known))
    for name in known:
        if not options.sections or any(name.startswith(asked) for asked in options.sections):
            if name == "layers":
                greedy_removal(run)
            table = run_grid(sections(run)[name], run)
            print(f"\n{name} (validation, {run.data_label})\n{table.to_string(index=False)}", flush=True)
    if not options.sections:
        run_winners(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
