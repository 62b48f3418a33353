"""The run profiles: every setting of a run in one frozen dataclass, which pydantic validates when it is made.

A profile says how much data, which pretrained model and how long to train. The notebooks and the command
line only ever pick one by name (`PROFILE=base`); `auto` means `colab` where there is a GPU and `quick` where not.
"""

from __future__ import annotations

import difflib
from dataclasses import asdict, replace
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
MAIN_EXPERIMENTS = ("majority", "tfidf", "teacher", "odd", "even", "lora", "lora_6")
Rate = Annotated[float, Field(gt=0)]  # AdamW's peak learning rate
Share = Annotated[float, Field(gt=0, lt=1)]
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)  # "3" is no number


@dataclass(frozen=True, config=STRICT)
class Profile:
    """All settings of a run. Row counts are comments (None: all). A setting that is not allowed is a ValueError."""

    name: str
    pretrained: str
    train_rows: PositiveInt | None
    validation_rows: PositiveInt | Share  # a share of train.csv
    test_rows: PositiveInt | None
    expected_time: str
    max_length: int = Field(128, ge=4, le=512)  # tokens
    epochs: PositiveInt = 3
    batch_size: PositiveInt = 32
    seeds: tuple[NonNegativeInt, ...] = Field((1, 2, 3), min_length=1)
    experiments: tuple[str, ...] = Field(MAIN_EXPERIMENTS, min_length=1)
    data_without_files: Literal["error", "sample", "hub", "separable"] = "error"  # when Kaggle's files are not found
    teacher_learning_rate: Rate = 3e-5
    student_learning_rate: Rate = 1e-4
    lora_learning_rate: Rate = 1e-3
    temperature: float = Field(2.0, gt=0)
    alpha: float = Field(0.5, ge=0, le=1)  # weight of the soft targets against the labels
    beta: float = Field(0.1, ge=0)  # weight of the cosine between the [CLS] states
    lora_rank: PositiveInt = 8
    lora_alpha: PositiveInt = 16
    lora_dropout: float = Field(0.1, ge=0, lt=1)
    lora_targets: Literal["attention", "all_linear"] = "attention"  # query and value, or every linear map
    weight_decay: float = Field(0.01, ge=0)
    warmup_ratio: float = Field(0.1, ge=0, lt=1)
    max_grad_norm: float = Field(1.0, gt=0)
    micro_batch_size: PositiveInt | None = None  # comments per forward pass (None: the whole batch), to save memory
    split_seed: NonNegativeInt = 1

    def settings(self, *names: str) -> dict:
        """The named settings as a dict, for a stage's fingerprint."""
        values = asdict(self)
        return {name: values[name] for name in names}


QUICK = Profile(
    name="quick",
    pretrained="minilm-stacked",
    train_rows=800,
    validation_rows=300,
    test_rows=600,
    max_length=64,
    epochs=4,
    seeds=(1,),
    expected_time="15 minutes on 2 CPU cores",
    data_without_files="sample",
    teacher_learning_rate=1e-4,  # in so few steps 5e-5 leaves the teacher hardly above TF-IDF
    student_learning_rate=2e-4,  # of 5e-5, 1e-4, 2e-4 and 4e-4 the best on validation, mean of odd and even
    lora_learning_rate=1e-3,  # of 3.33e-4, 1e-3 and 3e-3 the best on validation
)
BASE = Profile(
    name="base",
    pretrained="all-mpnet-base-v2",
    train_rows=8_000,
    validation_rows=2_000,
    test_rows=None,
    seeds=(1, 2, 3, 4, 5),
    expected_time="about 5 minutes a seed on an H100 GPU, 7 hours a seed on 2 CPU cores (estimates)",
    student_learning_rate=3e-5,
    lora_learning_rate=3e-4,
)
COLAB = Profile(
    name="colab",
    pretrained="bert-base-uncased",
    train_rows=8_000,
    validation_rows=2_000,
    test_rows=10_000,
    experiments=(*MAIN_EXPERIMENTS, "odd_hard", "even_hard"),
    expected_time="about 15 minutes a seed on a T4 GPU (an estimate)",
    data_without_files="hub",
)
FULL = replace(
    COLAB,
    name="full",
    train_rows=None,
    validation_rows=0.1,
    test_rows=None,
    expected_time="half a day on a T4 GPU (an estimate)",
)
SMOKE = Profile(
    name="smoke",
    pretrained="tiny-random",
    train_rows=64,
    validation_rows=32,
    test_rows=32,
    max_length=16,
    epochs=1,
    batch_size=8,
    seeds=(1,),
    experiments=COLAB.experiments,
    expected_time="seconds",
    data_without_files="separable",
    teacher_learning_rate=3e-3,
    student_learning_rate=3e-3,
    lora_learning_rate=1e-2,
)
PROFILES = {profile.name: profile for profile in (QUICK, BASE, COLAB, FULL, SMOKE)}


def load_profile(name: str = "auto") -> Profile:
    """The profile of that name; `auto` looks for a GPU. For an unknown one, a ValueError names the nearest."""
    if name == "auto":
        import torch  # here, so that naming a profile needs no torch

        name = "colab" if torch.cuda.is_available() else "quick"
    return look_up("profile", name, PROFILES)


def look_up(what: str, name: str, known: dict):
    """What is known by this name, for instance a profile. A ValueError names the nearest one that there is."""
    if name in known:
        return known[name]
    nearest = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"there is no {what} {name!r}.{hint} Known: {', '.join(known)}")
