"""Exports equal their model, and an int8 score does not depend on a comment's neighbours."""

from pathlib import Path

import numpy as np
import pytest
import torch

from helpers import export
from helpers.batches import Collator
from helpers.data import tokenise
from helpers.export import OnnxModel, export_onnx, quantise
from helpers.layers import copy_layers
from helpers.lora import add_adapters, merge_adapters
from helpers.models import find_pretrained, load_model, load_tokenizer

COMMENTS = [f"{'you are kind ' * (number % 7)}{number}" for number in range(40)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[torch.nn.Module, OnnxModel, OnnxModel]:
    """A small model with adapters that were trained a little, its ONNX form and its int8 form."""
    model = copy_layers(load_model(find_pretrained("tiny-random"), 1), (1, 2))
    model = add_adapters(model, rank=2, alpha=4, dropout=0.0, seed=1).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    folder = tmp_path_factory.mktemp("onnx")
    export_onnx(merge_adapters(model), folder / "model.onnx")
    quantise(folder / "model.onnx", folder / "model.int8.onnx")
    return model, OnnxModel(folder / "model.onnx"), OnnxModel(folder / "model.int8.onnx")


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    ids, _ = tokenise(COMMENTS, load_tokenizer(find_pretrained("tiny-random")), 16)
    return [{"input_ids": row} for row in ids]


def logits_of(model: OnnxModel, rows: list[dict]) -> np.ndarray:
    return model(**Collator(0, labels=False)(rows))


@pytest.mark.parametrize("lengths", [(3,), (4, 9, 30, 9)])
def test_an_export_has_its_models_logits_for_any_number_of_rows_and_tokens(exported, lengths):
    model, onnx, _ = exported
    batch = Collator(0, labels=False)([{"input_ids": list(range(100, 100 + length))} for length in lengths])
    with torch.no_grad():
        expected = model(**batch).logits.numpy()
    assert onnx(**batch) == pytest.approx(expected, abs=1e-4)


def test_int8_is_close_to_its_model_and_not_equal(exported, rows):
    _, onnx, int8 = exported
    assert 0 < np.abs(logits_of(onnx, rows) - logits_of(int8, rows)).max() < 0.2


@pytest.mark.parametrize("parts", [[slice(None, None, -1)], [slice(20), slice(20, 40)], [[n] for n in range(40)]])
def test_the_scores_of_an_int8_model_do_not_depend_on_the_neighbours(exported, rows, parts):
    together, order = logits_of(exported[2], rows), np.arange(len(rows))
    for part in parts:  # reversed, halved, one by one
        assert np.array_equal(logits_of(exported[2], [rows[place] for place in order[part]]), together[part])


@pytest.mark.parametrize("vnni", [True, False])
def test_weights_keep_seven_bits_where_products_would_overflow(monkeypatch, vnni):
    asked = {}
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: vnni)
    monkeypatch.setattr(export, "quantize_dynamic", lambda *_, **options: asked.update(options))
    quantise(Path("from"), Path("to"))
    assert asked["reduce_range"] is not vnni
