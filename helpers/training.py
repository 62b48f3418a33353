"""The training loop: one function to read from top to bottom, and the small ones that it calls.

Shapes: B comments in a batch, T tokens, C classes. accelerate places the model on a CPU, on one GPU or on
several, and takes care of mixed precision; the rest is a plain PyTorch loop.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score
from torch.utils.data import DataLoader

from helpers.batches import (
    Collator,
    LengthBatches,
    TeacherTargets,
    additive_mask,
    cls_states,
    make_accelerator,
    on_gpu,
    predict,
    progress_bar,
    token_lengths,
)
from helpers.losses import Outputs, distillation_loss, hard_loss
from helpers.runs import fingerprint, is_sealed, new_directory, read_json, write_json

DISTILLATION = ("temperature", "alpha", "beta")  # the settings that distillation_loss takes
LOG_STEPS = 20  # the losses of so many steps are read at once: each reading makes the host wait for the GPU


class TrainingError(ValueError):
    """Training cannot go on; the message says why and what to change."""


@dataclass(frozen=True)
class TrainingSettings:
    """What a training depends on besides its data and its first weights. `learning_rate` is the peak."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_ratio: float
    max_grad_norm: float
    seed: int
    temperature: float | None = None  # these and all of DISTILLATION only where a teacher is distilled
    alpha: float | None = None
    beta: float | None = None
    micro_batch_size: int | None = None  # comments per forward pass, where a whole batch does not fit the device


@dataclass(frozen=True)
class Checkpoints:
    """The folder that keeps a training's last whole epoch, and the fingerprint of what is trained."""

    directory: Path
    made_from: str


def average_precision(labels: torch.Tensor, logits: torch.Tensor) -> float:
    """Of the toxic class, from labels (N,) and logits (N, 2)."""
    return float(average_precision_score(labels, logits[:, 1] - logits[:, 0]))


def train(
    model: torch.nn.Module,
    splits: dict[str, Dataset],
    settings: TrainingSettings,
    checkpoints: Checkpoints | None = None,
    targets: TeacherTargets | None = None,
    label: str = "training",
) -> dict:
    """Trains `model` in place; it ends in eval mode with the weights of its best epoch by validation average precision.

    With `targets` it is distilled. With `checkpoints` an interrupted training resumes after its last whole epoch, and
    on a CPU ends with the same weights to the bit. Returns the history: `steps` (a loss per step, by part), `epochs`
    (training means, validation cross-entropy and average precision), `best_epoch` (from 1) and `seconds`. Raises
    TrainingError if the loss or a validation logit becomes infinite or NaN; the last checkpoint is kept.
    """
    accelerator = make_accelerator()
    shared = accelerator.num_processes > 1  # a short batch cannot be shared evenly
    batches = LengthBatches(token_lengths(splits["train"]), settings.batch_size, settings.seed, drop_last=shared)
    collate = Collator(model.config.pad_token_id, targets=targets)
    loader = DataLoader(splits["train"], batch_sampler=batches, collate_fn=collate, pin_memory=on_gpu())
    trained, optimizer, loader = accelerator.prepare(model, make_optimizer(model, settings), loader)
    history, best = load_checkpoint(checkpoints, settings, accelerator)
    first_epoch, steps = len(history["epochs"]), len(batches)
    total_steps = settings.epochs * steps
    quiet = not accelerator.is_main_process
    with progress_bar(total=total_steps, initial=first_epoch * steps, desc=label, unit="step", disable=quiet) as bar:
        for epoch in range(first_epoch, settings.epochs):
            batches.epoch = epoch
            seed_dropout(settings.seed, epoch, accelerator.process_index)
            trained.train()
            losses, started = [], time.perf_counter()
            for step, batch in enumerate(loader, start=epoch * steps):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate_at(step, total_steps, settings)
                losses.append(forward_and_backward(trained, batch, settings, accelerator))
                accelerator.clip_grad_norm_(trained.parameters(), settings.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                bar.update()
                if len(losses) == LOG_STEPS or step + 1 == (epoch + 1) * steps:
                    log_losses(losses, history, settings, accelerator)
                    bar.set_postfix(epoch=epoch + 1, loss=history["steps"]["total"][-1], refresh=False)
                    losses = []
            history["seconds"] += time.perf_counter() - started
            record_epoch(model, splits["validation"], history, accelerator)
            if history["best_epoch"] == epoch + 1:
                best = trainable_weights(model)
            save_checkpoint(checkpoints, settings, accelerator, history, best)
    accelerator.unwrap_model(trained, keep_fp32_wrapper=False).load_state_dict(best, strict=False)
    accelerator.free_memory()
    model.eval()
    return history


def forward_and_backward(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], settings: TrainingSettings, accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """Adds the gradients of the batch's mean loss; returns the loss by part, still on the device.

    In pieces of `micro_batch_size` comments the gradients are those of the whole batch all the same, since a piece
    counts by its share of the rows. Processes exchange their gradients once, with the last piece.
    """
    size, summed = len(batch["labels"]), {}
    starts = range(0, size, settings.micro_batch_size or size)
    for start in starts:
        piece = {name: tensor[start : start + starts.step] for name, tensor in batch.items()}
        share = len(piece["labels"]) / size
        try:
            with nullcontext() if start == starts[-1] else accelerator.no_sync(model):
                losses = batch_loss(model, piece, settings)
                accelerator.backward(share * losses["total"])
        except torch.cuda.OutOfMemoryError as error:
            raise TrainingError(
                f"{len(piece['labels'])} comments at once do not fit into the GPU's memory; set the profile's "
                f"micro_batch_size (helpers/config.py) to {max(1, starts.step // 2)}, which computes the same in pieces"
            ) from error
        summed = {part: summed.get(part, 0) + share * loss.detach() for part, loss in losses.items()}
    return summed


def batch_loss(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], settings: TrainingSettings
) -> dict[str, torch.Tensor]:
    """The loss of a batch by part: `total` is minimised. Without a teacher in the batch, total = hard."""
    labels, distilled = batch["labels"], "teacher_logits" in batch
    mask = additive_mask(batch["attention_mask"])
    output = model(input_ids=batch["input_ids"], attention_mask=mask, output_hidden_states=distilled)
    if not distilled:
        hard = hard_loss(output.logits, labels)
        return {"total": hard, "hard": hard}
    student = Outputs(output.logits, cls_states(output))
    teacher = Outputs(batch["teacher_logits"], batch["teacher_states"])
    weights = {name: getattr(settings, name) for name in DISTILLATION}
    return distillation_loss(student, teacher, labels, **weights)._asdict()


def make_optimizer(model: torch.nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW on what is trainable; no weight decay on biases and layer norms, as usual with BERT."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)


def learning_rate_at(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """Linear warm-up over the first `warmup_ratio` of the steps to the peak, then linear decay to zero."""
    warmup = max(1, round(settings.warmup_ratio * total_steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    return settings.learning_rate * (total_steps - step) / max(1, total_steps - warmup)


def seed_dropout(seed: int, epoch: int, process: int) -> None:
    """Every epoch draws its own dropout masks, whatever came before, so that a resumed training draws them again."""
    torch.manual_seed(int(np.random.SeedSequence((seed, epoch, process)).generate_state(1)[0]))


def log_losses(losses: list[dict], history: dict, settings: TrainingSettings, accelerator: Accelerator) -> None:
    """Adds the losses of the last steps, means over the processes, to history["steps"]; all must be finite."""
    on_device = torch.stack([torch.stack(list(of_step.values())) for of_step in losses])  # (steps, parts)
    for values in accelerator.reduce(on_device, "mean").tolist():
        for part, value in zip(losses[0], values, strict=True):
            history["steps"].setdefault(part, []).append(round(value, 5))
        if not all(math.isfinite(value) for value in values):
            raise TrainingError(
                f"the loss became {values[0]} at step {len(history['steps']['total'])}; lower the learning rate (now "
                f"{settings.learning_rate:g}). The last checkpoint is kept"
            )


def record_epoch(model, rows: Dataset, history: dict, accelerator: Accelerator) -> None:
    """Adds the epoch that has just ended to the history; the first process validates for all, logits must be finite."""
    number, scores = len(history["epochs"]) + 1, None
    if accelerator.is_main_process:
        logits = predict(model, rows)  # in the training's precision: accelerate has wrapped the model
        labels = torch.tensor(rows["toxic"][:])
        if torch.isfinite(logits).all():
            scores = {"hard": float(hard_loss(logits, labels)), "average_precision": average_precision(labels, logits)}
    scores = broadcast_object_list([scores])[0]
    if scores is None:
        raise TrainingError(
            f"the logits on validation became infinite or NaN in epoch {number}; lower the learning rate. The last "
            "checkpoint is kept"
        )
    steps = history["steps"]
    training = {part: float(np.mean(values[-(len(values) // number) :])) for part, values in steps.items()}
    history["epochs"].append({"epoch": number, "training": training, "validation": scores})
    by_epoch = [record["validation"]["average_precision"] for record in history["epochs"]]
    history["best_epoch"] = 1 + int(np.argmax(by_epoch))  # of equals the first


def trainable_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A copy of the trained weights, on the CPU; the frozen ones do not change."""
    return {name: p.detach().to("cpu", copy=True) for name, p in model.named_parameters() if p.requires_grad}


def checkpoint_key(checkpoints: Checkpoints, settings: TrainingSettings, accelerator: Accelerator) -> str:
    """What a checkpoint must have been made with, so that going on from it changes nothing."""
    device = {"precision": accelerator.mixed_precision, "processes": accelerator.num_processes}
    return fingerprint({"made_from": checkpoints.made_from, "settings": asdict(settings), "device": device})


def save_checkpoint(checkpoints: Checkpoints | None, settings, accelerator: Accelerator, history: dict, best: dict):
    """Writes the epoch that has just ended, whole or not at all, and then removes the one before it."""
    if checkpoints is None or not accelerator.is_main_process:
        return
    name = f"epoch-{len(history['epochs'])}"
    made_from = checkpoint_key(checkpoints, settings, accelerator)
    with new_directory(checkpoints.directory / name, made_from) as temporary:
        try:
            accelerator.save_state(str(temporary))
        except RuntimeError as error:  # what torch.save makes of a full disk
            raise OSError(f"the checkpoint {name} could not be written; is the disk full? ({error})") from error
        save_file(best, temporary / "best.safetensors")
        write_json(temporary / "history.json", history)
    for other in checkpoints.directory.iterdir():
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)


def load_checkpoint(checkpoints: Checkpoints | None, settings, accelerator: Accelerator) -> tuple[dict, dict]:
    """(history, best weights) of the last whole epoch that fits, its state loaded; empty ones where there is none."""
    for folder in sorted(checkpoints.directory.glob("epoch-*[0-9]"), reverse=True) if checkpoints else ():
        if not is_sealed(folder, checkpoint_key(checkpoints, settings, accelerator)):
            accelerator.print(f"the checkpoint {folder.name} is not used: damaged, or of other settings or precision")
            continue
        states = [*accelerator._models, *accelerator._optimizers]
        before = copy.deepcopy([state.state_dict() for state in states])
        try:
            accelerator.load_state(str(folder))
            return read_json(folder / "history.json"), load_file(folder / "best.safetensors")
        except Exception as error:  # whatever this version of a library cannot read
            accelerator.print(f"the checkpoint {folder.name} cannot be loaded ({error}); training begins anew")
            for state, first in zip(states, before, strict=True):
                state.load_state_dict(first)
    return {"steps": {}, "epochs": [], "best_epoch": None, "seconds": 0.0}, {}
