"""The one training loop, for teacher, students and LoRA alike, and the teacher's outputs, computed once.

Accelerate places the model on one device or several, scales and clips gradients and writes the checkpoints. Batches
hold comments of like length, so that little is computed on padding. Everything random follows from the seed and the
number of the step, so that a run that was killed and goes on ends with the same weights as one that was not.
"""

from __future__ import annotations

import ctypes
import gc
import math
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import psutil
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env, send_to_device
from datasets import Dataset
from safetensors.torch import load_file, save_file
from sklearn.metrics import average_precision_score
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader
from tqdm import tqdm

from helpers.dropout import CheapDropout
from helpers.losses import distillation_loss, hard_loss, per_label
from helpers.models import label_columns
from helpers.runs import fingerprint, is_sealed, new_directory, on_gpu, read_json, seal, write_json

BUCKET_BATCHES = 20  # comments are sorted by length within so many shuffled batches
CHECKPOINT_SECONDS = 120.0
LOSS_PARTS = ("total", "hard", "soft", "cosine")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # names of glibc's mallopt(3)


def progress_bar(*arguments, **options) -> tqdm:
    """A bar on stdout: a notebook shows stderr as an alarm."""
    return tqdm(*arguments, file=sys.stdout, mininterval=1.0, ncols=96, **options)


def this_process() -> PartialState:
    """Which of the processes that `accelerate launch` started this is (or the only one), and its device.

    A bare PartialState does not ask for accelerate's own switch to the CPU, as Accelerator does. The other processes
    wait while the first one predicts or exports, which may take longer than NCCL's ten minutes.
    """
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(hours=4))


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to change."""


@dataclass(frozen=True)
class TrainingSettings:
    """What a training run depends on besides its data and its first weights. `learning_rate` is the peak."""

    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    warmup_share: float
    max_gradient_norm: float
    seed: int
    temperature: float | None = None  # these three only where a teacher is distilled
    alpha: float | None = None
    beta: float | None = None


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's outputs by row id: logits (N, C) and [CLS] states of one or more layers (N, L, H), float32.

    Loaded ones are memory-mapped: a batch's rows are read from the disk when the batch comes.
    """

    position: dict[str, int]
    logits: torch.Tensor
    states: torch.Tensor

    def look_up(self, row_ids: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """(logits, states) of these rows, in their order; the order in which the teacher saw them plays no part."""
        missing = [row_id for row_id in row_ids if row_id not in self.position]
        if missing:
            raise KeyError(f"the teacher's targets lack {len(missing)} of these rows (first id {missing[0]})")
        index = torch.tensor([self.position[row_id] for row_id in row_ids])
        return self.logits[index], self.states[index]


# --- batches ---------------------------------------------------------------------------------------------------------


def bucketed_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The row numbers of an epoch's batches: shuffled, sorted by length within BUCKET_BATCHES batches, shuffled again.

    Every row stands in exactly one batch. The same seed and epoch give the same batches, whatever ran before.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    window = BUCKET_BATCHES * batch_size
    batches = []
    for start in range(0, len(order), window):
        rows = order[start : start + window]
        rows = rows[np.argsort(lengths[rows], kind="stable")]
        batches += [rows[i : i + batch_size].tolist() for i in range(0, len(rows), batch_size)]
    generator.shuffle(batches)
    return batches


@dataclass(frozen=True)
class Collator:
    """Makes tensors of a list of rows, padded to the longest: ids and mask (B, T), labels (B,), (B, K) or none."""

    pad_token_id: int
    targets: TeacherTargets | None = None
    labels: tuple[str, ...] = ("toxic",)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }
        if self.labels:
            batch["labels"] = torch.tensor([[row[label] for label in self.labels] for row in rows]).squeeze(1)
        if self.targets is not None:
            batch["teacher_logits"], batch["teacher_states"] = self.targets.look_up([row["row_id"] for row in rows])
        return batch


def token_lengths(dataset: Dataset) -> np.ndarray:
    """The number of tokens of each row as the model sees it, after cutting."""
    return np.array([len(ids) for ids in dataset["input_ids"]])


# --- predicting ------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def predict(
    model: torch.nn.Module,
    dataset: Dataset,
    batch_size: int = 64,
    states: np.ndarray | None = None,
    layers: Sequence[int] = (),
    label: str | None = None,
) -> torch.Tensor:
    """The logits (N, C) of the dataset's rows, in its order, on the CPU, in eval mode.

    `states`, an array (N, L, H), is filled with the [CLS] states after these L layers, counted from 1. Rows are taken
    by length, which costs less padding; the mode the model was in is restored.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    collate = Collator(model.config.pad_token_id)
    order = np.argsort(token_lengths(dataset), kind="stable")
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    logits = torch.empty(len(dataset), model.config.num_labels)
    for rows in progress_bar(batches, desc=label, disable=label is None, leave=False):
        batch = send_to_device(collate(dataset.__getitems__(rows.tolist())), device)
        batch.pop("labels")
        output = model(**batch, output_hidden_states=states is not None)
        logits[rows] = output.logits.float().cpu()
        if states is not None:
            states[rows] = cls_states(output, layers).float().cpu().numpy()
    model.train(was_training)
    return logits


def cls_states(output, layers: Sequence[int]) -> torch.Tensor:
    """The [CLS] states (B, L, H) after these layers: 1 is the first, −1 the last, 0 would be the embeddings."""
    return torch.stack([output.hidden_states[layer][:, 0] for layer in layers], dim=1)


def save_targets(
    teacher: torch.nn.Module, dataset: Dataset, directory: Path, made_from: str, layers: Sequence[int] | None = None
) -> None:
    """Runs the teacher once over the rows, without gradients or dropout, and keeps its outputs by row id, and the time.

    `layers` are those whose [CLS] states are kept (default: the last one). The states go straight to the disk:
    bert-base's last ones are 0.5 GB for the whole of Jigsaw's train.csv.
    """
    started = time.perf_counter()
    layers = layers or (teacher.config.num_hidden_layers,)
    shape = (len(dataset), len(layers), teacher.config.hidden_size)
    with new_directory(directory) as temporary:
        states = np.lib.format.open_memmap(temporary / "states.npy", mode="w+", dtype="float32", shape=shape)
        logits = predict(teacher, dataset, states=states, layers=layers, label="teacher outputs")
        states.flush()
        np.save(temporary / "logits.npy", logits.numpy())
        write_json(temporary / "rows.json", {"row_ids": list(dataset["row_id"])})
        write_json(temporary / "time.json", {"seconds": time.perf_counter() - started})
        seal(temporary, made_from)


def load_targets(directory: Path, made_from: str) -> TeacherTargets | None:
    """The saved targets, memory-mapped; None if they are missing, damaged or were made from something else."""
    if not is_sealed(directory, made_from):
        return None
    rows = read_json(directory / "rows.json")
    # "c": a write would stay in memory; torch takes no array that cannot be written to
    logits, states = (
        torch.from_numpy(np.load(directory / f"{name}.npy", mmap_mode="c")) for name in ("logits", "states")
    )
    return TeacherTargets({row_id: i for i, row_id in enumerate(rows["row_ids"])}, logits, states)


# --- training --------------------------------------------------------------------------------------------------------


def mixed_precision() -> str:
    """accelerate's name for the precision this device computes fast: bf16 from compute capability 8.0, else fp16.

    A T4 (7.5) says that it supports bf16 and emulates it, so the capability is asked, not the feature. Of several GPUs
    the oldest decides, since all processes must compute alike. float32 on a CPU.
    """
    if not on_gpu():
        return "no"
    oldest = min(torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count()))
    return "bf16" if oldest >= (8, 0) else "fp16"


def learning_rate_at(step: int, steps: int, settings: TrainingSettings) -> float:
    """Linear warm-up over the first `warmup_share` of the steps to the peak, then linear decay to zero."""
    warmup = max(1, round(settings.warmup_share * steps))
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    return settings.learning_rate * (steps - step) / max(1, steps - warmup)


def make_optimizer(model: torch.nn.Module, settings: TrainingSettings) -> torch.optim.AdamW:
    """AdamW on what is trainable; no weight decay on biases and layer norms, as usual with BERT."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)  # a fifth of the plain one's time on a CPU


def class_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The logits as the losses take them: (B, 2) for labels (B,); for K independent labels (B, K), two classes each.

    Then (B·K, 2), which belong to `labels.flatten()`.
    """
    return logits if labels.ndim == 1 else per_label(logits)


def batch_loss(
    model: torch.nn.Module, batch: dict[str, torch.Tensor], settings: TrainingSettings
) -> dict[str, torch.Tensor]:
    """The loss of a batch by part: `total` is minimised. Without a teacher in the batch, total = hard.

    Where the teacher's states are those of L layers, they stand against the student's last L layers, in order.
    """
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    labels = batch["labels"]
    if "teacher_logits" not in batch:
        hard = hard_loss(class_logits(model(**inputs).logits, labels), labels.flatten())
        return {"total": hard, "hard": hard}
    output = model(**inputs, output_hidden_states=True)
    matched = range(-batch["teacher_states"].shape[1], 0)
    loss = distillation_loss(
        class_logits(output.logits, labels),
        class_logits(batch["teacher_logits"], labels),
        labels.flatten(),
        cls_states(output, matched),
        batch["teacher_states"],
        temperature=settings.temperature,
        alpha=settings.alpha,
        beta=settings.beta,
    )
    return loss._asdict()


def average_precision(labels: torch.Tensor, logits: torch.Tensor) -> float:
    """Of `toxic`, from labels (N,) and two logits (N, 2)."""
    return float(average_precision_score(labels, logits[:, 1] - logits[:, 0]))


def train(
    model: torch.nn.Module,
    train_rows: Dataset,
    validation_rows: Dataset,
    settings: TrainingSettings,
    checkpoint_dir: Path,
    made_from: str,
    targets: TeacherTargets | None = None,
    label: str = "training",
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    micro_batch_size: int | None = None,
    best_by: Callable[[torch.Tensor, torch.Tensor], float] = average_precision,
) -> dict:
    """Trains `model` in place for a fixed number of epochs and leaves it with its best weights, in eval mode.

    Best is the epoch with the largest validation score `best_by(labels, logits)` (the first of equals), which the
    history shows under that function's name. Goes on from the newest checkpoint in `checkpoint_dir` that carries the
    fingerprint `made_from`; others are removed.

    A batch is shared out to the processes that `accelerate launch` started, if it did, and each share is computed in
    pieces of at most `micro_batch_size` comments (gradient accumulation), where one piece would not fit the device. The
    gradients are those of the whole batch either way. All processes return the same; the first alone writes files.

    Returns:
        The history: `steps` (a list a loss part), `epochs` (training means by part, validation cross-entropy and
        score), `best_epoch` (from 1), `seconds`, `peak_memory_bytes`.

    Raises:
        TrainingError: loss, gradient or logits became infinite or NaN; the last good checkpoint stays.
    """
    run = _TrainingRun(
        model, train_rows, validation_rows, settings, checkpoint_dir, made_from, targets, micro_batch_size, best_by
    )
    run.restore()
    reuse_freed_memory()
    with run.bar(label) as bar, measure_peak_memory() as memory:
        while run.epoch < settings.epochs:
            run.train_epoch(bar, memory, checkpoint_seconds)
            run.finish_epoch(memory)
    return run.finish()


class _TrainingRun:
    """The state of one `train` call: what a checkpoint has to bring back."""

    def __init__(
        self,
        model,
        train_rows,
        validation_rows,
        settings,
        checkpoint_dir,
        made_from,
        targets,
        micro_batch_size,
        best_by,
    ) -> None:
        self.settings = settings
        this_process()  # before Accelerator, which would start the processes with a patience of its own
        self.accelerator = Accelerator(mixed_precision=mixed_precision())
        self.plain_model = model
        self.model, self.optimizer = self.accelerator.prepare(model, make_optimizer(model, settings))
        self.train_rows, self.validation_rows = train_rows, validation_rows
        self.lengths = token_lengths(train_rows)
        self.collate = Collator(model.config.pad_token_id, targets, label_columns(model))
        self.best_by = best_by
        self.micro_batch_size = micro_batch_size or settings.batch_size
        self.directory = checkpoint_dir
        # Checkpoints alone are held to the cut as well: other pieces draw other dropout masks.
        cut = {"processes": self.accelerator.num_processes, "micro_batch_size": self.micro_batch_size}
        self.made_from = fingerprint({"stage": made_from, "settings": asdict(settings), "cut": cut})
        self.steps_an_epoch = math.ceil(len(train_rows) / settings.batch_size)
        self.total_steps = self.steps_an_epoch * settings.epochs
        self.parts = LOSS_PARTS if targets is not None else LOSS_PARTS[:2]
        self.progress = {
            "step": 0,
            "steps": {part: [] for part in self.parts},
            "epochs": [],
            "best_epoch": None,
            "seconds": 0.0,
            "peak_memory_bytes": 0,
        }

    @property
    def epoch(self) -> int:
        """The epoch in progress, from 0: the number of those that were validated."""
        return len(self.progress["epochs"])

    def bar(self, label: str) -> tqdm:
        hidden = not self.accelerator.is_main_process
        return progress_bar(
            total=self.total_steps, initial=self.progress["step"], desc=label, unit="step", disable=hidden
        )

    def share(self, batch: list[int]) -> list[int]:
        """This process's rows of a batch; where it has none left, a row that will count nothing."""
        with self.accelerator.split_between_processes(batch) as rows:
            return rows or batch[:1]

    def cut(self, rows: list[dict]) -> list[dict[str, torch.Tensor]]:
        """The rows as tensors, in pieces that fit the device."""
        size = self.micro_batch_size
        return [self.collate(rows[start : start + size]) for start in range(0, len(rows), size)]

    def train_epoch(self, bar: tqdm, memory: dict, checkpoint_seconds: float) -> None:
        """The batches of this epoch that have not been trained on yet."""
        batches = bucketed_batches(self.lengths, self.settings.batch_size, self.settings.seed, self.epoch)
        batches = batches[self.progress["step"] - self.epoch * self.steps_an_epoch :]
        loader = DataLoader(
            self.train_rows, batch_sampler=[self.share(batch) for batch in batches], collate_fn=self.cut
        )
        self.model.train()
        started = last_saved = time.perf_counter()
        for batch, pieces in zip(batches, loader, strict=True):
            losses = self.train_step(pieces, len(batch))
            now = time.perf_counter()
            self.progress["seconds"] += now - started
            started = now
            bar.update()
            bar.set_postfix(epoch=self.epoch + 1, loss=f"{losses['total']:.4f}", refresh=False)
            if now - last_saved >= checkpoint_seconds:
                self.save(memory)
                started = last_saved = time.perf_counter()  # writing checkpoints is not training

    def train_step(self, pieces: list[dict[str, torch.Tensor]], batch_size: int) -> dict[str, float]:
        """One optimizer step on this process's pieces of a batch; the whole batch's loss by part, logged."""
        step = self.progress["step"]
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(step, self.total_steps, self.settings)
        processes, rank = self.accelerator.num_processes, self.accelerator.process_index
        seed_step(self.settings.seed, step, rank)
        losses = torch.zeros(len(self.parts), device=self.accelerator.device)
        for number, piece in enumerate(pieces, start=1):
            # The loss is a mean over rows, so a piece weighs as much as it has rows; DDP averages over the processes.
            idle = rank >= batch_size
            weight = 0.0 if idle else len(piece["labels"]) * processes / batch_size
            losses += weight * self.backward(piece, weight, is_last=number == len(pieces))
        values = dict(zip(self.parts, self.accelerator.reduce(losses, "mean").tolist(), strict=True))
        if not math.isfinite(values["total"]):
            raise self.diverged(f"the loss became {values['total']}")
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.max_gradient_norm)
        if self.accelerator.mixed_precision != "fp16" and not math.isfinite(norm):  # fp16's scaler skips such a step
            raise self.diverged(f"the gradient became {float(norm)}")
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress["step"] += 1
        for part, value in values.items():
            self.progress["steps"][part].append(round(value, 5))
        return values

    def diverged(self, what: str) -> TrainingError:
        """The error that ends a training whose numbers are no numbers any more."""
        return TrainingError(
            f"{what} at step {self.progress['step'] + 1} of {self.total_steps}; lower the learning rate (now "
            f"{self.settings.learning_rate:g}). The last good checkpoint is kept"
        )

    def backward(self, piece: dict[str, torch.Tensor], weight: float, is_last: bool) -> torch.Tensor:
        """Adds the piece's gradients to those that are there; its loss by part. Only the last one syncs processes."""
        with nullcontext() if is_last else self.accelerator.no_sync(self.model):
            with self.accelerator.autocast(), CheapDropout():
                losses = batch_loss(self.model, send_to_device(piece, self.accelerator.device), self.settings)
            self.accelerator.backward(weight * losses["total"])
        return torch.stack([losses[part].detach() for part in self.parts])

    def finish_epoch(self, memory: dict) -> None:
        """Scores the validation rows; keeps the weights if they are the best so far; writes a checkpoint."""
        record = broadcast_object_list([self.validate() if self.accelerator.is_main_process else None])[0]
        best = self.progress["best_epoch"]
        score = record["validation"][self.best_by.__name__]
        if best is None or score > self.progress["epochs"][best - 1]["validation"][self.best_by.__name__]:
            self.progress["best_epoch"] = self.epoch + 1
            self.save_best()
        self.progress["epochs"].append(record)
        self.save(memory)

    def validate(self) -> dict:
        """The epoch's record: training means by part, validation cross-entropy and score."""
        logits = predict(self.accelerator.unwrap_model(self.model), self.validation_rows)
        if not torch.isfinite(logits).all():
            raise self.diverged("the logits on validation became infinite or NaN")
        columns = [torch.tensor(self.validation_rows[label][:]) for label in self.collate.labels]
        labels = torch.stack(columns, dim=1).squeeze(1)
        of_epoch = slice(self.epoch * self.steps_an_epoch, None)
        return {
            "epoch": self.epoch + 1,
            "training": {part: float(np.mean(values[of_epoch])) for part, values in self.progress["steps"].items()},
            "validation": {
                "hard": float(hard_loss(class_logits(logits, labels), labels.flatten())),
                self.best_by.__name__: self.best_by(labels, logits),
            },
        }

    def save_best(self) -> None:
        """Writes the trained tensors of this epoch, which is the best so far; frozen ones are where they were."""
        if not self.accelerator.is_main_process:
            return
        named = self.accelerator.unwrap_model(self.model).named_parameters()
        weights = {name: p.detach().contiguous() for name, p in named if p.requires_grad}
        with new_directory(self.directory / f"best-{self.progress['best_epoch']}") as temporary:
            save_file(weights, temporary / "weights.safetensors")
            seal(temporary, self.made_from)

    def save(self, memory: dict) -> None:
        """Writes a checkpoint and removes the ones before it."""
        if not self.accelerator.is_main_process:
            return
        self.progress["peak_memory_bytes"] = max(self.progress["peak_memory_bytes"], memory["peak"])
        name = f"step-{self.progress['step']:07d}-{self.epoch}"
        with new_directory(self.directory / name) as temporary:
            try:
                self.accelerator.save_state(str(temporary))
            except RuntimeError as error:  # what torch.save makes of a full disk
                raise OSError(f"the checkpoint {name} could not be written; is the disk full? ({error})") from error
            write_json(temporary / "progress.json", self.progress)
            seal(temporary, self.made_from)
        best = f"best-{self.progress['best_epoch']}"
        for other in self.directory.iterdir():
            if other.name not in (name, best):
                shutil.rmtree(other, ignore_errors=True)

    def restore(self) -> None:
        """Goes on from the newest checkpoint of these very settings; anything else in the folder is removed."""
        with self.accelerator.main_process_first():
            for checkpoint in sorted(self.directory.glob("step-*[0-9]"), reverse=True):
                if not is_sealed(checkpoint, self.made_from):
                    continue
                progress = read_json(checkpoint / "progress.json")
                best = progress["best_epoch"]
                if best is None or is_sealed(self.directory / f"best-{best}", self.made_from):
                    self.accelerator.load_state(str(checkpoint))
                    self.progress = progress
                    return
            if self.accelerator.is_main_process:
                shutil.rmtree(self.directory, ignore_errors=True)
                self.directory.mkdir(parents=True)

    def finish(self) -> dict:
        """Puts the best weights back and returns the history."""
        self.accelerator.wait_for_everyone()
        best = load_file(self.directory / f"best-{self.progress['best_epoch']}" / "weights.safetensors")
        model = self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, tensor in best.items():
                parameters[name].copy_(tensor)
        self.plain_model.eval()
        self.accelerator.wait_for_everyone()  # the first process removes the checkpoints soon
        self.accelerator.free_memory()
        return {key: value for key, value in self.progress.items() if key != "step"}


def seed_step(seed: int, step: int, process: int) -> None:
    """Sets torch's random state for one step, so that dropout depends on nothing that came before.

    A run that goes on from a checkpoint draws what it would have drawn, and no random state has to be saved.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, step, process)).generate_state(1)[0]))


def tell_glibc(call: str, *arguments: int) -> None:
    """Calls a function of glibc's memory allocator; does nothing where there is another C library."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            getattr(ctypes.CDLL("libc.so.6"), call)(*arguments)


def reuse_freed_memory() -> None:
    """Lets the process keep the memory of freed tensors for the next ones.

    By default glibc gives large blocks back at once, and the next step's activations are new pages that the kernel has
    to clear first: 4 % of a training step on 2 cores.
    """
    tell_glibc("mallopt", M_MMAP_THRESHOLD, 2**30)
    tell_glibc("mallopt", M_TRIM_THRESHOLD, 2**31 - 1)


def return_freed_memory() -> None:
    """Frees what is no longer used, to the operating system too: one model's memory must not seem the next one's."""
    gc.collect()
    tell_glibc("malloc_trim", 0)


@contextmanager
def measure_peak_memory(interval: float = 0.05) -> Iterator[dict[str, int]]:
    """Watches memory while the block runs; the dict's `peak` is in bytes.

    On a GPU: what torch allocated at most. On a CPU: the largest resident set of this process, sampled every
    `interval` seconds, so it includes Python and the libraries themselves (about 0.6 GB).
    """
    return_freed_memory()
    memory = {"peak": 0}
    gpu = on_gpu()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    process, stop = psutil.Process(), threading.Event()

    def watch() -> None:
        while not stop.is_set():
            now = torch.cuda.max_memory_allocated() if gpu else process.memory_info().rss
            memory["peak"] = max(memory["peak"], now)
            stop.wait(interval)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        stop.set()
        thread.join()
