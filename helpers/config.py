"""The run profiles: every setting of a run in one frozen dataclass, validated when it is made.

A profile says how much data, which pretrained model and how long to train. The notebooks and the command
line only ever pick one by name (`PROFILE=base`); `auto` means `colab` where there is a GPU and `quick` where not.
"""

from __future__ import annotations

import difflib
import math
import os
from dataclasses import asdict, dataclass

LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
MAIN_EXPERIMENTS = ("majority", "tfidf", "teacher", "odd", "even", "lora", "lora_6")
HARD_LABEL_EXPERIMENTS = ("odd_hard", "even_hard")
DATA_SOURCES = ("error", "sample", "hub", "separable")  # where a profile's comments come from without Kaggle's files


@dataclass(frozen=True)
class Profile:
    """All settings of a run. Row counts are comments (None: all of them), rates are AdamW's peak learning rates.

    Raises:
        ValueError: a setting is outside what is allowed; the message names the field, the value and the range.
    """

    name: str
    pretrained: str
    train_rows: int | None
    validation_rows: int | float  # a float is a share of train.csv
    test_rows: int | None
    max_length: int
    epochs: int
    batch_size: int
    seeds: tuple[int, ...]
    experiments: tuple[str, ...]
    expected_time: str
    data_without_files: str = "error"  # when no Kaggle files are found: "sample", "hub", "separable" or "error"
    teacher_learning_rate: float = 5e-5
    student_learning_rate: float = 1e-4
    lora_learning_rate: float = 1e-3
    temperature: float = 2.0
    alpha: float = 0.5  # weight of the soft targets against the labels
    beta: float = 0.1  # weight of the cosine between the [CLS] states
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.1
    lora_targets: str = "attention"  # query and value, or "all_linear"
    weight_decay: float = 0.01
    warmup_ratio: float = 0.1
    max_grad_norm: float = 1.0
    micro_batch_size: int | None = None  # comments per forward pass (None: the whole batch), to save memory
    split_seed: int = 1

    def __post_init__(self) -> None:
        for name in ("name", "pretrained", "expected_time"):
            self._check(name, isinstance(getattr(self, name), str) and getattr(self, name), "a text")
        names = self.experiments
        listed = isinstance(names, tuple) and names and all(isinstance(name, str) for name in names)
        self._check("experiments", listed and len(set(names)) == len(names), "a tuple of names, each once")
        self._check("data_without_files", self.data_without_files in DATA_SOURCES, f"one of {', '.join(DATA_SOURCES)}")
        for name in ("train_rows", "test_rows", "micro_batch_size"):
            value = getattr(self, name)
            self._check(name, value is None or _whole(value, 1), "None (all of them) or a whole number from 1")
        rows = self.validation_rows
        share = isinstance(rows, float) and 0 < rows < 1
        self._check("validation_rows", share or _whole(rows, 1), "a whole number from 1, or a share between 0 and 1")
        for name in ("epochs", "batch_size", "lora_rank", "lora_alpha"):
            self._check(name, _whole(getattr(self, name), 1), "a whole number from 1")
        self._check("max_length", _whole(self.max_length, 4) and self.max_length <= 512, "a whole number from 4 to 512")
        for name in (
            "teacher_learning_rate",
            "student_learning_rate",
            "lora_learning_rate",
            "temperature",
            "max_grad_norm",
        ):
            self._check(name, _number(getattr(self, name)) and getattr(self, name) > 0, "a number above 0")
        for name in ("beta", "weight_decay"):
            self._check(name, _number(getattr(self, name)) and getattr(self, name) >= 0, "a number from 0")
        self._check("lora_targets", self.lora_targets in ("attention", "all_linear"), "'attention' or 'all_linear'")
        self._check("alpha", _number(self.alpha) and 0 <= self.alpha <= 1, "a number from 0 to 1")
        for name in ("lora_dropout", "warmup_ratio"):
            self._check(
                name, _number(getattr(self, name)) and 0 <= getattr(self, name) < 1, "a number from 0 to below 1"
            )
        whole_seeds = isinstance(self.seeds, tuple) and self.seeds and all(_whole(seed, 0) for seed in self.seeds)
        self._check("seeds", whole_seeds, "a tuple of one or more whole numbers from 0")
        self._check("split_seed", _whole(self.split_seed, 0), "a whole number from 0")
        self._check("seeds", len(set(self.seeds)) == len(self.seeds), "seeds that differ")

    def _check(self, field: str, allowed: bool, what: str) -> None:
        if not allowed:
            raise ValueError(f"profile {self.name}: {field}={getattr(self, field)!r} is not allowed; give {what}")

    def settings(self, *names: str) -> dict:
        """The named settings as a dict, for a stage's fingerprint."""
        values = asdict(self)
        return {name: values[name] for name in names}


def _whole(value: object, smallest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= smallest


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="quick",
            pretrained="minilm-stacked",
            train_rows=800,
            validation_rows=300,
            test_rows=600,
            max_length=64,
            epochs=4,
            batch_size=32,
            seeds=(1,),
            experiments=MAIN_EXPERIMENTS,
            expected_time="15 minutes on 2 CPU cores",
            data_without_files="sample",
            teacher_learning_rate=1e-4,  # in so few steps 5e-5 leaves the teacher hardly above TF-IDF
            student_learning_rate=2e-4,  # of 5e-5, 1e-4, 2e-4 and 4e-4 the best on validation, mean of odd and even
            lora_learning_rate=1e-3,  # of 3.33e-4, 1e-3 and 3e-3 the best on validation
        ),
        Profile(
            name="base",
            pretrained="all-mpnet-base-v2",
            train_rows=8_000,
            validation_rows=2_000,
            test_rows=None,
            max_length=128,
            epochs=3,
            batch_size=32,
            seeds=(1, 2, 3, 4, 5),
            experiments=MAIN_EXPERIMENTS,
            expected_time="about 5 minutes a seed on an H100 GPU, 7 hours a seed on 2 CPU cores (estimates)",
            teacher_learning_rate=3e-5,
            student_learning_rate=3e-5,
            lora_learning_rate=3e-4,
        ),
        Profile(
            name="colab",
            pretrained="bert-base-uncased",
            train_rows=8_000,
            validation_rows=2_000,
            test_rows=10_000,
            max_length=128,
            epochs=3,
            batch_size=32,
            seeds=(1, 2, 3),
            experiments=MAIN_EXPERIMENTS + HARD_LABEL_EXPERIMENTS,
            expected_time="about 20 minutes a seed on a T4 GPU (an estimate)",
            data_without_files="hub",
            teacher_learning_rate=3e-5,
        ),
        Profile(
            name="full",
            pretrained="bert-base-uncased",
            train_rows=None,
            validation_rows=0.1,
            test_rows=None,
            max_length=128,
            epochs=3,
            batch_size=32,
            seeds=(1, 2, 3),
            experiments=MAIN_EXPERIMENTS + HARD_LABEL_EXPERIMENTS,
            expected_time="half a day on a T4 GPU (an estimate)",
            data_without_files="hub",
            teacher_learning_rate=3e-5,
        ),
        Profile(
            name="smoke",
            pretrained="tiny-random",
            train_rows=64,
            validation_rows=32,
            test_rows=32,
            max_length=16,
            epochs=1,
            batch_size=8,
            seeds=(1,),
            experiments=MAIN_EXPERIMENTS + HARD_LABEL_EXPERIMENTS,
            expected_time="seconds",
            data_without_files="separable",
            teacher_learning_rate=3e-3,
            student_learning_rate=3e-3,
            lora_learning_rate=1e-2,
        ),
    )
}


def load_profile(name: str | None = None) -> Profile:
    """The profile of that name; None reads the environment variable PROFILE, and `auto` looks for a GPU.

    Raises:
        ValueError: no such profile; the message lists them and names the nearest.
    """
    name = name or os.environ.get("PROFILE") or "auto"
    if name == "auto":
        import torch  # here, so that naming a profile needs no torch

        name = "colab" if torch.cuda.is_available() else "quick"
    if name not in PROFILES:
        raise ValueError(unknown("profile", name, ["auto", *PROFILES]))
    return PROFILES[name]


def unknown(what: str, name: str, known: list[str]) -> str:
    """The text of an error for a name that does not exist, with the nearest one that does."""
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return f"there is no {what} {name!r}.{hint} Known: {', '.join(known)}"
