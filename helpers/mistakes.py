"""What notebook 06 needs to make the common mistakes on purpose: short trainings on few rows."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from datasets import Dataset

from helpers.batches import TeacherTargets, load_targets, predict, save_targets
from helpers.data import PreparedData, load_data
from helpers.evaluation import best_threshold, score, toxic_probability
from helpers.experiments import EXPERIMENTS, training_settings
from helpers.losses import soft_loss
from helpers.runs import Run, only_writer
from helpers.training import train

ROWS, EPOCHS = 600, 2


def few_rows(run: Run) -> PreparedData:
    """The run's splits with 600 rows each at most, so that the notebook takes minutes in every profile."""
    data = load_data(run)
    splits = {name: rows.select(range(min(ROWS, len(rows)))) for name, rows in data.splits.items()}
    return replace(data, splits=splits)


def short_rows(data: PreparedData, count: int = 16, tokens: int = 16) -> Dataset:
    """A few test rows cut short: the tiny random BERT has few positions."""
    rows = data.splits["test"].select(range(count))
    cut = [ids[:tokens] for ids in rows["input_ids"]]
    return rows.remove_columns("input_ids").add_column("input_ids", cut)


def outputs_of(teacher: torch.nn.Module, data: PreparedData, run: Run, name: str) -> TeacherTargets:
    """A teacher's outputs on the few training rows, whether it is worth imitating or not: there is no gate here."""
    directory = run.directory / "mistakes" / f"targets-{name}"
    with only_writer(run):
        save_targets(teacher, data.splits["train"], directory, "mistakes")
    return load_targets(directory, "mistakes")


def train_briefly(
    like: str,
    name: str,
    model: torch.nn.Module,
    data: PreparedData,
    run: Run,
    targets: TeacherTargets | None = None,
    **changes,
) -> dict:
    """Trains `model` in place for two epochs like the experiment `like`, with `changes` to its training settings.

    Returns the `history`, as `train` gives it, and the `average_precision` on the few validation rows.
    """
    settings = training_settings(EXPERIMENTS[like], run.seeds[0], run.profile)
    settings = replace(settings, epochs=EPOCHS, **changes)
    history = train(model, data.splits, settings, targets=targets, label=name)
    kept = history["epochs"][history["best_epoch"] - 1]["validation"]
    return {"history": history, "average_precision": kept["average_precision"]}


def leaked_scores(model: torch.nn.Module, data: PreparedData, shares: Sequence[float]) -> pd.DataFrame:
    """Test scores of one model when such a share of the test rows is exchanged for rows it was trained on.

    The threshold is chosen on validation and stays. Above them: the scores on validation itself.
    """
    found = {split: toxic_probability(predict(model, rows).numpy()) for split, rows in data.splits.items()}
    threshold = best_threshold(found["validation"], data.labels("validation"))
    tested = {"0%, validation instead": (found["validation"], data.labels("validation"))}
    for share in shares:
        leaked = round(share * len(found["test"]))
        labels = np.concatenate([data.labels("train")[:leaked], data.labels("test")[leaked:]])
        tested[f"{share:.0%}"] = np.concatenate([found["train"][:leaked], found["test"][leaked:]]), labels
    rows = []
    for leaked, (probabilities, labels) in tested.items():
        scores = score(probabilities, labels, threshold)
        row = {"training rows in the test set": leaked, "F1": scores["f1"]}
        rows.append(row | {"average precision": scores["average_precision"]})
    return pd.DataFrame(rows)


def shared_tensors(a: torch.nn.Module, b: torch.nn.Module) -> int:
    """How many parameters of two models lie at the same place in memory."""
    return len({p.data_ptr() for p in a.parameters()} & {p.data_ptr() for p in b.parameters()})


def gradient_sizes(student: np.ndarray, teacher: np.ndarray, temperatures: Sequence[float]) -> pd.DataFrame:
    """The size of the soft loss's gradient on the student's logits (N, 2), with the factor T² and without it."""
    rows = []
    for temperature in temperatures:
        logits = torch.tensor(student, requires_grad=True)
        soft_loss(logits, torch.tensor(teacher), temperature).backward()
        size = float(logits.grad.norm())
        rows.append({"T": temperature, "with T²": size, "without": size / temperature**2})
    return pd.DataFrame(rows)


def forget(run: Run) -> None:
    """Removes what the notebook wrote for itself."""
    with only_writer(run):
        shutil.rmtree(run.directory / "mistakes", ignore_errors=True)
