"""LoRA adapters: add, count, save with their base, reload, merge (Hu et al. 2021, arXiv:2106.09685).

The pretrained weights W stay frozen; beside each chosen W a low-rank product is trained: W + (alpha / r) · B·A, with
A (r, in) drawn at random and B (out, r) zero, so that the model starts equal to its base.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForSequenceClassification

from helpers.models import lora_targets
from helpers.runs import file_sha256, is_whole, read_json, write_json

# peft asks transformers by an older name of a property; nothing a reader could act on
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")


def add_adapters(
    model: torch.nn.Module, *, rank: int, alpha: int, dropout: float, seed: int, targets: list[str] | None = None
) -> PeftModel:
    """The model with adapters on `targets` (default: query and value); only they and the classifier will be trained.

    The task type SEQ_CLS matters: without it the classifier, which is drawn at random, stays frozen and is not saved.
    Each model gets a config of its own, since peft writes into it. `model` itself is changed.
    """
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        target_modules=list(targets or lora_targets(model)),
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(total, trainable) numbers of parameters in use; peft's frozen copy of the classifier is left out."""
    named = [(name, p) for name, p in model.named_parameters() if ".original_module." not in name]
    return sum(p.numel() for _, p in named), sum(p.numel() for _, p in named if p.requires_grad)


def save_adapter(model: PeftModel, directory: Path) -> None:
    """Saves the base as it was before the adapters came, the adapters and the classifier into one folder (safetensors).

    transformers loads such a folder whole, wherever it lies. An adapter fits any BERT of the same shape with no more
    than a warning, so base.json keeps the hash of the base that it was trained on.
    """
    base, weights = model.get_base_model(), {}
    for name, tensor in base.state_dict().items():
        if ".lora_" not in name and ".modules_to_save." not in name:
            weights[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    directory.mkdir(parents=True, exist_ok=True)
    base.save_pretrained(directory, state_dict=weights)
    model.peft_config["default"].base_model_name_or_path = "model.safetensors beside this file"
    # The embeddings are never trained here; left to itself, peft would ask the hub whether they were.
    model.save_pretrained(directory, save_embedding_layers=False)
    write_json(directory / "base.json", {"sha256": file_sha256(directory / "model.safetensors")})


def load_adapter(directory: Path) -> PeftModel:
    """The saved adapter on the base it was trained on, from one folder; in eval mode. ValueError for another base."""
    base, weights = read_json(directory / "base.json"), directory / "model.safetensors"
    if not base or not is_whole(weights, base["sha256"]):
        raise ValueError(f"{directory.name}/ holds no adapter on the base it was trained on; train again")
    # Made from its config: from_pretrained would see the adapter beside it and load that too.
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(directory), dtype=torch.float32)
    model.load_state_dict(load_file(weights), strict=True)
    return PeftModel.from_pretrained(model, directory).eval()


def merge_adapters(model: torch.nn.Module) -> torch.nn.Module:
    """A plain model with the adapters, if there are any, added into its weights; the one given keeps its own."""
    return copy.deepcopy(model).merge_and_unload().eval() if isinstance(model, PeftModel) else model
