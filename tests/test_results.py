"""Published results are data: read by name, whatever the code, the settings and the comments are now."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

import helpers.evaluation
import helpers.results
from helpers import experiments, saved
from helpers.config import PROFILES
from helpers.data import DATA_SETTINGS, load_data
from helpers.evaluation import METRICS, toxic_probability
from helpers.experiments import (
    EXPERIMENTS,
    Experiment,
    MissingStage,
    experiment_fingerprint,
    fingerprinted,
    training_settings,
)
from helpers.models import pretrained_sha256
from helpers.results import (
    PRIMARY,
    SECONDARY,
    comparison_table,
    cost_table,
    find_result,
    latency_table,
    load_results,
    model_costs,
    published_results,
    verdict_table,
)
from helpers.runs import PUBLISHED_RESULTS, Run, file_sha256, fingerprint, read_json, write_json
from helpers.saved import predictions_path, read_result, result_path
from helpers.training import TrainingSettings

BASE = PUBLISHED_RESULTS / "base"
FILES = sorted(path for folder in (BASE, BASE / "grid") for path in folder.glob("*-*.json"))
TRAIN, TEST, TEST_LABELS = "fc3bb797", "6d4ab34c", "96a0a78f"  # the comments of `base`: first digits of their SHA-256


@pytest.fixture(scope="module")
def base() -> helpers.results.Results:
    return published_results("base")


@pytest.fixture
def forget_scores():
    """What was read or computed of predictions is so again, before the test and after it."""
    caches = (saved.predicted_scores, saved.read_predictions, helpers.results._bootstrap)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.fixture
def copied_base(tmp_path, monkeypatch) -> Path:
    """A copy of the published run, for a test that changes its files."""
    monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", tmp_path)
    return shutil.copytree(BASE, tmp_path / "base")


def change_result(run: Run, name: str, changes: dict, seed: int = 1) -> None:
    """Overwrites parts of the JSON of a run's result."""
    path = result_path(run.results_dir, name, seed)
    write_json(path, read_json(path) | changes)


def test_the_published_run_is_whole(base):
    assert {name: list(seeds) for name, seeds in base.by_name.items()} == {
        "majority": [1],
        "tfidf": [1],
        **{name: [1, 2, 3, 4, 5] for name in ("teacher", "odd", "even", "lora", "lora_6")},
    }


def test_scores_computed_from_the_predictions_are_those_that_were_measured():
    for path in FILES:
        name, seed = path.stem.rsplit("-", 1)
        computed, measured = read_result(path.parent, name, int(seed)), read_json(path)
        for split in ("validation", "test"):
            assert computed.get(split, {}) == pytest.approx(measured.get(split, {}), abs=1e-9), path.name
        assert computed["threshold"] == pytest.approx(measured["threshold"], abs=1e-9), path.name


def test_no_table_has_a_time_of_the_published_run(base):
    """Several trainings shared one GPU, so its times mean nothing."""
    assert not [column for column in comparison_table(base) if "second" in column or "latency" in column]


def test_the_published_fingerprints_are_reproduced():
    for path in BASE.glob("*-*.json"):
        name, seed = path.stem.rsplit("-", 1)
        made_from = experiment_fingerprint(EXPERIMENTS[name], int(seed), PROFILES["base"], "82d24f2552f24857")
        assert made_from == read_json(path)["fingerprint"], path.name


def test_the_fingerprint_of_the_first_teacher_is_the_one_that_is_known():
    assert experiment_fingerprint(EXPERIMENTS["teacher"], 1, PROFILES["base"], "82d24f2552f24857") == "5ded5e308a66d996"


def test_the_fingerprint_of_the_comments_is_the_one_that_is_known():
    """Of the settings that draw the rows, the files' hashes in the order of their names, and the tokenizer's."""
    sample = Path(__file__).resolve().parents[2] / "shared" / "data" / "jigsaw"
    if not (sample / "test_labels.csv").is_file():
        pytest.skip("the sample of real comments is not at hand")
    hashes = [file_sha256(sample / name) for name in ("test.csv", "test_labels.csv", "train.csv")]
    assert [sha256[:8] for sha256 in hashes] == [TEST, TEST_LABELS, TRAIN]
    contents = {"files": hashes, "tokenizer": pretrained_sha256("all-mpnet-base-v2")}
    assert fingerprint(PROFILES["base"].settings(*DATA_SETTINGS) | contents) == "82d24f2552f24857"


@dataclass(frozen=True)
class WithOneMore(TrainingSettings):
    """The training settings of a student who added label smoothing."""

    label_smoothing: float = 0.0


def test_a_setting_that_is_added_later_counts_where_it_is_changed():
    old = training_settings(EXPERIMENTS["odd"], 1, PROFILES["base"])
    assert fingerprinted(WithOneMore(**vars(old), label_smoothing=0.1)) == fingerprinted(old) | {"label_smoothing": 0.1}


def test_a_finished_run_stays_finished_with_one_more_training_setting(finished_run, monkeypatch):
    original = experiments.training_settings
    monkeypatch.setattr(experiments, "training_settings", lambda *args: WithOneMore(**vars(original(*args))))
    monkeypatch.setattr(experiments, "train", lambda *_, **__: pytest.fail("trained again"))
    assert experiments.run_experiment("odd", 1, finished_run)["experiment"] == "odd"


def test_every_result_has_a_metric_that_is_added_later(finished_run, monkeypatch, forget_scores):
    """As a student would add it: a name in METRICS, a line in ToxicMetrics."""
    original = helpers.evaluation.ToxicMetrics._compute

    def compute(self, **inputs):
        scores = original(self, **inputs)
        return scores | {"error_rate": 1 - scores["accuracy"]}

    monkeypatch.setattr(helpers.evaluation.ToxicMetrics, "_compute", compute)
    monkeypatch.setattr(helpers.results, "METRICS", (*METRICS, "error_rate"))
    for results in (published_results("base"), load_results(finished_run)):
        table = comparison_table(results)
        assert table["error_rate"].tolist() == pytest.approx((1 - table["accuracy"]).tolist())


def test_results_with_another_part_of_the_loss_are_read(copied_run):
    history = read_json(result_path(copied_run.results_dir, "odd", 1))["history"]
    history["steps"]["attention"] = [0.1]
    history["epochs"][0]["training"]["attention"] = 0.1
    change_result(copied_run, "odd", {"history": history})
    assert load_results(copied_run).by_name["odd"]


def test_an_experiment_that_is_not_known_is_read_after_the_known_ones(copied_base):
    for place in (result_path, predictions_path):
        shutil.copy(place(copied_base, "odd", 1), place(copied_base, "mine", 1))
    assert list(published_results("base").by_name)[-1] == "mine"


def test_one_more_experiment_leaves_the_published_and_the_finished_results(finished_run, monkeypatch):
    monkeypatch.setitem(experiments.EXPERIMENTS, "mine", Experiment("mine", "Mine", layers=(1, 2), distil=True))
    assert "mine" not in published_results("base").by_name
    assert set(load_results(finished_run).by_name) == set(finished_run.profile.experiments)


def test_a_cost_that_older_results_lack_is_missing_in_their_rows_alone(copied_run):
    change_result(copied_run, "odd", {"costs": {}})
    table = comparison_table(load_results(copied_run)).set_index("experiment")["bytes"]
    assert pd.isna(table["odd"]) and not pd.isna(table["even"])


def test_what_is_published_does_not_depend_on_the_settings_of_today(monkeypatch):
    monkeypatch.setitem(PROFILES, "base", replace(PROFILES["base"], epochs=9, train_rows=10, seeds=(7,)))
    assert len(published_results("base").by_name["odd"]) == 5


def test_a_profile_of_which_nothing_is_published_says_so():
    with pytest.raises(MissingStage, match="nothing of the profile full is published"):
        published_results("full")


def test_a_damaged_published_file_is_named_and_left_out(copied_base, capsys):
    predictions_path(copied_base, "odd", 2).write_bytes(b"cut")
    assert list(published_results("base").by_name["odd"]) == [1, 3, 4, 5]
    assert "odd-2.parquet was cut or changed" in capsys.readouterr().out


def test_a_run_without_results_has_none_and_lists_all_of_them(copied_run):
    shutil.rmtree(copied_run.results_dir)
    results = load_results(copied_run)
    assert not results.by_name and {name for name, _ in results.missing} == set(copied_run.profile.experiments)
    assert comparison_table(results).empty and verdict_table(results.verdicts(PRIMARY)).empty


def test_nothing_published_is_mixed_into_a_run(copied_run):
    shutil.copytree(copied_run.results_dir, helpers.results.PUBLISHED_RESULTS / copied_run.profile.name)
    (copied_run.results_dir / "odd-1.json").unlink()
    assert load_results(copied_run).missing == [("odd", 1)]


@pytest.mark.parametrize(
    "changed",
    [
        lambda run: replace(run, profile=replace(run.profile, student_learning_rate=1e-5)),
        lambda run: replace(run, data_source="jigsaw"),
    ],
    ids=["other settings", "other comments"],
)
def test_a_result_of_other_settings_or_comments_counts_as_missing(finished_run, changed):
    assert find_result(finished_run, EXPERIMENTS["odd"], 1)
    assert find_result(changed(finished_run), EXPERIMENTS["odd"], 1) is None
    assert ("odd", 1) in load_results(changed(finished_run)).missing


def test_a_run_is_read_without_its_comments(copied_run):
    shutil.rmtree(copied_run.data_dir)
    assert not load_results(copied_run).missing


def test_results_of_two_data_sets_are_never_mixed(copied_run):
    made_from = experiment_fingerprint(EXPERIMENTS["tfidf"], 1, copied_run.profile, "other data")
    change_result(copied_run, "tfidf", {"inputs": {"data": "other data"}, "fingerprint": made_from})
    shutil.rmtree(copied_run.data_dir)
    with pytest.raises(ValueError, match="different data sets"):
        load_results(copied_run)


def test_the_labels_are_those_of_the_data_in_the_order_of_the_ids(finished_run):
    test = load_data(finished_run).splits["test"]
    by_id = dict(zip(test["row_id"][:], test["toxic"][:], strict=True))
    assert load_results(finished_run).labels().tolist() == [by_id[row_id] for row_id in sorted(by_id)]


@pytest.fixture
def run_with_two_seeds(copied_run):
    """The finished run with a second seed for odd, which scores as the teacher does."""
    run = replace(copied_run, profile=replace(copied_run.profile, seeds=(1, 2)))
    shutil.copy(result_path(run.results_dir, "odd", 1), result_path(run.results_dir, "odd", 2))
    shutil.copy(predictions_path(run.results_dir, "teacher", 1), predictions_path(run.results_dir, "odd", 2))
    made_from = experiment_fingerprint(EXPERIMENTS["odd"], 2, run.profile, load_data(run).fingerprint)
    sha256 = file_sha256(predictions_path(run.results_dir, "odd", 2))
    change_result(run, "odd", {"seed": 2, "fingerprint": made_from, "predictions_sha256": sha256}, seed=2)
    return run


def test_the_comparison_has_one_row_per_experiment_with_its_title_layers_and_scores(finished_run):
    results = load_results(finished_run)
    table = comparison_table(results).set_index("experiment")
    assert table.index.tolist() == list(finished_run.profile.experiments)
    assert table["model"].tolist() == [EXPERIMENTS[name].title for name in table.index]
    layers = table["layers"][["odd", "even", "teacher", "majority"]]
    assert layers.tolist() == ["1,3,5,7,9,11", "2,4,6,8,10,12", "all", ""]
    assert table.loc["odd", list(METRICS)].to_dict() == results.by_name["odd"][1]["test"]


def test_several_seeds_give_their_mean_and_standard_deviation(run_with_two_seeds):
    results = load_results(run_with_two_seeds)
    odd = comparison_table(results).set_index("experiment").loc["odd"]
    scores = [results.by_name["odd"][seed]["test"]["average_precision"] for seed in (1, 2)]
    assert odd["seeds"] == 2
    assert odd["average_precision"] == pytest.approx(np.mean(scores))
    assert odd["average_precision_sd"] == pytest.approx(np.std(scores, ddof=1))


def test_only_seeds_that_both_models_have_are_compared(run_with_two_seeds):
    assert load_results(run_with_two_seeds).common_seeds("odd", "even") == [1]


def test_a_comparison_with_a_model_that_the_run_does_not_have_is_left_out(finished_run):
    assert list(load_results(finished_run).verdicts([("odd", "even"), ("odd", "unknown")])) == ["odd − even"]


TIMES = ["latency_ms", "int8_latency_ms", "training_cost"]


@pytest.fixture
def benchmarked(tmp_path, monkeypatch):
    """The published run beside a benchmark of round numbers, in the form that tools/benchmark.py writes."""
    speeds = {"finetune": 4.0, "distil": 8.0, "lora": 5.0}
    training = {task: {"c": {"comments_per_second": speed}} for task, speed in speeds.items()}
    latency = {
        f"{layers} layers, {form}, {size}": {"p50_ms": layers * factor * size, "comments_per_second": 0.0}
        for layers in (12, 6)
        for form, factor in (("PyTorch", 5.0), ("int8", 2.0))
        for size in (1, 32)
    }
    (tmp_path / "base").symlink_to(BASE)
    sections = {"training": {"found": training}, "latency": {"found": latency}}
    write_json(tmp_path / "benchmarks" / "cpu-2-threads.json", sections)
    monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", tmp_path)


def test_the_latency_of_a_model_is_that_of_its_depth(benchmarked):
    table = model_costs(published_results()).set_index("experiment")
    assert table["latency_ms"].to_dict() == {"teacher": 60, "lora": 60, "odd": 30, "even": 30, "lora_6": 30}
    assert table["int8_latency_ms"]["teacher"] == 24


def test_the_cost_of_training_is_relative_to_the_teachers_and_a_students_includes_it(benchmarked):
    costs = cost_table()["training_cost"]
    assert costs.to_dict() == pytest.approx({"teacher": 1, "student": 1 + 4 / 8, "lora": 4 / 5})
    of_all = model_costs(published_results()).set_index("experiment")["training_cost"]
    assert of_all["even"] == costs["student"] and np.isnan(of_all["lora_6"])  # which the benchmark does not time


def test_lora_ships_its_adapter_alone_for_one_more_task():
    costs = cost_table()
    assert costs["megabytes_per_task"]["teacher"] == costs["megabytes"]["teacher"]
    assert costs["megabytes_per_task"]["lora"] < 0.01 * costs["megabytes"]["lora"]


def test_without_a_benchmark_times_are_unknown_and_the_rest_is_there(base, tmp_path, monkeypatch):
    monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", tmp_path)
    costs = cost_table(base)
    assert costs[TIMES].isna().all(axis=None) and costs.drop(columns=TIMES).notna().all(axis=None)
    assert latency_table().empty


def test_the_table_of_latencies_has_a_row_per_depth_form_and_size(benchmarked):
    table = latency_table()
    assert len(table) == 8 and table["comments at once"].unique().tolist() == [1, 32]


def test_the_difference_of_two_models_is_that_of_their_average_precision(base):
    found = base.difference("odd", "even")
    labels = base.labels()
    scores = {name: [average_precision_score(labels, p) for p in base.probabilities(name)] for name in ("odd", "even")}
    assert found.by_seed == pytest.approx([a - b for a, b in zip(*scores.values(), strict=True)])


def test_the_question_of_the_sheet_is_answered(base):
    """Odd and LoRA are better than even; they cannot be told apart from each other."""
    verdicts = base.verdicts(PRIMARY)
    assert [found.verdict for found in verdicts.values()] == ["better", "inconclusive", "better"]
    odd_even = verdicts["odd − even"]
    shown = (odd_even.difference, odd_even.low, odd_even.high, odd_even.p_holm)
    assert shown == pytest.approx((0.026, 0.012, 0.041, 0.002), abs=5e-4)


def test_no_comparison_stands_in_both_families():
    assert not {frozenset(pair) for pair in PRIMARY} & {frozenset(pair) for pair in SECONDARY}


def test_the_table_of_verdicts_has_the_same_columns_without_a_comparison(base):
    table = verdict_table(base.verdicts(PRIMARY[:1]))
    assert table["comparison"].tolist() == ["odd − even"]
    assert list(verdict_table({}).columns) == list(table.columns)


def test_the_intervals_surround_the_mean_over_the_seeds_and_stay_within_0_and_1(finished_run, base):
    scores = [result["test"]["average_precision"] for result in base.by_name["odd"].values()]
    assert np.mean(base.interval("odd")) == pytest.approx(np.mean(scores))
    found = load_results(finished_run)
    ends = [end for name in found.by_name for end in found.interval(name)]
    assert np.min(ends) >= 0 and np.max(ends) == 1


def test_a_student_is_compared_with_its_own_seeds_teacher_alone(copied_run):
    teacher = file_sha256(copied_run.model_dir("teacher", 1) / "model.safetensors")
    assert read_json(result_path(copied_run.results_dir, "odd", 1))["teacher_sha256"] == teacher
    change_result(copied_run, "even", {"teacher_sha256": "0" * 64})
    results = load_results(copied_run)
    assert results.common_seeds("odd", "teacher") == [1]
    assert results.common_seeds("even", "teacher") == results.common_seeds("odd", "even") == []
    assert results.common_seeds("even", "lora") == [1]  # LoRA stems from no teacher


def test_predictions_are_read_and_resampled_once_for_any_number_of_verdicts_and_intervals(monkeypatch, forget_scores):
    read, resample, original = [], Mock(return_value=np.zeros(10)), pd.read_parquet
    monkeypatch.setattr(pd, "read_parquet", lambda path: read.append(path) or original(path))
    monkeypatch.setattr(helpers.results, "resampled_average_precision", resample)
    results = published_results("base")
    results.verdicts(PRIMARY), results.verdicts(SECONDARY), results.interval("odd")
    assert len(read) == len(set(read)) == 27
    assert resample.call_count == 25  # five models of five seeds


def test_probabilities_stand_in_the_order_of_the_row_ids(base):
    frame = pd.read_parquet(BASE / "predictions" / "odd-1.parquet").sort_values("row_id").query("split == 'test'")
    expected = toxic_probability(frame[["logit_clean", "logit_toxic"]].to_numpy())
    assert base.probabilities("odd")[0] == pytest.approx(expected)
    assert base.row_ids().tolist() == frame["row_id"].tolist() and base.labels().tolist() == frame["toxic"].tolist()
