"""Killed at any moment, out of disk, two at once: nothing is lost, mixed or silently wrong.

Faults are done to processes of their own, in the profile `smoke`. Each model trains for four epochs, with a checkpoint
after each.
"""

import errno
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from conftest import no_run_named
from jupyter_client.manager import start_new_kernel

import helpers.runs
from helpers.plots import save_figure
from helpers.runs import read_json

PROJECT = Path(__file__).resolve().parent.parent
NAMES = ("teacher", "odd", "lora_6")
SMOKE = """
import errno, os, sys, time
sys.path.insert(0, {project})
from dataclasses import replace
from pathlib import Path
import torch
import helpers.config as config
import helpers.runs
{fault}
helpers.runs.ROOT = Path({root})
torch.set_num_threads(1)
import helpers.experiments as experiments
import helpers.results
helpers.results.PUBLISHED_RESULTS = helpers.runs.ROOT / "results"
config.PROFILES["smoke"] = replace(config.PROFILES["smoke"], epochs=4)  # a checkpoint per epoch
"""
STAGES = """
print("ready", flush=True)
sys.exit(experiments.main(["--profile", "smoke", *sys.argv[1:]]))
"""
OF_TIME = {"finished", "costs", "seconds"}


def smoke_in(root: Path, fault: str = "") -> str:
    """Code that puts the run of `smoke` below this folder; `fault` is code that runs before it."""
    return SMOKE.replace("{project}", repr(str(PROJECT))).replace("{root}", repr(str(root))).replace("{fault}", fault)


def start(root: Path, *arguments: str, fault: str = "") -> subprocess.Popen:
    """The command line of the experiments, with its run below this folder."""
    return subprocess.Popen(
        [sys.executable, "-c", smoke_in(root, fault) + STAGES, *arguments],
        cwd=PROJECT,
        env=no_run_named() | {"GOMP_SPINCOUNT": "1000"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(root: Path) -> float:
    """Runs the stages to their end; the seconds that they took."""
    process = start(root, *NAMES)
    assert process.stdout.readline() == "ready\n"
    started = time.monotonic()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3_000:]
    return time.monotonic() - started


def kill_after(root: Path, seconds: float) -> int:
    """Starts the stages and kills them (SIGKILL) so many seconds after their first; the exit code."""
    with start(root, *NAMES) as process:
        assert process.stdout.readline() == "ready\n"
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.kill()
        return process.wait()


def run_of(root: Path) -> Path:
    return root / "runs" / "smoke-separable"


def outcome(root: Path) -> dict[str, object]:
    """What a run left that is the same each time: weights, predictions, targets as bytes; results without times."""
    run = run_of(root)
    kinds = ("models/*/*.safetensors", "results/predictions/*.parquet", "targets/*/*.safetensors")
    files = [path for kind in kinds for path in run.glob(kind)]
    found: dict[str, object] = {str(path.relative_to(run)): path.read_bytes() for path in files}
    for path in run.glob("results/*.json"):
        result = read_json(path)
        found[path.name] = {key: value for key, value in result.items() if key not in OF_TIME}
    return found


def finished_at(root: Path) -> dict[str, str]:
    """When each finished experiment of a run was finished."""
    results = {path.stem: read_json(path) for path in run_of(root).glob("results/*-*.json")}
    return {name: result["finished"] for name, result in results.items() if result}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory) -> tuple[dict[str, object], float]:
    """The outcome of a run that nobody disturbed, and how many seconds its stages take (the second time: warm)."""
    roots = [tmp_path_factory.mktemp("uninterrupted") for _ in range(2)]
    seconds = [finish(root) for root in roots][1]
    return outcome(roots[1]), seconds


@pytest.mark.slow
@pytest.mark.parametrize("share", [random.Random(number).uniform(0, 0.85) for number in range(6)])
def test_a_run_killed_at_a_random_moment_ends_as_if_it_was_not(uninterrupted, tmp_path, share):
    expected, seconds = uninterrupted
    for attempt in range(5):  # the machine may be faster now than when the time was taken: then it ended before
        root = tmp_path / str(attempt)
        root.mkdir()
        if kill_after(root, share * seconds * 0.7**attempt) == -signal.SIGKILL:
            break
    else:
        pytest.fail("it ended before it could be killed, five times")
    finished = finished_at(root)
    finish(root)
    assert outcome(root) == expected
    assert finished.items() <= finished_at(root).items()  # no finished stage was done again


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_if_it_was_not(uninterrupted, tmp_path):
    expected, seconds = uninterrupted
    moments = random.Random(0)
    for _ in range(5):
        assert kill_after(tmp_path, moments.random() * seconds / 6) == -signal.SIGKILL
    finish(tmp_path)
    assert outcome(tmp_path) == expected


DISK_FULL = """
rename = os.replace
def full(source, target):
    if "{target}" in str(target):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
    rename(source, target)
os.replace = full
"""
# No file may grow beyond so many bytes: the system refuses the write itself, in whatever language it is called.
TOO_LARGE = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, ({bytes}, {bytes}))
"""
# root may write anywhere; without its capabilities it may not (capset(2), version 3).
NO_PRIVILEGES = """
import ctypes
header, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
assert ctypes.CDLL(None).capset(header, nothing) == 0
"""


def fail(root: Path, fault: str) -> str:
    """Runs the stages with a fault; the one line that they end with."""
    _, errors = start(root, *NAMES, fault=fault).communicate(timeout=300)
    said = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(said) == 1 and "Traceback" not in errors, errors[-3_000:]
    return said[0]


FULL = ["run.json", "/data", "odd-1/epoch-2", "models/teacher-1", "targets/", "predictions/teacher-1", "results/odd-1"]
FAILING_WRITES = {f"full at {at}": (DISK_FULL.replace("{target}", at), "No space left on device") for at in FULL}
for size in ("2000", "100000"):
    refused = TOO_LARGE.replace("{bytes}", size)
    FAILING_WRITES[f"refused after {size} bytes"] = refused, "ile too large|could not be written"


@pytest.mark.slow
@pytest.mark.parametrize("kind", FAILING_WRITES)
def test_a_write_that_fails_is_said_and_what_was_written_before_stays_valid(uninterrupted, tmp_path, kind):
    fault, said = FAILING_WRITES[kind]
    assert re.search(said, fail(tmp_path, fault))
    finished = finished_at(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    finish(tmp_path)
    assert outcome(tmp_path) == uninterrupted[0]
    assert finished.items() <= finished_at(tmp_path).items()


def test_a_full_disk_leaves_the_figure_that_was_there(copied_run, monkeypatch):
    target = copied_run.figures_dir / "picture.png"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text("what was there", encoding="utf-8")

    def full(source: Path, destination: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(destination))

    monkeypatch.setattr(helpers.runs.os, "replace", full)
    with pytest.raises(OSError, match="No space left on device"):
        save_figure(plt.figure(), copied_run.figures_dir, "picture")
    assert target.read_text(encoding="utf-8") == "what was there"
    assert not list(copied_run.directory.rglob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("folder", [".", "checkpoints", "results/predictions"])
def test_a_folder_that_is_read_only_is_said_and_nothing_is_lost(uninterrupted, tmp_path, folder):
    closed = run_of(tmp_path) / folder
    closed.mkdir(parents=True)
    closed.chmod(0o555)
    try:
        assert "Permission denied" in fail(tmp_path, NO_PRIVILEGES)
    finally:
        closed.chmod(0o755)
    finish(tmp_path)
    assert outcome(tmp_path) == uninterrupted[0]


@pytest.mark.slow
def test_a_second_process_on_a_model_says_who_trains_it_and_the_first_is_not_disturbed(uninterrupted, tmp_path):
    with start(tmp_path, *NAMES) as first:
        while not (run_of(tmp_path) / "checkpoints").is_dir():
            time.sleep(0.02)
        first.send_signal(signal.SIGSTOP)
        assert f"is in use by process {first.pid} on" in fail(tmp_path, "")
        first.send_signal(signal.SIGCONT)
        assert first.wait(timeout=300) == 0
    assert outcome(tmp_path) == uninterrupted[0]


KERNEL = """
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *_: time.sleep(0.1))  # so that the interrupt comes while there are steps
run = helpers.runs.open_run("smoke")
experiments.prepare(run)
"""


@pytest.mark.slow
def test_an_interrupted_cell_that_is_run_again_ends_as_if_it_was_not(uninterrupted, tmp_path):
    manager, client = start_new_kernel()
    try:
        opened = smoke_in(tmp_path) + KERNEL
        reply = client.execute_interactive(opened, output_hook=lambda _: None, timeout=120)
        assert reply["content"]["status"] == "ok", reply["content"]

        def interrupt(message: dict) -> None:
            """At the first steps of the training bar; again a second later, for ipykernel 6 may swallow the first."""
            if "/32" in message["content"].get("text", "") and time.monotonic() > pressed[-1] + 1:
                pressed.append(time.monotonic())
                manager.interrupt_kernel()

        for name in NAMES:
            pressed = [0.0]
            cell = f"experiments.run_experiment({name!r}, 1, run);"
            # stop_on_error=False: else a kernel may refuse what is sent at once after an error
            first = client.execute_interactive(cell, output_hook=interrupt, timeout=120, stop_on_error=False)
            assert first["content"].get("ename") == "KeyboardInterrupt"
            again = client.execute_interactive(cell, output_hook=lambda _: None, timeout=120)
            assert again["content"]["status"] == "ok", again["content"]
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert outcome(tmp_path) == uninterrupted[0]
