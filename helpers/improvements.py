"""The sheet's proposals, tried (notebook 05): grids of settings compared on validation, their winners scored on test.

A grid changes one thing at a time around its default. It trains on at most 1,500 rows with one seed, in a part of its
own, runs/<run>/grid/, and never sees the test set. The winners are then trained like a main experiment, with every seed
of the run. An interrupted grid resumes.

    python -m helpers.improvements                  every section, then the winners
    python -m helpers.improvements layers hybrid    these sections alone
    python -m helpers.improvements rates            the search for each family's learning rate
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
from sklearn.metrics import average_precision_score

from helpers.batches import predict, progress_bar
from helpers.config import PROFILES, Profile, unknown
from helpers.data import PreparedData
from helpers.evaluation import Difference
from helpers.experiments import EXPERIMENTS, Experiment, MissingStage, load_teacher, prepare, run_experiment
from helpers.layers import NEIGHBOURS, SPREAD_LAYERS, copy_layers
from helpers.losses import hard_loss
from helpers.results import Results, find_result, load_results, own_results, published_results
from helpers.runs import (
    PUBLISHED_RESULTS,
    Run,
    add_run_arguments,
    fingerprint,
    only_writer,
    open_run,
    read_json,
    tells_errors,
    use_run_arguments,
    write_json,
)
from helpers.training import TrainingError

GRID_ROWS = 1_500
TEMPERATURES, SOFT_WEIGHTS = (1.0, 2.0, 4.0, 8.0), (0.25, 0.5, 1.0)
# The rates that each family tries, as multiples of the teacher's, and the experiments whose mean decides.
RATES = {
    "teacher": (("teacher",), (0.5, 1, 2)),
    "student": (("odd", "even"), (0.5, 1, 2)),
    "lora": (("lora",), (10, 30, 100)),
}
MORE_RATES = 3  # by so many a list is widened at most


def grid_run(run: Run) -> Run:
    """The run's part for grids: 1,500 training rows at most, the first seed, validation alone; itself if it is one."""
    if run.part == "grid":
        return run
    rows, seeds = min(run.profile.train_rows or GRID_ROWS, GRID_ROWS), run.profile.seeds[:1]
    profile = replace(run.profile, train_rows=rows, seeds=seeds)
    directory = run.directory / "grid"
    return replace(run, directory=directory, profile=profile, seeds=seeds, scored=("validation",), part="grid")


# --- the grids as data -----------------------------------------------------------------------------------------------


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
    slower = _rounded(profile.lora_learning_rate / 3)  # at the full rate adapters on all linear maps collapse
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


# --- running a grid --------------------------------------------------------------------------------------------------


def own_grids(run: Run) -> tuple[Results, dict[str, list[Experiment]]]:
    """What the run's grids have so far, and the sections they belong to."""
    tried = sections(run.profile, own_removal(run))
    return own_results(grid_run(run), itertools.chain(*tried.values())), tried


def grids(run: Run) -> dict[str, tuple[Results, dict[str, list[Experiment]]]]:
    """The grids of the published run and of one's own: by title their results, and the sections they belong to."""
    published = published_results("base/grid"), sections(PROFILES["base"], published_removal("base"))
    return {"Published run": published, "Your run": own_grids(run)}


def run_experiments(experiments: Sequence[Experiment], run: Run) -> Results:
    """The run's results of these experiments; what is missing is trained first, all seeds of one before the next.

    Results are enough: only a teacher that is needed and whose weights are gone is trained again.
    """
    if own_results(run, experiments).missing:
        prepare(run)
        by_name = {experiment.name: experiment for experiment in experiments}
        for name, seed in own_results(run, experiments).missing:
            if by_name[name].needs_teacher:
                run_experiment("teacher", seed, run)
            run_experiment(by_name[name], seed, run)
    return own_results(run, experiments)


def grid_differences(results: Results, tried: Sequence[Experiment]) -> dict[str, Difference]:
    """By title: each experiment's validation average precision minus that of the first, of those that `results` has.

    A grid has one seed: the intervals are those of the rows alone, and there is neither a p-value nor a verdict.
    """
    default, *others = [experiment for experiment in tried if experiment.name in results.by_name] or [None]
    return {
        experiment.title: results.difference(experiment.name, default.name, "validation")
        for experiment in others
        if results.common_seeds(experiment.name, default.name)
    }


def validated(results: Results, experiment: Experiment) -> float:
    """The validation average precision of an experiment's first seed."""
    return next(iter(results.by_name[experiment.name].values()))["validation"]["average_precision"]


# --- learning rates --------------------------------------------------------------------------------------------------


def search_rates(family: str, run: Run) -> dict[float, float]:
    """Validation average precision by learning rate, rates rising; `family` is one of RATES.

    A family of several experiments is judged by their mean. As long as the best rate stands at an edge of the list, the
    list goes on beyond it, by MORE_RATES rates at most. The profile's rates are set by hand after the search.
    """
    names, multiples = RATES[family]
    scores, pending = {}, [_rounded(multiple * run.profile.teacher_learning_rate) for multiple in multiples]
    while pending:
        for rate in pending:
            tried = [varied(n, run.profile, f"{n} at {rate:g}", **{f"{family}_learning_rate": rate}) for n in names]
            results = run_experiments(tried, grid_run(run))
            scores[rate] = sum(validated(results, experiment) for experiment in tried) / len(tried)
        pending = next_rate(scores) if len(scores) < len(multiples) + MORE_RATES else []
    return dict(sorted(scores.items()))


def next_rate(scores: dict[float, float]) -> list[float]:
    """The rate beyond the edge where the best one stands, by the step that leads there; none if it stands inside."""
    rates = sorted(scores)
    best = max(rates, key=scores.get)
    inner = {rates[0]: rates[1], rates[-1]: rates[-2]}
    return [_rounded(best**2 / inner[best])] if best in inner else []


def _rounded(rate: float) -> float:
    return float(f"{rate:.3g}")


# --- which layers does this task need? -------------------------------------------------------------------------------


def greedy_removal(run: Run) -> list[dict]:
    """Removes layers from the grid's teacher one by one, always the one whose loss costs least, until one is left.

    Nothing is trained: the validation cross-entropy of the remaining layers decides (after Sajjad et al. 2023,
    arXiv:2004.03844, who compare such rankings with simply keeping the lower layers). It resumes where it stopped.

    Returns:
        One step each from 12 layers down to 1: `layers` (kept), `cross_entropy`, `average_precision`, `without` (the
        cross-entropy that removing each of them would give), and `next` (the layers of the next step).
    """
    steps, grid = own_removal(run), grid_run(run)
    if steps and not steps[-1]["next"]:
        return steps
    data = prepare(grid)
    run_experiment("teacher", grid.seeds[0], grid)
    teacher, result = load_teacher(grid.seeds[0], grid)
    steps = own_removal(run)
    layers = steps[-1]["next"] if steps else list(range(1, 13))
    with only_writer(grid):
        while layers:
            steps.append(_removal_step(teacher, layers, data))
            layers = steps[-1]["next"]
            removal = {"fingerprint": _removal_fingerprint(result), "finished": not layers, "steps": steps}
            write_json(grid.results_dir / "greedy_removal.json", removal)
    return steps


def _removal_step(teacher: torch.nn.Module, layers: list[int], data: PreparedData) -> dict:
    """The scores of these layers, and what is left after removing the one that is missed least."""
    rows, labels = data.splits["validation"], torch.tensor(data.labels("validation"))
    logits, without = predict(copy_layers(teacher, layers), rows), {}
    candidates = layers if len(layers) > 1 else []
    for layer in progress_bar(candidates, desc=f"{len(layers)} layers: which to remove", unit="layer", leave=False):
        rest = [kept for kept in layers if kept != layer]
        without[str(layer)] = float(hard_loss(predict(copy_layers(teacher, rest), rows), labels))
    removed = min(without, key=without.get, default=None)
    return {
        "layers": layers,
        "cross_entropy": float(hard_loss(logits, labels)),
        "average_precision": float(average_precision_score(labels, logits[:, 1] - logits[:, 0])),
        "without": without,
        "next": [kept for kept in candidates if str(kept) != removed],
    }


def _removal_fingerprint(teacher: dict) -> str:
    return fingerprint({"stage": "greedy removal", "teacher": teacher["fingerprint"]})


def own_removal(run: Run) -> list[dict]:
    """The steps of greedy removal in the run's grid so far, if they are those of its present teacher; else none."""
    grid = grid_run(run)
    teacher = find_result(grid, EXPERIMENTS["teacher"], grid.seeds[0])
    saved = read_json(grid.results_dir / "greedy_removal.json")
    return saved["steps"] if teacher and saved and saved["fingerprint"] == _removal_fingerprint(teacher) else []


def published_removal(profile: str) -> list[dict]:
    """The steps of greedy removal that are published for a profile; none where there are not any."""
    published = read_json(PUBLISHED_RESULTS / profile / "grid" / "greedy_removal.json")
    return published["steps"] if published else []


# --- the winners, on test --------------------------------------------------------------------------------------------


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


# --- without a notebook ----------------------------------------------------------------------------------------------


@tells_errors(TrainingError)
def main(arguments: list[str] | None = None) -> int:
    """Trains the sections asked for and prints their scores; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helpers.improvements", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help="for instance layers, rates (default: all but rates, and winners)")
    add_run_arguments(parser)
    options = parser.parse_args(arguments)
    use_run_arguments(options)
    run = open_run()
    known = [*sections(run.profile, []), "rates"]
    for asked in options.sections:
        if not any(name.startswith(asked) for name in known):
            raise ValueError(unknown("section", asked, known))
    chosen = [name for name in known if name.startswith(tuple(options.sections))] or known[:-1]
    if not options.sections and (missing := load_results(run).missing):  # better now than hours later
        names = ", ".join(sorted({name for name, _ in missing}))
        raise MissingStage(f"run {run.name!r} has no result of {names} yet: `make run` first (same PROFILE)")
    for name in chosen:
        print(f"\n{name} (validation average precision, {run.data_label})", flush=True)
        for title, scored in _section_scores(name, run).items():
            print(f"{scored:.3f}  {title}", flush=True)
    if not options.sections:
        run_winners(run)
    return 0


def _section_scores(name: str, run: Run) -> dict[str, float]:
    """Validation average precision by title; what is missing is trained first."""
    if name == "rates":
        found = {family: search_rates(family, run) for family in RATES}
        return {f"{family} at {rate:g}": scored for family, scores in found.items() for rate, scored in scores.items()}
    if name == "layers":
        greedy_removal(run)
    tried = sections(run.profile, own_removal(run))[name]
    results = run_experiments(tried, grid_run(run))
    return {experiment.title: validated(results, experiment) for experiment in tried}


if __name__ == "__main__":
    sys.exit(main())
