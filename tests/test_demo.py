"""The demo's models say what the run's results say, whatever is typed; its page stays on this machine."""

import os
import shutil
from dataclasses import replace
from unittest.mock import Mock
from urllib.request import urlopen

import gradio as gr
import numpy as np
import pytest
from conftest import ODD_COMMENTS

import helpers.runs
from helpers import demo
from helpers.data import load_data
from helpers.demo import TrainedModel, about, load_models, main, serve, side_by_side
from helpers.evaluation import toxic_probability
from helpers.results import load_results

HOSTILE = ODD_COMMENTS | {"lone surrogates": "a \ud800 b\udfff"}


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


def test_the_page_says_what_the_models_were_trained_on_and_how_often_the_first_one_errs(models, finished_run):
    text, test = about(models, finished_run), models["teacher"].result["test"]
    assert "64 comments (separable test data, not Jigsaw; run `smoke-separable`, profile `smoke`)" in text
    assert f"*Teacher* found {test['recall']:.0%} of the toxic ones, and {1 - test['precision']:.0%} of what" in text
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
    page, served = Mock(local_url="http://127.0.0.1:7861/"), []
    monkeypatch.setattr(demo, "serve", lambda models, run, server_port: served.append((run.name, server_port)) or page)
    assert main(["--profile", "smoke", "--run", "mine", "--port", "7861"]) == 0
    assert served == [("mine", 7861)] and page.block_thread.called
    assert "run mine: open http://127.0.0.1:7861/ in a browser; stop with Ctrl-C" in capsys.readouterr().out


def test_the_verdict_follows_the_models_own_threshold(models):
    [probability] = models["odd"].probabilities(["hello"])
    above, below = (replace(models["odd"], threshold=probability + change) for change in (-1e-6, 1e-6))
    assert (above.verdict(probability), below.verdict(probability)) == ("toxic", "not toxic")


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_any_comment_gets_a_finite_probability(models, text):
    assert 0 <= models["odd"].probabilities([text])[0] <= 1


def test_every_model_stands_in_the_table_with_its_verdict(models):
    comment = HOSTILE["lone surrogates"]
    table = side_by_side(models, comment)
    expected = [(model.title, model.verdict(model.probabilities([comment])[0])) for model in models.values()]
    assert list(zip(table["model"], table["verdict"], strict=True)) == expected
    assert (table["milliseconds"] > 0).all()


@pytest.mark.parametrize("text", [None, "", HOSTILE["blank"]])
def test_without_a_comment_the_table_is_empty_and_one_is_asked_for(models, text, capsys):
    assert side_by_side(models, text).empty
    assert capsys.readouterr().out == "Type a comment first.\n"


@pytest.fixture
def asked(monkeypatch) -> dict:
    """What gradio is asked to launch a page with; nothing is launched."""
    options = {}
    monkeypatch.setattr(gr.Blocks, "launch", lambda page, **given: options.update(given))
    return options


@pytest.mark.parametrize("share", [False, True])
def test_the_server_binds_to_this_machine_and_shares_only_when_asked(models, finished_run, monkeypatch, asked, share):
    monkeypatch.setenv("GRADIO_SHARE", "True")
    serve(models, finished_run, share=share)
    assert (asked["server_name"], asked["share"]) == ("127.0.0.1", share)


def test_the_page_tells_nobody_that_it_runs(models, finished_run, asked):
    assert serve(models, finished_run).analytics_enabled is False


def test_behind_a_proxy_the_page_still_answers(models, finished_run, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # where nobody listens
    monkeypatch.setenv("no_proxy", "intranet.example")
    page = serve(models, finished_run)
    try:
        assert urlopen(page.local_url).status == 200
        assert "intranet.example" in os.environ["no_proxy"].split(",")
    finally:
        page.close()
