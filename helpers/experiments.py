"""The rows of the comparison as data, and the one function that makes any of them: run_experiment.

An experiment says what it starts from, which layers it keeps, whether it distils and whether it trains adapters;
everything else comes from the run's profile. Its result is one JSON, with its predictions beside it.

Long runs need no notebook, and on several devices accelerate starts a process on each:

    python -m helpers.experiments odd even lora --seeds 1
    accelerate launch -m helpers.experiments odd even lora --seeds 1
"""

from __future__ import annotations

import argparse
import functools
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification

from helpers.batches import TeacherTargets, device_name, load_targets, predict, save_targets, this_process
from helpers.config import MAIN_EXPERIMENTS, Profile, unknown
from helpers.data import PreparedData, load_data, majority_logits, prepare_data, tfidf_logits
from helpers.evaluation import best_threshold, score, teacher_gate, toxic_probability
from helpers.export import measure_deployment
from helpers.layers import (
    EVEN_LAYERS,
    FIRST_SIX,
    LAST_SIX,
    ODD_LAYERS,
    copy_layers,
    merge_layers,
)
from helpers.lora import add_adapters, count_parameters, load_adapter, save_adapter
from helpers.models import find_pretrained, load_model, load_tokenizer, lora_targets, model_card, pretrained_sha256
from helpers.runs import (
    Run,
    add_run_arguments,
    file_sha256,
    fingerprint,
    is_sealed,
    is_whole,
    new_directory,
    only_writer,
    open_run,
    read_json,
    seal,
    tells_errors,
    use_run_arguments,
    versions,
    write_file,
    write_json,
)
from helpers.training import Checkpoints, TrainingError, TrainingSettings, average_precision, train


@dataclass(frozen=True)
class Experiment:
    """One row of the comparison, by its differences from fine-tuning the pretrained model in full."""

    name: str
    title: str
    start: str = "pretrained"  # or 'teacher': the run's fine-tuned teacher; 'baseline'
    layers: tuple | None = None  # layers to keep, counted from 1, or groups of layers to average; None: all
    distil: bool = False
    adapter: bool = False
    changes: tuple[tuple[str, object], ...] = ()  # the profile's settings that this experiment changes
    notebook: str = "02_layer_distillation"

    def profile(self, profile: Profile) -> Profile:
        """The run's profile with this experiment's own settings."""
        return replace(profile, **dict(self.changes))

    @property
    def needs_teacher(self) -> bool:
        return self.start == "teacher" or self.distil


def _student(name: str, title: str, layers: tuple[int, ...]) -> Experiment:
    return Experiment(name, title, start="teacher", layers=layers, distil=True, notebook="05_improvements")


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("majority", "Always 'clean'", start="baseline", notebook="01_data_preparation"),
        Experiment("tfidf", "TF-IDF + logistic regression", start="baseline", notebook="01_data_preparation"),
        Experiment("teacher", "Teacher, 12 layers"),
        Experiment("odd", "Odd student, distilled", start="teacher", layers=ODD_LAYERS, distil=True),
        Experiment("even", "Even student, distilled", start="teacher", layers=EVEN_LAYERS, distil=True),
        Experiment("lora", "LoRA, 12 layers", adapter=True, notebook="03_lora_fine_tuning"),
        Experiment(
            "lora_6",
            "LoRA, odd layers of the teacher",
            start="teacher",
            layers=ODD_LAYERS,
            adapter=True,
            notebook="03_lora_fine_tuning",
        ),
        Experiment("odd_hard", "Odd student, labels only", start="teacher", layers=ODD_LAYERS),
        Experiment("even_hard", "Even student, labels only", start="teacher", layers=EVEN_LAYERS),
        # Is it the half, or the second training? And which of the layers 1 and 12 makes odd and even differ?
        _student("twelve", "All twelve layers, distilled", tuple(range(1, 13))),
        _student("odd_without_1", "Odd layers without layer 1, distilled", (2, 3, 5, 7, 9, 11)),
        _student("even_with_1", "Even layers with layer 1, distilled", (1, 4, 6, 8, 10, 12)),
        _student("odd_with_12", "Odd layers with layer 12, distilled", (1, 3, 5, 7, 9, 12)),
        _student("first_six", "First six layers, distilled", FIRST_SIX),
        _student("last_six", "Last six layers, distilled", LAST_SIX),
        Experiment(
            "hybrid",
            "LoRA on the odd layers, distilled",
            start="teacher",
            layers=ODD_LAYERS,
            distil=True,
            adapter=True,
            notebook="05_improvements",
        ),
    )
}


# The one model whose threshold is not searched on validation: it never says 'toxic'.
FIXED_THRESHOLDS = {"majority": 1.0}
LOGITS = ["logit_clean", "logit_toxic"]


class MissingStage(FileNotFoundError):
    """An earlier stage has not run; the message says which notebook makes it."""


def find_experiment(name: str) -> Experiment:
    """The experiment of that name, or a ValueError with the nearest one."""
    if name not in EXPERIMENTS:
        raise ValueError(unknown("experiment", name, list(EXPERIMENTS)))
    return EXPERIMENTS[name]


def experiment_seeds(experiment: Experiment, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the seeds an experiment is run with: one only for a baseline, which draws nothing at random."""
    return seeds[:1] if experiment.start == "baseline" else seeds


# --- settings and fingerprints ---------------------------------------------------------------------------------------


def training_settings(experiment: Experiment, seed: int, profile: Profile) -> TrainingSettings:
    """The experiment's training settings: each family has its own rate, and nothing else of its own."""
    family = "lora" if experiment.adapter else "student" if experiment.layers else "teacher"
    profile = experiment.profile(profile)
    return TrainingSettings(
        epochs=profile.epochs,
        batch_size=profile.batch_size,
        learning_rate=getattr(profile, f"{family}_learning_rate"),
        weight_decay=profile.weight_decay,
        warmup_ratio=profile.warmup_ratio,
        max_grad_norm=profile.max_grad_norm,
        seed=seed,
        temperature=profile.temperature if experiment.distil else None,
        alpha=profile.alpha if experiment.distil else None,
        beta=profile.beta if experiment.distil else None,
        micro_batch_size=profile.micro_batch_size,
    )


# A result's fingerprint covers these settings, under the names that the first results gave them. A setting that is
# added later counts only where it is not at its default, so that it leaves every finished result as it was.
FINGERPRINTED = {
    "epochs": "epochs",
    "batch_size": "batch_size",
    "learning_rate": "learning_rate",
    "weight_decay": "weight_decay",
    "warmup_ratio": "warmup_share",
    "max_grad_norm": "max_gradient_norm",
    "seed": "seed",
    "temperature": "temperature",
    "alpha": "alpha",
    "beta": "beta",
}
NOT_FINGERPRINTED = ("micro_batch_size",)  # how a batch is computed, not what is


def fingerprinted(settings: TrainingSettings) -> dict:
    """The training settings that a result depends on, by their names in JSON."""
    values = {name: getattr(settings, field) for field, name in FINGERPRINTED.items()}
    for field in fields(settings):
        added_later = field.name not in FINGERPRINTED and field.name not in NOT_FINGERPRINTED
        if added_later and getattr(settings, field.name) != field.default:
            values[field.name] = getattr(settings, field.name)
    return values


def experiment_settings(experiment: Experiment, seed: int, profile: Profile) -> dict:
    """All that the experiment depends on besides its inputs, as JSON values."""
    settings = {"start": experiment.start, "layers": list(experiment.layers) if experiment.layers else None}
    if experiment.start == "baseline":
        return {"start": "baseline", "name": experiment.name}
    changed = experiment.profile(profile)
    if experiment.adapter:
        settings["adapter"] = changed.settings("lora_rank", "lora_alpha", "lora_dropout")
        if changed.lora_targets != "attention":
            settings["adapter"]["lora_targets"] = changed.lora_targets
    return settings | {"training": fingerprinted(training_settings(experiment, seed, profile))}


def experiment_inputs(experiment: Experiment, seed: int, profile: Profile, data_fingerprint: str) -> dict[str, str]:
    """The fingerprints of what the experiment reads: the data, and its pretrained model or its teacher."""
    inputs = {"data": data_fingerprint}
    if experiment.needs_teacher:
        inputs["teacher"] = experiment_fingerprint(EXPERIMENTS["teacher"], seed, profile, data_fingerprint)
    if experiment.start == "pretrained":
        inputs["pretrained"] = pretrained_sha256(profile.pretrained)
    return inputs


def experiment_fingerprint(experiment: Experiment, seed: int, profile: Profile, data_fingerprint: str) -> str:
    """Changes when a setting or an input of the experiment does; versions, device and time play no part."""
    settings = experiment_settings(experiment, seed, profile)
    return fingerprint({"settings": settings, "inputs": experiment_inputs(experiment, seed, profile, data_fingerprint)})


# --- running ---------------------------------------------------------------------------------------------------------


def prepare(run: Run) -> PreparedData:
    """The run's comments, tokenised for its pretrained model; read, checked and split where that is not done yet."""
    pretrained = find_pretrained(run.profile.pretrained)
    return prepare_data(run, load_tokenizer(pretrained), pretrained.sha256)


def run_experiment(name: str | Experiment, seed: int, run: Run, weights: bool = True) -> dict:
    """Trains, scores and measures one experiment, unless that is done already; returns its result.

    Leaves models/<name>-<seed>/, results/<name>-<seed>.json and results/predictions/<name>-<seed>.parquet in the run.
    An experiment that stands in no list is given itself instead of by its name. With weights=False its scores are
    enough: models/ may have been cleared to save space.

    Raises:
        ValueError: no such experiment.
        FileNotFoundError: the data (of this model's tokeniser), or the teacher of this seed, is not there yet.
        TrainingError: the loss diverged, or the teacher is not worth distilling.
    """
    experiment = name if isinstance(name, Experiment) else find_experiment(name)
    data = load_data(run)
    wanted = run.profile.pretrained
    tokenised_for = data.summary.get("pretrained", wanted)
    if tokenised_for != wanted and pretrained_sha256(tokenised_for) != pretrained_sha256(wanted):
        raise FileNotFoundError(
            f"the comments of run {run.name!r} were tokenised for {tokenised_for}, not for {wanted}: run "
            "01_data_preparation again"
        )
    made_from = experiment_fingerprint(experiment, seed, run.profile, data.fingerprint)
    state = this_process()
    state.wait_for_everyone()
    done = finished_result(experiment, seed, run, made_from, weights)
    if done is not None:
        return done
    with only_writer(run, f"{experiment.name}-{seed}") if state.is_main_process else nullcontext():
        if experiment.start != "baseline":
            _run_training(experiment, seed, run, data, made_from)
        elif state.is_main_process:
            _run_baseline(experiment, seed, run, data, made_from)
    state.wait_for_everyone()  # what comes next may read what the first process has just written
    return read_result(run.results_dir, experiment.name, seed)


def finished_result(experiment: Experiment, seed: int, run: Run, made_from: str, weights: bool = True) -> dict | None:
    """The experiment's result, if its JSON, predictions and `weights` are all there, whole, and of this fingerprint."""
    result = read_result(run.results_dir, experiment.name, seed)
    if result is None or result["fingerprint"] != made_from:
        return None
    if weights and experiment.start != "baseline" and not has_model(experiment, seed, run, made_from):
        return None
    return result


def has_model(experiment: Experiment, seed: int, run: Run, made_from: str) -> bool:
    """Whether the model of this fingerprint is there and whole."""
    return is_sealed(run.model_dir(experiment.name, seed), made_from)


def _run_baseline(experiment: Experiment, seed: int, run: Run, data: PreparedData, made_from: str) -> None:
    started = time.perf_counter()
    logits = {"majority": majority_logits, "tfidf": tfidf_logits}[experiment.name](data)
    seconds = time.perf_counter() - started
    facts = {"costs": {"training_seconds": seconds, "prerequisite_seconds": 0.0}}
    _write_predictions(experiment, seed, run, data, logits)
    _write_result(experiment, seed, run, data, made_from, facts)


def _run_training(experiment: Experiment, seed: int, run: Run, data: PreparedData, made_from: str) -> None:
    """Trains on every process that accelerate started; the first one alone predicts, measures and writes."""
    state = this_process()
    model, prerequisite_seconds = start_model(experiment, seed, run)
    model.to(state.device)
    targets = None
    if experiment.distil:
        with state.main_process_first():
            targets, seconds = teacher_targets(seed, run, data)
        prerequisite_seconds += seconds
    before = None
    if state.is_main_process:
        before = predict(model, data.splits["validation"], label=f"{experiment.name}: before training").numpy()
    history = train(
        model,
        data.splits,
        training_settings(experiment, seed, run.profile),
        Checkpoints(run.checkpoint_dir(experiment.name, seed), made_from),
        targets,
        label=f"{experiment.name}, seed {seed}",
    )
    if not state.is_main_process:
        return
    logits = {
        split: predict(model, data.splits[split], label=f"{experiment.name}: {split}").numpy() for split in run.scored
    }
    save_model(experiment, seed, run, data, model, _write_predictions(experiment, seed, run, data, logits))
    facts = _training_facts(experiment, seed, run, data, model, history, before, logits["validation"])
    facts["costs"]["prerequisite_seconds"] = prerequisite_seconds
    if experiment.needs_teacher:  # what its comparisons are held to: a student belongs to its own seed's teacher
        facts["teacher_sha256"] = file_sha256(run.model_dir("teacher", seed) / "model.safetensors")
    # the other experiments are variants with the same cost
    if experiment.name in MAIN_EXPERIMENTS and "test" in run.scored:
        onnx = run.model_dir(experiment.name, seed) / "onnx"
        facts["costs"]["deployment"] = measure_deployment(model, onnx, data, logits["test"])
    _write_result(experiment, seed, run, data, made_from, facts)
    shutil.rmtree(run.checkpoint_dir(experiment.name, seed), ignore_errors=True)


def start_model(experiment: Experiment, seed: int, run: Run) -> tuple[torch.nn.Module, float]:
    """The model as it is before its training, and the seconds that its teacher's training took."""
    prerequisite_seconds = 0.0
    if experiment.needs_teacher:
        teacher, teacher_result = load_teacher(seed, run)
        prerequisite_seconds = teacher_result["costs"]["training_seconds"]
    if experiment.start == "teacher":
        model = teacher
    else:
        model = load_model(find_pretrained(run.profile.pretrained), seed)
        positions = model.config.max_position_embeddings
        if run.profile.max_length > positions:
            raise ValueError(
                f"profile {run.profile.name}: max_length={run.profile.max_length} is not allowed; give at most "
                f"{positions}, the positions that {run.profile.pretrained} has"
            )
    if experiment.layers:
        merging = isinstance(experiment.layers[0], tuple)
        model = merge_layers(model, experiment.layers) if merging else copy_layers(model, experiment.layers)
    if experiment.adapter:
        profile = experiment.profile(run.profile)
        model = add_adapters(
            model,
            rank=profile.lora_rank,
            alpha=profile.lora_alpha,
            dropout=profile.lora_dropout,
            seed=seed,
            targets=lora_targets(model, profile.lora_targets),
        )
    return model, prerequisite_seconds


def load_teacher(seed: int, run: Run) -> tuple[torch.nn.Module, dict]:
    """The run's fine-tuned teacher of that seed, frozen and in eval mode, and its result.

    Raises:
        MissingStage: it has not been trained with the run's present settings.
    """
    teacher = EXPERIMENTS["teacher"]
    made_from = experiment_fingerprint(teacher, seed, run.profile, load_data(run).fingerprint)
    result = finished_result(teacher, seed, run, made_from)
    if result is None:
        raise MissingStage(
            f"run {run.name!r} has no teacher with seed {seed} yet: run {teacher.notebook} first (same PROFILE and RUN)"
            f"; if only its weights are gone, `python -m helpers.experiments teacher --seeds {seed}` makes them again"
        )
    return load_trained("teacher", seed, run).requires_grad_(False), result


def teacher_targets(seed: int, run: Run, data: PreparedData) -> tuple[TeacherTargets, float]:
    """The teacher's outputs on the training rows, and the seconds their making took; computed once per run and seed.

    Raises:
        TrainingError: the teacher did not pass the gate, so its outputs are not worth imitating.
    """
    teacher, result = load_teacher(seed, run)
    gate = result["gate"]
    if not gate["passed"]:
        raise TrainingError(
            f"the teacher of seed {seed} has a validation average precision of {gate['average_precision']:.3f} (before "
            f"training {gate['before']:.3f}, needed {gate['needed']:.3f} and a clear gain): it has not learned, so "
            "distilling it is refused. Train it longer, on more rows or at another rate"
        )
    directory = run.targets_dir(seed)
    made_from = fingerprint({"teacher": result["fingerprint"]})
    targets = load_targets(directory, made_from)
    if targets is None:
        with only_writer(run, f"targets-{seed}"):
            save_targets(teacher, data.splits["train"], directory, made_from)
        targets = load_targets(directory, made_from)
    return targets, read_json(directory / "time.json")["seconds"]


def save_model(
    experiment: Experiment, seed: int, run: Run, data: PreparedData, model: torch.nn.Module, scores: dict
) -> None:
    """Saves all that others need to use the model: weights, base, labels, tokenizer, threshold, and a model card."""
    tokenizer = load_tokenizer(find_pretrained(run.profile.pretrained))
    tokenizer.model_max_length = run.profile.max_length
    model.config.threshold = scores.get("threshold")
    with new_directory(run.model_dir(experiment.name, seed)) as temporary:
        if experiment.adapter:
            save_adapter(model, temporary)
        else:
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        rows = {split: len(rows) for split, rows in data.splits.items()}
        card = model_card(experiment.title, run.data_label, rows, run.profile.max_length, scores)
        if experiment.adapter:
            card += "\nThe adapter lies beside its base. Needs `pip install peft`: without it the base alone answers.\n"
        (temporary / "README.md").write_text(card, encoding="utf-8")
        seal(temporary, experiment_fingerprint(experiment, seed, run.profile, data.fingerprint))


def load_trained(name: str, seed: int, run: Run) -> torch.nn.Module:
    """A trained model of this run in eval mode, on the run's device; a LoRA model with its adapters on their own base.

    Raises:
        MissingStage: it is not there, or its folder lacks a part; the message says which, and which notebook trains it.
    """
    directory = run.model_dir(name, seed)
    again = f"run {find_experiment(name).notebook if name in EXPERIMENTS else 'the notebook that trained it'}"
    if not directory.is_dir():
        raise MissingStage(f"run {run.name!r} has no model {name} with seed {seed}: {again} first")
    files = (read_json(directory / "fingerprint.json") or {"files": ["fingerprint.json"]})["files"]
    missing = [part for part in files if not (directory / part).is_file()]
    if missing:
        raise MissingStage(f"models/{directory.name}/ of run {run.name!r} lacks {', '.join(missing)}: {again} again")
    if (directory / "base.json").is_file():
        return load_adapter(directory).to(this_process().device)
    model = AutoModelForSequenceClassification.from_pretrained(directory, dtype=torch.float32, use_safetensors=True)
    return model.eval().to(this_process().device)


# --- results ---------------------------------------------------------------------------------------------------------


def result_path(directory: Path, name: str, seed: int) -> Path:
    return directory / f"{name}-{seed}.json"


def predictions_path(directory: Path, name: str, seed: int) -> Path:
    return directory / "predictions" / f"{name}-{seed}.parquet"


def read_result(directory: Path, name: str, seed: int) -> dict | None:
    """A result that lies in this folder, if it is whole and the predictions beside it are those it was made with.

    Its scores are computed from the predictions, so that an older result has every metric there is now.
    """
    result = read_json(result_path(directory, name, seed))
    path = predictions_path(directory, name, seed)
    if not result or not is_whole(path, result.get("predictions_sha256")):
        return None
    return result | predicted_scores(path, result["predictions_sha256"], FIXED_THRESHOLDS.get(name))


class Predictions(NamedTuple):
    """Of one split, rows in the order of their ids: ids and labels (rows,), logits (rows, 2)."""

    row_ids: np.ndarray
    labels: np.ndarray
    logits: np.ndarray


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


def _training_facts(experiment, seed, run, data, model, history, before, after) -> dict:
    """What is known of a trained model besides its test scores."""
    total, trainable = count_parameters(model)
    best = history["epochs"][history["best_epoch"] - 1]
    facts = {
        "parameters": total,
        "trainable_parameters": trainable,
        "training_loss": best["training"]["hard"],  # cross-entropy, which every family has
        "training_loss_total": best["training"]["total"] if experiment.distil else None,
        "before_training": {"average_precision": average_precision(data.labels("validation"), before)},
        "costs": {
            "training_seconds": history.pop("seconds"),
            "peak_memory_bytes": history.pop("peak_memory_bytes"),
            "bytes": model_bytes(experiment, seed, run),
        },
        "history": history,
    }
    if experiment.name == "teacher":
        facts["weights_sha256"] = file_sha256(run.model_dir("teacher", seed) / "model.safetensors")
        facts["gate"] = teacher_gate(data.labels("validation"), toxic_probability(before), toxic_probability(after))
    return facts


def model_bytes(experiment: Experiment, seed: int, run: Run) -> dict[str, int]:
    """Bytes on disk: `total` to run the model, `to_ship` for one more task.

    An adapter on the pretrained model is sent alone, for everybody has its base; the copy of a teacher that was
    fine-tuned for the task is no such base, and goes along.
    """
    weights = {path.name: path.stat().st_size for path in run.model_dir(experiment.name, seed).glob("*.safetensors")}
    total = sum(weights.values())
    alone = experiment.adapter and experiment.start != "teacher"
    return {"total": total, "to_ship": weights["adapter_model.safetensors"] if alone else total}


def _predictions(data: PreparedData, split: str, logits: np.ndarray) -> pd.DataFrame:
    """Ids, labels and logits of a split's rows."""
    columns = {"row_id": data.splits[split]["row_id"][:], "split": split, "toxic": data.labels(split).astype("int8")}
    return pd.DataFrame(columns | dict(zip(LOGITS, logits.astype("float32").T, strict=True)))


def _write_predictions(experiment, seed, run, data, logits) -> dict:
    """Writes the logits of the scored splits; returns the scores that follow from them."""
    frame = pd.concat(_predictions(data, split, values) for split, values in logits.items())
    path = predictions_path(run.results_dir, experiment.name, seed)
    write_file(path, lambda temporary: frame.to_parquet(temporary, index=False))
    return predicted_scores(path, file_sha256(path), FIXED_THRESHOLDS.get(experiment.name))


def _write_result(experiment, seed, run, data, made_from, facts) -> None:
    """Writes the JSON, which makes the experiment finished; its predictions have been written."""
    result = {
        "experiment": experiment.name,
        "seed": seed,
        "profile": run.profile.name,
        "data": run.data_label,
        "fingerprint": made_from,
        "settings": experiment_settings(experiment, seed, run.profile),
        "inputs": experiment_inputs(experiment, seed, run.profile, data.fingerprint),
        "versions": versions(),
        "device": device_name(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "rows": {split: len(rows) for split, rows in data.splits.items()},
    }
    sha256 = file_sha256(predictions_path(run.results_dir, experiment.name, seed))
    write_json(result_path(run.results_dir, experiment.name, seed), result | facts | {"predictions_sha256": sha256})


# --- without a notebook ----------------------------------------------------------------------------------------------


def in_order(names: list[str]) -> list[str]:
    """The experiments asked for, each after the teacher that it needs, which is added where it is missing."""
    chosen = [find_experiment(name) for name in names]
    if any(experiment.needs_teacher for experiment in chosen):
        names = ["teacher", *names]
    return [name for name in EXPERIMENTS if name in names]


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m helpers.experiments", description="Runs experiments of a run.")
    parser.add_argument("names", nargs="*", help="which experiments (default: the profile's)")
    add_run_arguments(parser)
    return parser.parse_args(arguments)


@tells_errors(TrainingError)
def main(arguments: list[str] | None = None) -> int:
    """Runs the stages of the notebooks 01 to 03 for the experiments asked for; returns the exit code."""
    options = parse_arguments(arguments)
    use_run_arguments(options)
    state = this_process()
    with state.main_process_first():
        run = open_run()
        names = in_order(options.names or list(run.profile.experiments))
        prepare(run)
    baselines = [name for name in names if EXPERIMENTS[name].start == "baseline"]
    trained = [(name, seed) for seed in run.seeds for name in names if name not in baselines]
    for name, seed in [*((name, run.profile.seeds[0]) for name in baselines), *trained]:
        result = run_experiment(name, seed, run)
        told = f"test average precision {result['test']['average_precision']:.3f}"
        state.print(f"{name}, seed {seed}: {told}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
