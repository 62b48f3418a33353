"""The training loop: batches, schedule, resuming to the bit, the best epoch, the teacher's outputs."""

import copy
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import damage_file
from datasets import Dataset
from sklearn.metrics import roc_auc_score

import helpers.training
from helpers.config import LABELS
from helpers.evaluation import mean_column_roc_auc
from helpers.layers import copy_layers
from helpers.lora import add_adapters
from helpers.runs import ROOT, device_name
from helpers.training import (
    Collator,
    TeacherTargets,
    TrainingError,
    TrainingSettings,
    average_precision,
    batch_loss,
    bucketed_batches,
    learning_rate_at,
    load_targets,
    make_optimizer,
    mixed_precision,
    predict,
    save_targets,
    token_lengths,
    train,
)

STEPS_AN_EPOCH = 5
SETTINGS = TrainingSettings(
    epochs=3,
    batch_size=4,
    learning_rate=3e-3,
    weight_decay=0.01,
    warmup_share=0.2,
    max_gradient_norm=1.0,
    seed=1,
)
STEPS = STEPS_AN_EPOCH * SETTINGS.epochs
DISTILLING = {"temperature": 2.0, "alpha": 0.5, "beta": 0.1}
NOT_COMPARED = ("seconds", "peak_memory_bytes")
SIX_LABELS = {"id2label": dict(enumerate(LABELS)), "problem_type": "multi_label_classification"}


@pytest.fixture(scope="module")
def rows(tiny_rows) -> tuple[Dataset, Dataset]:
    """18 training rows, so that the last of five batches is not full, and 12 validation rows."""
    return tiny_rows(18), tiny_rows(12, seed=1)


def lengths_like_comments(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(3, 65, size=count)


def padding(lengths: np.ndarray, batches: list[list[int]]) -> int:
    return sum(int(lengths[batch].max()) * len(batch) - int(lengths[batch].sum()) for batch in batches)


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1_000])
def test_every_row_stands_in_exactly_one_batch(count):
    batches = bucketed_batches(lengths_like_comments(count), 32, seed=1, epoch=0)
    assert sorted(row for batch in batches for row in batch) == list(range(count))


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1_000])
def test_there_are_as_many_batches_as_the_schedule_counts_steps(count):
    assert len(bucketed_batches(lengths_like_comments(count), 32, seed=1, epoch=0)) == -(-count // 32)


def test_the_same_seed_and_epoch_give_the_same_batches():
    lengths = lengths_like_comments(300)
    assert bucketed_batches(lengths, 8, 1, 2) == bucketed_batches(lengths, 8, 1, 2)


@pytest.mark.parametrize(("seed", "epoch"), [(1, 1), (2, 0)], ids=["other epoch", "other seed"])
def test_another_seed_or_epoch_gives_other_batches(seed, epoch):
    lengths = lengths_like_comments(300)
    assert bucketed_batches(lengths, 8, seed, epoch) != bucketed_batches(lengths, 8, 1, 0)


def test_the_batches_come_in_no_order_of_length():
    lengths = lengths_like_comments(640)
    longest = [lengths[batch].max() for batch in bucketed_batches(lengths, 32, 1, 0)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_bucketed_batches_need_less_than_half_the_padding_of_random_ones():
    lengths = lengths_like_comments(2_000)
    order = np.random.default_rng(1).permutation(2_000)
    at_random = [order[i : i + 32].tolist() for i in range(0, 2_000, 32)]
    assert padding(lengths, bucketed_batches(lengths, 32, 1, 0)) < padding(lengths, at_random) / 2


def test_the_collator_pads_with_the_pad_token_and_masks_it():
    rows = [{"input_ids": [5, 9, 6], "toxic": 1}, {"input_ids": [5, 6], "toxic": 0}]
    batch = {name: tensor.tolist() for name, tensor in Collator(pad_token_id=1)(rows).items()}
    assert batch == {
        "input_ids": [[5, 9, 6], [5, 6, 1]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [1, 0],
    }


def test_the_collator_gives_a_column_a_label_in_the_order_asked_for(tiny_rows):
    rows = [row | {"threat": number} for number, row in enumerate(tiny_rows(3))]
    assert Collator(0, labels=("toxic", "threat"))(rows)["labels"].tolist() == [[1, 0], [0, 1], [0, 2]]


# --- six labels ------------------------------------------------------------------------------------------------------


@pytest.fixture
def labels_batch(batch) -> dict[str, torch.Tensor]:
    """The batch with six labels a comment."""
    return batch | {"labels": torch.randint(0, 2, (4, 6), generator=torch.Generator().manual_seed(1))}


def test_the_loss_of_six_labels_is_binary_cross_entropy(tiny_model, labels_batch):
    model, labels = tiny_model("bert", layers=2, **SIX_LABELS), labels_batch.pop("labels")
    expected = F.binary_cross_entropy_with_logits(model(**labels_batch).logits, labels.float())
    loss = batch_loss(model, labels_batch | {"labels": labels}, SETTINGS)["hard"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_student_that_answers_as_its_teacher_has_no_soft_loss(tiny_model, labels_batch):
    model = tiny_model("bert", layers=2, **SIX_LABELS)
    output = model(labels_batch["input_ids"], labels_batch["attention_mask"], output_hidden_states=True)
    labels_batch |= {"teacher_logits": output.logits, "teacher_states": output.hidden_states[-1][:, :1]}
    losses = batch_loss(model, labels_batch, replace(SETTINGS, **DISTILLING))
    assert losses["soft"].item() == pytest.approx(0, abs=1e-6)


def test_the_best_epoch_of_six_labels_is_that_of_the_mean_roc_auc_over_columns_with_both_classes(
    tiny_model, rows, tmp_path
):
    """In these rows only `toxic` has both."""
    model, history = run_training("labels", tiny_model, rows, tmp_path)
    logits, toxic = predict(model, rows[1]).numpy(), rows[1]["toxic"][:]
    scores = [epoch["validation"]["mean_column_roc_auc"] for epoch in history["epochs"]]
    assert scores[history["best_epoch"] - 1] == max(scores) == pytest.approx(roc_auc_score(toxic, logits[:, 0]))


def outputs(model: torch.nn.Module, rows: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """The model's logits and [CLS] states."""
    states = np.empty((len(rows), 1, model.config.hidden_size), dtype="float32")
    logits = predict(model, rows, states=states, layers=[model.config.num_hidden_layers])
    return logits, torch.from_numpy(states)


# --- the teacher's outputs -------------------------------------------------------------------------------------------


@pytest.fixture
def targets(tiny_bert, rows, tmp_path) -> TeacherTargets:
    """The outputs of tiny_bert on the training rows, saved and loaded again."""
    save_targets(tiny_bert, rows[0], tmp_path / "targets", "teacher 1")
    return load_targets(tmp_path / "targets", "teacher 1")


def test_the_teachers_outputs_are_computed_without_dropout(tiny_bert, rows):
    tiny_bert.train()
    first, second = outputs(tiny_bert, rows[0]), outputs(tiny_bert, rows[0])
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_the_teachers_outputs_are_found_by_row_id_under_shuffling(tiny_bert, rows, targets):
    shuffled = rows[0].shuffle(seed=3)
    batch = Collator(0, targets)(list(shuffled))
    logits, states = outputs(tiny_bert, shuffled)
    assert torch.allclose(batch["teacher_logits"], logits, atol=1e-5)
    assert torch.allclose(batch["teacher_states"], states, atol=1e-5)


def test_the_kept_state_is_that_of_cls_after_the_last_layer(tiny_bert, rows, targets):
    row = rows[0][4]
    with torch.inference_mode():
        hidden = tiny_bert(torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states
    assert torch.allclose(targets.look_up([row["row_id"]])[1], hidden[12][:, 0], atol=1e-5)


def test_a_row_that_the_teacher_has_not_seen_is_an_error(targets):
    with pytest.raises(KeyError, match=r"lack 1 of these rows .first id row-9-0000"):
        targets.look_up(["row-0-0001", "row-9-0000"])


def test_saved_outputs_are_memory_mapped(targets, tmp_path, monkeypatch):
    modes = []
    original = np.load
    monkeypatch.setattr(np, "load", lambda path, mmap_mode=None: modes.append(mmap_mode) or original(path, mmap_mode))
    load_targets(tmp_path / "targets", "teacher 1")
    assert modes == ["c", "c"]


def test_outputs_of_another_teacher_are_not_used(targets, tmp_path):
    assert load_targets(tmp_path / "targets", "teacher 2") is None


def test_outputs_that_were_never_made_are_none(tmp_path):
    assert load_targets(tmp_path / "targets", "teacher 1") is None


# --- predicting ------------------------------------------------------------------------------------------------------


def test_predictions_stand_in_the_datasets_order_whatever_the_lengths(tiny_bert, rows):
    logits = predict(tiny_bert, rows[0], batch_size=4)
    with torch.inference_mode():
        one_by_one = torch.cat([tiny_bert(torch.tensor([ids])).logits for ids in rows[0]["input_ids"]])
    assert len(set(token_lengths(rows[0]))) > 5
    assert torch.allclose(logits, one_by_one, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_predicting_restores_the_models_mode(tiny_bert, rows, training):
    tiny_bert.train(training)
    predict(tiny_bert, rows[1])
    assert all(module.training is training for module in tiny_bert.modules())


def test_predicting_draws_no_random_numbers(tiny_bert, rows):
    before = torch.get_rng_state()
    predict(tiny_bert.train(), rows[1])
    assert torch.equal(torch.get_rng_state(), before)


# --- gradient accumulation ---


@pytest.mark.parametrize("kind", ["plain", "distilled", "lora", "labels"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_pieces_of_a_batch_give_the_gradients_of_the_whole(tiny_model, rows, tmp_path, monkeypatch, kind, size):
    """18 rows in batches of 4: the pieces of 3 are uneven, and so is the last batch. Dropout is off."""
    gradients = {}

    def noting(self, parameters, _):
        gradients.setdefault(self, []).append([p.grad.clone() for p in parameters if p.grad is not None])
        return 1.0

    monkeypatch.setattr(helpers.training.Accelerator, "clip_grad_norm_", noting)
    original = torch.nn.Module.train
    monkeypatch.setattr(torch.nn.Module, "train", lambda self, mode=True: original(self, False))
    settings = {"micro_batch_size": size}
    for directory, changes in (("whole", {}), ("pieces", settings)):
        model, arguments = make_training(kind, tiny_model, rows)
        arguments["settings"] = replace(arguments["settings"], epochs=1, learning_rate=1e-9)
        train(model, *rows, checkpoint_dir=tmp_path / directory, made_from="start", **arguments, **changes)
    whole, pieces = gradients.values()
    assert len(whole) == len(pieces) == STEPS_AN_EPOCH
    for expected, found in zip(whole, pieces, strict=True):
        assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-4) for a, b in zip(expected, found, strict=True))


# --- precision, rates, weight decay ----------------------------------------------------------------------------------


T4, A100, H100 = (7, 5), (8, 0), (9, 0)


@pytest.fixture
def has_gpus(monkeypatch):
    """Makes torch report GPUs of these compute capabilities; none is a CPU."""

    def fake(*capabilities: tuple[int, int]) -> None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=0: capabilities[device])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=0: "A GPU")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)  # as a T4 says
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    return fake


@pytest.mark.parametrize(
    ("gpus", "precision"),
    [((), "no"), ((T4,), "fp16"), ((A100,), "bf16"), ((H100,), "bf16"), ((T4, T4), "fp16"), ((A100, T4), "fp16")],
    ids=["CPU", "T4", "A100", "H100", "two T4", "A100 and T4"],
)
def test_bf16_only_where_every_gpu_has_compute_capability_8(has_gpus, gpus, precision):
    has_gpus(*gpus)
    assert mixed_precision() == precision


def test_who_asks_for_the_cpu_gets_it_in_float32_on_a_machine_with_a_gpu(has_gpus, monkeypatch):
    has_gpus((8, 0))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert mixed_precision() == "no"
    assert device_name().startswith("cpu")


@pytest.mark.parametrize(
    ("gpus", "processes", "name"),
    [
        ((), 1, f"cpu, {torch.get_num_threads()} threads"),
        ((T4,), 1, "A GPU"),
        ((T4, T4), 1, "A GPU (1 of 2; `accelerate launch` uses all)"),
        ((T4, T4), 2, "2 × A GPU"),
    ],
    ids=["CPU", "one GPU", "two GPUs, one process", "two GPUs, two processes"],
)
def test_the_device_is_named_as_it_is_used(has_gpus, monkeypatch, gpus, processes, name):
    has_gpus(*gpus)
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert device_name() == name


def test_an_apple_gpu_is_named(has_gpus, monkeypatch):
    has_gpus()
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_name() == "Apple GPU (mps)"


def rates(steps: int, **changes) -> list[float]:
    return [learning_rate_at(step, steps, replace(SETTINGS, **changes)) for step in range(steps)]


def test_the_rate_rises_evenly_over_the_warm_up():
    assert rates(100)[:20] == pytest.approx(np.linspace(3e-3 / 20, 3e-3, 20))


def test_the_peak_is_the_learning_rate_that_was_asked_for():
    assert max(rates(100)) == 3e-3


def test_the_rate_falls_evenly_to_almost_zero():
    assert rates(100)[20:] == pytest.approx(3e-3 * np.arange(80, 0, -1) / 80)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_very_short_training_has_rates_above_zero_and_not_above_the_peak(steps):
    assert all(0 < rate <= 3e-3 for rate in rates(steps, warmup_share=0.1))


def test_biases_and_layer_norms_do_not_decay(tiny_bert):
    optimizer = make_optimizer(tiny_bert, SETTINGS)
    free = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    named = {name for name, p in tiny_bert.named_parameters() if id(p) in free}
    assert named == {name for name, _ in tiny_bert.named_parameters() if name.endswith("bias") or "LayerNorm" in name}


# --- training --------------------------------------------------------------------------------------------------------


class Killed(KeyboardInterrupt):
    """Stands for a training run that is killed."""


def make_training(kind: str, model_of, rows) -> tuple[torch.nn.Module, dict]:
    """A fresh model and the other arguments of train: 'plain', 'distilled', 'lora' or, distilled too, 'labels'."""
    if kind == "plain":
        return model_of("bert", layers=2), {"settings": SETTINGS}
    if kind == "lora":
        adapted = add_adapters(model_of("bert", layers=2), rank=4, alpha=8, dropout=0.1, seed=1)
        return adapted, {"settings": replace(SETTINGS, learning_rate=1e-2)}
    teacher = model_of("bert", layers=4, **(SIX_LABELS if kind == "labels" else {}))
    positions = {row_id: place for place, row_id in enumerate(rows[0]["row_id"])}
    targets = TeacherTargets(positions, *outputs(teacher, rows[0]))
    best_by = mean_column_roc_auc if kind == "labels" else average_precision
    settings = replace(SETTINGS, **DISTILLING)
    return copy_layers(teacher, [1, 3]), {"settings": settings, "targets": targets, "best_by": best_by}


def run_training(kind: str, model_of, rows, directory: Path, **changes) -> tuple[torch.nn.Module, dict]:
    model, arguments = make_training(kind, model_of, rows)
    arguments = {"checkpoint_dir": directory, "made_from": "start", "checkpoint_seconds": 0} | arguments | changes
    return model, train(model, *rows, **arguments)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_model, rows):
    """Model and history of a training that nobody interrupted, by kind; each is trained once."""

    @cache
    def trained(kind: str) -> tuple[torch.nn.Module, dict]:
        return run_training(kind, tiny_model, rows, tmp_path_factory.mktemp(kind), checkpoint_seconds=1e9)

    return trained


def kill_before_step(monkeypatch, step: int) -> None:
    """The run dies when so many steps are done and the next one begins."""
    original = helpers.training._TrainingRun.train_step

    def train_step(self, *arguments):
        if self.progress["step"] == step:
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(helpers.training._TrainingRun, "train_step", train_step)


def kill_in(monkeypatch, method: str, when) -> None:
    """The run dies on entering a method, when the condition holds of it."""
    original = getattr(helpers.training._TrainingRun, method)

    def dying(self, *arguments):
        if when(self):
            raise Killed
        return original(self, *arguments)

    monkeypatch.setattr(helpers.training._TrainingRun, method, dying)


def assert_same_training(resumed: tuple, whole: tuple) -> None:
    """Equal weights and equal history, to the bit."""
    (model, history), (expected_model, expected_history) = resumed, whole
    expected = expected_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    for part in history.keys() - NOT_COMPARED:
        assert history[part] == expected_history[part], part


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("plain", 3),
        ("plain", 5),
        ("plain", 7),
        ("distilled", 2),
        ("distilled", 7),
        ("lora", 5),
        ("lora", 8),
    ],
)
def test_interrupted_and_resumed_equals_uninterrupted(uninterrupted, tiny_model, rows, tmp_path, kind, step):
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Killed):
        kill_before_step(monkeypatch, step)
        run_training(kind, tiny_model, rows, tmp_path / "checkpoints")
    resumed = run_training(kind, tiny_model, rows, tmp_path / "checkpoints")
    assert_same_training(resumed, uninterrupted(kind))


@pytest.mark.parametrize(
    ("method", "when"),
    [
        ("finish_epoch", lambda run: run.progress["step"] == 10),
        ("save", lambda run: run.epoch == 2),
        ("finish", lambda run: True),
    ],
    ids=["between the last step and validation", "between the best weights and the checkpoint", "after the last epoch"],
)
def test_a_run_killed_at_an_epochs_end_goes_on_as_if_it_was_not(
    uninterrupted, tiny_model, rows, tmp_path, method, when
):
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Killed):
        kill_in(monkeypatch, method, when)
        run_training("plain", tiny_model, rows, tmp_path / "checkpoints")
    resumed = run_training("plain", tiny_model, rows, tmp_path / "checkpoints")
    assert_same_training(resumed, uninterrupted("plain"))


def test_a_run_killed_between_checkpoints_repeats_the_steps_after_the_last_one(
    uninterrupted, tiny_model, rows, tmp_path
):
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Killed):
        kill_before_step(monkeypatch, 8)
        run_training("plain", tiny_model, rows, tmp_path / "checkpoints", checkpoint_seconds=1e9)
    resumed = run_training("plain", tiny_model, rows, tmp_path / "checkpoints")
    assert_same_training(resumed, uninterrupted("plain"))


def test_a_resumed_run_does_not_repeat_steps_that_its_checkpoint_holds(tiny_model, rows, tmp_path, monkeypatch):
    with pytest.MonkeyPatch.context() as killing, pytest.raises(Killed):
        kill_before_step(killing, 7)
        run_training("plain", tiny_model, rows, tmp_path / "checkpoints")
    done = []
    original = helpers.training.batch_loss
    monkeypatch.setattr(helpers.training, "batch_loss", lambda *args: done.append(1) or original(*args))
    run_training("plain", tiny_model, rows, tmp_path / "checkpoints")
    assert len(done) == STEPS - 7


@pytest.mark.parametrize(
    "file", ["step-*/model.safetensors", "step-*/optimizer.bin", "step-*/progress.json", "best-*/weights.safetensors"]
)
@pytest.mark.parametrize("damage", ["cut", "altered"])
def test_a_damaged_checkpoint_is_named_and_not_used(uninterrupted, tiny_model, rows, tmp_path, capsys, file, damage):
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Killed):
        kill_before_step(monkeypatch, 7)
        run_training("plain", tiny_model, rows, tmp_path / "used")
    damage_file(next((tmp_path / "used").glob(file)), damage)
    assert_same_training(run_training("plain", tiny_model, rows, tmp_path / "used"), uninterrupted("plain"))
    assert f"{file.split('/')[-1]} was cut or changed" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes",
    [{"made_from": "another start"}, {"settings": replace(SETTINGS, learning_rate=1e-3)}, {"micro_batch_size": 2}],
)
def test_a_checkpoint_of_something_else_is_not_used(tiny_model, rows, tmp_path, changes):
    with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Killed):
        kill_before_step(monkeypatch, 7)
        run_training("plain", tiny_model, rows, tmp_path / "used")
    afresh = run_training("plain", tiny_model, rows, tmp_path / "new", **changes)
    assert_same_training(run_training("plain", tiny_model, rows, tmp_path / "used", **changes), afresh)


def test_dropout_is_on_while_training(tiny_model, rows, tmp_path, monkeypatch):
    modes = set()
    original = helpers.training.batch_loss

    def watching(model, *arguments):
        modes.update(module.training for module in model.modules() if isinstance(module, torch.nn.Dropout))
        return original(model, *arguments)

    monkeypatch.setattr(helpers.training, "batch_loss", watching)
    model, _ = run_training("plain", tiny_model, rows, tmp_path)
    assert model.config.hidden_dropout_prob == 0.1
    assert modes == {True}


def test_the_trained_model_is_left_in_eval_mode(uninterrupted):
    assert not any(module.training for module in uninterrupted("plain")[0].modules())


@pytest.mark.parametrize(
    ("scores", "best"), [([0.5, 0.9, 0.7], 2), ([0.5, 0.9, 0.9], 2), ([0.9, 0.5, 0.7], 1), ([0.1, 0.2, 0.3], 3)]
)
def test_the_weights_of_the_best_epoch_are_restored_the_first_of_equals(
    tiny_model, rows, tmp_path, monkeypatch, scores, best
):
    left, weights = iter(scores), {}
    original = helpers.training._TrainingRun.finish_epoch

    def finish_epoch(self, memory):
        original(self, memory)
        weights[self.epoch] = copy.deepcopy(self.plain_model.state_dict())

    monkeypatch.setattr(helpers.training, "average_precision_score", lambda *_: next(left))
    monkeypatch.setattr(helpers.training._TrainingRun, "finish_epoch", finish_epoch)
    model, history = run_training("plain", tiny_model, rows, tmp_path)
    assert history["best_epoch"] == best
    assert all(torch.equal(tensor, weights[best][name]) for name, tensor in model.state_dict().items())


@pytest.fixture(params=["nan", "inf"])
def diverged(request, tiny_model, rows, tmp_path, monkeypatch) -> tuple[TrainingError, Path, str]:
    """The error of a training whose loss is no finite number at its 8th step, its folder of checkpoints, the loss."""
    original, calls = helpers.training.batch_loss, []

    def sometimes_not_finite(*arguments):
        calls.append(1)
        losses = original(*arguments)
        return {part: loss * float(request.param) for part, loss in losses.items()} if len(calls) == 8 else losses

    monkeypatch.setattr(helpers.training, "batch_loss", sometimes_not_finite)
    with pytest.raises(TrainingError) as caught:
        run_training("plain", tiny_model, rows, tmp_path / "checkpoints")
    return caught.value, tmp_path / "checkpoints", request.param


def test_a_gradient_that_is_no_number_ends_training_though_the_loss_is_one(tiny_model, rows, tmp_path, monkeypatch):
    original = helpers.training.batch_loss

    def steep(*arguments):
        losses = original(*arguments)
        return losses | {"total": losses["total"] + (1e38 * losses["total"] - 1e38 * losses["total"]) * 1e38}

    monkeypatch.setattr(helpers.training, "batch_loss", steep)
    with pytest.raises(TrainingError, match="the gradient became nan at step 1 of 15"):
        run_training("plain", tiny_model, rows, tmp_path)


def test_logits_on_validation_that_are_no_numbers_end_training(tiny_model, rows, tmp_path, monkeypatch):
    monkeypatch.setattr(helpers.training, "predict", lambda *_: torch.full((8, 2), float("nan")))
    with pytest.raises(TrainingError, match="the logits on validation became infinite or NaN"):
        run_training("plain", tiny_model, rows, tmp_path)


def test_a_loss_that_is_not_finite_ends_training_and_the_message_names_the_step_and_the_rate(diverged):
    assert f"became {diverged[2]} at step 8 of 15; lower the learning rate (now 0.003)" in str(diverged[0])


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(diverged):
    assert sorted(path.name for path in diverged[1].iterdir()) == ["best-1", "step-0000007-1"]


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("plain", {"total", "hard"}), ("lora", {"total", "hard"}), ("distilled", {"total", "hard", "soft", "cosine"})],
)
def test_every_part_of_the_loss_is_logged_at_every_step(uninterrupted, kind, parts):
    _, history = uninterrupted(kind)
    assert {part: len(values) for part, values in history["steps"].items()} == dict.fromkeys(parts, STEPS)


def test_the_logged_total_is_the_weighted_sum_of_the_logged_parts(uninterrupted):
    steps = {part: np.array(values) for part, values in uninterrupted("distilled")[1]["steps"].items()}
    assert steps["total"] == pytest.approx(0.5 * steps["hard"] + 0.5 * steps["soft"] + 0.1 * steps["cosine"], abs=2e-5)


def test_without_a_teacher_the_total_is_cross_entropy(uninterrupted):
    steps = uninterrupted("plain")[1]["steps"]
    assert steps["total"] == steps["hard"]


def test_an_epochs_training_loss_is_the_mean_over_its_own_steps(uninterrupted):
    _, history = uninterrupted("distilled")
    for place, epoch in enumerate(history["epochs"]):
        own = slice(place * STEPS_AN_EPOCH, (place + 1) * STEPS_AN_EPOCH)
        means = {part: np.mean(values[own]) for part, values in history["steps"].items()}
        assert epoch["training"] == pytest.approx(means)


def test_every_epoch_is_validated(uninterrupted):
    epochs = uninterrupted("plain")[1]["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert all(epoch["validation"].keys() == {"hard", "average_precision"} for epoch in epochs)


def test_the_history_tells_time_and_memory(uninterrupted):
    _, history = uninterrupted("plain")
    assert history["seconds"] > 0
    assert history["peak_memory_bytes"] > 50_000_000


def test_the_loss_falls(tiny_model, rows, tmp_path):
    settings = replace(SETTINGS, epochs=10, learning_rate=1e-2)
    _, history = run_training("plain", tiny_model, rows, tmp_path, settings=settings, checkpoint_seconds=1e9)
    assert history["epochs"][-1]["training"]["hard"] < 0.8 * history["epochs"][0]["training"]["hard"]


def test_training_with_lora_leaves_the_base_weights_bit_equal(uninterrupted, tiny_model):
    trained = uninterrupted("lora")[0].state_dict()
    fresh, _ = make_training("lora", tiny_model, None)
    frozen = [name for name, parameter in fresh.named_parameters() if not parameter.requires_grad]
    assert all(torch.equal(trained[name], fresh.state_dict()[name]) for name in frozen)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_freed_memory_is_kept_for_the_next_step_and_returned_before_the_next_model():
    """100 MB of activations: freed they stay with the process, until it is told to return them."""
    code = """
import psutil, torch
from helpers.training import return_freed_memory, reuse_freed_memory
resident = lambda: psutil.Process().memory_info().rss / 1e6
reuse_freed_memory()
before, blocks = resident(), [torch.ones(2_500_000) for _ in range(10)]
del blocks
kept = resident() - before
return_freed_memory()
print(kept > 90 and resident() - before < 10)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"


def test_states_of_several_layers_stand_against_the_students_last_layers(tiny_model, tiny_rows, tmp_path):
    """A student that is its own teacher agrees with it after every layer: each cosine is 0."""
    model, rows = tiny_model("bert", layers=4), tiny_rows(6)
    save_targets(model, rows, tmp_path / "targets", "start", layers=(3, 4))
    targets = load_targets(tmp_path / "targets", "start")
    batch = Collator(0, targets)([rows[i] for i in range(6)])
    losses = helpers.training.batch_loss(model, batch, replace(SETTINGS, **DISTILLING))
    assert batch["teacher_states"].shape == (6, 2, 32)
    assert losses["cosine"].item() == pytest.approx(0, abs=1e-5)
