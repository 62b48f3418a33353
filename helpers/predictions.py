"""A result on disk: its JSON, and the predictions beside it, from which its scores are computed when it is read.

Scores are never copied from an old JSON, so that every result has every metric there is now.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from helpers.data import PreparedData
from helpers.evaluation import best_threshold, score, toxic_probability
from helpers.runs import file_sha256, is_whole, read_json, write_file

LOGITS = ["logit_clean", "logit_toxic"]
# The one model whose threshold is not searched on validation: it never says 'toxic'.
FIXED_THRESHOLDS = {"majority": 1.0}


class Predictions(NamedTuple):
    """Of one split, rows in the order of their ids: ids and labels (rows,), logits (rows, 2)."""

    row_ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


def result_path(directory: Path, name: str, seed: int) -> Path:
    return directory / f"{name}-{seed}.json"


def predictions_path(directory: Path, name: str, seed: int) -> Path:
    return directory / "predictions" / f"{name}-{seed}.parquet"


def read_result(directory: Path, name: str, seed: int) -> dict | None:
    """A result of this folder with its scores; None unless it and the predictions it was made with are whole."""
    result, path = read_json(result_path(directory, name, seed)), predictions_path(directory, name, seed)
    if not result or not is_whole(path, result.get("predictions_sha256")):
        return None
    return result | predicted_scores(path, result["predictions_sha256"], FIXED_THRESHOLDS.get(name))


@functools.lru_cache(maxsize=200)
def read_predictions(path: Path, sha256: str) -> dict[str, Predictions]:
    """A file of predictions, by split; read once, as long as its hash is the same."""
    frame = pd.read_parquet(path).sort_values("row_id")
    return {
        split: Predictions(rows["row_id"].to_numpy(), rows["toxic"].to_numpy().astype(int), rows[LOGITS].to_numpy())
        for split, rows in frame.groupby("split", sort=False)
    }


@functools.lru_cache(maxsize=200)
def predicted_scores(path: Path, sha256: str, threshold: float | None = None) -> dict:
    """The scores of each split, at the threshold with the best F1 on validation unless one is given."""
    splits = read_predictions(path, sha256)
    found = {split: (toxic_probability(rows.logits), rows.labels) for split, rows in splits.items()}
    if threshold is None:
        threshold = best_threshold(*found["validation"])
    return {"threshold": threshold} | {split: score(*of_split, threshold) for split, of_split in found.items()}


def write_predictions(directory: Path, name: str, seed: int, data: PreparedData, logits: dict[str, np.ndarray]) -> dict:
    """Writes ids, labels and logits (rows, 2) of the scored splits; returns the scores that follow from them."""
    path, frames = predictions_path(directory, name, seed), []
    for split, values in logits.items():
        rows = {"row_id": data.splits[split]["row_id"][:], "split": split, "toxic": data.labels(split).astype("int8")}
        frames.append(pd.DataFrame(rows | dict(zip(LOGITS, values.astype("float32").T, strict=True))))
    write_file(path, lambda temporary: pd.concat(frames).to_parquet(temporary, index=False))
    return predicted_scores(path, file_sha256(path), FIXED_THRESHOLDS.get(name))
