"""Seeds are trained side by side, and whatever is finished when the machine is taken away can be published."""

import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from conftest import no_run_named

from helpers.results import read_results
from helpers.runs import ROOT
from tools.side_by_side import main, pack


def test_a_pack_is_laid_out_as_what_is_published_and_holds_whole_results_alone(finished_run, tmp_path):
    pack(finished_run, tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as archive:
        archive.extractall(tmp_path, filter="data")
    assert {*read_results(tmp_path / "smoke").by_name} == {*finished_run.profile.experiments}
    assert {path.name for path in tmp_path.iterdir()} == {"out.tar", "smoke"}


@pytest.mark.parametrize("target", ["", "no/such/file/../.."])
def test_a_place_that_cannot_be_written_to_is_said_before_the_training(smoke_run, tmp_path, capsys, target):
    assert main([str(tmp_path / target), "odd", "--profile", "smoke"]) == 2
    assert "error: " in capsys.readouterr().err


def packed(target: Path) -> set[str]:
    """The results in a pack."""
    with tarfile.open(target) as archive:
        return {Path(name).stem for name in archive.getnames() if name.endswith(".json")}


@pytest.mark.slow
def test_a_machine_that_is_taken_away_leaves_whole_seeds_of_the_first_experiments(tmp_path, request):
    """Killed after the teachers, whose two seeds are packed; run again, it goes on to the end."""
    name, target = f"taken-away-{os.getpid()}", tmp_path / "out.tar"
    request.addfinalizer(lambda: shutil.rmtree(ROOT / "runs" / name))
    command = [sys.executable, "-m", "tools.side_by_side", str(target), "teacher", "odd_hard", "--profile", "smoke"]
    command += ["--seeds", "1,2", "--run", name]
    stopped = subprocess.Popen(command, cwd=ROOT, env=no_run_named(), start_new_session=True, stdout=subprocess.PIPE)
    assert b"teacher: seeds (1, 2) trained" in stopped.stdout.readline()
    time.sleep(1)
    os.killpg(stopped.pid, signal.SIGKILL)
    assert packed(target) == {"teacher-1", "teacher-2"}
    subprocess.run(command, cwd=ROOT, env=no_run_named(), check=True)
    assert packed(target) == {"teacher-1", "teacher-2", "odd_hard-1", "odd_hard-2"}
