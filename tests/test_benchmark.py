"""The benchmark compares like with like; nothing here is timed."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from test_training import DISTILLING, SETTINGS

from tools import benchmark
from tools.benchmark import summary, usual_training


def watch(model: torch.nn.Module) -> list[torch.Tensor]:
    """The ids of every forward pass."""
    seen = []

    def hook(_, arguments, options):
        seen.append(arguments[0] if arguments else options["input_ids"])

    model.register_forward_pre_hook(hook, with_kwargs=True)
    return seen


def test_the_usual_recipe_sees_every_row_once_an_epoch_padded_to_max_length(tiny_model, tiny_rows):
    model, rows = tiny_model("bert", layers=2), tiny_rows(18)
    seen = watch(model)
    usual_training(model, rows, SETTINGS, pad_to=20)
    assert {ids.shape[1] for ids in seen} == {20}
    for epoch in range(3):
        found = sorted(row[row != 0].tolist() for ids in seen[5 * epoch : 5 * epoch + 5] for row in ids)
        assert found == sorted(rows["input_ids"][:])


def test_the_second_recipe_pads_each_batch_to_its_longest_comment(tiny_model, tiny_rows):
    model, rows = tiny_model("bert", layers=2), tiny_rows(18)
    seen = watch(model)
    usual_training(model, rows, SETTINGS, pad_to=None)
    assert all((ids[:, -1] != 0).any() for ids in seen)


def test_the_usual_recipe_asks_the_teacher_in_every_step(tiny_model, tiny_rows):
    teacher, student = tiny_model("bert", layers=2), tiny_model("bert", layers=2, seed=1)
    asked, seen = watch(teacher), watch(student)
    usual_training(student, tiny_rows(18), replace(SETTINGS, **DISTILLING), 20, teacher)
    assert len(asked) == len(seen) == 15
    assert all(torch.equal(a, b) for a, b in zip(asked, seen, strict=True))


def test_a_ratio_is_the_median_of_the_rounds_each_against_its_own_round():
    found = summary({"a": [4.0, 2.0, 1.0], "c": [8.0, 8.0, 3.0]})
    assert found["c"] == {"comments_per_second": 8, "ratio": 3, "ratios": [2, 4, 3]}


def test_every_round_ends_with_what_was_measured_until_then(monkeypatch):
    monkeypatch.setattr(benchmark, "measure", lambda task, recipe, rows: 2.0)
    rounds = list(benchmark.training_speed(2))
    assert [(number, found["lora"]["c"]["ratios"]) for number, found in rounds] == [(1, [1.0]), (2, [1.0, 1.0])]


def test_the_file_is_named_for_the_device(monkeypatch):
    monkeypatch.setattr(benchmark, "device_name", lambda: "NVIDIA H100 80GB HBM3")
    assert benchmark.results_path().name == "nvidia-h100-80gb-hbm3.json"


@pytest.mark.parametrize("task", benchmark.TASKS)
def test_every_task_is_measured_by_this_projects_loop(tiny_model, tiny_rows, monkeypatch, task):
    splits = {"train": tiny_rows(18), "validation": tiny_rows(8, seed=1)}
    monkeypatch.setattr(benchmark, "bench_data", lambda: SimpleNamespace(splits=splits))
    monkeypatch.setattr(benchmark, "new_model", tiny_model)
    assert benchmark.measure(task, "c", 18) > 0
