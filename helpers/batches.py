"""From rows of token ids to padded batches, and from a model and rows to its logits.

Shapes: B comments in a batch, T tokens, C classes, N rows. Comments of like length stand together, so that little is
computed on padding.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import send_to_device
from datasets import Dataset
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Sampler
from tqdm import tqdm

from helpers.devices import on_gpu

BUCKET_BATCHES = 20  # comments are sorted by length within so many shuffled batches
PAD_TO = 16  # tokens, on a GPU: attention is planned anew for each length that it has not met, which takes seconds


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
    """The bucketed batches of the epoch that `epoch` names; with `drop_last` without the short one."""

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
    """Makes tensors of a list of rows, padded to the longest: ids and mask (B, T) and, if wanted, labels (B,)."""

    pad_token_id: int
    labels: bool = True

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(row["input_ids"], dtype=torch.long) for row in rows]
        batch = {
            "input_ids": pad_sequence(ids, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
        }
        more = -batch["input_ids"].shape[1] % PAD_TO if on_gpu() else 0
        if more:
            batch["input_ids"] = F.pad(batch["input_ids"], (0, more), value=self.pad_token_id)
            batch["attention_mask"] = F.pad(batch["attention_mask"], (0, more))
        if self.labels:
            batch["labels"] = torch.tensor([row["toxic"] for row in rows])
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
