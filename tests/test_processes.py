"""Several devices: two CPU processes (gloo), started as `accelerate launch` starts them, do what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.runs import ROOT, read_json

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="several devices are for Linux")

# Trains a tiny student without dropout in batches of 4. Every process notes the rows it computed on, whether their
# targets were theirs, the files it opened to write, and how long it waits for the others.
SCRIPT = """
import json, sys
from dataclasses import replace
from pathlib import Path
import torch
from safetensors.torch import save_file
import helpers.training as training
from conftest import build_model, build_rows
from helpers.layers import copy_layers
from helpers.batches import load_targets, save_targets
from test_training import DISTILLING, SETTINGS

folder, rows = Path(sys.argv[1]), build_rows(int(sys.argv[2]))
teacher = build_model("bert", layers=4, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
rank = training.make_accelerator().process_index
save_targets(teacher, rows, folder / f"targets-{rank}", "teacher")
targets = load_targets(folder / f"targets-{rank}")
student = copy_layers(teacher, [1, 3])
found = {"rows": [], "targets right": [], "writes": []}
step = training.forward_and_backward
by_ids = {tuple(row["input_ids"]): row["row_id"] for row in rows}

def noting_step(model, batch, *arguments):
    named = [by_ids[tuple(row[row != 0].tolist())] for row in batch["input_ids"]]
    found["rows"] += named
    found["targets right"].append(torch.equal(batch["teacher_logits"], targets.look_up(named)["teacher_logits"]))
    return step(model, batch, *arguments)

def audit(event, arguments):
    writing = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
    if (writing or event in ("os.mkdir", "os.rename")) and str(folder / "checkpoints") in str(arguments[0]):
        found["writes"].append(str(arguments[0]))

training.forward_and_backward = noting_step
sys.addaudithook(audit)
splits, settings = {"train": rows, "validation": build_rows(12, seed=1)}, replace(SETTINGS, epochs=2, **DISTILLING)
history = training.train(student, splits, settings, training.Checkpoints(folder / "checkpoints", "start"), targets)
save_file(student.state_dict(), folder / f"weights-{rank}.safetensors")
found["steps"] = history["steps"]
if torch.distributed.is_initialized():
    group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    found["patience"] = group.options._timeout.total_seconds()
(folder / f"found-{rank}.json").write_text(json.dumps(found))
"""


def launch(processes: int, arguments: list[str], folder: Path) -> str:
    """Runs a script on so many CPU processes; what it printed.

    On GPUs `accelerate launch` starts the processes by torchrun; on CPUs it knows only MPI, so torchrun is called here.
    """
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    env = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    command = [*torchrun, *arguments]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folder, output and each process's findings, by number of processes, on 16 rows; as 17, of two on 17 rows."""
    runs = {}
    for name, processes, rows in ((1, 1, 16), (2, 2, 16), (17, 2, 17)):
        folder = tmp_path_factory.mktemp(f"processes-{name}")
        (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
        printed = launch(processes, ["script.py", str(folder), str(rows)], folder)
        runs[name] = folder, printed, [read_json(folder / f"found-{rank}.json") for rank in range(processes)]
    return runs


def test_two_processes_leave_the_weights_of_one(trained):
    one, *two = (load_file(trained[n][0] / f"weights-{rank}.safetensors") for n, rank in ((1, 0), (2, 0), (2, 1)))
    assert all(torch.allclose(tensor, two[0][name], atol=1e-4) for name, tensor in one.items())
    assert all(torch.equal(tensor, two[1][name]) for name, tensor in two[0].items())


def test_two_processes_log_the_losses_of_one(trained):
    one, two = trained[1][2][0]["steps"], trained[2][2][0]["steps"]
    assert all(two[part] == pytest.approx(values, abs=1e-4) for part, values in one.items())


def test_two_processes_train_on_every_row_once_an_epoch(trained):
    rows = [row for found in trained[2][2] for row in found["rows"]]
    assert sorted(rows) == sorted(2 * [f"row-0-{number:04d}" for number in range(16)])


def test_two_processes_see_no_row_twice_in_an_epoch_and_say_that_they_leave_out_the_short_batch(trained):
    _, printed, found = trained[17]
    rows = found[0]["rows"] + found[1]["rows"]
    assert len(rows) == 2 * 16 and max(rows.count(row) for row in rows) == 2  # two epochs
    assert "an epoch leaves out the rows of its short last batch" in printed


def test_every_process_looks_up_the_targets_of_its_own_rows(trained):
    assert all(all(found["targets right"]) for found in trained[2][2])


def test_only_the_first_process_writes_checkpoints(trained):
    assert [bool(found["writes"]) for found in trained[2][2]] == [True, False]


def test_the_others_wait_while_the_first_process_scores_and_exports(trained):
    assert [found["patience"] for found in trained[2][2]] == [4 * 3600] * 2


def test_the_stages_run_on_two_processes(tmp_path):
    """`-m helpers.experiments` in the smoke profile, the missing teacher included."""
    code = f"import helpers.runs as r, pathlib, sys; r.ROOT = pathlib.Path({str(tmp_path)!r}); "
    code += "import helpers.experiments as e, helpers.results as p; p.PUBLISHED_RESULTS = r.ROOT / 'results'; "
    code += "sys.exit(e.main(sys.argv[1:]))"
    (tmp_path / "stages.py").write_text(code, encoding="utf-8")
    printed = launch(2, ["stages.py", "odd", "lora", "--seeds", "1", "--profile", "smoke"], tmp_path)
    results = tmp_path / "runs" / "smoke-separable" / "results"
    assert sorted(path.name for path in results.glob("*.json")) == ["lora-1.json", "odd-1.json", "teacher-1.json"]
    assert printed.count("test average precision") == 3
