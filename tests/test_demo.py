"""The demo's models say what the run's results say, whatever is typed; its page stays on this machine."""

import csv
import shutil
from dataclasses import replace

import gradio as gr
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ODD_COMMENTS

import helpers.runs
from helpers import demo
from helpers.data import load_data
from helpers.demo import (
    SHOWN,
    TrainedModel,
    about,
    build_page,
    judge,
    launch,
    load_models,
    main,
    score_upload,
    side_by_side,
    word_changes,
)
from helpers.evaluation import toxic_probability
from helpers.models import find_pretrained, load_tokenizer
from helpers.results import load_results
from helpers.runs import find_finished_run

HOSTILE = ODD_COMMENTS | {"lone surrogates": "a \ud800 b\udfff"}


@pytest.fixture(scope="module")
def models(finished_run) -> dict[str, TrainedModel]:
    return load_models(finished_run)


class KnowsOneWord:
    """Stands for a model: toxic if the token of `bad` is there, by the token's number."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids, attention_mask):
        found = (input_ids == self.token).any(dim=1).float()
        return torch.stack([torch.zeros_like(found), 8 * found - 4], dim=1)


@pytest.fixture(scope="module")
def knows_bad(models) -> TrainedModel:
    tokenizer = load_tokenizer(find_pretrained("tiny-random"))
    [_, token, _] = tokenizer("bad")["input_ids"]
    return replace(models["odd"], call=KnowsOneWord(token), tokenizer=tokenizer, max_length=16, threshold=0.5)


# --- the models ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["teacher", "odd", "even", "lora", "lora_6"])
def test_a_models_probabilities_are_those_of_the_runs_predictions(models, finished_run, name):
    rows = load_data(finished_run).splits["test"]
    logits = load_results(finished_run).logits(name, 1, "test")
    order = np.argsort(rows["row_id"][:])
    found = models[name].probabilities([rows["comment_text"][int(row)] for row in order])
    assert found == pytest.approx(toxic_probability(logits), abs=1e-5)


def test_the_hybrid_is_shown_where_it_has_been_trained(copied_run, monkeypatch):
    from helpers import experiments

    experiments.run_experiment("hybrid", 1, copied_run)
    assert list(load_models(copied_run)) == [experiment.name for experiment in SHOWN]


def test_a_damaged_model_is_not_shown(copied_run):
    weights = copied_run.model_dir("odd", 1) / "config.json"
    weights.write_text(weights.read_text() + " ")
    assert "odd" not in load_models(copied_run)


def test_an_adapter_without_its_base_is_not_shown(copied_run):
    (copied_run.model_dir("lora", 1) / "model.safetensors").unlink()
    assert "lora" not in load_models(copied_run)


def test_the_page_says_what_the_models_were_trained_on_and_that_they_err(models, finished_run):
    text = about(models["odd"], finished_run)
    assert "64 comments (separable test data, not Jigsaw; run `smoke-separable`" in text
    assert "These models err" in text and "Do not moderate anybody" in text


def test_the_error_rates_are_those_of_the_chosen_model(models, finished_run):
    for model in models.values():
        assert f"*{model.title}* found {model.result['test']['recall']:.0%}" in about(model, finished_run)


# --- which run -------------------------------------------------------------------------------------------------------


@pytest.fixture
def empty_project(tmp_path, monkeypatch):
    for name in ("PROFILE", "RUN", "JIGSAW_DIR", "SEEDS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(helpers.runs, "ROOT", tmp_path)
    return tmp_path


def test_without_a_run_the_error_says_how_to_make_one(empty_project, capsys):
    assert main([]) == 2
    assert "`make run` trains them" in capsys.readouterr().err


def test_a_run_without_models_is_named(empty_project):
    with pytest.raises(FileNotFoundError, match="run 'mine' has no trained models"):
        find_finished_run("mine")


def test_a_run_that_is_not_the_one_asked_for_is_not_said_to_have_no_models(empty_project, finished_run, monkeypatch):
    shutil.copytree(finished_run.directory, empty_project / "runs" / "mine")
    monkeypatch.setenv("PROFILE", "base")
    with pytest.raises(ValueError, match="was made with PROFILE=smoke, and PROFILE=base is set"):
        find_finished_run("mine")


def test_the_run_whose_models_were_trained_last_is_taken(empty_project, finished_run):
    for name in ("first", "second"):
        shutil.copytree(finished_run.directory, empty_project / "runs" / name)
    last = empty_project / "runs" / "first" / "models" / "odd-1" / "fingerprint.json"
    last.touch()
    assert find_finished_run().name == "first"
    assert find_finished_run("second").name == "second"


def test_a_finished_run_goes_before_one_that_was_trained_later(empty_project, finished_run):
    for name in ("finished", "trained later"):
        shutil.copytree(finished_run.directory, empty_project / "runs" / name)
        (empty_project / "runs" / name / "results" / "comparison.csv").unlink(missing_ok=True)
    (empty_project / "runs" / "finished" / "results" / "comparison.csv").touch()
    (empty_project / "runs" / "trained later" / "models" / "odd-1" / "fingerprint.json").touch()
    assert find_finished_run().name == "finished"


def test_the_command_serves_the_models_of_the_run_until_it_is_stopped(empty_project, finished_run, monkeypatch, capsys):
    shutil.copytree(finished_run.directory, empty_project / "runs" / "mine")
    served = []
    monkeypatch.setattr(demo, "launch", lambda page, port: served.append((page, port)) or "http://127.0.0.1:7860/")
    monkeypatch.setattr(demo.time, "sleep", stop)
    assert main(["--port", "7861"]) == 0
    assert [port for _, port in served] == [7861] and isinstance(served[0][0], gr.Blocks)
    said = capsys.readouterr().out
    assert "models of run mine" in said and "open http://127.0.0.1:7860/ in a browser; stop with Ctrl-C" in said


def stop(seconds: float) -> None:
    raise KeyboardInterrupt


# --- judging ---------------------------------------------------------------------------------------------------------


def test_the_verdict_follows_the_models_own_threshold(models):
    [probability] = models["odd"].probabilities(["hello"])
    above, below = (replace(models["odd"], threshold=probability + change) for change in (-1e-6, 1e-6))
    assert judge(above, "hello")[0].startswith("### toxic\n")
    assert judge(below, "hello")[0].startswith("### not toxic\n")


def test_the_word_that_makes_it_toxic_has_the_largest_change(knows_bad):
    changes = dict(word_changes(knows_bad, "a bad day", float(knows_bad.probabilities(["a bad day"])[0])))
    assert changes["bad"] == pytest.approx(0.964, abs=1e-3)
    assert changes["a"] == changes["day"] == 0


def test_words_that_change_nothing_are_not_coloured(knows_bad):
    text, pieces = judge(knows_bad, "a nice day")
    assert "No single word changes" in text
    assert {colour for _, colour in pieces} == {None}


def test_what_the_model_does_not_read_is_said(knows_bad):
    _, pieces = judge(knows_bad, "nice " * 40 + "bad")
    assert pieces[-1][0].endswith("[not read: only 16 tokens are]")
    assert len([piece for piece, _ in pieces if piece == "nice"]) == 14


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_any_comment_gets_a_verdict_and_is_shown_as_it_was_typed(models, text):
    verdict, pieces = judge(models["odd"], text)
    if not text.strip():
        assert (verdict, pieces) == ("Type a comment first.", [])
        return
    shown = "".join(piece for piece, _ in pieces)
    assert shown
    typed = text.encode("utf-8", "replace").decode()
    assert typed.startswith(shown.split(" [not read")[0].removesuffix("…"))
    assert all(colour is None or -1 <= colour <= 1 for _, colour in pieces)


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_every_model_stands_in_the_table_with_finite_numbers(models, text):
    table = side_by_side(models, text)
    assert len(table) == (len(models) if text.strip() else 0)
    assert np.isfinite(table[["probability", "threshold", "milliseconds"]].to_numpy(dtype=float)).all()


def test_an_uploaded_file_comes_back_scored_in_its_order(models, tmp_path):
    comments = list(ODD_COMMENTS.values())
    source = tmp_path / "in.csv"
    with open(source, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["id", "comment_text"], *([f"row {i}", text] for i, text in enumerate(comments))])
    text, scored = score_upload(models["lora"], str(source))
    rows = pd.read_csv(scored).to_dict("records")
    assert f"scored {len(comments)} comments" in text
    assert [row["id"] for row in rows] == [f"row {i}" for i in range(len(comments))]
    expected = models["lora"].probabilities(comments)
    assert [row["probability"] for row in rows] == pytest.approx(expected, abs=1e-5)


def test_a_file_that_cannot_be_scored_is_explained_and_its_header_escaped(models, tmp_path):
    source = tmp_path / "in.csv"
    source.write_text("id,<img src=x onerror=alert(1)>\n1,hello\n")
    with pytest.raises(gr.Error, match=r"no column comment_text.*&lt;img") as caught:
        score_upload(models["odd"], str(source))
    assert "<img" not in str(caught.value)


# --- the page --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [False, True])
def test_the_server_binds_to_this_machine_and_shares_only_when_asked(models, finished_run, monkeypatch, share):
    asked = {}
    monkeypatch.setattr(gr.Blocks, "launch", lambda page, **options: asked.update(options) or (None, "local", None))
    monkeypatch.setenv("GRADIO_SHARE", "True")
    launch(build_page(models, finished_run), share=share)
    assert (asked["server_name"], asked["share"]) == ("127.0.0.1", share)


def test_the_page_tells_nobody_that_it_runs(models, finished_run):
    assert build_page(models, finished_run).analytics_enabled is False
