"""The benchmark compares like with like; nothing here is timed."""

import os
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_training import DISTILLING, SETTINGS
from torch.utils.flop_counter import FlopCounterMode

from helpers import benchmark
from helpers.benchmark import useful_flops, usual_training
from helpers.runs import ROOT, read_json


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
    usual_training(model, rows, SETTINGS, max_length=20)
    assert {ids.shape[1] for ids in seen} == {20}
    for epoch in range(3):
        found = sorted(row[row != 0].tolist() for ids in seen[5 * epoch : 5 * epoch + 5] for row in ids)
        assert found == sorted(rows["input_ids"][:])


def test_the_usual_recipe_asks_the_teacher_in_every_step(tiny_model, tiny_rows):
    teacher, student = tiny_model("bert", layers=2), tiny_model("bert", layers=2, seed=1)
    asked = watch(teacher)
    usual_training(student, tiny_rows(18), replace(SETTINGS, **DISTILLING), 20, teacher)
    assert len(asked) == 15


def test_the_usual_recipe_learns(tiny_model, tiny_rows):
    model, rows = tiny_model("bert", layers=2), tiny_rows(18)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    usual_training(model, rows, SETTINGS, max_length=20)
    assert not all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_useful_flops_are_those_of_torchs_own_count(tiny_model):
    """torch counts the matrix products of a forward and backward pass; pooler and classifier are taken off."""
    model, tokens = tiny_model("bert", layers=3), 12
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(torch.randint(5, 100, (1, tokens))).logits.sum().backward()
    width = model.config.hidden_size
    head = 3 * 2 * (width * width + width * 2)
    counted = counter.get_total_flops() - head
    assert useful_flops(model.config, 3, np.array([tokens])) == pytest.approx(counted, rel=0.01)


def test_longer_comments_cost_more_than_their_share(tiny_model):
    config = tiny_model("bert", layers=2).config
    assert useful_flops(config, 2, np.array([64])) > 2 * useful_flops(config, 2, np.array([32]))


def test_a_gpu_estimate_follows_its_formula():
    """1,000 comments of 100 tokens on a GPU of 1 TFLOP/s at half use: 6 · 109,483,778 · 100,000 / 5e11 s."""
    found = benchmark.gpu_estimate(1e12, 0.5, 1_000, 100, 16)
    assert found["minutes"] == pytest.approx(6 * 109_483_778 * 1e5 / 5e11 / 60)
    assert found["gigabytes"] == pytest.approx((16 * 109_483_778 + 12 * 128 * 16 * 768 * 44) / 1e9)


def test_readme_shows_the_committed_benchmark():
    facts = read_json(ROOT / "results" / "benchmark.json")
    assert benchmark.benchmark_in_markdown(facts) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_both_recipes_get_the_same_settings():
    settings = benchmark.settings_of("odd")
    assert (settings.temperature, settings.alpha, settings.batch_size) == (2.0, 0.5, 32)


def test_an_unknown_section_is_answered_with_the_nearest(capsys):
    assert benchmark.main(["sped"]) == 2
    assert "Did you mean 'speed'?" in capsys.readouterr().err


def test_a_child_process_that_dies_is_noticed():
    with pytest.raises(BrokenProcessPool):
        benchmark.in_its_own_process(os._exit, 1)
