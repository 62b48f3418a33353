"""The rows of the comparison: what each depends on, that it is made once, and what it leaves behind."""

import shutil
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import damage_file

from helpers import experiments
from helpers.config import MAIN_EXPERIMENTS, PROFILES, load_profile
from helpers.data import load_data, prepare_data
from helpers.evaluation import METRICS
from helpers.experiments import (
    EXPERIMENTS,
    MissingStage,
    experiment_fingerprint,
    find_experiment,
    load_trained,
    predictions_path,
    read_result,
    result_path,
    run_experiment,
    start_model,
    teacher_targets,
)
from helpers.layers import EVEN_LAYERS, ODD_LAYERS
from helpers.lora import count_parameters
from helpers.models import find_pretrained, load_tokenizer
from helpers.results import load_results
from helpers.runs import read_json, write_json
from helpers.training import TrainingError, predict

SMOKE = load_profile("smoke")
TRAINED = [name for name in SMOKE.experiments if EXPERIMENTS[name].start != "baseline"]
SELECTIONS = {
    "odd": ODD_LAYERS,
    "even": EVEN_LAYERS,
    "twelve": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12),
    "odd_without_1": (2, 3, 5, 7, 9, 11),
    "even_with_1": (1, 4, 6, 8, 10, 12),
    "odd_with_12": (1, 3, 5, 7, 9, 12),
    "first_six": (1, 2, 3, 4, 5, 6),
    "last_six": (7, 8, 9, 10, 11, 12),
}
STUDENTS = set(SELECTIONS) | {"odd_hard", "even_hard"}
FROM_THE_TEACHER = STUDENTS | {"lora_6", "hybrid"}
DISTILLED = set(SELECTIONS) | {"hybrid"}


class Retrained(Exception):
    """Raised in place of training."""


@pytest.fixture
def no_training(monkeypatch) -> None:
    """Training raises Retrained, so that a test sees at once whether an experiment would be made again."""

    def retrained(*_, **__):
        raise Retrained

    monkeypatch.setattr(experiments, "train", retrained)


@pytest.fixture
def fingerprints():
    """The function that gives all fingerprints of the smoke profile with some settings changed."""

    def of(seed: int = 1, data: str = "data", **changes) -> dict[str, str]:
        profile = replace(SMOKE, **changes)
        return {n: experiment_fingerprint(EXPERIMENTS[n], seed, profile, data) for n in EXPERIMENTS}

    return of


def saved_logits(run, name: str, split: str) -> np.ndarray:
    frame = pd.read_parquet(predictions_path(run.results_dir, name, 1))
    return frame[frame["split"] == split][["logit_clean", "logit_toxic"]].to_numpy()


# --- the rows as data ------------------------------------------------------------------------------------------------


def test_an_unknown_experiment_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no experiment 'lora6'.*Did you mean 'lora_6'"):
        find_experiment("lora6")


def test_the_students_keep_the_layers_they_are_named_after():
    kept = {name: EXPERIMENTS[name].layers for name in FROM_THE_TEACHER}
    others = {"lora_6": ODD_LAYERS, "hybrid": ODD_LAYERS, "odd_hard": ODD_LAYERS, "even_hard": EVEN_LAYERS}
    assert kept == SELECTIONS | others


def test_of_the_main_experiments_only_odd_and_even_are_distilled():
    assert {name for name in MAIN_EXPERIMENTS if EXPERIMENTS[name].distil} == {"odd", "even"}


# --- fingerprints ----------------------------------------------------------------------------------------------------


LORA = {"lora", "lora_6", "hybrid"}
TRAINED_AT_ALL = set(EXPERIMENTS) - {"majority", "tfidf"}
# What is made again when a setting changes. A changed teacher changes its students and what stands on its copy.
CHANGES = {
    # On the same data; a model with another tokeniser changes the data, and so everything (tests/test_data.py).
    "pretrained": ("minilm-stacked", TRAINED_AT_ALL),
    "epochs": (9, TRAINED_AT_ALL),
    "batch_size": (4, TRAINED_AT_ALL),
    "teacher_learning_rate": (1e-4, FROM_THE_TEACHER | {"teacher"}),
    "student_learning_rate": (1e-4, STUDENTS),
    "lora_learning_rate": (1e-4, LORA),
    "lora_rank": (4, LORA),
    "lora_alpha": (4, LORA),
    "lora_dropout": (0.3, LORA),
    "lora_targets": ("all_linear", LORA),
    "temperature": (3.0, DISTILLED),
    "alpha": (0.9, DISTILLED),
    "beta": (0.0, DISTILLED),
    "weight_decay": (0.1, TRAINED_AT_ALL),
    "warmup_ratio": (0.3, TRAINED_AT_ALL),
    "max_grad_norm": (0.5, TRAINED_AT_ALL),
    "seeds": ((1, 2, 3), set()),
    "name": ("other", set()),
    "expected_time": ("a year", set()),
    "experiments": (("teacher",), set()),
    "data_without_files": ("error", set()),
    "micro_batch_size": (4, set()),  # the gradients are the whole batch's either way
}
NOT_SETTINGS = {"seed": (2, TRAINED_AT_ALL), "data": ("other data", set(EXPERIMENTS))}
OF_THE_DATA = {"train_rows", "validation_rows", "test_rows", "max_length", "split_seed"}  # tests/test_data.py


def test_every_setting_stands_in_the_table_of_what_it_changes():
    assert set(CHANGES) | OF_THE_DATA == {field.name for field in fields(SMOKE)}


@pytest.mark.parametrize("setting", CHANGES | NOT_SETTINGS)
def test_a_setting_changes_the_fingerprints_of_what_depends_on_it_and_no_other(fingerprints, setting):
    value, changed = (CHANGES | NOT_SETTINGS)[setting]
    before, after = fingerprints(), fingerprints(**{setting: value})
    assert {name for name in before if before[name] != after[name]} == changed


def test_another_pretrained_model_changes_every_fingerprint_that_starts_from_it(fingerprints, monkeypatch):
    before = fingerprints()
    monkeypatch.setattr(experiments, "pretrained_sha256", lambda _: "f" * 64)
    after = fingerprints()
    assert {name for name in EXPERIMENTS if before[name] == after[name]} == {"majority", "tfidf"}


def test_all_experiments_have_fingerprints_of_their_own(fingerprints):
    assert len(set(fingerprints().values())) == len(EXPERIMENTS)


# --- made once, in order ---------------------------------------------------------------------------------------------


def test_an_experiment_is_trained_once(smoke_run, monkeypatch):
    trained, original = [], experiments.train
    monkeypatch.setattr(experiments, "train", lambda *args, **kw: trained.append(1) or original(*args, **kw))
    first = run_experiment("teacher", 1, smoke_run)
    assert run_experiment("teacher", 1, smoke_run) == first
    assert len(trained) == 1


@pytest.mark.parametrize("name", SMOKE.experiments)
def test_a_finished_experiment_is_not_made_again(finished_run, no_training, name):
    assert run_experiment(name, 1, finished_run)["experiment"] == name


def test_changed_settings_make_a_finished_experiment_again(copied_run, no_training):
    changed = replace(copied_run, profile=replace(copied_run.profile, temperature=3.0))
    with pytest.raises(Retrained):
        run_experiment("odd", 1, changed)


@pytest.mark.parametrize(
    "lost",
    [
        "results/lora-1.json",
        "results/predictions/lora-1.parquet",
        "models/lora-1",
        "models/lora-1/adapter_model.safetensors",
        "models/lora-1/model.safetensors",
    ],
)
def test_an_experiment_that_lost_a_file_is_made_again(copied_run, no_training, lost):
    path = copied_run.directory / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(Retrained):
        run_experiment("lora", 1, copied_run)


def test_a_student_that_lost_its_weights_is_made_again(copied_run, no_training):
    (copied_run.model_dir("odd", 1) / "model.safetensors").unlink()
    with pytest.raises(Retrained):
        run_experiment("odd", 1, copied_run)


def test_scores_are_there_without_the_weights_they_came_from(copied_run, no_training):
    shutil.rmtree(copied_run.model_dir("odd", 1))
    scores = read_result(copied_run.results_dir, "odd", 1)
    assert run_experiment("odd", 1, copied_run, weights=False) == scores


def test_scores_of_other_settings_are_not_taken_for_these(copied_run, no_training):
    other = replace(copied_run, profile=replace(copied_run.profile, teacher_learning_rate=1e-3))
    with pytest.raises(Retrained):
        run_experiment("teacher", 1, other, weights=False)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
def test_a_broken_result_is_made_again(copied_run, no_training, content):
    result_path(copied_run.results_dir, "odd", 1).write_text(content)
    with pytest.raises(Retrained):
        run_experiment("odd", 1, copied_run)


@pytest.mark.parametrize(
    "damaged",
    [
        "results/lora-1.json",
        "results/predictions/lora-1.parquet",
        "models/lora-1/adapter_model.safetensors",
        "models/lora-1/adapter_config.json",
        "models/lora-1/model.safetensors",
        "models/odd-1/model.safetensors",
    ],
)
@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_an_experiment_with_a_damaged_file_is_made_again_and_the_file_is_named(
    copied_run, no_training, capsys, damaged, damage
):
    damage_file(copied_run.directory / damaged, damage)
    with pytest.raises(Retrained):
        run_experiment("odd" if "odd" in damaged else "lora", 1, copied_run)
    assert f"{damaged.split('/')[-1]} was cut or changed" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_damaged_data_is_never_used_and_made_again_alike(copied_run, finished_run, damage):
    damage_file(next(copied_run.data_dir.rglob("*.arrow")), damage)
    with pytest.raises(FileNotFoundError, match="run 01_data_preparation first"):
        run_experiment("odd", 1, copied_run)
    pretrained = find_pretrained(copied_run.profile.pretrained)
    again = prepare_data(copied_run, load_tokenizer(pretrained), pretrained.sha256)
    assert again.splits["train"].to_dict() == load_data(finished_run).splits["train"].to_dict()


def test_data_of_other_settings_are_not_trained_on(copied_run):
    changed = replace(copied_run, profile=replace(copied_run.profile, max_length=12))
    with pytest.raises(FileNotFoundError, match="prepared with other settings than the profile has now: run 01"):
        run_experiment("odd", 1, changed)


def test_comments_tokenised_for_another_model_are_not_trained_on(copied_run):
    changed = replace(copied_run, profile=replace(copied_run.profile, pretrained="all-mpnet-base-v2"))
    with pytest.raises(FileNotFoundError, match="tokenised for tiny-random, not for all-mpnet-base-v2: run 01"):
        run_experiment("odd", 1, changed)


def test_an_experiment_that_a_profile_lists_and_nobody_knows_is_named_with_the_nearest(copied_run):
    mistyped = replace(copied_run.profile, experiments=(*copied_run.profile.experiments, "od"))
    with pytest.raises(ValueError, match=r"od.*Did you mean 'odd'"):
        load_results(replace(copied_run, profile=mistyped))


def test_more_tokens_than_the_model_has_positions_for_are_refused_by_name(smoke_run):
    longer = replace(smoke_run, profile=replace(smoke_run.profile, max_length=65))
    with pytest.raises(ValueError, match="profile smoke: max_length=65 is not allowed; give at most 64"):
        start_model(EXPERIMENTS["teacher"], 1, longer)


@pytest.mark.parametrize("damage", ["cut", "altered"])
@pytest.mark.parametrize("file", ["outputs.safetensors", "rows.json"])
def test_damaged_teacher_outputs_are_named_and_computed_again(copied_run, capsys, file, damage):
    directory = copied_run.targets_dir(1)
    before = (directory / file).read_bytes()
    damage_file(directory / file, damage)
    teacher_targets(1, copied_run, load_data(copied_run))
    assert (directory / file).read_bytes() == before
    assert f"{file} was cut or changed" in capsys.readouterr().out


def test_an_experiment_before_its_data_names_the_first_notebook(smoke_run):
    shutil.rmtree(smoke_run.data_dir)
    with pytest.raises(FileNotFoundError, match=r"run 01_data_preparation first"):
        run_experiment("teacher", 1, smoke_run)


@pytest.mark.parametrize("name", ["odd", "even", "odd_hard", "lora_6"])
def test_a_student_before_its_teacher_names_the_notebook_that_trains_the_teacher(smoke_run, name):
    with pytest.raises(MissingStage, match=r"no teacher with seed 1 yet: run 02_layer_distillation first"):
        run_experiment(name, 1, smoke_run)


def test_a_student_is_not_made_from_a_teacher_of_another_seed(copied_run):
    with pytest.raises(MissingStage, match=r"no teacher with seed 2 yet.* teacher --seeds 2"):
        run_experiment("odd", 2, copied_run)


@pytest.fixture
def run_with_untrained_teacher(copied_run):
    """The finished run, but its teacher failed the gate and no student is there."""
    path = result_path(copied_run.results_dir, "teacher", 1)
    result = read_json(path)
    result["gate"] |= {"passed": False, "average_precision": 0.123}
    write_json(path, result)
    for name in ("odd", "odd_hard"):
        result_path(copied_run.results_dir, name, 1).unlink()
    return copied_run


def test_distilling_a_teacher_that_failed_the_gate_is_refused_with_its_score(run_with_untrained_teacher, no_training):
    with pytest.raises(TrainingError, match=r"average precision of 0\.123.*it has not learned"):
        run_experiment("odd", 1, run_with_untrained_teacher)


def test_labels_alone_need_no_teacher_that_passed_the_gate(run_with_untrained_teacher, no_training):
    with pytest.raises(Retrained):
        run_experiment("odd_hard", 1, run_with_untrained_teacher)


def test_the_teachers_outputs_are_computed_once_a_run(finished_run, monkeypatch):
    monkeypatch.setattr(experiments, "save_targets", lambda *_: pytest.fail("computed again"))
    targets, seconds = teacher_targets(1, finished_run, load_data(finished_run))
    assert set(targets.position) == set(load_data(finished_run).splits["train"]["row_id"])
    assert seconds > 0


def test_the_teacher_that_is_imitated_is_frozen_and_in_eval_mode(finished_run):
    teacher, _ = experiments.load_teacher(1, finished_run)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_a_student_starts_as_a_copy_of_the_fine_tuned_teacher_that_can_be_trained(finished_run):
    student, seconds = start_model(EXPERIMENTS["odd"], 1, finished_run)
    teacher = load_trained("teacher", 1, finished_run)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    assert all(parameter.requires_grad for parameter in student.parameters())
    assert seconds == read_json(result_path(finished_run.results_dir, "teacher", 1))["costs"]["training_seconds"]


# --- what is left behind ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMOKE.experiments)
def test_a_result_has_the_keys_that_the_comparison_reads(finished_run, name):
    result = read_result(finished_run.results_dir, name, 1)
    needed = {
        "experiment",
        "seed",
        "profile",
        "data",
        "fingerprint",
        "settings",
        "inputs",
        "versions",
        "device",
        "rows",
    }
    assert needed | {"threshold", "validation", "test", "costs"} <= result.keys()
    assert result["costs"].keys() >= {"training_seconds", "prerequisite_seconds"}
    assert set(METRICS) == result["validation"].keys() == result["test"].keys()


@pytest.mark.parametrize("name", TRAINED)
def test_a_trained_models_result_has_parameters_losses_and_costs_too(finished_run, name):
    result = read_json(result_path(finished_run.results_dir, name, 1))
    assert {"parameters", "trainable_parameters", "training_loss", "training_loss_total", "history"} <= result.keys()
    assert result["before_training"].keys() == {"average_precision"}
    assert result["costs"].keys() >= {"peak_memory_bytes", "bytes"}


@pytest.mark.parametrize("name", TRAINED)
def test_training_loss_is_cross_entropy_at_the_epoch_whose_weights_are_kept(finished_run, name):
    result = read_json(result_path(finished_run.results_dir, name, 1))
    history = result["history"]
    assert result["training_loss"] == history["epochs"][history["best_epoch"] - 1]["training"]["hard"]


@pytest.mark.parametrize("name", TRAINED)
def test_only_a_distilled_model_has_a_total_beside_its_cross_entropy(finished_run, name):
    result = read_json(result_path(finished_run.results_dir, name, 1))
    assert (result["training_loss_total"] is not None) == (name in ("odd", "even"))


@pytest.mark.parametrize("name", TRAINED)
def test_the_counted_parameters_are_those_of_the_saved_model(finished_run, name):
    result = read_json(result_path(finished_run.results_dir, name, 1))
    model = load_trained(name, 1, finished_run)
    assert result["parameters"] == count_parameters(model)[0]


def test_the_time_of_a_student_counts_its_teachers_as_prerequisite(finished_run):
    results = {name: read_json(result_path(finished_run.results_dir, name, 1))["costs"] for name in TRAINED}
    teacher = results["teacher"]["training_seconds"]
    assert results["lora"]["prerequisite_seconds"] == results["teacher"]["prerequisite_seconds"] == 0
    assert results["lora_6"]["prerequisite_seconds"] == results["odd_hard"]["prerequisite_seconds"] == teacher
    assert results["odd"]["prerequisite_seconds"] > teacher  # and the teacher's outputs


def test_an_adapters_bytes_count_its_base_but_shipping_it_does_not(finished_run):
    sizes = read_json(result_path(finished_run.results_dir, "lora", 1))["costs"]["bytes"]
    base = finished_run.model_dir("lora", 1) / "model.safetensors"
    assert sizes["total"] - sizes["to_ship"] == base.stat().st_size > sizes["to_ship"] > 0


def test_an_adapter_on_a_copy_of_this_tasks_teacher_is_shipped_with_that_copy(finished_run):
    sizes = read_json(result_path(finished_run.results_dir, "lora_6", 1))["costs"]["bytes"]
    base = finished_run.model_dir("lora_6", 1) / "model.safetensors"
    assert sizes["to_ship"] == sizes["total"] > base.stat().st_size


def test_the_smoke_teacher_passes_the_gate(finished_run):
    assert read_json(result_path(finished_run.results_dir, "teacher", 1))["gate"]["passed"] is True


@pytest.mark.parametrize("name", SMOKE.experiments)
def test_predictions_hold_ids_and_numbers_and_no_comment(finished_run, name):
    frame = pd.read_parquet(predictions_path(finished_run.results_dir, name, 1))
    assert list(frame.columns) == ["row_id", "split", "toxic", "logit_clean", "logit_toxic"]


@pytest.mark.parametrize("name", SMOKE.experiments)
def test_predictions_cover_validation_and_test_once_each(finished_run, name):
    frame = pd.read_parquet(predictions_path(finished_run.results_dir, name, 1))
    splits = load_data(finished_run).splits
    for split in ("validation", "test"):
        assert frame["row_id"][frame["split"] == split].tolist() == splits[split]["row_id"][:]
    assert set(frame["split"]) == {"validation", "test"}


@pytest.mark.parametrize("name", TRAINED)
def test_the_saved_model_makes_the_saved_predictions(finished_run, name):
    logits = predict(load_trained(name, 1, finished_run), load_data(finished_run).splits["test"])
    assert logits.numpy() == pytest.approx(saved_logits(finished_run, name, "test"), abs=1e-5)


@pytest.mark.parametrize("name", ["odd", "even", "odd_hard", "even_hard"])
def test_a_saved_students_config_says_which_teacher_layers_it_has(finished_run, name):
    config = read_json(finished_run.model_dir(name, 1) / "config.json")
    assert config["teacher_layers"] == list(EXPERIMENTS[name].layers)


def test_nothing_is_left_of_the_checkpoints(finished_run):
    assert not list((finished_run.directory / "checkpoints").iterdir())


def test_no_temporary_file_is_left(finished_run):
    assert not list(finished_run.directory.rglob("*.tmp"))


def test_no_result_names_a_path_of_this_machine(finished_run):
    for path in finished_run.results_dir.glob("*.json"):
        assert str(finished_run.directory.parent) not in path.read_text()


# --- without a notebook ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "run_in_order"),
    [
        (["even", "odd"], ["teacher", "odd", "even"]),
        (["lora"], ["lora"]),
        (["odd", "tfidf", "teacher"], ["tfidf", "teacher", "odd"]),
    ],
)
def test_experiments_run_in_order_with_the_teacher_that_they_need(asked, run_in_order):
    assert experiments.in_order(asked) == run_in_order


def test_the_command_runs_what_was_asked_for_and_no_more(smoke_run, capsys):
    assert experiments.main(["lora", "--profile", "smoke"]) == 0
    assert [path.name for path in smoke_run.results_dir.glob("*.json")] == ["lora-1.json"]
    assert "lora, seed 1: test average precision" in capsys.readouterr().out


def test_seeds_may_be_run_apart_and_end_in_one_comparison(smoke_run, monkeypatch):
    """A machine that runs seed 2 alone makes the baselines too, which have the profile's first seed."""
    monkeypatch.setitem(PROFILES, "smoke", replace(SMOKE, seeds=(1, 2)))
    assert experiments.main(["majority", "teacher", "--profile", "smoke", "--seeds", "2"]) == 0
    made = sorted(path.name for path in smoke_run.results_dir.glob("*.json"))
    assert made == ["majority-1.json", "teacher-2.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["odds", "--profile", "smoke"], "Did you mean 'odd'?"),
        (["odd", "--profile", "smoke", "--seeds", "seven"], "SEEDS=seven"),
        (["odd", "--profile", "smok"], "Did you mean 'smoke'?"),
    ],
)
def test_the_command_says_in_one_line_what_is_wrong(smoke_run, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("SEEDS", "")
    assert experiments.main(arguments) == 2
    assert message in capsys.readouterr().err
