"""The training loop: its gradients and schedule; resuming to the bit; the best epoch; what stops it; its history."""

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
from helpers.training import Checkpoints, TrainingError, TrainingSettings, learning_rate_at, make_optimizer, train

STEPS_PER_EPOCH = 5
SETTINGS = TrainingSettings(
    epochs=3, batch_size=4, learning_rate=3e-3, weight_decay=0.01, warmup_ratio=0.2, max_grad_norm=1.0, seed=1
)
STEPS = STEPS_PER_EPOCH * SETTINGS.epochs
DISTILLING = {"temperature": 2.0, "alpha": 0.3, "beta": 0.1}
CLOSE = {"atol": 1e-6, "rtol": 1e-4}


@pytest.fixture(scope="module")
def splits(tiny_rows) -> dict[str, Dataset]:
    """18 training rows, so that the last of five batches is not full, and 12 validation rows."""
    return {"train": tiny_rows(18), "validation": tiny_rows(12, seed=1)}


@pytest.fixture(scope="module")
def make_training(tiny_model, splits, tmp_path_factory):
    """A fresh model and the other arguments of train: 'plain', 'distilled' or 'lora'."""
    directory, teacher = tmp_path_factory.mktemp("targets"), tiny_model("bert", layers=4)
    save_targets(teacher, splits["train"], directory / "outputs", "teacher")
    targets = load_targets(directory / "outputs")

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


@pytest.fixture
def without_dropout(monkeypatch) -> None:
    """Models stay in eval mode while they are trained."""
    original = torch.nn.Module.train
    monkeypatch.setattr(torch.nn.Module, "train", lambda self, mode=True: original(self, False))


@pytest.fixture
def steps_taken(monkeypatch) -> list[tuple[set[float], list[torch.Tensor]]]:
    """The rates and the gradients of each step of the optimizer."""
    noted, original = [], torch.optim.AdamW.step

    def step(self, *arguments, **options):
        parameters = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        noted.append(({group["lr"] for group in self.param_groups}, [p.grad.clone() for p in parameters]))
        return original(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return noted


@pytest.mark.usefixtures("without_dropout")
def test_the_first_step_has_the_gradient_of_a_plain_loop(make_training, run_training, splits, steps_taken):
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
    (0.7 * hard + 0.3 * 4.0 * kl + 0.1 * (1 - cosine)).backward()
    by_decay = sorted(student.parameters(), key=lambda p: p.ndim < 2)  # as the optimizer's groups have them
    run_training("distilled", settings=replace(SETTINGS, epochs=1, max_grad_norm=1e9, **DISTILLING))
    torch.testing.assert_close(steps_taken[0][1], [p.grad for p in by_decay if p.grad is not None], **CLOSE)


@pytest.mark.usefixtures("without_dropout")
@pytest.mark.parametrize(("kind", "size"), [("plain", 1), ("distilled", 3), ("lora", 3)])
def test_pieces_of_a_batch_give_the_gradients_of_the_whole(make_training, run_training, steps_taken, kind, size):
    """18 rows in batches of 4: the pieces of 3 are uneven, and so is the last batch."""
    settings = replace(make_training(kind)[1]["settings"], epochs=1, learning_rate=1e-9)
    for pieces in (None, size):
        run_training(kind, settings=replace(settings, micro_batch_size=pieces))
    for (_, whole), (_, in_pieces) in zip(steps_taken[:STEPS_PER_EPOCH], steps_taken[STEPS_PER_EPOCH:], strict=True):
        torch.testing.assert_close(in_pieces, whole, **CLOSE)


def test_gradients_are_clipped_to_the_norm_that_is_asked_for(run_training, steps_taken):
    run_training("plain", settings=replace(SETTINGS, max_grad_norm=1e-3))
    norms = [float(torch.cat([gradient.flatten() for gradient in gradients]).norm()) for _, gradients in steps_taken]
    assert norms == pytest.approx([1e-3] * STEPS, rel=1e-3)


def test_the_rate_rises_evenly_over_the_warm_up_and_then_falls_evenly_to_almost_zero():
    rates = [learning_rate_at(step, 100, SETTINGS) for step in range(100)]
    assert rates[:20] == pytest.approx(np.linspace(3e-3 / 20, 3e-3, 20))
    assert rates[20:] == pytest.approx(3e-3 * np.arange(80, 0, -1) / 80)
    assert learning_rate_at(0, 1, SETTINGS) == 3e-3  # a training of one step


def test_every_step_is_taken_at_the_rate_of_the_schedule(run_training, steps_taken):
    run_training("plain")
    assert [rates for rates, _ in steps_taken] == [{learning_rate_at(step, STEPS, SETTINGS)} for step in range(STEPS)]


def test_biases_and_layer_norms_do_not_decay(tiny_bert):
    optimizer = make_optimizer(tiny_bert, SETTINGS)
    free = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    named = {name for name, p in tiny_bert.named_parameters() if id(p) in free}
    assert named == {name for name, _ in tiny_bert.named_parameters() if name.endswith("bias") or "LayerNorm" in name}


class Killed(KeyboardInterrupt):
    """Stands for a training that is killed."""


@pytest.fixture
def killed(run_training, tmp_path):
    """Kills a training as it calls a function of the module for the `call`-th time; the folder of checkpoints."""

    def kill(kind: str, function: str = "forward_and_backward", call: int = 8) -> Path:
        original, left = getattr(helpers.training, function), iter(range(call - 1))

        def dying(*arguments, **options):
            if next(left, None) is None:
                raise Killed
            return original(*arguments, **options)

        with pytest.MonkeyPatch.context() as monkeypatch, pytest.raises(Killed):
            monkeypatch.setattr(helpers.training, function, dying)
            run_training(kind, tmp_path / "checkpoints")
        return tmp_path / "checkpoints"

    return kill


def assert_same_training(resumed: tuple, whole: tuple) -> None:
    """Equal weights and equal history, to the bit."""
    (model, history), (expected_model, expected_history) = resumed, whole
    expected = expected_model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    for part in history.keys() - {"seconds"}:
        assert history[part] == expected_history[part], part


@pytest.mark.parametrize(
    ("kind", "function", "call"),
    [
        pytest.param("plain", "forward_and_backward", 3, id="in the first epoch"),
        pytest.param("distilled", "forward_and_backward", 8, id="distilled"),
        pytest.param("lora", "forward_and_backward", 13, id="LoRA"),
        pytest.param("plain", "record_epoch", 2, id="before validation"),
        pytest.param("plain", "save_checkpoint", 2, id="before the checkpoint"),
        pytest.param("plain", "write_json", 2, id="while a checkpoint is written"),
    ],
)
def test_killed_and_resumed_equals_uninterrupted(killed, run_training, uninterrupted, kind, function, call):
    assert_same_training(run_training(kind, killed(kind, function, call)), uninterrupted(kind))


def test_a_resumed_training_repeats_no_whole_epoch(killed, run_training, steps_taken):
    directory = killed("plain")
    before = len(steps_taken)
    run_training("plain", directory)
    assert len(steps_taken) - before == STEPS - STEPS_PER_EPOCH


def test_a_damaged_checkpoint_is_said_and_passed_over(killed, run_training, uninterrupted, capsys):
    directory = killed("plain")
    damage_file(directory / "epoch-1" / "optimizer.bin", "altered")
    assert_same_training(run_training("plain", directory), uninterrupted("plain"))
    assert "optimizer.bin was cut or changed" in (printed := capsys.readouterr().out)
    assert "the checkpoint epoch-1 is not used" in printed


@pytest.mark.parametrize(
    ("precision", "changes"),
    [
        pytest.param("no", {"made_from": "another start"}, id="made from something else"),
        pytest.param("no", {"settings": replace(SETTINGS, learning_rate=1e-3)}, id="other settings"),
        pytest.param("fp16", {}, id="another precision"),  # on a T4 a gradient scaler would be missing
    ],
)
def test_a_checkpoint_of_something_else_is_said_and_passed_over(
    killed, run_training, capsys, monkeypatch, precision, changes
):
    directory = killed("plain")
    monkeypatch.setattr(helpers.training.Accelerator, "mixed_precision", precision)
    assert_same_training(run_training("plain", directory, **changes), run_training("plain", **changes))
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


def test_dropout_is_on_while_training_and_off_in_validation_and_afterwards(make_training, splits):
    model, arguments = make_training("plain")
    modes = set()
    model.dropout.register_forward_pre_hook(lambda dropout, _: modes.add((torch.is_grad_enabled(), dropout.training)))
    train(model, splits, **arguments)
    assert modes == {(True, True), (False, False)}
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(("scores", "best"), [([0.5, 0.9, 0.9], 2), ([0.9, 0.5, 0.7], 1), ([0.1, 0.2, 0.3], 3)])
def test_the_weights_of_the_best_epoch_are_restored_the_first_of_equals(run_training, monkeypatch, scores, best):
    left, weights, original = iter(scores), [], helpers.training.record_epoch

    def record_epoch(model, *arguments):
        original(model, *arguments)
        weights.append(copy.deepcopy(model.state_dict()))

    monkeypatch.setattr(helpers.training, "average_precision_score", lambda *_: next(left))
    monkeypatch.setattr(helpers.training, "record_epoch", record_epoch)
    model, history = run_training("plain")
    assert history["best_epoch"] == best
    assert all(torch.equal(tensor, weights[best - 1][name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("value", ["nan", "inf"])
def test_a_loss_that_is_not_finite_ends_training_and_leaves_the_last_good_checkpoint(
    run_training, monkeypatch, tmp_path, value
):
    original, factors = helpers.training.batch_loss, iter([1.0] * 7 + [float(value)])

    def spoilt(*arguments):
        factor = next(factors, 1.0)
        return {part: factor * loss for part, loss in original(*arguments).items()}

    monkeypatch.setattr(helpers.training, "batch_loss", spoilt)
    with pytest.raises(TrainingError, match=rf"became {value} at step 8; lower the learning rate \(now 0.003\)"):
        run_training("plain", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["epoch-1"]


def test_logits_on_validation_that_are_no_numbers_end_training(run_training, monkeypatch):
    monkeypatch.setattr(helpers.training, "predict", lambda *_: torch.full((12, 2), float("nan")))
    with pytest.raises(TrainingError, match="the logits on validation became infinite or NaN in epoch 1"):
        run_training("plain")


def test_every_part_of_the_loss_is_logged_at_every_step(run_training, monkeypatch):
    monkeypatch.setattr(helpers.training, "LOG_STEPS", 2)
    _, history = run_training("distilled")
    parts = ("total", "hard", "soft", "cosine")
    assert {part: len(values) for part, values in history["steps"].items()} == dict.fromkeys(parts, STEPS)


@pytest.mark.parametrize("kind", ["plain", "lora"])
def test_without_a_teacher_the_total_is_cross_entropy(uninterrupted, kind):
    steps = uninterrupted(kind)[1]["steps"]
    assert steps.keys() == {"total", "hard"}
    assert steps["total"] == steps["hard"]


def test_where_memory_is_too_small_the_error_names_the_setting_that_helps(run_training, monkeypatch, tmp_path):
    def too_large(*_):
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(helpers.training, "batch_loss", too_large)
    with pytest.raises(TrainingError, match=r"micro_batch_size .* to \d+"):
        run_training("plain", tmp_path)


def test_an_epochs_training_loss_is_the_mean_over_its_own_steps(uninterrupted):
    _, history = uninterrupted("distilled")
    for place, epoch in enumerate(history["epochs"]):
        own = slice(place * STEPS_PER_EPOCH, (place + 1) * STEPS_PER_EPOCH)
        assert epoch["training"] == pytest.approx({part: np.mean(of[own]) for part, of in history["steps"].items()})


def test_the_history_tells_epochs_and_time_and_is_json(uninterrupted):
    _, history = uninterrupted("plain")
    assert [epoch["epoch"] for epoch in history["epochs"]] == [1, 2, 3]
    assert history["epochs"][-1]["validation"].keys() == {"hard", "average_precision"}
    assert history["seconds"] > 0
    assert json.loads(json.dumps(history)) == history


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_step_makes_the_host_wait_for_nothing(run_training, monkeypatch):
    """torch raises where the host synchronises with the GPU; the first epoch warms up."""
    for name, mode in (("forward_and_backward", "error"), ("log_losses", "default")):
        original = getattr(helpers.training, name)

        def switching(*arguments, original=original, mode=mode):
            torch.cuda.set_sync_debug_mode(mode)
            return original(*arguments)

        monkeypatch.setattr(helpers.training, name, switching)
    run_training("distilled")
