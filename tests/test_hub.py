"""A model hub that is away, slow or broken: each is said within a minute, with what to try next."""

import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from helpers.runs import ROOT

FIND = "from helpers.models import find_pretrained; find_pretrained('bert-base-uncased')"


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers every question with `status`, or, where it is None, not at all."""

    status: int | None = 503
    released = threading.Event()

    def do_GET(self) -> None:
        if self.status is None:
            self.released.wait(120)
        else:
            self.send_error(self.status)

    do_HEAD = do_GET

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(request) -> Iterator[str]:
    """The address of a faked hub that answers with the status of the parameter."""
    handler = type("Faked", (Hub,), {"status": request.param, "released": threading.Event()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    handler.released.set()
    server.shutdown()


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
@pytest.mark.parametrize("hub", [500, 503, 404, 401, None], indirect=True)
def test_a_hub_that_is_slow_or_answers_errors_is_said_within_a_minute_with_what_to_try(hub, tmp_path):
    said, seconds = ask(hub, tmp_path)
    assert said.startswith("FileNotFoundError: bert-base-uncased")
    assert "PROFILE=quick" in said
    assert seconds < 60


@pytest.mark.slow
def test_a_hub_that_is_away_is_said_at_once(tmp_path):
    said, seconds = ask("http://127.0.0.1:9", tmp_path)
    assert said.startswith("FileNotFoundError: bert-base-uncased") and "cannot be reached" in said
    assert seconds < 20
