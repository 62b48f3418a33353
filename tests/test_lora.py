"""Rules 8 to 10: what LoRA trains, saves and merges."""

import copy
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification

from helpers.lora import add_adapters, count_parameters, load_adapter, merge_adapters, save_adapter
from helpers.models import lora_targets

SETTINGS = {"rank": 4, "alpha": 8, "dropout": 0.1, "seed": 1}


def is_trained(name: str) -> bool:
    return any(part in name for part in (".lora_A.", ".lora_B.", ".modules_to_save."))


def train_steps(model: torch.nn.Module, batch: dict[str, torch.Tensor], steps: int = 3) -> None:
    """A few steps, large enough that adapters and classifier are far from where they began; ends in eval mode."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
    model.eval()


@torch.inference_mode()
def logits_of(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits


@pytest.fixture
def saved(teacher, batch, tmp_path) -> tuple[torch.nn.Module, torch.Tensor]:
    """A trained LoRA model, saved with its base as adapter/, and the base's logits."""
    before = logits_of(teacher, batch)
    model = add_adapters(teacher, **SETTINGS)
    train_steps(model, batch)
    save_adapter(model, tmp_path / "adapter")
    return model, before


def test_adapters_stand_on_query_and_value_of_every_layer_and_nowhere_else(teacher):
    targets = lora_targets(teacher)
    model = add_adapters(teacher, **SETTINGS)
    adapted = [name.rsplit(".", 1)[1] for name, module in model.named_modules() if hasattr(module, "lora_A")]
    assert adapted == targets * 12


def test_training_moves_adapters_and_classifier_and_leaves_the_base_bit_equal(teacher, batch):
    model = add_adapters(teacher, **SETTINGS)
    before = copy.deepcopy(model.state_dict())
    train_steps(model, batch)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]) != is_trained(name), name


def test_before_training_the_output_equals_the_bases(teacher, batch):
    base = logits_of(teacher, batch)
    assert torch.allclose(logits_of(add_adapters(teacher, **SETTINGS).eval(), batch), base, atol=1e-6)


def test_the_total_counts_each_tensor_in_use_once(teacher):
    base = sum(p.numel() for p in teacher.parameters())
    adapters = 12 * 2 * 4 * (32 + 32)  # layers, query and value, rank, in + out
    assert count_parameters(add_adapters(teacher, **SETTINGS))[0] == base + adapters


@pytest.mark.parametrize(("layers", "expected", "frozen_classifier"), [(12, 296_450, 294_912), (6, 148_994, 147_456)])
def test_bert_base_trains_the_published_number_of_parameters(layers, expected, frozen_classifier):
    with torch.device("meta"):  # shapes without storage
        model = BertForSequenceClassification(BertConfig(num_labels=2, num_hidden_layers=layers))
        adapted = add_adapters(model, rank=8, alpha=16, dropout=0.1, seed=1)
        assert count_parameters(adapted)[1] == expected
        assert sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name) == frozen_classifier


def test_alpha_and_dropout_are_as_asked(tiny_bert):
    model = add_adapters(tiny_bert, rank=4, alpha=24, dropout=0.25, seed=1)
    adapted = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert {module.scaling["default"] for module in adapted} == {24 / 4}
    assert {module.lora_dropout["default"].p for module in adapted} == {0.25}


def test_each_model_has_a_config_of_its_own(tiny_bert, tiny_mpnet):
    first = add_adapters(tiny_bert, **SETTINGS).peft_config["default"]
    before = copy.deepcopy(first.to_dict())
    add_adapters(tiny_mpnet, **SETTINGS)
    assert first.to_dict() == before


def test_the_seed_draws_the_adapters(tiny_model):
    first, same, other = (add_adapters(tiny_model(), **SETTINGS | {"seed": seed}).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if ".lora_A." in name)


def test_adding_adapters_leaves_the_global_random_state(tiny_bert):
    before = torch.get_rng_state()
    add_adapters(tiny_bert, **SETTINGS)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_reloaded_model_equals_the_trained_one_wherever_its_folder_lies(saved, batch, tmp_path):
    model, before = saved
    trained = logits_of(model, batch)
    assert not torch.allclose(trained, before, atol=1e-2)
    reloaded = load_adapter((tmp_path / "adapter").rename(tmp_path / "renamed"))
    assert torch.allclose(logits_of(reloaded, batch), trained, atol=1e-5)


def test_the_merged_model_is_plain_and_equals_the_unmerged_one(saved, batch, teacher):
    merged = merge_adapters(saved[0])
    assert type(merged) is type(teacher)
    assert not any("lora" in name or "modules_to_save" in name for name in merged.state_dict())
    assert torch.allclose(logits_of(merged, batch), logits_of(saved[0], batch), atol=1e-5)


def test_merging_leaves_the_given_model_its_adapters(saved):
    model, before = saved[0], copy.deepcopy(saved[0].state_dict())
    merge_adapters(model)
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())


def test_the_adapters_file_holds_what_was_trained_and_no_path(saved, tmp_path):
    tensors = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert sum(x.numel() for x in tensors.values()) == count_parameters(saved[0])[1]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "model.safetensors beside this file"


def test_the_base_is_saved_as_it_was_before_the_adapters_came(teacher, tmp_path):
    expected = copy.deepcopy(teacher.state_dict())
    save_adapter(add_adapters(teacher, **SETTINGS), tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "model.safetensors")
    assert saved.keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in saved.items())


@pytest.fixture
def saved_bert(tiny_bert, tmp_path) -> Path:
    """A folder with an adapter and its base."""
    save_adapter(add_adapters(tiny_bert, **SETTINGS), tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_on_another_base_is_refused(saved_bert, tiny_model):
    tiny_model(seed=5).save_pretrained(saved_bert)
    with pytest.raises(ValueError, match="adapter/ holds no adapter on the base it was trained on"):
        load_adapter(saved_bert)


@pytest.mark.parametrize("part", ["model.safetensors", "base.json"])
def test_an_adapter_without_its_base_is_refused(saved_bert, part):
    (saved_bert / part).unlink()
    with pytest.raises(ValueError, match="adapter/ holds no adapter on the base"):
        load_adapter(saved_bert)


def test_a_family_without_known_targets_is_refused(tiny_bert):
    tiny_bert.config.model_type = "berd"
    with pytest.raises(ValueError, match="Did you mean 'bert'"):
        lora_targets(tiny_bert)
