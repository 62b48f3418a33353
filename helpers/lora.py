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

from helpers.models import encoder_layers, lora_targets
from helpers.runs import file_sha256, read_json, write_json


def add_adapters(
    model: torch.nn.Module, *, rank: int, alpha: int, dropout: float, seed: int, targets: list[str] | None = None
) -> PeftModel:
    """The model with adapters on `targets` (default: query and value); only they and the classifier will be trained.

    The task type SEQ_CLS matters: without it the classifier, which is drawn at random, stays frozen
    and is not saved. The config is made anew for each model, since peft writes into the one it is
    given. `model` itself is changed.
    """
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        target_modules=list(targets or lora_targets(model)),
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers by an older name of a property; nothing a reader could act on
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
        torch.manual_seed(seed)
        return get_peft_model(model, config)


def count_parameters(model: torch.nn.Module) -> tuple[int, int]:
    """(total, trainable) numbers of parameters of the model as it will be used.

    peft keeps a frozen copy of the classifier beside the trained one; it is left out of the total.
    """
    named = [(name, p) for name, p in model.named_parameters() if ".original_module." not in name]
    return sum(p.numel() for _, p in named), sum(p.numel() for _, p in named if p.requires_grad)


def lora_parameters(model: torch.nn.Module, rank: int, targets: list[str] | None = None) -> int:
    """The number of parameters that LoRA trains in a plain (adapterless) model, by formula.

    Σ over the target matrices of r·(in + out), plus the classifier. bert-base, r = 8, query and value, two labels:
    12 layers · 2 · 8 · (768 + 768) + 768 · 2 + 2 = 296,450, and 148,994 with 6 layers.
    """
    names = tuple(f".{target}" for target in targets or lora_targets(model))
    adapters = sum(
        rank * (module.in_features + module.out_features)
        for name, module in encoder_layers(model).named_modules()
        if name.endswith(names) and isinstance(module, torch.nn.Linear)
    )
    return adapters + sum(p.numel() for p in model.classifier.parameters())


def save_adapter(model: PeftModel, directory: Path) -> None:
    """Saves the base, the adapters and the classifier into one folder, in safetensors.

    transformers loads such a folder whole, base and adapters, wherever it lies. An adapter fits any BERT of the same
    shape with no more than a warning, so base.json keeps the hash of the base that it was trained on.
    """
    directory.mkdir(parents=True, exist_ok=True)
    model.get_base_model().save_pretrained(directory, state_dict=base_weights(model))
    model.peft_config["default"].base_model_name_or_path = "model.safetensors beside this file"
    # The embeddings are never trained here; left to itself, peft would ask the hub whether they were.
    model.save_pretrained(directory, save_embedding_layers=False)
    write_json(directory / "base.json", {"sha256": file_sha256(directory / "model.safetensors")})


def base_weights(model: PeftModel) -> dict[str, torch.Tensor]:
    """The tensors of the base as it was before the adapters came, by their plain names."""
    state = model.get_base_model().state_dict()
    plain = {name.replace(".base_layer.", ".").replace(".original_module.", "."): name for name in state}
    return {
        short: state[name]
        for short, name in plain.items()
        if ".lora_" not in short and ".modules_to_save." not in short
    }


def load_adapter(directory: Path) -> PeftModel:
    """The saved adapter on the base it was trained on, from one folder; in eval mode.

    Raises:
        FileNotFoundError: no adapter there, or its base is gone.
        ValueError: the base's weights are not the ones the adapter was trained on.
    """
    base, weights = read_json(directory / "base.json"), directory / "model.safetensors"
    if base is None:
        raise FileNotFoundError(f"{directory.name}/ holds no adapter saved by this project (base.json is missing)")
    if not weights.is_file():
        raise FileNotFoundError(f"the adapter in {directory.name}/ has lost its base: model.safetensors is missing")
    if file_sha256(weights) != base["sha256"]:
        raise ValueError(f"the base in {directory.name}/ has changed since the adapter was trained on it; train again")
    # Made from its config: from_pretrained would see the adapter beside it and load that too.
    model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(directory), dtype=torch.float32)
    model.load_state_dict(load_file(weights), strict=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")  # as above
        return PeftModel.from_pretrained(model, directory).eval()


def merge_adapters(model: PeftModel) -> torch.nn.Module:
    """A plain model with the adapters added into its weights: the same outputs, no cost at inference.

    The model that is given keeps its adapters.
    """
    return copy.deepcopy(model).merge_and_unload().eval()
