"""From a trained model to a fast one: ONNX, int8, and scoring a file of any size.

    python -m helpers.export score IN.csv OUT.csv --model odd

ONNX holds the model as a graph that a small runtime executes without Python's overhead. Quantising turns its float32
weights into int8 with one scale per output channel and rounds activations as they come: a quarter of the bytes, and
integer arithmetic. A model is exported the first time that somebody scores a file with it.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic
from transformers import AutoTokenizer

from helpers.batches import Collator, progress_bar
from helpers.data import DataError, read_rows, tokenise
from helpers.evaluation import toxic_probability
from helpers.experiments import load_trained
from helpers.lora import merge_adapters
from helpers.runs import (
    Run,
    find_finished_run,
    fingerprint,
    is_sealed,
    new_directory,
    only_writer,
    read_json,
    seal,
    tells_errors,
    write_file,
)

FORMATS = {"onnx": "model.onnx", "int8": "model.int8.onnx"}
BATCH = 32  # comments that a model scores at once
WINDOW = 4_096  # comments that are read, sorted by length and scored at a time


# --- export ----------------------------------------------------------------------------------------------------------


def plain_model(model: torch.nn.Module) -> torch.nn.Module:
    """The model as one would serve it: adapters are merged into its weights."""
    return (merge_adapters(model) if hasattr(model, "peft_config") else model).eval()


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


def write_exports(model: torch.nn.Module, directory: Path, made_from: str) -> None:
    """Fills `directory` with the model's two FORMATS; what stood there is replaced when both are whole."""
    with new_directory(directory) as temporary:
        export_onnx(plain_model(model).cpu(), temporary / FORMATS["onnx"])
        quantise(temporary / FORMATS["onnx"], temporary / FORMATS["int8"])
        seal(temporary, made_from)


def find_export(name: str, seed: int, run: Run, form: str) -> Path:
    """The file of a trained model in one of the FORMATS, in the model's folder; exported if its weights are not yet.

    Raises:
        MissingStage: the run has no such model, or it is damaged; the message says what trains it.
        RunInUse: it has to be exported, and another process is writing to the run.
    """
    directory = run.model_dir(name, seed)
    made_from = fingerprint({"model": read_json(directory / "fingerprint.json")})  # which has the weights' hash
    exports = directory / "onnx"
    if not is_sealed(exports, made_from):
        with only_writer(run, f"{name}-{seed}"):
            write_exports(load_trained(name, seed, run), exports, made_from)
    return exports / FORMATS[form]


# --- scoring a file --------------------------------------------------------------------------------------------------


def read_comments(path: Path) -> Iterator[tuple[str, str]]:
    """(id, comment) row by row from a CSV with a column comment_text; without a column id, rows are numbered from 1.

    Raises:
        DataError: no such column, a broken row, or bytes that are not UTF-8, with the row's number (the header is 1).
    """
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = read_rows(path.name, file, ("comment_text",))
        header = next(rows)
        for number, row in enumerate(rows, start=1):
            named = dict(zip(header, row, strict=True))
            yield named.get("id", str(number)), named["comment_text"]


def comment_probabilities(call: Callable, comments: list[str], tokenizer) -> np.ndarray:
    """The probabilities of `toxic` (N,), in the comments' order; `call`: ids and mask (B, T) → logits (B, 2).

    Comments of similar length are scored together, so that little padding is computed.
    """
    ids, _ = tokenise(comments, tokenizer, tokenizer.model_max_length)
    collate, probabilities = Collator(tokenizer.pad_token_id, labels=False), np.empty(len(ids))
    order = np.argsort([len(row) for row in ids], kind="stable")
    for start in range(0, len(ids), BATCH):
        rows = order[start : start + BATCH]
        probabilities[rows] = toxic_probability(call(**collate([{"input_ids": ids[row]} for row in rows])))
    return probabilities


def score_file(source: Path, target: Path, call: Callable, tokenizer, threshold: float) -> int:
    """Writes id, probability and verdict of every comment, in the order of the source; returns how many.

    `call` is that of comment_probabilities. Memory does not grow with the file: WINDOW comments at a time are read,
    scored and written. The target appears when it is whole.

    Raises:
        DataError: the source cannot be read, or would be overwritten.
    """
    if target.exists() and target.samefile(source):
        raise DataError(f"{target.name} would be overwritten by its own scores; give another name for them")
    bar = progress_bar(desc="scoring", unit=" comments")

    def write(temporary: Path) -> None:
        with bar, open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "probability", "toxic"])
            comments = read_comments(source)
            while window := list(islice(comments, WINDOW)):
                ids, texts = zip(*window, strict=True)
                probabilities = comment_probabilities(call, list(texts), tokenizer)
                writer.writerows((i, f"{p:.6f}", int(p >= threshold)) for i, p in zip(ids, probabilities, strict=True))
                bar.update(len(window))

    write_file(target, write)
    return bar.n


@tells_errors()
def main(arguments: list[str] | None = None) -> int:
    """Scores a file from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m helpers.export", description="Scores comments with a model.")
    score = parser.add_subparsers(required=True, metavar="score").add_parser("score", help="score a CSV file")
    score.add_argument("source", type=Path, help="a CSV file with a column comment_text (and id)")
    score.add_argument("target", type=Path, help="where to write id, probability, toxic")
    score.add_argument("--model", required=True, help="teacher, odd, even, lora or lora_6")
    score.add_argument("--format", choices=list(FORMATS), default="onnx", help="float32 (default), or int8: smaller")
    score.add_argument("--seed", type=int, default=1)
    score.add_argument("--run", help="a folder in runs/ (default: of the finished runs the one trained last)")
    options = parser.parse_args(arguments)
    run = find_finished_run(options.run)
    call = OnnxModel(find_export(options.model, options.seed, run, options.format))
    folder = run.model_dir(options.model, options.seed)
    threshold = read_json(folder / "config.json")["threshold"]
    print(f"{options.model}, seed {options.seed}, of run {run.name}, trained on: {run.data_label}")
    rows = score_file(options.source, options.target, call, AutoTokenizer.from_pretrained(folder), threshold)
    print(f"{rows:,} comments scored: {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
