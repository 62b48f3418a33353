"""The rows of the comparison as data, and the one function that makes any of them: run_experiment.

An experiment says what it starts from, which layers it keeps, whether it distils and whether it trains adapters;
everything else comes from the run's profile. Its result is one JSON, with its predictions beside it.

Long runs need no notebook, and on several devices accelerate starts a process on each:

    python -m helpers.experiments odd even lora --seeds 1
    accelerate launch -m helpers.experiments odd even lora --seeds 1

All six labels at once, in a run of their own (teacher, odd, even and lora, first seed):

    TASK=labels python -m helpers.experiments --profile study
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForSequenceClassification

from helpers.batches import predict
from helpers.config import LABELS, MAIN_EXPERIMENTS, Profile, load_profile, unknown
from helpers.data import PreparedData, load_data, majority_logits, prepare_data, tfidf_logits
from helpers.deploy import latency_batches, measure_deployment, measure_latency, plain_model, torch_call
from helpers.devices import device_name, this_process
from helpers.evaluation import (
    METRICS,
    best_threshold,
    compare,
    intervals,
    label_intervals,
    label_probabilities,
    label_scores,
    label_thresholds,
    mean_column_roc_auc,
    score,
    teacher_gate,
    toxic_probability,
    with_holm,
)
from helpers.layers import (
    EVEN_LAYERS,
    FIRST_SIX,
    LAST_SIX,
    ODD_LAYERS,
    copy_layers,
    draw_layers,
    merge_layers,
)
from helpers.lora import add_adapters, count_parameters, has_its_base, load_adapter, save_adapter
from helpers.models import find_pretrained, load_model, load_tokenizer, lora_targets, pretrained_sha256
from helpers.runs import (
    PUBLISHED_RESULTS,
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
    resumes,
    seal,
    task_suffix,
    tells_errors,
    use_run_arguments,
    versions,
    write_file,
    write_json,
)
from helpers.targets import TeacherTargets, load_targets, save_targets
from helpers.training import Checkpoints, TrainingError, TrainingSettings, average_precision, train


@dataclass(frozen=True)
class Experiment:
    """One row of the comparison, by its differences from fine-tuning the pretrained model in full."""

    name: str
    title: str
    start: str = "pretrained"  # or 'teacher': the run's fine-tuned teacher; 'minilm': the control; 'baseline'
    layers: tuple | None = None  # layers to keep, counted from 1, or groups of layers to average; None: all
    redrawn: bool = False  # the layers' weights are drawn at random: what is the copy worth?
    distil: bool = False
    matched: tuple[int, ...] | None = None  # teacher layers whose [CLS] state is matched; None: the last one
    adapter: bool = False
    changes: tuple[tuple[str, object], ...] = ()  # the profile's settings that this experiment changes
    notebook: str = "02_layer_distillation"

    def profile(self, profile: Profile) -> Profile:
        """The run's profile with this experiment's own settings."""
        return replace(profile, **dict(self.changes))

    @property
    def needs_teacher(self) -> bool:
        return self.start == "teacher" or self.distil


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
        Experiment("minilm", "MiniLM's own 6 layers, in full", start="minilm", notebook="03_lora_fine_tuning"),
        Experiment(
            "minilm_lora", "MiniLM's own 6 layers, LoRA", start="minilm", adapter=True, notebook="03_lora_fine_tuning"
        ),
        Experiment("first_six", "First six layers, distilled", start="teacher", layers=FIRST_SIX, distil=True),
        Experiment("last_six", "Last six layers, distilled", start="teacher", layers=LAST_SIX, distil=True),
    )
}

# Named before any result was seen: only these are corrected by Holm's method and called planned.
COMPARISONS = {
    "odd − even": ("odd", "even"),
    "lora − odd": ("lora", "odd"),
    "lora − even": ("lora", "even"),
    "odd − odd_hard": ("odd", "odd_hard"),
    "odd − first_six": ("odd", "first_six"),  # these two for `base`, whose layers are a real encoder's
    "odd − last_six": ("odd", "last_six"),
}

# Profiles whose results stand beside the run that README.md shows: a real encoder's layers, and bert-base on a GPU.
BESIDE = ("base", "colab", "full")

# What the validation rows choose the best epoch by, and what a result is announced with.
BEST_BY = {"toxic": average_precision, "labels": mean_column_roc_auc}

# Published scores of all six labels, from Detoxify's README (github.com/unitaryai/detoxify). Both had the whole of
# train.csv to learn from: they say where the task's ceiling is, not what a model of a few thousand rows should reach.
OFFICIAL_TEST = "the full official test set"
LABELS_REFERENCES = (
    {"model": "Kaggle's leaderboard, the first", "mean_column_roc_auc": 0.9886, "measured_on": OFFICIAL_TEST},
    {"model": "Detoxify 'original', bert-base", "mean_column_roc_auc": 0.9864, "measured_on": OFFICIAL_TEST},
)


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
    """The experiment's training settings: each family has its own rate, batch size and number of epochs."""
    family = "lora" if experiment.adapter else "student" if experiment.layers else "teacher"
    profile = experiment.profile(profile)
    return TrainingSettings(
        epochs=profile.lora_epochs if experiment.adapter else profile.epochs,
        batch_size=profile.lora_batch_size if experiment.adapter else profile.batch_size,
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
    if experiment.redrawn:
        settings["redrawn"] = True
    if experiment.matched:
        settings["matched"] = list(experiment.matched)
    if profile.task != "toxic":  # said only where it differs: results from before there was a choice stay valid
        settings["task"] = profile.task
    return settings | {"training": fingerprinted(training_settings(experiment, seed, profile))}


def experiment_inputs(experiment: Experiment, seed: int, profile: Profile, data_fingerprint: str) -> dict[str, str]:
    """The fingerprints of what the experiment reads: the data, and its pretrained model or its teacher."""
    inputs = {"data": data_fingerprint}
    if experiment.needs_teacher:
        inputs["teacher"] = experiment_fingerprint(EXPERIMENTS["teacher"], seed, profile, data_fingerprint)
    if experiment.start not in ("teacher", "baseline"):
        inputs["pretrained"] = pretrained_sha256(_pretrained_name(experiment, profile))
    return inputs


def experiment_fingerprint(experiment: Experiment, seed: int, profile: Profile, data_fingerprint: str) -> str:
    """Changes when a setting or an input of the experiment does; versions, device and time play no part."""
    settings = experiment_settings(experiment, seed, profile)
    return fingerprint({"settings": settings, "inputs": experiment_inputs(experiment, seed, profile, data_fingerprint)})


def _pretrained_name(experiment: Experiment, profile: Profile) -> str:
    return profile.pretrained if experiment.start == "pretrained" else experiment.start


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
        ValueError: no such experiment, or a baseline, which knows `toxic` only, in a run with another task.
        FileNotFoundError: the data (of this model's tokeniser), or the teacher of this seed, is not there yet.
        TrainingError: the loss diverged, or the teacher is not worth distilling.
    """
    experiment = name if isinstance(name, Experiment) else find_experiment(name)
    if experiment.start == "baseline" and run.profile.task != "toxic":
        raise ValueError(f"{name} is a baseline for the label toxic; TASK={run.profile.task} has none")
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
    with only_writer(run) if state.is_main_process else nullcontext():
        if experiment.start != "baseline":
            _run_training(experiment, seed, run, data, made_from)
        elif state.is_main_process:
            _run_baseline(experiment, seed, run, data, made_from)
    state.wait_for_everyone()  # what comes next may read what the first process has just written
    return read_json(result_path(run.results_dir, experiment.name, seed))


def finished_result(experiment: Experiment, seed: int, run: Run, made_from: str, weights: bool = True) -> dict | None:
    """The experiment's result, if its JSON, predictions and `weights` are all there, whole, and of this fingerprint."""
    result = read_result(run.results_dir, experiment.name, seed)
    if result is None or result["fingerprint"] != made_from:
        return None
    if weights and experiment.start != "baseline" and not has_model(experiment, seed, run, made_from):
        return None
    return result


def has_model(experiment: Experiment, seed: int, run: Run, made_from: str) -> bool:
    """Whether the weights of this fingerprint are there; an adapter is none without its base."""
    directory = run.model_dir(experiment.name, seed)
    return is_sealed(directory, made_from) and (not experiment.adapter or has_its_base(directory))


def _run_baseline(experiment: Experiment, seed: int, run: Run, data: PreparedData, made_from: str) -> None:
    started = time.perf_counter()
    logits = {"majority": majority_logits, "tfidf": tfidf_logits}[experiment.name](data)
    # The majority baseline is the one model whose threshold is not searched: it never says 'toxic'.
    threshold = 1.0 if experiment.name == "majority" else None
    seconds = time.perf_counter() - started
    facts = {"costs": {"training_seconds": seconds, "prerequisite_seconds": 0.0}}
    _write_result(experiment, seed, run, data, made_from, logits, threshold, facts)


def _run_training(experiment: Experiment, seed: int, run: Run, data: PreparedData, made_from: str) -> None:
    """Trains on every process that accelerate started; the first one alone predicts, measures and writes."""
    state = this_process()
    model, prerequisite_seconds = start_model(experiment, seed, run)
    model.to(state.device)
    targets = None
    if experiment.distil:
        with state.main_process_first():
            targets, seconds = teacher_targets(seed, run, data, experiment.matched)
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
        best_by=BEST_BY[run.profile.task],
    )
    if not state.is_main_process:
        return
    save_model(experiment, seed, run, model, made_from)
    logits = {
        split: predict(model, data.splits[split], label=f"{experiment.name}: {split}").numpy() for split in run.scored
    }
    facts = _training_facts(experiment, seed, run, data, model, history, before, logits["validation"])
    facts["costs"]["prerequisite_seconds"] = prerequisite_seconds
    # the other experiments are variants with the same cost, and so are models with six logits
    if experiment.name in MAIN_EXPERIMENTS and run.profile.task == "toxic" and "test" in run.scored:
        onnx = run.model_dir(experiment.name, seed) / "onnx"
        facts["costs"]["deployment"] = measure_deployment(model, onnx, data, logits["test"])
    _write_result(experiment, seed, run, data, made_from, logits, None, facts)
    shutil.rmtree(run.checkpoint_dir(experiment.name, seed), ignore_errors=True)


def start_model(experiment: Experiment, seed: int, run: Run) -> tuple[torch.nn.Module, float]:
    """The model as it is before its training, and the seconds that making it took elsewhere (its teacher's training).

    A base that adapters will be trained on is saved first, as models/<name>_base-<seed>/.
    """
    prerequisite_seconds = 0.0
    if experiment.needs_teacher:
        teacher, teacher_result = load_teacher(seed, run)
        prerequisite_seconds = teacher_result["costs"]["training_seconds"]
    if experiment.start == "teacher":
        model = teacher
    else:
        model = load_model(find_pretrained(_pretrained_name(experiment, run.profile)), seed, run.profile.num_labels)
        positions = model.config.max_position_embeddings
        if run.profile.max_length > positions:
            raise ValueError(
                f"profile {run.profile.name}: max_length={run.profile.max_length} is not allowed; give at most "
                f"{positions}, the positions that {_pretrained_name(experiment, run.profile)} has"
            )
    if experiment.layers:
        merging = isinstance(experiment.layers[0], tuple)
        model = merge_layers(model, experiment.layers) if merging else copy_layers(model, experiment.layers)
    if experiment.redrawn:
        model = draw_layers(model, seed)
    if experiment.adapter:
        if this_process().is_main_process:
            with new_directory(run.model_dir(f"{experiment.name}_base", seed)) as directory:
                model.save_pretrained(directory)
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


def teacher_targets(
    seed: int, run: Run, data: PreparedData, layers: tuple[int, ...] | None = None
) -> tuple[TeacherTargets, float]:
    """The teacher's outputs on the training rows, and the seconds their making took; computed once a run and seed.

    `layers` are the teacher layers whose [CLS] states are kept; None: the last one.

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
    directory = run.targets_dir(seed, layers)
    made_from = fingerprint({"teacher": result["fingerprint"], "layers": layers})
    targets = load_targets(directory, made_from)
    if targets is None:
        with only_writer(run):
            save_targets(teacher, data.splits["train"], directory, made_from, layers)
        targets = load_targets(directory, made_from)
    return targets, read_json(directory / "time.json")["seconds"]


def save_model(experiment: Experiment, seed: int, run: Run, model: torch.nn.Module, made_from: str) -> None:
    """Saves the trained model, or its adapter, in safetensors with its fingerprint."""
    directory = run.model_dir(experiment.name, seed)
    if experiment.adapter:
        save_adapter(model, directory, run.model_dir(f"{experiment.name}_base", seed))
        seal(directory, made_from)
        return
    with new_directory(directory) as temporary:
        model.save_pretrained(temporary)
        seal(temporary, made_from)


def load_trained(name: str, seed: int, run: Run) -> torch.nn.Module:
    """A trained model of this run in eval mode, on the run's device; a LoRA model with its adapters on their own base.

    Raises:
        MissingStage: it is not there; the message says which notebook trains it.
    """
    directory = run.model_dir(name, seed)
    if not directory.is_dir():
        notebook = find_experiment(name).notebook
        raise MissingStage(f"run {run.name!r} has no model {name} with seed {seed}: run {notebook} first")
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
    """A result that lies in this folder, if it is whole and the predictions beside it are those it was made with."""
    result = read_json(result_path(directory, name, seed))
    if result and is_whole(predictions_path(directory, name, seed), result.get("predictions_sha256")):
        return result
    return None


def _training_facts(experiment, seed, run, data, model, history, before, after) -> dict:
    """What is known of a trained model besides its test scores."""
    total, trainable = count_parameters(model)
    best = history["epochs"][history["best_epoch"] - 1]
    facts = {
        "parameters": total,
        "trainable_parameters": trainable,
        "training_loss": best["training"]["hard"],  # cross-entropy, which every family has
        "training_loss_total": best["training"]["total"] if experiment.distil else None,
        "before_training": _before_training(data, before),
        "costs": {
            "training_seconds": history.pop("seconds"),
            "peak_memory_bytes": history.pop("peak_memory_bytes"),
            "bytes": model_bytes(experiment, seed, run),
            "latency": measure_latency(
                torch_call(plain_model(model)), latency_batches(data, model.config.pad_token_id)
            ),
        },
        "history": history,
    }
    if experiment.name == "teacher":
        facts["gate"] = teacher_gate(data.labels("validation"), _of_toxic(before), _of_toxic(after))
    return facts


def _of_toxic(logits: np.ndarray) -> np.ndarray:
    """The probabilities (rows,) of the label `toxic`, from two logits a row or from six."""
    return label_probabilities(logits)[:, 0] if logits.shape[1] == len(LABELS) else toxic_probability(logits)


def _before_training(data: PreparedData, logits: np.ndarray) -> dict[str, float]:
    """The validation score that the best epoch is chosen by, before the first step."""
    if logits.shape[1] == len(LABELS):
        return {"mean_column_roc_auc": mean_column_roc_auc(data.all_labels("validation"), logits)}
    scores = score(toxic_probability(logits), data.labels("validation"), 0.5)
    return {"average_precision": scores["average_precision"]}


def model_bytes(experiment: Experiment, seed: int, run: Run) -> dict[str, int]:
    """Bytes on disk: `total` to run the model, `to_ship` for one more task.

    An adapter on the pretrained model is sent alone, for everybody has its base; the copy of a teacher that was
    fine-tuned for the task is no such base, and goes along.
    """
    own = sum(path.stat().st_size for path in run.model_dir(experiment.name, seed).glob("*.safetensors"))
    base = run.model_dir(f"{experiment.name}_base", seed) if experiment.adapter else None
    below = sum(path.stat().st_size for path in base.glob("*.safetensors")) if base else 0
    return {"total": own + below, "to_ship": own + below if experiment.start == "teacher" else own}


def _toxic_scores(data: PreparedData, logits: dict[str, np.ndarray], threshold: float | None) -> dict:
    """What a result says of `toxic`, from the logits (rows, 2) of validation and test."""
    probabilities = {split: toxic_probability(values.astype(np.float32)) for split, values in logits.items()}
    labels = {split: data.labels(split) for split in probabilities}
    if threshold is None:
        threshold = best_threshold(probabilities["validation"], labels["validation"])
    scores = {split: score(probabilities[split], labels[split], threshold) for split in probabilities}
    return {"threshold": threshold} | scores


def _label_scores(data: PreparedData, logits: dict[str, np.ndarray]) -> dict:
    """What a result says of the six labels, from the logits (rows, 6) of validation and test."""
    probabilities = {split: label_probabilities(values.astype(np.float32)) for split, values in logits.items()}
    labels = {split: data.all_labels(split) for split in probabilities}
    chosen = label_thresholds(probabilities["validation"], labels["validation"])
    thresholds = [chosen[label]["threshold"] for label in LABELS]
    scores = {split: label_scores(probabilities[split], labels[split], thresholds) for split in probabilities}
    bounds = label_intervals(labels["test"], probabilities["test"])
    return {"thresholds": chosen} | scores | {"intervals": bounds}


def _predictions(data: PreparedData, split: str, logits: np.ndarray, profile: Profile) -> pd.DataFrame:
    """Ids, labels and logits of a split's rows; a logit is named after its label, or its class if there are two."""
    labels = {label: data.labels(split, label).astype("int8") for label in profile.labels}
    names = LABELS if profile.task == "labels" else ("clean", "toxic")
    columns = {f"logit_{name}": logits[:, k].astype("float32") for k, name in enumerate(names)}
    return pd.DataFrame({"row_id": data.splits[split]["row_id"][:], "split": split} | labels | columns)


def _write_result(experiment, seed, run, data, made_from, logits, threshold, facts) -> None:
    """Scores the predictions, writes them and then the JSON, which makes the experiment finished."""
    of_labels = run.profile.task == "labels"
    scores = _label_scores(data, logits) if of_labels else _toxic_scores(data, logits, threshold)
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
    result |= scores | facts
    frame = pd.concat(_predictions(data, split, values, run.profile) for split, values in logits.items())
    predictions = predictions_path(run.results_dir, experiment.name, seed)
    write_file(predictions, lambda temporary: frame.to_parquet(temporary, index=False))
    result["predictions_sha256"] = file_sha256(predictions)
    write_json(result_path(run.results_dir, experiment.name, seed), result)


@dataclass(frozen=True)
class Results:
    """The finished experiments of a run: their JSONs by (name, seed), and where their predictions lie."""

    by_name: dict[str, dict[int, dict]]
    directories: dict[tuple[str, int], Path]
    missing: list[tuple[str, int]]

    @property
    def source(self) -> str:
        """Where they come from, for a table's title: nothing for a run's own, else that they were published."""
        borrowed = [path for path in self.directories.values() if path.is_relative_to(PUBLISHED_RESULTS)]
        share = "partly " if len(borrowed) < len(self.directories) else ""
        return f", {share}from the results published with this project" if borrowed else ""

    def first_seed(self) -> dict[str, dict]:
        """The result of every trained model's first seed, by name."""
        found = {name: next(iter(by_seed.values())) for name, by_seed in self.by_name.items()}
        return {name: result for name, result in found.items() if "history" in result}

    def probabilities(self, name: str, split: str = "test") -> np.ndarray:
        """Probabilities of `toxic`, shape (seeds, rows); rows in the order of their ids, alike for every model."""
        return np.stack([toxic_probability(self._frame(name, seed, split)[0]) for seed in self.by_name[name]])

    def paired(self, a: str, b: str) -> tuple[np.ndarray, np.ndarray]:
        """The test probabilities of two models on the seeds that both have, each (seeds, rows)."""
        seeds = self.common_seeds(a, b)
        return tuple(
            np.stack([toxic_probability(self._frame(name, seed, "test")[0]) for seed in seeds]) for name in (a, b)
        )

    def common_seeds(self, *names: str) -> list[int]:
        """The seeds that all of these models have: a student of seed 2 belongs to the teacher of seed 2."""
        first, *others = (self.by_name.get(name, {}) for name in names)
        return [seed for seed in first if all(seed in other for other in others)]

    def common_seed(self, *names: str) -> int:
        """The first seed that all of these models have, for what is shown of one seed.

        Raises:
            ValueError: there is none.
        """
        common = self.common_seeds(*names)
        if not common:
            raise ValueError(f"there is no seed with which all of {', '.join(names)} have been trained")
        return common[0]

    def intervals(self, name: str) -> dict[str, list[float]]:
        """95 % intervals over test rows of F1 and average precision, of the model's mean over its seeds."""
        thresholds = [result["threshold"] for result in self.by_name[name].values()]
        return intervals(self.labels(), self.probabilities(name), thresholds)

    def history(self, name: str, split: str, score: str = "hard") -> np.ndarray:
        """A model's cross-entropy ("hard") in `training`, or any score on `validation`, by epoch: (seeds, epochs)."""
        by_seed = self.by_name[name].values()
        return np.array([[epoch[split][score] for epoch in result["history"]["epochs"]] for result in by_seed])

    def logits(self, name: str, seed: int, split: str = "validation") -> np.ndarray:
        """The two logits of a model's rows, shape (rows, 2), in the order of their ids."""
        return self._frame(name, seed, split)[0]

    def labels(self, split: str = "test") -> np.ndarray:
        """The labels of the same rows in the same order, shape (rows,)."""
        name = next(iter(self.by_name))
        return self._frame(name, next(iter(self.by_name[name])), split)[1]

    def _frame(self, name: str, seed: int, split: str) -> tuple[np.ndarray, np.ndarray]:
        frame = pd.read_parquet(predictions_path(self.directories[name, seed], name, seed))
        frame = frame[frame["split"] == split].sort_values("row_id")
        return frame[["logit_clean", "logit_toxic"]].to_numpy(), frame["toxic"].to_numpy().astype(int)


def load_results(run: Run, task: str = "toxic", extra: Sequence[Experiment] = ()) -> Results:
    """The results of the run's profile, from its own folder, else from the published ones with the same fingerprint.

    `extra` are experiments that the profile does not list.

    Raises:
        ValueError: the run was made with another task than the caller can read, or the profile lists an experiment
            that nobody knows.
        MissingStage: a main experiment has no result at all; the message says which notebook makes it.
    """
    if run.profile.task != task:
        raise ValueError(f"run {run.name!r} was made with TASK={run.profile.task}; this needs one with TASK={task}")
    by_name, directories, missing = {}, {}, []
    for experiment in dict.fromkeys([*map(find_experiment, run.profile.experiments), *extra]):
        name = experiment.name
        for seed in experiment_seeds(experiment, run.profile.seeds):
            found = find_result(run, experiment, seed)
            if found is None:
                missing.append((name, seed))
                continue
            result, directories[name, seed] = found
            by_name.setdefault(name, {})[seed] = result
    absent = [name for name in run.profile.experiments if name not in by_name]
    if absent:
        first = ", ".join(sorted({EXPERIMENTS[name].notebook for name in absent}))
        if task != "toxic":
            first = f"`TASK={task} python -m helpers.experiments`"
        raise MissingStage(
            f"run {run.name!r} has no result of {', '.join(absent)}: run {first} first (same PROFILE and RUN)"
        )
    hashes = {result["inputs"]["data"] for seeds in by_name.values() for result in seeds.values()}
    if len(hashes) > 1:
        raise ValueError(
            f"the results of run {run.name!r} come from {len(hashes)} different data sets; run 01 to 03 again"
        )
    return Results(by_name, directories, missing)


def is_beside(run: Run) -> bool:
    """Whether the run is published beside the one that README.md shows, in a folder of its own below results/."""
    return run.profile.task != "toxic" or run.profile.name in BESIDE


def published_part(run: Run) -> Path:
    """Where results of such a run are published, below results/: what stands beside, and grids, apart."""
    parts = ["labels"] if run.profile.task == "labels" else []
    return Path(*parts, *([run.profile.name] if run.profile.name in BESIDE else []), run.part)


def published_dir(run: Run) -> Path:
    """The folder of the published results that a run may read."""
    return PUBLISHED_RESULTS / published_part(run)


def find_result(run: Run, experiment: Experiment, seed: int) -> tuple[dict, Path] | None:
    """A result and its folder. Without the run's data settings and kind of data decide: there is no comment to hash."""
    data, name = read_json(run.data_dir / "data.json"), experiment.name
    for directory in (run.results_dir, published_dir(run)):
        result = read_result(directory, name, seed)
        if result is None or result["data"] != run.data_label:
            continue
        data_hash = data["fingerprint"] if data else result["inputs"]["data"]
        if result["fingerprint"] == experiment_fingerprint(experiment, seed, run.profile, data_hash):
            return result, directory
    return None


# --- the comparison --------------------------------------------------------------------------------------------------


def comparison_table(results: Results) -> pd.DataFrame:
    """One row an experiment: the mean over its seeds, and `_sd` columns where there are several.

    Times are seconds, memory and size bytes, latency milliseconds for one comment; scores are the test set's unless
    their name begins with `validation_`. Latency is that of the model's depth (`latency_by_depth`).
    """
    rows, latencies = [], latency_by_depth(results)
    for name, by_seed in results.by_name.items():
        numbers = pd.DataFrame([_comparison_numbers(result, latencies) for result in by_seed.values()])
        layers = model_layers(next(iter(by_seed.values())))
        text = ",".join("+".join(map(str, layer)) if isinstance(layer, list) else str(layer) for layer in layers)
        row = {"experiment": name, "seeds": len(by_seed), "layers": text}
        row |= numbers.mean().to_dict()
        if len(by_seed) > 1:
            row |= numbers.std(ddof=1).drop("latency_ms").add_suffix("_sd").to_dict()
        rows.append(row)
    table = pd.DataFrame(rows)
    whole = ["parameters", "trainable_parameters", "peak_memory_bytes", "bytes", "bytes_to_ship", "epochs"]
    return table.astype({column: "Int64" for column in whole if table[column].dropna().mod(1).eq(0).all()})


def _comparison_numbers(result: dict, latencies: dict[int, float]) -> dict[str, float | None]:
    costs = result["costs"]
    numbers = {
        "parameters": result.get("parameters"),
        "trainable_parameters": result.get("trainable_parameters"),
        "training_loss": result.get("training_loss"),
        "validation_average_precision": result["validation"]["average_precision"],
    }
    numbers |= {metric: result["test"][metric] for metric in METRICS}
    numbers |= {
        "training_seconds": costs["training_seconds"],
        "prerequisite_seconds": costs["prerequisite_seconds"],
        "peak_memory_bytes": costs.get("peak_memory_bytes"),
        "latency_ms": latencies.get(len(model_layers(result))),
        "bytes": costs["bytes"]["total"] if "bytes" in costs else None,
        "bytes_to_ship": costs["bytes"]["to_ship"] if "bytes" in costs else None,
        "epochs": len(result["history"]["epochs"]) if "history" in result else None,
        "best_epoch": result["history"]["best_epoch"] if "history" in result else None,
        "training_loss_total": result.get("training_loss_total"),
        "total_seconds": costs["training_seconds"] + costs["prerequisite_seconds"],
    }
    numbers |= {f"validation_{metric}": result["validation"][metric] for metric in METRICS}
    return {name: float("nan") if value is None else float(value) for name, value in numbers.items()}


def model_layers(result: dict) -> list:
    """The teacher layers a model holds, for instance [1, 3, 5, 7, 9, 11]; all of its own where none were chosen."""
    if result["settings"]["start"] == "baseline":
        return []
    count = 6 if result["settings"]["start"] == "minilm" else 12
    return result["settings"]["layers"] or list(range(1, count + 1))


def latency_by_depth(results: Results) -> dict[int, float]:
    """Milliseconds for one comment by a model's number of layers: the median over all models and seeds as deep.

    They compute the same, whichever layers they were given, and adapters are merged before they are timed: what their
    measurements differ by is the machine's other work.
    """
    measured: dict[int, list[float]] = {}
    for result in (result for by_seed in results.by_name.values() for result in by_seed.values()):
        if "latency" in result["costs"]:
            median = result["costs"]["latency"]["batch_1"]["p50_ms"]
            measured.setdefault(len(model_layers(result)), []).append(median)
    return {depth: float(np.median(times)) for depth, times in measured.items()}


def deployment_table(results: Results) -> pd.DataFrame:
    """A row a model and form (PyTorch, ONNX, int8): latency in milliseconds, comments a second, MB.

    Times are medians over the models and seeds as deep, as in `latency_by_depth`; the rest is the first seed's.
    `change` is the export's test average precision minus PyTorch's, with its 95 % interval in `low` and `high`.
    Measured on the CPU; empty if it was not measured.
    """
    rows, depths, is_first = [], [], []
    measured = ((name, seed, result) for name, by_seed in results.by_name.items() for seed, result in by_seed.items())
    for name, seed, result in measured:
        for form, facts in result["costs"].get("deployment", {}).items():
            depths.append(len(model_layers(result)))
            is_first.append(seed == next(iter(results.by_name[name])))
            row = {"experiment": name, "form": form, "MB": facts["bytes"] / 1e6}
            for size in ("batch_1", "batch_32"):
                row |= {f"{size} {key}": facts[size][key] for key in ("p50_ms", "p95_ms")}
            row["comments a second"] = facts["batch_32"]["comments_a_second"]
            change = facts.get("average_precision", {})
            rows.append(
                row | {"change": change.get("difference"), "low": change.get("low"), "high": change.get("high")}
            )
    table = pd.DataFrame(rows)
    if rows:
        times = [column for column in table if column.startswith("batch") or column == "comments a second"]
        table[times] = table.groupby([pd.Series(depths), "form"])[times].transform("median")
        table = table[is_first].reset_index(drop=True)
    return table


def write_comparison(results: Results, run: Run, directory: Path | None = None) -> pd.DataFrame:
    """Writes the table to comparison.csv in `directory` (default: runs/<run>/results/) and returns it."""
    table = comparison_table(results)
    path = (directory or run.results_dir) / "comparison.csv"
    write_file(path, lambda temporary: table.to_csv(temporary, index=False))
    return table


def compare_pairs(results: Results, pairs: Iterable[tuple[str, str]]) -> dict[str, dict]:
    """`compare` of each pair on the test set, by title 'a − b'; a pair without a seed in common is left out."""
    return {
        f"{a} − {b}": compare(results.labels(), *results.paired(a, b)) for a, b in pairs if results.common_seeds(a, b)
    }


def planned_comparisons(results: Results) -> dict[str, dict]:
    """The comparisons that were named beforehand, as far as the run has both models, with Holm's correction."""
    return with_holm(compare_pairs(results, COMPARISONS.values()))


# --- six labels ------------------------------------------------------------------------------------------------------


def labels_run(run: Run) -> Run:
    """The run of all six labels that stands beside a run of `toxic`: same profile and comments, `-labels` to its name.

    It is not made here: `TASK=labels python -m helpers.experiments` makes it.
    """
    profile = load_profile(run.profile.name, "labels")
    name = f"{run.name}{task_suffix(profile)}"
    return replace(run, name=name, directory=run.directory.with_name(name), profile=profile, seeds=profile.seeds)


def beside_run(run: Run, profile_name: str) -> Run:
    """The run of another profile on the same comments, which its own command makes: one of BESIDE."""
    name = f"{profile_name}-{run.data_source}"
    profile = load_profile(profile_name, "toxic")
    return replace(run, name=name, directory=run.directory.with_name(name), profile=profile, seeds=profile.seeds)


def beside_results(run: Run, profile_name: str) -> Results | None:
    """The results of that run; None where it has not been run."""
    try:
        return load_results(beside_run(run, profile_name))
    except MissingStage:
        return None


def real_verdicts(run: Run) -> dict[str, dict] | None:
    """The comparisons of PROFILE=base on the same comments, as far as it has been run; None if it has not."""
    results = beside_results(run, "base")
    return planned_comparisons(results) if results else None


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
@resumes
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
        metric = BEST_BY[run.profile.task].__name__
        told = f"test {metric.replace('_', ' ')} {result['test'][metric]:.3f}"
        state.print(f"{name}, seed {seed}: {told}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
