"""The grids of notebook 05: one thing at a time, on validation alone, and the winners on test."""

import itertools
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from helpers import experiments, improvements
from helpers.config import PROFILES
from helpers.experiments import EXPERIMENTS, MissingStage, experiment_fingerprint
from helpers.improvements import (
    RATES,
    greedy_removal,
    grid_differences,
    grid_results,
    grid_run,
    hybrids,
    layer_selections,
    lora_settings,
    next_rate,
    run_grid,
    run_winners,
    search_rates,
    sections,
    sections_of,
    selection,
    soft_target_settings,
    varied,
    winners,
)
from helpers.results import Results, published_results
from helpers.runs import read_json
from helpers.saved import predictions_path

BASE = PROFILES["base"]
SPREAD = layer_selections(None)[4]
BASE_RUN = improvements.Run("no-such-run", Path("runs/no-such-run"), BASE, "jigsaw", None, BASE.seeds)


@pytest.fixture(scope="module")
def grid(finished_run, tmp_path_factory):
    """A run of `smoke` whose grids are being made: (run, the results of two experiments)."""
    run = replace(finished_run, directory=tmp_path_factory.mktemp("grid"))
    return run, run_grid([EXPERIMENTS["odd"], SPREAD], run)


# --- the grids as data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["soft targets", "regularised LoRA", "layers"])
def test_a_section_begins_with_its_default(finished_run, name):
    default = sections_of(finished_run)[name][0]
    main = EXPERIMENTS["lora" if "LoRA" in name else "odd"]
    assert replace(default, title=main.title) == main


def test_a_default_is_named_by_the_setting_that_the_others_change():
    defaults = [
        [e.title for e in tried if "default" in e.title] for tried in (soft_target_settings(BASE), lora_settings(BASE))
    ]
    assert defaults == [["T = 2, α = 0.5 (default)"], ["rank 8, dropout 0.1, weight decay 0.01 (default)"]]


def test_an_unchanged_setting_is_the_experiment_itself_but_for_its_title():
    found = varied("odd", BASE, "T = 2", temperature=2.0)
    assert replace(found, title="") == replace(EXPERIMENTS["odd"], title="") and found.title == "T = 2 (default)"


def test_a_changed_setting_is_named_in_the_experiment_and_its_family_once():
    assert varied("lora", BASE, "rank 32", lora_rank=32, lora_alpha=64).name == "lora-rank_32_alpha_64"


def test_every_experiment_of_a_grid_has_a_name_of_its_own(finished_run):
    every = [
        replace(e, title="") for tried in sections_of(finished_run).values() for e in tried
    ]  # titles say 'default'
    assert len({experiment.name for experiment in every}) == len(set(every))


def test_every_experiment_of_a_section_has_a_title_of_its_own(finished_run):
    for tried in sections_of(finished_run).values():
        assert len({experiment.title for experiment in tried}) == len(tried)


def test_rank_keeps_alpha_at_twice_its_value():
    ranks = [e.profile(BASE) for e in lora_settings(BASE)[1:] if "rank" in e.title]
    assert [(p.lora_rank, p.lora_alpha) for p in ranks] == [(2, 4), (32, 64)]


@pytest.mark.parametrize("change", [{"temperature": 4.0}, {"alpha": 0.25}, {"lora_rank": 2, "lora_alpha": 4}])
def test_a_changed_setting_changes_the_fingerprint(change):
    name = "lora" if "lora_rank" in change else "odd"
    changed = varied(name, BASE, "changed", **change)
    assert experiment_fingerprint(changed, 1, BASE, "x") != experiment_fingerprint(EXPERIMENTS[name], 1, BASE, "x")


def test_a_students_setting_leaves_its_teacher_alone():
    changed = varied("odd", BASE, "T = 4", temperature=4.0)
    inputs = [experiments.experiment_inputs(e, 1, BASE, "x") for e in (changed, EXPERIMENTS["odd"])]
    assert inputs[0] == inputs[1]


def test_the_grid_has_at_most_1500_rows():
    assert (grid_run(BASE_RUN).profile.train_rows, grid_run(BASE_RUN).seeds) == (1_500, (1,))
    assert grid_run(grid_run(BASE_RUN)) == grid_run(BASE_RUN)


# --- running ---------------------------------------------------------------------------------------------------------


def test_a_grid_is_never_scored_on_test(grid):
    run, _ = grid
    assert "test" not in read_json(grid_run(run).results_dir / "odd-1.json")
    frame = pd.read_parquet(predictions_path(grid_run(run).results_dir, "odd", 1))
    assert set(frame["split"]) == {"validation"}


def test_a_grid_lies_apart_from_the_runs_results(grid):
    run, _ = grid
    assert not run.results_dir.exists() and (grid_run(run).results_dir / "spread-1.json").is_file()


def test_a_grid_that_was_trained_is_not_trained_again(grid, monkeypatch):
    run, results = grid
    monkeypatch.setattr(improvements, "run_experiment", None)
    assert run_grid([EXPERIMENTS["odd"], SPREAD], run).by_name == results.by_name


def test_what_a_grid_does_not_have_is_listed_and_not_trained(grid):
    run, _ = grid
    results = grid_results([EXPERIMENTS["odd"], EXPERIMENTS["hybrid"]], run)
    assert list(results.by_name) == ["odd"] and results.missing == [("hybrid", 1)]


def test_all_seeds_of_an_experiment_are_trained_before_the_next(finished_run, monkeypatch):
    trained = []
    monkeypatch.setattr(
        improvements, "run_experiment", lambda experiment, seed, run: trained.append((experiment, seed))
    )
    improvements.train_all([EXPERIMENTS["lora"], SPREAD], replace(finished_run, seeds=(1, 2)))
    assert trained == [(EXPERIMENTS["lora"], 2), ("teacher", 1), (SPREAD, 1), ("teacher", 2), (SPREAD, 2)]


# --- which layers does this task need? -------------------------------------------------------------------------------


def test_greedy_removal_goes_from_all_layers_to_one_and_is_not_done_twice(grid, monkeypatch):
    run, _ = grid
    steps = greedy_removal(run)
    assert [len(step["layers"]) for step in steps] == list(range(12, 0, -1))
    for step, following in itertools.pairwise(steps):
        removed = (set(step["layers"]) - set(following["layers"])).pop()
        assert step["without"][str(removed)] == min(step["without"].values())
    assert len(selection(steps)) == 6
    monkeypatch.setattr(improvements, "predict", None)
    assert greedy_removal(run) == steps


def test_task_specific_layers_join_once_they_are_found(grid):
    run, _ = grid
    steps = greedy_removal(run)
    assert sections_of(run)["layers"][-1].layers == selection(steps)


def test_the_published_task_specific_layers_are_read_whatever_run_is_at_hand(grid):
    _, tried = improvements.grids(grid[0])["Published run"]
    assert tried["layers"][-1].layers == (1, 2, 6, 8, 9, 12)


def test_winners_are_refused_before_anything_is_trained_where_the_main_experiments_are_missing(finished_run, tmp_path):
    with pytest.raises(MissingStage, match="`make run` first"):
        improvements.check_main_results(replace(finished_run, directory=tmp_path))


# --- differences on validation ---------------------------------------------------------------------------------------


def test_a_difference_is_that_of_average_precision_on_the_validation_rows():
    results = published_results("base/grid")
    found = grid_differences(results, sections(BASE)["layers"])["Spread layers"]
    labels = results.labels("validation")
    scores = [average_precision_score(labels, results.probabilities(n, "validation")[0]) for n in ("spread", "odd")]
    assert found.difference == pytest.approx(scores[0] - scores[1])
    assert found.low < found.difference < found.high


def test_differences_have_neither_p_nor_verdict():
    found = grid_differences(published_results("base/grid"), sections(BASE)["layers"])
    assert {(each.p_value, each.p_holm, each.verdict) for each in found.values()} == {(None, None, None)}


def test_differences_are_those_of_what_was_trained_against_the_first_of_it(grid):
    _, results = grid
    assert list(grid_differences(results, [EXPERIMENTS["even"], EXPERIMENTS["odd"], SPREAD])) == ["Spread layers"]
    assert grid_differences(results, [EXPERIMENTS["even"]]) == {}


# --- learning rates --------------------------------------------------------------------------------------------------


def test_each_family_tries_as_many_rates_as_the_others():
    assert {len(multiples) for _, multiples in RATES.values()} == {3}


def test_loras_rates_reach_to_100_times_the_teachers():
    assert {30, 100} <= set(RATES["lora"][1])


@pytest.mark.parametrize(
    ("scores", "following"),
    [
        ({1e-4: 0.5, 3e-4: 0.7, 1e-3: 0.6}, []),
        ({1e-4: 0.5, 3e-4: 0.6, 9e-4: 0.7}, [2.7e-3]),
        ({1e-4: 0.7, 2e-4: 0.6, 4e-4: 0.5}, [5e-5]),
    ],
    ids=["inside", "at the upper edge", "at the lower edge"],
)
def test_a_list_goes_on_beyond_the_edge_where_the_best_rate_stands(scores, following):
    assert next_rate(scores) == following


def test_a_list_is_widened_until_the_best_rate_stands_inside(monkeypatch):
    monkeypatch.setattr(improvements, "_rate_score", lambda family, rate, run: 1 - abs(rate - 8e-3))
    assert list(search_rates("lora", BASE_RUN)) == [3e-4, 9e-4, 3e-3, 1e-2, 3.33e-2]


def test_a_list_is_not_widened_for_ever(monkeypatch):
    monkeypatch.setattr(improvements, "_rate_score", lambda family, rate, run: rate)
    assert len(search_rates("student", BASE_RUN)) == 3 + improvements.MORE_RATES


def test_a_students_rate_is_judged_by_the_mean_of_odd_and_even(monkeypatch):
    monkeypatch.setattr(improvements, "run_grid", lambda tried, run: published_results("base/grid"))
    results = published_results("base/grid").by_name
    scores = [results[name][1]["validation"]["average_precision"] for name in ("odd", "even")]
    assert improvements._rate_score("student", BASE.student_learning_rate, BASE_RUN) == pytest.approx(sum(scores) / 2)


# --- the winners -----------------------------------------------------------------------------------------------------


def scored(run, **scores: float) -> Results:
    """A grid in which every experiment scores 0.5, but for those that are named by their title."""
    by_name = {}
    for experiment in itertools.chain(*sections_of(run).values()):
        by_name[experiment.name] = {1: {"validation": {"average_precision": scores.get(experiment.title, 0.5)}}}
    return Results(by_name, {}, missing=[])


def named(found: list) -> list[tuple[str, str, str]]:
    return [(section, best.title, default.name) for section, best, default in found]


def test_what_does_not_beat_its_default_stays_at_home_but_for_regularisation_and_the_hybrid(finished_run):
    assert named(winners(scored(finished_run), sections_of(finished_run))) == [
        ("regularised LoRA", "dropout 0", "lora"),
        ("regularised LoRA", "weight decay 0", "lora"),
        ("hybrid", "LoRA on the odd layers, distilled", "lora_6"),
        ("hybrid", "LoRA on the odd layers, distilled", "odd"),
    ]


def test_the_best_of_each_section_goes_to_the_test_set_and_a_larger_rank_does_not(finished_run):
    best = {"Spread layers": 0.6, "T = 4": 0.6, "dropout 0.3": 0.4, "dropout 0": 0.3, "weight decay 0.1": 0.7}
    found = winners(scored(finished_run, **best, **{"rank 32": 0.9}), sections_of(finished_run))
    assert named(found)[:4] == [
        ("layers", "Spread layers", "odd"),
        ("soft targets", "T = 4", "odd"),
        ("regularised LoRA", "dropout 0.3", "lora"),
        ("regularised LoRA", "weight decay 0.1", "lora"),
    ]


def test_the_winners_of_the_published_grid_are_found():
    found = named(winners(*improvements.grids(BASE_RUN)["Published run"]))
    assert [title for _, title, _ in found[:2]] == ["Task-specific layers", "T = 1"]


def test_the_hybrid_and_what_it_is_held_to_are_the_named_experiments():
    assert hybrids() == [EXPERIMENTS[name] for name in ("lora_6", "odd", "hybrid")]


def test_the_winners_are_trained_once_with_every_seed(copied_run, monkeypatch):
    results = run_winners(scored(copied_run), copied_run)
    assert {"lora-dropout_0.0", "lora-weight_decay_0.0", "hybrid"} <= set(results.by_name)
    monkeypatch.setattr(improvements, "run_experiment", None)
    assert run_winners(scored(copied_run), copied_run).by_name == results.by_name


# --- without a notebook ----------------------------------------------------------------------------------------------


def test_the_command_names_the_nearest_section(smoke_run, capsys):
    assert improvements.main(["lyers", "--profile", "smoke"]) == 2
    assert "Did you mean 'layers'?" in capsys.readouterr().err


def test_the_winners_are_refused_before_the_grids_where_the_run_has_no_main_results(smoke_run, monkeypatch, capsys):
    monkeypatch.setattr(improvements, "run_grid", lambda *_: pytest.fail("trained"))
    assert improvements.main(["--profile", "smoke"]) == 2
    assert "has no result of" in capsys.readouterr().err


def test_a_section_may_be_run_alone(smoke_run, capsys):
    assert improvements.main(["hybrid", "--profile", "smoke"]) == 0
    made = {path.name for path in grid_run(smoke_run).results_dir.glob("*.json")}
    assert made == {"teacher-1.json", "lora_6-1.json", "odd-1.json", "hybrid-1.json"}
    assert "LoRA on the odd layers, distilled" in capsys.readouterr().out
