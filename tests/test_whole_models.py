"""A model's folder is whole: transformers alone, wherever it lies, gives the scores of this project."""

import json
import shutil

import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

from helpers.data import tokenise
from helpers.evaluation import toxic_probability
from helpers.experiments import load_trained, read_result
from helpers.models import find_pretrained, load_tokenizer

MODELS = ("teacher", "odd", "lora", "lora_6")
COMMENTS = ["You are kind.", "idiot", "", "😀 😀", "word " * 300, "an edit war " * 9]


def own_probabilities(name: str, run, comments: list[str]) -> list[float]:
    """Of `toxic`, one comment at a time, as the project tokenises and scores."""
    model, tokenizer = load_trained(name, 1, run), load_tokenizer(find_pretrained(run.profile.pretrained))
    ids, _ = tokenise(comments, tokenizer, run.profile.max_length)
    with torch.inference_mode():
        logits = torch.cat([model(torch.tensor([row.tolist()])).logits for row in ids])
    return toxic_probability(logits.numpy()).tolist()


def pipeline_probabilities(folder, comments: list[str]) -> list[float]:
    classify = pipeline("text-classification", str(folder), device="cpu", truncation=True)
    answers = classify(comments, top_k=None)
    assert {answer["label"] for answer in answers[0]} == {"toxic", "not toxic"}
    return [next(answer["score"] for answer in of_comment if answer["label"] == "toxic") for of_comment in answers]


@pytest.fixture
def moved(finished_run, tmp_path):
    """A copy of the model's folder at another place; the run it came from is out of reach."""

    def move(name: str):
        return shutil.copytree(finished_run.model_dir(name, 1), tmp_path / "elsewhere" / "a model")

    return move


@pytest.mark.parametrize("name", MODELS)
def test_the_pipeline_of_transformers_gives_the_projects_scores_wherever_the_folder_lies(finished_run, moved, name):
    expected = own_probabilities(name, finished_run, COMMENTS)
    assert pipeline_probabilities(moved(name), COMMENTS) == pytest.approx(expected, abs=1e-5)
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
        ("odd", "config.json"),
        ("odd", "tokenizer.json"),
        ("odd", "model.safetensors"),
        ("odd", "README.md"),
        ("odd", "fingerprint.json"),
        ("lora", "model.safetensors"),
        ("lora", "base.json"),
        ("lora", "adapter_config.json"),
        ("lora", "adapter_model.safetensors"),
    ],
)
def test_a_folder_without_a_part_is_refused_with_its_name(copied_run, name, part):
    (copied_run.model_dir(name, 1) / part).unlink()
    with pytest.raises(FileNotFoundError, match=f"models/{name}-1/ of run .* lacks {part}: run 0"):
        load_trained(name, 1, copied_run)


def test_the_card_has_the_scores_of_the_result_and_the_limits(finished_run):
    card = (finished_run.model_dir("odd", 1) / "README.md").read_text(encoding="utf-8")
    result = read_result(finished_run.results_dir, "odd", 1)
    assert f"average precision {result['test']['average_precision']:.3f}" in card
    assert f"at the threshold {result['threshold']:.3f}" in card
    assert "Do not moderate anybody with it" in card


def test_the_card_of_an_adapter_says_that_it_needs_peft(finished_run):
    cards = {name: (finished_run.model_dir(name, 1) / "README.md").read_text(encoding="utf-8") for name in MODELS}
    assert [name for name, card in cards.items() if "pip install peft" in card] == ["lora", "lora_6"]


def test_the_threshold_goes_with_the_model(finished_run):
    config = json.loads((finished_run.model_dir("lora", 1) / "config.json").read_text(encoding="utf-8"))
    assert config["threshold"] == read_result(finished_run.results_dir, "lora", 1)["threshold"]


@pytest.mark.parametrize("name", MODELS)
def test_no_file_of_a_model_names_a_place_on_this_machine(finished_run, name):
    for path in finished_run.model_dir(name, 1).glob("*"):
        if path.suffix in (".json", ".md"):
            assert str(finished_run.directory.parent) not in path.read_text(encoding="utf-8"), path.name
