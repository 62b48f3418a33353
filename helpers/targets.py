"""What a student imitates: the teacher's outputs on the training rows, computed once and looked up by row id.

Shapes: N rows, B comments in a batch, C classes, H the hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from helpers.batches import Collator, outputs_by_length
from helpers.runs import is_sealed, new_directory, read_json, seal, write_json


@dataclass(frozen=True)
class TeacherTargets:
    """The teacher's outputs by row id: logits (N, C) and last [CLS] states (N, H), float32."""

    position: dict[str, int]
    logits: torch.Tensor
    states: torch.Tensor

    def look_up(self, row_ids: list[str]) -> dict[str, torch.Tensor]:
        """The outputs for these rows, in their order; the order in which the teacher saw them plays no part."""
        missing = [row_id for row_id in row_ids if row_id not in self.position]
        if missing:
            raise KeyError(f"the teacher's targets lack {len(missing)} of these rows (first id {missing[0]})")
        index = torch.tensor([self.position[row_id] for row_id in row_ids])
        return {"teacher_logits": self.logits[index], "teacher_states": self.states[index]}


def with_targets(collate: Collator, targets: TeacherTargets | None) -> Callable[[list[dict]], dict[str, torch.Tensor]]:
    """The collator of a distilled training: its batches hold the teacher's outputs for their own rows too."""
    if targets is None:
        return collate
    return lambda rows: collate(rows) | targets.look_up([row["row_id"] for row in rows])


def cls_states(output) -> torch.Tensor:
    """The [CLS] states (B, H) after the last layer of a model that was called with output_hidden_states=True."""
    return output.hidden_states[-1][:, 0]


def save_targets(teacher: torch.nn.Module, rows: Dataset, directory: Path, made_from: str) -> None:
    """Runs the teacher once over the rows, without gradients or dropout; keeps its outputs by row id, and the time."""
    started = time.perf_counter()
    logits = torch.empty(len(rows), teacher.config.num_labels)
    states = torch.empty(len(rows), teacher.config.hidden_size)
    for numbers, output in outputs_by_length(teacher, rows, "teacher outputs", output_hidden_states=True):
        logits[numbers], states[numbers] = output.logits.float().cpu(), cls_states(output).float().cpu()
    with new_directory(directory) as temporary:
        save_file({"logits": logits, "states": states}, temporary / "outputs.safetensors")
        write_json(temporary / "rows.json", {"row_ids": list(rows["row_id"])})
        write_json(temporary / "time.json", {"seconds": time.perf_counter() - started})
        seal(temporary, made_from)


def load_targets(directory: Path, made_from: str) -> TeacherTargets | None:
    """The saved outputs; None if they are missing, damaged or were made from something else."""
    if not is_sealed(directory, made_from):
        return None
    row_ids = read_json(directory / "rows.json")["row_ids"]
    outputs = load_file(directory / "outputs.safetensors")
    return TeacherTargets({row_id: i for i, row_id in enumerate(row_ids)}, outputs["logits"], outputs["states"])
