"""The rows of the comparison: what each depends on, that it is made once, and what it leaves behind."""

import subprocess
import sys
from dataclasses import fields, replace
from unittest.mock import Mock

import pandas as pd
import pytest
import torch
from conftest import damage_file

from helpers import experiments
from helpers.config import PROFILES, load_profile
from helpers.data import load_data
from helpers.evaluation import METRICS
from helpers.experiments import EXPERIMENTS, run_experiment
from helpers.lora import count_parameters
from helpers.runs import ROOT, read_json, write_json
from helpers.saved import LOGITS, predictions_path, read_result, result_path
from helpers.training import TrainingError, predict

SMOKE = load_profile("smoke")
TRAINED = [name for name in SMOKE.experiments if EXPERIMENTS[name].start != "baseline"]
TRAINED_AT_ALL = {name for name, experiment in EXPERIMENTS.items() if experiment.start != "baseline"}
FROM_THE_TEACHER = {name for name, experiment in EXPERIMENTS.items() if experiment.start == "teacher"}
DISTILLED = {name for name, experiment in EXPERIMENTS.items() if experiment.distil}
LORA = {name for name, experiment in EXPERIMENTS.items() if experiment.adapter}
STUDENTS = FROM_THE_TEACHER - LORA


class Retrained(Exception):
    """Raised in place of training."""


@pytest.fixture
def no_training(monkeypatch) -> None:
    """Training raises Retrained, so that a test sees at once whether an experiment would be made again."""
    monkeypatch.setattr(experiments, "train", Mock(side_effect=Retrained))


@pytest.fixture(scope="module")
def saved(finished_run) -> dict[str, dict]:
    """The JSON of each experiment of the finished run, as it is on disk."""
    return {name: read_json(result_path(finished_run.results_dir, name, 1)) for name in SMOKE.experiments}


def fingerprints(seed: int = 1, data: str = "data", **changes) -> dict[str, str]:
    """The fingerprints of all experiments in the smoke profile with some settings changed."""
    profile = replace(SMOKE, **changes)
    return {name: experiments.experiment_fingerprint(row, seed, profile, data) for name, row in EXPERIMENTS.items()}


def test_the_students_keep_the_layers_they_are_named_after():
    odd, even = (1, 3, 5, 7, 9, 11), (2, 4, 6, 8, 10, 12)
    expected = {"odd": odd, "even": even, "odd_hard": odd, "even_hard": even, "lora_6": odd, "hybrid": odd}
    expected |= {"odd_without_1": (2, 3, 5, 7, 9, 11), "odd_with_12": (1, 3, 5, 7, 9, 12)}
    expected |= {"even_with_1": (1, 4, 6, 8, 10, 12), "twelve": tuple(sorted(odd + even))}
    expected |= {"first_six": (1, 2, 3, 4, 5, 6), "last_six": (7, 8, 9, 10, 11, 12)}
    assert {name: EXPERIMENTS[name].layers for name in FROM_THE_TEACHER} == expected


CHANGES = (  # what is made again when a setting changes; a changed teacher changes what stands on its copy
    (set(), {"seeds": (1, 2, 3), "name": "other", "expected_time": "a year", "experiments": ("teacher",)}),
    (set(), {"data_without_files": "error", "micro_batch_size": 4}),  # the gradients are the whole batch's either way
    (TRAINED_AT_ALL, {"pretrained": "minilm-stacked", "epochs": 9, "batch_size": 4, "seed": 2}),
    (TRAINED_AT_ALL, {"weight_decay": 0.1, "warmup_ratio": 0.3, "max_grad_norm": 0.5}),
    (FROM_THE_TEACHER | {"teacher"}, {"teacher_learning_rate": 1e-4}),
    (STUDENTS, {"student_learning_rate": 1e-4}),
    (LORA, {"lora_learning_rate": 1e-4, "lora_rank": 4, "lora_alpha": 4, "lora_dropout": 0.3}),
    (LORA, {"lora_targets": "all_linear"}),
    (DISTILLED, {"temperature": 3.0, "alpha": 0.9, "beta": 0.0}),
    (set(EXPERIMENTS), {"data": "other data"}),
)
OF_THE_DATA = {"train_rows", "validation_rows", "test_rows", "max_length", "split_seed"}  # tests/test_data.py


def test_every_setting_stands_in_the_table_of_what_it_changes():
    settings = {setting for _, changes in CHANGES for setting in changes} - {"seed", "data"}
    assert settings | OF_THE_DATA == {field.name for field in fields(SMOKE)}


def test_a_setting_changes_the_fingerprints_of_what_depends_on_it_and_no_other():
    before = fingerprints()
    for expected, changes in CHANGES:
        for setting, value in changes.items():
            after = fingerprints(**{setting: value})
            assert {name for name in before if before[name] != after[name]} == expected, setting


def test_all_experiments_have_fingerprints_of_their_own():
    assert len(set(fingerprints().values())) == len(EXPERIMENTS)


def test_a_finished_experiment_is_not_made_again(finished_run, no_training, monkeypatch):
    monkeypatch.setattr(experiments, "BASELINES", {})
    for name in SMOKE.experiments:
        assert run_experiment(name, 1, finished_run) == read_result(finished_run.results_dir, name, 1)


def test_a_result_that_is_older_than_the_code_is_used_and_the_files_that_changed_are_told(
    copied_run, no_training, monkeypatch, capsys
):
    run_experiment("odd", 1, copied_run)
    assert "was made before" not in capsys.readouterr().out
    monkeypatch.setattr(experiments, "code_hashes", lambda: {"losses.py": "other", "layers.py": "other"})
    assert run_experiment("odd", 1, copied_run)["experiment"] == "odd"
    assert (
        "odd, seed 1 was made before losses.py, layers.py changed; to train it again, remove" in capsys.readouterr().out
    )


def test_changed_settings_make_a_finished_experiment_again(copied_run, no_training):
    changed = replace(copied_run, profile=replace(copied_run.profile, temperature=3.0))
    with pytest.raises(Retrained):
        run_experiment("odd", 1, changed)


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("results/lora-1.json", "altered"),
        ("results/lora-1.json", "lost"),
        ("results/predictions/lora-1.parquet", "cut"),
        ("models/lora-1/adapter_model.safetensors", "altered"),
        ("models/lora-1/model.safetensors", "lost"),
    ],
)
def test_an_experiment_with_a_lost_or_damaged_file_is_made_again(copied_run, no_training, capsys, file, damage):
    path = copied_run.directory / file
    path.unlink() if damage == "lost" else damage_file(path, damage)
    with pytest.raises(Retrained):
        run_experiment("lora", 1, copied_run)
    assert damage == "lost" or f"{path.name} was cut or changed" in capsys.readouterr().out


def test_damaged_data_is_never_used(copied_run):
    damage_file(next(copied_run.data_dir.rglob("*.arrow")), "altered")
    with pytest.raises(FileNotFoundError, match="run 01_data_preparation first"):
        run_experiment("odd", 1, copied_run)


def test_comments_tokenised_for_another_model_are_not_trained_on(copied_run):
    changed = replace(copied_run, profile=replace(copied_run.profile, pretrained="all-mpnet-base-v2"))
    with pytest.raises(FileNotFoundError, match="pretrained tiny-random, not all-mpnet-base-v2: run 01"):
        run_experiment("odd", 1, changed)


@pytest.mark.parametrize("name", ["odd", "lora_6"])
def test_what_stands_on_a_teacher_is_not_made_before_the_teacher_of_its_own_seed(copied_run, name):
    said = r"no teacher with seed 2 yet: run 02_layer_distillation first .* teacher --seeds 2"
    with pytest.raises(experiments.MissingStage, match=said):
        run_experiment(name, 2, copied_run)


def test_a_teacher_that_failed_the_gate_is_not_distilled_but_its_copy_may_learn_from_labels(copied_run, no_training):
    path = result_path(copied_run.results_dir, "teacher", 1)
    result = read_json(path)
    result["gate"] |= {"passed": False, "average_precision": 0.123}
    write_json(path, result)
    for name in ("odd", "odd_hard"):
        result_path(copied_run.results_dir, name, 1).unlink()
    with pytest.raises(TrainingError, match=r"average precision of 0\.123.*it has not learned"):
        run_experiment("odd", 1, copied_run)
    with pytest.raises(Retrained):
        run_experiment("odd_hard", 1, copied_run)


def test_a_distilled_student_reads_the_data_and_its_teacher_once(copied_run, no_training, monkeypatch):
    result_path(copied_run.results_dir, "odd", 1).unlink()
    called = []
    for name in ("load_data", "load_trained", "save_targets"):
        original = getattr(experiments, name)
        monkeypatch.setattr(experiments, name, lambda *a, name=name, f=original: called.append(name) or f(*a))
    with pytest.raises(Retrained):
        run_experiment("odd", 1, copied_run)
    assert called == ["load_data", "load_trained"]  # and the teacher's outputs are those that the run has


@pytest.mark.parametrize(("file", "damage"), [("outputs.safetensors", "altered"), ("rows.json", "cut")])
def test_damaged_teacher_outputs_are_named_and_computed_again(copied_run, capsys, file, damage):
    path = copied_run.targets_dir(1) / file
    before = path.read_bytes()
    damage_file(path, damage)
    training = experiments.Training(EXPERIMENTS["odd"], 1, copied_run, load_data(copied_run))
    experiments.teacher_targets(training, *experiments.load_teacher(1, copied_run, training.data))
    assert path.read_bytes() == before
    assert f"{file} was cut or changed" in capsys.readouterr().out


def test_the_teacher_that_is_imitated_is_frozen_and_in_eval_mode(finished_run):
    teacher, _ = experiments.load_teacher(1, finished_run)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not any(module.training for module in teacher.modules())


def test_a_student_starts_as_a_copy_of_the_fine_tuned_teacher_that_can_be_trained(finished_run):
    teacher, _ = experiments.load_teacher(1, finished_run)
    student = experiments.start_model(EXPERIMENTS["odd"], 1, SMOKE, teacher)
    assert torch.equal(student.classifier.weight, teacher.classifier.weight)
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_a_result_has_the_keys_that_the_comparison_reads_and_no_latency(saved, finished_run):
    needed = {"experiment", "seed", "profile", "data", "rows"}
    needed |= {"fingerprint", "settings", "inputs", "versions", "device"}
    of_trained = {"parameters", "trainable_parameters", "training_loss", "history", "before_training", "costs"}
    for name, result in saved.items():
        assert needed | (of_trained if name in TRAINED else set()) <= result.keys()
        scores = read_result(finished_run.results_dir, name, 1)
        assert set(METRICS) == scores["validation"].keys() == scores["test"].keys()


def test_training_loss_is_cross_entropy_at_the_epoch_whose_weights_are_kept(saved):
    for name in TRAINED:
        history = saved[name]["history"]
        assert saved[name]["training_loss"] == history["epochs"][history["best_epoch"] - 1]["training"]["hard"]


def test_of_other_seeds_the_teacher_alone_keeps_its_weights_and_the_rest_stays_finished(copied_run, monkeypatch):
    run = replace(copied_run, profile=replace(copied_run.profile, seeds=(1, 2)))
    for name in ("teacher", "odd_hard"):
        run_experiment(name, 2, run)
    assert {path.name for path in run.model_dir("odd", 2).parent.iterdir() if path.name.endswith("2")} == {"teacher-2"}
    monkeypatch.setattr(experiments, "train", None)
    assert run_experiment("odd_hard", 2, run)["test"]["average_precision"] > 0


def test_an_adapter_is_shipped_without_a_base_that_everybody_has_and_with_one_of_this_task(saved, finished_run):
    for name in ("lora", "lora_6"):
        sizes = saved[name]["costs"]["bytes"]
        base = (finished_run.model_dir(name, 1) / "model.safetensors").stat().st_size
        assert sizes["total"] > base > 0
        assert sizes["to_ship"] == sizes["total"] - (base if name == "lora" else 0)


def test_predictions_hold_every_row_of_validation_and_test_once_and_no_comment(finished_run):
    splits = load_data(finished_run).splits
    for name in SMOKE.experiments:
        frame = pd.read_parquet(predictions_path(finished_run.results_dir, name, 1))
        assert list(frame.columns) == ["row_id", "split", "toxic", *LOGITS]
        assert set(frame["split"]) == {"validation", "test"}
        for split, rows in frame.groupby("split"):
            assert rows["row_id"].tolist() == splits[split]["row_id"][:]


@pytest.mark.parametrize("name", ["teacher", "odd", "lora", "lora_6"])
def test_the_saved_model_makes_the_saved_predictions_and_has_the_counted_parameters(finished_run, saved, name):
    model = experiments.load_trained(name, 1, finished_run)
    frame = pd.read_parquet(predictions_path(finished_run.results_dir, name, 1))
    expected = frame.loc[frame["split"] == "test", LOGITS].to_numpy()
    logits = predict(model, load_data(finished_run).splits["test"])
    assert logits.numpy() == pytest.approx(expected, abs=1e-5)
    assert saved[name]["parameters"] == count_parameters(model)[0]


def test_no_checkpoint_and_no_temporary_file_is_left(finished_run):
    assert not list((finished_run.directory / "checkpoints").iterdir())
    assert not list(finished_run.directory.rglob("*.tmp"))


def test_importing_run_experiment_loads_no_onnxruntime():
    code = "import sys; from helpers.experiments import run_experiment; sys.exit('onnxruntime' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


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


def test_the_command_runs_what_was_asked_for_alone_and_the_baselines_with_the_first_seed(smoke_run, monkeypatch):
    monkeypatch.setitem(PROFILES, "smoke", replace(SMOKE, seeds=(1, 2)))
    assert experiments.main(["majority", "teacher", "--profile", "smoke", "--seeds", "2"]) == 0
    made = sorted(path.name for path in smoke_run.results_dir.glob("*.json"))
    assert made == ["majority-1.json", "teacher-2.json"]


def test_the_command_answers_an_unknown_experiment_with_the_nearest_in_one_line(smoke_run, capsys):
    assert experiments.main(["lora6", "--profile", "smoke"]) == 2
    said = capsys.readouterr().err
    assert "no experiment 'lora6'" in said and "Did you mean 'lora_6'" in said and said.count("\n") == 1
