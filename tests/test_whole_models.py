"""A model's folder is whole: transformers alone, wherever it lies, gives the scores of this project."""

import json
import shutil

import pytest
import torch
from conftest import damage_file
from transformers import AutoModelForSequenceClassification, pipeline

from helpers.data import tokenise
from helpers.evaluation import toxic_probability
from helpers.experiments import MissingStage, load_trained
from helpers.models import find_pretrained, load_tokenizer
from helpers.saved import read_result

COMMENTS = ["You are kind.", "idiot", "", "😀 😀", "word " * 300, "an edit war " * 9]


def own_probabilities(name: str, run, comments: list[str]) -> list[float]:
    """Of `toxic`, one comment at a time, as the project tokenises and scores."""
    model, tokenizer = load_trained(name, 1, run), load_tokenizer(find_pretrained(run.profile.pretrained))
    ids, _ = tokenise(comments, tokenizer, run.profile.max_length)
    with torch.inference_mode():
        logits = torch.cat([model(torch.tensor([row.tolist()])).logits for row in ids])
    return toxic_probability(logits.numpy()).tolist()


@pytest.fixture
def moved(finished_run, tmp_path):
    """A copy of the model's folder at another place; the run it came from is out of reach."""
    return lambda name: shutil.copytree(finished_run.model_dir(name, 1), tmp_path / "elsewhere" / "a model")


@pytest.fixture
def cards(finished_run) -> dict[str, str]:
    names = ("odd", "lora", "lora_6")
    return {name: (finished_run.model_dir(name, 1) / "README.md").read_text(encoding="utf-8") for name in names}


@pytest.mark.parametrize("name", ["odd", "lora"])
def test_the_pipeline_of_transformers_gives_the_projects_scores_wherever_the_folder_lies(finished_run, moved, name):
    expected = own_probabilities(name, finished_run, COMMENTS)
    classify = pipeline("text-classification", str(moved(name)), device="cpu", truncation=True)
    answers = [{answer["label"]: answer["score"] for answer in found} for found in classify(COMMENTS, top_k=None)]
    assert answers[0].keys() == {"toxic", "not toxic"}
    assert [found["toxic"] for found in answers] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 1e-3  # they differ, so that an empty tokenizer would be seen


@pytest.mark.parametrize("name", ["lora", "lora_6"])
def test_an_adapter_changes_the_scores_of_the_base_beside_it(finished_run, moved, name):
    folder = moved(name)
    for part in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / part).unlink()
    base = AutoModelForSequenceClassification.from_pretrained(folder, use_safetensors=True).eval()
    ids = torch.tensor([[101, 2023, 102]])
    with torch.inference_mode():
        difference = (base(ids).logits - load_trained(name, 1, finished_run)(ids).logits).abs().max()
    assert difference > 1e-3


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("odd", "tokenizer.json"),
        ("odd", "model.safetensors"),
        ("odd", "fingerprint.json"),
        ("lora", "model.safetensors"),
        ("lora", "base.json"),
    ],
)
def test_a_folder_without_a_part_is_refused_with_its_name(copied_run, name, part):
    (copied_run.model_dir(name, 1) / part).unlink()
    with pytest.raises(MissingStage, match=f"no whole model {name} with seed 1 .missing or damaged: {part}"):
        load_trained(name, 1, copied_run)


def test_a_folder_whose_weights_were_altered_is_refused(copied_run):
    damage_file(copied_run.model_dir("odd", 1) / "model.safetensors", "altered")
    with pytest.raises(MissingStage, match=r"missing or damaged: model\.safetensors"):
        load_trained("odd", 1, copied_run)


def test_the_card_has_the_scores_of_the_result_and_the_limits(finished_run, cards):
    result = read_result(finished_run.results_dir, "odd", 1)
    assert f"average precision {result['test']['average_precision']:.3f}" in cards["odd"]
    assert f"at the threshold {result['threshold']:.3f}" in cards["odd"]
    assert "Do not moderate anybody with it" in cards["odd"]


def test_the_card_of_an_adapter_says_that_it_needs_peft(cards):
    assert [name for name, card in cards.items() if "Needs peft" in card] == ["lora", "lora_6"]


def test_the_threshold_goes_with_the_model(finished_run):
    config = json.loads((finished_run.model_dir("lora", 1) / "config.json").read_text(encoding="utf-8"))
    assert config["threshold"] == read_result(finished_run.results_dir, "lora", 1)["threshold"]


def test_no_model_and_no_result_names_a_place_on_this_machine(finished_run):
    paths = [*(finished_run.directory / "models").rglob("*.*"), *finished_run.results_dir.glob("*.json")]
    for path in paths:
        if path.suffix in (".json", ".md"):
            assert str(finished_run.directory.parent) not in path.read_text(encoding="utf-8"), path.name
