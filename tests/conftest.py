"""What the tests share: tiny random models and datasets, everything offline, and one finished run of `smoke`."""

import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.request import urlopen

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads that wait must not burn the cores that others need
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, MPNetConfig, MPNetForSequenceClassification

import helpers.results
import helpers.runs
from helpers import experiments
from helpers.config import LABELS
from helpers.data import prepare_data
from helpers.models import find_pretrained, load_tokenizer
from helpers.runs import open_run

torch.set_num_threads(1)  # models as small as these only lose by sharing their work

FAMILIES = {
    "bert": (BertConfig, BertForSequenceClassification),
    "mpnet": (MPNetConfig, MPNetForSequenceClassification),
}

ODD_COMMENTS = {  # what people, and those who wish ill, may type; each can stand in a CSV file
    "empty": "",
    "blank": " \t\n ",
    "5,000 characters": "You are wrong. " * 333,
    "one long word": "x" * 100_000,
    "many words": "word " * 5_000,
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467" * 50,
    "right to left": "\u05d0\u05ea\u05d4 \u0637\u064a\u0628 \u202eevil\u202c",
    "zero width": "i\u200bd\u200ci\u200do\ufefft",
    "control characters": "a\x01\x07\x1b[31m\x7fb",
    "html": "<b>&amp;</b><script>alert(1)</script><img src=x onerror=alert(1)>",
    "formula": '=1+1, "two"\nlines',
    "formula that calls": "=cmd|' /C calc'!A0",
    "plus sign": "+1+1+cmd|' /C calc'!A0",
    "minus sign": "-2+3+cmd|' /C calc'!A0",
    "at sign": "@SUM(1+1)*cmd|' /C calc'!A0",
    "special tokens": "[CLS] [SEP] [MASK] [PAD]",
    "combining marks": "a" + "\u0301" * 1_000,
}


def build_model(family: str = "bert", seed: int = 0, layers: int = 12, **settings) -> torch.nn.Module:
    """A random classifier, 32 wide, with a vocabulary of 100 and dropout 0.1; in eval mode."""
    config_type, model_type = FAMILIES[family]
    config = config_type(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=40,
        **settings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_type(config).eval()


def build_rows(count: int, seed: int = 0) -> Dataset:
    """Rows of 3 to 16 tokens, every third toxic; a toxic one holds the token 7, a clean one does not."""
    generator = np.random.default_rng(seed)
    toxic = [int(i % 3 == 0) for i in range(count)]
    ids = []
    for label in toxic:
        words = generator.integers(10, 100, size=generator.integers(1, 15)).tolist()
        ids.append([5, *([7] if label else [8]), *words, 6])
    columns = {
        "row_id": [f"row-{seed}-{i:04d}" for i in range(count)],
        "comment_text": [f"comment {i}" for i in range(count)],
    }
    labels = {label: toxic if label == "toxic" else [0] * count for label in LABELS}
    return Dataset.from_dict(columns | labels | {"input_ids": ids, "tokens": [len(row) for row in ids]})


def no_run_named() -> dict[str, str]:
    """The environment without the variables that name a run: what a test starts is not to take this one's."""
    return {key: value for key, value in os.environ.items() if key not in ("PROFILE", "RUN", "JIGSAW_DIR", "SEEDS")}


def wait_for_page(address: str) -> None:
    """Waits until a server that was just started answers, a minute at most."""
    for _ in range(120):
        with suppress(OSError), urlopen(address, timeout=10):
            return
        time.sleep(0.5)
    pytest.fail(f"{address} does not answer")


def run_module(module: str, *arguments: str, cwd: Path = helpers.runs.ROOT) -> subprocess.CompletedProcess:
    """Runs a module's command line as a person would, in a process of its own."""
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=cwd, env=no_run_named(), capture_output=True, text=True, timeout=540)


@pytest.fixture(autouse=True)
def restored_environment() -> Iterator[None]:
    """What a command's options put into the environment (`parse_run`) does not reach the next test."""
    with patch.dict(os.environ):
        yield


@pytest.fixture(scope="session")
def tiny_model():
    """The function build_model(family, seed, layers, **config)."""
    return build_model


@pytest.fixture(scope="session")
def tiny_rows():
    """The function build_rows(count, seed)."""
    return build_rows


@pytest.fixture
def tiny_bert() -> torch.nn.Module:
    return build_model("bert")


@pytest.fixture
def tiny_mpnet() -> torch.nn.Module:
    return build_model("mpnet")


@pytest.fixture(params=sorted(FAMILIES))
def teacher(request) -> torch.nn.Module:
    """A tiny 12-layer model of each family in turn."""
    return build_model(request.param)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    """Four padded comments: ids and mask (4, 9), labels (4,)."""
    generator = torch.Generator().manual_seed(3)
    mask = torch.ones(4, 9, dtype=torch.long)
    mask[1, 5:] = 0
    return {
        "input_ids": torch.randint(10, 100, (4, 9), generator=generator),
        "attention_mask": mask,
        "labels": torch.tensor([0, 1, 1, 0]),
    }


def _open_smoke_run(directory: Path, monkeypatch: pytest.MonkeyPatch) -> helpers.runs.Run:
    for name in ("PROFILE", "RUN", "JIGSAW_DIR", "SEEDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(helpers.runs, "ROOT", directory)
    monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", directory / "results")
    run = open_run("smoke")
    pretrained = find_pretrained(run.profile.pretrained)
    prepare_data(run, load_tokenizer(pretrained), pretrained.sha256)
    return run


@pytest.fixture
def smoke_run(tmp_path, monkeypatch) -> helpers.runs.Run:
    """A run of `smoke` in a folder of its own, its data prepared, nothing trained yet."""
    return _open_smoke_run(tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory) -> helpers.runs.Run:
    """A run of `smoke` with every experiment finished. Only read it; `copied_run` may be changed."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        run = _open_smoke_run(tmp_path_factory.mktemp("finished"), monkeypatch)
        for name in run.profile.experiments:
            experiments.run_experiment(name, 1, run)
    return run


@pytest.fixture
def copied_run(finished_run, tmp_path, monkeypatch) -> helpers.runs.Run:
    """A copy of the finished run, for a test that removes or changes its files."""

    def copy_file(source: str, copy: str) -> None:
        (os.link if source.endswith(".safetensors") else shutil.copy2)(source, copy)  # weights are only ever replaced

    shutil.copytree(finished_run.directory, tmp_path / "run", copy_function=copy_file)
    monkeypatch.setattr(helpers.results, "PUBLISHED_RESULTS", tmp_path / "results")
    return replace(finished_run, directory=tmp_path / "run")


def damage_file(path, damage: str) -> None:
    """Cuts a file in half, or changes one of its digits or bytes; a file that is linked elsewhere is copied first."""
    content = bytearray(path.read_bytes())
    half = len(content) // 2
    if damage == "cut":
        content = content[:half]
    else:
        place = next(i for i in range(half, len(content)) if content[i : i + 1].isdigit() or path.suffix != ".json")
        content[place] = ord("7") if content[place] != ord("7") else ord("3")
    path.unlink()
    path.write_bytes(content)


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers every question with `status`, or, where it is None, not at all; at most config.json is given."""

    status: int | None = 503
    config: bytes | None = None
    released = threading.Event()

    def do_GET(self) -> None:
        if self.config and self.path.endswith("/config.json"):
            self.send_response(200)
            headers = {"ETag": '"1"', "X-Repo-Commit": "f" * 40, "Content-Length": str(len(self.config))}
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(self.config)
        elif self.status is None:
            self.released.wait(120)
        else:
            self.send_error(self.status)

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(request) -> Iterator[str]:
    """The address of a faked hub that answers with the parameter: a status, or one and the config.json it gives."""
    status, config = request.param if isinstance(request.param, tuple) else (request.param, None)
    handler = type("Faked", (Hub,), {"status": status, "config": config, "released": threading.Event()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    handler.released.set()
    server.shutdown()
