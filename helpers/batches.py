"""What the models compute on and what they are given: devices, padded batches, a model's outputs over a split.

Shapes: B comments in a batch, T tokens, C classes, H the hidden size, N rows. Comments of like length stand together,
so that little is computed on padding. A teacher's outputs are computed once and looked up by row id.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DataLoaderConfiguration, PartialState
from accelerate.utils import parse_flag_from_env, send_to_device
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch.utils.data import Sampler
from tqdm import tqdm

from helpers.runs import new_directory, read_json, write_json

BUCKET_BATCHES = 20  # comments are sorted by length within so many shuffled batches
PAD_TO = 16  # tokens, on a GPU: attention is planned anew for each length that it has not met, which takes seconds


def on_gpu() -> bool:
    """Whether training runs on a CUDA GPU: there is one, and ACCELERATE_USE_CPU does not ask for the CPU."""
    return torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")


def device_name() -> str:
    """What the run computes on, for instance 'cpu, 2 threads', 'Tesla T4', or '2 × Tesla T4' in two processes."""
    if on_gpu():
        name, there = torch.cuda.get_device_name(), torch.cuda.device_count()
        used = int(os.environ.get("WORLD_SIZE", 1))
        unused = f" (1 of {there}; `accelerate launch` uses all)" if used == 1 < there else ""
        return f"{used} × {name}" if used > 1 else f"{name}{unused}"
    if torch.backends.mps.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU"):
        return "Apple GPU (mps)"
    return f"cpu, {torch.get_num_threads()} threads"


def mixed_precision() -> str:
    """accelerate's name for the precision this device computes fast: bf16 from compute capability 8.0, else fp16.

    A T4 (7.5) claims bf16 and emulates it, so the capability decides, and of several GPUs the oldest one's.
    """
    if not on_gpu():
        return "no"
    oldest = min(torch.cuda.get_device_capability(device) for device in range(torch.cuda.device_count()))
    return "bf16" if oldest >= (8, 0) else "fp16"


def this_process() -> PartialState:
    """Which of `accelerate launch`'s processes this is, or the only one; they wait while the first one predicts."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=timedelta(hours=4))  # NCCL: 10 minutes


def make_accelerator() -> Accelerator:
    """accelerate for this process: each batch is split among the processes, and copied while the GPU computes."""
    this_process()  # before Accelerator, which would start the processes with a patience of its own
    loading = DataLoaderConfiguration(split_batches=True, even_batches=False, non_blocking=True)
    accelerator = Accelerator(mixed_precision=mixed_precision(), dataloader_config=loading)
    if (count := accelerator.num_processes) > 1:
        accelerator.print(f"{count} processes: an epoch leaves out the rows of its short last batch")
    return accelerator


def token_lengths(rows: Dataset) -> np.ndarray:
    """The number of tokens of each row as the model sees it, after truncation."""
    return np.array([len(ids) for ids in rows["input_ids"]])


def bucketed_batches(lengths: np.ndarray, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The row numbers of an epoch's batches: shuffled, sorted by length within BUCKET_BATCHES batches, shuffled again.

    Every row stands in one batch; the short batch comes last. The same seed and epoch give the same batches.
    """
    generator = np.random.default_rng((seed, epoch))
    order = generator.permutation(len(lengths))
    whole, short = np.split(order, [len(order) - len(order) % batch_size])
    batches = []
    for start in range(0, len(whole), BUCKET_BATCHES * batch_size):
        rows = whole[start : start + BUCKET_BATCHES * batch_size]
        batches += rows[np.argsort(lengths[rows], kind="stable")].reshape(-1, batch_size).tolist()
    generator.shuffle(batches)
    return [*batches, short.tolist()] if len(short) else batches


class LengthBatches(Sampler):
    """The bucketed batches of the epoch that `epoch` names, without the short one if `drop_last`."""

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int, drop_last: bool = False) -> None:
        self.lengths, self.batch_size, self.seed, self.drop_last = lengths, batch_size, seed, drop_last
        self.epoch = 0
        if not len(self):
            raise ValueError(f"{len(lengths)} rows make no whole batch of {batch_size}; give a smaller batch_size")

    def __len__(self) -> int:
        rows = len(self.lengths)
        return rows // self.batch_size if self.drop_last else -(-rows // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        yield from bucketed_batches(self.lengths, self.batch_size, self.seed, self.epoch)[: len(self)]


@dataclass(frozen=True)
class Collator:
    """Pads rows to ids and mask (B, T); adds the labels (B,) and, where there are targets, the teacher's outputs."""

    pad_token_id: int
    labels: bool = True
    targets: TeacherTargets | None = None

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        longest = int(lengths.max())
        width = -(-longest // PAD_TO) * PAD_TO if on_gpu() else longest
        ids = [[*row["input_ids"], *[self.pad_token_id] * (width - len(row["input_ids"]))] for row in rows]
        batch = {
            "input_ids": torch.tensor(ids, dtype=torch.long),
            "attention_mask": (torch.arange(width) < lengths[:, None]).long(),
        }
        if self.labels:
            batch["labels"] = torch.tensor([row["toxic"] for row in rows])
        if self.targets:
            batch |= self.targets.look_up([row["row_id"] for row in rows])
        return batch


def additive_mask(mask: torch.Tensor) -> torch.Tensor:
    """The mask (B, T) of ones and zeros as attention adds it to its scores: (B, 1, 1, T) of 0 and the lowest float.

    Given a mask of two dimensions, transformers asks in every forward pass whether anything is padded at all, and the
    host waits for the GPU's answer. It must be of floats: MPNet adds a boolean one as 0 and 1 and masks nothing.
    """
    return (1.0 - mask.float())[:, None, None, :] * torch.finfo(torch.float32).min


@torch.inference_mode()
def outputs_by_length(
    model: torch.nn.Module, rows: Dataset, label: str | None = None, **options
) -> Iterator[tuple[np.ndarray, object]]:
    """(row numbers, the model's output) by batches of like length, in eval mode; the model's mode is restored."""
    was_training, device = model.training, next(model.parameters()).device
    collate, size = Collator(model.config.pad_token_id, labels=False), 256 if device.type == "cuda" else 64
    order = np.argsort(token_lengths(rows), kind="stable")
    model.eval()
    for start in progress_bar(range(0, len(order), size), desc=label, disable=label is None, leave=False):
        numbers = order[start : start + size]
        batch = send_to_device(collate(rows.__getitems__(numbers.tolist())), device)
        yield numbers, model(batch["input_ids"], additive_mask(batch["attention_mask"]), **options)
    model.train(was_training)


def predict(model: torch.nn.Module, rows: Dataset, label: str | None = None) -> torch.Tensor:
    """The logits (N, C) of the rows, in their order, in float32 on the CPU; `label` names a progress bar."""
    found = [(numbers, output.logits) for numbers, output in outputs_by_length(model, rows, label)]
    numbers, logits = zip(*found, strict=True)
    return torch.cat(logits).float().cpu()[np.argsort(np.concatenate(numbers))]


def progress_bar(*arguments, **options) -> tqdm:
    """A bar on stdout: a notebook shows stderr as an alarm."""
    return tqdm(*arguments, file=sys.stdout, mininterval=1.0, ncols=96, **options)


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's outputs by row id: logits (N, C) and last [CLS] states (N, H), float32."""

    position: dict[str, int]
    logits: torch.Tensor
    states: torch.Tensor

    def look_up(self, row_ids: list[str]) -> dict[str, torch.Tensor]:
        """The outputs for these rows, in their order; the order in which the teacher saw them plays no part."""
        index = torch.tensor([self.position[row_id] for row_id in row_ids])
        return {"teacher_logits": self.logits[index], "teacher_states": self.states[index]}


def cls_states(output) -> torch.Tensor:
    """The [CLS] states (B, H) after the last layer of a model that was called with output_hidden_states=True."""
    return output.hidden_states[-1][:, 0]


def save_targets(teacher: torch.nn.Module, rows: Dataset, directory: Path, made_from: str) -> None:
    """Runs the teacher once over the rows, without gradients or dropout, and keeps its outputs by row id."""
    logits = torch.empty(len(rows), teacher.config.num_labels)
    states = torch.empty(len(rows), teacher.config.hidden_size)
    for numbers, output in outputs_by_length(teacher, rows, "teacher outputs", output_hidden_states=True):
        logits[numbers], states[numbers] = output.logits.float().cpu(), cls_states(output).float().cpu()
    with new_directory(directory, made_from) as temporary:
        save_file({"logits": logits, "states": states}, temporary / "outputs.safetensors")
        write_json(temporary / "rows.json", {"row_ids": list(rows["row_id"])})


def load_targets(directory: Path) -> TeacherTargets:
    """The saved outputs."""
    row_ids = read_json(directory / "rows.json")["row_ids"]
    position = {row_id: place for place, row_id in enumerate(row_ids)}
    return TeacherTargets(position, **load_file(directory / "outputs.safetensors"))
