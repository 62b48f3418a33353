"""The grids of notebook 05: one thing at a time, on validation alone, and the winners on test."""

import itertools
from dataclasses import replace

import numpy as np
import pytest

import helpers.results
from helpers import experiments, improvements
from helpers.config import PROFILES
from helpers.experiments import EXPERIMENTS, experiment_fingerprint, predictions_path
from helpers.improvements import (
    greedy_removal,
    grid_run,
    hybrids,
    layer_selections,
    lora_settings,
    pareto_front,
    rate_search,
    run_grid,
    sections,
    selection,
    soft_target_settings,
    varied,
    winner,
)

STUDY = PROFILES["study"]


@pytest.fixture(scope="module")
def grid(finished_run, tmp_path_factory):
    """A run of `smoke` whose grids are being made: (run, the table of two experiments)."""
    directory = tmp_path_factory.mktemp("grid")
    run = replace(finished_run, directory=directory)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", directory / "published")
        spread = layer_selections(None)[4]
        yield run, run_grid([EXPERIMENTS["odd"], spread], run)


# --- the grids as data -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["soft targets", "regularised LoRA", "layers"])
def test_a_section_begins_with_its_default(finished_run, name):
    default = sections(finished_run)[name][0]
    main = EXPERIMENTS["lora" if "LoRA" in name else "odd"]
    assert replace(default, title=main.title) == main


def test_a_default_is_named_by_the_setting_that_the_others_change():
    tried = [soft_target_settings(STUDY), lora_settings(STUDY), rate_search(STUDY)["lora"]]
    defaults = [[e.title for e in grid if e.title.endswith("(default)")] for grid in tried]
    expected = ["T = 2, α = 0.5", "rank 8, dropout 0.1, weight decay 0.01", "lora at 0.0005"]
    assert defaults == [[f"{title} (default)"] for title in expected]


def test_an_unchanged_setting_is_the_experiment_itself_but_for_its_title():
    found = varied("odd", STUDY, "T = 2", temperature=2.0)
    assert replace(found, title="") == replace(EXPERIMENTS["odd"], title="") and found.title == "T = 2 (default)"


def test_a_changed_setting_is_named_in_the_experiment_and_its_family_once():
    assert varied("lora", STUDY, "rank 32", lora_rank=32, lora_alpha=64).name == "lora-rank_32_alpha_64"


def test_every_experiment_of_a_grid_has_a_name_of_its_own(finished_run):
    names = [experiment.name for tried in sections(finished_run).values() for experiment in set(tried)]
    every = [replace(e, title="") for tried in sections(finished_run).values() for e in tried]  # titles say 'default'
    of_one_name = {name: [e for e in every if e.name == name] for name in names}
    assert all(len(set(found)) == 1 for found in of_one_name.values())


@pytest.mark.parametrize(("family", "times"), [("teacher", (0.5, 1, 2)), ("odd", (0.5, 1, 2)), ("lora", (3, 10, 30))])
def test_each_family_gets_as_many_rates_as_the_others(family, times):
    tried = [experiments.training_settings(e, 1, STUDY).learning_rate for e in rate_search(STUDY)[family]]
    assert tried == pytest.approx([n * STUDY.teacher_learning_rate for n in times])


def test_rank_keeps_alpha_at_twice_its_value():
    ranks = [e.profile(STUDY) for e in lora_settings(STUDY)[1:] if "rank" in e.title]
    assert [(p.lora_rank, p.lora_alpha) for p in ranks] == [(2, 4), (32, 64)]


def test_the_hybrid_and_what_it_is_held_to_train_for_equal_epochs():
    assert {experiments.training_settings(e, 1, STUDY).epochs for e in hybrids(STUDY)} == {STUDY.lora_epochs}


@pytest.mark.parametrize("change", [{"temperature": 4.0}, {"alpha": 0.25}, {"lora_rank": 2, "lora_alpha": 4}])
def test_a_changed_setting_changes_the_fingerprint(change):
    name = "lora" if "lora_rank" in change else "odd"
    changed = varied(name, STUDY, "changed", **change)
    assert experiment_fingerprint(changed, 1, STUDY, "x") != experiment_fingerprint(EXPERIMENTS[name], 1, STUDY, "x")


def test_a_students_setting_leaves_its_teacher_alone():
    changed = varied("odd", STUDY, "T = 4", temperature=4.0)
    inputs = [experiments.experiment_inputs(e, 1, STUDY, "x") for e in (changed, EXPERIMENTS["odd"])]
    assert inputs[0] == inputs[1]


# --- running ---------------------------------------------------------------------------------------------------------


def test_a_grid_is_never_scored_on_test(grid):
    run, _ = grid
    result = experiments.read_json(grid_run(run).results_dir / "odd-1.json")
    assert "test" not in result and "intervals" not in result
    frame = experiments.pd.read_parquet(predictions_path(grid_run(run).results_dir, "odd", 1))
    assert set(frame["split"]) == {"validation"}


def test_a_grid_lies_apart_from_the_runs_results(grid):
    run, _ = grid
    assert not run.results_dir.exists() and (grid_run(run).results_dir / "spread-1.json").is_file()


def test_a_grid_that_was_trained_is_not_trained_again(grid, monkeypatch):
    run, table = grid
    monkeypatch.setattr(improvements, "run_experiment", None)
    assert run_grid([EXPERIMENTS["odd"]], run).equals(table[:1])


def test_the_winner_is_the_first_of_the_best(grid):
    _, table = grid
    assert winner(table.assign(average_precision=[0.5, 0.5])) == "odd"
    assert winner(table.assign(average_precision=[0.5, 0.6])) == "spread"


def test_the_grid_has_at_most_1500_rows():
    run = improvements.Run("x", helpers.results.PUBLISHED_RESULTS, STUDY, "jigsaw", None, (1, 2, 3))
    assert (grid_run(run).profile.train_rows, grid_run(run).seeds) == (1_500, (1,))
    assert grid_run(grid_run(run)) == grid_run(run)


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
    assert sections(run)["layers"][-1].layers == selection(steps)


def test_a_grids_default_is_compared_with_the_others_on_validation(grid):
    run, table = grid
    found = improvements.grid_comparisons([EXPERIMENTS["odd"], layer_selections(None)[4]], run)
    expected = table["average_precision"].iloc[0] - table["average_precision"].iloc[1]
    assert found["odd − spread"]["difference"] == pytest.approx(expected, abs=1e-6)


@pytest.fixture
def won(finished_run, monkeypatch):
    """The winners where the second of each section is the best."""
    scores = lambda tried, run: improvements.pd.DataFrame(  # noqa: E731
        {
            "experiment": [experiment.name for experiment in tried],
            "average_precision": [0.6 if place == 1 else 0.5 for place in range(len(tried))],
        }
    )
    monkeypatch.setattr(improvements, "run_grid", scores)
    return improvements.winners(finished_run)


def test_rates_never_go_to_the_test_set(won):
    assert [section for section, *_ in won] == ["layers", "soft targets", "regularised LoRA", "hybrid", "hybrid"]


def test_the_hybrid_goes_to_the_test_set_against_both_that_it_is_made_of(won, finished_run):
    adapters, student, hybrid = hybrids(finished_run.profile)
    assert won[-2:] == [("hybrid", hybrid, adapters), ("hybrid", hybrid, student)]


def test_a_winner_is_held_against_its_sections_default(won):
    assert [default.name for _, _, default in won[:3]] == ["odd", "odd", "lora"]


# --- the front -------------------------------------------------------------------------------------------------------


def test_the_pareto_front_keeps_what_nothing_beats():
    costs, scores = np.array([1, 2, 2, 3, 4]), np.array([0.5, 0.6, 0.4, 0.6, 0.7])
    assert pareto_front(costs, scores).tolist() == [True, True, False, False, True]


def test_two_equal_models_are_both_on_the_front():
    assert pareto_front(np.array([1, 1]), np.array([0.5, 0.5])).tolist() == [True, True]
