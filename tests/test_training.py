"""The training loop: its gradients, schedule and precision; resuming to the bit; the best epoch; what stops it."""

import copy
import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import damage_file
from datasets import Dataset

import helpers.training
from helpers.batches import bucketed_batches, load_targets, save_targets, token_lengths
from helpers.layers import copy_layers
from helpers.lora import add_adapters
from helpers.training import (
    Checkpoints,
    TrainingError,
    TrainingSettings,
    learning_rate_at,
    make_optimizer,
    train,
)

STEPS_PER_EPOCH = 5
SETTINGS = TrainingSettings(
    epochs=3,
    batch_size=4,
    learning_rate=3e-3,
    weight_decay=0.01,
    warmup_ratio=0.2,
    max_grad_norm=1.0,
    seed=1,
)
STEPS = STEPS_PER_EPOCH * SETTINGS.epochs
DISTILLING = {"temperature": 2.0, "alpha": 0.5, "beta": 0.1}
NOT_COMPARED = ("seconds", "peak_memory_bytes")


@pytest.fixture(scope="module")
def splits(tiny_rows) -> dict[str, Dataset]:
    """18 training rows, so that the last of five batches is not full, and 12 validation rows."""
    return {"train": tiny_rows(18), "validation": tiny_rows(12, seed=1)}


@pytest.fixture
def without_dropout(monkeypatch) -> None:
    """Models stay in eval mode while they are trained."""
    original = torch.nn.Module.train
    monkeypatch.setattr(torch.nn.Module, "train", lambda self, mode=True: original(self, False))


@pytest.fixture(scope="module")
def make_training(tiny_model, splits, tmp_path_factory):
    """A fresh model and the other arguments of train: 'plain', 'distilled' or 'lora'."""

    directory, teacher = tmp_path_factory.mktemp("targets"), tiny_model("bert", layers=4)
    save_targets(teacher, splits["train"], directory / "outputs", "teacher")
    targets = load_targets(directory / "outputs", "teacher")

    def make(kind: str) -> tuple[torch.nn.Module, dict]:
        if kind == "plain":
            return tiny_model("bert", layers=2), {"settings": SETTINGS}
        if kind == "lora":
            adapted = add_adapters(tiny_model("bert", layers=2), rank=4, alpha=8, dropout=0.1, seed=1)
            return adapted, {"settings": replace(SETTINGS, learning_rate=1e-2)}
        return copy_layers(teacher, [1, 3]), {"settings": replace(SETTINGS, **DISTILLING), "targets": targets}

    return make


@pytest.fixture(scope="module")
def run_training(make_training, splits):
    """Trains a fresh model of that kind; the model and its history."""

    def run(kind: str, directory: Path | None = None, made_from: str = "start", **changes):
        model, arguments = make_training(kind)
        checkpoints = Checkpoints(directory, made_from) if directory else None
        return model, train(model, splits, checkpoints=checkpoints, **arguments | changes)

    return run


@pytest.fixture(scope="module")
def uninterrupted(run_training, tmp_path_factory):
    """Model and history of a training that nobody interrupted, by kind; each is trained once."""
    return cache(lambda kind: run_training(kind, tmp_path_factory.mktemp(kind)))


# --- gradients -------------------------------------------------------------------------------------------------------


@pytest.fixture
def gradients(monkeypatch) -> list[dict[str, torch.Tensor]]:
    """The gradients of each step, before they are clipped."""
    noted = []
    original = helpers.training.Accelerator.clip_grad_norm_

    def clip(self, parameters, norm):
        parameters = list(parameters)
        noted.append([p.grad.clone() for p in parameters if p.grad is not None])
        return original(self, parameters, norm)

    monkeypatch.setattr(helpers.training.Accelerator, "clip_grad_norm_", clip)
    return noted


def test_the_first_step_has_the_gradient_of_a_plain_loop(
    make_training, run_training, splits, gradients, without_dropout
):
    """Written out with PyTorch alone: L = (1 − α) CE + α T² KL(teacher ‖ student) + β (1 − cos)."""
    student, arguments = make_training("distilled")
    first = bucketed_batches(token_lengths(splits["train"]), SETTINGS.batch_size, SETTINGS.seed, epoch=0)[0]
    rows = splits["train"].select(first)
    longest = max(map(len, rows["input_ids"]))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows["input_ids"]])
    targets = arguments["targets"].look_up(rows["row_id"][:])
    output = student(ids, attention_mask=(ids != 0).long(), output_hidden_states=True)
    soft_student = F.log_softmax(output.logits / 2.0, dim=-1)
    soft_teacher = F.softmax(targets["teacher_logits"] / 2.0, dim=-1)
    kl = (soft_teacher * (soft_teacher.log() - soft_student)).sum() / len(ids)
    cosine = F.cosine_similarity(output.hidden_states[-1][:, 0], targets["teacher_states"]).mean()
    hard = F.cross_entropy(output.logits, torch.tensor(rows["toxic"][:]))
    (0.5 * hard + 0.5 * 4.0 * kl + 0.1 * (1 - cosine)).backward()
    expected = [p.grad for p in student.parameters() if p.grad is not None]
    run_training("distilled", settings=replace(SETTINGS, epochs=1, **DISTILLING))
    assert len(gradients[0]) == len(expected)
    assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-4) for a, b in zip(gradients[0], expected, strict=True))


@pytest.mark.parametrize("kind", ["plain", "distilled", "lora"])
@pytest.mark.parametrize("size", [1, 3])
def test_pieces_of_a_batch_give_the_gradients_of_the_whole(
    make_training, run_training, gradients, without_dropout, kind, size
):
    """18 rows in batches of 4: the pieces of 3 are uneven, and so is the last batch."""
    settings = replace(make_training(kind)[1]["settings"], epochs=1, learning_rate=1e-9)
    for pieces in (None, size):
        run_training(kind, settings=replace(settings, micro_batch_size=pieces))
    whole, in_pieces = gradients[:STEPS_PER_EPOCH], gradients[STEPS_PER_EPOCH:]
    for expected, found in zip(whole, in_pieces, strict=True):
        assert all(torch.allclose(a, b, atol=1e-6, rtol=1e-4) for a, b in zip(expected, found, strict=True))


def test_gradients_are_clipped_to_the_norm_that_is_asked_for(run_training, monkeypatch):
    norms = []
    original = torch.optim.AdamW.step

    def step(self, *arguments, **options):
        gradients = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norms.append(float(torch.cat(gradients).norm()))
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run_training("plain", settings=replace(SETTINGS, max_grad_norm=1e-3))
    assert norms == pytest.approx([1e-3] * STEPS, rel=1e-3)


# --- rates, weight decay ---------------------------------------------------------------------------------------------


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
    assert all(0 < rate <= 3e-3 for rate in rates(steps, warmup_ratio=0.1))


def test_every_step_is_taken_at_the_rate_of_the_schedule(run_training, monkeypatch):
    taken = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, *a, **k: taken.append({group["lr"] for group in self.param_groups}) or original(self, *a, **k),
    )
    run_training("plain")
    assert taken == [{rate} for rate in rates(STEPS)]


def test_biases_and_layer_norms_do_not_decay(tiny_bert):
    optimizer = make_optimizer(tiny_bert, SETTINGS)
    free = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    named = {name for name, p in tiny_bert.named_parameters() if id(p) in free}
    assert named == {name for name, _ in tiny_bert.named_parameters() if name.endswith("bias") or "LayerNorm" in name}


# --- stopped and resumed ---------------------------------------------------------------------------------------------


class Killed(KeyboardInterrupt):
    """Stands for a training that is killed."""


def kill_at(monkeypatch, function: str, call: int) -> None:
    """The training dies when it calls this function of the module for the `call`-th time."""
    original, calls = getattr(helpers.training, function), []

    def dying(*arguments, **options):
        calls.append(1)
        if len(calls) == call:
            raise Killed
        return original(*arguments, **options)

    monkeypatch.setattr(helpers.training, function, dying)


@pytest.fixture
def killed(run_training, tmp_path):
    """Kills a training; the folder with its checkpoints."""

    def kill(kind: str, function: str = "forward_and_backward", call: int = 8) -> Path:
        with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Killed):
            kill_at(monkeypatch, function, call)
            run_training(kind, tmp_path / "checkpoints")
        return tmp_path / "checkpoints"

    return kill


def assert_same_training(resumed: tuple, whole: tuple) -> None:
    """Equal weights and equal history, to the bit."""
    (model, history), (expected_model, expected_history) = resumed, whole
    expected = expected_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    for part in history.keys() - NOT_COMPARED:
        assert history[part] == expected_history[part], part


@pytest.mark.parametrize(
    ("kind", "function", "call"),
    [
        ("plain", "forward_and_backward", 3),
        ("plain", "forward_and_backward", 8),
        ("distilled", "forward_and_backward", 8),
        ("lora", "forward_and_backward", 13),
        ("plain", "record_epoch", 2),
        ("plain", "save_checkpoint", 2),
        ("plain", "seal", 2),
        ("lora", "seal", 3),
    ],
    ids=[
        "in the first epoch",
        "in the second epoch",
        "distilled",
        "LoRA",
        "before validation",
        "before the checkpoint",
        "while a checkpoint is written",
        "while the last checkpoint is written",
    ],
)
def test_killed_and_resumed_equals_uninterrupted(killed, run_training, uninterrupted, kind, function, call):
    assert_same_training(run_training(kind, killed(kind, function, call)), uninterrupted(kind))


def test_a_training_that_only_lacked_its_end_is_not_trained_again(run_training, uninterrupted, tmp_path, monkeypatch):
    run_training("plain", tmp_path)
    monkeypatch.setattr(helpers.training, "forward_and_backward", None)
    assert_same_training(run_training("plain", tmp_path), uninterrupted("plain"))


def test_a_resumed_training_repeats_no_whole_epoch(killed, run_training, monkeypatch):
    directory, done = killed("plain"), []
    original = helpers.training.batch_loss
    monkeypatch.setattr(helpers.training, "batch_loss", lambda *args: done.append(1) or original(*args))
    run_training("plain", directory)
    assert len(done) == STEPS - STEPS_PER_EPOCH


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.bin", "history.json", "best.safetensors"])
def test_a_damaged_checkpoint_is_said_and_passed_over(killed, run_training, uninterrupted, capsys, file):
    directory = killed("plain")
    damage_file(next(directory.glob(f"epoch-*/{file}")), "altered")
    assert_same_training(run_training("plain", directory), uninterrupted("plain"))
    printed = capsys.readouterr().out
    assert f"{file} was cut or changed" in printed
    assert "the checkpoint epoch-1 is not used" in printed


@pytest.mark.parametrize(
    "changes",
    [
        {"made_from": "another start"},
        {"settings": replace(SETTINGS, learning_rate=1e-3)},
        {"settings": replace(SETTINGS, micro_batch_size=2)},
    ],
    ids=["made from something else", "other settings", "other pieces"],
)
def test_a_checkpoint_of_something_else_is_said_and_passed_over(killed, run_training, capsys, changes):
    directory = killed("plain")
    assert_same_training(run_training("plain", directory, **changes), run_training("plain", **changes))
    assert "the checkpoint epoch-1 is not used" in capsys.readouterr().out


def test_a_checkpoint_of_another_precision_is_said_and_passed_over(
    killed, run_training, uninterrupted, capsys, monkeypatch
):
    """As on a T4: a gradient scaler resumes what was begun without one."""
    directory = killed("plain")
    monkeypatch.setattr(helpers.training.Accelerator, "mixed_precision", "fp16")
    assert_same_training(run_training("plain", directory), uninterrupted("plain"))
    assert "the checkpoint epoch-1 is not used" in capsys.readouterr().out


def test_a_checkpoint_that_a_library_cannot_load_is_said_and_leaves_no_trace(
    killed, run_training, uninterrupted, capsys, monkeypatch
):
    """It fails half way, after the model's weights have been read."""

    def load_half(self, directory):
        for parameter in self._models[0].parameters():
            parameter.data.zero_()
        raise KeyError("scale")

    directory = killed("plain")
    monkeypatch.setattr(helpers.training.Accelerator, "load_state", load_half)
    assert_same_training(run_training("plain", directory), uninterrupted("plain"))
    assert "the checkpoint epoch-1 cannot be loaded ('scale')" in capsys.readouterr().out


def test_only_the_last_checkpoint_is_kept(run_training, tmp_path):
    run_training("plain", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-3"]


def test_without_checkpoints_nothing_is_written(run_training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_training("plain")
    assert not list(tmp_path.iterdir())


# --- training --------------------------------------------------------------------------------------------------------


def test_dropout_is_on_while_training(run_training, monkeypatch):
    modes = set()
    original = helpers.training.batch_loss

    def watching(model, *arguments):
        modes.update(module.training for module in model.modules() if isinstance(module, torch.nn.Dropout))
        return original(model, *arguments)

    monkeypatch.setattr(helpers.training, "batch_loss", watching)
    model, _ = run_training("plain")
    assert model.config.hidden_dropout_prob == 0.1
    assert modes == {True}


def test_the_trained_model_is_left_in_eval_mode(uninterrupted):
    assert not any(module.training for module in uninterrupted("plain")[0].modules())


@pytest.mark.parametrize(
    ("scores", "best"), [([0.5, 0.9, 0.7], 2), ([0.5, 0.9, 0.9], 2), ([0.9, 0.5, 0.7], 1), ([0.1, 0.2, 0.3], 3)]
)
def test_the_weights_of_the_best_epoch_are_restored_the_first_of_equals(run_training, monkeypatch, scores, best):
    left, weights = iter(scores), []
    original = helpers.training.record_epoch

    def record_epoch(model, *arguments):
        original(model, *arguments)
        weights.append(copy.deepcopy(model.state_dict()))

    monkeypatch.setattr(helpers.training, "average_precision_score", lambda *_: next(left))
    monkeypatch.setattr(helpers.training, "record_epoch", record_epoch)
    model, history = run_training("plain")
    assert history["best_epoch"] == best
    assert all(torch.equal(tensor, weights[best - 1][name]) for name, tensor in model.state_dict().items())


@pytest.fixture(params=["nan", "inf"])
def diverged(request, run_training, tmp_path, monkeypatch) -> tuple[TrainingError, Path, str]:
    """The error of a training whose loss is no finite number at its 8th step, its folder of checkpoints, the loss."""
    original, calls = helpers.training.batch_loss, []

    def sometimes_not_finite(*arguments):
        calls.append(1)
        losses = original(*arguments)
        return {part: loss * float(request.param) for part, loss in losses.items()} if len(calls) == 8 else losses

    monkeypatch.setattr(helpers.training, "batch_loss", sometimes_not_finite)
    with pytest.raises(TrainingError) as caught:
        run_training("plain", tmp_path / "checkpoints")
    return caught.value, tmp_path / "checkpoints", request.param


def test_a_loss_that_is_not_finite_ends_training_and_the_message_names_the_step_and_the_rate(diverged):
    assert f"became {diverged[2]} at step 8; lower the learning rate (now 0.003)" in str(diverged[0])


def test_a_loss_that_is_not_finite_leaves_the_last_good_checkpoint(diverged):
    assert [path.name for path in diverged[1].iterdir()] == ["epoch-1"]


def test_a_gradient_that_is_no_number_ends_training_though_the_loss_is_one(run_training, monkeypatch):
    original = helpers.training.batch_loss

    def steep(*arguments):
        losses = original(*arguments)
        return losses | {"total": losses["total"] + (1e38 * losses["total"] - 1e38 * losses["total"]) * 1e38}

    monkeypatch.setattr(helpers.training, "batch_loss", steep)
    with pytest.raises(TrainingError, match="the loss became nan at step 2;"):
        run_training("plain")


def test_logits_on_validation_that_are_no_numbers_end_training(run_training, monkeypatch):
    monkeypatch.setattr(helpers.training, "predict", lambda *_: torch.full((12, 2), float("nan")))
    with pytest.raises(TrainingError, match="the logits on validation became infinite or NaN in epoch 1"):
        run_training("plain")


@pytest.mark.parametrize(
    ("kind", "parts"),
    [("plain", {"total", "hard"}), ("lora", {"total", "hard"}), ("distilled", {"total", "hard", "soft", "cosine"})],
)
@pytest.mark.parametrize("log_steps", [1, 2, 100])
def test_every_part_of_the_loss_is_logged_at_every_step(run_training, monkeypatch, kind, parts, log_steps):
    monkeypatch.setattr(helpers.training, "LOG_STEPS", log_steps)
    _, history = run_training(kind)
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
        own = slice(place * STEPS_PER_EPOCH, (place + 1) * STEPS_PER_EPOCH)
        means = {part: np.mean(values[own]) for part, values in history["steps"].items()}
        assert epoch["training"] == pytest.approx(means)


def test_every_epoch_is_validated(uninterrupted):
    epochs = uninterrupted("plain")[1]["epochs"]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3]
    assert all(epoch["validation"].keys() == {"hard", "average_precision"} for epoch in epochs)


def test_the_history_tells_time_and_memory_and_is_json(uninterrupted):
    _, history = uninterrupted("plain")
    assert history["seconds"] > 0
    assert history["peak_memory_bytes"] > 50_000_000
    assert json.loads(json.dumps(history)) == history


def test_the_loss_falls(run_training):
    _, history = run_training("plain", settings=replace(SETTINGS, epochs=10, learning_rate=1e-2))
    assert history["epochs"][-1]["training"]["hard"] < 0.8 * history["epochs"][0]["training"]["hard"]


def test_training_with_lora_leaves_the_base_weights_bit_equal(uninterrupted, make_training):
    trained = uninterrupted("lora")[0].state_dict()
    fresh, _ = make_training("lora")
    frozen = [name for name, parameter in fresh.named_parameters() if not parameter.requires_grad]
    assert all(torch.equal(trained[name], fresh.state_dict()[name]) for name in frozen)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_makes_the_host_wait_for_nothing(run_training, monkeypatch):
    """torch raises where the host synchronises with the GPU; the first epoch warms up."""
    original = helpers.training.forward_and_backward

    def strict(*arguments):
        torch.cuda.set_sync_debug_mode("error")
        return original(*arguments)

    def read(*arguments):
        torch.cuda.set_sync_debug_mode("default")
        return log_losses(*arguments)

    log_losses = helpers.training.log_losses
    monkeypatch.setattr(helpers.training, "forward_and_backward", strict)
    monkeypatch.setattr(helpers.training, "log_losses", read)
    run_training("distilled")
