"""What a finished experiment leaves on disk, written and read again: its model, its predictions, its result.

Scores are computed from the predictions whenever a result is read, never copied from an old JSON, so that every result
has every metric there is now.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification

from helpers.batches import this_process
from helpers.config import Profile
from helpers.data import PreparedData
from helpers.evaluation import best_threshold, score, toxic_probability
from helpers.lora import load_adapter, save_adapter
from helpers.models import find_pretrained, load_tokenizer
from helpers.runs import Run, file_sha256, is_whole, new_directory, read_json, write_file

LOGITS = ["logit_clean", "logit_toxic"]
# The one model whose threshold is not searched on validation: it never says 'toxic'.
FIXED_THRESHOLDS = {"majority": 1.0}


class MissingStage(FileNotFoundError):
    """An earlier stage has not run; the message says what makes it."""


class Predictions(NamedTuple):
    """Of one split, rows in the order of their ids: ids and labels (rows,), logits (rows, 2)."""

    row_ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


def save_model(model: torch.nn.Module, directory: Path, profile: Profile, card: str, made_from: str) -> None:
    """Saves all that others need to use the model: weights, base, labels, tokenizer, and a model card."""
    tokenizer = load_tokenizer(find_pretrained(profile.pretrained))
    tokenizer.model_max_length = profile.max_length
    with new_directory(directory, made_from) as temporary:
        if hasattr(model, "peft_config"):
            save_adapter(model, temporary)
            card += (
                "\nThe adapter lies beside its base. Needs peft 0.20 and transformers 5.18 or later: without peft its "
                "base answers alone, and older ones draw a new classifier without a word.\n"
            )
        else:
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "README.md").write_text(card, encoding="utf-8")


def model_card(title: str, data: str, rows: dict[str, int], max_length: int, scores: dict) -> str:
    """README.md of a model's folder: what it learned from, how well it does, and what it must not be used for."""
    named = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.get("test", {}).items())
    return f"""# {title}

Calls a comment `toxic` or `not toxic`. Made by a coursework on cheaper models than a 12-layer BERT.

- **Data:** {data}; {rows["train"]:,} training comments, in English, from Wikipedia's talk pages.
- **Test scores:** {named or "not measured"}. Precision, recall and F1 are those of the toxic class, at the threshold \
{scores["threshold"]:.3f} that validation chose (`threshold` in config.json).
- **Limits:** it errs often, above all on comments unlike its training data, and it flags harmless ones \
that name identities. It reads {max_length} tokens. Do not moderate anybody with it.

```python
from transformers import pipeline

classify = pipeline("text-classification", "path/to/this/folder", truncation=True)
classify("Thank you for fixing the dates.", top_k=None)
```
"""


def load_trained(name: str, seed: int, run: Run) -> torch.nn.Module:
    """A trained model in eval mode on the run's device, adapters on their own base. MissingStage if it is not whole."""
    directory = run.model_dir(name, seed)
    files = (read_json(directory / "fingerprint.json") or {"files": {"fingerprint.json": None}})["files"]
    if broken := [part for part, sha256 in files.items() if not is_whole(directory / part, sha256)]:
        raise MissingStage(
            f"run {run.name!r} has no whole model {name} with seed {seed} (missing or damaged: {', '.join(broken)}): "
            f"run the notebook that trains it, or `python -m helpers.experiments {name} --seeds {seed}`"
        )
    if (directory / "base.json").is_file():
        return load_adapter(directory).to(this_process().device)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32, use_safetensors=True)
    return model.eval().to(this_process().device)


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
