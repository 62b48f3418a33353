"""The sheet's proposals, tried (notebook 05): grids of settings compared on validation, their winners scored on test.

A grid changes one thing at a time around its default. It trains on at most 1,500 rows with one seed, in a part of its
own, runs/<run>/grid/, and never sees the test set. The winners are then trained like a main experiment, with every seed
of the run. An interrupted grid resumes; only greedy removal, which takes minutes, begins again.

    python -m helpers.improvements
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from helpers.batches import predict, progress_bar
from helpers.config import PROFILES, Profile
from helpers.evaluation import Difference
from helpers.experiments import EXPERIMENTS, Experiment, MissingStage, load_teacher, prepare, run_experiment
from helpers.layers import NEIGHBOURS, SPREAD_LAYERS, copy_layers
from helpers.losses import hard_loss
from helpers.results import Results, find_result, load_results, own_results, published_results
from helpers.runs import PUBLISHED_RESULTS, Run, open_run, parse_run, read_json, tells_errors, write_json
from helpers.training import average_precision

GRID_ROWS = 1_500
TEMPERATURES, SOFT_WEIGHTS = (1.0, 2.0, 4.0, 8.0), (0.25, 0.5, 1.0)


def grid_run(run: Run) -> Run:
    """The run's part for grids: 1,500 training rows at most, the first seed, validation alone; itself if it is one."""
    if run.part == "grid":
        return run
    rows, seeds = min(run.profile.train_rows or GRID_ROWS, GRID_ROWS), run.profile.seeds[:1]
    profile = replace(run.profile, train_rows=rows, seeds=seeds)
    directory = run.directory / "grid"
    return replace(run, directory=directory, profile=profile, seeds=seeds, scored=("validation",), part="grid")


def varied(experiment: str, profile: Profile, title: str, **changes) -> Experiment:
    """The experiment with some settings changed, named `lora-rank_32_alpha_64`; itself if that changes nothing."""
    if profile.settings(*changes) == changes:
        return replace(EXPERIMENTS[experiment], title=f"{title} (default)")
    without_family = (re.sub("^(lora|student|teacher)_", "", field) for field in changes)
    suffix = "_".join(f"{field}_{value}" for field, value in zip(without_family, changes.values(), strict=True))
    return replace(EXPERIMENTS[experiment], name=f"{experiment}-{suffix}", title=title, changes=tuple(changes.items()))


def sections(profile: Profile, steps: Sequence[dict]) -> dict[str, list[Experiment]]:
    """The four grids of a profile, in the order of notebook 05; each begins with its default.

    The task-specific layers are those that `steps`, of `greedy_removal`, keep when six are left. A rank has twice its
    value as alpha. The hybrid stands beside what it is made of: adapters on the odd copy, and the odd student.
    """
    odd, lora = functools.partial(varied, "odd", profile), functools.partial(varied, "lora", profile)
    selections = {"spread": ("Spread layers", SPREAD_LAYERS), "merged": ("Means of neighbours", NEIGHBOURS)}
    for kept in (step["layers"] for step in steps if len(step["layers"]) == 6):
        selections["task_specific"] = ("Task-specific layers", tuple(kept))
    slower = float(f"{profile.lora_learning_rate / 3:.3g}")  # at the full rate adapters on all linear maps collapse
    return {
        "layers": [
            *(EXPERIMENTS[name] for name in ("odd", "even", "first_six", "last_six")),
            *(replace(EXPERIMENTS["odd"], name=n, title=t, layers=layers) for n, (t, layers) in selections.items()),
        ],
        "soft targets": [
            odd(f"T = {profile.temperature:g}, α = {profile.alpha:g}"),
            *(odd(f"T = {t:g}", temperature=t) for t in TEMPERATURES if t != profile.temperature),
            *(odd(f"α = {a:g}", alpha=a) for a in SOFT_WEIGHTS if a != profile.alpha),
        ],
        "regularised LoRA": [
            lora(f"rank {profile.lora_rank}, dropout {profile.lora_dropout:g}, weight decay {profile.weight_decay:g}"),
            *(lora(f"dropout {p:g}", lora_dropout=p) for p in (0.0, 0.3)),
            *(lora(f"weight decay {w:g}", weight_decay=w) for w in (0.0, 0.1, 1.0)),
            *(lora(f"rank {r}", lora_rank=r, lora_alpha=2 * r) for r in (2, 32)),
            lora("all linear maps, a third of the rate", lora_targets="all_linear", lora_learning_rate=slower),
        ],
        "hybrid": [EXPERIMENTS[name] for name in ("lora_6", "odd", "hybrid")],
    }


def own_grids(run: Run) -> tuple[Results, dict[str, list[Experiment]]]:
    """What the run's grids have so far, and the sections they belong to."""
    tried = sections(run.profile, own_removal(run))
    return own_results(grid_run(run), itertools.chain(*tried.values())), tried


def grids(run: Run) -> dict[str, tuple[Results, dict[str, list[Experiment]]]]:
    """The grids of the published run and of one's own: by title their results, and the sections they belong to."""
    published = published_results("base/grid"), sections(PROFILES["base"], published_removal())
    return {"Published run": published, "Your run": own_grids(run)}


def run_experiments(experiments: Sequence[Experiment], run: Run) -> Results:
    """The run's results of these experiments; what is missing is trained first, all seeds of one before the next."""
    if own_results(run, experiments).missing:
        prepare(run)
        by_name = {experiment.name: experiment for experiment in experiments}
        for name, seed in own_results(run, experiments).missing:
            if by_name[name].needs_teacher:
                run_experiment("teacher", seed, run)
            run_experiment(by_name[name], seed, run)
    return own_results(run, experiments)


def grid_differences(results: Results, tried: Sequence[Experiment]) -> dict[str, Difference]:
    """By title: the validation average precision of each experiment in `results` minus the first's; no verdict."""
    default, *others = [experiment for experiment in tried if experiment.name in results.by_name] or [None]
    return {
        experiment.title: results.difference(experiment.name, default.name, "validation")
        for experiment in others
        if results.common_seeds(experiment.name, default.name)
    }


def validated(results: Results, experiment: Experiment) -> float:
    """The validation average precision of an experiment's first seed."""
    return next(iter(results.by_name[experiment.name].values()))["validation"]["average_precision"]


def greedy_removal(run: Run) -> list[dict]:
    """Removes layers from the grid's teacher one by one, always the one whose loss costs least, until one is left.

    Nothing is trained: the validation cross-entropy of the remaining layers decides (after Sajjad et al. 2023,
    arXiv:2004.03844). Returns one step for each number of layers, from 12 down to 1: `layers` (kept), `cross_entropy`,
    `average_precision`, and `without` (the cross-entropy that removing each would give).
    """
    if steps := own_removal(run):
        return steps
    grid = grid_run(run)
    rows = prepare(grid).splits["validation"]
    run_experiment("teacher", grid.seeds[0], grid)
    teacher, result = load_teacher(grid.seeds[0], grid)
    labels, layers = torch.tensor(rows["toxic"][:]), list(range(1, 13))
    while layers:
        candidates, without = layers if len(layers) > 1 else [], {}
        for layer in progress_bar(candidates, desc=f"{len(layers)} layers: which to remove", unit="layer", leave=False):
            rest = [kept for kept in layers if kept != layer]
            without[str(layer)] = float(hard_loss(predict(copy_layers(teacher, rest), rows), labels))
        logits = predict(copy_layers(teacher, layers), rows)
        step = {"layers": layers, "cross_entropy": float(hard_loss(logits, labels)), "without": without}
        steps.append(step | {"average_precision": average_precision(labels, logits)})
        removed = min(without, key=without.get, default=None)
        layers = [kept for kept in candidates if str(kept) != removed]
    write_json(grid.results_dir / "greedy_removal.json", {"teacher": result["fingerprint"], "steps": steps})
    return steps


def own_removal(run: Run) -> list[dict]:
    """The steps of greedy removal in the run's grid, if they are those of its present teacher; else none."""
    grid = grid_run(run)
    teacher = find_result(grid, EXPERIMENTS["teacher"], grid.seeds[0])
    saved = read_json(grid.results_dir / "greedy_removal.json") or {"teacher": None}
    fits = teacher and saved.get("teacher") == teacher["fingerprint"] and len(saved["steps"][-1]["layers"]) == 1
    return saved["steps"] if fits else []


def published_removal() -> list[dict]:
    """The steps of greedy removal in the published run."""
    return read_json(PUBLISHED_RESULTS / "base" / "grid" / "greedy_removal.json")["steps"]


def winners(results: Results, tried: dict[str, list[Experiment]]) -> list[tuple[str, Experiment, Experiment]]:
    """What goes to the test set, as (section, winner, default), by the validation scores of a grid and its sections.

    The best layers and the best soft targets, where they are not the default. Of LoRA's settings the best dropout and
    the best weight decay other than the default's: the sheet asks for regularisation, and another rank is none. The
    hybrid against both that it is made of, which was decided beforehand.
    """
    lora, *others = tried["regularised LoRA"]
    lists = [(section, tried[section], tried[section][0]) for section in ("layers", "soft targets")]
    for setting in ("lora_dropout", "weight_decay"):
        varying = [experiment for experiment in others if dict(experiment.changes).keys() == {setting}]
        lists.append(("regularised LoRA", varying, lora))
    found = []
    for section, experiments, default in lists:
        scored = [experiment for experiment in experiments if experiment.name in results.by_name]
        best = max(scored, key=lambda experiment: validated(results, experiment), default=default)
        if best != default:
            found.append((section, best, default))
    lora_6, odd, hybrid = tried["hybrid"]
    return [*found, ("hybrid", hybrid, lora_6), ("hybrid", hybrid, odd)]


def run_winners(run: Run) -> Results:
    """Trains the winners of the run's grids, and their defaults, with every seed; returns the results with theirs."""
    chosen = [experiment for _, *pair in winners(*own_grids(run)) for experiment in pair]
    run_experiments(chosen, run)
    return load_results(run, extra=chosen)


@tells_errors
def main(arguments: list[str] | None = None) -> int:
    """Trains the grids and their winners and prints their validation scores; returns the exit code."""
    parse_run(argparse.ArgumentParser(prog="python -m helpers.improvements"), arguments)
    run = open_run()
    if missing := load_results(run).missing:  # better now than hours later
        names = ", ".join(sorted({name for name, _ in missing}))
        raise MissingStage(f"run {run.name!r} has no result of {names} yet: `make run` first (same PROFILE)")
    for name, tried in sections(run.profile, greedy_removal(run)).items():
        print(f"\n{name} (validation average precision, {run.data_label})", flush=True)
        results = run_experiments(tried, grid_run(run))
        for experiment in tried:
            print(f"{validated(results, experiment):.3f}  {experiment.title}", flush=True)
    run_winners(run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
