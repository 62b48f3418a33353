"""TASK=labels from end to end: four models of six labels in a run of their own, and what that run leaves behind."""

import json

import numpy as np
import pandas as pd
import pytest
from sklearn import metrics

import helpers.results
import helpers.runs
from helpers import deploy, experiments, pipeline, publishing
from helpers.config import LABELS, PROFILES, load_profile
from helpers.data import load_data
from helpers.discussion import six_labels
from helpers.experiments import (
    EXPERIMENTS,
    MissingStage,
    experiment_fingerprint,
    experiment_settings,
    load_trained,
    predictions_path,
    result_path,
    run_experiment,
)
from helpers.results import labels_run, load_results
from helpers.runs import ROOT, read_json, write_json

NAMES = ("teacher", "odd", "even", "lora")
PUBLISHED = [path for path in sorted((ROOT / "results").glob("*.json")) if path.stem.rpartition("-")[0] in EXPERIMENTS]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project folder in which `TASK=labels python -m helpers.experiments --profile smoke` has run once."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        project = tmp_path_factory.mktemp("labels")
        for name in ("PROFILE", "RUN", "JIGSAW_DIR", "SEEDS"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(helpers.runs, "ROOT", project)
        monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", project / "results")
        monkeypatch.setenv("TASK", "labels")
        assert experiments.main(["--profile", "smoke"]) == 0
        yield project


@pytest.fixture
def run(project) -> helpers.runs.Run:
    return helpers.runs.open_run("smoke")


@pytest.fixture
def result(run):
    """The function that gives a model's result."""
    return lambda name: read_json(result_path(run.results_dir, name, 1))


# --- fingerprints ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PUBLISHED, ids=[path.stem for path in PUBLISHED])
def test_the_published_results_of_toxic_keep_their_fingerprints(path):
    result = json.loads(path.read_text())
    profile, data = PROFILES[result["profile"]], result["inputs"]["data"]
    found = experiment_fingerprint(EXPERIMENTS[result["experiment"]], result["seed"], profile, data)
    assert found == result["fingerprint"]


@pytest.mark.parametrize("name", NAMES)
def test_a_model_of_six_labels_has_a_fingerprint_of_its_own(name):
    profiles = [load_profile("smoke", task) for task in ("toxic", "labels")]
    assert len({experiment_fingerprint(EXPERIMENTS[name], 1, profile, "data") for profile in profiles}) == 2


def test_the_settings_name_the_task_only_where_it_is_not_toxic():
    profiles = [load_profile("smoke", task) for task in ("toxic", "labels")]
    of_toxic, of_labels = (experiment_settings(EXPERIMENTS["odd"], 1, profile) for profile in profiles)
    assert of_labels == of_toxic | {"task": "labels"}


# --- running ---------------------------------------------------------------------------------------------------------


def test_the_command_makes_the_four_models(project, run):
    assert {path.name for path in run.results_dir.glob("*.json")} == {f"{name}-1.json" for name in NAMES}


def test_the_second_time_nothing_is_trained(project, monkeypatch):
    monkeypatch.setattr(experiments, "train", lambda *_, **__: pytest.fail("trained again"))
    assert experiments.main(["--profile", "smoke"]) == 0


def test_a_baseline_of_toxic_is_refused(run):
    with pytest.raises(ValueError, match="tfidf is a baseline for the label toxic; TASK=labels has none"):
        run_experiment("tfidf", 1, run)


@pytest.mark.parametrize("name", NAMES)
def test_a_saved_model_answers_six_labels_by_name(run, name):
    config = load_trained(name, 1, run).config
    assert (config.problem_type, tuple(config.id2label.values())) == ("multi_label_classification", LABELS)


# --- what is left behind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_predictions_hold_ids_labels_and_a_logit_a_label(run, name):
    frame = pd.read_parquet(predictions_path(run.results_dir, name, 1))
    assert list(frame.columns) == ["row_id", "split", *LABELS, *(f"logit_{label}" for label in LABELS)]


def test_the_saved_labels_are_those_of_the_data(run):
    frame = pd.read_parquet(predictions_path(run.results_dir, "odd", 1))
    assert np.array_equal(frame[frame["split"] == "test"][list(LABELS)], load_data(run).all_labels("test"))


@pytest.mark.parametrize("name", NAMES)
def test_the_test_score_is_kaggles_metric_on_the_saved_predictions(run, result, name):
    frame = pd.read_parquet(predictions_path(run.results_dir, name, 1)).query("split == 'test'")
    expected = np.mean([metrics.roc_auc_score(frame[label], frame[f"logit_{label}"]) for label in LABELS])
    assert result(name)["test"]["mean_column_roc_auc"] == pytest.approx(expected)


def test_a_result_says_how_each_threshold_was_chosen(result):
    thresholds = result("odd")["thresholds"]
    assert {label: facts["chosen_on"] for label, facts in thresholds.items()} == dict.fromkeys(LABELS, "default")


def test_a_result_has_an_interval_a_label_and_one_of_the_mean(result):
    bounds = result("odd")["intervals"]
    assert (len(bounds["mean_column_roc_auc"]), tuple(bounds["roc_auc"])) == (2, LABELS)


def test_the_history_names_the_score_that_chose_the_epoch(result):
    assert result("lora")["history"]["epochs"][0]["validation"].keys() == {"hard", "mean_column_roc_auc"}


def test_the_teachers_gate_is_about_the_label_toxic(run, result):
    frame = pd.read_parquet(predictions_path(run.results_dir, "teacher", 1)).query("split == 'validation'")
    expected = metrics.average_precision_score(frame["toxic"], frame["logit_toxic"])
    assert result("teacher")["gate"]["average_precision"] == pytest.approx(expected)


def test_six_labels_are_not_exported(result):
    assert "deployment" not in result("odd")["costs"]


# --- reading results -------------------------------------------------------------------------------------------------


def test_the_table_has_a_row_a_score_and_a_column_a_model(run):
    table = six_labels(run)
    assert list(table.columns) == ["test score", "positives", "chosen on", *NAMES]
    areas = [f"ROC AUC, {label}" for label in LABELS]
    assert table["test score"].tolist() == ["mean column-wise ROC AUC", *areas, "micro F1", "macro F1"]


def test_a_labels_positives_stand_beside_its_roc_auc(run):
    positives = six_labels(run)["positives"].iloc[1:7]
    assert positives.tolist() == load_data(run).all_labels("test").sum(axis=0).tolist()


def test_a_roc_auc_stands_with_its_interval(run, result):
    low, high = result("odd")["intervals"]["roc_auc"]["insult"]
    area = result("odd")["test"]["roc_auc"]["insult"]
    assert six_labels(run).set_index("test score")["odd"]["ROC AUC, insult"] == f"{area:.3f} ({low:.3f} to {high:.3f})"


def test_a_label_that_was_left_out_is_said_in_the_table(run, result):
    kept = result("odd")
    changed = json.loads(json.dumps(kept))
    changed["test"]["roc_auc"]["threat"] = None
    path = result_path(run.results_dir, "odd", 1)
    write_json(path, changed)
    try:
        row = six_labels(run).set_index("test score").loc["ROC AUC, threat"]
    finally:
        write_json(path, kept)
    assert {name: row[name] == "one class only" for name in NAMES} == {name: name == "odd" for name in NAMES}


def test_the_run_of_six_labels_is_found_from_that_of_toxic(project, monkeypatch):
    monkeypatch.delenv("TASK")
    assert tuple(six_labels(labels_run(helpers.runs.open_run("smoke"))).columns[3:]) == NAMES


def test_published_results_of_six_labels_lie_apart_from_those_of_toxic(run, monkeypatch, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "labels").symlink_to(run.results_dir)
    monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", tmp_path / "results")
    monkeypatch.delenv("TASK")
    elsewhere = labels_run(helpers.runs.open_run("smoke", name="not-trained"))
    assert tuple(six_labels(elsewhere).columns[3:]) == NAMES


def test_a_model_that_is_missing_is_named_with_the_command_that_trains_it(project, monkeypatch):
    monkeypatch.delenv("TASK")
    missing = labels_run(helpers.runs.open_run("smoke", name="not-trained"))
    with pytest.raises(MissingStage, match=r"no result of teacher.*run `TASK=labels python -m helpers.experiments`"):
        six_labels(missing)


def test_the_comparison_of_toxic_refuses_six_labels(run):
    with pytest.raises(ValueError, match="was made with TASK=labels; this needs one with TASK=toxic"):
        load_results(run)


def test_scoring_a_file_refuses_six_labels(project, run, monkeypatch):
    monkeypatch.setattr(helpers.runs, "ROOT", project)
    with pytest.raises(ValueError, match="was made with TASK=labels; give a --run whose models answer the label toxic"):
        deploy.find_model("odd", 1, run.name)


def test_the_notebooks_are_not_run_on_six_labels(project, monkeypatch, capsys):
    monkeypatch.setenv("PROFILE", "smoke")
    monkeypatch.setenv("RUN", "")
    assert pipeline.main([]) == 2
    assert "the notebooks are about the label toxic" in capsys.readouterr().err


# --- publishing ------------------------------------------------------------------------------------------------------


def test_a_run_on_other_comments_than_jigsaws_is_not_published(run):
    with pytest.raises(ValueError, match="publish a run on the real comments"):
        publishing.publish_beside(run)


def test_published_results_of_six_labels_lie_in_a_folder_of_their_own(run, monkeypatch, tmp_path):
    monkeypatch.setattr(publishing, "ROOT", tmp_path)
    monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", tmp_path / "results")
    for unneeded in ("write_report", "check_real_comments"):
        monkeypatch.setattr(publishing, unneeded, lambda _: None)
    publishing.publish_beside(run)
    copied = {path.name for path in (tmp_path / "results" / "labels").glob("*.json")}
    assert copied == {f"{name}-1.json" for name in NAMES}


def test_publishing_toxic_leaves_what_six_labels_published(finished_run, tmp_path, monkeypatch):
    monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", tmp_path)
    for name in ("gone-1.json", "odd-1.json", "predictions/gone-1.parquet", "labels/odd-1.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    publishing.remove_outdated(finished_run)
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["labels/odd-1.json", "odd-1.json"]
