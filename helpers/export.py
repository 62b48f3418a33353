"""From a trained model to a fast one: ONNX and int8.

ONNX holds the model as a graph that a small runtime executes without Python's overhead. Quantising turns its float32
weights into int8 with one scale per output channel and rounds activations as they come: a quarter of the bytes, and
integer arithmetic.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic


def export_onnx(model: torch.nn.Module, path: Path) -> None:
    """Writes a plain classifier as float32 ONNX: ids and mask (B, T) of any B and T → logits (B, C)."""
    ids = torch.randint(5, 100, (2, 9))
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with _quiet():
        torch.onnx.export(
            model,
            (ids, torch.ones_like(ids)),
            path,
            input_names=["input_ids", "attention_mask"],
            output_names=["logits"],
            dynamic_shapes=(sizes, sizes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


def quantise(source: Path, target: Path) -> None:
    """Writes the int8 version of an ONNX model: matrices and embeddings, a scale per channel.

    AVX2 and AVX-512 add 8-bit products up in 16 bits, which overflows, unless they have VNNI: weights keep seven bits
    there (onnxruntime's documentation of `reduce_range`).
    """
    overflows = not torch.cpu._is_vnni_supported()
    with _quiet():
        quantize_dynamic(source, target, per_channel=True, reduce_range=overflows, weight_type=QuantType.QInt8)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on packages and steps that play no part here."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


class OnnxModel:
    """An ONNX file ready to run on this CPU: call it with ids and mask (B, T), get logits (B, C).

    An int8 model is run on one comment at a time, without padding. onnxruntime rounds activations with one scale per
    tensor, hence per batch, so that in a batch a comment's score would depend on its neighbours.
    """

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.is_int8 = self.session.get_modelmeta().producer_name == "onnx.quantize"

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> np.ndarray:
        if not self.is_int8:
            return self._run(input_ids, attention_mask)
        lengths = attention_mask.sum(dim=1).tolist()
        rows = [(input_ids[row : row + 1, :n], attention_mask[row : row + 1, :n]) for row, n in enumerate(lengths)]
        return np.concatenate([self._run(*row) for row in rows])

    def _run(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> np.ndarray:
        inputs = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return self.session.run(["logits"], inputs)[0]
