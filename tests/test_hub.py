"""A model hub that is away, slow or broken: each is said within a minute, with what to try next."""

import os
import socket
import subprocess
import sys
import threading
import time
from unittest.mock import Mock

import pytest

from helpers.data import hub_reachable
from helpers.runs import ROOT

FIND = "from helpers.models import find_pretrained; find_pretrained('bert-base-uncased')"
CONFIG = b'{"model_type": "bert", "architectures": ["BertForMaskedLM"]}'


def ask(address: str, home) -> tuple[str, float]:
    """The last line that looking for bert-base ends with, and how many seconds it took."""
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": address, "HF_HOME": str(home), "NO_PROXY": "*"}
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", FIND], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=180
    )
    return done.stderr.strip().splitlines()[-1], time.monotonic() - started


@pytest.mark.slow
@pytest.mark.parametrize("hub", [503, 401, None], indirect=True)
def test_a_hub_that_is_slow_or_answers_errors_is_said_within_a_minute_with_what_to_try(hub, tmp_path):
    said, seconds = ask(hub, tmp_path)
    assert said.startswith("FileNotFoundError: bert-base-uncased")
    assert "PROFILE=quick" in said
    assert seconds < 60


@pytest.mark.slow
@pytest.mark.parametrize("hub", [(503, CONFIG)], indirect=True, ids=["503"])
def test_a_hub_that_gives_the_first_file_and_no_more_is_said_with_what_to_try(hub, tmp_path):
    said, seconds = ask(hub, tmp_path)
    assert said.startswith("FileNotFoundError: bert-base-uncased") and "does not give it" in said
    assert list(tmp_path.rglob("config.json")), "the first file was not taken"
    assert "PROFILE=quick" in said
    assert seconds < 120


@pytest.mark.slow
def test_a_hub_that_is_away_is_said_at_once(tmp_path):
    said, seconds = ask("http://127.0.0.1:9", tmp_path)
    assert said.startswith("FileNotFoundError: bert-base-uncased") and "cannot be reached" in said
    assert seconds < 20


@pytest.mark.parametrize("hub", [503], indirect=True)
def test_a_hub_that_was_away_is_asked_again_and_any_answer_will_do(monkeypatch, hub):
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert hub_reachable() is False
    monkeypatch.setenv("HF_ENDPOINT", hub)
    assert hub_reachable() is True


def test_the_question_takes_no_longer_than_it_may_though_a_name_server_hangs(monkeypatch):
    released, out_of_reach = threading.Event(), Mock(side_effect=OSError("no route to host"))
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: released.wait(20) and out_of_reach())
    started = time.perf_counter()
    answer = hub_reachable(seconds=0.2)
    seconds = time.perf_counter() - started
    released.set()
    assert answer is False
    assert seconds < 5
