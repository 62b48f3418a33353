"""Nothing that is read can run: no pickle, no code from a model's folder, no unpacking, no shell."""

import ast
import os
import pickle
import shutil
from pathlib import Path

import nbformat
import pytest
import torch
from safetensors.torch import load_file
from test_training import SETTINGS

from helpers.experiments import load_trained
from helpers.layers import copy_layers
from helpers.runs import ROOT, new_directory, read_json
from helpers.training import Checkpoints, train

SOURCES = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "helpers").glob("*.py"))]
for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
    cells = nbformat.read(notebook, as_version=4).cells
    SOURCES.append("\n".join(cell.source for cell in cells if cell.cell_type == "code"))
NODES = [node for source in SOURCES for node in ast.walk(ast.parse(source))]
CALLS = [node for node in NODES if isinstance(node, ast.Call)]

FORBIDDEN_MODULES = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "telnetlib"}
FORBIDDEN_CALLS = {"eval", "exec", "os.system", "torch.load", "torch.save", "np.fromfile"}
FORBIDDEN_METHODS = {"extract", "extractall", "read_pickle", "to_pickle", "unpack_archive"}


def dotted(node: ast.AST) -> str:
    """The name of what is called, `a.b.c`; empty for anything else."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def test_no_module_that_runs_what_it_reads_is_imported():
    imported = set()
    for node in NODES:
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add((node.module or "").split(".")[0])
    assert imported & FORBIDDEN_MODULES == set()


def test_nothing_is_called_that_runs_or_unpacks_what_it_reads():
    called = {dotted(call.func) for call in CALLS}
    assert called & FORBIDDEN_CALLS == set()
    assert {full.rsplit(".", 1)[-1] for full in called if "." in full} & FORBIDDEN_METHODS == set()
    options = {keyword.arg for call in CALLS for keyword in call.keywords}
    assert options & {"trust_remote_code", "allow_pickle", "shell"} == set()


def test_weights_are_read_as_safetensors_alone():
    asked_for = "ForSequenceClassification.from_pretrained"
    loads = [call for call in CALLS if asked_for in " ".join(map(dotted, (call.func, *call.args)))]
    for call in loads:
        [asked] = [keyword.value for keyword in call.keywords if keyword.arg == "use_safetensors"]
        assert isinstance(asked, ast.Constant) and asked.value is True
    assert loads


def test_jupyterlab_is_served_on_this_machine_alone():
    started = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "-m jupyterlab" in line]
    assert started and all("--ServerApp.ip=127.0.0.1" in line for line in started)


class Harmful:
    """Unpickled, it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_that_would_run_code_is_refused_though_its_hashes_fit(tiny_bert, tiny_rows, tmp_path, capsys):
    splits = {"train": tiny_rows(16), "validation": tiny_rows(8, seed=1)}
    checkpoints = Checkpoints(tmp_path / "c", "here")
    train(copy_layers(tiny_bert, [1, 3]), splits, SETTINGS, checkpoints)
    [checkpoint] = (tmp_path / "c").iterdir()
    key = read_json(checkpoint / "fingerprint.json")["fingerprint"]
    with new_directory(checkpoint, key) as sealed:
        shutil.copytree(checkpoint, sealed, dirs_exist_ok=True, ignore=shutil.ignore_patterns("fingerprint.json"))
        (sealed / "optimizer.bin").write_bytes(pickle.dumps(Harmful(tmp_path / "made")))
    train(copy_layers(tiny_bert, [1, 3]), splits, SETTINGS, checkpoints)
    assert "cannot be loaded" in capsys.readouterr().out
    assert not (tmp_path / "made").exists()


def test_a_model_whose_weights_are_a_pickle_is_not_loaded(copied_run):
    directory = copied_run.model_dir("odd", 1)
    weights = directory / "model.safetensors"
    torch.save(load_file(weights), directory / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(OSError, match="safetensors"):
        load_trained("odd", 1, copied_run)
