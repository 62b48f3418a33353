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
import itertools
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from helpers.batches import predict, progress_bar
from helpers.config import PROFILES, Profile, unknown
from helpers.data import PreparedData
from helpers.evaluation import Difference, row_difference, score, toxic_probability
from helpers.experiments import (
    EXPERIMENTS,
    Experiment,
    MissingStage,
    experiment_fingerprint,
    finished_result,
    load_teacher,
    prepare,
    run_experiment,
)
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


def hybrids() -> list[Experiment]:
    """Adapters on the odd copy, the odd student, and the hybrid of both: the same adapters, trained by distillation."""
    return [EXPERIMENTS[name] for name in ("lora_6", "odd", "hybrid")]


def sections(profile: Profile, steps: Sequence[dict] = ()) -> dict[str, list[Experiment]]:
    """The four grids of a profile, in the order of notebook 05; each begins with its default.

    The task-specific layers are among them where `steps` says what `greedy_removal` has found.
    """
    return {
        "layers": layer_selections(selection(steps) if steps else None),
        "soft targets": soft_target_settings(profile),
        "regularised LoRA": lora_settings(profile),
        "hybrid": hybrids(),
    }


def sections_of(run: Run) -> dict[str, list[Experiment]]:
    """The run's four grids, with the task-specific layers once they have been found."""
    return sections(run.profile, own_removal(run))


# --- running a grid --------------------------------------------------------------------------------------------------


def grid_results(experiments: Iterable[Experiment], run: Run) -> Results:
    """What the run's grid has of these experiments. Nothing is trained: `missing` lists what is not there."""
    return own_results(grid_run(run), experiments)


def run_grid(experiments: Sequence[Experiment], run: Run) -> Results:
    """The grid's results of these experiments, scored on validation alone; what is missing is trained first."""
    if grid_results(experiments, run).missing:
        train_all(experiments, grid_run(run))
    return grid_results(experiments, run)


def train_all(experiments: Sequence[Experiment], run: Run) -> None:
    """Trains what the run does not have yet: all seeds of one experiment before the next one begins.

    Results are enough: only a teacher that is needed and whose weights are gone is trained again.
    """
    data = prepare(run)
    for experiment in experiments:
        for seed in run.seeds:
            made_from = experiment_fingerprint(experiment, seed, run.profile, data.fingerprint)
            if finished_result(experiment, seed, run, made_from, weights=False):
                continue
            if experiment.needs_teacher:
                run_experiment("teacher", seed, run)
            run_experiment(experiment, seed, run)


def grid_differences(results: Results, tried: Sequence[Experiment]) -> dict[str, Difference]:
    """By title: each experiment's validation average precision minus the default's, of those that `results` has.

    The default is the first of `tried` that `results` has. A grid has one seed: the intervals are those of the rows
    alone. They leave out the variance between seeds, and there is neither a p-value nor a verdict.
    """
    default, *others = [experiment for experiment in tried if experiment.name in results.by_name] or [None]
    found = {}
    for experiment in others:
        for seed in results.common_seeds(experiment.name, default.name)[:1]:
            logits = [results.logits(name, seed, "validation") for name in (experiment.name, default.name)]
            found[experiment.title] = row_difference(results.labels("validation"), *map(toxic_probability, logits))
    return found


def best_of(tried: Sequence[Experiment], results: Results) -> Experiment | None:
    """The experiment with the largest validation average precision, of equals the first; None if `results` has none."""
    known = [experiment for experiment in tried if experiment.name in results.by_name]
    return max(known, key=lambda experiment: _validated(results, experiment), default=None)


def _validated(results: Results, experiment: Experiment) -> float:
    """The validation average precision of an experiment's first seed."""
    return next(iter(results.by_name[experiment.name].values()))["validation"]["average_precision"]


# --- learning rates --------------------------------------------------------------------------------------------------


def search_rates(family: str, run: Run) -> dict[float, float]:
    """Validation average precision by learning rate, rates rising; `family` is one of RATES.

    A family of several experiments is judged by their mean. As long as the best rate stands at an edge of the list, the
    list goes on beyond it, by MORE_RATES rates at most. The profile's rates are set by hand after the search.
    """
    _, multiples = RATES[family]
    scores, pending = {}, [_rounded(multiple * run.profile.teacher_learning_rate) for multiple in multiples]
    while pending:
        scores |= {rate: _rate_score(family, rate, run) for rate in pending}
        pending = next_rate(scores) if len(scores) < len(multiples) + MORE_RATES else []
    return dict(sorted(scores.items()))


def _rate_score(family: str, rate: float, run: Run) -> float:
    names, _ = RATES[family]
    tried = [varied(name, run.profile, f"{name} at {rate:g}", **{f"{family}_learning_rate": rate}) for name in names]
    results = run_grid(tried, run)
    return sum(_validated(results, experiment) for experiment in tried) / len(tried)


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
        A step each from 12 layers down to 1: `layers` (kept), `cross_entropy`, `average_precision`, and `without`: the
        cross-entropy that removing each of them would give.
    """
    grid = grid_run(run)
    done = own_removal(run)
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


def own_removal(run: Run) -> list[dict]:
    """The steps of greedy removal, if all are made from the present teacher of the run's grid; else none."""
    grid = grid_run(run)
    teacher = find_result(grid, EXPERIMENTS["teacher"], grid.seeds[0])
    saved = read_json(grid.results_dir / "greedy_removal.json")
    fits = teacher and saved and saved["fingerprint"] == _removal_fingerprint(teacher["fingerprint"])
    return saved["steps"] if fits and saved["finished"] else []


def published_removal(profile: str) -> list[dict]:
    """The steps of greedy removal that are published for a profile; none where there are not any."""
    return (read_json(PUBLISHED_RESULTS / profile / "grid" / "greedy_removal.json") or {"steps": []})["steps"]


def grids(run: Run) -> dict[str, tuple[Results, dict[str, list[Experiment]]]]:
    """The grids of the published run and of one's own: by title their results, and the sections they belong to."""
    mine = sections_of(run)
    return {
        "Published run": (published_results("base/grid"), sections(PROFILES["base"], published_removal("base"))),
        "Your run": (grid_results(itertools.chain(*mine.values()), run), mine),
    }


def selection(steps: list[dict]) -> tuple[int, ...]:
    """The layers that greedy removal keeps when so many are left."""
    return tuple(next(step["layers"] for step in steps if len(step["layers"]) == 6))


# --- the winners, on test --------------------------------------------------------------------------------------------


def winners(results: Results, tried: dict[str, list[Experiment]]) -> list[tuple[str, Experiment, Experiment]]:
    """What goes to the test set, as (section, winner, default), by the validation scores of a grid and its sections.

    The best layers and the best soft targets, where they are not the default. Of LoRA's settings the best dropout and
    the best weight decay other than the default's: the sheet asks for regularisation, and another rank is none. The
    hybrid against both that it is made of, which was decided beforehand.
    """
    found = []
    for name in ("layers", "soft targets"):
        best, default = best_of(tried[name], results), tried[name][0]
        if best not in (None, default):
            found.append((name, best, default))
    default, *others = tried["regularised LoRA"]
    for setting in ("lora_dropout", "weight_decay"):
        best = best_of([experiment for experiment in others if dict(experiment.changes).keys() == {setting}], results)
        if best:
            found.append(("regularised LoRA", best, default))
    lora_6, odd, hybrid = hybrids()
    return [*found, ("hybrid", hybrid, lora_6), ("hybrid", hybrid, odd)]


def run_winners(grid: Results, run: Run) -> Results:
    """Trains the winners of a grid, and their defaults, with every seed; returns the run's results with theirs."""
    chosen = list(
        {experiment.name: experiment for _, *pair in winners(grid, sections_of(run)) for experiment in pair}.values()
    )
    results = load_results(run, extra=chosen)
    if {name for name, _ in results.missing} & {experiment.name for experiment in chosen}:
        train_all(chosen, run)
        results = load_results(run, extra=chosen)
    return results


def winner_verdicts(results: Results, chosen: Sequence[tuple[str, Experiment, Experiment]]) -> dict[str, Difference]:
    """The winners against their defaults on the test set, corrected together; those that `results` lacks are left out.

    `results` are those of the run, `chosen` what `winners` returned.
    """
    return results.verdicts((best.name, default.name) for _, best, default in chosen)


def check_main_results(run: Run) -> None:
    """Refuses a run that has not trained its main experiments: better to miss these now than at the end.

    Raises:
        MissingStage: what is missing, and what makes it.
    """
    missing = sorted({name for name, _ in load_results(run).missing})
    if missing:
        raise MissingStage(
            f"run {run.name!r} has no result of {', '.join(missing)} yet: `make run` first (same PROFILE)"
        )


# --- without a notebook ----------------------------------------------------------------------------------------------


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m helpers.improvements", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", help="for instance layers, rates (default: all but rates, and winners)")
    add_run_arguments(parser)
    return parser.parse_args(arguments)


@tells_errors(TrainingError)
def main(arguments: list[str] | None = None) -> int:
    """Trains the sections asked for and prints their scores; returns the exit code."""
    options = parse_arguments(arguments)
    use_run_arguments(options)
    run = open_run()
    known = [*sections_of(run), "rates"]
    chosen = [name for asked in options.sections for name in known if name.startswith(asked)] or known[:-1]
    wrong = [asked for asked in options.sections if not any(name.startswith(asked) for name in known)]
    if wrong:
        raise ValueError(unknown("section", wrong[0], known))
    if not options.sections:
        check_main_results(run)
    if "layers" in chosen:
        greedy_removal(run)
    for name in chosen:
        print(f"\n{name} (validation average precision, {run.data_label})", flush=True)
        for title, scored in _section_scores(name, run).items():
            print(f"{scored:.3f}  {title}", flush=True)
    if not options.sections:
        run_winners(grid_results(itertools.chain(*sections_of(run).values()), run), run)
    return 0


def _section_scores(name: str, run: Run) -> dict[str, float]:
    """Validation average precision by title; what is missing is trained first."""
    if name == "rates":
        found = {family: search_rates(family, run) for family in RATES}
        return {f"{family} at {rate:g}": scored for family, scores in found.items() for rate, scored in scores.items()}
    tried = sections_of(run)[name]
    results = run_grid(tried, run)
    return {experiment.title: _validated(results, experiment) for experiment in tried}


if __name__ == "__main__":
    sys.exit(main())
