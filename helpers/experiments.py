"""The rows of the comparison as data, and the one function that makes any of them: run_experiment.

An experiment says what it starts from, which layers it keeps, whether it distils and whether it trains adapters;
everything else comes from the run's profile. Its result is one JSON, with its predictions beside it.

Long runs need no notebook, and on several devices accelerate starts a process on each:

    python -m helpers.experiments odd even lora --seeds 1
    accelerate launch -m helpers.experiments odd even lora --seeds 1
"""

from __future__ import annotations

import argparse
import shutil
import sys
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from helpers.batches import TeacherTargets, device_name, load_targets, predict, save_targets, this_process
from helpers.config import Profile, look_up
from helpers.data import PreparedData, load_data, majority_logits, prepare_data, tfidf_logits
from helpers.evaluation import teacher_gate, toxic_probability
from helpers.layers import EVEN_LAYERS, FIRST_SIX, LAST_SIX, ODD_LAYERS, copy_layers, merge_layers
from helpers.lora import add_adapters, count_parameters
from helpers.models import find_pretrained, load_model, load_tokenizer, lora_targets, pretrained_sha256
from helpers.runs import (
    Run,
    file_sha256,
    fingerprint,
    is_sealed,
    only_writer,
    open_run,
    parse_run,
    tells_errors,
    versions,
    write_json,
)
from helpers.saved import (
    MissingStage,
    load_trained,
    model_card,
    predictions_path,
    read_result,
    result_path,
    save_model,
    write_predictions,
)
from helpers.training import DISTILLATION, Checkpoints, TrainingError, TrainingSettings, average_precision, train


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

    def profile(self, profile: Profile) -> Profile:
        """The run's profile with this experiment's own settings."""
        return replace(profile, **dict(self.changes))

    @property
    def needs_teacher(self) -> bool:
        return self.start == "teacher" or self.distil


ROWS = (
    Experiment("majority", "Always 'clean'", "baseline"),
    Experiment("tfidf", "TF-IDF", "baseline"),
    Experiment("teacher", "Teacher"),
    Experiment("odd", "Odd student", "teacher", ODD_LAYERS, distil=True),
    Experiment("even", "Even student", "teacher", EVEN_LAYERS, distil=True),
    Experiment("lora", "LoRA", adapter=True),
    Experiment("lora_6", "LoRA on odd copy", "teacher", ODD_LAYERS, adapter=True),
    Experiment("odd_hard", "Odd, labels only", "teacher", ODD_LAYERS),
    Experiment("even_hard", "Even, labels only", "teacher", EVEN_LAYERS),
    # Is it the half, or the second training? And which of the layers 1 and 12 makes odd and even differ?
    Experiment("twelve", "Twelve, distilled", "teacher", tuple(range(1, 13)), distil=True),
    Experiment("odd_without_1", "Odd without layer 1", "teacher", (2, 3, 5, 7, 9, 11), distil=True),
    Experiment("even_with_1", "Even with layer 1", "teacher", (1, 4, 6, 8, 10, 12), distil=True),
    Experiment("odd_with_12", "Odd with layer 12", "teacher", (1, 3, 5, 7, 9, 12), distil=True),
    Experiment("first_six", "First six layers", "teacher", FIRST_SIX, distil=True),
    Experiment("last_six", "Last six layers", "teacher", LAST_SIX, distil=True),
    Experiment("hybrid", "LoRA, distilled", "teacher", ODD_LAYERS, distil=True, adapter=True),
)
EXPERIMENTS = {experiment.name: experiment for experiment in ROWS}
BASELINES = {"majority": majority_logits, "tfidf": tfidf_logits}

# A result's fingerprint covers these settings. One that is added later counts only where it is not at its default, so
# that it leaves every finished result as it was. In JSON two of them keep the names that the first results gave them.
FINGERPRINTED = ("epochs", "batch_size", "learning_rate", "weight_decay", "warmup_ratio", "max_grad_norm", "seed")
FINGERPRINTED += ("temperature", "alpha", "beta")
CODE = ("layers.py", "losses.py", "lora.py", "training.py")  # a change of it is told, and voids no result
NOT_FINGERPRINTED = ("micro_batch_size",)  # how a batch is computed, not what is
NAMES_IN_JSON = {"warmup_ratio": "warmup_share", "max_grad_norm": "max_gradient_norm"}


def find_experiment(name: str) -> Experiment:
    """The experiment of that name, or a ValueError with the nearest one."""
    return look_up("experiment", name, EXPERIMENTS)


def experiment_seeds(experiment: Experiment, seeds: tuple[int, ...]) -> tuple[int, ...]:
    """Those of the seeds an experiment is run with: one only for a baseline, which draws nothing at random."""
    return seeds[:1] if experiment.start == "baseline" else seeds


def training_settings(experiment: Experiment, seed: int, profile: Profile) -> TrainingSettings:
    """The experiment's training settings: each family has its own rate, and nothing else of its own."""
    family = "lora" if experiment.adapter else "student" if experiment.layers else "teacher"
    profile = experiment.profile(profile)
    names = ["epochs", "batch_size", "weight_decay", "warmup_ratio", "max_grad_norm", "micro_batch_size"]
    names += DISTILLATION if experiment.distil else ()
    rate = getattr(profile, f"{family}_learning_rate")
    return TrainingSettings(seed=seed, learning_rate=rate, **profile.settings(*names))


def fingerprinted(settings: TrainingSettings) -> dict:
    """The training settings that a result depends on, by their names in JSON."""
    values = {}
    for field in fields(settings):
        value = getattr(settings, field.name)
        counts = field.name not in NOT_FINGERPRINTED and value != field.default
        if counts or field.name in FINGERPRINTED:
            values[NAMES_IN_JSON.get(field.name, field.name)] = value
    return values


def experiment_settings(experiment: Experiment, seed: int, profile: Profile) -> dict:
    """All that the experiment depends on besides its inputs, as JSON values."""
    if experiment.start == "baseline":
        return {"start": "baseline", "name": experiment.name}
    settings = {"start": experiment.start, "layers": list(experiment.layers) if experiment.layers else None}
    settings["training"] = fingerprinted(training_settings(experiment, seed, profile))
    if experiment.adapter:
        changed = experiment.profile(profile)
        later = ["lora_targets"] if changed.lora_targets != "attention" else []  # added when results were there
        settings["adapter"] = changed.settings("lora_rank", "lora_alpha", "lora_dropout", *later)
    return settings


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


@dataclass(frozen=True)
class Training:
    """One experiment with one seed, on the comments of a run."""

    experiment: Experiment
    seed: int
    run: Run
    data: PreparedData

    @property
    def made_from(self) -> str:
        return experiment_fingerprint(self.experiment, self.seed, self.run.profile, self.data.fingerprint)

    @property
    def result_key(self) -> tuple:
        """What names its result and its predictions: folder, name, seed."""
        return self.run.results_dir, self.experiment.name, self.seed


def prepare(run: Run) -> PreparedData:
    """The run's comments, tokenised for its pretrained model; read, checked and split where that is not done yet."""
    pretrained = find_pretrained(run.profile.pretrained)
    return prepare_data(run, load_tokenizer(pretrained), pretrained.sha256)


def run_experiment(name: str | Experiment, seed: int, run: Run) -> dict:
    """Trains and scores one experiment, unless that is done already; returns its result.

    Leaves models/<name>-<seed>/, results/<name>-<seed>.json and results/predictions/<name>-<seed>.parquet in the run.
    An experiment that stands in no list is given itself. Raises FileNotFoundError if the data, or the teacher of this
    seed, is not there yet, and TrainingError if the loss diverged or the teacher is not worth distilling.
    """
    experiment = name if isinstance(name, Experiment) else find_experiment(name)
    training, state = Training(experiment, seed, run, load_data(run)), this_process()
    state.wait_for_everyone()
    if done := finished_result(training):
        tell_changed_code(training, done)
        return done
    with only_writer(run, f"{experiment.name}-{seed}") if state.is_main_process else nullcontext():
        if experiment.start != "baseline":
            train_and_score(training)
        elif state.is_main_process:
            write_predictions(*training.result_key, training.data, BASELINES[experiment.name](training.data))
            write_result(training, {})
    state.wait_for_everyone()  # what comes next may read what the first process has just written
    return read_result(*training.result_key)


def finished_result(training: Training) -> dict | None:
    """Its result, if JSON, predictions and the model, where it is kept, are all there, whole, of its fingerprint."""
    result, experiment = read_result(*training.result_key), training.experiment
    if result is None or result["fingerprint"] != training.made_from:
        return None
    directory = training.run.model_dir(experiment.name, training.seed)
    return result if not keeps_weights(training) or is_sealed(directory, training.made_from) else None


def keeps_weights(training: Training) -> bool:
    """Whether the model stays on disk: a teacher, which students need, and outside the grids the first seed's."""
    experiment, run = training.experiment, training.run
    is_first = training.seed in (run.profile.seeds[0], run.seeds[0]) and not run.part  # which notebooks show
    return experiment.name == "teacher" or (is_first and experiment.start != "baseline")


def code_hashes() -> dict[str, str]:
    """What stands for the code that a training depends on: the first digits of its files' SHA-256."""
    return {name: file_sha256(Path(__file__).with_name(name))[:8] for name in CODE}


def tell_changed_code(training: Training, result: dict) -> None:
    """Says which files have changed since the result was made, which is used all the same, and how to train again."""
    before = result.get("code", {})
    if changed := [name for name, sha256 in code_hashes().items() if before.get(name, sha256) != sha256]:
        path = training.run.show_path(result_path(*training.result_key))
        which = f"{training.experiment.name}, seed {training.seed}"
        print(f"{which} was made before {', '.join(changed)} changed; to train it again, remove {path}", flush=True)


def train_and_score(training: Training) -> None:
    """Trains on every process that accelerate started; the first one alone predicts and writes."""
    experiment, seed, run, splits = training.experiment, training.seed, training.run, training.data.splits
    model, targets = load_start(training)
    before, is_first = None, this_process().is_main_process
    if is_first:
        before = predict(model, splits["validation"], label=f"{experiment.name}: before training").numpy()
    history = train(
        model,
        splits,
        training_settings(experiment, seed, run.profile),
        Checkpoints(run.checkpoint_dir(experiment.name, seed), training.made_from),
        targets,
        label=f"{experiment.name}, seed {seed}",
    )
    if not is_first:
        return
    logits = {split: predict(model, splits[split], label=f"{experiment.name}: {split}").numpy() for split in run.scored}
    scores = write_predictions(*training.result_key, training.data, logits)
    model.config.threshold = scores["threshold"]
    rows = {split: len(rows) for split, rows in splits.items()}
    card = model_card(experiment.title, run.data_label, rows, run.profile.max_length, scores)
    save_model(model, run.model_dir(experiment.name, seed), run.profile, card, training.made_from)
    facts, labels = describe_model(training, model, history), training.data.labels("validation")
    facts["before_training"] = {"average_precision": average_precision(labels, before)}
    if experiment.name == "teacher":
        facts["gate"] = teacher_gate(labels, toxic_probability(before), toxic_probability(logits["validation"]))
    write_result(training, facts)
    if not keeps_weights(training):
        shutil.rmtree(run.model_dir(experiment.name, seed))
    shutil.rmtree(run.checkpoint_dir(experiment.name, seed), ignore_errors=True)


def load_start(training: Training) -> tuple[torch.nn.Module, TeacherTargets | None]:
    """The model before training, and its teacher's outputs if it is distilled."""
    state, teacher, targets = this_process(), None, None
    if training.experiment.needs_teacher:
        teacher, result = load_teacher(training.seed, training.run, training.data)
    if training.experiment.distil:
        with state.main_process_first():
            targets = teacher_targets(training, teacher, result)
    return start_model(training.experiment, training.seed, training.run.profile, teacher).to(state.device), targets


def start_model(
    experiment: Experiment, seed: int, profile: Profile, teacher: torch.nn.Module | None = None
) -> torch.nn.Module:
    """The model as it is before its training; `teacher` is needed by an experiment that starts from it."""
    profile = experiment.profile(profile)
    model = teacher if experiment.start == "teacher" else load_model(find_pretrained(profile.pretrained), seed)
    if experiment.layers:
        merging = isinstance(experiment.layers[0], tuple)
        model = merge_layers(model, experiment.layers) if merging else copy_layers(model, experiment.layers)
    if experiment.adapter:
        settings = {"rank": profile.lora_rank, "alpha": profile.lora_alpha, "dropout": profile.lora_dropout}
        model = add_adapters(model, **settings, seed=seed, targets=lora_targets(model, profile.lora_targets))
    return model


def load_teacher(seed: int, run: Run, data: PreparedData | None = None) -> tuple[torch.nn.Module, dict]:
    """The run's fine-tuned teacher of that seed, frozen and in eval mode, and its result. MissingStage without one."""
    result = finished_result(Training(EXPERIMENTS["teacher"], seed, run, data or load_data(run)))
    if result is None:
        raise MissingStage(
            f"run {run.name!r} has no teacher with seed {seed} yet: run 02_layer_distillation first (same PROFILE and "
            f"RUN), or `python -m helpers.experiments teacher --seeds {seed}`"
        )
    return load_trained("teacher", seed, run).requires_grad_(False), result


def teacher_targets(training: Training, teacher: torch.nn.Module, result: dict) -> TeacherTargets:
    """The teacher's outputs on the training rows, computed once. TrainingError if it did not pass the gate."""
    directory, gate = training.run.targets_dir(training.seed), result["gate"]
    if not gate["passed"]:
        raise TrainingError(
            f"the teacher of seed {training.seed} has a validation average precision of {gate['average_precision']:.3f}"
            f" (before training {gate['before']:.3f}, needed {gate['needed']:.3f} and a clear gain): it has not "
            "learned, so distilling it is refused. Train it longer, on more rows or at another rate"
        )
    made_from = fingerprint({"teacher": result["fingerprint"]})
    if not is_sealed(directory, made_from):
        with only_writer(training.run, f"targets-{training.seed}"):
            save_targets(teacher, training.data.splits["train"], directory, made_from)
    return load_targets(directory)


def describe_model(training: Training, model: torch.nn.Module, history: dict) -> dict:
    """What a result says about a trained and saved model besides its scores.

    Bytes on disk are `total` to run the model and `to_ship` for one more task: an adapter on the pretrained model is
    sent alone, for everybody has its base; the copy of a teacher that was fine-tuned for the task goes along.
    """
    experiment, run = training.experiment, training.run
    total, trainable = count_parameters(model)
    losses = history["epochs"][history["best_epoch"] - 1]["training"]
    paths = run.model_dir(experiment.name, training.seed).glob("*.safetensors")
    sizes = {path.name: path.stat().st_size for path in paths}
    shipped = ["adapter_model.safetensors"] if experiment.adapter and experiment.start != "teacher" else sizes
    facts = {
        "parameters": total,
        "trainable_parameters": trainable,
        "training_loss": losses["hard"],  # cross-entropy, which every family has
        "costs": {
            "training_seconds": history.pop("seconds"),
            "bytes": {"total": sum(sizes.values()), "to_ship": sum(sizes[name] for name in shipped)},
        },
        "history": history,
    }
    if experiment.name == "teacher" or experiment.needs_teacher:  # a student is held to its own seed's teacher
        name = "weights_sha256" if experiment.name == "teacher" else "teacher_sha256"
        facts[name] = file_sha256(run.model_dir("teacher", training.seed) / "model.safetensors")
    return facts


def write_result(training: Training, facts: dict) -> None:
    """Writes the result, which makes the experiment finished; its predictions have been written."""
    experiment, seed, profile = training.experiment, training.seed, training.run.profile
    result = {
        "experiment": experiment.name,
        "seed": seed,
        "profile": profile.name,
        "data": training.run.data_label,
        "fingerprint": training.made_from,
        "settings": experiment_settings(experiment, seed, profile),
        "inputs": experiment_inputs(experiment, seed, profile, training.data.fingerprint),
        "rows": {split: len(rows) for split, rows in training.data.splits.items()},
        "versions": versions(),
        "code": code_hashes(),
        "device": device_name(),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "predictions_sha256": file_sha256(predictions_path(*training.result_key)),
    }
    write_json(result_path(*training.result_key), result | facts)


def in_order(names: list[str]) -> list[str]:
    """The experiments asked for, each after the teacher that it needs, which is added where it is missing."""
    if any(find_experiment(name).needs_teacher for name in names):
        names = ["teacher", *names]
    return [name for name in EXPERIMENTS if name in names]


@tells_errors
def main(arguments: list[str] | None = None) -> int:
    """Runs the stages of the notebooks 01 to 03 for the experiments asked for; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helpers.experiments", description="Runs experiments of a run.")
    parser.add_argument("names", nargs="*", help="which experiments (default: the profile's)")
    options = parse_run(parser, arguments)
    state = this_process()
    with state.main_process_first():
        run = open_run()
        names = in_order(options.names or list(run.profile.experiments))
        prepare(run)
    baselines = [name for name in names if EXPERIMENTS[name].start == "baseline"]
    trained = [(name, seed) for seed in run.seeds for name in names if name not in baselines]
    for name, seed in [*((name, run.profile.seeds[0]) for name in baselines), *trained]:
        average = run_experiment(name, seed, run)["test"]["average_precision"]
        state.print(f"{name}, seed {seed}: test average precision {average:.3f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
