"""The grids of notebook 05: one thing at a time, on validation alone, and the winners on test."""

import itertools
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from helpers import experiments, improvements
from helpers.config import PROFILES
from helpers.experiments import EXPERIMENTS, experiment_fingerprint
from helpers.improvements import (
    greedy_removal,
    grid_differences,
    grid_run,
    own_grids,
    published_removal,
    run_experiments,
    run_winners,
    sections,
    varied,
    winners,
)
from helpers.results import Results, published_results
from helpers.runs import read_json
from helpers.saved import predictions_path

BASE = PROFILES["base"]
SECTIONS = sections(BASE, published_removal())
TRIED = [EXPERIMENTS["odd"], SECTIONS["layers"][4]]
BASE_RUN = improvements.Run("no-such-run", Path("runs/no-such-run"), BASE, "jigsaw", None, BASE.seeds)


@pytest.fixture(scope="module")
def grid(finished_run, tmp_path_factory):
    """A run of `smoke` whose grids are being made: (run, the results of two experiments)."""
    run = replace(finished_run, directory=tmp_path_factory.mktemp("grid"))
    return run, run_experiments(TRIED, grid_run(run))


@pytest.mark.parametrize("name", ["layers", "soft targets", "regularised LoRA"])
def test_a_section_begins_with_its_default(name):
    default, main = SECTIONS[name][0], EXPERIMENTS["lora" if "LoRA" in name else "odd"]
    assert replace(default, title=main.title) == main
    assert all(experiment.name != main.name for experiment in SECTIONS[name][1:])


def test_an_unchanged_setting_is_the_experiment_itself_but_for_its_title():
    found = varied("odd", BASE, "T = 2", temperature=2.0)
    assert found == replace(EXPERIMENTS["odd"], title="T = 2 (default)")


def test_a_changed_setting_is_named_in_the_experiment_and_its_family_once():
    assert varied("lora", BASE, "rank 32", lora_rank=32, lora_alpha=64).name == "lora-rank_32_alpha_64"


@pytest.mark.parametrize("attribute", ["name", "title"])
def test_every_experiment_of_a_section_has_a_name_and_a_title_of_its_own(attribute):
    for tried in SECTIONS.values():
        assert len({getattr(experiment, attribute) for experiment in tried}) == len(tried)


def test_rank_keeps_alpha_at_twice_its_value():
    ranks = [e.profile(BASE) for e in SECTIONS["regularised LoRA"][1:] if "rank" in e.title]
    assert [(p.lora_rank, p.lora_alpha) for p in ranks] == [(2, 4), (32, 64)]


@pytest.mark.parametrize("change", [{"temperature": 4.0}, {"lora_rank": 2, "lora_alpha": 4}], ids=["odd", "lora"])
def test_a_changed_setting_changes_the_fingerprint_and_not_the_teacher(change):
    main = EXPERIMENTS["lora" if "lora_rank" in change else "odd"]
    changed = varied(main.name, BASE, "changed", **change)
    assert experiment_fingerprint(changed, 1, BASE, "x") != experiment_fingerprint(main, 1, BASE, "x")
    inputs = [experiments.experiment_inputs(each, 1, BASE, "x") for each in (changed, main)]
    assert inputs[0] == inputs[1]


def test_task_specific_layers_are_those_that_greedy_removal_keeps():
    assert SECTIONS["layers"][-1].layers == (1, 2, 6, 8, 9, 12)
    assert "task_specific" not in [experiment.name for experiment in sections(BASE, [])["layers"]]


def test_the_grid_has_at_most_1500_rows():
    found = grid_run(BASE_RUN)
    assert (found.profile.train_rows, found.seeds, found.scored) == (1_500, (1,), ("validation",))
    assert grid_run(found) == found


def test_a_grid_is_never_scored_on_test_and_lies_apart_from_the_runs_results(grid):
    run, _ = grid
    assert "test" not in read_json(grid_run(run).results_dir / "odd-1.json")
    frame = pd.read_parquet(predictions_path(grid_run(run).results_dir, "odd", 1))
    assert set(frame["split"]) == {"validation"}
    assert not run.results_dir.exists()


def test_a_grid_that_was_trained_is_not_trained_again(grid, monkeypatch):
    run, results = grid
    monkeypatch.setattr(improvements, "run_experiment", None)
    assert run_experiments(TRIED, grid_run(run)).by_name == results.by_name
    found, tried = own_grids(run)
    assert set(found.by_name) == {"odd", "spread"}
    assert len(found.missing) == len({experiment.name for experiment in itertools.chain(*tried.values())}) - 2


def test_all_seeds_of_an_experiment_are_trained_before_the_next_and_each_after_its_teacher(finished_run, monkeypatch):
    trained = []
    monkeypatch.setattr(improvements, "run_experiment", lambda found, seed, _: trained.append((found, seed)))
    profile = replace(finished_run.profile, seeds=(1, 2))
    run_experiments([EXPERIMENTS["lora"], TRIED[1]], replace(finished_run, profile=profile, seeds=(1, 2)))
    assert trained == [(EXPERIMENTS["lora"], 2), ("teacher", 1), (TRIED[1], 1), ("teacher", 2), (TRIED[1], 2)]


def test_greedy_removal_removes_the_layer_that_costs_least_and_is_done_once(grid, monkeypatch):
    run, _ = grid
    steps = greedy_removal(run)
    assert [len(step["layers"]) for step in steps] == list(range(12, 0, -1))
    for step, following in itertools.pairwise(steps):
        removed = (set(step["layers"]) - set(following["layers"])).pop()
        assert step["without"][str(removed)] == min(step["without"].values())
    monkeypatch.setattr(improvements, "predict", None)
    assert greedy_removal(run) == steps


def test_a_difference_is_that_of_average_precision_on_the_validation_rows():
    results = published_results("base/grid")
    found = grid_differences(results, SECTIONS["layers"])["Spread layers"]
    labels = results.labels("validation")
    scores = [average_precision_score(labels, results.probabilities(n, "validation")[0]) for n in ("spread", "odd")]
    assert found.difference == pytest.approx(scores[0] - scores[1])
    assert found.low < found.difference < found.high
    assert (found.p_value, found.verdict) == (None, None)


def test_differences_are_those_of_what_was_trained_against_the_first_of_it(grid):
    _, results = grid
    assert list(grid_differences(results, [EXPERIMENTS["even"], *TRIED])) == ["Spread layers"]
    assert grid_differences(results, [EXPERIMENTS["even"]]) == {}


HYBRIDS = [("hybrid", "LoRA, distilled", name) for name in ("lora_6", "odd")]


def named_winners(scores: dict[str, float]) -> list[tuple[str, str, str]]:
    """(section, title, default) of the winners of a grid in which what `scores` does not name by its title has 0.5."""
    by_name = {}
    for experiment in itertools.chain(*SECTIONS.values()):
        by_name[experiment.name] = {1: {"validation": {"average_precision": scores.get(experiment.title, 0.5)}}}
    found = winners(Results(by_name, {}, missing=[]), SECTIONS)
    return [(section, best.title, default.name) for section, best, default in found]


def test_what_does_not_beat_its_default_stays_at_home_but_for_regularisation_and_the_hybrid():
    regularised = [("regularised LoRA", title, "lora") for title in ("dropout 0", "weight decay 0")]
    assert named_winners({}) == [*regularised, *HYBRIDS]


def test_the_best_of_each_section_goes_to_the_test_set_and_a_larger_rank_does_not():
    best = {"Spread layers": 0.6, "T = 4": 0.6, "dropout 0.3": 0.4, "dropout 0": 0.3, "weight decay 0.1": 0.7}
    assert named_winners(best | {"rank 32": 0.9}) == [
        ("layers", "Spread layers", "odd"),
        ("soft targets", "T = 4", "odd"),
        ("regularised LoRA", "dropout 0.3", "lora"),
        ("regularised LoRA", "weight decay 0.1", "lora"),
        *HYBRIDS,
    ]


def test_the_winners_of_the_published_grid_are_found():
    found = winners(*improvements.grids(BASE_RUN)["Published run"])
    assert [best.title for _, best, _ in found] == [
        "Task-specific layers",
        "T = 1",
        *(title for _, title, _ in HYBRIDS),
    ]


def test_the_winners_are_trained_once_with_every_seed_and_their_defaults(copied_run, monkeypatch):
    trained = []
    original = improvements.run_experiment
    monkeypatch.setattr(improvements, "run_experiment", lambda *found: trained.append(found) or original(*found))
    assert "hybrid" in run_winners(copied_run).by_name
    assert trained
    trained.clear()
    run_winners(copied_run)
    assert not trained


def test_the_grids_are_refused_where_the_run_has_no_main_results(smoke_run, monkeypatch, capsys):
    monkeypatch.setattr(improvements, "run_experiments", lambda *_: pytest.fail("trained"))
    assert improvements.main(["--profile", "smoke"]) == 2
    assert "has no result of" in capsys.readouterr().err
