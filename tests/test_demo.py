"""The demo's models say what the run's results say, whatever is typed; its page stays on this machine."""

import os
import shutil
from dataclasses import replace
from urllib.request import urlopen

import gradio as gr
import numpy as np
import pytest
from conftest import ODD_COMMENTS

import helpers.runs
from helpers import demo
from helpers.data import load_data
from helpers.demo import (
    TrainedModel,
    about,
    build_page,
    judge,
    launch,
    load_models,
    main,
    side_by_side,
    word_changes,
)
from helpers.evaluation import toxic_probability
from helpers.results import load_results

HOSTILE = ODD_COMMENTS | {"lone surrogates": "a \ud800 b\udfff"}


@pytest.fixture
def knows_bad(models, monkeypatch) -> TrainedModel:
    """A model that calls a comment toxic if the word `bad` is in its first 16 tokens, and for nothing else."""
    tokenizer = models["odd"].classify.tokenizer

    def probabilities(_, comments):
        return np.array([0.982 if "bad" in tokenizer.tokenize(text)[:14] else 0.018 for text in comments])

    monkeypatch.setattr(TrainedModel, "probabilities", probabilities)
    return models["odd"]


@pytest.fixture(scope="module")
def models(finished_run) -> dict[str, TrainedModel]:
    return load_models(finished_run)


@pytest.mark.parametrize("name", ["teacher", "odd", "lora"])
def test_a_models_probabilities_are_those_of_the_runs_predictions(models, finished_run, name):
    rows = load_data(finished_run).splits["test"]
    logits = load_results(finished_run).logits(name, 1, "test")
    order = np.argsort(rows["row_id"][:])
    found = models[name].probabilities([rows["comment_text"][int(row)] for row in order])
    assert found == pytest.approx(toxic_probability(logits), abs=1e-5)


def test_a_damaged_model_and_an_adapter_without_its_base_are_not_shown(copied_run):
    config = copied_run.model_dir("odd", 1) / "config.json"
    config.write_text(config.read_text() + " ")
    (copied_run.model_dir("lora", 1) / "model.safetensors").unlink()
    assert list(load_models(copied_run)) == ["teacher", "even", "lora_6"]


def test_the_page_says_what_the_models_were_trained_on_and_how_often_the_chosen_one_errs(models, finished_run):
    text = about(models["odd"], finished_run)
    assert "64 comments (separable test data, not Jigsaw; run `smoke-separable`" in text
    assert f"*Odd student* found {models['odd'].result['test']['recall']:.0%}" in text
    assert "These models err" in text and "Do not moderate anybody" in text


def test_a_run_without_models_says_how_to_train_them_and_to_pick_another_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(helpers.runs, "ROOT", tmp_path)
    assert main(["--profile", "smoke", "--run", "mine"]) == 2
    said = capsys.readouterr().err
    assert "run 'mine' has no model yet" in said
    assert "`make run` trains them" in said and "RUN= or PROFILE= picks another run" in said


def test_the_command_serves_the_models_of_the_run_asked_for_until_it_is_stopped(
    finished_run, tmp_path, monkeypatch, capsys
):
    shutil.copytree(finished_run.directory, tmp_path / "runs" / "mine")
    monkeypatch.setattr(helpers.runs, "ROOT", tmp_path)
    served, blocked = [], []
    monkeypatch.setattr(demo, "launch", lambda page, port: served.append(port) or "http://127.0.0.1:7861/")
    monkeypatch.setattr(gr.Blocks, "block_thread", lambda page: blocked.append(page))
    assert main(["--profile", "smoke", "--run", "mine", "--port", "7861"]) == 0
    assert served == [7861] and len(blocked) == 1
    said = capsys.readouterr().out
    assert "models of run mine" in said and "open http://127.0.0.1:7861/ in a browser; stop with Ctrl-C" in said


def test_the_verdict_follows_the_models_own_threshold(models):
    [probability] = models["odd"].probabilities(["hello"])
    above, below = (replace(models["odd"], threshold=probability + change) for change in (-1e-6, 1e-6))
    assert judge(above, "hello")[0].startswith("### toxic\n")
    assert judge(below, "hello")[0].startswith("### not toxic\n")


def test_the_word_that_makes_it_toxic_has_the_largest_change(knows_bad):
    changes = dict(word_changes(knows_bad, "a bad day", float(knows_bad.probabilities(["a bad day"])[0])))
    assert changes["bad"] == pytest.approx(0.964, abs=1e-3)
    assert changes["a"] == changes["day"] == 0


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
    assert shown and text.encode("utf-8", "replace").decode().startswith(shown.split("… [not read")[0])
    assert all(colour is None or -1 <= colour <= 1 for _, colour in pieces)


def test_every_model_stands_in_the_table_with_finite_numbers_whatever_is_typed(models):
    for text in (HOSTILE["blank"], HOSTILE["html"], HOSTILE["lone surrogates"], HOSTILE["many words"]):
        table = side_by_side(models, text)
        assert len(table) == (len(models) if text.strip() else 0)
        assert np.isfinite(table[["probability", "threshold", "milliseconds"]].to_numpy(dtype=float)).all()


@pytest.mark.parametrize("share", [False, True])
def test_the_server_binds_to_this_machine_and_shares_only_when_asked(models, finished_run, monkeypatch, share):
    asked = {}
    monkeypatch.setattr(gr.Blocks, "launch", lambda page, **options: asked.update(options) or (None, "local", None))
    monkeypatch.setenv("GRADIO_SHARE", "True")
    launch(build_page(models, finished_run), share=share)
    assert (asked["server_name"], asked["share"]) == ("127.0.0.1", share)


def test_behind_a_proxy_the_page_still_answers(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("no_proxy", "intranet.example")
    with gr.Blocks() as page:
        gr.Markdown("hello")
    address = launch(page)
    try:
        assert urlopen(address).status == 200
        assert "intranet.example" in os.environ["no_proxy"].split(",")
    finally:
        page.close()


def test_the_page_tells_nobody_that_it_runs(models, finished_run):
    assert build_page(models, finished_run).analytics_enabled is False
