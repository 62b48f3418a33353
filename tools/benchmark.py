"""Measures training speed by three recipes, and latency, on whatever device there is: `make bench`.

The usual recipe is what most notebooks on this exercise do: every comment padded to max_length, batches in random
order, the teacher's forward pass in every step of every epoch, unfused AdamW. The second pads each batch to its longest
comment instead. The third is this project's loop. All else is the same; the three take turns, so that a slower minute
of the machine meets all of them. The models have bert-base's shape and random weights: speed does not depend on them.

    python -m tools.benchmark [training | latency] [--rounds 3]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import BertForSequenceClassification, MPNetForSequenceClassification, PreTrainedModel

from helpers.batches import Collator, device_name, load_targets, mixed_precision, on_gpu, save_targets, this_process
from helpers.config import PROFILES
from helpers.data import PreparedData
from helpers.experiments import prepare
from helpers.export import OnnxModel, export_onnx, quantise
from helpers.layers import EVEN_LAYERS, ODD_LAYERS, copy_layers
from helpers.lora import add_adapters
from helpers.losses import Outputs, distillation_loss, hard_loss
from helpers.runs import ROOT, Run, find_data_source, read_json, tells_errors, versions, write_json
from helpers.training import DISTILLATION, TrainingSettings, learning_rate_at, train

SIZES = {"train_rows": 6_400, "validation_rows": 32, "test_rows": 256, "max_length": 128}
# MiniLM's tokenizer is bert-base's; no weights are read
PROFILE = replace(PROFILES["quick"], name="bench", data_without_files="error", **SIZES)
SETTINGS = TrainingSettings(
    epochs=1, batch_size=32, learning_rate=3e-5, weight_decay=0.01, warmup_ratio=0.1, max_grad_norm=1.0, seed=1
)
DISTILLING = replace(SETTINGS, epochs=3, temperature=2.0, alpha=0.5, beta=0.1)
TASKS = ("distil", "finetune", "lora")
RECIPES = {"a": "usual recipe", "b": "usual recipe, padded to the longest", "c": "this project's loop"}
# The usual recipes cost the same for every comment, so that a few batches show it. The loop puts comments of similar
# length together, which takes several batches to pay.
ROWS = {"cpu": {"a": 64, "b": 64, "c": 256}, "gpu": {"a": 1_600, "b": 1_600, "c": 3_200}}


def usual_training(
    model: torch.nn.Module, rows: Dataset, settings: TrainingSettings, pad_to: int | None, teacher=None
) -> float:
    """Trains in place, in random batches padded to `pad_to` tokens or (None) to their longest; the steps' seconds."""
    torch.manual_seed(settings.seed)
    accelerator = Accelerator(mixed_precision=mixed_precision())
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    plain = Collator(model.config.pad_token_id)

    def collate(chosen: list[dict]) -> dict[str, torch.Tensor]:
        batch = plain(chosen)
        more = pad_to - batch["input_ids"].shape[1] if pad_to else 0
        fill = {"input_ids": model.config.pad_token_id, "attention_mask": 0}
        return batch | {name: torch.nn.functional.pad(batch[name], (0, more), value=fill[name]) for name in fill}

    loader = DataLoader(rows, batch_size=settings.batch_size, shuffle=True, collate_fn=collate, pin_memory=on_gpu())
    trained, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    trained.train()
    started = clock()
    for step, batch in enumerate(itertools.chain.from_iterable([loader] * settings.epochs)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, settings.epochs * len(loader), settings)
        accelerator.backward(usual_loss(trained, teacher, batch, settings, accelerator))
        accelerator.clip_grad_norm_(trained.parameters(), settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return clock() - started


def usual_loss(model: torch.nn.Module, teacher, batch: dict, settings: TrainingSettings, accelerator) -> torch.Tensor:
    """The loss that the loop minimises too, with the teacher asked now and the mask as tokenizers give it."""
    inputs, labels = (batch["input_ids"], batch["attention_mask"]), batch["labels"]
    if teacher is None:
        return hard_loss(model(*inputs).logits, labels)
    with torch.no_grad(), accelerator.autocast():
        target = teacher(*inputs, output_hidden_states=True)
    output = model(*inputs, output_hidden_states=True)
    student, teacher = (Outputs(found.logits, found.hidden_states[-1][:, 0]) for found in (output, target))
    weights = {name: getattr(settings, name) for name in DISTILLATION}
    return distillation_loss(student, teacher, labels, **weights).total


def clock() -> float:
    """Seconds, when the device has done what it was told."""
    if on_gpu():
        torch.cuda.synchronize()
    return time.perf_counter()


def new_model(kind: type[PreTrainedModel] = BertForSequenceClassification, layers: int = 12) -> PreTrainedModel:
    """A random classifier of bert-base's shape; for latency MPNet's, which the published run has."""
    torch.manual_seed(1)
    return kind(kind.config_class(num_hidden_layers=layers, num_labels=2)).eval()


def measure(task: str, recipe: str, rows: int) -> float:
    """Trains by a recipe from the first step on; comments per second, with the time of the teacher's one pass."""
    data, targets, seconds = bench_data(), None, 0.0
    splits = {"train": data.splits["train"].select(range(rows)), "validation": data.splits["validation"]}
    settings, teacher, models = SETTINGS, None, [new_model().to(this_process().device)]
    if task == "lora":
        models = [add_adapters(models[0], rank=8, alpha=16, dropout=0.1, seed=1)]
    if task == "distil":
        settings, teacher = DISTILLING, models[0].requires_grad_(False)
        models = [copy_layers(teacher, layers) for layers in (ODD_LAYERS, EVEN_LAYERS)]
    if recipe == "c":
        if teacher is not None:
            started = clock()
            with tempfile.TemporaryDirectory() as folder:
                save_targets(teacher, splits["train"], Path(folder) / "targets", "bench")
                targets = load_targets(Path(folder) / "targets")
            seconds = clock() - started
        seconds += sum(train(model, splits, settings, targets=targets, label=task)["seconds"] for model in models)
    else:
        pad_to = PROFILE.max_length if recipe == "a" else None
        seconds = sum(usual_training(model, splits["train"], settings, pad_to, teacher) for model in models)
    return len(models) * settings.epochs * rows / seconds


def training_speed(rounds: int) -> Iterator[tuple[int, dict]]:
    """After each round, its number, and by task and recipe: comments per second, and the ratios to the usual recipe."""
    rows = ROWS["gpu" if on_gpu() else "cpu"]
    speeds = {task: {recipe: [] for recipe in RECIPES} for task in TASKS}
    for number in range(1, rounds + 1):
        for task, recipe in itertools.product(TASKS, RECIPES):
            gc.collect()  # the last recipe's models, which take gigabytes
            speed = measure(task, recipe, rows[recipe])
            speeds[task][recipe].append(speed)
            print(f"round {number}, {task}, {RECIPES[recipe]}: {speed:.2f} comments per second", flush=True)
        yield number, {task: summary(by_recipe) for task, by_recipe in speeds.items()}


def summary(speeds: dict[str, list[float]]) -> dict[str, dict]:
    """By recipe: the median of its rounds, and of their ratios to the usual recipe in the same round."""
    table = pd.DataFrame(speeds)
    ratios = table.div(table["a"], axis=0)
    medians = pd.DataFrame({"comments_per_second": table.median(), "ratio": ratios.median()}).to_dict("index")
    return {recipe: medians[recipe] | {"ratios": ratios[recipe].tolist()} for recipe in table}


@torch.inference_mode()
def latency(rounds: int) -> Iterator[tuple[int, dict]]:
    """Milliseconds for one comment and for 32, on the CPU, of 12 and 6 layers, in PyTorch and in int8: p50 and p95.

    An int8 model takes its comments one by one; PyTorch takes 32 of them padded together.
    """
    ids = bench_data().splits["test"]["input_ids"][:256]
    collate, found = Collator(pad_token_id=1, labels=()), {}
    for layers in (12, 6):
        model = new_model(MPNetForSequenceClassification, layers)
        with tempfile.TemporaryDirectory() as folder:
            export_onnx(model, Path(folder) / "float.onnx")
            quantise(Path(folder) / "float.onnx", Path(folder) / "int8.onnx")
            forms = {"PyTorch": model, "int8": OnnxModel(Path(folder) / "int8.onnx")}
        for size in (1, 32):
            chunks = [ids[start : start + size] for start in range(0, len(ids), size)]
            batches = [collate([{"input_ids": row} for row in chunk]) for chunk in chunks]
            for form, scored in forms.items():
                calls = [partial(scored, **batch) for batch in batches]
                found[f"{layers} layers, {form}, {size}"] = timed(calls * rounds, size)
    yield rounds, found


def timed(calls: list[Callable], comments: int) -> dict[str, float]:
    """p50 and p95 of the calls' milliseconds, the first three left out, and comments per second."""
    times = []
    for call in calls[:3] + calls:
        started = time.perf_counter()
        call()
        times.append(1_000 * (time.perf_counter() - started))
    times = times[3:]
    p50, p95 = np.quantile(times, [0.5, 0.95])
    return {"p50_ms": float(p50), "p95_ms": float(p95), "comments_per_second": 1_000 * comments / float(np.mean(times))}


def bench_data() -> PreparedData:
    """Real comments, tokenised for bert-base; FileNotFoundError if there are none."""
    source, directory = find_data_source(PROFILE)
    return prepare(Run("bench", ROOT / "runs" / "bench", PROFILE, source, directory, (1,)))


def results_path() -> Path:
    """The device's file in results/benchmarks/."""
    return ROOT / "results" / "benchmarks" / f"{re.sub(r'[^a-z0-9]+', '-', device_name().lower())}.json"


@tells_errors
def main(arguments: list[str] | None = None) -> int:
    """Measures the sections asked for and adds them to the device's file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tools.benchmark", description=__doc__.splitlines()[0])
    sections = {"training": training_speed, "latency": latency}
    parser.add_argument("section", nargs="?", choices=sections, help="default: both")
    parser.add_argument("--rounds", type=int, default=3, help="how often the recipes take turns")
    options = parser.parse_args(arguments)
    bench_data()  # an error now, if there is none
    path = results_path()
    about = {"device": device_name(), "versions": versions(), "max_length": PROFILE.max_length}
    for section in [options.section] if options.section else sections:
        for rounds, found in sections[section](options.rounds):  # what a benchmark that is stopped has measured stays
            write_json(path, (read_json(path) or {}) | {section: about | {"rounds": rounds, "found": found}})
    print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
