"""From a trained model to a fast one: ONNX, int8, and scoring a file of any size.

    python -m helpers.export score IN.csv OUT.csv --model odd

ONNX holds the model as a graph that a small runtime executes without Python's overhead. Quantising turns its float32
weights into int8 with one scale per output channel and rounds activations as they come: a quarter of the bytes, and
integer arithmetic.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from datasets import Dataset
from onnxruntime.quantization import QuantType, quantize_dynamic

from helpers.batches import Collator, progress_bar
from helpers.config import load_profile
from helpers.data import DataError, PreparedData, tokenise
from helpers.evaluation import toxic_probability
from helpers.lora import merge_adapters
from helpers.models import find_pretrained, load_tokenizer
from helpers.runs import (
    is_sealed,
    new_directory,
    read_json,
    seal,
    tells_errors,
    trained_runs,
    write_file,
)

FORMATS = {"onnx": "model.onnx", "int8": "model.int8.onnx"}
INPUTS = ("input_ids", "attention_mask")
WINDOW = 4_096  # comments that are read, sorted by length and scored at a time


def plain_model(model: torch.nn.Module) -> torch.nn.Module:
    """The model as one would serve it: adapters are merged into its weights."""
    return (merge_adapters(model) if hasattr(model, "peft_config") else model).eval()


# --- export ----------------------------------------------------------------------------------------------------------


class _LogitsOnly(torch.nn.Module):
    """A classifier as a function of two tensors, which is what a graph can hold."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def export_onnx(model: torch.nn.Module, path: Path) -> None:
    """Writes a plain classifier as float32 ONNX: ids and mask (B, T) of any B and T → logits (B, C)."""
    ids = torch.randint(5, 100, (2, 9))
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens")}
    with _quiet():
        torch.onnx.export(
            _LogitsOnly(model),
            (ids, torch.ones_like(ids)),
            path,
            input_names=list(INPUTS),
            output_names=["logits"],
            dynamic_shapes=(sizes, sizes),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' notes on packages and steps that play no part here: a notebook shows them as alarms."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)


def int8_needs_reduced_range() -> bool:
    """Whether this CPU's 8-bit products overflow: AVX2 and AVX-512 add them up in 16 bits unless they have VNNI.

    onnxruntime's documentation of `reduce_range`: weights of 7 bits where there is no VNNI.
    """
    return not torch.cpu._is_vnni_supported()


def quantise(source: Path, target: Path) -> None:
    """Writes the int8 version of an ONNX model: matrices and embeddings, a scale per channel."""
    with _quiet():
        quantize_dynamic(
            source, target, per_channel=True, reduce_range=int8_needs_reduced_range(), weight_type=QuantType.QInt8
        )


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
        return self.session.run(
            ["logits"], dict(zip(INPUTS, (input_ids.numpy(), attention_mask.numpy()), strict=True))
        )[0]


def in_length_order(
    call: Callable, input_ids: list[list[int]], pad_token_id: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row numbers, logits) in batches of 32, rows of similar length together, so that little padding is computed."""
    collate, batch_size = Collator(pad_token_id, labels=False), 32
    order = np.argsort([len(ids) for ids in input_ids], kind="stable")
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = collate([{"input_ids": input_ids[row]} for row in rows])
        yield rows, np.asarray(call(**{name: batch[name] for name in INPUTS}))


def onnx_logits(model: OnnxModel, dataset: Dataset, pad_token_id: int) -> np.ndarray:
    """The logits (N, C) of the dataset's rows, in its order."""
    ids = dataset["input_ids"][:]
    rows, logits = (np.concatenate(parts) for parts in zip(*in_length_order(model, ids, pad_token_id), strict=True))
    return logits[np.argsort(rows)]


# --- measuring -------------------------------------------------------------------------------------------------------


def measure_deployment(model: torch.nn.Module, directory: Path, data: PreparedData, logits: np.ndarray) -> dict:
    """Exports the model to `directory` and holds the exports to PyTorch's test logits (N, C).

    Returns:
        For pytorch, onnx and int8: `bytes`; for the exports also `largest_difference` of a logit.
    """
    plain = plain_model(model).cpu()
    with new_directory(directory) as temporary:
        export_onnx(plain, temporary / FORMATS["onnx"])
        quantise(temporary / FORMATS["onnx"], temporary / FORMATS["int8"])
        seal(temporary, "exports")
    facts = {"pytorch": {"bytes": sum(p.numel() * p.element_size() for p in plain.parameters())}}
    for name, file in FORMATS.items():
        found = onnx_logits(OnnxModel(directory / file), data.splits["test"], plain.config.pad_token_id)
        difference = float(np.abs(found - logits).max())
        facts[name] = {"bytes": (directory / file).stat().st_size, "largest_difference": difference}
    return facts


def torch_call(model: torch.nn.Module) -> Callable:
    """The model as a function of ids and mask that returns when the logits are on the CPU: a GPU answers before."""
    device = next(model.parameters()).device
    return lambda input_ids, attention_mask: model(input_ids.to(device), attention_mask.to(device)).logits.cpu()


# --- scoring a file --------------------------------------------------------------------------------------------------


def read_comments(path: Path, progress: Callable[[int], None]) -> Iterator[tuple[str, str]]:
    """(id, comment) row by row from a CSV with a column comment_text; without a column id, rows are numbered from 1.

    `progress` is told how many bytes have been read.

    Raises:
        DataError: no such column, a broken row, or bytes that are not UTF-8, with the row's number.
    """
    number = 1
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            header = next(reader, [])
            if "comment_text" not in header:
                raise DataError(f"{path.name}: no column comment_text; found {', '.join(header)[:200] or 'nothing'}")
            doubled = sorted({name for name in ("comment_text", "id") if header.count(name) > 1})
            if doubled:
                raise DataError(f"{path.name}: the column {doubled[0]} stands there twice")
            text, row_id = header.index("comment_text"), header.index("id") if "id" in header else None
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise DataError(f"{path.name}: row {number + 1} has {len(row)} fields instead of {len(header)}")
                yield (str(number) if row_id is None else row[row_id]), row[text]
                progress(file.buffer.tell())
                number += 1
        except csv.Error as error:
            raise DataError(f"{path.name}: row {number + 1} is broken ({error}); nothing was written") from None
        except UnicodeDecodeError:
            raise DataError(
                f"{path.name}: after row {number} come bytes that are not UTF-8; save it as UTF-8"
            ) from None


def windows(rows: Iterator, size: int) -> Iterator[list]:
    """The rows in lists of `size`."""
    window = []
    for row in rows:
        window.append(row)
        if len(window) == size:
            yield window
            window = []
    if window:
        yield window


def comment_probabilities(call: Callable, comments: list[str], tokenizer, max_length: int) -> np.ndarray:
    """The probabilities of `toxic` (N,), in the comments' order; `call`: ids and mask (B, T) → logits (B, 2)."""
    ids, _ = tokenise(comments, tokenizer, max_length)
    probabilities = np.empty(len(comments))
    for rows, logits in in_length_order(call, ids, tokenizer.pad_token_id):
        probabilities[rows] = toxic_probability(logits)
    return probabilities


def score_file(source: Path, target: Path, model: Callable, tokenizer, max_length: int, threshold: float) -> int:
    """Writes id, probability and verdict of every comment, in the order of the source; returns how many.

    Memory does not grow with the file: WINDOW comments at a time are read, scored by length and written. The target
    appears when it is whole.

    Raises:
        DataError: the source cannot be read, or would be overwritten.
    """
    if target.exists() and target.samefile(source):
        raise DataError(f"{target.name} would be overwritten by its own scores; give another name for them")
    csv.field_size_limit(2**31 - 1)

    def write(temporary: Path) -> None:
        bar = progress_bar(total=source.stat().st_size, desc="scoring", unit="B", unit_scale=True)
        with bar, open(temporary, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["id", "probability", "toxic"])
            for window in windows(read_comments(source, lambda read: bar.update(read - bar.n)), WINDOW):
                probabilities = comment_probabilities(model, [text for _, text in window], tokenizer, max_length)
                for (row_id, _), probability in zip(window, probabilities, strict=True):
                    writer.writerow([row_id, f"{probability:.6f}", int(probability >= threshold)])
                counted[0] += len(window)

    counted = [0]
    write_file(target, write)
    return counted[0]


def find_model(name: str, seed: int, run: str | None) -> tuple[Path, dict]:
    """(folder of the run, result) of an exported model, in the run asked for or the one that finished last.

    Raises:
        ValueError: the model's files are damaged.
        FileNotFoundError: no such run, or no run with that model; the message says which models are there.
    """
    folders, model = trained_runs(run), f"{name}-{seed}"
    for folder in folders:
        exports = folder / "models" / model / "onnx"
        result = read_json(folder / "results" / f"{model}.json")
        if result and exports.is_dir():
            if not (is_sealed(exports, "exports") and is_sealed(exports.parent, result["fingerprint"])):
                raise ValueError(f"models/{model}/ is damaged: remove it and run `make run` again")
            return folder, result | {"threshold": read_json(exports.parent / "config.json")["threshold"]}
    where = f"run {run!r}" if run else "runs/"
    there = sorted({path.parent.name for folder in folders for path in folder.glob("models/*/onnx")})
    raise FileNotFoundError(
        f"{where} has no exported model {model} (only {', '.join(there) or 'none'}); `make run` makes them"
    )


@tells_errors()
def main(arguments: list[str] | None = None) -> int:
    """Scores a file from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m helpers.export", description="Scores comments with a trained model."
    )
    score = parser.add_subparsers(required=True, metavar="score").add_parser("score", help="score a CSV file")
    score.add_argument("source", type=Path, help="a CSV file with a column comment_text (and id)")
    score.add_argument("target", type=Path, help="where to write id, probability, toxic")
    score.add_argument("--model", required=True, help="teacher, odd, even, lora or lora_6")
    score.add_argument(
        "--format", choices=list(FORMATS), default="onnx", help="float32 (default) or int8, which is faster"
    )
    score.add_argument("--seed", type=int, default=1)
    score.add_argument("--run", help="a folder in runs/ (default: the run that finished last)")
    options = parser.parse_args(arguments)
    folder, result = find_model(options.model, options.seed, options.run)
    profile = load_profile(result["profile"])
    model = OnnxModel(folder / "models" / f"{options.model}-{options.seed}" / "onnx" / FORMATS[options.format])
    tokenizer = load_tokenizer(find_pretrained(profile.pretrained))
    print(f"{options.model}, seed {options.seed}, of run {folder.name}, trained on: {result['data']}")
    rows = score_file(options.source, options.target, model, tokenizer, profile.max_length, result["threshold"])
    print(f"{rows:,} comments scored: {options.target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
