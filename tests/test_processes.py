"""Several devices: two CPU processes (gloo), started as `accelerate launch` starts them, do what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from helpers.runs import ROOT, read_json

# Trains a tiny student without dropout on 17 rows in batches of 4, whose short last batch two processes leave out.
# Every process notes the rows it computed on, whether their targets were theirs, and the files it opened to write.
SCRIPT = """
import json
import sys
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
targets = load_targets(folder / f"targets-{rank}", "teacher")
student = copy_layers(teacher, [1, 3])
seen, right, writes = [], [], []
original = training.forward_and_backward
by_ids = {tuple(row["input_ids"]): row["row_id"] for row in rows}


def forward_and_backward(model, batch, *arguments):
    ids = [tuple(row[row != 0].tolist()) for row in batch["input_ids"]]
    named = [by_ids[row] for row in ids]
    right.append(torch.equal(batch["teacher_logits"], targets.look_up(named)["teacher_logits"]))
    seen.extend(named)
    return original(model, batch, *arguments)


def audit(event, arguments):
    writing = event == "open" and isinstance(arguments[1], str) and arguments[1][0] in "wax"
    if (writing or event in ("os.mkdir", "os.rename")) and str(folder) in str(arguments[0]):
        writes.append(str(arguments[0]))


training.forward_and_backward = forward_and_backward
sys.addaudithook(audit)
settings = replace(SETTINGS, epochs=2, **DISTILLING)
splits = {"train": rows, "validation": build_rows(12, seed=1)}
history = training.train(student, splits, settings, training.Checkpoints(folder / "checkpoints", "start"), targets)
written = list(writes)
save_file(student.state_dict(), folder / f"weights-{rank}.safetensors")
found = {"rows": seen, "targets right": all(right), "writes": written, "steps": history["steps"]}
if torch.distributed.is_initialized():
    group = torch.distributed.group.WORLD._get_backend(torch.device("cpu"))
    found["patience"] = group.options._timeout.total_seconds()
(folder / f"found-{rank}.json").write_text(json.dumps(found))
"""


def launch(processes: int, arguments: list[str], folder: Path) -> str:
    """Runs a script on so many CPU processes; what it printed.

    On GPUs `accelerate launch` starts the processes by torchrun; on CPUs it knows only MPI, so torchrun is called here.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout[-2_000:] + done.stderr[-4_000:]
    return done.stdout


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[int, Path]:
    """The folders that the script left, by number of processes, on 16 rows; and on 17 in two processes, as 17."""
    folders = {}
    for name, processes, rows in ((1, 1, 16), (2, 2, 16), (17, 2, 17)):
        folders[name] = folder = tmp_path_factory.mktemp(f"processes-{name}")
        (folder / "script.py").write_text(SCRIPT, encoding="utf-8")
        printed = launch(processes, ["script.py", str(folder), str(rows)], folder)
        (folder / "printed").write_text(printed, encoding="utf-8")
    return folders


def found(folder: Path, rank: int) -> dict:
    return read_json(folder / f"found-{rank}.json")


def weights(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    return load_file(folder / f"weights-{rank}.safetensors")


def test_two_processes_leave_the_weights_of_one(trained):
    shared = weights(trained[2], 0)
    assert all(torch.allclose(tensor, shared[name], atol=1e-4) for name, tensor in weights(trained[1], 0).items())


def test_both_processes_end_with_the_same_weights(trained):
    second = weights(trained[2], 1)
    assert all(torch.equal(tensor, second[name]) for name, tensor in weights(trained[2], 0).items())


def test_two_processes_log_the_losses_of_one(trained):
    for part, values in found(trained[1], 0)["steps"].items():
        assert found(trained[2], 0)["steps"][part] == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize("processes", [1, 2])
def test_every_row_is_trained_on_once_an_epoch(trained, processes):
    rows = [row for rank in range(processes) for row in found(trained[processes], rank)["rows"]]
    assert sorted(rows) == sorted(2 * [f"row-0-{number:04d}" for number in range(16)])


def test_two_processes_see_no_row_twice_in_an_epoch_and_say_that_they_leave_out_the_short_batch(trained):
    rows = [row for rank in range(2) for row in found(trained[17], rank)["rows"]]
    assert len(rows) == 2 * 16 and max(rows.count(row) for row in rows) == 2  # two epochs
    assert "an epoch leaves out the rows of its short last batch" in (trained[17] / "printed").read_text()


def test_every_process_looks_up_the_targets_of_its_own_rows(trained):
    assert [found(trained[2], rank)["targets right"] for rank in range(2)] == [True, True]


def test_only_the_first_process_writes(trained):
    assert [bool(found(trained[2], rank)["writes"]) for rank in range(2)] == [True, False]


def test_the_others_wait_while_the_first_process_scores_and_exports(trained):
    assert [found(trained[2], rank)["patience"] for rank in range(2)] == [4 * 3600] * 2


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
